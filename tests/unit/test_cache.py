# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from orchestrator.cache import Artefact, Cache, digest


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
