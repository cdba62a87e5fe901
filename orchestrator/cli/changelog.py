# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate changelog``: plain text to paste into a patch's changelog."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import option
from orchestrator.cli.terminal import terminal_of

NAME = "changelog"
EXAMPLE = "Example: orchestrate changelog latest --stage 5"


def command(
    context: typer.Context,
    run: option.Run,
    stage: Annotated[
        list[int] | None,
        typer.Option(
            "--stage", metavar="STAGE", help="Only variants whose last stage is this one; repeatable."
        ),
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option("--workload", "-w", metavar="WORKLOAD", help="Only this workload; repeatable."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            "-m",
            metavar="METRIC",
            help="Also include this metric, which need not be primary; repeatable.",
        ),
    ] = None,
    no_plots: Annotated[bool, typer.Option("--no-plots", help="Omit the text-mode plots.")] = False,
) -> int:
    """Print a run's results as text for a changelog, at most 75 columns wide."""
    from orchestrator.analysis.changelog import changelog_text, check_choice
    from orchestrator.analysis.comparison import compare
    from orchestrator.store.run import Run, find_run

    terminal = terminal_of(context)
    opened = Run.open(find_run(terminal.project.results, run))
    chosen = stage or (), workload or (), metric or ()
    check_choice(opened, *chosen)
    with terminal.events() as events, events.step("compare", opened.name):
        text = changelog_text(opened, compare(opened), *chosen, plots=not no_plots)
    terminal.print(text)
    return 0
