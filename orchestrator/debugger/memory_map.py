# SPDX-License-Identifier: GPL-2.0-only
"""A picture of an inspection: what is in each 2 MiB range of a process, and in each 2 MiB block of a node's memory.

The shades differ in brightness as well as in colour, so that the picture can be read in grey.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from orchestrator.analysis.plots.style import counted, style, write_figure
from orchestrator.debugger.inspection import (
    EMPTY,
    HUGE,
    LOST,
    MAPPED,
    PAGE,
    PAGE_BYTES,
    PAGES,
    RESERVED,
    USES,
    InspectedNode,
    Inspection,
    Process,
)

#: Letter, what it means, and its colour, from light to dark.
_STATES: Final = (
    (EMPTY, "nothing", "#ffffff"),
    (RESERVED, "reserved, unused", "#f5d47a"),
    (PAGE, "base page, no reservation", "#6fb3e0"),
    (MAPPED, "mapped from the reservation", "#2f8397"),
    (LOST, "lost: not in the block any more", "#b5301c"),
    (HUGE, "huge page", "#12294d"),
)
#: The use that gives a block its colour, what it means, and its colour.
_USES: Final = (
    ("absent", "no memory", "#ffffff"),
    ("free", "free", "#f1f1ee"),
    ("reserved", "block of a reservation", "#f5d47a"),
    ("file", "page cache", "#b9c79c"),
    ("anonymous", "anonymous base pages", "#6fb3e0"),
    ("kernel", "kernel and others", "#8c8c8c"),
    ("huge", "huge page", "#12294d"),
)
#: Pages of a reservation's block that are in use; drawn inside of it.
_IN_USE: Final = "#2f8397"
#: Ranges in a column, columns, and processes of a picture.
_COLUMN: Final = 128
_COLUMNS: Final = 4
_MOST_PROCESSES: Final = 3
#: Sizes in inches: the picture, its margin, a heading, the numbers below and left of axes, a legend, a small line.
_WIDTH_IN: Final = 10.0
_EDGE_IN: Final = 0.12
_HEADING_IN: Final = 0.36
_TICKS_IN: Final = 0.32
_LABEL_IN: Final = 0.95
_LEGEND_IN: Final = 0.46
_LINE_IN: Final = 0.13
_BLOCKS_IN_A_ROW: Final = 64


def draw(inspection: Inspection, path: Path, pid: int | None = None) -> None:
    """Draw the processes with the most reservations and all nodes, as PNG or SVG by the suffix of `path`.

    Args:
        pid: draw this process only; it must be in `inspection`.
    """
    with style():
        write_figure(_figure(inspection, pid), path, "Reservations in a guest's memory")


class _Sheet:
    """A figure that is filled from the top. All places are computed, so the same content gives the same file."""

    def __init__(self, height_in: float) -> None:
        self.figure = Figure(figsize=(_WIDTH_IN, height_in))
        self._height_in = height_in
        self._at_in = 0.0

    def heading(self, text: str, size: float, *, bold: bool = False) -> None:
        """A line of text."""
        weight = "bold" if bold else "normal"
        place = 1 - (self._at_in + 0.1) / self._height_in
        self.figure.text(
            _EDGE_IN / _WIDTH_IN, place, text, ha="left", va="top", fontsize=size, fontweight=weight
        )
        self._at_in += _HEADING_IN

    def axes(self, height_in: float, columns: int = 1) -> list[Axes]:
        """Axes next to each other."""
        width = (_WIDTH_IN - 2 * _EDGE_IN) / columns
        bottom = 1 - (self._at_in + height_in) / self._height_in
        self._at_in += height_in + _TICKS_IN
        return [
            self.figure.add_axes(
                (
                    (column * width + _LABEL_IN) / _WIDTH_IN,
                    bottom,
                    (width - _LABEL_IN - _EDGE_IN) / _WIDTH_IN,
                    height_in / self._height_in,
                )
            )
            for column in range(columns)
        ]

    def legend(self, title: str, patches: Sequence[Patch]) -> None:
        """What the shades mean."""
        self.figure.legend(
            handles=list(patches), loc="upper left", ncols=len(patches), fontsize=8.5, title=title, alignment="left",
            title_fontsize=9, handlelength=1.2, columnspacing=1.2, borderaxespad=0.0, borderpad=0.0,
            bbox_to_anchor=(_EDGE_IN / _WIDTH_IN, 1 - self._at_in / self._height_in),
        )  # fmt: skip
        self._at_in += _LEGEND_IN


def _figure(inspection: Inspection, pid: int | None) -> Figure:
    of = Counter(resv.tree_mm or resv.mm for resv in inspection.reservations)
    processes = sorted(inspection.processes, key=lambda each: (-of[each.mm], -len(each.ranges), each.pid))
    shown = [each for each in processes if pid is None or each.pid == pid][:_MOST_PROCESSES]
    parts = [_process_in(each) for each in shown] + [_node_in(each) for each in inspection.nodes]
    legends = 2 if shown else 1
    sheet = _Sheet(
        sum(parts) + len(parts) * (_HEADING_IN + _TICKS_IN) + _HEADING_IN + legends * _LEGEND_IN + _EDGE_IN
    )
    unused = sum(resv.bits for resv in inspection.reservations)
    sheet.heading(
        f"{counted(len(inspection.reservations))} reservations, {counted(unused)} unused pages "
        f"({unused * 4 / 1024:.0f} MiB)",
        14,
        bold=True,
    )
    for process in shown:
        _draw_process(sheet, process, of[process.mm])
    for node in inspection.nodes:
        _draw_node(sheet, node)
    if shown:
        sheet.legend("pages of a range", [_patch(colour, text) for _, text, colour in _STATES[1:]])
    uses = [_patch(colour, text) for use, text, colour in _USES if use != "absent"]
    uses.insert(2, _patch(_IN_USE, "in use of that block"))
    sheet.legend("blocks of a node", uses)
    return sheet.figure


# --- processes -----------------------------------------------------------------------------------------------------


def _columns_of(process: Process) -> int:
    return min(max(1, -(-len(process.ranges) // _COLUMN)), _COLUMNS)


def _process_in(process: Process) -> float:
    rows = -(-min(len(process.ranges), _COLUMN * _COLUMNS) // _columns_of(process))
    return min(max(0.5, rows * 0.05), 4.5)


def _draw_process(sheet: _Sheet, process: Process, reservations: int) -> None:
    columns = _columns_of(process)
    shown = process.ranges[: _COLUMN * _COLUMNS]
    rows = -(-len(shown) // columns)
    note = (
        f"; the first {len(shown)} of {len(process.ranges)} ranges"
        if len(shown) < len(process.ranges)
        else ""
    )
    sheet.heading(
        f"{process.title}: {counted(reservations)} reservations, a line for each 2 MiB range with its 512 pages{note}",
        11.5,
    )
    codes = {letter: number for number, (letter, _, _) in enumerate(_STATES)}
    colours = ListedColormap([colour for _, _, colour in _STATES])
    for number, axis in enumerate(sheet.axes(_process_in(process), columns)):
        own = shown[number * rows : (number + 1) * rows]
        image = np.zeros((rows, PAGES), np.uint8)
        for row, each in enumerate(own):
            image[row] = [codes[letter] for letter in each.expanded()]
        axis.imshow(
            image, cmap=colours, vmin=-0.5, vmax=len(_STATES) - 0.5, aspect="auto", interpolation="nearest",
            extent=(0, PAGES, rows, 0),
        )  # fmt: skip
        _label_addresses(
            axis, [each.start for each in own], round(_LINE_IN * rows / _process_in(process) + 0.5)
        )
        axis.set_xticks([0, 256, 512])
        axis.tick_params(length=2, labelsize=8)
        axis.grid(False)
        for side in axis.spines.values():
            side.set_visible(True)
            side.set_color("#bbbbbb")


def _label_addresses(axis: Axes, starts: list[int], room: int) -> None:
    """The address of the last range, of the first one, and of each after a gap, as far as there is room.

    Args:
        room: ranges that a label needs.
    """
    gaps = [at for at in range(1, len(starts)) if starts[at] - starts[at - 1] != PAGES * PAGE_BYTES]
    ticks: list[int] = []
    for at in [len(starts) - 1, 0, *gaps]:
        if at >= 0 and all(abs(at - tick) >= room for tick in ticks):
            ticks.append(at)
    axis.set_yticks([at + 0.5 for at in ticks], [f"{starts[at]:x}" for at in ticks], family="monospace")


# --- nodes ---------------------------------------------------------------------------------------------------------


def _node_in(node: InspectedNode) -> float:
    return max(0.2, -(-len(node.blocks) // _BLOCKS_IN_A_ROW) * 0.16)


def _draw_node(sheet: _Sheet, node: InspectedNode) -> None:
    counts: npt.NDArray[np.int64] = np.array(node.blocks, np.int64).reshape(-1, len(USES))
    own = counts[:, USES.index("reserved")] + counts[:, USES.index("mapped")]
    kinds = _kinds_of(counts)
    total = int((counts[:, USES.index("absent")] < PAGES).sum())
    sheet.heading(
        f"node {node.number}: {counted(total)} blocks of 2 MiB by physical address, "
        f"{counted(int((own > 0).sum()))} of reservations",
        11.5,
    )
    (axis,) = sheet.axes(_node_in(node))
    rows = -(-len(kinds) // _BLOCKS_IN_A_ROW)
    image = np.zeros(rows * _BLOCKS_IN_A_ROW, np.uint8)
    image[: len(kinds)] = kinds
    colours = ListedColormap([colour for _, _, colour in _USES])
    axis.imshow(
        image.reshape(rows, _BLOCKS_IN_A_ROW), cmap=colours, vmin=-0.5, vmax=len(_USES) - 0.5, aspect="auto",
        interpolation="nearest", extent=(0, _BLOCKS_IN_A_ROW, rows, 0),
    )  # fmt: skip
    # What is in use of a reservation's block, from the bottom of its square.
    at = np.flatnonzero(own)
    share = counts[at, USES.index("mapped")] / PAGES
    share = np.where(share > 0, np.maximum(share, 0.12), 0)
    axis.bar(
        at % _BLOCKS_IN_A_ROW + 0.5, -share * 0.92, 0.92, at // _BLOCKS_IN_A_ROW + 0.96, color=_IN_USE,
    )  # fmt: skip
    axis.set_xlim(0, _BLOCKS_IN_A_ROW)
    axis.set_ylim(rows, 0)
    marks = range(0, _BLOCKS_IN_A_ROW + 1, 8)
    axis.set_xticks(marks, [f"{2 * block} MiB" for block in marks])
    step = max(1, -(-rows // 8))
    axis.set_yticks(
        [row + 0.5 for row in range(0, rows, step)],
        [f"{(node.first_pfn << 12) + row * _BLOCKS_IN_A_ROW * (2 << 20):x}" for row in range(0, rows, step)],
        family="monospace",
    )
    axis.tick_params(length=2, labelsize=8)
    axis.set_xticks(range(_BLOCKS_IN_A_ROW), minor=True)
    axis.set_yticks(range(rows), minor=True)
    axis.grid(visible=False, which="major")
    axis.grid(visible=True, which="minor", color="white", linewidth=0.8)
    axis.set_axisbelow(False)
    axis.tick_params(which="minor", length=0)


def _kinds_of(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """The use that gives each block its colour: that of a reservation or huge page, else that of most pages in use."""
    columns = [USES.index(use) for use, _, _ in _USES]
    names = [use for use, _, _ in _USES]
    ordered = counts[:, columns]
    weighed = ordered.copy()
    weighed[:, names.index("free")] = 0
    weighed[:, names.index("absent")] = 0
    kinds: npt.NDArray[np.uint8] = weighed.argmax(axis=1).astype(np.uint8)
    kinds[weighed.sum(axis=1) == 0] = names.index("free")
    kinds[counts[:, USES.index("absent")] == PAGES] = names.index("absent")
    own = counts[:, USES.index("reserved")] + counts[:, USES.index("mapped")]
    kinds[own > 0] = names.index("reserved")
    return kinds


def _patch(colour: str, text: str) -> Patch:
    return Patch(facecolor=colour, edgecolor="#999999", linewidth=0.5, label=text)
