# SPDX-License-Identifier: GPL-2.0-only
"""Files of Debian packages, without root: from the installed package, else from a downloaded one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError
from orchestrator.process import run

#: Files that change when a package is installed or removed, or when apt's package lists change.
_STAMPS = (
    "/var/lib/dpkg/status",
    "/var/lib/apt/lists",
    "/etc/apt/sources.list",
    "/etc/apt/sources.list.d",
    "/etc/apt/preferences",
    "/etc/apt/preferences.d",
)


@dataclass(frozen=True)
class Package:
    """A version of a Debian package.

    Args:
        installed: whether it is installed on this host; else it has to be downloaded.
    """

    name: str
    version: str
    installed: bool


def find_packages(names: Sequence[str], cache: Cache) -> Mapping[str, Package]:
    """The installed version of each package, else the version that apt would install.

    The result is cached until the state of dpkg or apt changes, since calling apt takes half a second.

    Args:
        names: packages; ``a | b`` is a where apt knows it, else b, as in the dependencies of a package: Debian 13 has
            other names for some libraries.

    Returns:
        Each of `names`, as it was given -> its package.

    Raises:
        InfrastructureError: apt does not know one of them, or this host has no apt.
    """
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return {}

    def make(directory: Path) -> None:
        found = [asdict(package) for package in _ask(wanted)]
        (directory / "packages.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

    key = {"packages": wanted, "host": {path: _stamp(Path(path)) for path in _STAMPS}}
    answer = cache.obtain("package-versions", key, make) / "packages.json"
    found = [Package(**each) for each in json.loads(answer.read_text(encoding="utf-8"))]
    return dict(zip(wanted, found, strict=True))


def _ask(names: Sequence[str]) -> list[Package]:
    for tool in ("dpkg-query", "apt-cache"):
        if shutil.which(tool) is None:
            raise InfrastructureError(
                f"{tool} is missing on this host: the guest image is made from the Debian packages "
                f"{', '.join(names)}, which need dpkg and apt."
            )
    choices = [[choice.strip() for choice in name.split("|")] for name in names]
    every = list(dict.fromkeys(choice for group in choices for choice in group))
    listed = run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status} ${Version}\\n", *every], check=False
    ).stdout
    versions = {
        fields[0]: Package(fields[0], fields[2], installed=True)
        for fields in (line.split() for line in listed.splitlines())
        if len(fields) == 3 and fields[1] == "installed"
    }
    missing = [choice for choice in every if choice not in versions]
    if missing:
        shown = run(["apt-cache", "show", "--no-all-versions", *missing], check=False).stdout
        for paragraph in shown.split("\n\n"):
            package = re.search(r"^Package: (\S+)$", paragraph, re.MULTILINE)
            version = re.search(r"^Version: (\S+)$", paragraph, re.MULTILINE)
            if package and version:
                versions.setdefault(package[1], Package(package[1], version[1], installed=False))
    found = []
    for group in choices:
        chosen = next((choice for choice in group if choice in versions), None)
        if chosen is None:
            raise InfrastructureError(
                f"apt does not know the package {' or '.join(group)}, which the guest image needs; run apt-get update."
            )
        found.append(versions[chosen])
    return found


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_mtime_ns, status.st_size]


def root_of(package: Package, cache: Cache) -> Path:
    """The directory below which the files of `package` are at their usual paths.

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
