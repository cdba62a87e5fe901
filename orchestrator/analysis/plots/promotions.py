# SPDX-License-Identifier: GPL-2.0-only
"""The share of huge ranges over time, and how they became huge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from orchestrator.analysis.notation import folded
from orchestrator.analysis.plots.style import (
    Pen,
    Plot,
    clock_of,
    legend_below,
    panel_figure,
    short_numbers,
    title_of,
)
from orchestrator.analysis.promotion import WAYS, Curve
from orchestrator.store.run import Run

#: Patterns, to distinguish areas without colour: plain, hatched, dotted.
_FILLS: Final[Mapping[str, Mapping[str, Any]]] = {
    "at_fault": {"facecolor": "#8c8c8c", "hatch": ""},
    "in_place": {"facecolor": "#9ecae9", "hatch": "////"},
    "by_copy": {"facecolor": "#fdd9b5", "hatch": "...."},
}


def promotions(run: Run, pens: Mapping[str, Pen], found: Mapping[str, Mapping[str, Curve]]) -> Iterator[Plot]:
    """One plot per workload that follows its ranges: an area per way in which they became huge, a panel per variant.

    Args:
        found: see :func:`orchestrator.analysis.promotion.promotion_curves`.
    """
    name, title = "promotions", "Huge ranges over time"
    if not found:
        yield Plot(
            name, title, reason="no workload that ended ok has events huge_ranges in its workload.jsonl"
        )
    for workload, curves in found.items():
        shown = [variant for variant in pens if variant in curves]
        drawn = f"{name}-{workload}" if len(found) > 1 else name
        if not any(curves[variant].shares[way].any() for variant in shown for way in WAYS):
            yield Plot(drawn, title, reason=f"no range became huge in {title_of(run, workload)}")
            continue
        figure, axes = panel_figure(
            run,
            f"{title}: {title_of(run, workload)}",
            "every page of each range is touched, then the workload waits for khugepaged; mean and range of the boots",
            len(shown),
            heading_in=1.6,
            row_in=2.3,
            sharex=True,
            sharey=True,
        )
        end = max(float(curves[variant].cost[-1]) for variant in shown) * 1.03
        handles: dict[str, Any] = {}
        for axis, variant in zip(axes.flat, shown, strict=False):
            curve = extended(curves[variant], end)
            base = np.zeros_like(curve.cost)
            for way, label in WAYS.items():
                if not curve.shares[way].any():
                    continue
                top = base + curve.shares[way] * 100
                area = axis.fill_between(
                    curve.cost, base, top, step="post", edgecolor="#333333", linewidth=0.6, **_FILLS[way]
                )
                handles.setdefault(label, area)
                base = top
            axis.step(curve.cost, curve.low * 100, where="post", color="#000000", linewidth=0.8)
            axis.step(curve.cost, curve.high * 100, where="post", color="#000000", linewidth=0.8)
            axis.set_title(f"{folded(variant, 40)} ({curve.boots} boots)")
            axis.set_ylim(0, 102)
            axis.set_xlim(0, end)
            axis.xaxis.set_major_formatter(short_numbers())
            axis.tick_params(labelbottom=True)
        for axis in axes[:, 0]:
            axis.set_ylabel("huge ranges, %")
        for axis in axes[-1]:
            axis.set_xlabel(f"cost of touches and khugepaged, {clock_of(run)}")
        legend_below(figure, list(handles.values()), list(handles))
        yield Plot(drawn, title, figure)


def extended(curve: Curve, end: float) -> Curve:
    """The curve extended to `end`: no more ranges become huge."""
    if curve.cost[-1] >= end:
        return curve

    def with_last(values: Any) -> Any:
        return np.append(values, values[-1])

    return Curve(
        np.append(curve.cost, end),
        {way: with_last(share) for way, share in curve.shares.items()},
        with_last(curve.low),
        with_last(curve.high),
        curve.boots,
    )
