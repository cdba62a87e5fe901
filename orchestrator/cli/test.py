# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate test``: runs correctness tests in guests with debug kernels."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import defaults
from orchestrator.cli import completion, option
from orchestrator.cli.terminal import Terminal, terminal_of

if TYPE_CHECKING:
    from orchestrator.events import Events
    from orchestrator.execution.bench import Bench
    from orchestrator.execution.correctness.request import CorrectnessRequest
    from orchestrator.store.run import RunWriter

NAME = "test"
EXAMPLE = "Example: orchestrate test --patchset full --config debug-locks --suite reservations"


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
        typer.Option(
            "--suite",
            metavar="NAME",
            help=f"One of {option.SUITES}; repeatable. Default: all but hostile and races.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Name of a test; repeatable. Default: all."),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--baseline/--no-baseline",
            help="Also run the tests on the baseline, to tell regressions from existing failures.",
        ),
    ] = True,
    minutes: Annotated[
        int | None,
        typer.Option(
            "--minutes",
            metavar="N",
            min=1,
            help="Duration of the stress of --suite hostile, in guest minutes; default: 10.",
        ),
    ] = None,
    topology: option.Topology = defaults.TEST_TOPOLOGY,
    accel: option.Accelerator = "tcg",
    qemu: option.Qemu = None,
    cmdline: option.Cmdline = None,
    series: option.SeriesDirectory = None,
    source: option.Source = None,
    build_jobs: option.BuildJobs = None,
    keep: option.KeepOnFailure = False,
    resume: option.Resume = None,
    name: option.Name = None,
    as_json: option.Json = False,
) -> int:
    """Run correctness tests in guests; exit 3 if a test regressed or the kernel reported a problem."""
    from orchestrator.errors import UserError
    from orchestrator.execution.correctness.request import CorrectnessRequest
    from orchestrator.execution.correctness.suite import choose_for, having, reservation_tests
    from orchestrator.machine.topology import Topology
    from orchestrator.store.manifest import RunKind
    from orchestrator.store.run import RunWriter

    terminal = terminal_of(context)
    with terminal.events() as events:
        if resume is not None:
            option.refuse_beside_resume(context)
            writer, bench = terminal.reopen(events, resume, RunKind.TEST, build_jobs, keep=keep)
            asked = CorrectnessRequest.of_run(writer.path, writer.manifest)
            return _test(terminal, events, asked, bench, writer, as_json)
        bench = terminal.bench(events, source, accel, flavour, build_jobs, series, keep=keep)
        bench.series.select(patchset)
        chosen = having(
            choose_for(bench.series, suite or (), bench.series_directory is None),
            only or (),
            [test.name for test in bench.selftest_plan.tests],
            reservation_tests(terminal.project.vm_images / "guest" / "tests"),
        )
        if minutes is not None and not any(each.hostile_s for each in chosen):
            raise UserError("--minutes is for the hostile stress only; add --suite hostile.")
        asked = CorrectnessRequest(
            patchset,
            tuple(each.lasting(minutes) for each in chosen),
            Topology.parse(topology),
            tuple(only or ()),
            tuple(cmdline or ()),
            compare,
            minutes,
        )
        asked.topology.check_host(1)
        manifest = asked.manifest(bench, ["orchestrate", *sys.argv[1:]])
        writer = RunWriter.create(terminal.project.results, name or f"test-{patchset}-{flavour}", manifest)
        return _test(terminal, events, asked, bench, writer, as_json)


def _test(
    terminal: Terminal,
    events: Events,
    asked: CorrectnessRequest,
    bench: Bench,
    writer: RunWriter,
    as_json: bool,
) -> int:
    from orchestrator.execution.correctness.report import TEXT, as_text
    from orchestrator.execution.correctness.run import execute

    with terminal.attempt(events, writer):
        summary = execute(asked, bench, writer)
    terminal.conclude(
        writer.path, TEXT, partial(as_text, summary), summary.to_json(), as_json, str(writer.path)
    )
    return summary.exit_status
