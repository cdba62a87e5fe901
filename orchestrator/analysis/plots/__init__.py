# SPDX-License-Identifier: GPL-2.0-only
"""Plots of a run, as PNG and SVG, readable at a width of 1000 pixels.

If a run lacks the data for a plot, ``absent.txt`` has the reason. The same run gives the same bytes. One module per
plot.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.analysis.plots import (
    boots,
    counters,
    flame,
    latency,
    memory,
    overview,
    promotions,
    reserved,
    survivors,
    sweep,
    tradeoff,
)
from orchestrator.analysis.plots.style import Plot, pens_of, settle, style, write_figure
from orchestrator.analysis.profile import profiles_of
from orchestrator.analysis.promotion import promotion_curves
from orchestrator.output import write_output
from orchestrator.store.run import Run


def plot_run(run: Run, out_dir: Path) -> list[Path]:
    """Draw every plot that `run` has the data for.

    Args:
        out_dir: output directory, created if necessary; old plots that are no longer drawn are removed.

    Returns:
        The files, PNG and SVG for each plot.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    absent: list[str] = []
    with style():
        for plot in plots_of(run):
            files = [out_dir / f"{plot.name}.png", out_dir / f"{plot.name}.svg"]
            if plot.figure is None:
                for file in files:
                    file.unlink(missing_ok=True)
                absent.append(f"{plot.name}: {plot.reason}")
                continue
            settle(plot.figure)
            for file in files:
                write_figure(plot.figure, file, plot.title)
            paths += files
    notice = out_dir / "absent.txt"
    if absent:
        write_output(notice, "\n".join(absent) + "\n")
    else:
        notice.unlink(missing_ok=True)
    return paths


def plots_of(run: Run) -> list[Plot]:
    """All plots of `run`, drawn or with the reason why not."""
    pens = pens_of(run)
    curves = promotion_curves(run)
    with style():
        return [
            overview.overview(run, pens, curves),
            *tradeoff.tradeoff(run),
            *sweep.sweeps(run),
            boots.boots(run, pens),
            survivors.survivors(run, pens),
            *promotions.promotions(run, pens, curves),
            *memory.memory_over_time(run, pens),
            *latency.fault_latency(run, pens),
            *counters.counters(run, pens),
            reserved.reserved_pages(run),
            *flame.flame_graphs(run, profiles_of(run)),
        ]
