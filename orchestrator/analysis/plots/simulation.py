# SPDX-License-Identifier: GPL-2.0-only
"""Plot of the simulated chunk test by threshold, with measured values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from orchestrator.analysis.chunk_measured import MeasuredPoint
from orchestrator.analysis.plots.style import PATCHED, settle, space_panels, style, write_figure
from orchestrator.model.chunk_test import ChunkTestResult

_SIZE_IN = (10.0, 4.6)


def draw_simulation(
    thresholds: Sequence[int],
    none: Sequence[ChunkTestResult],
    every: Sequence[ChunkTestResult],
    points: Sequence[MeasuredPoint],
    under: str,
    path: Path,
) -> list[Path]:
    """Draw survivors and promotions by threshold.

    Args:
        none, every: results by threshold if no range at the threshold is promoted in time, and if all are.
        points: measured values.
        under: subtitle: the machine.
        path: path of the files, without suffix.

    Returns:
        The files: PNG and SVG.
    """
    with style():
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        figure.suptitle("The chunk test, calculated\n", x=0.012, ha="left", fontsize=14, fontweight="bold")
        figure.text(0.012, 1 - 0.38 / _SIZE_IN[1], under, ha="left", va="top", fontsize=10, color="#444444")
        space_panels(figure)
        left, right = figure.subplots(1, 2)
        _panel(left, thresholds, "children that fit")
        low, high = [each.survivors for each in every], [each.survivors for each in none]
        left.fill_between(thresholds, low, high, color=PATCHED[0], alpha=0.12, linewidth=0)
        left.plot(thresholds, high, "-o", color=PATCHED[0], markersize=4, label="none promoted in time")
        left.plot(thresholds, low, "--o", color=PATCHED[1], markersize=4, label="all promoted in time")
        _panel(right, thresholds, "ranges of the survivors at the threshold")
        right.plot(thresholds, [each.promotions for each in none], "-o", color=PATCHED[0], markersize=4)
        right.plot(thresholds, [each.promotions for each in every], "--o", color=PATCHED[1], markersize=4)
        if points:
            at = [point.threshold for point in points]
            marks = {"color": "black", "markersize": 11, "markerfacecolor": "none", "linestyle": "none"}
            left.plot(at, [point.survivors for point in points], marker="*", label="measured", **marks)
            right.plot(at, [point.promotions for point in points], marker="*", **marks)
        for axis in (left, right):
            axis.set_ylim(bottom=0)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        settle(figure)
        files = [path.with_suffix(".png"), path.with_suffix(".svg")]
        for file in files:
            write_figure(figure, file)
    return files


def _panel(axis: Axes, thresholds: Sequence[int], title: str) -> None:
    axis.set_title(title)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator([float(each) for each in thresholds]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set_xlabel("promotion threshold, pages")
    axis.tick_params(axis="x", rotation=40)
