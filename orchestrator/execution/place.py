# SPDX-License-Identifier: GPL-2.0-only
"""The place where cells are measured: this host, or a cluster."""

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
    """``HOST:PORT`` of the scheduler in ``--executor dask://HOST:PORT``.

    Raises:
        UserError: the text has another form.
    """
    host = executor.removeprefix(_SCHEME)
    if host == executor or ":" not in host:
        raise UserError(f"--executor {executor}: choose local or dask://HOST:PORT.")
    return host


class Place(Protocol):
    """A place that can measure several cells at a time."""

    slots: int

    def ship(self, bench: Bench, kernels: Mapping[str, KernelBuild]) -> None:
        """Prepare for measuring; `kernels` has all kernels that will be booted, by patchset."""

    def measure(self, cell: Cell, experiment: Experiment, log_directory: Path) -> CellResult:
        """Measure one cell; blocks until it ends."""

    def abort(self) -> None:
        """End all guests at once."""


class ThisHost:
    """Measures cells on this host.

    Args:
        slots: number of guests that run in parallel.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._bench: Bench | None = None
        self._kernels: Mapping[str, KernelBuild] = {}

    def ship(self, bench: Bench, kernels: Mapping[str, KernelBuild]) -> None:
        """Store the bench and the kernels, which are local already."""
        self._bench, self._kernels = bench, kernels

    def measure(self, cell: Cell, experiment: Experiment, log_directory: Path) -> CellResult:
        """Measure one cell; blocks until it ends."""
        assert self._bench is not None, "ship() must be called first"
        kernel = self._kernels[experiment.variant(cell.variant).patchset]
        return measure_cell(cell, experiment, self._bench, kernel, log_directory)

    def abort(self) -> None:
        """End all guests at once."""
        if self._bench is not None:
            self._bench.abort()


def place_of(executor: str, guests: int | None, experiment: Experiment, bench: Bench) -> Place:
    """The place where guests run, according to ``--executor``.

    Args:
        guests: number of parallel guests on this host; None for as many as suit the host.

    Raises:
        UserError: `executor` is neither ``local`` nor ``dask://HOST:PORT``, or this host has too little memory.
        InfrastructureError: the scheduler does not respond.
    """
    if executor == LOCAL:
        return ThisHost(admit(guests, experiment.topology, bench.accelerator, len(experiment.cells)).guests)
    scheduler_of(executor)  # report a wrong address before a missing package
    # Dask takes a second to import, so it is only imported when it is used.
    from orchestrator.execution.cluster import Cluster

    return Cluster(executor)
