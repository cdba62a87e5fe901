# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate run``: build, boot, measure, compare with the baseline, plot."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from orchestrator import defaults
from orchestrator.cli import completion, option
from orchestrator.cli.terminal import Terminal, terminal_of
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Events

if TYPE_CHECKING:
    from orchestrator.execution.bench import Bench
    from orchestrator.execution.place import Place
    from orchestrator.experiment.experiment import Experiment
    from orchestrator.store.run import RunWriter

NAME = "run"
EXAMPLE = "Example: orchestrate run --patchset core-only --set promotion_threshold=1,64,256"

LOCAL = "local"
#: Parameters which the variants of an experiment file stand for.
_OF_VARIANTS: Final = ("patchset", "against", "settings", "cmdline")
#: What replaces what the file says of the rest: parameter -> field of :class:`Experiment`.
_OF_EXPERIMENT: Final = {
    "name": "name",
    "topology": "topology",
    "accel": "accelerator",
    "repeat": "repeat",
    "seed": "seed",
    "flavour": "flavour",
    "margin": "margin",
    "timeout": "timeout_s",
}


def command(
    context: typer.Context,
    experiment: Annotated[
        Path | None, typer.Argument(metavar="[EXPERIMENT.toml]", help="Experiment file (TOML).")
    ] = None,
    patchset: Annotated[
        list[str] | None,
        typer.Option(
            "--patchset",
            "-p",
            metavar="NAME",
            help="Patchset to compare with the baseline; repeatable.",
            autocompletion=completion.patchsets,
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="NAME",
            help="Patchset to use as the baseline.",
            autocompletion=completion.patchsets,
        ),
    ] = "baseline",
    workload: Annotated[
        list[str] | None,
        typer.Option(
            "--workload",
            "-w",
            metavar="WORKLOAD",
            help="NAME or NAME:KEY=VALUE,...; with an experiment file, the NAME of one of its workloads. Repeatable.",
            autocompletion=completion.workloads,
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            metavar="NAME",
            help="With an experiment file, the NAME of one of its variants; repeatable. Default: all.",
        ),
    ] = None,
    topology: option.Topology = option.DEFAULT_TOPOLOGY,
    accel: option.Accelerator = "auto",
    settings: option.Settings = None,
    cmdline: option.Cmdline = None,
    repeat: Annotated[
        int, typer.Option("--repeat", "-n", metavar="N", help="Fresh boots per variant and workload.")
    ] = defaults.REPEAT,
    until_decided: Annotated[
        bool,
        typer.Option(
            "--until-decided",
            help="Boot on, in looks planned ahead, until each primary metric differs or is equivalent.",
        ),
    ] = False,
    max_repeat: Annotated[
        int | None,
        typer.Option(
            "--max-repeat",
            metavar="N",
            help=f"With --until-decided: most boots per variant and workload; default: {defaults.MAX_REPEAT}.",
        ),
    ] = None,
    jobs: Annotated[
        str,
        typer.Option(
            "--jobs", "-j", metavar="N", help="Guests to run in parallel; auto: as many as suit this host."
        ),
    ] = "auto",
    executor: Annotated[
        str, typer.Option("--executor", metavar="PLACE", help="Where guests run: local, or dask://HOST:PORT.")
    ] = "local",
    build_jobs: option.BuildJobs = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed for all random choices.")] = 1,
    margin: Annotated[
        float,
        typer.Option(
            "--margin",
            metavar="FRACTION",
            help="Relative difference up to which a metric counts as unchanged.",
        ),
    ] = defaults.MARGIN,
    flavour: option.Flavour = "measure",
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", help="Limit per workload, in seconds of host time."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Finish an interrupted run: measure only what is missing.",
            autocompletion=completion.runs,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and what is cached; build and boot nothing.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name for the run, part of the directory's name."),
    ] = None,
    as_json: option.Json = False,
) -> int:
    """Build, boot, measure, compare with the baseline and plot; print the table and the run directory."""
    from orchestrator.execution.admission import parse_jobs
    from orchestrator.execution.experiment_run import manifest_of
    from orchestrator.experiment.experiment import Experiment
    from orchestrator.experiment.knob import parse_settings
    from orchestrator.experiment.variant import variants_of
    from orchestrator.guest.workload import parse_workload_arguments
    from orchestrator.machine.topology import Topology
    from orchestrator.store.run import RunWriter

    terminal = terminal_of(context)
    with terminal.events() as events:
        if resume is not None:
            option.refuse_beside_resume(context)
            return _resume(terminal, events, resume, executor, parse_jobs(jobs), build_jobs, as_json)
        guests = parse_jobs(jobs)
        until = _looks(context, until_decided, max_repeat)
        bench = terminal.bench(events, source, accel, flavour, build_jobs, series)
        if experiment is not None:
            asked = _from_file(context, experiment, bench)
            bench.flavour, bench.accelerator_request = asked.flavour, asked.accelerator
        else:
            if not patchset:
                raise UserError("name what to run: --patchset core-only, or an experiment file.")
            if variant:
                raise UserError(
                    "--variant chooses from an experiment file; --patchset names its variants itself."
                )
            asked = Experiment(
                name=name or "+".join(patchset),
                variants=variants_of(
                    patchset,
                    against,
                    parse_settings(settings or (), bench.series),
                    cmdline or (),
                    bench.series,
                ),
                workloads=parse_workload_arguments(workload or defaults.WORKLOADS, bench.workloads),
                topology=Topology.parse(topology),
                accelerator=accel,
                repeat=repeat,
                seed=seed,
                flavour=flavour,
                margin=margin,
                timeout_s=timeout,
            )
        asked = replace(asked, **until)
        bench.configuration()  # an unknown flavour is said before anything is written
        if executor == LOCAL:
            asked.topology.check_host(guests or 1)
        if dry_run:
            _print_plan(terminal, asked, bench, executor, guests, as_json)
            return 0
        place = place_of(executor, guests, asked, bench)
        writer = RunWriter.create(
            terminal.project.results, asked.name, manifest_of(asked, bench, ["orchestrate", *sys.argv[1:]])
        )
        return _measure(terminal, events, asked, bench, writer, place, as_json)


