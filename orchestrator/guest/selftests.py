# SPDX-License-Identifier: GPL-2.0-only
"""Builds the kernel's tools/testing/selftests/mm from a tree, cached by content."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.cache import Artefact, Cache
from orchestrator.document import Shape, read_document
from orchestrator.errors import InfrastructureError
from orchestrator.events import Events
from orchestrator.guest.packages import find_packages, root_of
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.target import tool_versions
from orchestrator.kernel.tree import PatchedTree
from orchestrator.process import require, run

#: Increase it when the way they are built changes.
_GENERATION = 1
_KIND = "selftests"
_DIRECTORY = "tools/testing/selftests/mm"
#: Directories that they are built from: a series that changes nothing in these shares them with its base.
_PATHS = (
    "Makefile", "scripts", "include/uapi", "include/asm-generic", "include/vdso", "arch/x86", "tools/arch",
    "tools/build", "tools/include", "tools/scripts", "tools/testing/selftests", "mm/gup_test.h",
    "lib/test_hmm_uapi.h", "usr",
)  # fmt: skip
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Selftest:
    """A selftest program with its arguments.

    Args:
        name: name of this combination.
        timeout_s: time limit in host seconds.
    """

    name: str
    argv: tuple[str, ...]
    timeout_s: float = _TIMEOUT_S


@dataclass(frozen=True)
class SelftestPlan:
    """``vm_images/guest/selftests.toml``.

    Args:
        packages: Debian packages with headers and static libraries.
        flags: compiler flags.
        different: fnmatch pattern for names of tests with another result at a threshold above 1 -> reason.
    """

    tests: tuple[Selftest, ...]
    packages: tuple[str, ...]
    flags: tuple[str, ...]
    different: Mapping[str, str]


@dataclass(frozen=True)
class Selftests:
    """The built programs.

    Args:
        archive: a tar file of the programs.
        built: names of the programs.
        log: output of make.
    """

    archive: Path
    built: frozenset[str]
    log: Path


@dataclass(frozen=True)
class _TestTable(Shape):
    """``[[test]]``."""

    name: str
    argv: tuple[str, ...]
    timeout_s: float = _TIMEOUT_S


@dataclass(frozen=True)
class _PlanFile(Shape):
    """``selftests.toml``."""

    test: tuple[_TestTable, ...]
    packages: tuple[str, ...]
    flags: tuple[str, ...]
    different: dict[str, str]


def load_selftests(path: Path) -> SelftestPlan:
    """Read the plan.

    Raises:
        UserError: the file cannot be read, or an entry is invalid.
    """
    plan = read_document(path, _PlanFile, "this list of selftests").content
    tests = tuple(Selftest(row.name, row.argv, row.timeout_s) for row in plan.test)
    return SelftestPlan(tests, plan.packages, plan.flags, plan.different)


def selftests_artefact(
    tree: PatchedTree, plan: SelftestPlan, cache: Cache, events: Events
) -> Artefact[Selftests]:
    """The programs of a tree, to be built or taken from the cache.

    They use the C library of the guest; all other libraries are linked statically. A program that does not compile
    is left out; the error is reported when it should run.

    Raises when they are obtained:
        InfrastructureError: a tool or a package is missing, or not a single program was built.
    """
    repository = Repository(tree.repository)
    key = _key(tree, plan, cache)

    def make(directory: Path) -> None:
        with events.step("selftests", like="selftests") as step:
            require("make")
            roots = [root_of(package, cache) for package in find_packages(plan.packages, cache).values()]
            source, out = directory / "source", directory / "out"
            source.mkdir()
            out.mkdir()
            archive = directory / "source.tar"
            there = [path for path, name in key["sources"].items() if name]
            repository.git("archive", "--format=tar", f"--output={archive}", tree.commit, "--", *there)
            with tarfile.open(archive) as packed:
                packed.extractall(source, filter="tar")
            archive.unlink()
            step.note("source checked out")
            _make(source, out, roots, plan, directory)
            programs = sorted(path for path in out.iterdir() if path.is_file() and os.access(path, os.X_OK))
            if not programs:
                raise InfrastructureError(
                    "none of the kernel's selftests was built.", directory / "build.log"
                )
            run(["strip", *map(str, programs)])
            with tarfile.open(directory / "selftests.tar", "w") as packed:
                for program in programs:
                    packed.add(program, program.name)
            (directory / "built.json").write_text(json.dumps([program.name for program in programs]))
            run(["rm", "-rf", str(source), str(out)])

    return Artefact(cache, _KIND, lambda: key, make, _selftests_in)


def _key(tree: PatchedTree, plan: SelftestPlan, cache: Cache) -> dict[str, Any]:
    """All inputs of the programs."""
    return {
        "generation": _GENERATION,
        "sources": dict(_objects(tree.repository, tree.commit)),
        "packages": {name: package.version for name, package in find_packages(plan.packages, cache).items()},
        "flags": list(plan.flags),
        "tools": list(tool_versions()),
    }


@lru_cache
def _objects(repository: Path, commit: str) -> tuple[tuple[str, str], ...]:
    """Path -> object ID in a commit, empty if it does not exist; cached, since a commit never changes."""
    asked = "".join(f"{commit}:{path}\n" for path in _PATHS)
    lines = Repository(repository).git("cat-file", "--batch-check=%(objectname)", input_text=asked).stdout
    return tuple(
        (path, "" if line.endswith(" missing") else line)
        for path, line in zip(_PATHS, lines.splitlines(), strict=True)
    )


def _selftests_in(directory: Path) -> Selftests:
    built = frozenset(json.loads((directory / "built.json").read_text()))
    return Selftests(directory / "selftests.tar", built, directory / "build.log")


def _make(source: Path, out: Path, roots: list[Path], plan: SelftestPlan, directory: Path) -> None:
    # Only static libraries, under the names that -l looks for: the guest has no shared ones.
    libraries = directory / "libraries"
    libraries.mkdir()
    for root in roots:
        for library in (root / "usr/lib/x86_64-linux-gnu").glob("lib*.a"):
            if library.name in ("libnuma.a", "liburing.a", "libcap.a"):
                (libraries / library.name).symlink_to(library)
    includes = " ".join(f"-I{root / 'usr/include'}" for root in roots if root != Path("/"))
    common = ["make", "ARCH=x86_64", f"-j{os.cpu_count() or 1}"]
    log = directory / "build.log"
    run([*common, "-s", "-C", str(source), "headers"], log_file=log)
    run(
        [
            *common,
            "-k",  # continue if one of them does not build
            "-C",
            str(source / _DIRECTORY),
            f"OUTPUT={out}",
            f"top_srcdir={source}",
            f"KHDR_INCLUDES=-isystem {source / 'usr/include'}",
            # With the include paths, since check_config.sh uses CC to test for liburing.
            f"CC=gcc {includes}".rstrip(),
            f"EXTRA_CFLAGS={' '.join(plan.flags)}",
            f"LDFLAGS=-L{libraries} -Wl,--as-needed",
        ],
        check=False,
        log_file=log,
    )
