# SPDX-License-Identifier: GPL-2.0-only
"""Plots of a run, as PNG and SVG, readable at a width of 1000 pixels.

A run without the data of a plot lacks that plot, and says why in ``absent.txt``. The same run gives the same
bytes. Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), told apart by marker and line as well.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator, SymmetricalLogLocator

from orchestrator.analysis.notation import CLOCKS, folded
from orchestrator.store.run import Run

_WIDTH_IN: Final = 10.0  # 1000 pixels at the 100 dpi that the type sizes are chosen for
_STYLE: Final[dict[str, Any]] = {
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "font.size": 11,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.hashsalt": "orchestrate",
    "svg.fonttype": "path",
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so the figure is the same on every host
}
_BASELINE: Final = "#000000"
_CONTROL: Final = "#7f7f7f"
_PATCHED: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES: Final = ("-", "--", "-.", ":")

_COLUMNS: Final = 4
_MOST_NODES: Final = 8
_MOST_COUNTERS: Final = 26
_BLOCK_PAGES: Final = 512
_PAGES_PER_MIB: Final = 256

_MEMORY: Final = ("MemFree", "MemAvailable", "nr_thp_reserved")
#: Counters of /proc/vmstat that the dumbbell plot looks at, beside every thp_*.
_EVENTS: Final = (
    "nr_thp_reserved", "pgfault", "pgmajfault", "pgalloc_normal", "pgalloc_dma32", "pgfree", "compact_stall",
    "compact_success", "compact_fail", "allocstall_normal", "allocstall_movable", "pgscan_kswapd", "pgscan_direct",
    "pgsteal_kswapd", "pgsteal_direct", "pswpout", "pswpin", "oom_kill", "drop_pagecache",
)  # fmt: skip


@dataclass(frozen=True)
class _Look:
    colour: str
    marker: str
    line: str


@dataclass(frozen=True)
class Plot:
    """One plot.

    Args:
        name: of its files, without the ending.
        title: also the text for a reader who cannot see it.
        figure: None where there is nothing to draw.
        reason: why there is none.
    """

    name: str
    title: str
    figure: Figure | None = None
    reason: str = ""


def plot_run(run: Run, out_dir: Path) -> list[Path]:
    """Draw every plot that `run` has the data for.

    Args:
        out_dir: made where it does not exist; plots that are not there any more are removed from it.

    Returns:
        The files, PNG and SVG of each plot beside each other.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    absent: list[str] = []
    with _style():
        for plot in plots_of(run):
            files = [out_dir / f"{plot.name}.png", out_dir / f"{plot.name}.svg"]
            for file in files:
                file.unlink(missing_ok=True)
            if plot.figure is None:
                absent.append(f"{plot.name}: {plot.reason}")
                continue
            _settle(plot.figure)
            plot.figure.savefig(files[0], metadata={"Software": None, "Title": plot.title})
            plot.figure.savefig(
                files[1], metadata={"Date": None, "Creator": "orchestrate", "Title": plot.title}
            )
            paths += files
    notice = out_dir / "absent.txt"
    notice.unlink(missing_ok=True)
    if absent:
        notice.write_text("\n".join(absent) + "\n", encoding="utf-8")
    return paths


def plots_of(run: Run) -> list[Plot]:
    """Every plot of `run`, drawn or with the reason why it is not."""
    looks = _looks(run)
    with _style():
        return [
            _survivors(run, looks),
            *_memory(run, looks),
            *_latency(run, looks),
            *_counters(run, looks),
            _waterfall(run),
        ]


def _style() -> AbstractContextManager[None]:
    # The stubs want a literal of all of matplotlib's parameters.
    return mpl.rc_context(cast("Any", _STYLE))


