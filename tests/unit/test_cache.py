# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator import cache as cache_module
from orchestrator.cache import Artefact, Cache, damage, digest, file_digest
from orchestrator.errors import UserError


def test_an_artefact_is_made_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    made: list[Path] = []

    def make(directory: Path) -> None:
        made.append(directory)
        (directory / "bzImage").write_bytes(b"kernel")

    first = cache.obtain("kernel", {"tree": "a"}, make)
    second = cache.obtain("kernel", {"tree": "a"}, make)
    assert first == second and len(made) == 1
    assert (first / "bzImage").read_bytes() == b"kernel"
    assert cache.obtain("kernel", {"tree": "b"}, make) != first


def test_an_interruption_leaves_nothing_half_made(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def interrupted(directory: Path) -> None:
        (directory / "bzImage").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.obtain("kernel", {"tree": "a"}, interrupted)
    assert not cache.has("kernel", {"tree": "a"})
    assert list((tmp_path / "kernel").iterdir()) == []


def test_two_who_ask_at_once_share_one_making(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    made: list[int] = []
    together = threading.Barrier(2)

    def make(directory: Path) -> None:
        made.append(1)

    def ask() -> None:
        together.wait()
        cache.obtain("image", {"recipe": 1}, make)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_damaged_artefact_is_made_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    made = cache.obtain("image", {"recipe": 1}, lambda directory: None)
    (made / "key.json").unlink()
    (made / "rubbish").write_text("left over")
    again = cache.obtain("image", {"recipe": 1}, lambda directory: None)
    assert again == made and not (again / "rubbish").exists()


def test_the_digest_depends_on_values_not_on_order() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"})


def test_entries_are_what_can_be_made_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    kernel = cache.obtain("kernel", {"a": 1}, lambda directory: None)
    cache.obtain("ssh-keys", {"a": 1}, lambda directory: None)
    (cache.workspace("build-measure-1") / "objects").mkdir()
    cache.workspace("build-counts")
    half_made = tmp_path / "kernel" / f".{'0' * 20}-abc"
    half_made.mkdir()
    os.utime(kernel / "key.json", (7, 7))
    entries = sorted(cache.entries())
    assert {entry.name for entry in entries} == {
        f"kernel/{kernel.name}",
        "workspace/build-measure-1",
        f"kernel/{half_made.name}",
    }
    assert (entries[0].path, entries[0].used) == (kernel, 7)


def test_an_entry_in_use_is_not_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    (cache.workspace("build-measure-1") / "objects").mkdir()
    (entry,) = cache.entries()
    with cache.lock("build-measure-1"):
        assert not cache.remove(entry)
        assert entry.path.is_dir()
    assert cache.remove(entry)
    assert list(cache.entries()) == []


def test_an_artefact_is_asked_for_and_made_by_one_description(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    part = Artefact(
        cache, "part", lambda: {"n": 1}, lambda place: (place / "part").touch(), lambda place: place.name
    )

    def make(place: Path) -> None:
        (place / "text").write_text(str(part.existing()))

    whole = Artefact(
        cache,
        "whole",
        lambda: {"part": name} if (name := part.existing()) else None,
        make,
        lambda place: (place / "text").read_text(),
        prepare=part.obtain,
    )
    assert not whole.is_made and whole.existing() is None
    assert not any(tmp_path.iterdir()), "asking makes nothing"
    assert whole.obtain() == part.existing() == whole.existing()
    assert whole.is_made


def test_an_artefact_that_cannot_be_made_is_not_there(tmp_path: Path) -> None:
    def make(place: Path) -> None:
        (place / "half").touch()
        raise OSError("no")

    artefact = Artefact(Cache(tmp_path), "part", lambda: {"n": 1}, make, Path)
    with pytest.raises(OSError, match="no"):
        artefact.obtain()
    assert not artefact.is_made


def _kernel(directory: Path) -> None:
    (directory / "bzImage").write_bytes(b"kernel" * 100)
    (directory / "config").touch()


def _flip(path: Path, *, keep_mtime: bool) -> None:
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    if keep_mtime:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _after_a_boot_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cache._boot_id", lambda: "the next boot")


@pytest.mark.parametrize(
    "fault", ["flipped", "empty", "shorter", "missing", "unreadable seal", "another key"]
)
def test_a_damaged_file_is_noticed_at_the_next_use(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(tmp_path)
    made = cache.obtain("kernel", {"a": 1}, _kernel)
    image = made / "bzImage"
    if fault == "flipped":
        _flip(image, keep_mtime=False)
    elif fault == "empty":
        image.write_bytes(b"")
    elif fault == "shorter":
        image.write_bytes(b"kernel")
    elif fault == "missing":
        image.unlink()
    elif fault == "unreadable seal":
        (made / "seal.json").write_bytes(b"\0" * 40)
    else:
        (made / "key.json").write_text('{"a": 2}')
    assert not cache.has("kernel", {"a": 1})
    again = cache.obtain("kernel", {"a": 1}, _kernel)
    assert (again / "bzImage").read_bytes() == b"kernel" * 100
    assert f"kernel/{made.name} in the cache is damaged" in caplog.text
    assert cache.has("kernel", {"a": 1})


def test_a_bit_that_flips_on_the_disk_is_noticed_after_a_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    made = cache.obtain("kernel", {"a": 1}, _kernel)
    _flip(made / "bzImage", keep_mtime=True)
    _after_a_boot_of_the_host(monkeypatch)
    assert damage(made) == "the content of bzImage has changed"
    assert not cache.has("kernel", {"a": 1})


def test_content_is_read_once_per_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    made = cache.obtain("kernel", {"a": 1}, _kernel)
    _after_a_boot_of_the_host(monkeypatch)
    read: list[Path] = []
    original = file_digest

    def counting(path: Path) -> str:
        read.append(path)
        return original(path)

    monkeypatch.setattr("orchestrator.cache.file_digest", counting)
    for _ in range(3):
        assert damage(made) is None
    assert sorted(path.name for path in read) == ["bzImage", "config"]


def test_a_copied_cache_is_as_good_as_the_original(tmp_path: Path) -> None:
    made = Cache(tmp_path / "a").obtain("kernel", {"a": 1}, _kernel)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copy)  # with other mtimes
    assert damage(tmp_path / "b" / "kernel" / made.name) is None


def test_an_entry_of_an_earlier_version_gets_a_seal(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    made = cache.obtain("kernel", {"a": 1}, _kernel)
    (made / "seal.json").unlink()
    assert cache.has("kernel", {"a": 1})
    _flip(made / "bzImage", keep_mtime=False)
    assert not cache.has("kernel", {"a": 1})


def test_git_may_change_what_is_not_an_object(tmp_path: Path) -> None:
    def make(directory: Path) -> None:
        for name in ("repository.git/index", "repository.git/objects/pack/a.pack"):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text("content")

    made = Cache(tmp_path).obtain("tree", {"a": 1}, make)
    (made / "repository.git/index").write_text("another")
    os.utime(made / "repository.git/objects/pack/a.pack", (1, 1))
    assert damage(made) is None
    (made / "repository.git/objects/pack/a.pack").unlink()
    assert damage(made) == "repository.git/objects/pack/a.pack is missing"


def test_the_next_maker_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    final = cache.path("kernel", {"a": 1})
    left = final.parent / f".{final.name}-left"
    left.mkdir(parents=True)
    (left / "bzImage").touch()
    cache.obtain("kernel", {"a": 1}, _kernel)
    assert [path.name for path in final.parent.iterdir()] == [final.name]


def test_the_entry_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        done.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    Cache(tmp_path).obtain("kernel", {"a": 1}, _kernel)
    assert {"bzImage", "config", "key.json", "seal.json"} <= set(done[: done.index("rename")])


def test_what_another_process_uses_is_not_removed(tmp_path: Path) -> None:
    artefact = Artefact(Cache(tmp_path), "kernel", lambda: {"a": 1}, _kernel, Path)
    made = artefact.obtain()
    script = (
        "import sys; from pathlib import Path; from orchestrator.cache import Cache\n"
        "cache = Cache(Path(sys.argv[1]))\n"
        "print([each.is_gone for each in cache.collect(limit_bytes=0)])"
    )

    def collect() -> str:
        return subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True
        ).stdout.strip()

    assert collect() == "[False]" and made.is_dir()
    _release(made)
    assert collect() == "[True]" and not made.exists()
    assert artefact.obtain() == made, "it is made again"


def _release(directory: Path) -> None:
    os.close(cache_module._held.pop(directory))


def test_the_least_recently_used_go_when_the_cache_is_too_large(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=250_000)

    def make(directory: Path) -> None:
        (directory / "bzImage").write_bytes(os.urandom(100_000))

    made = []
    for number in range(3):
        made.append(cache.obtain("kernel", {"a": number}, make))
        _release(made[-1])
        os.utime(made[-1] / "key.json", (number, number))
    assert [path.exists() for path in made] == [False, True, True]


@pytest.mark.parametrize("limit", ["many", "-1", "0", "nan", "inf"])
def test_a_bad_limit_is_one_sentence(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATE_CACHE_GIB", limit)
    with pytest.raises(UserError, match=f"ORCHESTRATE_CACHE_GIB={limit}: write a number of GiB"):
        Cache.default()


def test_a_full_cache_that_is_read_only_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    made = cache.obtain("kernel", {"a": 1}, _kernel)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    _after_a_boot_of_the_host(monkeypatch)
    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr("orchestrator.cache.replace_file", refuse)
    assert cache.obtain("kernel", {"a": 1}, _kernel) == made
