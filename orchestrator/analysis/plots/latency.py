# SPDX-License-Identifier: GPL-2.0-only
"""Distributions of measured times, on a logarithmic axis."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from orchestrator.analysis.notation import CLOCKS
from orchestrator.analysis.plots.style import (
    BASELINE,
    Pen,
    Plot,
    counted,
    legend_below,
    panel_figure,
    short_numbers,
    title_of,
)
from orchestrator.store.run import Run

_Buckets = dict[tuple[float, float], int]


def fault_latency(run: Run, pens: Mapping[str, Pen]) -> Iterator[Plot]:
    """One plot per workload with histograms: their cumulative distributions."""
    name, title = "fault-latency", "Fault latency"
    found: dict[str, dict[str, dict[str, _Buckets]]] = {}
    units: dict[tuple[str, str], str] = {}
    for cell in run.ok_cells.itertuples():
        for record in _histograms(run, str(cell.cell)):
            if not any(count for _, _, count in record["buckets"]):
                continue
            by_histogram = found.setdefault(str(cell.workload), {})
            buckets = by_histogram.setdefault(str(record["histogram"]), {}).setdefault(str(cell.variant), {})
            units[str(cell.workload), str(record["histogram"])] = str(record.get("unit", ""))
            for low, high, count in record["buckets"]:
                buckets[float(low), float(high)] = buckets.get((float(low), float(high)), 0) + int(count)
    if not found:
        yield Plot(name, title, reason="no workload that ended ok left a histogram in its workload.jsonl")
    for workload, histograms in found.items():
        drawn = _latency_figure(run, title_of(run, workload), workload, histograms, units, pens)
        yield Plot(f"{name}-{workload}" if len(found) > 1 else name, title, drawn)


def _latency_figure(
    run: Run,
    title: str,
    workload: str,
    histograms: Mapping[str, Mapping[str, _Buckets]],
    units: Mapping[tuple[str, str], str],
    pens: Mapping[str, Pen],
) -> Figure:
    figure, axes = panel_figure(
        run,
        title,
        "all repetitions together",
        len(histograms),
        heading_in=1.5,
        row_in=3.7,
        columns=min(2, len(histograms)),
        sharex=True,
        sharey=True,
    )
    for axis, (histogram, by_variant) in zip(axes.flat, histograms.items(), strict=False):
        faults: dict[str, int] = {}
        for variant, pen in pens.items():
            buckets = {edges: count for edges, count in by_variant.get(variant, {}).items() if count}
            if not buckets:
                continue
            edges, share = _cumulative(buckets)
            faults[variant] = sum(buckets.values())
            # Wide and pale in the background, since a variant with the same cost would hide it.
            broad = {"linewidth": 5.0, "alpha": 0.35} if pen.colour == BASELINE else {"linewidth": 1.7}
            axis.plot(edges, share, pen.line, color=pen.colour, label=variant, **cast("Any", broad))
        for level, text in ((0.5, "p50"), (0.99, "p99")):
            axis.axhline(level, color="#888888", linewidth=0.8, linestyle=(0, (1, 2)))
            axis.annotate(
                text, (1, level), xycoords=("axes fraction", "data"), xytext=(-2, -3), textcoords="offset points",
                ha="right", va="top", fontsize=9, color="#555555",
            )  # fmt: skip
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(short_numbers())
        axis.set_ylim(0, 1.02)
        facts = run.manifest.metric(workload, f"{histogram}.p50")
        named = textwrap.fill((facts and facts.help) or histogram, 48)
        axis.set_title(f"{named}\n{_numbers(faults)}", fontsize=10)
        unit = units[workload, histogram]
        axis.set_xlabel(CLOCKS.get(unit, unit))
        axis.tick_params(labelbottom=True)
    # A single interrupted fault would compress the axis: omit the rarest 0.1 %.
    ranges = [
        _range(buckets) for by_variant in histograms.values() for buckets in by_variant.values() if buckets
    ]
    axes[0, 0].set_xlim(min(low for low, _ in ranges) / 1.1, max(high for _, high in ranges) * 1.1)
    _readable_log_ticks(axes[0, 0])
    for axis in axes[:, 0]:
        axis.set_ylabel("share of faults at or below")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    legend_below(figure, handles, labels)
    return figure


def _numbers(faults: Mapping[str, int]) -> str:
    """The number of faults in the curves: one number if it is the same for all variants, else one per variant."""
    if len(set(faults.values())) < 2:
        return f"{counted(next(iter(faults.values()), 0))} faults per variant"
    return textwrap.fill(
        "faults: " + ", ".join(f"{variant} {counted(number)}" for variant, number in faults.items()), 60
    )


def _range(buckets: _Buckets) -> tuple[float, float]:
    """The interval without the smallest and the largest 0.1 %."""
    edges, share = _cumulative({edges: count for edges, count in buckets.items() if count})
    low = edges[max(0, int(np.searchsorted(share, 0.001, side="right")) - 1)]
    high = edges[min(len(edges) - 1, int(np.searchsorted(share, 0.999)))]
    return float(low), float(high)


def _readable_log_ticks(axis: Axes) -> None:
    """Labels at 1, 2 and 5 of each decade, if decades alone would give only one or two labels."""
    low, high = axis.get_xlim()
    steps = [step * 10.0**power for power in range(-3, 13) for step in (1, 2, 5)]
    inside = [step for step in steps if low <= step <= high]
    axis.set_xticks(inside if len(inside) <= 8 else [step for step in inside if f"{step:e}"[0] == "1"])
    axis.xaxis.set_minor_locator(NullLocator())


def _histograms(run: Run, cell: str) -> Iterator[dict[str, Any]]:
    for record in run.workload_records(cell):
        buckets = record.get("buckets")
        if "histogram" not in record or not isinstance(buckets, list):
            continue
        if all(isinstance(bucket, list) and len(bucket) == 3 for bucket in buckets):
            yield record


def _cumulative(buckets: _Buckets) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The distribution at the edges of the buckets; within a bucket, values are assumed to be uniform."""
    ordered = sorted(buckets)
    total = sum(buckets.values())
    edges, share, below = [ordered[0][0]], [0.0], 0
    for low, high in ordered:
        if low > edges[-1]:
            edges.append(low)
            share.append(below / total)
        below += buckets[low, high]
        edges.append(high)
        share.append(below / total)
    # A logarithmic axis has no zero.
    return np.maximum(np.array(edges), 0.5), np.array(share)
