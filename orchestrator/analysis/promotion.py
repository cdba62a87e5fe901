# SPDX-License-Identifier: GPL-2.0-only
"""How ranges became huge while a workload went on: its events ``huge_ranges``, over the boots of each variant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from orchestrator.store.run import Run

Values = npt.NDArray[np.float64]

EVENT: Final = "huge_ranges"
#: Key of the event -> what it stands for.
WAYS: Final[Mapping[str, str]] = {
    "at_fault": "at the first fault",
    "in_place": "in place, from a reservation",
    "by_copy": "by a copy",
}


@dataclass(frozen=True)
class Curve:
    """The shares of a variant's ranges that were huge, over the cost until then.

    Args:
        cost: of the touches and of khugepaged, in the unit of the run's clock; rising.
        shares: way -> mean over the boots, 0 to 1, at each cost.
        low, high: the least and the largest share of a boot, of all ways together.
        boots: how many.
    """

    cost: Values
    shares: Mapping[str, Values]
    low: Values
    high: Values
    boots: int

    @property
    def total(self) -> Values:
        """The share that was huge, by whatever way."""
        return np.asarray(sum(self.shares.values()), dtype=np.float64)


def promotion_curves(run: Run) -> dict[str, dict[str, Curve]]:
    """Workload -> variant -> its curve, for the workloads that print such events.

    A range of another process, which the kernel counts as well, cannot make a share larger than 1.
    """
    boots: dict[str, dict[str, list[dict[str, Values]]]] = {}
    cells = run.cells
    for cell in cells[cells["outcome"] == "ok"].itertuples():
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
    # khugepaged's CPU time is read while it runs, so it may lag: what became huge later did not cost less.
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
    """The share at each cost: that of the last look at or before it."""
    index = np.searchsorted(boot["cost"], cost, side="right") - 1
    return np.where(index < 0, 0.0, boot[way][np.maximum(index, 0)])
