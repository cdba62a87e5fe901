# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate plot``: draws the plots of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import option
from orchestrator.cli.terminal import terminal_of
from orchestrator.errors import UserError

NAME = "plot"
EXAMPLE = "Example: orchestrate plot latest"


def command(
    context: typer.Context,
    run: option.Run,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Directory to write to; default: plots/ in the run directory.",
        ),
    ] = None,
) -> int:
    """Draw a run's plots as PNG and SVG."""
    from orchestrator.analysis.plots import plot_run  # imported here, so that --help does not load matplotlib
    from orchestrator.store.run import Run, find_run

    terminal = terminal_of(context)
    opened = Run.open(find_run(terminal.project.results, run))
    if output is not None and output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: this is a file; name a directory.")
    with terminal.events() as events, events.step("plot", opened.name):
        plots = plot_run(opened, output or opened.path / "plots")
    for path in plots:
        terminal.print(str(path))
    return 0
