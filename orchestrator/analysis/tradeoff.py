# SPDX-License-Identifier: GPL-2.0-only
"""Trade-offs: several metrics at once, and the variants that no other variant beats in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.store.manifest import Role
from orchestrator.store.run import Run


@dataclass(frozen=True)
class Axis:
    """A metric of the trade-off.

    Args:
        name: label of the axis, e.g. ``memory``.
        workload, metric: source of its values.
        unit: unit of its values.
        better: ``lower`` or ``higher``.
        help: what exactly it measures.
    """

    name: str
    workload: str
    metric: str
    unit: str
    better: str
    help: str


@dataclass(frozen=True)
class TradeoffPoint:
    """A variant.

    Args:
        middle: median over the repetitions, one value per axis.
        low, high: smallest and largest value over the repetitions.
        boots: smallest number of repetitions on any axis.
        on_front: whether no other variant has medians at least as good on all axes and, on one axis, only boots that
            are better than all boots of this one. With medians alone, noise could remove a variant from the front.
    """

    variant: str
    middle: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    boots: int
    on_front: bool


@dataclass(frozen=True)
class Tradeoff:
    """Axes, and one point per variant that was measured on all axes."""

    axes: tuple[Axis, ...]
    points: tuple[TradeoffPoint, ...]


def tradeoff_of(run: Run) -> Tradeoff | None:
    """The trade-off of the run's experiment; None if it has none, or if no variant has all metrics.

    The control is omitted, as it is a copy of the baseline.
    """
    asked = run.manifest.tradeoff
    if not asked:
        return None
    axes = tuple(_axis(run, name, source) for name, source in asked.items())
    metrics = run.ok_metrics
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
        TradeoffPoint(
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
    """Which points are not dominated by any other.

    A point dominates another one that is nowhere better and somewhere worse; equal points do not dominate each other.

    Args:
        points: values, shape (n, axes).
        better: ``lower`` or ``higher``, one per axis.
        low, high: range of each value, in the same shape; "worse" then means that the ranges do not overlap.

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
