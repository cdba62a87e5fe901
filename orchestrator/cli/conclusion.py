# SPDX-License-Identifier: GPL-2.0-only
"""What follows a run: comparison, plots, changelog text and report, written beside the observations."""

from __future__ import annotations

import json
import time
from pathlib import Path

from orchestrator.cli.terminal import Terminal
from orchestrator.events import Events


def conclude(terminal: Terminal, events: Events, path: Path, as_json: bool) -> bool:
    """Write and print what a run shows.

    Returns:
        Whether something was found besides failed cells: counters that contradict each other, or a regression
        past the margin.
    """
    from orchestrator.analysis.changelog import changelog_text
    from orchestrator.analysis.comparison import compare
    from orchestrator.analysis.plots import plot_run  # here, for --help should not wait for matplotlib
    from orchestrator.analysis.report import write_report
    from orchestrator.analysis.table import to_text
    from orchestrator.store.run import Run

    began = time.monotonic()
    with events.step("compare"):
        run = Run.open(path)
        comparison = compare(run)
        (path / "comparison.json").write_text(comparison.to_json(), encoding="utf-8")
        (path / "comparison.txt").write_text(to_text(comparison), encoding="utf-8")
        (path / "changelog.txt").write_text(changelog_text(run, comparison), encoding="utf-8")
    with events.step("plot"):
        plots = plot_run(run, path / "plots")
    with events.step("report"):
        write_report(run, comparison, plots, path / "report.html")
    terminal.durations.remember("conclusion", time.monotonic() - began)
    if as_json:
        terminal.print_json({"run": str(path), **json.loads(comparison.to_json())})
    else:
        terminal.print_table(comparison)
        for plot in plots:
            if plot.suffix == ".png":
                terminal.print(f"plot     {plot}")
        terminal.print(f"report   {path / 'report.html'}")
        terminal.print(f"run      {path}")
    return any(finding.kind != "failed-cell" for finding in comparison.findings)
