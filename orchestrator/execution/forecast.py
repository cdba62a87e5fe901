# SPDX-License-Identifier: GPL-2.0-only
"""How much time and disk a run still needs."""

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
    """What is still to be done.

    Args:
        prepare: everything before the first cell, by what it is.
        cells: all cells together.
        conclude: comparison, plots and report.
        disk_gib: what will be written, in GiB.
    """

    prepare: Sequence[tuple[str, Expected]]
    cells: Expected
    conclude: Expected
    disk_gib: float

    @property
    def seconds(self) -> float:
        """Host seconds, all together."""
        return sum(each.seconds for _, each in self.prepare) + self.cells.seconds + self.conclude.seconds

    @property
    def basis(self) -> str:
        """Where the figure comes from, in one clause."""
        parts = [*self.prepare, ("cells", self.cells)]
        guessed = [name for name, each in parts if each.basis == "a guess"]
        if not guessed:
            return "from earlier runs on this host"
        if len(guessed) == len(parts):
            return "a guess: nothing like it was done on this host yet"
        return f"from earlier runs on this host; a guess for {', '.join(dict.fromkeys(guessed))}"


class Remaining:
    """The parts of a command's work that have not ended yet, e.g. cells, and how long they will take.

    Args:
        durations: of earlier runs.
        kinds: one per part, see :class:`Durations`; parts of one kind take about the same time.
        slots: parts that run side by side.
    """

    def __init__(self, durations: Durations, kinds: Iterable[str], slots: int = 1) -> None:
        self._durations = durations
        self._left = Counter(kinds)
        self._slots = slots
        self._seen: dict[str, list[float]] = {}

    def add(self, kind: str) -> None:
        """There is one more part."""
        self._left[kind] += 1

    def ended(self, kind: str, seconds: float | None) -> None:
        """A part ended.

        Args:
            seconds: it took; None where its duration says nothing about others, e.g. because it failed.
        """
        self._left[kind] -= 1
        if seconds is not None:
            self._seen.setdefault(kind, []).append(seconds)
            self._durations.remember(kind, seconds)

    @property
    def expected(self) -> Expected:
        """What the parts that are left are expected to take."""
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
    """What the duration of a cell depends on.

    Args:
        accelerator: its name.
        slots: guests side by side.
    """
    parameters = ",".join(f"{k}={v}" for k, v in sorted(experiment.workloads[cell.workload].items()))
    named = f"{cell.workload}:{parameters}" if parameters else cell.workload
    # Guests that share the host's processors slow each other down.
    crowd = math.ceil(slots / (os.cpu_count() or 1))
    return f"cell {named} {accelerator} {experiment.topology.text} x{crowd}"


def forecast(experiment: Experiment, bench: Bench, todo: Sequence[Cell], slots: int) -> Forecast:
    """What `todo` needs, with what is in the cache now.

    Args:
        slots: guests side by side.

    Raises:
        InfrastructureError: there is no QEMU, or no accelerator as asked for.
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
    """GiB that are free where `directory` is, or will be."""
    place = directory
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free / 2**30
