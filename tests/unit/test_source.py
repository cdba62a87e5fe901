# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from fake_debian import Debian
from fake_tree import git, write_tree

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Events
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.source import SourceTree, find_origin, import_source


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
    assert not find_origin(str(tree), "linux-source-6.12", cache).is_imported(cache)
    first = taken(str(tree), cache)
    assert find_origin(str(tree), "linux-source-6.12", cache).is_imported(cache)
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
def test_what_is_not_a_kernel_tree_is_refused_and_leaves_nothing(
    tree: Path, cache: Cache, missing: str
) -> None:
    (tree / missing).unlink()
    with pytest.raises(UserError, match="not a kernel tree"):
        taken(str(tree), cache)
    assert not list(cache.root.glob("source/*"))


def test_a_makefile_without_a_version_is_refused(tree: Path, cache: Cache) -> None:
    (tree / "Makefile").write_text("all:\n")
    with pytest.raises(UserError, match="no VERSION"):
        taken(str(tree), cache)
    assert not list(cache.root.glob("source/*"))


@pytest.mark.parametrize("name", ["/nonexistent/linux", "/nonexistent#v6.12"])
def test_a_source_that_is_not_there(cache: Cache, name: str) -> None:
    with pytest.raises(UserError, match="there is no"):
        taken(name, cache)


def test_a_file_that_is_not_a_tarball(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "linux.tar.xz").write_text("not compressed at all\n")
    with pytest.raises(UserError, match="not a tarball"):
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


def test_a_tarball_may_have_no_top_directory_and_hard_links(tmp_path: Path, tree: Path, cache: Cache) -> None:
    plain = taken(str(tree), cache)
    (tree / "mm" / "memory.c").unlink()
    os.link(tree / "mm" / "Makefile", tree / "mm" / "memory.c")
    linked = taken(str(tree), cache)
    assert linked.tree != plain.tree
    subprocess.run(["tar", "-C", str(tree), "-czf", str(tmp_path / "linux.tar.gz"), "."], check=True)
    assert taken(str(tmp_path / "linux.tar.gz"), cache).tree == linked.tree


def test_names_that_need_quoting(tmp_path: Path, tree: Path, cache: Cache) -> None:
    names = ['with "quotes"', "back\\slash", "new\nline", "ümlaut", " spaces "]
    for name in names:
        (tree / name).write_text(name)
    subprocess.run(["tar", "-C", str(tmp_path), "-cf", str(tmp_path / "linux.tar"), "linux"], check=True)
    git(tree, "init", "-q")
    git(tree, "add", "-Af", ".")
    git(tree, "commit", "-qm", "Linux")
    assert taken(str(tmp_path / "linux.tar"), cache).tree == git(tree, "rev-parse", "HEAD^{tree}")


def test_a_bare_repository_and_a_work_tree_of_another(tmp_path: Path, tree: Path, cache: Cache) -> None:
    git(tree, "init", "-q")
    git(tree, "add", "-Af", ".")
    git(tree, "commit", "-qm", "Linux")
    wanted = git(tree, "rev-parse", "HEAD^{tree}")
    git(tmp_path, "clone", "-q", "--bare", str(tree), "bare.git")
    assert taken(str(tmp_path / "bare.git"), cache).tree == wanted
    git(tree, "worktree", "add", "-q", str(tmp_path / "other"))
    assert taken(str(tmp_path / "other"), Cache(tmp_path / "cache2")).tree == wanted


def test_a_git_command_around_us_does_not_leak_in(
    tmp_path: Path, tree: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = taken(str(tree), cache)
    git(tree, "init", "-q")
    git(tree, "add", "-Af", ".")
    git(tree, "commit", "-qm", "Linux")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", "'core.autocrlf=true'")
    (tree / "mm" / "Makefile").write_text("changed\n")
    (tree / "mm" / "Makefile").write_text("obj-y := memory.o\n")
    assert taken(str(tree), cache).commit == plain.commit


@pytest.mark.parametrize("left", [".config", "include/config/auto.conf", "arch/x86/include/generated/asm.h"])
@pytest.mark.parametrize("form", ["directory", "tarball"])
def test_a_tree_in_which_a_kernel_was_built_is_refused(
    tmp_path: Path, tree: Path, cache: Cache, left: str, form: str
) -> None:
    (tree / left).parent.mkdir(parents=True, exist_ok=True)
    (tree / left).write_text("")
    source = tree
    if form == "tarball":
        source = tmp_path / "linux.tar"
        subprocess.run(["tar", "-C", str(tmp_path), "-cf", str(source), "linux"], check=True)
    with pytest.raises(UserError, match="make mrproper"):
        taken(str(source), cache)
    assert not list(cache.root.glob("source/*"))


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Debian:
    return Debian(tmp_path / "bin", monkeypatch)


def test_a_package_is_downloaded_once(tmp_path: Path, tree: Path, cache: Cache, debian: Debian) -> None:
    plain = taken(str(tree), cache)
    debian.publish("6.12.117-1", tree)
    debian.offers("6.12.117-1")
    first = import_source(None, "linux-source-6.12", cache, Events())
    assert first.commit == plain.commit and first.description == "linux-source-6.12 6.12.117-1"
    debian.says("apt-get", "exit 1")
    assert import_source(None, "linux-source-6.12", cache, Events()) == first
    debian.says("apt-cache", "true")  # the lists are gone, the import is not
    assert import_source(None, "linux-source-6.12", cache, Events()) == first


def test_a_failed_download_says_why_and_leaves_nothing(cache: Cache, debian: Debian) -> None:
    debian.offers("6.12.117-1")
    debian.says("apt-get", "echo 'E: Failed to fetch it  404  Not Found' >&2; exit 100")
    with pytest.raises(InfrastructureError, match=r"404 .* run `apt-get update`"):
        import_source(None, "linux-source-6.12", cache, Events())
    assert not list(cache.root.glob("source/*"))
