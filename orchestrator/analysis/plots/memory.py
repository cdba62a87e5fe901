# SPDX-License-Identifier: GPL-2.0-only
"""Memory over time, for the machine and each node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orchestrator.analysis.notation import folded
from orchestrator.analysis.plots.style import (
    Pen,
    Plot,
    legend_below,
    title_of,
    titled_figure,
)
from orchestrator.store.run import Run

_RESERVED: Final = "nr_thp_reserved"
_MEMORY: Final = ("MemFree", "MemAvailable", _RESERVED)
_COLUMNS: Final = 4
#: Events of a workload that occur more often than this are progress, and are not marked.
_RARE: Final = 3
_BEGINNING: Final = 0.05
_NS_PER_S: Final = 1e9
_MOST_NODES: Final = 8
_PAGES_PER_MIB: Final = 256


def memory_over_time(run: Run, pens: Mapping[str, Pen]) -> Iterator[Plot]:
    """Free, available and reserved memory while the chunk test, or the first workload, ran."""
    name, title = "memory", "Memory over time"
    workload = next((each for each in run.manifest.workloads if each.startswith("chunk")), None)
    workload = workload or next(iter(run.manifest.workloads), None)
    ok = run.ok_cells
    ok = ok[(ok["workload"] == workload) & (ok["role"] != "control")]
    if ok.empty:
        yield Plot(name, title, reason=f"no cell of workload {workload} ended ok")
        return
    # The repetition that most variants have.
    repetition = int(ok["repetition"].mode().min())
    chosen = ok[ok["repetition"] == repetition]
    samples = run.samples_of(cells=chosen["cell"].tolist(), counters=_MEMORY)
    if (samples["phase"] == "during").any():
        # With icount the clock of an idle guest jumps, so the readings before and after may be minutes away.
        samples = samples[samples["phase"] == "during"]
    if samples.empty:
        yield Plot(
            name, title, reason=f"the cells of workload {workload} have no samples of {', '.join(_MEMORY)}"
        )
        return
    cells = [
        (variant, str(own.iloc[0]["cell"]))
        for variant in pens
        if not (own := chosen[chosen["variant"] == variant]).empty
    ]
    groups = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
    nodes = sorted({int(node) for node in samples["node"].dropna()})[:_MOST_NODES]
    for number, group in enumerate(groups, 1):
        part = f" ({number} of {len(groups)})" if len(groups) > 1 else ""
        drawn = _memory_figure(
            run, f"{title}: {title_of(run, str(workload))}{part}", group, nodes, samples, repetition
        )
        yield Plot(name if number == 1 else f"{name}-{number}", f"{title}{part}", drawn)


def _memory_figure(
    run: Run,
    title: str,
    cells: Sequence[tuple[str, str]],
    nodes: Sequence[int],
    samples: pd.DataFrame,
    repetition: int,
) -> Figure:
    rows = 1 + len(nodes)
    figure = titled_figure(run, title, f"repetition {repetition}", 2.2 + 1.9 + 1.25 * len(nodes))
    ratios = [1.6] + [1.0] * len(nodes)
    spans = [float(np.ptp(samples.loc[samples["cell"] == cell, "guest_s"])) for _, cell in cells]
    # Share the time axis, to show which one takes longer, unless that would compress another too much.
    shared: Literal["all", "col"] = "all" if max(spans) <= 8 * min(spans) else "col"
    axes = figure.subplots(rows, len(cells), sharex=shared, sharey="row", squeeze=False, height_ratios=ratios)
    lines = (
        ("MemAvailable", "available", "#009E73", "--"),
        ("MemFree", "free", "#0072B2", "-"),
        (_RESERVED, "reserved", "#D55E00", "-"),
    )
    for column, (variant, cell) in enumerate(cells):
        own = samples[samples["cell"] == cell]
        began = float(own["guest_s"].min())
        events = _events(run, cell, own)
        for row, node in enumerate((None, *nodes)):
            axis: Axes = axes[row, column]
            for counter, label, colour, style in lines:
                series = _series(own, counter, node)
                if series is not None:
                    mib = series["value"] / (_PAGES_PER_MIB if counter.startswith("nr_") else 1024)
                    if counter == _RESERVED:
                        # An area, so that it can be distinguished from free memory without colour.
                        axis.fill_between(
                            series["guest_s"] - began,
                            mib,
                            facecolor="#f6c9a8",
                            edgecolor=colour,
                            hatch="////",
                            linewidth=0.8,
                            label=label,
                            zorder=1.5,
                        )
                    else:
                        axis.plot(
                            series["guest_s"] - began, mib, style, color=colour, label=label, linewidth=1.6
                        )
            for number, (at, label) in enumerate(events):
                axis.axvline(at - began, color="#666666", linewidth=0.9, linestyle=(0, (4, 2)))
                if row == 0:
                    # On the side with more room.
                    late = at - began > 0.6 * (max(spans) if shared == "all" else spans[column])
                    axis.annotate(
                        label, (at - began, 0.98 - 0.1 * number), xycoords=("data", "axes fraction"),
                        xytext=(-3 if late else 3, 0), textcoords="offset points", ha="right" if late else "left",
                        va="top", fontsize=8.5, color="#333333",
                        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.75, "linewidth": 0},
                    )  # fmt: skip
            axis.set_ylim(bottom=0)
            axis.yaxis.set_major_locator(MaxNLocator(nbins=5 if row == 0 else 3))
            axis.xaxis.set_major_locator(MaxNLocator(nbins=5))
            if row == 0:
                axis.set_title(folded(variant))
            if column == 0:
                axis.set_ylabel("machine\nMiB" if node is None else f"node {node}\nMiB")
    for axis in axes[-1]:
        axis.set_xlabel("guest seconds")
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    legend_below(figure, list(handles.values()), list(handles))
    return figure


def _events(run: Run, cell: str, samples: pd.DataFrame) -> list[tuple[float, str]]:
    """Events to mark, in guest seconds: rare events of the workload, and the first reservation given up."""
    first, last = float(samples["guest_s"].min()), float(samples["guest_s"].max())
    records = [
        record for record in run.workload_records(cell) if "event" in record and "monotonic_ns" in record
    ]
    often = Counter(str(record["event"]) for record in records)
    events = [
        (float(record["monotonic_ns"]) / _NS_PER_S, str(record["event"]).replace("_", " "))
        for record in records
        if often[str(record["event"])] <= _RARE
    ]
    dumps = run.samples_of(cells=[cell], phases=("during",), counters=("thp_res_dump",))
    dumps = dumps[dumps["node"].isna()].sort_values("guest_s", kind="stable")
    grown = dumps[dumps["value"] > (dumps["value"].iloc[0] if len(dumps) else 0)]
    if len(grown):
        events.append((float(grown["guest_s"].iloc[0]), "first reservation given up"))
    # Ignore events at the start of the workload.
    begun = first + _BEGINNING * (last - first)
    return [(at, label) for at, label in events if begun < at <= last]


def _series(samples: pd.DataFrame, counter: str, node: int | None) -> pd.DataFrame | None:
    """The readings of one counter in order of time, from one source if several have it."""
    of_counter = samples[samples["counter"] == counter]
    own = _one_source(of_counter[of_counter["node"].isna() if node is None else of_counter["node"] == node])
    if node is None:
        by_node = (
            _one_source(of_counter[of_counter["node"].notna()])
            .groupby("guest_s", as_index=False)["value"]
            .sum()
        )
        if len(by_node) > len(own):  # the sampler read the files of the nodes more often
            return pd.DataFrame(by_node)
    return None if own.empty else own.sort_values("guest_s", kind="stable")


def _one_source(samples: pd.DataFrame) -> pd.DataFrame:
    """The samples of one file: vmstat and zoneinfo have the same counters per node."""
    if samples.empty:
        return samples
    source = min(samples["source"], key=lambda each: ("vmstat" not in each, "meminfo" not in each, each))
    return pd.DataFrame(samples[samples["source"] == source])
