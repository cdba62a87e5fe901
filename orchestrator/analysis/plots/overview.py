# SPDX-License-Identifier: GPL-2.0-only
"""The three questions of a THP series in one figure: latency by density, memory, and promotions over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from orchestrator.analysis.density import PAGES_PER_REGION, Density, break_even, densities
from orchestrator.analysis.notation import short_number
from orchestrator.analysis.plots.promotions import extended
from orchestrator.analysis.plots.style import (
    Pen,
    Plot,
    clock_of,
    legend_below,
    short_numbers,
    space_panels,
    titled_figure,
    values_of,
)
from orchestrator.analysis.promotion import Curve
from orchestrator.store.manifest import Role
from orchestrator.store.run import Run

NAME: Final = "three-metrics"
#: 800 pixels, the width of a README, at the 100 dpi that the type sizes are chosen for.
_WIDTH_IN: Final = 8.0
_MOST_VARIANTS: Final = 6
_FIT: Final = ("chunk", "survivors.total")


def overview(run: Run, pens: Mapping[str, Pen], promoted: Mapping[str, Mapping[str, Curve]]) -> Plot:
    """Three panels: cost of a range by density, processes that fit, share of huge ranges over time.

    Args:
        promoted: see :func:`orchestrator.analysis.promotion.promotion_curves`.
    """
    title = "Fault latency, memory, promotions"
    control = run.manifest.name_of(Role.CONTROL)
    shown = [name for name in pens if name != control]
    costs = {name: each for name, each in densities(run).items() if name in shown}
    first = next(iter(promoted.values()), {})
    curves = {name: each for name, each in first.items() if name in shown}
    fit = {name: values for name in shown if (values := values_of(run, *_FIT, name)).size}
    if not costs or not fit or not curves:
        missing = {
            "metrics region_*": costs,
            f"the metric {_FIT[1]} of {_FIT[0]}": fit,
            "events huge_ranges": curves,
        }
        lacks = " and ".join(what for what, found in missing.items() if not found)
        return Plot(NAME, title, reason=f"no cell that ended ok has {lacks}")
    if len(shown) > _MOST_VARIANTS:
        return Plot(NAME, title, reason=f"{len(shown)} variants are too many; at most {_MOST_VARIANTS} fit")
    boots = max(density.costs.shape[0] for density in costs.values())
    figure = titled_figure(run, title, f"medians of {boots} fresh boots", 7.6, _WIDTH_IN)
    space_panels(figure)
    axes = figure.subplot_mosaic(
        [["density", "density", "fit"], ["share", "share", "share"]], height_ratios=[1.25, 1]
    )
    unit = clock_of(run)
    baseline = run.manifest.name_of(Role.BASELINE)
    handles = _density_panel(axes["density"], costs, pens, str(baseline), unit)
    _fit_panel(axes["fit"], fit, pens)
    _share_panel(axes["share"], curves, pens, unit)
    legend_below(figure, list(handles.values()), list(handles))
    return Plot(NAME, title, figure)


def _density_panel(
    axis: Axes, costs: Mapping[str, Density], pens: Mapping[str, Pen], baseline: str, unit: str
) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    for variant, density in costs.items():
        pen = pens[variant]
        broad = {"linewidth": 5.0, "alpha": 0.35} if variant == baseline else {"linewidth": 1.8}
        (line,) = axis.plot(density.pages, density.medians, pen.line, color=pen.colour, **broad)  # type: ignore[arg-type]
        (marks,) = axis.plot(density.pages, density.medians, pen.marker, color=pen.colour, markersize=5.5)
        handles[variant] = (line, marks)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    pages = next(iter(costs.values())).pages
    axis.set_xticks(pages, [str(each) if each != 96 else "" for each in pages])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(short_numbers())
    axis.set_title("Latency: touching a 2 MiB range")
    axis.set_xlabel(f"touched pages, of {PAGES_PER_REGION}")
    axis.set_ylabel(f"{unit} per range")
    reference = f"huge pages ({baseline})" if _is_flat(costs.get(baseline)) else baseline
    floor = axis.get_ylim()[0]
    evens = {
        variant: even
        for variant, density in costs.items()
        if baseline in costs
        and variant != baseline
        and (even := break_even(costs[baseline], density)) is not None
    }
    for number, (variant, even) in enumerate(sorted(evens.items(), key=lambda each: each[1])):
        density = costs[variant]
        cost = float(np.exp(np.interp(np.log(even), np.log(density.pages), np.log(density.medians))))
        axis.plot(
            [even, even], [floor, cost], color=pens[variant].colour, linewidth=1.2, linestyle=(0, (2, 2))
        )
        # Below each other, left of the line: costs increase to the right, so there is room.
        axis.annotate(
            f"break-even with\n{reference}:\n{even:.0f} pages",
            (even, floor),
            xytext=(-5, 4 + 42 * number),
            textcoords="offset points",
            fontsize=9.5,
            ha="right",
            va="bottom",
        )
    return handles


def _is_flat(density: Density | None) -> bool:
    """Whether the cost of a range does not depend on the number of touched pages, as with a huge page."""
    return density is not None and float(density.medians.max()) < 2 * float(density.medians.min())


def _fit_panel(axis: Axes, fit: Mapping[str, Any], pens: Mapping[str, Pen]) -> None:
    most = max(float(np.median(values)) for values in fit.values())
    for row, (variant, values) in enumerate(fit.items()):
        pen, middle = pens[variant], float(np.median(values))
        axis.bar(row, middle, width=0.62, color=pen.colour, alpha=0.3, edgecolor=pen.colour)
        spread = np.linspace(-0.17, 0.17, values.size) if values.size > 1 else np.zeros(1)
        axis.plot(row + spread, values, pen.marker, color=pen.colour, markersize=4, alpha=0.8)
        axis.annotate(
            short_number(middle), (row, max(middle, float(values.max()))), xytext=(0, 4), textcoords="offset points",
            ha="center", fontsize=11,
        )  # fmt: skip
    # Names are in the legend below: there is no room for them here.
    axis.set_xticks([])
    axis.set_ylim(0, most * 1.15)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axis.set_title("Memory: processes\nthat fit, sparse use")


def _share_panel(axis: Axes, curves: Mapping[str, Curve], pens: Mapping[str, Pen], unit: str) -> None:
    end = max(float(curve.cost[-1]) for curve in curves.values()) * 1.04
    for variant, curve in curves.items():
        pen, whole = pens[variant], extended(curve, end)
        axis.fill_between(
            whole.cost,
            whole.low * 100,
            whole.high * 100,
            step="post",
            color=pen.colour,
            alpha=0.2,
            linewidth=0,
        )
        broad = {"linewidth": 5.0, "alpha": 0.35} if pen.line == "-" else {"linewidth": 1.8}
        axis.step(whole.cost, whole.total * 100, pen.line, where="post", color=pen.colour, **broad)  # type: ignore[arg-type]
        marked = np.linspace(0, whole.cost.size - 1, 7).astype(int)
        axis.plot(whole.cost[marked], whole.total[marked] * 100, pen.marker, color=pen.colour, markersize=5)
    axis.set_xlim(0, end)
    axis.set_ylim(0, 104)
    axis.xaxis.set_major_formatter(short_numbers())
    axis.set_title("Promotions: share of huge ranges, dense use")
    axis.set_xlabel(f"cost so far, touches and khugepaged, {unit}")
    axis.set_ylabel("huge, %")
