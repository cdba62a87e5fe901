# SPDX-License-Identifier: GPL-2.0-only
"""Whether the series applies to every point release that apt offers from Debian 12 and 13.

The host's own suites are only half of them. The other half comes from the same mirrors with a configuration of apt
of our own: its lists, its cache and its state lie in the project's cache, and the host's apt is left as it is. Of each
release only the directories are unpacked that the series touches, once; then it takes the time of ``git am``.

usage: python tests/bases/point_releases.py [--series DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError, OrchestrateError
from orchestrator.events import Events
from orchestrator.kernel.package import PackageVersion, download, offered_versions
from orchestrator.kernel.reference import reference_sources
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.series import Series, load_series
from orchestrator.kernel.source import SourceTree
from orchestrator.kernel.tree import DoesNotApplyError, apply_stages
from orchestrator.process import run
from orchestrator.project import find_project

#: Code names of the releases of Debian that are supported.
DEBIAN = ("bookworm", "trixie")
_KIND = "point-release"
_PATH = re.compile(r"^(?:---|\+\+\+) [ab]/(\S+)", re.MULTILINE)
_SIGNED_BY = re.compile(r"^Signed-By:[ \t]*(/\S+)|\bsigned-by=([^\s\]]+)", re.MULTILINE | re.IGNORECASE)


class UnavailableError(Exception):
    """The network or the host's apt does not give what is asked for; the text says what."""


@dataclass(frozen=True)
class Offer:
    """A package version, and the suites that have it."""

    package: PackageVersion
    suites: tuple[str, ...]


class Apt:
    """apt with the host's mirrors and keys, the suites of all of :data:`DEBIAN`, and a place of its own.

    Args:
        place: where its lists, cache and state are.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._configuration = place / "apt.conf"

    def set_up(self) -> None:
        """Write the configuration.

        Raises:
            UnavailableError: this host has no apt, or no mirror of Debian.
        """
        if shutil.which("apt-get") is None or shutil.which("apt-cache") is None:
            raise UnavailableError("this host has no apt")
        words = ["apt-get", "indextargets", "--no-release-info"]
        layout = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SOURCESENTRY)"
        rows = run([*words, "--format", layout, "Created-By: Packages"], check=False, env={"LC_ALL": "C"})
        sources = dict.fromkeys(
            source for line in rows.stdout.splitlines() for source in _sources(*line.split("|"))
        )
        if not sources:
            raise UnavailableError(f"this host's apt has no suite of Debian {' or '.join(DEBIAN)}")
        for each in ("parts", "lists/partial", "cache/archives/partial", "state"):
            (self._place / each).mkdir(parents=True, exist_ok=True)
        (self._place / "parts" / "all.list").write_text("\n".join(sources) + "\n", encoding="utf-8")
        settings = {
            "Dir::Etc::SourceList": "/dev/null",
            "Dir::Etc::SourceParts": self._place / "parts",
            "Dir::State": self._place / "state",
            "Dir::State::Lists": self._place / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": self._place / "cache",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
        }
        text = "".join(f'{name} "{value}";\n' for name, value in settings.items())
        self._configuration.write_text(text, encoding="utf-8")

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Have apt's programs read this configuration (apt.conf(5))."""
        before = os.environ.get("APT_CONFIG")
        os.environ["APT_CONFIG"] = str(self._configuration)
        try:
            yield
        finally:
            del os.environ["APT_CONFIG"]
            if before is not None:
                os.environ["APT_CONFIG"] = before

    def update(self) -> str | None:
        """Fetch the lists; what is wrong where apt could not."""
        done = run(["apt-get", "update", "-q"], check=False, env={"LC_ALL": "C"})
        said = [line for line in done.stderr.splitlines() if line.startswith(("E: ", "W: "))]
        if done.returncode == 0 and not said:
            return None
        return f"apt-get update: {said[0][3:] if said else f'status {done.returncode}'}"

    @staticmethod
    def offers(package: str) -> list[Offer]:
        """The versions of a package, the newest first."""
        return [
            Offer(PackageVersion(package, version), tuple(suites))
            for version, suites in offered_versions(package).items()
        ]


def _sources(uri: str, release: str, component: str, entry: str) -> list[str]:
    """Lines of sources.list(5): a suite of the host, and the one of the same name in each release of Debian."""
    name, dash, rest = release.partition("-")
    if name not in DEBIAN or component != "main":
        return []
    found = _SIGNED_BY.search(Path(entry.rpartition(":")[0]).read_text(encoding="utf-8"))
    options = f"[signed-by={found[1] or found[2]}] " if found else ""
    return [f"deb {options}{uri} {each}{dash}{rest} main" for each in DEBIAN]


