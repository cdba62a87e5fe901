# SPDX-License-Identifier: GPL-2.0-only
"""Invariants of the counters of a patched kernel on an idle system, as described by its series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from orchestrator.analysis.identity import Identity, parse_identity
from orchestrator.store.run import Run

_VMSTAT: Final = "vmstat"


@dataclass(frozen=True)
class Violation:
    """A cell with inconsistent counters.

    Args:
        text: a sentence with the numbers.
    """

    cell: str
    text: str


@dataclass(frozen=True)
class CounterCheck:
    """The result of the check.

    Args:
        cells: number of cells with the counters, which were checked.
    """

    cells: int
    violations: tuple[Violation, ...]


def check_counters(run: Run) -> CounterCheck:
    """Check the samples taken after the workload, in every patched cell that ended ok.

    Three things are checked: the counters satisfy the equations of the series; the counters that the series declares
    as levels are not higher than before the workload; no sample has a negative level.
    """
    series = run.manifest.series
    identities = [parse_identity(text) for text in series.identities]
    names = sorted({*series.levels, *(name for each in identities for name in each.counters)})
    patched = run.ok_cells.loc[run.ok_cells["role"] == "patched", "cell"].tolist()
    samples = run.samples_of(cells=patched, counters=names)
    samples = samples[(samples["source"] == _VMSTAT) & samples["node"].isna()]
    violations: list[Violation] = []
    checked = 0
    for cell in patched:
        own = samples[samples["cell"] == cell]
        after = _last_reading(own, "after")
        if not after:
            continue
        checked += 1
        violations += [Violation(cell, text) for text in _broken(own, after, identities, series.levels)]
    return CounterCheck(checked, tuple(violations))


def _broken(
    samples: pd.DataFrame, after: dict[str, int], identities: Sequence[Identity], levels: Sequence[str]
) -> list[str]:
    readings = samples[samples["counter"].isin(levels)].groupby("counter")["value"].min()
    least = {str(counter): int(value) for counter, value in readings.items()}
    return inconsistencies(_last_reading(samples, "before"), after, least, identities, levels)


def inconsistencies(
    before: Mapping[str, int],
    after: Mapping[str, int],
    least: Mapping[str, int],
    identities: Sequence[Identity],
    levels: Sequence[str],
) -> list[str]:
    """What is wrong with the counters of a workload, as sentences.

    Args:
        before, after: counters before the workload and after it.
        least: the smallest value of each level that was read.
        identities: equations that hold afterwards.
        levels: counters of what processes hold.
    """
    broken = [
        f"counter identity broken: {clause}"
        for each in identities
        if (clause := each.broken(after)) is not None
    ]
    for level in levels:
        # Ignore reservations that a daemon of the guest has held since boot.
        earlier = max(0, before.get(level, 0))
        if after.get(level, 0) > earlier:
            broken.append(
                f"something outlived the workload's processes: {level} is {after[level]} after the workload, "
                f"{earlier} before it"
            )
        if least.get(level, 0) < 0:
            broken.append(f"{level} fell to {least[level]}")
    return broken


def _last_reading(samples: pd.DataFrame, phase: str) -> dict[str, int]:
    """The last value of each counter in `phase`."""
    chosen = samples[samples["phase"] == phase]
    last = chosen.sort_values("guest_s", kind="stable").groupby("counter")["value"].last()
    return {str(counter): int(value) for counter, value in last.items()}
