# SPDX-License-Identifier: GPL-2.0-only
"""A Debian host for tests: apt and dpkg as scripts, and packages of a source tree."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PACKAGE = "linux-source-6.12"


class Debian:
    """A host whose package tools say what a test wants."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self._debs = directory / "debs"
        self._debs.mkdir(parents=True)
        self._asked = directory / "asked"
        self.says("dpkg-query", "exit 1")
        self.says("apt-get", f'for last; do :; done; cp "{self._debs}/$last.deb" .')
        self.offers()
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def says(self, program: str, script: str) -> None:
        """What a program does."""
        path = self.directory / program
        path.write_text(f'#!/bin/sh\necho "{program} $*" >>{self._asked}\n{script}\n')
        path.chmod(0o755)

    def offers(self, *versions: str) -> None:
        """What apt-cache(8) lists, the newest first, on a host with package lists."""
        source = "http://localhost/debian fake/main amd64 Packages"
        rows = "".join(f"echo ' {PACKAGE} | {each} | {source}'\n" for each in versions) or ":\n"
        self.says("apt-cache", f"if [ \"$2\" = apt ]; then echo 'apt | 2.6.1 | {source}'; else\n{rows}fi")

    def publish(self, version: str, tree: Path) -> None:
        """Make the package of a source tree, for apt-get(8) to download."""
        place = self._debs / version
        (place / "DEBIAN").mkdir(parents=True)
        (place / "usr/src").mkdir(parents=True)
        (place / "DEBIAN/control").write_text(
            f"Package: {PACKAGE}\nVersion: {version}\nArchitecture: all\n"
            "Maintainer: A Developer <developer@localhost>\nDescription: the source\n"
        )
        archive = place / f"usr/src/{PACKAGE}.tar.xz"
        subprocess.run(["tar", "-C", str(tree.parent), "-cJf", str(archive), tree.name], check=True)
        made = self._debs / f"{PACKAGE}={version}.deb"
        subprocess.run(["dpkg-deb", "-b", str(place), str(made)], check=True, capture_output=True)

    def asked(self) -> list[str]:
        """What was started since the last call."""
        lines = self._asked.read_text().splitlines() if self._asked.exists() else []
        self._asked.unlink(missing_ok=True)
        return lines
