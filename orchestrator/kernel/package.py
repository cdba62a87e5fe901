# SPDX-License-Identifier: GPL-2.0-only
"""Debian's kernel source package: the versions available on this host, and the choice of one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.process import run

#: Most versions to list in an error message.
_SHOWN = 5
#: Package, version, where it is.
_MADISON_FIELDS = 3


@dataclass(frozen=True)
class PackageVersion:
    """A version of a source package.

    Args:
        package: e.g. ``linux-source-6.12``.
        version: e.g. ``6.12.117-1~deb12u1``.
        archive: the source tarball, if the package is installed.
    """

    package: str
    version: str
    archive: Path | None = None

    def __str__(self) -> str:
        """Package and version for display."""
        return f"{self.package} {self.version}"

    @property
    def linux(self) -> str:
        """The upstream version (deb-version(7)).

        >>> PackageVersion("linux-source-6.12", "6.12.117-1~deb12u1").linux
        '6.12.117'
        """
        return self.version.rpartition("-")[0].rpartition(":")[2] or self.version


def choose_version(
    package: str, known: Sequence[str], imported: Sequence[str], exact: str | None = None
) -> PackageVersion:
    """The version to use: the newest available one that the series is checked on, else the newest available one.

    A version is available if it is in the cache, installed, or offered by apt in any of the host's suites. dpkg and
    apt are only called if their answer can change the choice.

    Args:
        known: versions that the series is checked on, newest first.
        imported: versions in the cache, most recently used first.
        exact: use this version.

    Raises:
        UserError: `exact` is not available.
        InfrastructureError: no version is available.
    """
    wanted = exact or (known[0] if known else None)
    if wanted is not None and wanted in imported:
        return PackageVersion(package, wanted)
    installed = _installed(package)
    # apt sorts them, newest first.
    offered = _offered(package)
    at_hand = {version: PackageVersion(package, version) for version in (*offered, *imported)}
    if installed is not None and installed.version not in imported:
        at_hand[installed.version] = installed
    if exact is not None:
        if exact not in at_hand:
            raise UserError(_not_offered(package, exact, known, list(at_hand)))
        return at_hand[exact]
    checked = next((version for version in known if version in at_hand), None)
    if checked is not None:
        return at_hand[checked]
    newest = offered[0] if offered else None
    if installed is not None and (newest is None or _is_newer(installed.version, newest)):
        newest = installed.version
    if newest is None and imported:
        newest = imported[0]
    if newest is None:
        raise InfrastructureError(_none_at_hand(package, known))
    return at_hand[newest]


def download(wanted: PackageVersion, directory: Path, options: Sequence[str] = ()) -> Path:
    """Download a package without installing it; root is not needed.

    Args:
        directory: directory to unpack its files in.
        options: options of apt for another suite than those of the host.

    Returns:
        The source tarball.

    Raises:
        InfrastructureError: apt-get(8) failed, usually because its package lists are old or empty.
    """
    # apt cannot drop privileges for a directory that its own user cannot enter.
    argv = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *options]
    done = run([*argv, f"{wanted.package}={wanted.version}"], cwd=directory, check=False, env={"LC_ALL": "C"})
    if done.returncode != 0:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("E: ")]
        reason = reasons[-1].removeprefix("E: ") if reasons else f"status {done.returncode}"
        raise InfrastructureError(
            f"apt-get cannot download {wanted} ({reason.rstrip('.')}); run `apt-get update` and try again, "
            "or name a source with --source."
        )
    (deb,) = directory.glob("*.deb")
    run(["dpkg-deb", "-x", str(deb), str(directory)])
    deb.unlink()
    return directory / _archive(wanted.package).relative_to("/")


def offered_versions(package: str, options: Sequence[str] = ()) -> dict[str, list[str]]:
    """The versions of a package that apt offers, newest first, and the suites that have each (apt-cache(8)).

    Args:
        options: options of apt for another suite than those of the host.

    Returns:
        Version -> names of suites, e.g. ``bookworm-security``.
    """
    listed = run(["apt-cache", *options, "madison", package], check=False, env={"LC_ALL": "C"}).stdout
    found: dict[str, list[str]] = {}
    for line in listed.splitlines():
        row = [field.strip() for field in line.split("|")]
        if len(row) == _MADISON_FIELDS and row[0] == package:
            suites = found.setdefault(row[1], [])
            # "ADDRESS SUITE/COMPONENT ARCHITECTURE Packages"; a local repository has no suite.
            where = row[2].split()
            if len(where) > 1 and (suite := where[1].partition("/")[0]) not in suites:
                suites.append(suite)
    return found


def _archive(package: str) -> Path:
    return Path(f"/usr/src/{package}.tar.xz")


def _installed(package: str) -> PackageVersion | None:
    archive = _archive(package)
    if not archive.is_file() or shutil.which("dpkg-query") is None:
        return None
    answer = run(["dpkg-query", "-W", "-f=${Status}\t${Version}", package], check=False).stdout
    state, _, version = answer.strip().partition("\t")
    return PackageVersion(package, version, archive) if state.endswith(" installed") else None


def _offered(package: str) -> list[str]:
    if shutil.which("apt-cache") is None or shutil.which("apt-get") is None:
        return []
    return list(offered_versions(package))


def _is_newer(version: str, other: str) -> bool:
    return run(["dpkg", "--compare-versions", version, "gt", other], check=False).returncode == 0


def _not_offered(package: str, exact: str, known: Sequence[str], at_hand: Sequence[str]) -> str:
    if not at_hand:
        return f"{package} {exact} is not in the cache, and {_none_at_hand(package, known)}"
    return (
        f"{package} {exact} is neither in the cache nor offered by apt on this host; "
        f"there is {_listed(at_hand[:_SHOWN])}; choose one of them with --source {package}=VERSION."
    )


def _none_at_hand(package: str, known: Sequence[str]) -> str:
    checked = f"; the series is checked on {_listed(known)}" if known else ""
    if shutil.which("apt-cache") is None or shutil.which("apt-get") is None:
        return (
            f"this host has no apt to download {package}; name a kernel git tree, a directory or a tarball "
            f"with --source{checked}."
        )
    # If there are package lists, they contain apt itself.
    if not run(["apt-cache", "madison", "apt"], check=False, env={"LC_ALL": "C"}).stdout.strip():
        return f"apt has no package lists on this host; run `apt-get update`, or name a source with --source{checked}."
    return (
        f"apt has no {package} in the suites of this host; name a kernel git tree, a directory or a tarball "
        f"with --source{checked}."
    )


def _listed(versions: Sequence[str]) -> str:
    return re.sub(r", (?=[^,]*$)", " and ", ", ".join(versions))
