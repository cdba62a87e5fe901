# SPDX-License-Identifier: GPL-2.0-only
"""How ranges became huge while a workload ran, from its events ``huge_ranges``, over the boots of each variant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from orchestrator.store.run import Run

Values = npt.NDArray[np.float64]

EVENT: Final = "huge_ranges"
#: Key of the event -> its meaning.
WAYS: Final[Mapping[str, str]] = {
    "at_fault": "at the first fault",
    "in_place": "in place, from a reservation",
    "by_copy": "by a copy",
}


@dataclass(frozen=True)
class Curve:
    """The share of huge ranges of a variant, by the cost so far.

    Args:
        cost: cost of the touches and of khugepaged, in the unit of the run's clock; ascending.
        shares: way -> mean over the boots, 0 to 1, for each cost.
        low, high: the smallest and the largest share of a boot, for all ways together.
        boots: number of boots.
    """

    cost: Values
    shares: Mapping[str, Values]
    low: Values
    high: Values
    boots: int

    @property
    def total(self) -> Values:
        """The share of huge ranges, for all ways together."""
        return np.asarray(sum(self.shares.values()), dtype=np.float64)


def promotion_curves(run: Run) -> dict[str, dict[str, Curve]]:
    """Workload -> variant -> curve, for workloads that print such events.

    Shares are limited to 1, since the kernel also counts ranges of other processes.
    """
    boots: dict[str, dict[str, list[dict[str, Values]]]] = {}
    for cell in run.ok_cells.itertuples():
        steps = [r for r in run.workload_records(str(cell.cell)) if _is_step(r)]
        if steps:
            of_variant = boots.setdefault(str(cell.workload), {}).setdefault(str(cell.variant), [])
            of_variant.append(_boot(steps))
    order = [variant.name for variant in run.manifest.variants]
    return {
        workload: {name: _curve(boots[workload][name]) for name in order if name in boots[workload]}
        for workload in run.manifest.workloads
        if workload in boots
    }


def _is_step(record: Mapping[str, Any]) -> bool:
    keys = ("ranges", *WAYS)
    return (
        record.get("event") == EVENT
        and all(isinstance(record.get(key), int) for key in keys)
        and _cost(record) is not None
        and record["ranges"] > 0
    )


def _cost(record: Mapping[str, Any]) -> float | None:
    return next((float(record[clock]) for clock in ("insns", "ns") if clock in record), None)


def _boot(steps: list[dict[str, Any]]) -> dict[str, Values]:
    ranges = float(steps[0]["ranges"])
    found = {way: np.array([step[way] for step in steps], dtype=np.float64) / ranges for way in WAYS}
    # khugepaged's CPU time is read while it runs and may lag, so make the costs monotonic.
    cost = np.maximum.accumulate(np.array([_cost(step) for step in steps], dtype=np.float64))
    return {"cost": cost, **{way: np.minimum(share, 1.0) for way, share in found.items()}}


def _curve(boots: list[dict[str, Values]]) -> Curve:
    cost = np.unique(np.concatenate([boot["cost"] for boot in boots]))
    shares = {way: np.array([_at(boot, way, cost) for boot in boots]) for way in WAYS}
    total = np.minimum(sum(shares.values()), 1.0)
    return Curve(
        cost,
        {way: each.mean(axis=0) for way, each in shares.items()},
        total.min(axis=0),
        total.max(axis=0),
        len(boots),
    )


def _at(boot: Mapping[str, Values], way: str, cost: Values) -> Values:
    """The share at each cost, from the last reading at or before it."""
    index = np.searchsorted(boot["cost"], cost, side="right") - 1
    return np.where(index < 0, 0.0, boot[way][np.maximum(index, 0)])
