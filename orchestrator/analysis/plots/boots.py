# SPDX-License-Identifier: GPL-2.0-only
"""The change of each boot relative to the baseline's boot of the same repetition, and the noise floor."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from orchestrator.analysis.notation import folded, percent
from orchestrator.analysis.plots.style import Pen, Plot, panel_figure
from orchestrator.analysis.statistics import Boots, noise_floor, variation
from orchestrator.store.manifest import Role
from orchestrator.store.run import Run

#: In per cent: linear up to this change, else logarithmic.
_LINEAR: Final = 1.0
_TICKS: Final = (-100.0, -10.0, -1.0, 0.0, 1.0, 10.0, 100.0, 1000.0, 10_000.0)


def boots(run: Run, pens: Mapping[str, Pen]) -> Plot:
    """One panel per primary metric, one strip per variant, the A/A control first."""
    name, title = "boots", "Every boot against the baseline"
    panels = []
    for workload, described in run.manifest.workloads.items():
        for metric, facts in described.metrics.items():
            changes = _changes(run, workload, metric) if facts.primary else None
            if changes is not None and not changes.empty:
                panels.append((workload, metric, facts.help, changes))
    if not panels:
        return Plot(
            name,
            title,
            reason="no primary metric has boots of the baseline and of a variant that can be compared",
        )
    shown = [variant for variant in pens if any(variant in changes for *_, changes in panels)]
    figure, axes = panel_figure(
        run,
        title,
        "one point per fresh boot, change relative to the baseline of the same repetition; grey band: A/A control; "
        "at the right: coefficient of variation of the boots",
        len(panels),
        heading_in=1.3,
        row_in=1.0 + 0.34 * len(shown),
        sharey=True,
    )
    for axis, (workload, metric, told, changes) in zip(axes.flat, panels, strict=False):
        _panel(axis, run, pens, shown, changes)
        axis.set_title(textwrap.fill(f"{workload} {metric}: {told}", 46), fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("change in % (linear within 1 %)")
    return Plot(name, title, figure)


def _changes(run: Run, workload: str, metric: str) -> pd.DataFrame | None:
    """Repetition x variant: change in per cent; None if the baseline is not positive."""
    metrics = run.ok_metrics
    own = metrics[(metrics["workload"] == workload) & (metrics["metric"] == metric)]
    table = own.pivot_table(index="repetition", columns="variant", values="value", aggfunc="median")
    baseline = run.manifest.name_of(Role.BASELINE)
    if baseline not in table or not (table[baseline].dropna() > 0).all():
        return None
    changes: pd.DataFrame = table.div(table[baseline], axis=0).sub(1).mul(100).drop(columns=baseline)
    changes.attrs = {
        "spread": {variant: variation(table[variant].dropna().to_numpy(float)) for variant in table},
        "floor": _floor(run, table, str(baseline)),
    }
    return changes.dropna(how="all").dropna(axis="columns", how="all")


def _floor(run: Run, table: pd.DataFrame, baseline: str) -> float | None:
    """In per cent; None without a control."""
    control = run.manifest.name_of(Role.CONTROL)
    if control not in table:
        return None
    pair = table[[baseline, control]].dropna()
    if pair.empty:
        return None
    return 100 * float(
        noise_floor(Boots(pair[baseline].to_numpy(float), pair[control].to_numpy(float))).relative
    )


def _panel(axis: Axes, run: Run, pens: Mapping[str, Pen], shown: list[str], changes: pd.DataFrame) -> None:
    floor, spread = changes.attrs["floor"], changes.attrs["spread"]
    if floor is not None:
        axis.axvspan(-floor, floor, color="#dcdcdc", linewidth=0, zorder=0)
    axis.axvline(0, color="#000000", linewidth=0.9)
    margin = 100 * run.manifest.margin
    for side in (-margin, margin):
        axis.axvline(side, color="#888888", linewidth=0.8, linestyle=(0, (2, 2)))
    for row, variant in enumerate(shown):
        if variant not in changes:
            continue
        values = changes[variant].dropna().to_numpy(float)
        pen = pens[variant]
        lifted = row + (np.linspace(-0.22, 0.22, values.size) if values.size > 1 else np.zeros(1))
        axis.plot(values, lifted, pen.marker, color=pen.colour, markersize=4.5, alpha=0.85, clip_on=False)
        axis.plot([np.median(values)] * 2, [row - 0.34, row + 0.34], color=pen.colour, linewidth=2)
        if spread.get(variant) is not None:
            axis.annotate(
                percent(spread[variant], signed=False), (1.0, row), xycoords=("axes fraction", "data"),
                xytext=(4, 0), textcoords="offset points", va="center", fontsize=9, color="#444444",
            )  # fmt: skip
    ends = [
        float(changes.min().min()),
        float(changes.max().max()),
        -(floor or 0.0),
        floor or 0.0,
        -margin,
        margin,
    ]
    axis.set_xscale("symlog", linthresh=_LINEAR, linscale=1.0)
    low, high = min(ends), max(ends)
    axis.set_xlim(low * 1.6 - 0.1, high * 1.6 + 0.1)
    ticks = [tick for tick in _TICKS if low * 1.6 - 0.1 <= tick <= high * 1.6 + 0.1]
    axis.set_xticks(ticks, [f"{tick:+g}" if tick else "0" for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_yticks(range(len(shown)), [folded(variant) for variant in shown])
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
