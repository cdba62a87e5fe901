# SPDX-License-Identifier: GPL-2.0-only
"""What variants trade for what: several metrics at once, and the variants that none other is seen to beat in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.store.manifest import Role
from orchestrator.store.run import Run


@dataclass(frozen=True)
class Axis:
    """One metric that counts.

    Args:
        name: what it stands for, e.g. ``memory``.
        workload, metric: where it comes from.
        unit: of its values.
        better: ``lower`` or ``higher``.
        help: what exactly it counts.
    """

    name: str
    workload: str
    metric: str
    unit: str
    better: str
    help: str


@dataclass(frozen=True)
class Point:
    """A variant.

    Args:
        middle: the median over its repetitions, one value per axis.
        low, high: the least and the largest of them.
        boots: the fewest repetitions on any axis.
        on_front: whether no other variant has medians that are at least as good on all axes and, on one, only boots
            that are better than all of this one. Medians alone would put a variant off the front by noise.
    """

    variant: str
    middle: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    boots: int
    on_front: bool


@dataclass(frozen=True)
class Tradeoff:
    """Axes, and a point for each variant that was measured on all of them."""

    axes: tuple[Axis, ...]
    points: tuple[Point, ...]


def tradeoff_of(run: Run) -> Tradeoff | None:
    """The trade-off that the run's experiment asked for; None where it asked for none, or no variant has all metrics.

    The control is left out: it is the baseline once more.
    """
    asked = run.manifest.tradeoff
    if not asked:
        return None
    axes = tuple(_axis(run, name, source) for name, source in asked.items())
    metrics = run.metrics
    metrics = metrics[metrics["cell"].isin(run.cells.loc[run.cells["outcome"] == "ok", "cell"])]
    found: list[tuple[str, list[npt.NDArray[np.float64]]]] = []
    for variant in run.manifest.variants:
        if variant.role is Role.CONTROL:
            continue
        own = metrics[metrics["variant"] == variant.name]
        values = [
            own.loc[(own["workload"] == a.workload) & (own["metric"] == a.metric), "value"].to_numpy(float)
            for a in axes
        ]
        if all(each.size for each in values):
            found.append((variant.name, values))
    if not found:
        return None
    middles = [[float(np.median(each)) for each in values] for _, values in found]
    lows = [[float(each.min()) for each in values] for _, values in found]
    highs = [[float(each.max()) for each in values] for _, values in found]
    front = pareto_front(middles, [axis.better for axis in axes], lows, highs)
    points = (
        Point(
            name,
            tuple(middle),
            tuple(low),
            tuple(high),
            min(each.size for each in values),
            on,
        )
        for (name, values), middle, low, high, on in zip(found, middles, lows, highs, front, strict=True)
    )
    return Tradeoff(axes, tuple(points))


def pareto_front(
    points: Sequence[Sequence[float]],
    better: Sequence[str],
    low: Sequence[Sequence[float]] | None = None,
    high: Sequence[Sequence[float]] | None = None,
) -> list[bool]:
    """Which points no other one dominates.

    One dominates another that is nowhere better and somewhere worse; equal points do not dominate each other.

    Args:
        points: values, shape (n, axes).
        better: ``lower`` or ``higher``, one per axis.
        low, high: the range of each value, of the same shape; worse then means that the ranges do not meet.

    >>> pareto_front([[1, 5], [2, 5], [2, 9], [1, 5]], ["lower", "higher"])
    [True, False, True, True]
    >>> pareto_front([[1], [2]], ["lower"], low=[[0.5], [1.4]], high=[[1.5], [2.6]])
    [True, True]
    """
    sign = np.array([1.0 if each == "lower" else -1.0 for each in better])
    cost = np.array(points, dtype=float) * sign
    ends = [np.array(points if end is None else end, dtype=float) * sign for end in (low, high)]
    best, worst = np.minimum(*ends), np.maximum(*ends)
    return [
        not bool(np.any(np.all(cost <= cost[own], axis=1) & np.any(worst < best[own], axis=1)))
        for own in range(len(cost))
    ]


def _axis(run: Run, name: str, source: str) -> Axis:
    workload, _, metric = source.partition("/")
    metric = metric.replace("{clock}", str(run.manifest.accelerator.clock))
    facts = run.manifest.workloads[workload].metrics[metric]
    return Axis(name, workload, metric, facts.unit, str(facts.better), facts.help)
