# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate report``: one self-contained HTML page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.analysis.comparison import compare
from orchestrator.analysis.plots import plot_run
from orchestrator.analysis.report import write_report
from orchestrator.cli import option
from orchestrator.cli.terminal import terminal_of
from orchestrator.store.run import Run, find_run

NAME = "report"
EXAMPLE = "Example: orchestrate report latest --output report.html"


def command(
    context: typer.Context,
    run: option.Run,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File; default: the run's report.html.")
    ] = None,
) -> int:
    """Write one self-contained HTML page and print where it is."""
    terminal = terminal_of(context)
    opened = Run.open(find_run(terminal.project.results, run))
    path = output or opened.path / "report.html"
    comparison = compare(opened)
    write_report(opened, comparison, plot_run(opened, opened.path / "plots"), path)
    terminal.print(str(path))
    return 3 if comparison.found_something else 0
