# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate check``: executes the same traces in a guest and in the reference model."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import defaults
from orchestrator.analysis.layout import fitted
from orchestrator.cli import completion, option
from orchestrator.cli.terminal import Terminal, terminal_of

if TYPE_CHECKING:
    from orchestrator.events import Events
    from orchestrator.execution.bench import Bench
    from orchestrator.execution.check.request import CheckRequest
    from orchestrator.store.run import RunWriter

NAME = "check"
EXAMPLE = "Example: orchestrate check --patchset core-only --seeds 1..20 --ops 1000"


def command(
    context: typer.Context,
    patchset: Annotated[
        str | None,
        typer.Option(
            "--patchset",
            "-p",
            metavar="NAME",
            help="Patchset to check, or `baseline`; default: the one named in the --trace file.",
            autocompletion=completion.patchsets,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="Check one random trace, generated from this seed.", min=0),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds", metavar="FIRST..LAST", help="Check one random trace per seed, all in one boot."
        ),
    ] = None,
    ops: Annotated[
        int, typer.Option("--ops", metavar="N", help="Operations per random trace.", min=1)
    ] = 1000,
    profile: Annotated[
        str,
        typer.Option("--profile", metavar="NAME", help=f"Mix of random operations: {option.PROFILES}."),
    ] = "mixed",
    trace: Annotated[
        list[Path] | None,
        typer.Option(
            "--trace", metavar="FILE", help="Replay this trace file instead of random operations; repeatable."
        ),
    ] = None,
    stages: Annotated[
        bool, typer.Option("--stages", help="Find the first stage at which the divergence appears.")
    ] = False,
    shrink: Annotated[bool, typer.Option(help="Shrink each diverging trace to a minimal one.")] = True,
    topology: option.Topology = defaults.CHECK_TOPOLOGY,
    accel: option.Accelerator = "auto",
    qemu: option.Qemu = None,
    cmdline: option.Cmdline = None,
    flavour: option.Flavour = "measure",
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    build_jobs: option.BuildJobs = None,
    resume: option.Resume = None,
    name: option.Name = None,
    as_json: option.Json = False,
) -> int:
    """Run the same operations in a guest and in the reference model; report, shrink and store divergences."""
    from orchestrator.execution.check.request import CheckRequest, TraceChoice, keep_traces, patchset_of
    from orchestrator.machine.topology import Topology
    from orchestrator.store.manifest import RunKind
    from orchestrator.store.run import RunWriter

    terminal = terminal_of(context)
    with terminal.events() as events:
        if resume is not None:
            option.refuse_beside_resume(context)
            writer, bench = terminal.reopen(events, resume, RunKind.CHECK, build_jobs)
            asked = CheckRequest.of_run(writer.path, writer.manifest)
            return _check(terminal, events, asked, bench, writer, as_json)
        choice = TraceChoice(trace or (), seed, seeds, ops, profile)
        bench = terminal.bench(events, source, accel, flavour, build_jobs, series)
        machine = Topology.parse(topology)
        machine.check_host(1)
        patchset = patchset or patchset_of(choice.loaded())
        traces = choice.traces(patchset, bench.series, machine)
        asked = CheckRequest(patchset, traces, machine, tuple(cmdline or ()), shrink, stages)
        manifest = asked.manifest(bench, ["orchestrate", *sys.argv[1:]])
        writer = RunWriter.create(terminal.project.results, name or f"check-{patchset}", manifest)
        keep_traces(writer.path, traces)
        return _check(terminal, events, asked, bench, writer, as_json)


def _check(
    terminal: Terminal, events: Events, asked: CheckRequest, bench: Bench, writer: RunWriter, as_json: bool
) -> int:
    from orchestrator.execution.check.report import TEXT, as_text
    from orchestrator.execution.check.run import execute

    with terminal.attempt(events, writer):
        summary = execute(asked, bench, writer)
    text = as_text(asked.patchset, summary)
    facts = {"patchset": asked.patchset, **summary.to_json()}
    terminal.conclude(writer.path, TEXT, partial(fitted, text), facts, as_json, str(writer.path))
    return summary.exit_status
