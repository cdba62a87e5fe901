# SPDX-License-Identifier: GPL-2.0-only
"""Children that fit in memory, one bar per variant."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
from matplotlib.ticker import MaxNLocator

from orchestrator.analysis.notation import folded
from orchestrator.analysis.plots.style import Pen, Plot, panel_figure
from orchestrator.store.run import Run


def survivors(run: Run, pens: Mapping[str, Pen]) -> Plot:
    """Bars with the median of each variant, and points for all repetitions."""
    name, title = "survivors", "Children that fit in memory"
    metrics = run.ok_metrics
    metrics = metrics[metrics["metric"].str.startswith("survivors")]
    if metrics.empty:
        return Plot(name, title, reason="no cell that ended ok has a metric survivors*")
    panels = list(dict.fromkeys(zip(metrics["workload"], metrics["metric"], strict=True)))
    shown = [variant for variant in pens if variant in set(metrics["variant"])]
    figure, axes = panel_figure(
        run,
        title,
        "one point per fresh boot, the bar is the median",
        len(panels),
        heading_in=1.7,
        row_in=0.42 * len(shown),
        columns=min(2, len(panels)),
        sharex=True,
        sharey=True,
    )
    for axis, (workload, metric) in zip(axes.flat, panels, strict=False):
        facts = run.manifest.metric(workload, metric)
        own = metrics[(metrics["workload"] == workload) & (metrics["metric"] == metric)]
        axis.set_title(textwrap.fill((facts and facts.help) or metric, 40))
        for row, variant in enumerate(shown):
            values = own.loc[own["variant"] == variant, "value"].to_numpy(dtype=float)
            if not values.size:
                continue
            pen = pens[variant]
            middle = float(np.median(values))
            axis.barh(row, middle, height=0.62, color=pen.colour, alpha=0.22, linewidth=0)
            axis.plot([middle] * 2, [row - 0.31, row + 0.31], color=pen.colour, linewidth=2.5)
            spread = np.linspace(-0.17, 0.17, values.size) if values.size > 1 else np.zeros(1)
            axis.plot(
                values, row + spread, pen.marker, color=pen.colour, markersize=5, alpha=0.8, clip_on=False
            )
            axis.annotate(
                f"{middle:g}",
                (max(values.max(), middle), row),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
                fontsize=11,
            )
        axis.set_yticks(range(len(shown)), [folded(variant) for variant in shown])
        axis.set_ylim(len(shown) - 0.5, -0.5)
        axis.set_xlim(0, float(metrics["value"].max()) * 1.14 + 1)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axis.set_xlabel(f"{metric} ({(facts and facts.unit) or 'children'})")
        axis.grid(axis="y", visible=False)
    return Plot(name, title, figure)
