# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from fake_tree import git, write_tree

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Events
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.source import SourceTree, import_source, is_imported


def taken(source: str, cache: Cache) -> SourceTree:
    return import_source(source, "linux-source-6.12", cache, Events())


def files(tree: SourceTree) -> dict[str, str]:
    listed = Repository(tree.repository).git("ls-tree", "-r", tree.commit).stdout.splitlines()
    return {line.split("\t")[1]: line.split()[0] for line in listed}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "linux")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_directory_tarball_and_git_tree_are_one_source(tmp_path: Path, tree: Path, cache: Cache) -> None:
    (tree / "script").write_text("#!/bin/sh\n")
    (tree / "script").chmod(0o755)
    subprocess.run(["tar", "-C", str(tmp_path), "-cJf", str(tmp_path / "linux.tar.xz"), "linux"], check=True)
    as_directory = taken(str(tree), cache)
    as_tarball = taken(str(tmp_path / "linux.tar.xz"), cache)
    git(tree, "init", "-q")
    git(tree, "add", "-Af", ".")
    git(tree, "commit", "-qm", "Linux")
    as_git = taken(str(tree), cache)
    assert as_directory.tree == as_tarball.tree == as_git.tree
    assert as_directory.commit == as_tarball.commit == as_git.commit
    assert as_git.version == "6.12.117"
    modes = files(as_git)
    assert modes["script"] == "100755" and modes["link"] == "120000" and "ignored.patch" in modes


def test_it_is_imported_once(tree: Path, cache: Cache) -> None:
    assert not is_imported(str(tree), "linux-source-6.12", cache)
    first = taken(str(tree), cache)
    assert is_imported(str(tree), "linux-source-6.12", cache)
    assert taken(str(tree), cache) == first
    (tree / "mm" / "memory.c").write_text("int changed;\n")
    assert taken(str(tree), cache).tree != first.tree


def test_changes_that_are_not_committed_belong_to_a_git_source(tree: Path, cache: Cache) -> None:
    git(tree, "init", "-q")
    git(tree, "add", "-Af", ".")
    git(tree, "commit", "-qm", "Linux")
    clean = taken(str(tree), cache)
    (tree / "mm" / "memory.c").write_text("int changed;\n")
    dirty = taken(str(tree), cache)
    assert dirty.tree != clean.tree
    assert (tree / "mm" / "memory.c").read_text() == "int changed;\n"
    assert taken(f"{tree}#HEAD", cache).tree == clean.tree


def test_the_persons_git_configuration_does_not_leak_in(
    tmp_path: Path, tree: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = taken(str(tree), cache)
    (tmp_path / "gitconfig").write_text("[core]\n\tautocrlf = true\n\thooksPath = /nonexistent\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody Else")
    assert taken(str(tree), Cache(tmp_path / "other")).commit == plain.commit


@pytest.mark.parametrize("missing", ["Makefile", "mm/Makefile", "Kbuild"])
def test_what_is_no_kernel_tree_is_refused_and_leaves_nothing(tree: Path, cache: Cache, missing: str) -> None:
    (tree / missing).unlink()
    with pytest.raises(UserError, match="no kernel tree"):
        taken(str(tree), cache)
    assert not list(cache.root.glob("source/*"))


def test_a_makefile_without_a_version_is_refused(tree: Path, cache: Cache) -> None:
    (tree / "Makefile").write_text("all:\n")
    with pytest.raises(UserError, match="no version"):
        taken(str(tree), cache)
    assert not list(cache.root.glob("source/*"))


@pytest.mark.parametrize("name", ["/nonexistent/linux", "/nonexistent#v6.12"])
def test_a_source_that_is_not_there(cache: Cache, name: str) -> None:
    with pytest.raises(UserError, match="there is no"):
        taken(name, cache)


def test_a_file_that_is_no_tarball(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "linux.tar.xz").write_text("not compressed at all\n")
    with pytest.raises(UserError, match="no tarball"):
        taken(str(tmp_path / "linux.tar.xz"), cache)


def test_a_tarball_that_is_cut_short_leaves_nothing(tmp_path: Path, tree: Path, cache: Cache) -> None:
    (tree / "big").write_bytes(bytes(range(256)) * 4096)
    subprocess.run(["tar", "-C", str(tmp_path), "-czf", str(tmp_path / "linux.tar.gz"), "linux"], check=True)
    whole = (tmp_path / "linux.tar.gz").read_bytes()
    (tmp_path / "linux.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises((UserError, InfrastructureError)):
        taken(str(tmp_path / "linux.tar.gz"), cache)
    assert not list(cache.root.glob("source/*"))


def test_a_reference_that_does_not_exist(tree: Path, cache: Cache) -> None:
    git(tree, "init", "-q")
    git(tree, "add", "-Af", ".")
    git(tree, "commit", "-qm", "Linux")
    with pytest.raises(UserError, match=r"v9\.9"):
        taken(f"{tree}#v9.9", cache)
