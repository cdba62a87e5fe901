# SPDX-License-Identifier: GPL-2.0-only
"""What touching a region of 2 MiB costs by how many of its pages are touched, and where two variants cost alike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from orchestrator.store.outcome import Outcome
from orchestrator.store.run import Run

WORKLOAD: Final = "fault_latency"
PAGES_PER_REGION: Final = 512
#: Logarithm of a ratio from which on two costs are apart: some 5 %.
_APART: Final = 0.05
_METRIC: Final = re.compile(r"region_(\d+)_(insns|ns)\.p50")


@dataclass(frozen=True)
class Density:
    """A variant's cost of a region.

    Args:
        pages: touched, of 512; rising.
        costs: one row per boot, one column per number of pages, in the unit of the run's clock.
    """

    pages: tuple[int, ...]
    costs: npt.NDArray[np.float64]

    @property
    def medians(self) -> npt.NDArray[np.float64]:
        """Over the boots."""
        return np.asarray(np.median(self.costs, axis=0), dtype=np.float64)


def densities(run: Run) -> dict[str, Density]:
    """Variant -> its costs, for those whose boots measured all of them."""
    cells = run.cells
    metrics = run.metrics
    own = metrics[
        (metrics["workload"] == WORKLOAD)
        & metrics["metric"].str.fullmatch(_METRIC.pattern)
        & metrics["cell"].isin(cells.loc[cells["outcome"] == Outcome.OK.value, "cell"])
    ]
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
    """The number of pages from which on `other` costs more than `huge`, read off lines between the logarithms.

    Returns:
        None where one of them is the cheaper one at every number of pages, or both cost about the same at either end:
        they then cross by chance.

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
