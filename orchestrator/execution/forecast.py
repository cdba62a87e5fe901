# SPDX-License-Identifier: GPL-2.0-only
"""Estimates of the remaining time and disk space of a run."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.execution.bench import Bench
from orchestrator.execution.durations import Durations, Expected
from orchestrator.experiment.cell import Cell
from orchestrator.experiment.experiment import Experiment
from orchestrator.kernel.workshop import has_objects

#: GiB on disk, measured with the configuration `measure` and Linux 6.12: a source in the cache; a work tree with the
#: objects of one configuration; a kernel; a guest image; the logs and samples of a cell.
_SOURCE_GIB: Final = 0.32
_WORKSHOP_GIB: Final = 1.9
_KERNEL_GIB: Final = 0.025
_IMAGE_GIB: Final = 0.025
_CELL_GIB: Final = 0.001


@dataclass(frozen=True)
class Forecast:
    """The remaining work of a run.

    Args:
        prepare: durations of the steps before the first cell.
        cells: duration of all cells.
        conclude: duration of comparison, plots and report.
        disk_gib: disk space to be used, in GiB.
    """

    prepare: Sequence[tuple[str, Expected]]
    cells: Expected
    conclude: Expected
    disk_gib: float

    @property
    def seconds(self) -> float:
        """Total host seconds."""
        return sum(each.seconds for _, each in self.prepare) + self.cells.seconds + self.conclude.seconds

    @property
    def basis(self) -> str:
        """Where the estimate comes from, as a clause."""
        parts = [*self.prepare, ("cells", self.cells)]
        guessed = [name for name, each in parts if each.basis == "a guess"]
        if not guessed:
            return "from earlier runs on this host"
        if len(guessed) == len(parts):
            return "a guess: there is no similar run on this host yet"
        return f"from earlier runs on this host; a guess for {', '.join(dict.fromkeys(guessed))}"


class Remaining:
    """The remaining parts of a command's work, e.g. cells, and their expected duration.

    Args:
        durations: durations of earlier runs.
        kinds: one kind per part, see :class:`Durations`; parts of the same kind take about the same time.
        slots: number of parts that run in parallel.
    """

    def __init__(self, durations: Durations, kinds: Iterable[str], slots: int = 1) -> None:
        self._durations = durations
        self._left = Counter(kinds)
        self._slots = slots
        self._seen: dict[str, list[float]] = {}

    def add(self, kind: str) -> None:
        """Add a part."""
        self._left[kind] += 1

    def ended(self, kind: str, seconds: float | None) -> None:
        """Report that a part ended.

        Args:
            seconds: its duration; None if it is not typical, e.g. because the part failed.
        """
        self._left[kind] -= 1
        if seconds is not None:
            self._seen.setdefault(kind, []).append(seconds)
            self._durations.remember(kind, seconds)

    @property
    def expected(self) -> Expected:
        """The expected duration of the remaining parts."""
        each = {kind: self._of(kind) for kind, count in self._left.items() if count > 0}
        if not each:
            return Expected(0.0, "this run")
        work = sum(self._left[kind] * one.seconds for kind, one in each.items())
        longest = max(one.seconds for one in each.values())
        slots = min(self._slots, sum(self._left.values()))
        bases = {one.basis for one in each.values()}
        basis = next(b for b in ("a guess", "earlier runs on this host", "this run") if b in bases)
        return Expected(max(work / slots, longest), basis)

    def _of(self, kind: str) -> Expected:
        seen = self._seen.get(kind)
        if seen:
            return Expected(sum(seen) / len(seen), "this run")
        return self._durations.expected(kind)


def kind_of_cell(cell: Cell, experiment: Experiment, accelerator: str, slots: int) -> str:
    """The key for the duration of a cell.

    Args:
        accelerator: name of the accelerator.
        slots: number of guests that run in parallel.
    """
    parameters = ",".join(f"{k}={v}" for k, v in sorted(experiment.workloads[cell.workload].items()))
    named = f"{cell.workload}:{parameters}" if parameters else cell.workload
    # Guests that share the host's CPUs slow each other down.
    crowd = math.ceil(slots / (os.cpu_count() or 1))
    return f"cell {named} {accelerator} {experiment.topology.text} x{crowd}"


def forecast(experiment: Experiment, bench: Bench, todo: Sequence[Cell], slots: int) -> Forecast:
    """The work for the cells `todo`, given the current state of the cache.

    Args:
        slots: number of guests that run in parallel.

    Raises:
        InfrastructureError: QEMU is missing, or the requested accelerator does not work.
    """
    durations = bench.durations
    prepare: list[tuple[str, Expected]] = []
    disk = 0.0
    if not bench.has_source():
        prepare.append(("import of the source", durations.expected("source")))
        disk += _SOURCE_GIB
    patchsets = dict.fromkeys(experiment.variant(cell.variant).patchset for cell in todo)
    missing = [patchset for patchset in patchsets if not bench.has_kernel(patchset)]
    there = has_objects(bench.configuration(), bench.cache)
    for patchset in missing:
        kind = f"kernel-{'next' if there else 'first'} {bench.flavour}"
        prepare.append((f"kernel {patchset}", durations.expected(kind)))
        disk += _KERNEL_GIB + (0.0 if there else _WORKSHOP_GIB)
        there = True
    for layers in {bench.workloads[name].layers for name in {cell.workload for cell in todo}}:
        if not bench.has_image(layers):
            prepare.append(("guest image", durations.expected("image")))
            disk += _IMAGE_GIB
    kinds = [kind_of_cell(cell, experiment, bench.accelerator.name, slots) for cell in todo]
    cells = Remaining(durations, kinds, slots).expected
    return Forecast(prepare, cells, durations.expected("conclusion"), disk + len(todo) * _CELL_GIB)


def free_gib(directory: Path) -> float:
    """Free disk space in GiB at `directory`, which may not exist yet."""
    place = directory
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free / 2**30
