# SPDX-License-Identifier: GPL-2.0-only
"""The cost of touching a 2 MiB range by the number of touched pages, and the break-even of two variants."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from orchestrator.store.run import Run

WORKLOAD: Final = "fault_latency"
PAGES_PER_REGION: Final = 512
#: Smallest logarithm of a ratio at which two costs differ: about 5 %.
_APART: Final = 0.05
_METRIC: Final = re.compile(r"region_(\d+)_(insns|ns)\.p50")


@dataclass(frozen=True)
class Density:
    """The cost of a range for a variant.

    Args:
        pages: numbers of touched pages, of 512; ascending.
        costs: one row per boot, one column per number of pages, in the unit of the run's clock.
    """

    pages: tuple[int, ...]
    costs: npt.NDArray[np.float64]

    @property
    def medians(self) -> npt.NDArray[np.float64]:
        """Medians over the boots."""
        return np.asarray(np.median(self.costs, axis=0), dtype=np.float64)


def densities(run: Run) -> dict[str, Density]:
    """Variant -> costs, for variants that measured all of them."""
    metrics = run.ok_metrics
    own = metrics[(metrics["workload"] == WORKLOAD) & metrics["metric"].str.fullmatch(_METRIC.pattern)]
    if own.empty:
        return {}
    own = own.assign(pages=own["metric"].str.extract(_METRIC)[0].astype(int))
    found = {}
    for variant in (each.name for each in run.manifest.variants):
        table = own[own["variant"] == variant].pivot_table(
            index="repetition", columns="pages", values="value"
        )
        table = table.dropna()
        if not table.empty:
            found[variant] = Density(tuple(int(pages) for pages in table.columns), table.to_numpy(float))
    return found


def break_even(huge: Density, other: Density) -> float | None:
    """The number of pages at which `other` starts to cost more than `huge`, interpolated logarithmically.

    Returns:
        None if one of them is cheaper at every number of pages, or if both cost about the same at either end, where
        they cross by chance.

    >>> import numpy as np
    >>> base = Density((1, 100), np.array([[1.0, 100.0]]))
    >>> round(break_even(Density((1, 100), np.array([[10.0, 10.0]])), base), 6)
    10.0
    """
    if huge.pages != other.pages:
        return None
    gap = np.log(other.medians) - np.log(huge.medians)
    if gap[0] > -_APART or gap[-1] < _APART:
        return None
    places = np.log(np.array(huge.pages, dtype=np.float64))
    for at in range(1, len(gap)):
        if gap[at - 1] < 0 <= gap[at]:
            share = -gap[at - 1] / (gap[at] - gap[at - 1])
            return float(np.exp(places[at - 1] + share * (places[at] - places[at - 1])))
    return None