def release_source(wanted: PackageVersion, series: Series, cache: Cache) -> SourceTree:
    """The part of a release that the series is about.

    Raises:
        UnavailableError: it cannot be downloaded.
    """
    directories = sorted({str(Path(path).parent) for path in _touched(series)} | {"."})
    # Files at the top: the Makefile is there; it shows that the archive is a kernel's.
    patterns = ["*/*" if each == "." else f"*/{each}/*" for each in directories]
    key = {"package": wanted.package, "version": wanted.version, "patterns": patterns}

    def make(directory: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="orchestrate-release-") as place:
            archive = download(wanted, Path(place))
            files = Path(place) / "files"
            files.mkdir()
            _unpack(archive, patterns, files)
            repository = Repository.create(directory / "repository.git")
            index = directory / "index"
            repository.git("add", "--all", "--force", ".", work_tree=files, index=index)
            tree = repository.git("write-tree", index=index).stdout.strip()
            index.unlink()
        facts = {"commit": repository.commit(tree, f"Linux {wanted.linux}"), "tree": tree}
        (directory / "release.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")

    try:
        directory = cache.obtain(_KIND, key, make)
    except InfrastructureError as error:
        raise UnavailableError(str(error)) from error
    facts = json.loads((directory / "release.json").read_text(encoding="utf-8"))
    return SourceTree(
        directory / "repository.git", facts["commit"], facts["tree"], wanted.linux, str(wanted), wanted
    )


def _touched(series: Series) -> set[str]:
    files = [
        path for stage in series.stages for path in (stage.patch, *(each.patch for each in stage.variants))
    ]
    return {path for file in files for path in _PATH.findall(file.read_text(encoding="utf-8"))}


def _unpack(archive: Path, patterns: Sequence[str], into: Path) -> None:
    """Unpack the files of some directories of a tarball, without those below."""
    # Without recursion: a pattern takes the directories that it matches too, but nothing of theirs.
    options = ["--strip-components=1", "--wildcards", "--no-wildcards-match-slash", "--no-recursion"]
    done = run(
        ["tar", "-C", str(into), "-xJf", str(archive), *options, *patterns],
        check=False,
        env={"LC_ALL": "C"},
    )
    # A directory that the series adds is not there yet.
    trouble = [
        line
        for line in done.stderr.splitlines()
        if "Not found in archive" not in line and "Exiting with failure status" not in line
    ]
    if trouble or not (into / "Makefile").is_file():
        raise InfrastructureError(f"{archive.name} cannot be unpacked: {' '.join(trouble) or 'no Makefile'}")


@dataclass
class Report:
    """What became of each release; `lines` are for a person."""

    lines: list[str] = field(default_factory=list)
    applied: int = 0
    merged: int = 0
    failed: int = 0
    notes: int = 0

    def say(self, line: str) -> None:
        """Print a line, and keep it."""
        self.lines.append(line)
        print(line, flush=True)

    def note(self, text: str) -> None:
        """Say what could not be looked at."""
        self.notes += 1
        self.say(f"note: {text}")

    @property
    def verdict(self) -> str:
        """The last line."""
        merged = f", {self.merged} of them merged three-way" if self.merged else ""
        failed = f"; {self.failed} FAILED" if self.failed else ""
        notes = f"; {self.notes} notes" if self.notes else ""
        return f"the series applies to {self.applied} sources{merged}{failed}{notes}"


def try_source(source: SourceTree, where: str, series: Series, cache: Cache, report: Report) -> None:
    """Apply the whole series to a source, and say how that went."""
    name = f"{source.package.version if source.package else source.version:<24} {where:<32}"
    try:
        tree = apply_stages(source, series.stages, cache, Events())
    except DoesNotApplyError as error:
        report.failed += 1
        where = ", ".join(error.files) or "no file that git names"
        report.say(f"{name} FAILED: stage {error.stage.number} ({error.stage.name}), conflict in {where}")
        return
    is_checked = source.package is None or source.package.version in series.bases.versions
    if tree.merged and is_checked:
        report.failed += 1
        report.say(f"{name} FAILED: the series is checked there, but {'; '.join(tree.remarks)}")
        return
    report.applied += 1
    report.merged += bool(tree.merged)
    report.say(f"{name} {'; '.join(['applies', *tree.remarks])}")


def check(series: Series, cache: Cache) -> Report:
    """Try the series on its reference and on every point release that apt offers."""
    report = Report()
    if series.bases.reference is not None:
        # By themselves: what a merge would need is what is looked at.
        alone = [replace(stage, bases=replace(stage.bases, reference=None)) for stage in series.stages]
        for source in reference_sources(series.bases.reference, cache):
            try_source(source, "reference", replace(series, stages=tuple(alone)), cache, report)
    apt = Apt(cache.workspace("point-releases"))
    try:
        apt.set_up()
    except UnavailableError as reason:
        report.note(f"{reason}, so no point release was tried but those of the reference")
        return report
    with apt.in_use():
        trouble = apt.update()
        if trouble:
            report.note(f"{trouble}; going on with what apt knew before")
        offers = apt.offers(series.bases.package)
        for offer in offers:
            try:
                source = release_source(offer.package, series, cache)
            except UnavailableError as reason:
                report.note(f"{offer.package.version} was not tried: {reason}")
                continue
            try_source(source, " ".join(offer.suites), series, cache, report)
    offered = {offer.package.version for offer in offers}
    for version in series.bases.versions:
        if version not in offered:
            report.note(f"no suite offers {version} any more")
    return report


def main(arguments: Sequence[str]) -> int:
    """Check, and say what was found; 1 where the series does not apply to a release."""
    parser = argparse.ArgumentParser(description="Try the series on every point release that apt offers.")
    parser.add_argument("--series", type=Path, help="directory of another series")
    options = parser.parse_args(arguments)
    try:
        report = check(load_series(options.series or find_project().kernel_patches), Cache.default())
    except OrchestrateError as error:
        print(f"point_releases: {error}", file=sys.stderr)
        return error.exit_status
    print(report.verdict)
    return 1 if report.failed or not report.applied else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
