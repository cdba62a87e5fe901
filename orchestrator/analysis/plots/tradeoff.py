# SPDX-License-Identifier: GPL-2.0-only
"""What variants trade for what: two metrics as axes, a third as colour, one point per variant, and the Pareto front."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter

from orchestrator.analysis.notation import folded
from orchestrator.analysis.plots.style import Plot, space_panels, titled_figure
from orchestrator.analysis.tradeoff import Axis, Point, tradeoff_of
from orchestrator.store.run import Run

#: From this ratio of the largest to the smallest on, an axis is logarithmic.
_LOG_FROM = 20.0
#: From a name that had to give way to its point.
_TIE: Final[dict[str, object]] = {
    "arrowstyle": "-",
    "linewidth": 0.6,
    "color": "#aaaaaa",
    "relpos": (0.0, 0.5),
}


def tradeoff(run: Run) -> Iterator[Plot]:
    """The picture of an experiment that has a table ``[tradeoff]`` with three metrics; none where it has not."""
    name, title = "tradeoff", "What is paid for what"
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
    front = sorted((p for p in found.points if p.on_front), key=lambda point: point.middle[:2])
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
    cloud = axis.scatter(
        [point.middle[0] for point in found.points],
        [point.middle[1] for point in found.points],
        c=shades,
        cmap="cividis",
        vmin=min(0.0, *shades),
        vmax=max(shades) or 1.0,
        s=[130 if point.on_front else 60 for point in found.points],
        edgecolors=["#D55E00" if point.on_front else "#666666" for point in found.points],
        linewidths=[2.4 if point.on_front else 0.8 for point in found.points],
        zorder=3,
    )
    for place, values in (
        (axis.set_xscale, _values(found.points, 0)),
        (axis.set_yscale, _values(found.points, 1)),
    ):
        if min(values) > 0 and max(values) / min(values) >= _LOG_FROM:
            place("log")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    axis.margins(0.16)
    _name_points(axis, found.points)
    axis.set_xlabel(_label(across))
    axis.set_ylabel(_label(up))
    figure.colorbar(cloud, ax=axis, label=_label(shade), pad=0.01, fraction=0.05)
    names = ", ".join(point.variant for point in front)
    figure.text(
        0.012,
        0.004,
        textwrap.fill(f"Ringed: the Pareto front, which no other variant beats in all three: {names}.", 120),
        fontsize=10,
        color="#444444",
        va="bottom",
    )
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0, 0.06, 1, 0.94))
    yield Plot(name, title, figure)


def _values(points: Sequence[Point], axis: int) -> list[float]:
    return [value for point in points for value in (point.low[axis], point.high[axis])]


def _label(axis: Axis) -> str:
    arrow = {"lower": "less is better", "higher": "more is better"}[axis.better]
    return textwrap.fill(f"{axis.name}: {axis.workload} {axis.metric} ({axis.unit}; {arrow})", 70)


def _name_points(axis: Axes, points: Sequence[Point]) -> None:
    """Names beside the points; those of points in the same place under each other."""
    figure = axis.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda each: (not each.on_front, each.middle)):
        x, y = axis.transData.transform(point.middle[:2])
        lift = 0.0
        while any(abs(x - other_x) < 130 and abs(y + lift - other_y) < 13 for other_x, other_y in taken):
            lift -= 13.5
        taken.append((x, y + lift))
        axis.annotate(
            folded(point.variant, 26),
            (point.middle[0], point.middle[1]),
            xytext=(34 if lift else 10, lift * 72 / figure.dpi),
            textcoords="offset points",
            fontsize=9.5,
            fontweight="bold" if point.on_front else "normal",
            va="center",
            arrowprops=_TIE if lift else None,
        )
