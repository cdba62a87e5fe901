# SPDX-License-Identifier: GPL-2.0-only
"""Kernel sources of any Debian suite, whatever the suites of this host: ``debian:7.3``.

apt(8) gets a configuration of its own: package lists and archives below the cache, the host's mirror and keyring, and
one suite. The host's configuration and package lists are never changed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.kernel.package import PackageVersion, offered_versions
from orchestrator.process import require, run

#: The suites to search after those of the host, by codename: small lists and new kernels first. `@SUITE` names another.
SUITES = ("trixie-backports", "trixie", "bookworm-backports", "bookworm", "sid", "forky")
_NAME = re.compile(r"debian:(?P<linux>\d+\.\d+)(?:@(?P<suite>[a-z][a-z-]*))?")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
#: Seconds after which package lists are fetched again.
_AGE_S = 24 * 3600.0


def parse(source: str) -> tuple[str, str | None] | None:
    """The package and the suite of ``debian:VERSION[@SUITE]``; None for another source.

    Raises:
        UserError: it starts with ``debian:`` and has another form.

    >>> parse("debian:7.3@trixie-backports")
    ('linux-source-7.3', 'trixie-backports')
    """
    if not source.startswith("debian:"):
        return None
    match = _NAME.fullmatch(source)
    if match is None:
        raise UserError(f"--source {source}: write debian:7.3, or debian:7.3@trixie-backports for one suite.")
    return f"linux-source-{match['linux']}", match["suite"]


def find(
    package: str, suite: str | None, cache: Cache, exact: str | None = None
) -> tuple[PackageVersion, Sequence[str]]:
    """The newest version of a package in the first suite that has it, and the options of apt to download it.

    Args:
        suite: the only suite to search; None for those of the host, then :data:`SUITES`.
        exact: this version only.

    Raises:
        UserError: no suite has it.
        InfrastructureError: there is no apt, no mirror, or the mirror cannot be reached.
    """
    require("apt-get")
    failures: list[str] = []
    if suite is None and (versions := _wanted(offered_versions(package), exact)):
        return PackageVersion(package, versions[0]), ()
    for each in (suite,) if suite else SUITES:
        try:
            options_there = _options(each, cache)
        except InfrastructureError as error:
            failures.append(str(error))
            continue
        if versions := _wanted(offered_versions(package, options_there), exact):
            return PackageVersion(package, versions[0]), options_there
    if failures and (suite or len(failures) == len(SUITES)):
        raise InfrastructureError(failures[-1])
    what = f"{package}{f' {exact}' if exact else ''}"
    if suite is None:
        raise UserError(
            f"--source: {what} is in none of Debian's suites {', '.join(SUITES)}; name another suite with "
            f"debian:{package.removeprefix('linux-source-')}@SUITE, or a git tree."
        )
    there = ", ".join(sorted(_sources(suite, cache))) or "no kernel source"
    raise UserError(f"--source: Debian's {suite} has no {what}; it has {there}.")


def _wanted(offered: dict[str, list[str]], exact: str | None) -> list[str]:
    return [version for version in offered if exact in (None, version)]


def _sources(suite: str, cache: Cache) -> Iterator[str]:
    listed = run(["apt-cache", *_words(suite, cache), "pkgnames", "linux-source-"], check=False).stdout
    yield from (name for name in listed.split() if re.fullmatch(r"linux-source-\d+\.\d+", name))


def _place(suite: str, cache: Cache) -> Path:
    return cache.workspace(f"apt-{suite}")


def _words(suite: str, cache: Cache) -> list[str]:
    place = _place(suite, cache)
    settings = (
        f"Dir::Etc::SourceList={place / 'suite.sources'}",
        "Dir::Etc::SourceParts=/dev/null",
        f"Dir::State::Lists={place / 'lists'}",
        f"Dir::Cache={place / 'cache'}",
        # apt cannot drop privileges for directories that its own user cannot enter.
        "APT::Sandbox::User=root",
    )
    return [word for setting in settings for word in ("-o", setting)]


def _options(suite: str, cache: Cache) -> Sequence[str]:
    """The options of apt for a suite, whose lists are fetched if they are old."""
    place = _place(suite, cache)
    for part in ("lists/partial", "cache/archives/partial"):
        (place / part).mkdir(parents=True, exist_ok=True)
    words = _words(suite, cache)
    with cache.lock(f"apt-{suite}"):
        stamp = place / "fetched"
        if stamp.is_file() and 0 <= time.time() - stamp.stat().st_mtime < _AGE_S:
            return words
        lines = ["Types: deb", f"URIs: {_mirror()}", f"Suites: {suite}", "Components: main"]
        lines += [f"Signed-By: {_KEYRING}"] if _KEYRING.is_file() else []
        (place / "suite.sources").write_text("\n".join(lines) + "\n", encoding="utf-8")
        done = run(["apt-get", "update", "-qq", *words], check=False, env={"LC_ALL": "C"})
        reasons = [line for line in done.stderr.splitlines() if line.startswith(("E: ", "W: Failed"))]
        if done.returncode == 0 and not reasons:
            stamp.touch()
        elif not stamp.is_file():  # older lists are better than none
            reason = (reasons[-1][3:] if reasons else f"status {done.returncode}").rstrip(".")
            raise InfrastructureError(
                f"apt-get cannot fetch the package lists of Debian's {suite} ({reason})."
            )
    return words


def _mirror() -> str:
    """The mirror that this host gets Debian's packages from."""
    listed = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"], check=False
    ).stdout
    found = next((uri for uri in listed.split() if uri.rstrip("/").endswith("/debian")), None)
    if found is None:
        raise InfrastructureError(
            "the apt sources of this host name no mirror of Debian; name a kernel git tree, a directory or a tarball "
            "with --source."
        )
    return found
