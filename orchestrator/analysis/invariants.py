# SPDX-License-Identifier: GPL-2.0-only
"""What the reservation counters of a patched kernel must obey when nothing is going on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pandas as pd

from orchestrator.store.run import Run

#: Base pages of a reserved block: HPAGE_PMD_NR on x86-64.
_BLOCK_PAGES: Final = 512
_HELD: Final = "nr_thp_reserved"
_GONE: Final = ("thp_res_mapped", "thp_res_released", "thp_res_filled")
_COUNTERS: Final = ("thp_res_alloc", _HELD, *_GONE)
_VMSTAT: Final = "vmstat"


@dataclass(frozen=True)
class Violation:
    """A cell whose counters contradict each other.

    Args:
        text: a sentence with the figures.
    """

    cell: str
    text: str


@dataclass(frozen=True)
class CounterCheck:
    """What the counters of the checked cells said.

    Args:
        cells: how many cells have the counters and were looked at.
    """

    cells: int
    violations: tuple[Violation, ...]


def check_counters(run: Run) -> CounterCheck:
    """Check the samples that were taken after the workload, in every patched cell that ended ok.

    Three things: every page of a reserved block is accounted for,
    ``512 * thp_res_alloc == nr_thp_reserved + thp_res_mapped + thp_res_released + thp_res_filled``; the
    workload's processes left no reservation behind; no sample ever shows a negative number of reserved pages.
    """
    cells = run.cells
    patched = cells.loc[(cells["role"] == "patched") & (cells["outcome"] == "ok"), "cell"].tolist()
    samples = run.samples_of(cells=patched, counters=_COUNTERS)
    samples = samples[(samples["source"] == _VMSTAT) & samples["node"].isna()]
    violations: list[Violation] = []
    checked = 0
    for cell in patched:
        own = samples[samples["cell"] == cell]
        after = _last_reading(own, "after")
        if not after:
            continue
        checked += 1
        violations += [Violation(cell, text) for text in _broken(own, after)]
    return CounterCheck(checked, tuple(violations))


def _broken(samples: pd.DataFrame, after: dict[str, int]) -> list[str]:
    broken = []
    blocks = after.get("thp_res_alloc", 0)
    parts = {name: after.get(name, 0) for name in (_HELD, *_GONE)}
    if _BLOCK_PAGES * blocks != sum(parts.values()):
        sides = " + ".join(f"{name} {value}" for name, value in parts.items())
        broken.append(
            f"counter identity broken: {_BLOCK_PAGES} x thp_res_alloc {blocks} = {_BLOCK_PAGES * blocks} pages, "
            f"but {sides} = {sum(parts.values())}"
        )
    # What a daemon of the guest holds from boot on is not the workload's.
    earlier = max(0, _last_reading(samples, "before").get(_HELD, 0))
    if after.get(_HELD, 0) > earlier:
        broken.append(
            f"reservations outlived their processes: {_HELD} is {after[_HELD]} pages after the workload, "
            f"{earlier} before it"
        )
    held = samples.loc[samples["counter"] == _HELD, "value"]
    if not held.empty and int(held.min()) < 0:
        broken.append(f"{_HELD} fell to {int(held.min())} pages")
    return broken


def _last_reading(samples: pd.DataFrame, phase: str) -> dict[str, int]:
    """The last value of each counter in `phase`."""
    chosen = samples[samples["phase"] == phase]
    last = chosen.sort_values("guest_s", kind="stable").groupby("counter")["value"].last()
    return {str(counter): int(value) for counter, value in last.items()}
