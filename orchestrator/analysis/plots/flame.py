# SPDX-License-Identifier: GPL-2.0-only
"""Flame graphs: where the guest instructions of a variant went, coloured by the change from the baseline."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import TwoSlopeNorm
from matplotlib.patches import Rectangle

from orchestrator.analysis.notation import percent
from orchestrator.analysis.plots.style import Plot, counted, titled_figure
from orchestrator.analysis.profile import ProfileComparison, Profiles, compare_profiles, mean_chains
from orchestrator.store.profile import Chain
from orchestrator.store.run import Run

#: Share of all instructions below which a frame is left out: a pixel.
_SMALLEST: Final = 0.001
_DEEPEST: Final = 30
_COLOURS: Final = "RdBu_r"
#: Characters of a label in the whole width.
_CHARACTERS: Final = 190
_LEVEL_IN: Final = 0.2


@dataclass
class Frame:
    """A function as it is called by its callers.

    Args:
        count, before: instructions in it and all that it calls, in the variant and the baseline.
    """

    name: str
    count: float = 0.0
    before: float = 0.0
    callees: dict[str, Frame] = field(default_factory=dict)


def flame_graphs(run: Run, profiles: Profiles) -> list[Plot]:
    """A flame graph per workload and patched variant; none if the run was not profiled."""
    return [_flame_graph(run, each, profiles) for each in compare_profiles(run, profiles)]


def _flame_graph(run: Run, found: ProfileComparison, profiles: Profiles) -> Plot:
    name = re.sub(r"[^A-Za-z0-9_=-]+", "-", f"flame-{found.workload}-{found.variant}")
    title = f"Where the instructions went: {found.workload}, {found.variant}"
    pairs = profiles.pairs(found.workload, found.variant, found.baseline)
    root = tree_of(mean_chains(new for _, new in pairs), mean_chains(old for old, _ in pairs))
    drawn = [each for each in _placed(root, 0.0, 0) if each[0] is not root]
    levels = max((level for _, _, level in drawn), default=1)
    share = percent(found.total.change / found.total.baseline) if found.total.baseline else ""
    note = (
        f"width: guest instructions, all {counted(round(root.count))} ({share} against {found.baseline}); callers "
        "below their callees; red grew, blue shrank"
    )
    figure = titled_figure(run, title, note, 1.6 + _LEVEL_IN * levels)
    _draw(figure.subplots(), drawn, root, levels)
    return Plot(name, title, figure)


def tree_of(chains: Mapping[Chain, float], before: Mapping[Chain, float]) -> Frame:
    """The frames of a variant, those that only the baseline has among them, below one for everything."""
    root = Frame("all")
    for counts, is_before in ((chains, False), (before, True)):
        for chain, count in counts.items():
            frame = root
            for name in ("", *chain[:_DEEPEST]):
                if name:
                    frame = frame.callees.setdefault(name, Frame(name))
                if is_before:
                    frame.before += count
                else:
                    frame.count += count
    return root


def _placed(frame: Frame, left: float, level: int, total: float = 0.0) -> Iterator[tuple[Frame, float, int]]:
    """Each frame with its left edge and level; callees side by side, by name, as in other flame graphs."""
    total = total or frame.count
    yield frame, left, level
    for _, callee in sorted(frame.callees.items()):
        if total and callee.count / total >= _SMALLEST:
            yield from _placed(callee, left, level + 1, total)
        left += callee.count


def _draw(axis: Axes, drawn: list[tuple[Frame, float, int]], root: Frame, levels: int) -> None:
    width = root.count or 1.0
    changes = [(frame.count - frame.before) / width for frame, _, _ in drawn]
    most = max((abs(change) for change in changes), default=0.0) or 1e-9
    colours = mpl.colormaps[_COLOURS](TwoSlopeNorm(0.0, -most, most)([0.85 * change for change in changes]))
    patches = [
        Rectangle((left / width, level - 1), frame.count / width, 0.94) for frame, left, level in drawn
    ]
    axis.add_collection(PatchCollection(patches, facecolors=colours, edgecolors="#888888", linewidths=0.25))
    for (frame, left, level), change in zip(drawn, changes, strict=True):
        room = int(frame.count / width * _CHARACTERS)
        if room < 4:
            continue
        label = frame.name if len(frame.name) <= room else f"{frame.name[: room - 1]}…"
        changed = f"{label} {percent(change)}"
        if abs(change) >= 0.0005 and len(changed) <= room:
            label = changed
        colour = "white" if abs(change) > 0.6 * most else "black"
        axis.text(
            left / width + 0.0012, level - 0.53, label, fontsize=6.5, va="center", color=colour, clip_on=True
        )
    axis.set_xlim(0, 1)
    axis.set_ylim(0, max(levels, 1))
    axis.set_axis_off()