def _looks(context: typer.Context, until_decided: bool, max_repeat: int | None) -> dict[str, Any]:
    """What ``--until-decided`` makes of an experiment's repetitions; nothing where it is not given.

    Raises:
        UserError: the options contradict each other.
    """
    if not until_decided:
        if max_repeat is not None:
            raise UserError(
                "--max-repeat limits --until-decided; for a fixed number of boots, write --repeat."
            )
        return {}
    option.refuse(context, ("repeat",), "--until-decided plans its looks itself; --max-repeat limits it")
    most = defaults.MAX_REPEAT if max_repeat is None else max_repeat
    if not defaults.REPEAT <= most <= 1000:
        raise UserError(
            f"--max-repeat {most}: choose {defaults.REPEAT} to 1000; with fewer boots equivalence cannot be shown."
        )
    from orchestrator.analysis.looks import looks

    return {"repeat": looks(most)[0].repetitions, "max_repeat": most}


def _from_file(context: typer.Context, path: Path, bench: Bench) -> Experiment:
    """What an experiment file asks for, or a part of it; an option that was given replaces what the file says.

    Raises:
        UserError: the file is wrong, or an option says what its variants do.
    """
    from orchestrator.experiment.experiment import load_experiment
    from orchestrator.machine.topology import Topology

    if not path.suffix and not path.exists():
        raise UserError(
            f"there is no file {path}; to run a patchset of the series, write: orchestrate run -p {path}"
        )
    option.refuse(context, _OF_VARIANTS, "the experiment file names its variants")
    options = context.params
    whole = load_experiment(path, bench.series, bench.workloads)
    replaced = {
        field: options[parameter]
        for parameter, field in _OF_EXPERIMENT.items()
        if option.is_given(context, parameter)
    }
    if "topology" in replaced:
        replaced["topology"] = Topology.parse(replaced["topology"])
    return replace(whole.part(options["variant"] or (), options["workload"] or ()), **replaced)


def _resume(
    terminal: Terminal,
    events: Events,
    name: str,
    executor: str,
    guests: int | None,
    build_jobs: int | None,
    as_json: bool,
) -> int:
    from orchestrator.execution.provenance import requested_source
    from orchestrator.experiment.manifest import experiment_of_manifest
    from orchestrator.store.run import RunWriter, find_run

    writer = RunWriter.reopen(find_run(terminal.project.results, name))
    asked = experiment_of_manifest(writer.manifest)
    directory = writer.manifest.series.directory
    series = Path(directory) if directory else None
    bench = terminal.bench(events, None, asked.accelerator, asked.flavour, build_jobs, series)
    bench.source = requested_source(writer.manifest, bench)
    check_same_series(writer, bench)
    place = place_of(executor, guests, asked, bench)
    return _measure(terminal, events, asked, bench, writer, place, as_json)


def place_of(executor: str, guests: int | None, asked: Experiment, bench: Bench) -> Place:
    """Where ``--executor`` says that guests run.

    Args:
        guests: side by side on this host; None for as many as it takes.

    Raises:
        UserError: it is neither ``local`` nor ``dask://HOST:PORT``, or this host has too little memory.
        InfrastructureError: no scheduler answers there.
    """
    from orchestrator.execution.admission import admit
    from orchestrator.execution.place import ThisHost, scheduler_of

    if executor == LOCAL:
        return ThisHost(admit(guests, asked.topology, bench.accelerator, len(asked.cells)).guests)
    scheduler_of(executor)  # a wrong address is said before a missing package
    # Dask takes a second to import; only those who ask for it wait.
    from orchestrator.execution.cluster import Cluster

    return Cluster(executor)


def check_same_series(writer: RunWriter, bench: Bench) -> None:
    """A run is finished with the patches it was begun with, or not at all."""
    for variant in writer.manifest.variants:
        now = [stage.digest for stage in bench.series.select(variant.patchset)]
        if [stage.digest for stage in variant.stages] != now:
            raise UserError(
                f"the patches of {variant.patchset} have changed since {writer.path.name} began; start a new run."
            )


