# SPDX-License-Identifier: GPL-2.0-only
"""Files of Debian packages, without being root: of the installed package, else of a downloaded one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError
from orchestrator.process import run


@dataclass(frozen=True)
class Package:
    """A Debian package of one version.

    Args:
        installed: whether this host has it; else it has to be downloaded.
    """

    name: str
    version: str
    installed: bool


def find_package(name: str) -> Package:
    """The installed version of `name`, else the one apt would install.

    Raises:
        InfrastructureError: apt does not know it.
    """
    status = run(["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", name], check=False)
    state, _, version = status.stdout.strip().partition(" ")
    if status.returncode == 0 and state == "installed":
        return Package(name, version, installed=True)
    shown = run(["apt-cache", "show", "--no-all-versions", name], check=False)
    found = re.search(r"^Version: (\S+)$", shown.stdout, re.MULTILINE)
    if found is None:
        raise InfrastructureError(
            f"apt knows no package {name}, which the guest image is made of; run apt-get update."
        )
    return Package(name, found[1], installed=False)


def root_of(package: Package, cache: Cache) -> Path:
    """The directory under which the files of `package` are, at their own paths.

    Raises:
        InfrastructureError: the download failed.
    """
    if package.installed:
        return Path("/")

    def make(directory: Path) -> None:
        run(["apt-get", "download", f"{package.name}={package.version}"], cwd=directory)
        (archive,) = directory.glob("*.deb")
        run(["dpkg-deb", "-x", str(archive), str(directory / "root")])
        archive.unlink()

    key = {"package": package.name, "version": package.version}
    return cache.obtain("packages", key, make) / "root"
