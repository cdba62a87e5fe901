# SPDX-License-Identifier: GPL-2.0-only
"""Where cells are measured: on this host, or on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from orchestrator.errors import UserError
from orchestrator.execution.admission import admit
from orchestrator.execution.bench import Bench
from orchestrator.execution.measured_cell import CellResult, measure_cell
from orchestrator.experiment.cell import Cell
from orchestrator.experiment.experiment import Experiment
from orchestrator.kernel.build import KernelBuild

#: ``--executor`` for this host.
LOCAL = "local"
_SCHEME = "dask://"


def scheduler_of(executor: str) -> str:
    """``HOST:PORT`` of the scheduler that ``--executor dask://HOST:PORT`` names.

    Raises:
        UserError: it is written otherwise.
    """
    host = executor.removeprefix(_SCHEME)
    if host == executor or ":" not in host:
        raise UserError(f"--executor {executor}: choose local or dask://HOST:PORT.")
    return host


class Place(Protocol):
    """Something that can measure cells, several at a time."""

    slots: int

    def ship(self, bench: Bench, kernels: Mapping[str, KernelBuild]) -> None:
        """Make ready: every kernel that will be booted, by patchset."""

    def measure(self, cell: Cell, experiment: Experiment, log_directory: Path) -> CellResult:
        """Measure one cell; blocks until it ended."""

    def abort(self) -> None:
        """End every guest at once."""


class ThisHost:
    """Cells as guests of this process.

    Args:
        slots: guests side by side.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._bench: Bench | None = None
        self._kernels: Mapping[str, KernelBuild] = {}

    def ship(self, bench: Bench, kernels: Mapping[str, KernelBuild]) -> None:
        """Keep what is here already."""
        self._bench, self._kernels = bench, kernels

    def measure(self, cell: Cell, experiment: Experiment, log_directory: Path) -> CellResult:
        """Measure one cell; blocks until it ended."""
        assert self._bench is not None, "ship() comes first"
        kernel = self._kernels[experiment.variant(cell.variant).patchset]
        return measure_cell(cell, experiment, self._bench, kernel, log_directory)

    def abort(self) -> None:
        """End every guest at once."""
        if self._bench is not None:
            self._bench.abort()


def place_of(executor: str, guests: int | None, experiment: Experiment, bench: Bench) -> Place:
    """Where ``--executor`` says that guests run.

    Args:
        guests: side by side on this host; None for as many as it takes.

    Raises:
        UserError: it is neither ``local`` nor ``dask://HOST:PORT``, or this host has too little memory.
        InfrastructureError: no scheduler answers there.
    """
    if executor == LOCAL:
        return ThisHost(admit(guests, experiment.topology, bench.accelerator, len(experiment.cells)).guests)
    scheduler_of(executor)  # a wrong address is said before a missing package
    # Dask takes a second to import; only those who ask for it wait.
    from orchestrator.execution.cluster import Cluster

    return Cluster(executor)
