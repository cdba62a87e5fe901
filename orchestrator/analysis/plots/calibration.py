# SPDX-License-Identifier: GPL-2.0-only
"""Plot of a calibration: base pages relative to a huge page by density, on a processor and in instructions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from orchestrator.analysis.calibration import DENSITIES, Calibration
from orchestrator.analysis.plots.style import PATCHED, settle, style, write_figure

_SIZE_IN = (8.0, 6.0)
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


def draw_calibration(calibration: Calibration, path: Path) -> list[Path]:
    """Draw the cost of base pages relative to a huge page, by the number of touched pages of a range.

    Args:
        path: path of the files, without suffix.

    Returns:
        The files: PNG and SVG.
    """
    real, counted = calibration.processor, calibration.guest
    with style():
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        figure.suptitle(
            "Cost of base pages relative to a huge page\n", x=0.012, ha="left", fontsize=17, fontweight="bold"
        )
        figure.text(
            0.012, 1 - 0.44 / _SIZE_IN[1], f"{calibration.cpu}, and a guest that counts instructions",
            ha="left", va="top", fontsize=13, color="#444444",
        )  # fmt: skip
        axis = figure.subplots()
        ratios = [real.base_over_huge(pages) for pages in DENSITIES]
        low = [min(ratio.p10, ratio.p50) for ratio in ratios]
        high = [max(ratio.p10, ratio.p50) for ratio in ratios]
        axis.fill_between(DENSITIES, low, high, color=PATCHED[0], alpha=0.2, linewidth=0)
        _line(axis, [ratio.p10 for ratio in ratios], "-o", PATCHED[0], "processor, 10th percentile")
        _line(axis, [ratio.p50 for ratio in ratios], ":o", PATCHED[0], "processor, median")
        counts = [counted.base_over_huge(pages).p50 for pages in DENSITIES]
        _line(axis, counts, "--s", PATCHED[1], "instructions, median")
        axis.axhline(1, color="black", linewidth=1)
        for text, offset in (("base pages cost more", 6), ("the huge page costs more", -16)):
            axis.annotate(text, (1, 1), (0, offset), textcoords="offset points", fontsize=13)
        _axes(axis, [*low, *high, *counts])
        figure.legend(loc="outside lower center", ncols=1, fontsize=13)
        settle(figure)
        files = [path.with_suffix(".png"), path.with_suffix(".svg")]
        for file in files:
            write_figure(figure, file)
    return files


def _line(axis: Axes, ratios: Sequence[float], form: str, colour: str, label: str) -> None:
    filled = "none" if form.startswith(":") else colour
    axis.plot(
        DENSITIES, ratios, form, color=colour, label=label, markersize=7, linewidth=2, markerfacecolor=filled
    )


def _axes(axis: Axes, ratios: Sequence[float]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_locator(FixedLocator([float(pages) for pages in DENSITIES if pages != 96]))
    axis.yaxis.set_major_locator(FixedLocator(_RATIOS))
    for each in (axis.xaxis, axis.yaxis):
        each.set_minor_locator(NullLocator())
        each.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_ylim(min(ratios) / 1.3, max(1.0, *ratios) * math.sqrt(2))
    axis.tick_params(labelsize=14)
    axis.set_xlabel("touched pages per range, of 512", fontsize=14)
    axis.set_ylabel("cost, huge page = 1", fontsize=14)
