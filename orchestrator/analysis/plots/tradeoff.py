# SPDX-License-Identifier: GPL-2.0-only
"""Plot of a trade-off: two metrics as axes, a third as colour, one point per variant, and the Pareto front."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from orchestrator.analysis.notation import folded
from orchestrator.analysis.plots.style import Plot, short_numbers, space_panels, titled_figure
from orchestrator.analysis.statistics import REPETITIONS_FOR_INTERVAL
from orchestrator.analysis.tradeoff import Axis, TradeoffPoint, tradeoff_of
from orchestrator.store.run import Run

#: From this ratio of the largest to the smallest on, an axis is logarithmic.
_LOG_FROM = 20.0
#: Distance in pixels up to which two points share a label.
_NEAR: Final = 22.0


def tradeoff(run: Run) -> Iterator[Plot]:
    """The plot of an experiment with a table ``[tradeoff]`` of three metrics; none for other experiments."""
    name, title = "tradeoff", "Trade-off"
    if not run.manifest.tradeoff:
        return
    found = tradeoff_of(run)
    if found is None:
        yield Plot(name, title, reason="no variant was measured on all axes of [tradeoff]")
        return
    across, up, shade = found.axes
    figure = titled_figure(
        run, f"{title}: {across.name}, {up.name}, {shade.name}", "median and range of the repetitions", 7.4
    )
    space_panels(figure)
    axis = figure.subplots()
    shades = [point.middle[2] for point in found.points]
    for point in found.points:
        axis.errorbar(
            point.middle[0],
            point.middle[1],
            xerr=[[point.middle[0] - point.low[0]], [point.high[0] - point.middle[0]]],
            yerr=[[point.middle[1] - point.low[1]], [point.high[1] - point.middle[1]]],
            fmt="none",
            ecolor="#888888",
            elinewidth=1.2,
            zorder=2,
        )
    rings = min(point.boots for point in found.points) >= REPETITIONS_FOR_INTERVAL
    cloud = axis.scatter(
        [point.middle[0] for point in found.points],
        [point.middle[1] for point in found.points],
        c=shades,
        cmap="cividis",
        vmin=min(0.0, *shades),
        vmax=max(shades) or 1.0,
        s=210,
        edgecolors=["#D55E00" if rings and point.on_front else "#666666" for point in found.points],
        linewidths=[2.6 if rings and point.on_front else 0.8 for point in found.points],
        zorder=3,
    )
    for place, values in (
        (axis.set_xscale, _values(found.points, 0)),
        (axis.set_yscale, _values(found.points, 1)),
    ):
        if min(values) > 0 and max(values) / min(values) >= _LOG_FROM:
            place("log")
    axis.xaxis.set_major_formatter(short_numbers())
    axis.yaxis.set_major_formatter(short_numbers())
    axis.margins(0.16)
    ordered = sorted(found.points, key=lambda point: point.middle[:2])
    _number_points(axis, ordered, max(shades) or 1.0)
    _list_points(figure, axis, ordered, rings)
    axis.set_xlabel(_label(across))
    axis.set_ylabel(_label(up))
    figure.colorbar(cloud, ax=axis, label=_label(shade), pad=0.01, fraction=0.04, aspect=30)
    figure.text(
        0.012,
        0.004,
        textwrap.fill(_rule_of_rings(found.points, rings), 120),
        fontsize=10,
        color="#444444",
        va="bottom",
    )
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0, 0.06, 1, 0.94))
    yield Plot(name, title, figure)


def _values(points: Sequence[TradeoffPoint], axis: int) -> list[float]:
    return [value for point in points for value in (point.low[axis], point.high[axis])]


def _label(axis: Axis) -> str:
    arrow = {"lower": "less is better", "higher": "more is better"}[axis.better]
    return textwrap.fill(f"{axis.name}: {axis.workload} {axis.metric} ({axis.unit}; {arrow})", 52)


def _rule_of_rings(points: Sequence[TradeoffPoint], rings: bool) -> str:
    if not rings:
        fewest = min(point.boots for point in points)
        return (
            f"With {fewest} boots per variant no Pareto front is drawn: it needs {REPETITIONS_FOR_INTERVAL}. "
            "Bars: the range of the boots."
        )
    return (
        "Ringed and bold: the Pareto front, i.e. no other variant is at least as good in all three and, in one, better "
        "in every boot. Bars: the range of the boots."
    )


def _number_points(axis: Axes, points: Sequence[TradeoffPoint], most: float) -> None:
    """Number the points; points at the same place share a label, so that labels do not overlap."""
    figure = axis.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    together: list[tuple[float, float, list[int], TradeoffPoint]] = []
    for number, point in enumerate(points, 1):
        x, y = axis.transData.transform(point.middle[:2])
        near = next(
            (each for each in together if abs(x - each[0]) < _NEAR and abs(y - each[1]) < _NEAR), None
        )
        if near is None:
            together.append((x, y, [number], point))
        else:
            near[2].append(number)
    for _, _, numbers, point in together:
        alone = len(numbers) == 1
        axis.annotate(
            ", ".join(map(str, numbers)),
            (point.middle[0], point.middle[1]),
            xytext=(0, 0) if alone else (13, 0),
            textcoords="offset points",
            ha="center" if alone else "left",
            va="center",
            fontsize=9,
            fontweight="bold",
            # White on the dark half of the colour map.
            color="white" if alone and point.middle[2] < most / 2 else "black",
            bbox=None
            if alone
            else {"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.85, "linewidth": 0},
            zorder=4,
        )


def _list_points(figure: Figure, axis: Axes, points: Sequence[TradeoffPoint], rings: bool) -> None:
    """The variants of the numbers, in a column next to the axes."""
    for number, point in enumerate(points, 1):
        axis.plot(
            [],
            [],
            " ",
            label=f"{number:>2}  {folded(point.variant, 30).replace(chr(10), chr(10) + '      ')}",
        )
    legend = figure.legend(loc="outside right upper", fontsize=10, handlelength=0, handletextpad=0)
    for text, point in zip(legend.get_texts(), points, strict=True):
        text.set_fontweight("bold" if rings and point.on_front else "normal")
