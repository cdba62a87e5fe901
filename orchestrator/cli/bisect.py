# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate bisect``: the first stage of a series that does something, and how sure that is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import defaults
from orchestrator.analysis.layout import WIDTH, listing, text_of, wrapped
from orchestrator.cli import completion, option
from orchestrator.cli.terminal import Terminal, terminal_of
from orchestrator.errors import UserError
from orchestrator.events import Events
from orchestrator.spelling import hint

if TYPE_CHECKING:
    from orchestrator.execution.bench import Bench
    from orchestrator.execution.measured_cell import CellResult
    from orchestrator.execution.stage_trial import StageTrial
    from orchestrator.execution.staged_bisection import Verdict
    from orchestrator.experiment.cell import Cell
    from orchestrator.experiment.question import Question
    from orchestrator.experiment.staged_search import StagedSearch
    from orchestrator.kernel.build import KernelBuild
    from orchestrator.model.trace import Trace
    from orchestrator.store.manifest import Manifest
    from orchestrator.store.observation import Metric
    from orchestrator.store.run import RunWriter

NAME = "bisect"
EXAMPLE = "Example: orchestrate bisect --patchset full --workload touch --until kernel-bug"
DEFAULT_TOPOLOGY = "2x512M"


def command(
    context: typer.Context,
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
            help="Condition of a bad boot: METRIC OPERATOR VALUE; +2% and +100 are relative to --against.",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            "-u",
            metavar="OUTCOME",
            help="Outcome of a bad boot: e.g. kernel-bug, failure, timeout, diverges.",
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
            help=f"NODESxMEMORY[/CPUS]; default: {DEFAULT_TOPOLOGY}, for traces {defaults.CHECK_TOPOLOGY}.",
        ),
    ] = None,
    accel: option.Accelerator = "auto",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed for all random choices.")] = 1,
    flavour: option.Flavour = "measure",
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
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", help="Limit per workload, in seconds of host time."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Continue an interrupted bisection.",
            autocompletion=completion.runs,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name for the run, part of the directory's name."),
    ] = None,
    as_json: option.Json = False,
) -> int:
    """Find the first stage of a series that shows an outcome, or moves a metric past a limit."""
    from orchestrator.execution.check_run import WORKLOAD as CHECK
    from orchestrator.execution.check_run import known_stages, load_trace, memory_nodes
    from orchestrator.execution.experiment_run import manifest_of
    from orchestrator.experiment.experiment import Experiment
    from orchestrator.experiment.knob import parse_settings
    from orchestrator.experiment.question import DIVERGES, check_clock
    from orchestrator.experiment.staged_search import StagedSearch, stage_variants
    from orchestrator.guest.workload import parse_workload_arguments
    from orchestrator.machine.topology import Topology
    from orchestrator.model.generator import PROFILES, generate
    from orchestrator.model.trace import format_trace
    from orchestrator.store.manifest import RunKind, WorkloadRecord
    from orchestrator.store.run import RunWriter

    terminal = terminal_of(context)
    with terminal.events() as events:
        if resume is not None:
            option.refuse_beside_resume(context)
            return _resume(terminal, events, resume, build_jobs, as_json)
        diverges = until == DIVERGES
        if patchset is None or (workload is None and not diverges):
            raise UserError("name the stages and what shows it: --patchset full --workload touch.")
        bench = terminal.bench(events, source, accel, flavour, build_jobs, series)
        chosen: Mapping[str, Mapping[str, str]]
        traces: Mapping[str, Trace] = {}
        if diverges:
            if workload not in (None, CHECK):
                raise UserError(f"--until diverges runs traces, not the workload {workload}; leave it out.")
            if profile not in PROFILES:
                raise UserError(f"--profile {profile}: unknown profile; {hint(profile, PROFILES)}")
            chosen = {CHECK: {}}
            names = known_stages(bench.series.select(patchset))
            option.refuse(context, ("settings", "timeout"), "a trace has its own knobs and no bound")
            topology = topology or defaults.CHECK_TOPOLOGY
            # The same trace as that of `orchestrate check` with this seed, which depends on the nodes.
            nodes = memory_nodes(Topology.parse(topology))
            traces = {path.stem: load_trace(path) for path in trace or ()} or {
                f"seed-{seed}": generate(seed, ops, profile, names, nodes=nodes)
            }
        else:
            assert workload is not None
            if trace:
                raise UserError("--trace is for --until diverges; a workload has no traces.")
            chosen = parse_workload_arguments([workload], bench.workloads)
        variants, stages = stage_variants(
            patchset, against, parse_settings(settings or (), bench.series), cmdline or (), bench.series
        )
        asked = _question(metric, until, matching, _metrics_of(bench, next(iter(chosen))))
        experiment = Experiment(
            name=name or f"bisect-{patchset}",
            variants=variants,
            workloads=chosen,
            topology=Topology.parse(topology or DEFAULT_TOPOLOGY),
            accelerator=accel,
            seed=seed,
            flavour=flavour,
            timeout_s=timeout,
        )
        search = StagedSearch(experiment, stages, asked, confidence, rate, max_boots)
        experiment.topology.check_host(1)
        check_clock(asked, _metrics_of(bench, search.workload), bench.accelerator.clock)
        described = replace(experiment, workloads={}) if diverges else experiment
        manifest = replace(
            manifest_of(described, bench, ["orchestrate", *sys.argv[1:]]),
            kind=RunKind.BISECT,
            cells=(),
            bisection=search.record,
        )
        if diverges:
            manifest = replace(manifest, workloads={CHECK: WorkloadRecord(title="Traces")})
        writer = RunWriter.create(terminal.project.results, experiment.name, manifest)
        for each, content in traces.items():
            (writer.path / "logs" / f"{each}.trace").write_text(format_trace(content), encoding="utf-8")
        return _search(terminal, events, search, bench, writer, as_json)


