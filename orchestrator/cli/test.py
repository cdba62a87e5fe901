# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate test``: tests of correctness in a guest, on a kernel that checks itself."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import defaults
from orchestrator.cli import option
from orchestrator.cli.terminal import terminal_of, text_of

if TYPE_CHECKING:
    from orchestrator.execution.correctness_run import CorrectnessSummary, Trouble

NAME = "test"
EXAMPLE = "Example: orchestrate test --patchset full --config debug-locks --suite reservations"

_WIDTH = 100
#: Lines of a test's or the kernel's own words that are printed; all of them are in the run directory.
_SHOWN_LINES = 6


def command(
    context: typer.Context,
    patchset: option.Patchset = "full",
    flavour: Annotated[
        str,
        typer.Option(
            "--config", metavar="NAME", help="Kernel configuration: debug-vm, debug-locks or measure."
        ),
    ] = "debug-vm",
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", metavar="NAME", help=f"Of {option.SUITES}; repeatable. Default: all."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Name of a test; repeatable. Default: all."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--baseline/--no-baseline", help="Run the same on the baseline, as the yardstick.")
    ] = True,
    topology: option.Topology = defaults.TEST_TOPOLOGY,
    accel: option.Accelerator = "tcg",
    cmdline: option.Cmdline = None,
    series: option.SeriesDirectory = None,
    source: option.Source = None,
    build_jobs: option.BuildJobs = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Part of the run directory's name.")
    ] = None,
    as_json: option.Json = False,
) -> int:
    """Run the suites of correctness in guests; exit 3 where a test regressed or the kernel reported anything."""
    from orchestrator.cli.attempt import attempt
    from orchestrator.execution.correctness import choose, having
    from orchestrator.execution.correctness_run import CorrectnessTest, execute, manifest_of
    from orchestrator.machine.topology import Topology
    from orchestrator.store.run import RunWriter

    terminal = terminal_of(context)
    with terminal.events() as events:
        bench = terminal.bench(events, source, accel, flavour, build_jobs, series)
        bench.series.select(patchset)
        bench.configuration()  # an unknown flavour is said before anything is written
        asked = CorrectnessTest(
            patchset,
            having(choose(suite or ()), only or (), [test.name for test in bench.selftest_plan.tests]),
            Topology.parse(topology),
            tuple(only or ()),
            tuple(cmdline or ()),
            compare,
        )
        asked.topology.check_host(1)
        writer = RunWriter.create(
            terminal.project.results,
            name or f"test-{patchset}-{flavour}",
            manifest_of(asked, bench, ["orchestrate", *sys.argv[1:]]),
        )
        with attempt(events, writer):
            summary = execute(asked, bench, writer)
    text = as_text(summary)
    (writer.path / "correctness.txt").write_text(text + "\n", encoding="utf-8")
    if as_json:
        terminal.print_json({"run": str(writer.path), **summary.to_json()})
    else:
        terminal.print(text)
        terminal.print(str(writer.path))
    return 3 if summary.troubles else 0


def as_text(summary: CorrectnessSummary) -> str:
    """A row a guest, then what is wrong, then what is worth knowing."""
    from rich.table import Table

    from orchestrator.guest.ktap import Status
    from orchestrator.store.outcome import Outcome

    table = Table(box=None, pad_edge=False, header_style="")
    for column in ("kernel", "suite", "passed", "failed", "skipped", "reports", "leaks", "s", "outcome"):
        number = column in ("passed", "failed", "skipped", "reports", "leaks", "s")
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for result in summary.results:
        table.add_row(
            result.patchset,
            result.suite.name,
            *(str(result.found.count(status)) for status in (Status.PASSED, Status.FAILED, Status.SKIPPED)),
            str(len(result.findings)),
            str(sum(leak.count for leak in result.found.leaks)),
            f"{result.run_s:.0f}" if result.run_s is not None else "",
            "" if result.outcome is Outcome.OK else result.outcome.value,
        )
    lines = [text_of(table, _WIDTH)]
    for title, troubles in (("wrong", summary.troubles), ("worth knowing", summary.notes)):
        if troubles:
            lines += ["", f"{title}:"]
            for trouble in troubles:
                lines += _lines_of(trouble)
    if not summary.troubles:
        lines += ["", "no regression, and no report of the kernel that the baseline does not have"]
    return "\n".join(lines)


def _lines_of(trouble: Trouble) -> list[str]:
    said = trouble.text.splitlines()
    shown = [f"      {line}" for line in said[:_SHOWN_LINES]]
    if len(said) > _SHOWN_LINES:
        shown.append(f"      and {len(said) - _SHOWN_LINES} more lines")
    return [f"  {trouble.where}: {trouble.what}", *shown]
