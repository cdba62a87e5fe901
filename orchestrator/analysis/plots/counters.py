# SPDX-License-Identifier: GPL-2.0-only
"""Growth of event counters while a workload ran."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from orchestrator.analysis.plots.style import (
    Pen,
    Plot,
    legend_below,
    short_numbers,
    title_of,
    titled_figure,
)
from orchestrator.store.run import Run

#: Event counters in /proc/vmstat to plot, in addition to all thp_*.
_EVENTS: Final = (
    "pgfault", "pgmajfault", "pgalloc_normal", "pgalloc_dma32", "pgfree", "compact_stall",
    "compact_success", "compact_fail", "allocstall_normal", "allocstall_movable", "pgscan_kswapd", "pgscan_direct",
    "pgsteal_kswapd", "pgsteal_direct", "pswpout", "pswpin", "oom_kill", "drop_pagecache",
)  # fmt: skip
_MOST_COUNTERS: Final = 26
#: Position of a counter that did not grow: left of the logarithmic axis, which has no 0.
_NONE: Final = 0.4


def counters(run: Run, pens: Mapping[str, Pen]) -> Iterator[Plot]:
    """One plot per workload: the counters that grew, one lane per variant."""
    name, title = "counters", "Growth of counters"
    ok = run.ok_cells
    samples = run.samples_of(cells=ok["cell"].tolist(), phases=("before", "after"))
    chosen = samples["counter"].str.startswith("thp_") | samples["counter"].isin(_EVENTS)
    samples = samples[chosen & samples["node"].isna() & samples["source"].str.contains("vmstat")]
    if samples.empty:
        yield Plot(name, title, reason="no cell that ended ok has samples of vmstat before and after")
        return
    samples = samples.sort_values("guest_s", kind="stable").merge(
        ok[["cell", "variant", "workload"]], on="cell"
    )
    last = samples.groupby(["workload", "variant", "cell", "counter", "phase"], sort=False)["value"].last()
    table = last.unstack("phase").reindex(columns=["before", "after"])
    growth = (table["after"] - table["before"]).dropna()
    medians = growth.groupby(["workload", "variant", "counter"], sort=False).median()
    for workload in run.manifest.workloads:
        if workload not in set(samples["workload"]):
            continue
        own = medians[medians.index.get_level_values("workload") == workload].droplevel("workload")
        figure = _counter_figure(run, f"{title}: {title_of(run, workload)}", own, pens)
        if figure is None:
            yield Plot(f"{name}-{workload}", title, reason=f"no counter moved in workload {workload}")
        else:
            yield Plot(f"{name}-{workload}", f"{title}: {workload}", figure)


def _counter_figure(run: Run, title: str, growth: pd.Series, pens: Mapping[str, Pen]) -> Figure | None:
    """One row per counter, one lane per variant within it."""
    grown = growth.groupby("counter").max()
    order = grown[grown >= 1].sort_values(ascending=False, kind="stable")
    counters = sorted(order.index[:_MOST_COUNTERS], key=_counter_order)
    if not counters:
        return None
    variants = [variant for variant in pens if variant in set(growth.index.get_level_values("variant"))]
    left_out = len(order) - len(counters)
    note = "while the workload ran, median of the boots; hollow at the left: 0" + (
        f" · {left_out} smaller ones not shown" if left_out else ""
    )
    lane = 0.17
    row_height = lane * len(variants) + 0.16
    figure = titled_figure(run, title, note, 1.9 + 0.9 * row_height * len(counters))
    axis: Axes = figure.subplots()
    for index, counter in enumerate(counters):
        if index % 2 == 0:
            axis.axhspan(index - 0.5, index + 0.5, color="#f4f4f4", linewidth=0, zorder=0)
        for position, variant in enumerate(variants):
            if (variant, counter) not in growth.index:
                continue
            value = float(growth.loc[(variant, counter)])
            pen = pens[variant]
            at = index + (position - (len(variants) - 1) / 2) * lane / row_height
            if value < 1:
                axis.plot(_NONE, at, pen.marker, color=pen.colour, markerfacecolor="white", markersize=5.5)
                continue
            axis.plot([1, value], [at, at], color=pen.colour, linewidth=1.4, alpha=0.7)
            axis.plot(value, at, pen.marker, color=pen.colour, markersize=5.5)
    axis.set_xscale("log")
    axis.set_xlim(_NONE / 1.4, max(10.0, float(grown.max())) * 1.6)
    ticks = [tick for tick in LogLocator(numticks=12).tick_values(1, float(grown.max())) if tick >= 1]
    axis.set_xticks([_NONE, *ticks])
    axis.xaxis.set_major_formatter(short_numbers())
    axis.set_xticklabels(["0", *(axis.xaxis.get_major_formatter()(tick) for tick in ticks)])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.axvspan(_NONE / 1.4, np.sqrt(_NONE), color="#e4e4e4", linewidth=0, zorder=0.5)
    axis.set_yticks(range(len(counters)), counters, fontsize=10)
    axis.set_ylim(len(counters) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("growth in /proc/vmstat, events (logarithmic; 0 left of the axis)")
    # Not from the first counter, which a variant may not have.
    handles = [
        axis.plot([], [], pens[variant].marker, color=pens[variant].colour, linestyle="-")[0]
        for variant in variants
    ]
    legend_below(figure, handles, variants)
    return figure


def _counter_order(counter: str) -> tuple[int, str]:
    """Counters of the series first, then those of THP, then the others."""
    return (0 if counter.startswith("thp_res_") else 1 if counter.startswith("thp_") else 2, counter)
