# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate try``: the shortest answer after a change."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import completion, option
from orchestrator.cli.terminal import terminal_of
from orchestrator.errors import UserError
from orchestrator.temporary import temporary_directory

if TYPE_CHECKING:
    from orchestrator.cache import Cache
    from orchestrator.execution.bench import Bench
    from orchestrator.execution.trial.run import Attempt
    from orchestrator.kernel.series import OtherKernel

NAME = "try"
EXAMPLE = "Example: orchestrate try --patchset core-only --patch change.patch"
#: Most counters to print.
_COUNTERS = 15


def command(
    context: typer.Context,
    patchset: option.Patchset,
    patch: Annotated[
        Path | None,
        typer.Option(
            "--patch",
            metavar="FILE",
            help="Patch (git format-patch) to apply on top; it is tried beside the patchset without it.",
        ),
    ] = None,
    source: option.Source = None,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="NAME",
            help="Patchset to compare with, without --patch and without uncommitted changes in --source.",
            autocompletion=completion.patchsets,
        ),
    ] = "baseline",
    workload: Annotated[
        str,
        typer.Option(
            "--workload",
            "-w",
            metavar="NAME[:KEY=VALUE,...]",
            help="Workload to run once; in its quick size if no parameter is given.",
            autocompletion=completion.workloads,
        ),
    ] = "touch",
    topology: option.Topology = "2x512M",
    accel: option.Accelerator = "icount",
    settings: option.Settings = None,
    cmdline: option.Cmdline = None,
    flavour: option.Flavour = "measure",
    series: option.SeriesDirectory = None,
    build_jobs: option.BuildJobs = None,
    clone: Annotated[
        bool,
        typer.Option("--clone/--no-clone", help="Start clones of saved boots, or boot new guests."),
    ] = True,
    as_json: option.Json = False,
) -> int:
    """Build what changed, run a workload once before and after the change, and say what is wrong and what moved.

    It answers in seconds whether a change works: the outcome, the kernel's reports, the identities of the series'
    counters, and the counters that moved. One run per kernel is no measurement; for that, use run.

    With --source TREE, uncommitted changes in TREE are the change. With --patch FILE it is the patch. Else the patchset
    is compared with --against.
    """
    from orchestrator.execution.trial.run import attempt, moved
    from orchestrator.experiment.knob import parse_settings
    from orchestrator.guest.workload import parse_workload_arguments
    from orchestrator.machine.topology import Topology

    terminal = terminal_of(context)
    others, names = _sides(patchset, against, patch, source, terminal.cache)
    began = time.monotonic()
    with (
        temporary_directory("logs") as logs,
        terminal.events() as events,
    ):
        bench = terminal.bench(events, source, accel, flavour, build_jobs, series, others)
        asked = workload if ":" in workload or workload not in bench.workloads else _quick(workload, bench)
        ((chosen, parameters),) = parse_workload_arguments([asked], bench.workloads).items()
        knobs = {}
        for key, values in parse_settings(settings or (), bench.series).items():
            if len(values) > 1:
                raise UserError(f"--set {key}: a guest takes one value, not {','.join(values)}.")
            knobs[key] = values[0]
        guests = Topology.parse(topology)
        guests.check_host(1)
        for name in names:
            bench.series.select(name)
        kernels = [bench.kernel(name) for name in names]
        trials = []
        for number, (name, kernel) in enumerate(zip(names, kernels, strict=True)):
            with events.step("try", name):
                trials.append(
                    attempt(
                        name,
                        kernel,
                        bench,
                        guests,
                        chosen,
                        parameters,
                        knobs,
                        cmdline or (),
                        logs / str(number),
                        clone=clone,
                    )
                )
    before, after = trials
    counters = moved(before, after)
    if as_json:
        terminal.print_json(
            {
                "seconds": round(time.monotonic() - began, 1),
                "workload": asked,
                "sides": [_facts(each) for each in trials],
                "moved": [{"counter": name, "before": old, "after": new} for name, old, new in counters],
            }
        )
    else:
        terminal.print(_text(before, after, counters, asked, len(bench.series.identities)))
    if any(each.ending.is_lost for each in trials):
        return 1
    return 0 if after.is_good else 3


def _sides(
    patchset: str, against: str, patch: Path | None, source: str | None, cache: Cache
) -> tuple[dict[str, OtherKernel], tuple[str, str]]:
    """The kernels that are no patchsets of the series, and the names of both kernels, that with the change last."""
    from orchestrator.kernel.posting import series_directory
    from orchestrator.kernel.series import OtherKernel
    from orchestrator.kernel.source import has_changes

    if patch is not None:
        if not patch.is_file():
            raise UserError(f"--patch {patch}: there is no such file.")
        directory = series_directory(patch, cache)
        name = f"{patchset} with {patch.name}"
        return {name: OtherKernel(patchset=patchset, on_top=str(directory))}, (patchset, name)
    if source is not None and has_changes(source):
        name = f"{patchset} before the changes"
        return {name: OtherKernel(source=f"{source}#HEAD", patchset=patchset)}, (name, patchset)
    if patchset == against:
        raise UserError(
            f"there is nothing to try: {patchset} would be compared with itself; give --patch FILE, or a --source TREE "
            "with uncommitted changes, or another --patchset."
        )
    return {}, (against, patchset)


def _quick(workload: str, bench: Bench) -> str:
    quick = bench.workloads[workload].quick
    return f"{workload}:size=quick" if quick else workload


def _facts(trial: Attempt) -> dict[str, object]:
    return {
        "name": trial.name,
        "outcome": trial.ending.outcome.value,
        "evidence": trial.ending.evidence,
        "reports": [each.title for each in trial.ending.findings],
        "is_clone": trial.is_clone,
        "start_s": round(trial.start_s, 2),
        "run_s": round(trial.run_s, 2),
        "metrics": {name: {"value": value, "unit": unit} for name, (value, unit) in trial.metrics.items()},
        "inconsistent": list(trial.inconsistent),
    }


def _text(
    before: Attempt, after: Attempt, counters: list[tuple[str, int, int]], workload: str, identities: int
) -> str:
    rows = [
        (f"workload {workload}", before.name, after.name),
        ("outcome", before.ending.outcome.value, after.ending.outcome.value),
        ("guest", *(f"{_kind(each)} in {each.start_s:.1f} s" for each in (before, after))),
        ("workload", *(f"{each.run_s:.1f} s" for each in (before, after))),
    ]
    for metric in {**before.metrics, **after.metrics}:
        values = [each.metrics.get(metric) for each in (before, after)]
        unit = next(value[1] for value in values if value is not None)
        rows.append(
            (f"{metric} [{unit}]", *("-" if value is None else f"{value[0]:,.6g}" for value in values))
        )
    rows += [(f"vmstat {name}", f"{old:+,}", f"{new:+,}") for name, old, new in counters[:_COUNTERS]]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}".rstrip() for row in rows]
    if len(counters) > _COUNTERS:
        lines.append(f"{len(counters) - _COUNTERS} more counters moved; --json lists them")
    for trial in (before, after):
        lines += [f"{trial.name}: {report}" for report in trial.ending.reports if not trial.ending.is_ok]
        lines += [f"{trial.name}: {sentence}" for sentence in trial.inconsistent]
    if identities and after.ending.is_ok and not after.inconsistent:
        what = "the identity" if identities == 1 else f"the {identities} identities"
        lines.append(f"the counters satisfy {what} of the series")
    return "\n".join(lines)


def _kind(trial: Attempt) -> str:
    return "clone" if trial.is_clone else "boot"
