# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate test``: tests of correctness in a guest, on a kernel that checks itself."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator import defaults
from orchestrator.analysis.layout import WIDTH, listing, text_of, wrapped, wrapped_below
from orchestrator.cli import completion, option
from orchestrator.cli.terminal import terminal_of

if TYPE_CHECKING:
    from orchestrator.execution.correctness_run import CorrectnessSummary

NAME = "test"
EXAMPLE = "Example: orchestrate test --patchset full --config debug-locks --suite reservations"

#: Lines of a test's or the kernel's own words that are printed; all of them are in the run directory.
_SHOWN_LINES = 6


def command(
    context: typer.Context,
    patchset: option.Patchset = "full",
    flavour: Annotated[
        str,
        typer.Option(
            "--config",
            metavar="NAME",
            help="Kernel configuration: debug-vm, debug-locks or measure.",
            autocompletion=completion.configurations,
        ),
    ] = "debug-vm",
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", metavar="NAME", help=f"One of {option.SUITES}; repeatable. Default: all."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Name of a test; repeatable. Default: all."),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--baseline/--no-baseline",
            help="Run the same tests on the baseline, to tell regressions from old failures.",
        ),
    ] = True,
    topology: option.Topology = defaults.TEST_TOPOLOGY,
    accel: option.Accelerator = "tcg",
    cmdline: option.Cmdline = None,
    series: option.SeriesDirectory = None,
    source: option.Source = None,
    build_jobs: option.BuildJobs = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name for the run, part of the directory's name."),
    ] = None,
    as_json: option.Json = False,
) -> int:
    """Run correctness tests in guests; exit 3 if a test regressed or the kernel reported a problem."""
    from orchestrator.cli.attempt import attempt
    from orchestrator.execution.correctness import choose, having, reservation_tests
    from orchestrator.execution.correctness_run import CorrectnessTest, execute, manifest_of
    from orchestrator.machine.topology import Topology
    from orchestrator.store.run import RunWriter

    terminal = terminal_of(context)
    with terminal.events() as events:
        bench = terminal.bench(events, source, accel, flavour, build_jobs, series)
        bench.series.select(patchset)
        asked = CorrectnessTest(
            patchset,
            having(
                choose(suite or ()),
                only or (),
                [test.name for test in bench.selftest_plan.tests],
                reservation_tests(terminal.project.vm_images / "guest" / "tests"),
            ),
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
    (writer.path / "correctness.txt").write_text(as_text(summary) + "\n", encoding="utf-8")
    if as_json:
        terminal.print_json({"run": str(writer.path), **summary.to_json()})
    else:
        terminal.print(as_text(summary, terminal.width))
        terminal.print(str(writer.path))
    return summary.exit_status


def as_text(summary: CorrectnessSummary, width: int = WIDTH) -> str:
    """As :func:`text_of_summary`."""
    return text_of_summary(summary.to_json(), width)


def text_of_summary(summary: Mapping[str, Any], width: int) -> str:
    """A row per guest, then what is wrong, then what is worth knowing.

    Args:
        summary: what ``correctness.json`` holds.
        width: columns of the table and of each title; what a test or the kernel printed stays as it is.
    """
    from orchestrator.guest.ktap import Status
    from orchestrator.store.outcome import Outcome

    titles = ("kernel", "suite", "passed", "failed", "skipped", "reports", "leaks", "s", "outcome")
    rows = []
    for suite in summary["suites"]:
        statuses = [test["status"] for test in suite["tests"]]
        counts = [statuses.count(status) for status in (Status.PASSED, Status.FAILED, Status.SKIPPED)]
        counts += [len(suite["reports"]), sum(leak["count"] for leak in suite["leaks"])]
        run_s = f"{suite['run_s']:.0f}" if suite["run_s"] is not None else ""
        outcome = "" if suite["outcome"] == Outcome.OK else suite["outcome"]
        rows.append([suite["patchset"], suite["suite"], *map(str, counts), run_s, outcome])
    lines = [text_of(listing(rows, width, titles, right=range(2, 8)))]
    for title, troubles in (("wrong", summary["troubles"]), ("worth knowing", summary["notes"])):
        if troubles:
            lines += ["", f"{title}:"]
            for trouble in troubles:
                lines += _lines_of(trouble, width)
    if not summary["troubles"]:
        none = "no regression, and no report of the kernel that the baseline does not have"
        lines += ["", *wrapped(none, width)]
    return "\n".join(lines)


def _lines_of(trouble: Mapping[str, str], width: int) -> list[str]:
    said = trouble["text"].splitlines()
    shown = [f"      {line}" for line in said[:_SHOWN_LINES]]
    if len(said) > _SHOWN_LINES:
        shown.append(f"      and {len(said) - _SHOWN_LINES} more lines")
    return [*wrapped_below("  ", f"{trouble['where']}: {trouble['what']}", width, "    "), *shown]
