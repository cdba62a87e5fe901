# SPDX-License-Identifier: GPL-2.0-only
"""Real kernels, a real image, real guests, for tests that ask for them: built once, and kept in the user's cache."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from orchestrator.cache import Cache
from orchestrator.cli.progress import PlainProgress
from orchestrator.events import Events
from orchestrator.execution.bench import Bench, Booted
from orchestrator.guest.image import GuestImage
from orchestrator.kernel.build import KernelBuild
from orchestrator.machine.topology import Topology
from orchestrator.project import Project

ROOT = Path(__file__).resolve().parents[1]

#: Boots a kernel on a topology, as ``Bench.boot`` does, with a log directory of the test's own.
Boot = Callable[..., AbstractContextManager[Booted]]


@pytest.fixture(scope="session")
def project() -> Project:
    return Project(ROOT)


@pytest.fixture(scope="session")
def cache() -> Cache:
    return Cache.default()


@pytest.fixture(scope="session")
def events() -> Events:
    return Events(PlainProgress())


@pytest.fixture(scope="session")
def bench(project: Project, cache: Cache, events: Events) -> Bench:
    """Multi-threaded TCG: what it measures is function, and it works on every host."""
    return Bench(project, cache, events, accelerator_request="tcg")


@pytest.fixture(scope="session")
def image(bench: Bench) -> GuestImage:
    return bench.image


@pytest.fixture(scope="session")
def baseline_kernel(bench: Bench) -> KernelBuild:
    return bench.kernel("baseline")


@pytest.fixture(scope="session")
def kernel(bench: Bench) -> KernelBuild:
    """The core of the series, without debugging information."""
    return bench.kernel("core-only")


@pytest.fixture(scope="session")
def full_kernel(bench: Bench) -> KernelBuild:
    """The whole series as it stands."""
    return bench.kernel("full")


@pytest.fixture(scope="session")
def dwarf_kernel(bench: Bench) -> KernelBuild:
    return bench.kernel("core-only", dwarf=True)


@pytest.fixture
def boot(bench: Bench, tmp_path: Path) -> Boot:
    """Boot a kernel on a topology given as text."""

    def booted(
        kernel: KernelBuild,
        topology: str = "2x512M",
        *,
        knobs: Mapping[str, str] | None = None,
        cmdline: Sequence[str] = (),
        gdb: bool = False,
    ) -> AbstractContextManager[Booted]:
        return bench.boot(
            kernel,
            Topology.parse(topology),
            log_directory=tmp_path / "logs",
            knobs=knobs,
            cmdline=cmdline,
            gdb=gdb,
        )

    return booted


@pytest.fixture
def guest(boot: Boot, kernel: KernelBuild) -> Iterator[Booted]:
    """A small two-node guest of the patched kernel."""
    with boot(kernel) as booted:
        yield booted


@pytest.fixture
def command() -> list[str]:
    """The command line tool as a person starts it."""
    return [sys.executable, "-m", "orchestrator"]