def _settle(figure: Figure) -> None:
    """Lay out once and keep that, rounded: the solver's last bits differ from one time to the next, and the
    names inside an SVG are hashes of coordinates."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axis in figure.axes:
        left, bottom, width, height = (
            round(float(bound), 5) for bound in axis.get_position(original=True).bounds
        )
        axis.set_position((left, bottom, width, height))


def _looks(run: Run) -> dict[str, _Look]:
    looks: dict[str, _Look] = {}
    patched = 0
    for index, variant in enumerate(run.manifest["variants"]):
        role, marker = variant["role"], _MARKERS[index % len(_MARKERS)]
        if role == "baseline":
            look = _Look(_BASELINE, marker, "-")
        elif role == "control":
            look = _Look(_CONTROL, marker, ":")
        else:
            line = _LINES[patched % len(_LINES)]
            look = _Look(_PATCHED[patched % len(_PATCHED)], marker, line)
            patched += 1
        looks[str(variant["name"])] = look
    return looks


def _ok_cells(run: Run) -> pd.DataFrame:
    cells = run.cells
    return cells[cells["outcome"] == "ok"]


def _where(run: Run) -> str:
    """The line under every title: what the figures were measured on."""
    topology = (run.manifest.get("topology") or {}).get("text", "")
    accelerator = run.manifest.get("accelerator") or {}
    kernel = (run.manifest.get("source") or {}).get("version") or ""
    clock = CLOCKS.get(accelerator.get("clock"), "")
    parts = [
        f"{topology} guest",
        f"Linux {kernel}" if kernel else "",
        f"{accelerator.get('name', '')}, {clock}",
    ]
    return " · ".join(part for part in parts if part)


def _figure(run: Run, title: str, note: str, height_in: float) -> Figure:
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    figure.suptitle(f"{title}\n", x=0.012, ha="left", fontsize=14, fontweight="bold", linespacing=1.5)
    # A second, smaller line in the space that the title's newline made.
    under = " · ".join(part for part in (_where(run), note) if part)
    figure.text(0.012, 1 - 0.36 / height_in, under, ha="left", va="top", fontsize=10, color="#444444")
    return figure


def _space(figure: Figure) -> None:
    """Room between panels, so that the title of one does not run into the next."""
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(wspace=0.05, w_pad=0.08, h_pad=0.06)


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend below everything, of as many columns as its longest entry leaves room for."""
    names = [folded(label, 30) for label in labels]
    longest = max((len(line) for name in names for line in name.splitlines()), default=1)
    columns = max(1, min(len(names), 4, 110 // (longest + 7)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns)


def _title_of(run: Run, workload: str) -> str:
    return str(run.manifest["workloads"].get(workload, {}).get("title") or workload)


# --- survivors -----------------------------------------------------------------------------------------------


def _survivors(run: Run, looks: Mapping[str, _Look]) -> Plot:
    name, title = "survivors", "Children that fit into memory"
    metrics = run.metrics
    metrics = metrics[
        metrics["metric"].str.startswith("survivors") & metrics["cell"].isin(_ok_cells(run)["cell"])
    ]
    if metrics.empty:
        return Plot(name, title, reason="no cell that ended ok has a metric survivors*")
    panels = list(dict.fromkeys(zip(metrics["workload"], metrics["metric"], strict=True)))
    shown = [variant for variant in looks if variant in set(metrics["variant"])]
    figure = _figure(
        run,
        title,
        "a point a fresh boot, the bar is the median",
        1.7 + len(shown) * 0.42 * -(-len(panels) // 2),
    )
    columns = min(2, len(panels))
    _space(figure)
    axes = figure.subplots(-(-len(panels) // columns), columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (workload, metric) in zip(axes.flat, panels, strict=False):
        facts = run.manifest["workloads"].get(workload, {}).get("metrics", {}).get(metric, {})
        own = metrics[(metrics["workload"] == workload) & (metrics["metric"] == metric)]
        axis.set_title(textwrap.fill(str(facts.get("help") or metric), 40))
        for row, variant in enumerate(shown):
            values = own.loc[own["variant"] == variant, "value"].to_numpy(dtype=float)
            if not values.size:
                continue
            look = looks[variant]
            middle = float(np.median(values))
            axis.barh(row, middle, height=0.62, color=look.colour, alpha=0.22, linewidth=0)
            axis.plot([middle] * 2, [row - 0.31, row + 0.31], color=look.colour, linewidth=2.5)
            spread = np.linspace(-0.17, 0.17, values.size) if values.size > 1 else np.zeros(1)
            axis.plot(
                values, row + spread, look.marker, color=look.colour, markersize=5, alpha=0.8, clip_on=False
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
        axis.set_xlabel(f"{metric} ({facts.get('unit') or 'children'})")
        axis.grid(axis="y", visible=False)
    return Plot(name, title, figure)


# --- memory over time ----------------------------------------------------------------------------------------


def _memory(run: Run, looks: Mapping[str, _Look]) -> Iterator[Plot]:
    name, title = "memory", "Memory over time"
    workload = next((each for each in run.manifest["workloads"] if each.startswith("chunk")), None)
    workload = workload or next(iter(run.manifest["workloads"]), None)
    ok = _ok_cells(run)
    ok = ok[(ok["workload"] == workload) & (ok["role"] != "control")]
    if ok.empty:
        yield Plot(name, title, reason=f"no cell of workload {workload} ended ok")
        return
    # The repetition that most variants have.
    repetition = int(ok["repetition"].mode().min())
    chosen = ok[ok["repetition"] == repetition]
    samples = run.samples_of(cells=chosen["cell"].tolist(), counters=_MEMORY)
    if (samples["phase"] == "during").any():
        # An idle guest's clock leaps under icount, so before and after may lie minutes away.
        samples = samples[samples["phase"] == "during"]
    if samples.empty:
        yield Plot(
            name, title, reason=f"the cells of workload {workload} have no samples of {', '.join(_MEMORY)}"
        )
        return
    cells = [
        (variant, str(own.iloc[0]["cell"]))
        for variant in looks
        if not (own := chosen[chosen["variant"] == variant]).empty
    ]
    groups = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
    nodes = sorted({int(node) for node in samples["node"].dropna()})[:_MOST_NODES]
    for number, group in enumerate(groups, 1):
        part = f" ({number} of {len(groups)})" if len(groups) > 1 else ""
        drawn = _memory_figure(
            run, f"{title}: {_title_of(run, str(workload))}{part}", group, nodes, samples, repetition
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
    figure = _figure(run, title, f"repetition {repetition}", 2.2 + 1.9 + 1.25 * len(nodes))
    ratios = [1.6] + [1.0] * len(nodes)
    spans = [float(np.ptp(samples.loc[samples["cell"] == cell, "guest_s"])) for _, cell in cells]
    # The same time axis shows that one takes longer; not where that would squeeze another to nothing.
    shared: Literal["all", "col"] = "all" if max(spans) <= 8 * min(spans) else "col"
    axes = figure.subplots(rows, len(cells), sharex=shared, sharey="row", squeeze=False, height_ratios=ratios)
    lines = (
        ("MemAvailable", "available", "#009E73", "--"),
        ("MemFree", "free", "#0072B2", "-"),
        ("nr_thp_reserved", "reserved", "#D55E00", "-"),
    )
    for column, (variant, cell) in enumerate(cells):
        own = samples[samples["cell"] == cell]
        began = float(own["guest_s"].min())
        for row, node in enumerate((None, *nodes)):
            axis: Axes = axes[row, column]
            for counter, label, colour, style in lines:
                series = _series(own, counter, node)
                if series is not None:
                    mib = series["value"] / (_PAGES_PER_MIB if counter.startswith("nr_") else 1024)
                    axis.plot(series["guest_s"] - began, mib, style, color=colour, label=label, linewidth=1.6)
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
    _legend(figure, list(handles.values()), list(handles))
    return figure


def _series(samples: pd.DataFrame, counter: str, node: int | None) -> pd.DataFrame | None:
    """The readings of one counter in the order of time, from one source where several print it."""
    of_counter = samples[samples["counter"] == counter]
    own = _one_source(of_counter[of_counter["node"].isna() if node is None else of_counter["node"] == node])
    if node is None:
        by_node = (
            _one_source(of_counter[of_counter["node"].notna()])
            .groupby("guest_s", as_index=False)["value"]
            .sum()
        )
        if len(by_node) > len(own):  # the sampler read the nodes' files more often than the machine's
            return pd.DataFrame(by_node)
    return None if own.empty else own.sort_values("guest_s", kind="stable")


def _one_source(samples: pd.DataFrame) -> pd.DataFrame:
    """Those of one file: vmstat and zoneinfo print the same counter of a node."""
    if samples.empty:
        return samples
    source = min(samples["source"], key=lambda each: ("vmstat" not in each, "meminfo" not in each, each))
    return pd.DataFrame(samples[samples["source"] == source])


# --- fault latency -------------------------------------------------------------------------------------------

_Buckets = dict[tuple[float, float], int]


def _latency(run: Run, looks: Mapping[str, _Look]) -> Iterator[Plot]:
    name, title = "fault-latency", "Fault latency"
    found: dict[str, dict[str, dict[str, _Buckets]]] = {}
    units: dict[tuple[str, str], str] = {}
    for cell in _ok_cells(run).itertuples():
        for record in _histograms(run.log_directory(str(cell.cell)) / "workload.jsonl"):
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
        drawn = _latency_figure(
            run, f"{title}: {_title_of(run, workload)}", workload, histograms, units, looks
        )
        yield Plot(f"{name}-{workload}" if len(found) > 1 else name, title, drawn)


def _latency_figure(
    run: Run,
    title: str,
    workload: str,
    histograms: Mapping[str, Mapping[str, _Buckets]],
    units: Mapping[tuple[str, str], str],
    looks: Mapping[str, _Look],
) -> Figure:
    columns = min(2, len(histograms))
    rows = -(-len(histograms) // columns)
    figure = _figure(run, title, "all repetitions together", 1.5 + 3.7 * rows)
    _space(figure)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(histograms) :]:
        axis.set_visible(False)
    for axis, (histogram, by_variant) in zip(axes.flat, histograms.items(), strict=False):
        faults = 0
        for variant, look in looks.items():
            buckets = {edges: count for edges, count in by_variant.get(variant, {}).items() if count}
            if not buckets:
                continue
            edges, share = _cumulative(buckets)
            faults = max(faults, sum(buckets.values()))
            # Wide and pale below the others, for a variant that costs the same hides it otherwise.
            broad = {"linewidth": 5.0, "alpha": 0.35} if look.colour == _BASELINE else {"linewidth": 1.7}
            axis.plot(edges, share, look.line, color=look.colour, label=variant, **cast("Any", broad))
        for level, text in ((0.5, "p50"), (0.99, "p99")):
            axis.axhline(level, color="#888888", linewidth=0.8, linestyle=(0, (1, 2)))
            axis.annotate(
                text, (1, level), xycoords=("axes fraction", "data"), xytext=(-2, -3), textcoords="offset points",
                ha="right", va="top", fontsize=9, color="#555555",
            )  # fmt: skip
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set_ylim(0, 1.02)
        facts = run.manifest["workloads"].get(workload, {}).get("metrics", {}).get(f"{histogram}.p50", {})
        named = textwrap.fill(str(facts.get("help") or histogram), 48)
        axis.set_title(f"{named}\n{_counted(faults)} a variant")
        unit = units[workload, histogram]
        axis.set_xlabel({"insns": "guest instructions", "ns": "nanoseconds"}.get(unit, unit))
        axis.tick_params(labelbottom=True)
    # A single interrupted fault would squeeze all others: what is rarer than one of 1000 is left out.
    ranges = [
        _range(buckets) for by_variant in histograms.values() for buckets in by_variant.values() if buckets
    ]
    axes[0, 0].set_xlim(min(low for low, _ in ranges) / 1.1, max(high for _, high in ranges) * 1.1)
    _readable_log_ticks(axes[0, 0])
    for axis in axes[:, 0]:
        axis.set_ylabel("share of faults at or below")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    _legend(figure, handles, labels)
    return figure


def _range(buckets: _Buckets) -> tuple[float, float]:
    """Where all but one of a thousand are, at either end."""
    edges, share = _cumulative({edges: count for edges, count in buckets.items() if count})
    low = edges[max(0, int(np.searchsorted(share, 0.001, side="right")) - 1)]
    high = edges[min(len(edges) - 1, int(np.searchsorted(share, 0.999)))]
    return float(low), float(high)


def _readable_log_ticks(axis: Axes) -> None:
    """Labels at 1, 2, 5 of each decade, where decades alone would leave one or two."""
    low, high = axis.get_xlim()
    steps = [step * 10.0**power for power in range(-3, 13) for step in (1, 2, 5)]
    inside = [step for step in steps if low <= step <= high]
    axis.set_xticks(inside if len(inside) <= 8 else [step for step in inside if f"{step:e}"[0] == "1"])
    axis.xaxis.set_minor_locator(NullLocator())


def _counted(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _histograms(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line that the guest did not finish
        if (
            not isinstance(record, dict)
            or "histogram" not in record
            or not isinstance(record.get("buckets"), list)
        ):
            continue
        if all(isinstance(bucket, list) and len(bucket) == 3 for bucket in record["buckets"]):
            yield record


def _cumulative(buckets: _Buckets) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The distribution at the edges of the buckets: within one, values are taken to be spread evenly."""
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
    # A logarithmic axis has no place for zero.
    return np.maximum(np.array(edges), 0.5), np.array(share)


# --- counters ------------------------------------------------------------------------------------------------


def _counters(run: Run, looks: Mapping[str, _Look]) -> Iterator[Plot]:
    name, title = "counters", "Counters before and after"
    ok = _ok_cells(run)
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
    for workload in run.manifest["workloads"]:
        if workload not in set(samples["workload"]):
            continue
        table = medians.loc[workload].unstack("phase")
        figure = _counter_figure(run, f"{title}: {_title_of(run, workload)}", table, looks)
        if figure is None:
            yield Plot(f"{name}-{workload}", title, reason=f"no counter moved in workload {workload}")
        else:
            yield Plot(f"{name}-{workload}", f"{title}: {workload}", figure)


def _counter_figure(run: Run, title: str, table: pd.DataFrame, looks: Mapping[str, _Look]) -> Figure | None:
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
    figure = _figure(run, title, note, 1.9 + row_height * len(counters))
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
    _legend(figure, handles, variants)
    return figure


def _counter_order(counter: str) -> tuple[int, str]:
    """The series' own counters first, then those of THP, then the others."""
    own = counter.startswith("thp_res_") or counter == "nr_thp_reserved"
    return (0 if own else 1 if counter.startswith("thp_") else 2, counter)


# --- where reserved pages went -------------------------------------------------------------------------------

_PARTS: Final = (
    ("thp_res_mapped", "mapped", "#0072B2"),
    ("nr_thp_reserved", "still reserved", "#E69F00"),
    ("thp_res_released", "released", "#CC79A7"),
    ("thp_res_filled", "filled at promotion", "#009E73"),
)


def _waterfall(run: Run) -> Plot:
    name, title = "reserved-pages", "Where the pages of reservations went"
    ok = _ok_cells(run)
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
        return Plot(name, title, reason="no reservation was made in this run")
    figure = _figure(run, title, "first repetition", 1.6 + 1.75 * len(first))
    axes = figure.subplots(len(first), 1, squeeze=False)
    order = list(run.manifest["workloads"])
    rows = sorted(first.reset_index().to_dict("records"), key=lambda row: order.index(row["workload"]))
    for axis, row in zip(axes[:, 0], rows, strict=True):
        _waterfall_panel(axis, f"{row['variant']}: {_title_of(run, str(row['workload']))}", row)
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
            f"{_counted(int(width))}{share}", (left + width, position), xytext=(6, 0), textcoords="offset points",
            va="center", fontsize=10,
        )  # fmt: skip
        if position + 1 < len(bars) and position > 0:
            axis.plot([left + width] * 2, [position, position + 1], color="#999999", linewidth=0.8)
    if start != total:
        title += f" (the parts add up to {_counted(int(start))}: counters broken)"
    axis.set_title(title)
    axis.set_yticks(range(len(bars)), [bar[0] for bar in bars])
    axis.set_ylim(len(bars) - 0.5, -0.5)
    axis.set_xlim(0, max(total, start) * 1.22)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(axis="y", visible=False)
