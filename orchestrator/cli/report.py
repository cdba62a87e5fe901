# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate report``: writes a self-contained HTML page of a run, or a format for continuous integration."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.analysis.layout import WIDTH
from orchestrator.cli import option
from orchestrator.cli.terminal import terminal_of
from orchestrator.output import check_output, is_stream, write_output

if TYPE_CHECKING:
    from orchestrator.analysis.comparison import Comparison
    from orchestrator.store.run import Run

NAME = "report"
EXAMPLE = "Example: orchestrate report latest --format junit --output junit.xml"


class Format(StrEnum):
    """The format of a report."""

    HTML = "html"
    JUNIT = "junit"
    KTAP = "ktap"
    KCIDB = "kcidb"


#: File name per format in the run directory.
_FILE = {
    Format.HTML: "report.html",
    Format.JUNIT: "junit.xml",
    Format.KTAP: "report.ktap",
    Format.KCIDB: "kcidb.json",
}


def command(
    context: typer.Context,
    run: option.Run,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            "-f",
            metavar="html|junit|ktap|kcidb",
            help="html, or a format for continuous integration: junit, ktap or kcidb.",
        ),
    ] = Format.HTML,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File to write, or - for standard output; default: a file in the run directory.",
        ),
    ] = None,
) -> int:
    """Write a self-contained HTML page, or an export for continuous integration, and print its path."""
    from orchestrator.analysis.comparison import compare
    from orchestrator.analysis.plots import plot_run  # imported here, so that --help does not load matplotlib
    from orchestrator.analysis.report import write_report
    from orchestrator.execution.result_text import result_text
    from orchestrator.store.run import Run, find_run

    terminal = terminal_of(context)
    opened = Run.open(find_run(terminal.project.results, run))
    path = output or opened.path / _FILE[form]
    check_output("--output", path)
    streamed = is_stream(path)
    with terminal.events() as events, events.step("report", opened.name):
        comparison = compare(opened)
        if form is Format.HTML:
            plots = plot_run(opened, opened.path / "plots")
            write_report(opened, comparison, plots, path, result_text(opened, WIDTH))
        else:
            write_output(path, _exported(form, opened, comparison))
    if not streamed:  # the path would be part of the output, or useless
        terminal.print(str(path))
    return 3 if comparison.found_something else 0


def _exported(form: Format, run: Run, comparison: Comparison) -> str:
    from orchestrator.analysis.export.check import checks_of
    from orchestrator.analysis.export.junit import to_junit
    from orchestrator.analysis.export.kcidb import to_kcidb
    from orchestrator.analysis.export.ktap import to_ktap

    checks = checks_of(run, comparison)
    if form is Format.JUNIT:
        return to_junit(run.name, checks)
    if form is Format.KTAP:
        return to_ktap(run.name, checks)
    return to_kcidb(run, comparison, checks)
