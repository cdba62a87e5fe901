# SPDX-License-Identifier: GPL-2.0-only
"""Which version of the source package is taken, and what a host is told that has none."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_debian import PACKAGE, Debian
from fake_tree import write_tree

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Events
from orchestrator.kernel import package as package_module
from orchestrator.kernel.package import choose_version, offered_versions
from orchestrator.kernel.source import find_origin, source_artefact

KNOWN = ("6.12.118-1", "6.12.117-1~deb12u1")


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Debian:
    return Debian(tmp_path / "bin", monkeypatch)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        (["6.12.119-1", "6.12.118-1", "6.12.117-1~deb12u1"], "6.12.118-1"),
        (["6.12.119-1", "6.12.118-1~deb12u1", "6.12.117-1~deb12u1"], "6.12.117-1~deb12u1"),
        (["6.12.120-1", "6.12.119-1"], "6.12.120-1"),
        (["6.12.95-1"], "6.12.95-1"),
    ],
)
def test_the_newest_known_version_is_taken_else_the_newest(
    debian: Debian, offered: list[str], taken: str
) -> None:
    debian.offers(*offered)
    assert choose_version(PACKAGE, KNOWN, []).version == taken
    assert choose_version(PACKAGE, KNOWN, []).linux == taken.partition("-")[0]


def test_other_packages_and_source_lists_of_apt_are_not_taken(debian: Debian) -> None:
    debian.says(
        "apt-cache",
        f"echo '{PACKAGE}-rt | 6.12.118-1 | http://localhost fake/main amd64 Packages'\n"
        "echo 'N: a remark'\n"
        f"echo '{PACKAGE} | 6.12.100-1 | http://localhost fake/main amd64 Packages'\n",
    )
    assert choose_version(PACKAGE, KNOWN, []).version == "6.12.100-1"


def test_the_suites_of_each_version_are_known(debian: Debian) -> None:
    rows = [
        f"{PACKAGE} | 6.12.118-1 | http://localhost trixie-security/main amd64 Packages",
        f"{PACKAGE} | 6.12.118-1 | http://localhost trixie-security/main i386 Packages",
        f"{PACKAGE} | 6.12.118-1 | http://localhost trixie/main amd64 Packages",
        f"{PACKAGE} | 6.12.117-1 | file:/srv/packages ./ Packages",
        f"{PACKAGE} | 6.12.116-1 | file:/srv/packages",
    ]
    debian.says("apt-cache", "".join(f"echo '{row}'\n" for row in rows))
    assert offered_versions(PACKAGE) == {
        "6.12.118-1": ["trixie-security", "trixie"], "6.12.117-1": ["."], "6.12.116-1": [],
    }  # fmt: skip


def test_apt_is_asked_once_and_only_where_the_answer_matters(debian: Debian, cache: Cache) -> None:
    debian.offers("6.12.117-1~deb12u1")
    assert choose_version(PACKAGE, KNOWN, []).version == "6.12.117-1~deb12u1"
    assert debian.asked() == [f"apt-cache madison {PACKAGE}"]
    assert choose_version(PACKAGE, KNOWN, ["6.12.118-1"]).version == "6.12.118-1"
    assert choose_version(PACKAGE, KNOWN, ["6.12.99-1"], "6.12.99-1").version == "6.12.99-1"
    assert debian.asked() == []


def test_a_known_version_in_the_cache_is_kept_when_apt_has_only_newer_ones(debian: Debian) -> None:
    debian.offers("6.12.119-1~deb12u1")
    assert choose_version(PACKAGE, KNOWN, ["6.12.117-1~deb12u1"]).version == "6.12.117-1~deb12u1"


def test_an_exact_version_is_taken_or_refused(debian: Debian) -> None:
    debian.offers("6.12.118-1", "6.12.116-1")
    assert choose_version(PACKAGE, KNOWN, [], "6.12.116-1").version == "6.12.116-1"
    with pytest.raises(UserError, match=r"6\.12\.99-1 is neither .* there is 6\.12\.118-1 and 6\.12\.116-1"):
        choose_version(PACKAGE, KNOWN, [], "6.12.99-1")


@pytest.mark.parametrize(
    ("offered", "taken", "from_archive"),
    [
        ([], "6.12.116-2", True),
        (["6.12.118-1"], "6.12.118-1", False),
        (["6.12.119-1"], "6.12.119-1", False),
        (["6.12.116-1"], "6.12.116-2", True),
        (["6.12.116-2", "6.12.115-1"], "6.12.116-2", True),
    ],
)
def test_the_installed_package_is_one_among_others(
    tmp_path: Path,
    debian: Debian,
    monkeypatch: pytest.MonkeyPatch,
    offered: list[str],
    taken: str,
    from_archive: bool,
) -> None:
    (tmp_path / "source.tar.xz").write_text("")
    monkeypatch.setattr(package_module, "_archive", lambda _: tmp_path / "source.tar.xz")
    debian.says("dpkg-query", "printf 'install ok installed\\t6.12.116-2'")
    debian.offers(*offered)
    chosen = choose_version(PACKAGE, KNOWN, [])
    assert (chosen.version, chosen.archive is not None) == (taken, from_archive)


def test_a_host_without_package_lists_is_told_what_to_do(debian: Debian) -> None:
    debian.says("apt-cache", ":")
    with pytest.raises(
        InfrastructureError, match=r"no package lists .*run `apt-get update`.*--source"
    ) as caught:
        choose_version(PACKAGE, KNOWN, [])
    assert "checked on 6.12.118-1 and 6.12.117-1~deb12u1" in str(caught.value)
    # What was imported when there were lists still serves.
    assert choose_version(PACKAGE, KNOWN, ["6.12.99-1", "6.12.98-1"]).version == "6.12.99-1"


def test_a_distribution_without_the_package_is_not_told_to_update(debian: Debian) -> None:
    debian.offers()
    with pytest.raises(InfrastructureError, match=r"apt has no linux-source-6\.12 .*--source") as caught:
        choose_version(PACKAGE, KNOWN, [])
    assert "apt-get update" not in str(caught.value)


@pytest.mark.parametrize("there", [[], ["apt-cache"], ["dpkg-query"]])
def test_a_host_without_apt_is_told_of_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[str]
) -> None:
    (tmp_path / "bin").mkdir()
    for name in there:
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(InfrastructureError, match=r"no apt .*--source.*6\.12\.118-1 and 6\.12\.117-1"):
        choose_version(PACKAGE, KNOWN, [])
    assert choose_version(PACKAGE, KNOWN, ["6.12.99-1"]).version == "6.12.99-1"


def test_a_version_is_imported_once_and_named_exactly(tmp_path: Path, debian: Debian, cache: Cache) -> None:
    tree = write_tree(tmp_path / "linux")
    debian.publish("6.12.118-1", tree)
    debian.offers("6.12.119-1", "6.12.118-1")
    origin = find_origin(None, PACKAGE, cache, KNOWN)
    assert not origin.is_imported(cache)
    first = source_artefact(origin, cache, Events()).obtain()
    assert first.description == f"{PACKAGE} 6.12.118-1" and origin.is_imported(cache)
    debian.offers("6.12.119-1")
    debian.says("apt-get", "exit 1")
    assert source_artefact(find_origin(None, PACKAGE, cache, KNOWN), cache, Events()).obtain() == first
    exact = find_origin(f"{PACKAGE}=6.12.118-1", PACKAGE, cache, KNOWN)
    assert source_artefact(exact, cache, Events()).obtain() == first