def _measure(
    terminal: Terminal,
    events: Events,
    asked: Experiment,
    bench: Bench,
    writer: RunWriter,
    place: Place,
    as_json: bool,
) -> int:
    from orchestrator.cli.attempt import attempt
    from orchestrator.cli.conclusion import conclude
    from orchestrator.execution.experiment_run import execute

    with attempt(events, writer, "orchestrate run --resume"):
        summary = execute(asked, bench, writer, place)
        found = conclude(terminal, events, writer.path, as_json)
        return 3 if found else summary.exit_status


def _print_plan(
    terminal: Terminal, asked: Experiment, bench: Bench, executor: str, guests: int | None, as_json: bool
) -> None:
    from orchestrator.execution.provenance import base_of

    cached = {patchset: bench.has_kernel(patchset) for patchset in {v.patchset for v in asked.variants}}
    image_cached = all(
        bench.has_image(layers) for layers in {bench.workloads[name].layers for name in asked.workloads}
    )
    needs = _needs(asked, bench, executor, guests)
    base = base_of(bench)
    if base.imported:
        base.remarks.extend(
            dict.fromkeys(said for patchset in cached for said in bench.tree(patchset).remarks)
        )
    if as_json:
        terminal.print_json(
            {
                "base": vars(base),
                "topology": asked.topology.text,
                "accelerator": asked.accelerator,
                "repeat": asked.repeat,
                "max_repeat": asked.max_repeat,
                "cells": [cell.id for cell in asked.cells],
                "variants": [
                    {
                        "name": variant.name,
                        "role": variant.role.value,
                        "patchset": variant.patchset,
                        "knobs": dict(variant.knobs),
                        "kernel_cached": cached[variant.patchset],
                    }
                    for variant in asked.variants
                ],
                "workloads": {name: dict(parameters) for name, parameters in asked.workloads.items()},
                "image_cached": image_cached,
                "needs": needs.facts,
            }
        )
        return
    terminal.print(f"{len(asked.cells)} cells on {asked.topology.text}, accelerator {asked.accelerator}:")
    terminal.print(f"  base {base.sentence}")
    for remark in base.remarks:
        terminal.print(f"       {remark}")
    for variant in asked.variants:
        knobs = " ".join(f"{key}={value}" for key, value in variant.knobs.items())
        kernel = "kernel cached" if cached[variant.patchset] else "kernel to be built"
        terminal.print(f"  {variant.name:<28} {variant.role.value:<9} {kernel:<19} {knobs}".rstrip())
    for workload, parameters in asked.workloads.items():
        given = " ".join(f"{key}={value}" for key, value in parameters.items())
        boots = f"{asked.repeat}, at most {asked.max_repeat}" if asked.max_repeat else f"{asked.repeat}"
        terminal.print(f"  workload {workload} x {boots}  {given}".rstrip())
    terminal.print(f"  guest image {'cached' if image_cached else 'to be built'}")
    for line in needs.lines:
        terminal.print(line)


@dataclass(frozen=True)
class _Needs:
    """What a run would take, for a person and for a machine."""

    lines: Sequence[str]
    facts: Mapping[str, object]


def _needs(asked: Experiment, bench: Bench, executor: str, guests: int | None) -> _Needs:
    from orchestrator.execution.admission import Admission, admit
    from orchestrator.execution.durations import in_words
    from orchestrator.execution.forecast import forecast, free_gib

    try:
        accelerator = bench.accelerator
    except InfrastructureError as error:  # a plan is of use without QEMU too
        return _Needs([f"accelerator  none: {error}"], {"accelerator": None, "reason": str(error)})
    here = executor == LOCAL
    admission = (
        admit(guests, asked.topology, accelerator, len(asked.cells))
        if here
        else Admission(1, f"the workers of {executor} decide")
    )
    needed = forecast(asked, bench, asked.cells, admission.guests)
    free = free_gib(bench.cache.root)
    parts = [*needed.prepare, (f"{len(asked.cells)} cells", needed.cells), ("conclusion", needed.conclude)]
    lines = [
        f"accelerator  {accelerator.reason}",
        f"guests       {admission.guests} side by side: {admission.reason}",
        f"time         about {in_words(needed.seconds)}, {needed.basis}:",
        *(f"               {name}: {in_words(each.seconds)}" for name, each in parts),
        f"disk         about {needed.disk_gib:.1f} GiB, estimated; {free:.0f} GiB are free at {bench.cache.root}",
    ]
    facts = {
        "accelerator": accelerator.name,
        "reason": accelerator.reason,
        "guests": admission.guests,
        "seconds": round(needed.seconds),
        "basis": needed.basis,
        "parts": {name: {"seconds": round(e.seconds), "basis": e.basis} for name, e in parts},
        "disk_gib": round(needed.disk_gib, 2),
        "free_gib": round(free, 1),
    }
    return _Needs(lines, facts)