def _resume(terminal: Terminal, events: Events, name: str, build_jobs: int | None, as_json: bool) -> int:
    from orchestrator.cli.run import check_same_series
    from orchestrator.execution.provenance import requested_source
    from orchestrator.experiment.staged_search import search_of_manifest
    from orchestrator.store.run import RunWriter, find_run

    path = find_run(terminal.project.results, name)
    writer = RunWriter.reopen(path)
    manifest = writer.manifest
    asked = manifest.bisection
    if asked is None:
        raise UserError(f"{path.name} is no bisection; finish it with: orchestrate run --resume {path.name}")
    directory = manifest.series.directory
    bench = terminal.bench(
        events,
        None,
        manifest.accelerator.name,
        manifest.flavour,
        build_jobs,
        Path(directory) if directory else None,
    )
    bench.source = requested_source(manifest, bench)
    check_same_series(writer, bench)
    metrics = _metrics_of(bench, next(iter(manifest.workloads)))
    question = _question(asked.metric, asked.until, asked.matching, metrics)
    search = search_of_manifest(manifest, question, bench.series)
    search.experiment.topology.check_host(1)
    return _search(terminal, events, search, bench, writer, as_json)


def _question(
    metric: str | None, until: str | None, matching: str | None, metrics: Sequence[Metric]
) -> Question:
    from orchestrator.experiment.question import parse_metric, parse_until

    if (metric is None) == (until is None):
        raise UserError(
            "say what to look for: either --metric 'fault_insns.p50 > +2%' or --until kernel-bug."
        )
    if until is not None:
        return parse_until(until, matching)
    if matching is not None:
        raise UserError("--matching looks into the evidence of an outcome; give it with --until.")
    assert metric is not None
    return parse_metric(metric, metrics)


def _metrics_of(bench: Bench, workload: str) -> Sequence[Metric]:
    """Those that a cell may have; traces have none."""
    from orchestrator.execution.check_run import WORKLOAD as CHECK
    from orchestrator.execution.derived import derived_metrics
    from orchestrator.guest.sampler import SAMPLER_METRICS

    if workload == CHECK:
        return ()
    return [
        *bench.workloads[workload].metrics.values(),
        *derived_metrics(bench.series).values(),
        *SAMPLER_METRICS.values(),
    ]


