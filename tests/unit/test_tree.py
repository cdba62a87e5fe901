# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_tree import write_patch, write_series, write_tree

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Events
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.series import load_series
from orchestrator.kernel.source import SourceTree, import_source
from orchestrator.kernel.tree import PatchedTree, apply_stages


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def source(tmp_path: Path, cache: Cache) -> SourceTree:
    return import_source(str(write_tree(tmp_path / "linux")), "linux-source-6.12", cache, Events())


def applied(source: SourceTree, patches: Path, patchset: str, cache: Cache) -> PatchedTree:
    return apply_stages(source, load_series(patches).select(patchset), cache, Events())


def content(tree: PatchedTree, path: str) -> str:
    return Repository(tree.repository).git("show", f"{tree.commit}:{path}").stdout


def test_stages_are_applied_in_order(tmp_path: Path, source: SourceTree, cache: Cache) -> None:
    patches = write_series(tmp_path / "patches")
    assert applied(source, patches, "baseline", cache).tree == source.tree
    assert "address + 1" in content(applied(source, patches, "stage-1", cache), "mm/memory.c")
    whole = applied(source, patches, "full", cache)
    assert "address + 3" in content(whole, "mm/memory.c")
    assert content(whole, "init/main.c") == content(
        applied(source, patches, "baseline", cache), "init/main.c"
    )


def test_the_commit_depends_on_source_and_patches_only(
    tmp_path: Path, source: SourceTree, cache: Cache
) -> None:
    patches = write_series(tmp_path / "patches")
    other = Cache(tmp_path / "other")
    again = import_source(str(tmp_path / "linux"), "linux-source-6.12", other, Events())
    assert applied(source, patches, "full", cache).commit == applied(again, patches, "full", other).commit


def test_a_stage_that_moved_still_applies(tmp_path: Path, cache: Cache) -> None:
    tree = write_tree(tmp_path / "newer")
    memory = tree / "mm" / "memory.c"
    memory.write_text("int added_by_a_point_release;\n\n" + memory.read_text())
    newer = import_source(str(tree), "linux-source-6.12", cache, Events())
    patches = write_series(tmp_path / "patches")
    assert "address + 3" in content(applied(newer, patches, "full", cache), "mm/memory.c")


def test_a_stage_that_does_not_apply_is_named_with_its_files(
    tmp_path: Path, source: SourceTree, cache: Cache
) -> None:
    patches = write_series(tmp_path / "patches")
    write_patch(patches / "6.12" / "0002.patch", "\treturn -address;", "\treturn address + 2;")
    with pytest.raises(UserError, match=r"stage 2 \(second\) does not apply .*mm/memory\.c"):
        applied(source, patches, "full", cache)
    assert not list(cache.root.glob("tree/*")), "something half-applied was left behind"
    assert "address + 1" in content(applied(source, patches, "stage-1", cache), "mm/memory.c")


def test_a_file_that_is_not_a_patch_is_named(tmp_path: Path, source: SourceTree, cache: Cache) -> None:
    patches = write_series(tmp_path / "patches")
    (patches / "6.12" / "0001.patch").write_text("hello\n")
    with pytest.raises(UserError, match=r"stage 1 \(first\)"):
        applied(source, patches, "full", cache)


def test_a_missing_file_is_named(tmp_path: Path, source: SourceTree, cache: Cache) -> None:
    patches = write_series(tmp_path / "patches")
    patch = patches / "6.12" / "0001.patch"
    patch.write_text(patch.read_text().replace("mm/memory.c", "mm/gone.c"))
    with pytest.raises(UserError, match=r"stage 1 \(first\) does not apply .*mm/gone\.c"):
        applied(source, patches, "full", cache)


def test_a_longer_series_goes_on_from_a_shorter_one(tmp_path: Path, source: SourceTree, cache: Cache) -> None:
    patches = write_series(tmp_path / "patches")
    alone = Cache(tmp_path / "alone")
    at_once = apply_stages(source, load_series(patches).select("full"), alone, Events())
    shorter = applied(source, patches, "stage-1", cache)
    seen: list[str] = []
    stages = load_series(patches).select("full")
    longer = apply_stages(
        source, stages, cache, Events(lambda event: seen.append(event.text) if event.done else None)
    )
    assert longer.commit == at_once.commit
    assert seen == ["second", "third"]
    shutil.rmtree(shorter.repository.parent)
    assert "address + 3" in content(longer, "mm/memory.c"), "it needs the shorter one's objects"


def test_a_tree_has_one_pack_and_no_loose_objects(tmp_path: Path, source: SourceTree, cache: Cache) -> None:
    patches = write_series(tmp_path / "patches")
    for patchset in ("stage-1", "full"):  # the second starts with the objects of the first
        objects = applied(source, patches, patchset, cache).repository / "objects"
        assert len(list(objects.glob("pack/*.pack"))) == 1
        assert not list(objects.glob("[0-9a-f][0-9a-f]/*"))


def test_a_patch_that_moves_a_file(tmp_path: Path, source: SourceTree, cache: Cache) -> None:
    patches = write_series(tmp_path / "patches")
    header = (patches / "6.12/0001.patch").read_text().partition("diff --git")[0]
    (patches / "6.12/0001.patch").write_text(
        f"{header}diff --git a/init/main.c b/init/start.c\nsimilarity index 100%\n"
        "rename from init/main.c\nrename to init/start.c\n--\n2.39\n"
    )
    tree = applied(source, patches, "stage-1", cache)
    assert content(tree, "init/start.c") == content(
        applied(source, patches, "baseline", cache), "init/main.c"
    )


def test_the_persons_git_configuration_does_not_leak_in(
    tmp_path: Path, source: SourceTree, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches = write_series(tmp_path / "patches")
    plain = applied(source, patches, "full", Cache(tmp_path / "plain"))
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("applypatch-msg", "pre-applypatch", "commit-msg"):
        (hooks / name).write_text("#!/bin/sh\nexit 1\n")
        (hooks / name).chmod(0o755)
    (tmp_path / "gitconfig").write_text(
        f"[core]\n\thooksPath = {hooks}\n[user]\n\tname = Somebody Else\n[commit]\n\tgpgSign = true\n"
        "[am]\n\tkeepcr = true\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_OBJECT_DIRECTORY"):
        monkeypatch.setenv(name, "/nonexistent")
    assert applied(source, patches, "full", cache).commit == plain.commit


def test_a_full_disk_is_the_hosts_fault_and_not_a_patch_that_does_not_apply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git with a program of a user's PATH that fails as git does on a full disk."""
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\necho \"fatal: could not write to 'x': No space left on device\" >&2\nexit 128\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    with pytest.raises(
        InfrastructureError, match="because of this host: fatal: could not write to 'x': No space"
    ):
        Repository(tmp_path).git("am", "patch", check=False)
