# SPDX-License-Identifier: GPL-2.0-only
"""Sources from elsewhere: another Debian suite, another host's git tree, another user's tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_debian import Debian
from fake_tree import git, write_tree

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Events
from orchestrator.kernel import suite
from orchestrator.kernel.source import find_origin, import_source

PACKAGE = "linux-source-6.12"
#: apt-get(8) of a host whose mirror works: what it downloads is in the directory DEBS.
_APT = """case "$1" in
indextargets) echo http://localhost/debian/ http://localhost/debian-security/ ;;
update) {update} ;;
*) for last; do :; done; cp "{debs}/$last.deb" . ;;
esac"""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    place = write_tree(tmp_path / "linux")
    git(place, "init", "-q", "-b", "main")
    git(place, "add", "-A", "-f")
    git(place, "commit", "-qm", "base")
    return place


def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: str = "exit 0") -> Debian:
    """A host whose own suites have no kernel source; every other suite offers 6.12.9-1."""
    debian = Debian(tmp_path / "host", monkeypatch)
    debian.says("apt-get", _APT.format(debs=tmp_path / "host" / "debs", update=update))
    row = f"echo ' {PACKAGE} | 6.12.9-1 | http://localhost/debian trixie/main amd64 Packages'"
    debian.says(
        "apt-cache",
        f'[ "$1" = -o ] || exit 0\ncase "$*" in *pkgnames*) echo linux-source-6.1;; *) {row};; esac',
    )
    return debian


def test_another_suite_is_searched_without_changing_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache
) -> None:
    debian = host(tmp_path, monkeypatch)
    debian.publish("6.12.9-1", write_tree(tmp_path / "linux"))
    tree = import_source("debian:6.12", "linux-source-6.1", cache, Events())
    assert tree.description == f"{PACKAGE} 6.12.9-1"
    asked = debian.asked()
    changing = [line for line in asked if line.startswith(("apt-get update", "apt-get download"))]
    assert len(changing) == 2
    for line in changing:
        assert f"Dir::State::Lists={cache.root}" in line and f"Dir::Cache={cache.root}" in line
        assert f"Dir::Etc::SourceList={cache.root}" in line and "Dir::Etc::SourceParts=/dev/null" in line
    (sources,) = cache.root.glob("workspace/apt-*/suite.sources")
    assert "URIs: http://localhost/debian/\nSuites: trixie-backports\n" in sources.read_text()
    # A second time nothing is fetched, also for the version that a run recorded.
    for again in ("debian:6.12", f"{PACKAGE}=6.12.9-1"):
        assert import_source(again, "linux-source-6.1", cache, Events()).commit == tree.commit
    assert not [line for line in debian.asked() if line.startswith(("apt-get update", "apt-get download"))]


def test_what_no_suite_has_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache
) -> None:
    host(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"linux-source-9\.9 is in none of Debian's suites"):
        find_origin("debian:9.9", PACKAGE, cache)
    with pytest.raises(UserError, match=r"Debian's sid has no linux-source-9\.9; it has linux-source-6\.1\."):
        find_origin("debian:9.9@sid", PACKAGE, cache)
    for wrong in ("debian:", "debian:linux", "debian:6.12.9", "debian:6.12@a b"):
        with pytest.raises(UserError, match=r"write debian:7\.3"):
            find_origin(wrong, PACKAGE, cache)


def test_a_mirror_that_does_not_answer_is_the_hosts_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache
) -> None:
    host(tmp_path, monkeypatch, update='echo "E: Could not resolve localhost" >&2; exit 100')
    with pytest.raises(InfrastructureError, match=r"of Debian's forky .Could not resolve localhost"):
        find_origin("debian:6.12", PACKAGE, cache)


def test_the_form_of_a_name() -> None:
    assert suite.parse("debian:7.3") == ("linux-source-7.3", None)
    assert suite.parse("~/linux") is None


def test_a_git_url_is_a_source(tmp_path: Path, linux: Path, cache: Cache) -> None:
    git(linux, "tag", "-a", "-m", "one", "v1")
    commit = git(linux, "rev-parse", "HEAD")
    address = f"file://{linux}"
    for reference, shown in (("#v1", "v1"), ("#main", "main"), ("", "HEAD"), (f"#{commit}", commit[:12])):
        tree = import_source(f"{address}{reference}", PACKAGE, cache, Events())
        assert tree.tree == git(linux, "rev-parse", "HEAD^{tree}")
        assert tree.description == f"git linux {shown}"
    with pytest.raises(UserError, match="has no branch or tag v2"):
        find_origin(f"{address}#v2", PACKAGE, cache)
    with pytest.raises(InfrastructureError, match=r"git ls-remote failed: .*not appear to be a git repo"):
        find_origin(f"file://{tmp_path}/nothing", PACKAGE, cache)


def test_a_tree_is_described_as_it_is_asked_for(linux: Path, cache: Cache) -> None:
    git(linux, "branch", "same")
    for name in ("main", "same"):
        tree = import_source(f"{linux}#{name}", PACKAGE, cache, Events())
        assert tree.description == f"git linux {name}"


def test_a_tree_of_another_user_is_read_at_a_commit(
    linux: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(UserError, match=f"belongs to another user.*name one, e.g. --source {linux}#HEAD"):
        find_origin(str(linux), PACKAGE, cache)
    assert import_source(f"{linux}#HEAD", PACKAGE, cache, Events()).version == "6.12.117"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_git_itself_does_not_refuse_it(linux: Path, cache: Cache) -> None:
    for path in (linux, *linux.rglob("*")):
        os.lchown(path, 12345, 12345)
    assert import_source(f"{linux}#main", PACKAGE, cache, Events()).version == "6.12.117"
