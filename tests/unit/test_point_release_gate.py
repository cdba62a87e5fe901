# SPDX-License-Identifier: GPL-2.0-only
"""The gate that tries the series on every point release: it fails where a stage does not apply, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_debian import PACKAGE, Debian
from fake_tree import write_patch, write_series, write_tree
from point_releases import Apt, check, main

from orchestrator.cache import Cache
from orchestrator.kernel.series import load_series

#: What the host's apt says of its own suites.
_TARGETS = """\
case "$1" in
indextargets) echo 'http://localhost/debian/|bookworm|main|{entry}:1'
	echo 'http://localhost/security/|bookworm-security|main|{entry}:1'
	echo 'http://localhost/other/|stable|main|{entry}:1' ;;
update) {update} ;;
*) for last; do :; done; cp "{debs}/$last.deb" . ;;
esac
"""


class HostWithReleases:
    """A host with a series, and point releases that its apt offers."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.debian = Debian(root / "bin", monkeypatch)
        self.patches = write_series(root / "patches")
        self.cache = Cache(root / "cache")
        (root / "debian.sources").write_text("Types: deb\nSigned-By: /usr/share/keyrings/a.gpg\n")
        self.update_ends_with("exit 0")
        monkeypatch.setenv("ORCHESTRATE_CACHE", str(root / "cache"))

    def update_ends_with(self, script: str) -> None:
        entry, debs = self.root / "debian.sources", self.root / "bin" / "debs"
        self.debian.says("apt-get", _TARGETS.format(entry=entry, debs=debs, update=script))

    def publish(self, version: str, old: str = "two", new: str = "two") -> None:
        tree = write_tree(self.root / version / "linux")
        memory = tree / "mm" / "memory.c"
        memory.write_text(memory.read_text().replace(old, new))
        self.debian.publish(version, tree)

    def lines(self) -> list[str]:
        return [" ".join(line.split()) for line in check(load_series(self.patches), self.cache).lines]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostWithReleases:
    return HostWithReleases(tmp_path, monkeypatch)


def test_a_line_for_each_release_says_how_the_series_applies(host: HostWithReleases) -> None:
    host.publish("6.12.118-1", "return address;", "return (address);")
    host.publish("6.12.117-1")
    host.debian.offers("6.12.118-1", "6.12.117-1")
    variant = host.patches / "6.12" / "6.12.118" / "0001.patch"
    write_patch(variant, "\treturn (address);", "\treturn address + 1;")
    toml = host.patches / "series.toml"
    toml.write_text(toml.read_text().replace('0001.patch"', '0001.patch"\nvariants = ["6.12.118"]'))
    assert host.lines() == [
        "6.12.118-1 fake applies; stage 1 (first) was applied with the patch for 6.12.118",
        "6.12.117-1 fake applies",
    ]
    assert main(["--series", str(host.patches)]) == 0


def test_a_stage_that_does_not_apply_fails_the_gate(host: HostWithReleases) -> None:
    host.publish("6.12.117-1")
    host.debian.offers("6.12.117-1")
    assert main(["--series", str(host.patches)]) == 0
    write_patch(host.patches / "6.12" / "0002.patch", "\treturn -address;", "\treturn address + 2;")
    assert host.lines() == ["6.12.117-1 fake FAILED: stage 2 (second), conflict in mm/memory.c"]
    assert main(["--series", str(host.patches)]) == 1


def test_a_release_is_downloaded_once(host: HostWithReleases) -> None:
    host.publish("6.12.117-1")
    host.debian.offers("6.12.117-1")
    host.lines()
    assert any(" download " in line for line in host.debian.asked())
    host.lines()
    assert not any(" download " in line for line in host.debian.asked())


def test_trouble_with_the_network_is_a_note(host: HostWithReleases) -> None:
    host.publish("6.12.117-1")
    host.debian.offers("6.12.118-1", "6.12.117-1")  # the first one cannot be downloaded
    host.update_ends_with("echo 'W: Failed to fetch it' >&2")
    said = host.lines()
    assert said[0] == "note: apt-get update: Failed to fetch it; going on with what apt knew before"
    assert said[1].startswith(f"note: 6.12.118-1 was not tried: apt-get cannot download {PACKAGE} 6.12.118-1")
    assert said[2] == "6.12.117-1 fake applies"
    assert main(["--series", str(host.patches)]) == 0


def test_a_gate_that_tried_nothing_has_not_passed(host: HostWithReleases) -> None:
    host.debian.offers()
    assert host.lines() == ["note: no suite offers 6.12.117-1 any more"]
    assert main(["--series", str(host.patches)]) == 1


def test_apt_gets_the_suites_of_both_releases_from_the_hosts_mirrors(
    host: HostWithReleases, tmp_path: Path
) -> None:
    Apt(tmp_path / "apt").set_up()
    signed = "deb [signed-by=/usr/share/keyrings/a.gpg]"
    assert (tmp_path / "apt/parts/all.list").read_text().splitlines() == [
        f"{signed} http://localhost/debian/ bookworm main",
        f"{signed} http://localhost/debian/ trixie main",
        f"{signed} http://localhost/security/ bookworm-security main",
        f"{signed} http://localhost/security/ trixie-security main",
    ]
