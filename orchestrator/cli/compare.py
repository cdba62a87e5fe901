# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate compare``: prints the comparison table of a run, or of two runs."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import completion, option
from orchestrator.cli.terminal import terminal_of
from orchestrator.errors import UserError

NAME = "compare"
EXAMPLE = "Example: orchestrate compare latest"


def command(
    context: typer.Context,
    run: option.Run,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="Second run: compare its variants with the first run's baseline.",
            autocompletion=completion.runs,
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="NAME", help="Variant to use as the baseline.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            "--margin", metavar="FRACTION", help="Equivalence margin to use instead of the run's, e.g. 0.01."
        ),
    ] = None,
    anyway: Annotated[
        bool,
        typer.Option(
            "--anyway",
            help="Compare two runs even if their clocks differ, e.g. because of different QEMU versions.",
        ),
    ] = False,
    as_json: option.Json = False,
) -> int:
    """Print the comparison table of a run, or of one run against another."""
    from orchestrator.analysis.comparison import compare, compare_runs
    from orchestrator.store.run import Run, find_run

    terminal = terminal_of(context)
    results = terminal.project.results
    if margin is not None and not 0 < margin < 1:
        raise UserError(f"--margin {margin:g}: give a fraction between 0 and 1, e.g. 0.01 for 1%.")
    first = Run.open(find_run(results, run))
    second = find_run(results, other) if other is not None else None
    if second is not None and second.resolve() == first.path.resolve():
        raise UserError(
            f"{run} and {other} are the same run, {first.name}; name another one, or omit the second."
        )
    if anyway and second is None:
        raise UserError("--anyway is for two runs whose clocks differ; name a second run.")
    with terminal.events() as events, events.step("compare", first.name):
        if second is None:
            comparison = compare(first, against, margin)
        else:
            comparison = compare_runs(first, Run.open(second), against, margin, anyway=anyway)
    if as_json:
        terminal.print(comparison.to_json())
    else:
        terminal.print_table(comparison)
    return 3 if comparison.found_something else 0
