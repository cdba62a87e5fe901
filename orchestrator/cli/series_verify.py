# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate series verify``: builds, boots and checks every stage."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import defaults
from orchestrator.cli import option
from orchestrator.cli.terminal import Terminal, terminal_of

if TYPE_CHECKING:
    from orchestrator.events import Events
    from orchestrator.execution.bench import Bench
    from orchestrator.execution.verify.request import VerificationRequest
    from orchestrator.store.run import RunWriter

NAME = "verify"
EXAMPLE = (
    "Example: orchestrate series verify --stage 5\n\n"
    "Other options and architectures: orchestrate series verify --without KSM,SWAP,NUMA --also arm64-64k --also i386"
)


def command(
    context: typer.Context,
    stage: Annotated[
        list[str] | None,
        typer.Option("--stage", metavar="STAGE", help="Number or name of a stage; repeatable. Default: all."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="CHECK", help=f"One of {option.CHECKS}; repeatable. Default: all."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            metavar="OPTION,...",
            help="Build with each of these options off, instead of THP, NUMA and MEMCG, e.g. KSM,SWAP,NUMA.",
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            metavar="CHECK",
            help=f"One more check: {option.MORE_CHECKS}; repeatable.",
        ),
    ] = None,
    topology: option.Topology = defaults.VERIFY_TOPOLOGY,
    accel: option.Accelerator = "auto",
    qemu: option.Qemu = None,
    flavour: option.Flavour = "measure",
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    build_jobs: option.BuildJobs = None,
    resume: option.Resume = None,
    name: option.Name = None,
    as_json: option.Json = False,
) -> int:
    """Check each stage separately: apply its patch, check its style, build it, run sparse, boot it, test it."""
    from orchestrator.execution.verify.request import VerificationRequest
    from orchestrator.store.manifest import RunKind
    from orchestrator.store.run import RunWriter

    terminal = terminal_of(context)
    with terminal.events() as events:
        if resume is not None:
            option.refuse_beside_resume(context)
            writer, bench = terminal.reopen(events, resume, RunKind.VERIFY, build_jobs)
            asked = VerificationRequest.of_run(writer.path, writer.manifest)
            return _verify(terminal, events, asked, bench, writer, as_json)
        bench = terminal.bench(events, source, accel, flavour, build_jobs, series)
        asked = VerificationRequest.parse(
            stage or (), only or (), topology, bench.series, without or (), also or ()
        )
        asked.topology.check_host(1)
        manifest = asked.manifest(bench, ["orchestrate", *sys.argv[1:]])
        writer = RunWriter.create(terminal.project.results, name or manifest.name, manifest)
        return _verify(terminal, events, asked, bench, writer, as_json)


def _verify(
    terminal: Terminal,
    events: Events,
    asked: VerificationRequest,
    bench: Bench,
    writer: RunWriter,
    as_json: bool,
) -> int:
    from orchestrator.execution.verify.report import TEXT, table
    from orchestrator.execution.verify.run import execute, read_summary

    try:
        with terminal.attempt(events, writer):
            summary = execute(asked, bench, writer)
    except KeyboardInterrupt:
        kept = read_summary(writer.path)
        if kept["stages"] and not as_json:
            terminal.print(table(kept, terminal.width))
        raise
    facts = summary.to_json()
    terminal.conclude(writer.path, TEXT, partial(table, facts), facts, as_json, f"run      {writer.path}")
    return summary.exit_status
