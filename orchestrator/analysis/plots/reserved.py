# SPDX-License-Identifier: GPL-2.0-only
"""What happened to the pages of reservations."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Final

from matplotlib.axes import Axes

from orchestrator.analysis.plots.style import Plot, counted, short_numbers, title_of, titled_figure
from orchestrator.store.run import Run

_BLOCK_PAGES: Final = 512


_PARTS: Final = (
    ("thp_res_mapped", "mapped", "#0072B2"),
    ("nr_thp_reserved", "still reserved", "#E69F00"),
    ("thp_res_released", "released", "#CC79A7"),
    ("thp_res_filled", "filled by promotion", "#009E73"),
)


def reserved_pages(run: Run) -> Plot:
    """A waterfall: allocated pages are mapped, still reserved, released, or filled by a promotion."""
    name, title = "reserved-pages", "What happened to the pages of reservations"
    ok = run.ok_cells
    ok = ok[ok["role"] != "control"]
    names = ["thp_res_alloc", *(counter for counter, _, _ in _PARTS)]
    samples = run.samples_of(cells=ok["cell"].tolist(), phases=("after",), counters=names)
    samples = samples[samples["node"].isna() & samples["source"].str.contains("vmstat")]
    if samples.empty:
        return Plot(name, title, reason="no kernel of this run has the counters thp_res_*")
    samples = samples.sort_values("guest_s", kind="stable").merge(
        ok[["cell", "variant", "workload", "repetition"]]
    )
    last = (
        samples.groupby(["workload", "variant", "repetition", "counter"], sort=False)["value"]
        .last()
        .unstack("counter")
    )
    last = last.reindex(columns=names).fillna(0)
    # One repetition, not a median of each counter: medians need not add up.
    first = last.groupby(["workload", "variant"], sort=False).head(1)
    first = first[first["thp_res_alloc"] > 0]
    if first.empty:
        return Plot(name, title, reason="there was no reservation in this run")
    figure = titled_figure(run, title, "first repetition", 1.6 + 1.75 * len(first))
    axes = figure.subplots(len(first), 1, squeeze=False)
    order = list(run.manifest.workloads)
    rows = sorted(first.reset_index().to_dict("records"), key=lambda row: order.index(row["workload"]))
    for axis, row in zip(axes[:, 0], rows, strict=True):
        _waterfall_panel(axis, f"{row['variant']}: {title_of(run, str(row['workload']))}", row)
    axes[-1, 0].set_xlabel("base pages")
    return Plot(name, title, figure)


def _waterfall_panel(axis: Axes, title: str, row: Mapping[Hashable, Any]) -> None:
    total = _BLOCK_PAGES * float(row["thp_res_alloc"])
    bars = [("allocated", 0.0, total, "#555555")]
    start = 0.0
    for counter, label, colour in _PARTS:
        bars.append((label, start, float(row[counter]), colour))
        start += float(row[counter])
    for position, (_, left, width, colour) in enumerate(bars):
        axis.barh(position, width, left=left, height=0.66, color=colour)
        share = "" if position == 0 else f" ({width / total:.1%})"
        axis.annotate(
            f"{counted(int(width))}{share}", (left + width, position), xytext=(6, 0), textcoords="offset points",
            va="center", fontsize=10,
        )  # fmt: skip
        if position + 1 < len(bars) and position > 0:
            axis.plot([left + width] * 2, [position, position + 1], color="#999999", linewidth=0.8)
    if start != total:
        title += f" (the parts add up to {counted(int(start))}: counters broken)"
    axis.set_title(title)
    axis.set_yticks(range(len(bars)), [bar[0] for bar in bars])
    axis.set_ylim(len(bars) - 0.5, -0.5)
    axis.set_xlim(0, max(total, start) * 1.22)
    axis.xaxis.set_major_formatter(short_numbers())
    axis.grid(axis="y", visible=False)
