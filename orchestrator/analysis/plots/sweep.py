# SPDX-License-Identifier: GPL-2.0-only
"""Plots of a sweep: one panel per primary metric by the values of a knob, with the baseline as a line."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from orchestrator.analysis.plots.style import (
    BASELINE,
    PATCHED,
    Plot,
    panel_figure,
    short_numbers,
    values_of,
)
from orchestrator.analysis.statistics import median_ends, sign_interval
from orchestrator.store.manifest import Role
from orchestrator.store.observation import Metric
from orchestrator.store.run import Run

#: Fewest values for a curve.
_LEAST_VALUES = 3
#: From this ratio of the largest to the smallest value on, the axis is logarithmic.
_LOG_FROM = 8
_LEAST_OCTAVES = 0.75


@dataclass(frozen=True)
class _Sweep:
    """Variants that differ in the value of one knob."""

    patchset: str
    knob: str
    variants: tuple[tuple[float, str], ...]


def sweeps(run: Run) -> Iterator[Plot]:
    """One plot per knob with at least three measured values of a patchset."""
    for sweep in _sweeps_of(run):
        drawn = _figure(run, sweep)
        if drawn is not None:
            yield drawn


def _sweeps_of(run: Run) -> Iterator[_Sweep]:
    groups: dict[tuple[Any, ...], list[tuple[float, str]]] = {}
    for variant in run.manifest.variants:
        if variant.role is not Role.PATCHED:
            continue
        for knob, value in variant.knobs.items():
            if not str(value).isdigit():
                continue
            rest = tuple(sorted((k, v) for k, v in variant.knobs.items() if k != knob))
            key = (variant.patchset, knob, rest, variant.cmdline)
            groups.setdefault(key, []).append((float(value), variant.name))
    for (patchset, knob, _, _), variants in groups.items():
        if len(variants) >= _LEAST_VALUES:
            yield _Sweep(patchset, knob, tuple(sorted(variants)))


def _figure(run: Run, sweep: _Sweep) -> Plot | None:
    panels = [
        (workload, metric, facts)
        for workload, described in run.manifest.workloads.items()
        for metric, facts in described.metrics.items()
        if facts.primary and any(values_of(run, workload, metric, name).any() for _, name in sweep.variants)
    ]
    if not panels:
        return None
    title = f"{sweep.patchset} by {sweep.knob}"
    note = f"{_coverage(run, sweep, panels)}; dashed: the baseline"
    figure, axes = panel_figure(run, title, note, len(panels), heading_in=1.3, row_in=3.3, sharex=True)
    for axis, (workload, metric, facts) in zip(axes.flat, panels, strict=False):
        _panel(axis, run, sweep, workload, metric, facts)
    name = f"sweep-{sweep.patchset}-{sweep.knob}".replace("/", "_")
    return Plot(name, title, figure)


def _panel(axis: Axes, run: Run, sweep: _Sweep, workload: str, metric: str, facts: Metric) -> None:
    points = [
        (x, values) for x, name in sweep.variants if (values := values_of(run, workload, metric, name)).size
    ]
    places = [x for x, _ in points]
    middles = [float(np.median(values)) for _, values in points]
    bounds = [median_ends(values) for _, values in points]
    axis.fill_between(
        places,
        [low for low, _ in bounds],
        [high for _, high in bounds],
        color=PATCHED[0],
        alpha=0.25,
        linewidth=0,
    )
    axis.plot(places, middles, "o-", color=PATCHED[0], markersize=5)
    baseline = run.manifest.name_of(Role.BASELINE)
    baseline_values = values_of(run, workload, metric, baseline) if baseline else np.empty(0)
    if baseline_values.size:
        low, high = median_ends(baseline_values)
        axis.axhspan(low, high, color=BASELINE, alpha=0.12, linewidth=0)
        axis.axhline(float(np.median(baseline_values)), color=BASELINE, linestyle="--", linewidth=1.2)
    if max(places) >= _LOG_FROM * max(min(places), 1):
        axis.set_xscale("log", base=2)
        labelled = places[:1]
        for place in places[1:]:  # if two are close, only the first is labelled
            if place >= labelled[-1] * 2**_LEAST_OCTAVES:
                labelled.append(place)
        axis.set_xticks(places, [f"{place:g}" if place in labelled else "" for place in places])
    else:
        axis.set_xticks(places, [f"{place:g}" for place in places])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(short_numbers())
    axis.set_ylim(bottom=0)
    arrow = {"lower": "less is better", "higher": "more is better", None: ""}[facts.better]
    axis.set_title(textwrap.fill(f"{workload}: {facts.help}", 44), fontsize=10)
    axis.set_ylabel(f"{metric}\n({facts.unit}{'; ' if arrow else ''}{arrow})", fontsize=10)
    axis.set_xlabel(sweep.knob)
    axis.tick_params(labelbottom=True)


def _coverage(run: Run, sweep: _Sweep, panels: Sequence[tuple[str, str, Metric]]) -> str:
    """The meaning of the band, with the coverage of the intervals for this number of boots."""
    sizes = [
        values_of(run, workload, metric, name).size
        for workload, metric, _ in panels
        for _, name in sweep.variants
    ]
    fewest = min(size for size in sizes if size)
    if fewest < 3:
        return "median; the band is the range of the boots"
    _, confidence = sign_interval(fewest)
    return f"median with an interval that covers it in {int(1000 * confidence) / 10:g}% of runs or more"
