# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate bisect``: finds the first bad stage of a series, and the probability that this is right."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import defaults
from orchestrator.cli import completion, option
from orchestrator.cli.terminal import Terminal, terminal_of
from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.events import Events
    from orchestrator.execution.bench import Bench
    from orchestrator.execution.bisect.request import StagedSearch
    from orchestrator.model.trace import Trace
    from orchestrator.store.run import RunWriter

NAME = "bisect"
EXAMPLE = "Example: orchestrate bisect --patchset full --workload touch --until kernel-bug"


def command(
    context: typer.Context,
    commits: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TREE#GOOD..BAD]",
            help="Commits to search instead of stages; a merge is one step, as with git bisect --first-parent.",
        ),
    ] = None,
    patchset: Annotated[
        str | None,
        typer.Option(
            "--patchset",
            "-p",
            metavar="NAME",
            help="Search stages up to and including this patchset.",
            autocompletion=completion.patchsets,
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="NAME",
            help="Patchset to start from, which is expected to be good.",
            autocompletion=completion.patchsets,
        ),
    ] = "baseline",
    workload: Annotated[
        str | None,
        typer.Option(
            "--workload",
            "-w",
            metavar="WORKLOAD",
            help="NAME or NAME:KEY=VALUE,...: workload to run in each boot.",
            autocompletion=completion.workloads,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            "-m",
            metavar="CONDITION",
            help="Condition that makes a boot bad: METRIC OPERATOR VALUE; +2% and +100 are relative to --against.",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            "-u",
            metavar="OUTCOME",
            help="Outcome that makes a boot bad, e.g. kernel-bug, failure, timeout, diverges.",
        ),
    ] = None,
    matching: Annotated[
        str | None,
        typer.Option(
            "--matching", metavar="REGEX", help="Regular expression that the outcome's evidence must match."
        ),
    ] = None,
    confidence: Annotated[
        float,
        typer.Option("--confidence", metavar="P", help="Required probability that the answer is right."),
    ] = defaults.CONFIDENCE,
    rate: Annotated[
        float,
        typer.Option("--rate", metavar="SHARE", help="Lowest reproduction rate to assume for a bad stage."),
    ] = defaults.RATE,
    max_boots: Annotated[
        int, typer.Option("--max-boots", metavar="N", help="Give up after this many boots.")
    ] = defaults.MAX_BOOTS,
    settings: option.Settings = None,
    cmdline: option.Cmdline = None,
    topology: Annotated[
        str | None,
        typer.Option(
            "--topology",
            "-t",
            metavar="TOPOLOGY",
            help=f"NODESxMEMORY[/CPUS]; default: {defaults.BISECT_TOPOLOGY}, for traces {defaults.CHECK_TOPOLOGY}.",
        ),
    ] = None,
    accel: option.Accelerator = "auto",
    qemu: option.Qemu = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed for all random choices.")] = 1,
    flavour: option.Flavour = "measure",
    config_set: option.ConfigSet = None,
    cc: option.Compiler = None,
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    build_jobs: option.BuildJobs = None,
    trace: Annotated[
        list[Path] | None,
        typer.Option(
            "--trace",
            metavar="FILE",
            help="For --until diverges: replay this trace file instead of random operations; repeatable.",
        ),
    ] = None,
    ops: Annotated[
        int,
        typer.Option("--ops", metavar="N", help="For --until diverges: operations per random trace.", min=1),
    ] = 1000,
    profile: Annotated[
        str,
        typer.Option(
            "--profile",
            metavar="NAME",
            help=f"For --until diverges: mix of random operations: {option.PROFILES}.",
        ),
    ] = "mixed",
    timeout: option.Timeout = None,
    resume: option.Resume = None,
    name: option.Name = None,
    as_json: option.Json = False,
) -> int:
    """Find the first stage of a series that shows an outcome, or moves a metric past a limit."""
    from orchestrator.execution.bisect.question import DIVERGES, check_clock
    from orchestrator.execution.bisect.request import (
        BisectionRequest,
        manifest_of,
        metrics_of,
        search_of_manifest,
    )
    from orchestrator.execution.check.request import TraceChoice, keep_traces, read_traces
    from orchestrator.kernel.config import with_settings
    from orchestrator.kernel.posting import is_range
    from orchestrator.kernel.series import FULL
    from orchestrator.store.manifest import RunKind
    from orchestrator.store.run import RunWriter

    terminal = terminal_of(context)
    with terminal.events() as events:
        if resume is not None:
            option.refuse_beside_resume(context)
            writer, bench = terminal.reopen(events, resume, RunKind.BISECT, build_jobs)
            search = search_of_manifest(writer.manifest, bench)
            search.experiment.topology.check_host(1)
            names = [path.stem for path in sorted((writer.path / "logs").glob("*.trace"))]
            return _search(terminal, events, search, bench, writer, read_traces(writer.path, names), as_json)
        if commits is not None:
            option.refuse(context, ("patchset", "against", "series"), "the range names the commits to search")
            if not is_range(commits):
                raise UserError(f"{commits} is not a range of commits; write it as TREE#GOOD..BAD.")
            series, patchset = commits, FULL
        if patchset is None or (workload is None and until != DIVERGES):
            raise UserError("give the stages and the workload, e.g. --patchset full --workload touch.")
        if until == DIVERGES:
            option.refuse(
                context,
                ("settings", "timeout"),
                "--until diverges takes knobs from the trace and has no timeout",
            )
        flavour = with_settings(flavour, config_set or (), cc)
        request = BisectionRequest(
            patchset=patchset,
            against=against,
            workload=workload,
            metric=metric,
            until=until,
            matching=matching,
            confidence=confidence,
            rate=rate,
            max_boots=max_boots,
            settings=settings or (),
            cmdline=cmdline or (),
            topology=topology,
            accelerator=accel,
            seed=seed,
            flavour=flavour,
            traces=TraceChoice(trace or (), None if trace else seed, None, ops, profile),
            timeout_s=timeout,
            name=name,
        )
        bench = terminal.bench(events, source, accel, flavour, build_jobs, series)
        search, traces = request.search(bench)
        search.experiment.topology.check_host(1)
        check_clock(search.question, metrics_of(bench, search.workload), bench.accelerator.clock)
        manifest = manifest_of(search, bench, ["orchestrate", *sys.argv[1:]])
        writer = RunWriter.create(terminal.project.results, search.experiment.name, manifest)
        keep_traces(writer.path, traces)
        return _search(terminal, events, search, bench, writer, traces, as_json)


def _search(
    terminal: Terminal,
    events: Events,
    search: StagedSearch,
    bench: Bench,
    writer: RunWriter,
    traces: Mapping[str, Trace],
    as_json: bool,
) -> int:
    from orchestrator.execution.bisect import report
    from orchestrator.execution.bisect.run import LOG, execute

    with terminal.attempt(events, writer):
        verdict = execute(search, bench, writer, traces)
    terminal.conclude(
        writer.path,
        report.TEXT,
        partial(report.as_text, verdict),
        report.as_json(verdict, writer.manifest),
        as_json,
        f"log      {writer.path / LOG}",
        f"run      {writer.path}",
    )
    return report.exit_status(verdict)
