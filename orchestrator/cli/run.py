# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate run``: build, boot, measure, compare with the baseline, plot."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from orchestrator import defaults
from orchestrator.cli import completion, option
from orchestrator.cli.terminal import Terminal, terminal_of
from orchestrator.errors import UserError
from orchestrator.events import Events

if TYPE_CHECKING:
    from orchestrator.execution.bench import Bench
    from orchestrator.execution.place import Place
    from orchestrator.experiment.experiment import Experiment
    from orchestrator.store.run import RunWriter

NAME = "run"
EXAMPLE = (
    "Example: orchestrate run --patchset core-only --set promotion_threshold=1,64,256\n\n"
    "A command of your own: orchestrate run -p core-only --copy-in ./bench -w 'cmd:bench -n 3' "
    "--metric 'rate,MB/s,higher=([0-9.]+) MB/s'\n\n"
    "Two kernels built elsewhere: orchestrate run --kernel old/bzImage --kernel new/bzImage -w fault_latency"
)

#: Options that conflict with the variants of an experiment file.
_OF_VARIANTS: Final = ("patchset", "against", "settings", "swap", "cmdline", "trees", "kernel", "vmlinux")
#: Options that conflict with --compare.
_OF_SERIES: Final = ("patchset", "against", "source", "series", "variant", "kernel", "vmlinux")
#: Parameters that override an experiment file -> field of the request.
_FIELDS: Final = {
    "name": "name",
    "topology": "topology",
    "accel": "accelerator",
    "repeat": "repeat",
    "seed": "seed",
    "flavour": "flavour",
    "margin": "margin",
    "timeout": "timeout_s",
    "sample": "sample",
    "against": "against",
    "profile": "profile",
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
            help="Patchset to compare with the baseline; repeatable. Default with --series: full.",
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
    trees: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--compare",
            metavar="TREE TREE",
            help="Compare two kernel sources instead of patchsets, e.g. --compare ~/linux#v6.12 ~/linux#v6.13.",
        ),
    ] = None,
    kernel: Annotated[
        list[str] | None,
        typer.Option(
            "--kernel",
            metavar="BZIMAGE",
            help="A kernel that was built elsewhere, as a variant; repeatable. Without --patchset and --against, the "
            "first of several is the baseline.",
        ),
    ] = None,
    vmlinux: Annotated[
        list[str] | None,
        typer.Option(
            "--vmlinux",
            metavar="VMLINUX",
            help="The vmlinux of --kernel, whose build ID is compared with the guest's; repeatable, in the same order.",
        ),
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(
            "--workload",
            "-w",
            metavar="WORKLOAD",
            help="NAME or NAME:KEY=VALUE,..., or a command: 'cmd:PROGRAM ARGUMENTS'; with an experiment file, the "
            "NAME of one of its workloads. Repeatable.",
            autocompletion=completion.workloads,
        ),
    ] = None,
    copy_in: option.CopyIn = None,
    copy_out: option.CopyOut = None,
    metric: option.OwnMetric = None,
    workloads: option.Workloads = None,
    sample: option.Sample = None,
    profile: option.Profile = False,
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
    qemu: option.Qemu = None,
    settings: option.Settings = None,
    swap: option.Swap = None,
    cmdline: option.Cmdline = None,
    repeat: Annotated[
        int, typer.Option("--repeat", "-n", metavar="N", help="Fresh boots per variant and workload.")
    ] = defaults.REPEAT,
    until_decided: Annotated[
        bool,
        typer.Option(
            "--until-decided",
            help="Add boots until every primary metric is decided: different or equivalent.",
        ),
    ] = False,
    max_repeat: Annotated[
        int | None,
        typer.Option(
            "--max-repeat",
            metavar="N",
            help=f"Maximum boots per variant and workload with --until-decided; default: {defaults.MAX_REPEAT}.",
        ),
    ] = None,
    jobs: Annotated[
        str,
        typer.Option(
            "--jobs", "-j", metavar="N", help="Guests to run in parallel; auto: as many as fit this host."
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
    config_set: option.ConfigSet = None,
    cc: option.Compiler = None,
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    timeout: option.Timeout = None,
    keep: option.KeepOnFailure = False,
    resume: option.Resume = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and what is cached; build and boot nothing.")
    ] = False,
    name: option.Name = None,
    as_json: option.Json = False,
) -> int:
    """Build, boot, measure, compare with the baseline and plot; print the table and the run directory."""
    from orchestrator.debugger.profiler import check_profile
    from orchestrator.execution.admission import parse_jobs
    from orchestrator.execution.measure.commands import (
        CommandOptions,
        check_known,
        commands_of,
        commands_of_run,
    )
    from orchestrator.execution.measure.plan import plan_of
    from orchestrator.execution.measure.request import MeasureRequest, experiment_of_manifest, manifest_of
    from orchestrator.execution.place import LOCAL, place_of
    from orchestrator.experiment.knob import with_swap
    from orchestrator.experiment.variant import others_of
    from orchestrator.guest.ssh import check_loopback
    from orchestrator.guest.workload import known_workloads, own_directories
    from orchestrator.kernel.config import with_settings
    from orchestrator.kernel.prebuilt import others_of_options
    from orchestrator.kernel.series import FULL, load_series
    from orchestrator.store.manifest import RunKind
    from orchestrator.store.run import RunWriter

    terminal = terminal_of(context)
    guests = parse_jobs(jobs)
    with terminal.events() as events:
        if resume is not None:
            option.refuse_beside_resume(context)
            writer, bench = terminal.reopen(events, resume, RunKind.RUN, build_jobs, keep=keep)
            known = known_workloads(terminal.project.guest_workloads, own_directories(workloads or ()))
            if writer.manifest.probes and executor != LOCAL:
                raise UserError("the probes of an experiment need guests on this host; use --executor local.")
            bench.use_workloads({**known, **commands_of_run(writer.manifest.workloads)})
            check_known(writer.manifest.workloads, bench.workloads)
            asked = experiment_of_manifest(writer.manifest)
            place = place_of(executor, guests, asked, bench)
            return _measure(terminal, events, asked, bench, writer, place, as_json)
        if experiment is not None:
            option.refuse(context, _OF_VARIANTS, "the experiment file defines the variants")
        if until_decided:
            option.refuse(
                context, ("repeat",), "--until-decided chooses the number of boots; --max-repeat limits it"
            )
        if trees is not None:
            option.refuse(context, _OF_SERIES, "--compare takes two whole sources")
            source = trees[0]
        elif series is not None and experiment is None and not patchset and not kernel:
            patchset = [FULL]
        chosen, commands = commands_of(
            workload or (), CommandOptions(copy_in or (), copy_out or (), metric or ())
        )
        if commands and experiment is not None:
            raise UserError("the experiment file defines the workloads; omit --workload cmd:.")
        known = {
            **known_workloads(terminal.project.guest_workloads, own_directories(workloads or ())),
            **commands,
        }
        request = MeasureRequest(
            file=experiment,
            patchsets=patchset or (),
            against=against,
            workloads=chosen,
            variants=variant or (),
            topology=topology,
            accelerator=accel,
            settings=with_swap(settings, swap),
            cmdline=cmdline or (),
            repeat=repeat,
            seed=seed,
            margin=margin,
            flavour=flavour,
            timeout_s=timeout,
            name=name,
            given=frozenset(
                field for parameter, field in _FIELDS.items() if option.is_given(context, parameter)
            ),
            until_decided=until_decided,
            max_repeat=max_repeat,
            trees=trees,
            kernels=others_of_options(kernel or (), vmlinux or ()),
            sample=tuple(sample or ()),
            profile=profile,
        )
        if series is not None:  # a range or mail becomes a directory, once
            series = terminal.series_directory(series)
        asked = request.experiment(load_series(terminal.series_directory(series)), known, defaults.WORKLOADS)
        asked = replace(asked, flavour=with_settings(asked.flavour, config_set or (), cc))
        if keep and executor != LOCAL:
            raise UserError("--keep-on-failure keeps guests of this host; use --executor local.")
        if asked.probes and executor != LOCAL:
            raise UserError("the probes of an experiment need guests on this host; use --executor local.")
        bench = terminal.bench(
            events,
            source,
            asked.accelerator,
            asked.flavour,
            build_jobs,
            series,
            others_of(asked.variants),
            keep=keep,
            dwarf=asked.needs_dwarf,
        )
        bench.use_workloads(known)
        if executor == LOCAL:
            asked.topology.check_host(guests or 1)
            if not dry_run:
                check_loopback()
        if dry_run:
            plan = plan_of(asked, bench, executor, guests)
            if as_json:
                terminal.print_json(plan.to_json())
            else:
                terminal.print("\n".join(plan.lines))
            return 0
        if asked.profile:
            check_profile(bench.accelerator.name)
        place = place_of(executor, guests, asked, bench)
        manifest = manifest_of(asked, bench, ["orchestrate", *sys.argv[1:]])
        writer = RunWriter.create(terminal.project.results, asked.name, manifest)
        return _measure(terminal, events, asked, bench, writer, place, as_json)


def _measure(
    terminal: Terminal,
    events: Events,
    asked: Experiment,
    bench: Bench,
    writer: RunWriter,
    place: Place,
    as_json: bool,
) -> int:
    from orchestrator.execution.measure.report import conclude
    from orchestrator.execution.measure.run import execute

    with terminal.attempt(events, writer):
        summary = execute(asked, bench, writer, place)
        conclusion = conclude(writer.path, events, terminal.durations)
    if as_json:
        terminal.print_json({"run": str(writer.path), **json.loads(conclusion.comparison.to_json())})
    else:
        terminal.print_table(conclusion.comparison)
        if conclusion.functions:
            terminal.print(f"\n{conclusion.functions}\n")
        for plot in conclusion.plots:
            if plot.suffix == ".png":
                terminal.print(f"plot     {plot}")
        terminal.print(f"report   {conclusion.page}")
        terminal.print(f"run      {writer.path}")
    return 3 if conclusion.found_something else summary.exit_status
