# SPDX-License-Identifier: GPL-2.0-only
"""Counters before and after a workload, as dumbbells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, SymmetricalLogLocator

from orchestrator.analysis.plots.style import Look, Plot, legend_below, ok_cells, title_of, titled_figure
from orchestrator.store.run import Run

#: Counters of /proc/vmstat that the dumbbell plot looks at, beside every thp_*.
_EVENTS: Final = (
    "nr_thp_reserved", "pgfault", "pgmajfault", "pgalloc_normal", "pgalloc_dma32", "pgfree", "compact_stall",
    "compact_success", "compact_fail", "allocstall_normal", "allocstall_movable", "pgscan_kswapd", "pgscan_direct",
    "pgsteal_kswapd", "pgsteal_direct", "pswpout", "pswpin", "oom_kill", "drop_pagecache",
)  # fmt: skip
_MOST_COUNTERS: Final = 26


def counters(run: Run, looks: Mapping[str, Look]) -> Iterator[Plot]:
    """One plot a workload: the counters that moved, a variant a lane."""
    name, title = "counters", "Counters before and after"
    ok = ok_cells(run)
    samples = run.samples_of(cells=ok["cell"].tolist(), phases=("before", "after"))
    chosen = samples["counter"].str.startswith("thp_") | samples["counter"].isin(_EVENTS)
    samples = samples[chosen & samples["node"].isna() & samples["source"].str.contains("vmstat")]
    if samples.empty:
        yield Plot(name, title, reason="no cell that ended ok has samples of vmstat before and after")
        return
    samples = samples.sort_values("guest_s", kind="stable").merge(
        ok[["cell", "variant", "workload"]], on="cell"
    )
    last = samples.groupby(["workload", "variant", "cell", "phase", "counter"], sort=False)["value"].last()
    medians = last.groupby(["workload", "variant", "phase", "counter"], sort=False).median()
    for workload in run.manifest.workloads:
        if workload not in set(samples["workload"]):
            continue
        table = medians.loc[workload].unstack("phase")
        figure = _counter_figure(run, f"{title}: {title_of(run, workload)}", table, looks)
        if figure is None:
            yield Plot(f"{name}-{workload}", title, reason=f"no counter moved in workload {workload}")
        else:
            yield Plot(f"{name}-{workload}", f"{title}: {workload}", figure)


def _counter_figure(run: Run, title: str, table: pd.DataFrame, looks: Mapping[str, Look]) -> Figure | None:
    """Dumbbells: a counter a row, a variant a lane within it, from its value before to the one after."""
    if not {"before", "after"} <= set(table.columns):
        return None
    moved = (table["after"] - table["before"]).abs().groupby("counter").max()
    order = moved[moved > 0].sort_values(ascending=False, kind="stable")
    counters = sorted(order.index[:_MOST_COUNTERS], key=_counter_order)
    if not counters:
        return None
    variants = [variant for variant in looks if variant in set(table.index.get_level_values("variant"))]
    left_out = len(order) - len(counters)
    note = "hollow before, filled after, median of the repetitions" + (
        f" · {left_out} lesser ones not shown" if left_out else ""
    )
    lane = 0.17
    row_height = lane * len(variants) + 0.16
    figure = titled_figure(run, title, note, 1.9 + row_height * len(counters))
    axis: Axes = figure.subplots()
    for index, counter in enumerate(counters):
        if index % 2 == 0:
            axis.axhspan(index - 0.5, index + 0.5, color="#f4f4f4", linewidth=0, zorder=0)
        for position, variant in enumerate(variants):
            if (variant, counter) not in table.index:
                continue
            before, after = (float(table.loc[(variant, counter), phase]) for phase in ("before", "after"))
            if np.isnan(before) or np.isnan(after):
                continue
            look = looks[variant]
            at = index + (position - (len(variants) - 1) / 2) * lane / row_height
            axis.plot([before, after], [at, at], color=look.colour, linewidth=1.4, alpha=0.7)
            axis.plot(before, at, look.marker, color=look.colour, markerfacecolor="white", markersize=5.5)
            axis.plot(after, at, look.marker, color=look.colour, markersize=5.5)
    axis.set_xscale("symlog", linthresh=1)
    axis.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_yticks(range(len(counters)), counters)
    axis.set_ylim(len(counters) - 0.5, -0.5)
    axis.margins(x=0.03)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("value in /proc/vmstat: events, for nr_* pages (linear below 1, else logarithmic)")
    # Not those of the first counter: a variant may lack it.
    handles = [
        axis.plot([], [], looks[variant].marker, color=looks[variant].colour, linestyle="-")[0]
        for variant in variants
    ]
    legend_below(figure, handles, variants)
    return figure


def _counter_order(counter: str) -> tuple[int, str]:
    """The series' own counters first, then those of THP, then the others."""
    own = counter.startswith("thp_res_") or counter == "nr_thp_reserved"
    return (0 if own else 1 if counter.startswith("thp_") else 2, counter)
