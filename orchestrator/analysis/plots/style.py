# SPDX-License-Identifier: GPL-2.0-only
"""Common code of all plots: pens, titles, legends.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/); markers and line styles differ as well.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

from orchestrator.analysis.notation import CLOCKS, folded, short_number
from orchestrator.output import write_output
from orchestrator.store.manifest import Role
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
BASELINE: Final = "#000000"
CONTROL: Final = "#7f7f7f"
PATCHED: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES: Final = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Pen:
    """How a variant is drawn in every plot of a run."""

    colour: str
    marker: str
    line: str


@dataclass(frozen=True)
class Plot:
    """One plot.

    Args:
        name: name of its files, without suffix.
        title: title, and alternative text.
        figure: the figure; None if there is nothing to draw.
        reason: why there is no figure.
    """

    name: str
    title: str
    figure: Figure | None = None
    reason: str = ""


def style() -> AbstractContextManager[None]:
    """A context in which matplotlib uses the style of this project."""
    # The stubs want a literal of all of matplotlib's parameters.
    return mpl.rc_context(cast("Any", _STYLE))


def settle(figure: Figure) -> None:
    """Compute the layout once, and round it: the solver's last bits vary, and names inside an SVG are hashes of
    coordinates."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axis in figure.axes:
        left, bottom, width, height = (
            round(float(bound), 5) for bound in axis.get_position(original=True).bounds
        )
        axis.set_position((left, bottom, width, height))


def pens_of(run: Run) -> dict[str, Pen]:
    """The pen of each variant, in order."""
    pens: dict[str, Pen] = {}
    patched = 0
    for index, variant in enumerate(run.manifest.variants):
        role, marker = variant.role, _MARKERS[index % len(_MARKERS)]
        if role is Role.BASELINE:
            pen = Pen(BASELINE, marker, "-")
        elif role is Role.CONTROL:
            pen = Pen(CONTROL, marker, ":")
        else:
            line = _LINES[patched % len(_LINES)]
            pen = Pen(PATCHED[patched % len(PATCHED)], marker, line)
            patched += 1
        pens[variant.name] = pen
    return pens


def clock_of(run: Run) -> str:
    """What the run's clock counts, in words."""
    clock = run.manifest.accelerator.clock
    return CLOCKS.get(clock, str(clock))


def _where(run: Run) -> str:
    """The subtitle: the conditions of the measurement."""
    topology = run.manifest.topology.text
    accelerator = run.manifest.accelerator
    kernel = run.manifest.source.version
    clock = CLOCKS.get(accelerator.clock, "")
    parts = [
        f"{topology} guest",
        f"Linux {kernel}" if kernel else "",
        f"{accelerator.name}, {clock}",
    ]
    return " · ".join(part for part in parts if part)


def titled_figure(run: Run, title: str, note: str, height_in: float, width_in: float = _WIDTH_IN) -> Figure:
    """An empty figure with title, conditions and `note`.

    Args:
        height_in: height in inches, without additional lines of title and note.
    """
    heading = textwrap.wrap(title, int(width_in * 8.2))
    under = textwrap.wrap(
        " · ".join(part for part in (_where(run), note) if part), int(width_in * 12.8), break_on_hyphens=False
    )
    height_in += 0.28 * (len(heading) - 1) + 0.2 * (len(under) - 1)
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    # The newlines make room for the smaller lines under the title.
    figure.suptitle(
        "\n".join(heading) + "\n" * len(under),
        x=0.012,
        ha="left",
        fontsize=14,
        fontweight="bold",
        linespacing=1.3,
    )
    figure.text(
        0.012,
        1 - (0.08 + 0.28 * len(heading)) / height_in,
        "\n".join(under),
        ha="left",
        va="top",
        fontsize=10,
        color="#444444",
    )
    return figure


def space_panels(figure: Figure) -> None:
    """Space between panels, so that titles do not overlap."""
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(wspace=0.05, w_pad=0.08, h_pad=0.06)


def panel_figure(
    run: Run,
    title: str,
    note: str,
    panels: int,
    *,
    heading_in: float,
    row_in: float,
    columns: int = 2,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, npt.NDArray[Any]]:
    """A figure with a grid of panels, and its axes by row and column. Those beyond the last panel are hidden.

    Args:
        panels: number of panels, at least 1.
        heading_in, row_in: height in inches of what is not a panel, and of a row of panels.
        sharex, sharey: whether all panels have the same range.
    """
    rows = -(-panels // columns)
    figure = titled_figure(run, title, note, heading_in + row_in * rows)
    space_panels(figure)
    axes = figure.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False)
    for axis in axes.flat[panels:]:
        axis.set_visible(False)
    return figure, axes


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend at the bottom, with as many columns as fit."""
    names = [folded(label, 30) for label in labels]
    longest = max((len(line) for name in names for line in name.splitlines()), default=1)
    columns = max(1, min(len(names), 4, 110 // (longest + 7)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns)


def title_of(run: Run, workload: str) -> str:
    """The title of a workload."""
    return run.manifest.workloads[workload].title or workload


def values_of(run: Run, workload: str, metric: str, variant: str) -> npt.NDArray[np.float64]:
    """Each boot's value of a metric, in the order of the repetitions."""
    metrics = run.ok_metrics
    chosen = (
        (metrics["workload"] == workload) & (metrics["metric"] == metric) & (metrics["variant"] == variant)
    )
    return metrics.loc[chosen].sort_values("repetition", kind="stable")["value"].to_numpy(dtype=float)


def short_numbers() -> FuncFormatter:
    """A formatter with :func:`short_number`, for one axis."""
    return FuncFormatter(short_number)


def counted(number: int) -> str:
    """A number with thousands separators."""
    return f"{number:,}".replace(",", " ")


def write_figure(figure: Figure, path: Path, title: str | None = None) -> None:
    """Write a figure as PNG or SVG, by the suffix of `path`; the same figure gives the same bytes.

    Args:
        title: title for the metadata of the file.
    """
    form = path.suffix.removeprefix(".")
    metadata = {"Software": None} if form == "png" else {"Date": None, "Creator": "orchestrate"}
    drawn = io.BytesIO()
    figure.savefig(drawn, format=form, metadata={**metadata, **({"Title": title} if title else {})})
    write_output(path, drawn.getvalue())