def _search(
    terminal: Terminal,
    events: Events,
    search: StagedSearch,
    bench: Bench,
    writer: RunWriter,
    as_json: bool,
) -> int:
    from orchestrator.analysis.bisection import Conclusion
    from orchestrator.cli.attempt import attempt
    from orchestrator.execution.check_run import load_trace
    from orchestrator.execution.measured_cell import measure_cell
    from orchestrator.execution.stage_trial import WorkloadTrial
    from orchestrator.execution.staged_bisection import LOG, StagedBisection
    from orchestrator.execution.trace_trial import TraceTrial
    from orchestrator.experiment.question import DivergenceQuestion

    def measure(cell: Cell, kernel: KernelBuild, log_directory: Path) -> CellResult:
        return measure_cell(cell, search.experiment, bench, kernel, log_directory)

    trial: StageTrial
    if isinstance(search.question, DivergenceQuestion):
        traces = {path.stem: load_trace(path) for path in sorted((writer.path / "logs").glob("*.trace"))}
        trial = TraceTrial(search.experiment, bench, traces)
    else:
        trial = WorkloadTrial(measure, search.question)
    with attempt(events, writer, "orchestrate bisect --resume"):
        writer.update_manifest(accelerator=bench.accelerator.record)
        verdict = StagedBisection(search, bench, writer, trial).run()
    if as_json:
        terminal.print_json(_as_json(verdict, writer.manifest, writer.path))
    else:
        terminal.print(_as_text(verdict, terminal.width))
        terminal.print(f"log      {writer.path / LOG}")
        terminal.print(f"run      {writer.path}")
    return {
        Conclusion.FOUND: 3,
        Conclusion.ALREADY: 3,
        Conclusion.NONE: 0,
        Conclusion.UNDECIDED: 1,
    }[verdict.answer.conclusion]


def _as_json(verdict: Verdict, manifest: Manifest, path: Path) -> dict[str, object]:
    assert manifest.bisection is not None
    # One of metric and until is asked for; the other is left out.
    asked = {
        key: value
        for key, value in asdict(manifest.bisection).items()
        if value is not None or key not in ("metric", "until")
    }
    return {
        **asked,
        "run": str(path),
        "boots": [
            {
                "stage": boot.stage,
                "cell": boot.cell,
                "why": boot.why,
                "mark": boot.judgement.mark.value,
                "text": boot.judgement.text,
                "value": boot.judgement.value,
            }
            for boot in verdict.boots
        ],
    }


def _as_text(verdict: Verdict, width: int = WIDTH) -> str:
    """A row per stage, and the sentence.

    Args:
        width: columns.
    """
    from orchestrator.analysis.bisection import Conclusion
    from orchestrator.execution.staged_bisection import sentence, titled

    search = verdict.search
    rows = []
    for position in range(len(search.experiment.variants)):
        good, bad = verdict.counts(position)
        first = position in verdict.answer.candidates and verdict.answer.conclusion is Conclusion.FOUND
        seen = _seen(verdict, position)
        label = titled(search, position)
        rows.append((f"{'→' if first else ' '} {label}", str(good or ""), str(bad or ""), seen))
    titles = ("  stage", "good", "bad", "what was seen")
    table = text_of(listing(rows, width, titles, right=(1, 2)))
    return "\n".join([table, "", *wrapped(sentence(verdict), width)])


def _seen(verdict: Verdict, stage: int) -> str:
    if stage in verdict.unbuilt:
        return f"does not build: {verdict.unbuilt[stage].splitlines()[0]}"
    if stage in verdict.equal:
        return f"the same kernel as {verdict.search.experiment.variants[verdict.equal[stage]].name}"
    texts = [boot.judgement.text for boot in verdict.boots if boot.stage == stage]
    if stage in verdict.skipped:
        return f"skipped: {texts[-1]}" if texts else "skipped"
    return texts[-1] if texts else ""
