# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate check``: the same trace in a guest and in the reference model."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import defaults
from orchestrator.analysis.layout import WIDTH, fitted
from orchestrator.cli import completion, option
from orchestrator.cli.terminal import terminal_of
from orchestrator.errors import UserError
from orchestrator.spelling import hint

if TYPE_CHECKING:
    from orchestrator.execution.check_run import CheckSummary
    from orchestrator.model.trace import Trace

NAME = "check"
EXAMPLE = "Example: orchestrate check --patchset core-only --seeds 1..20 --ops 1000"

_SEEDS = re.compile(r"(\d{1,18})(?:\.\.(\d{1,18}))?")
_MOST_SEEDS = 100_000
#: Lines of the kernel's report that are printed.
_SHOWN_LINES = 20


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
    shrink: Annotated[bool, typer.Option(help="Reduce each diverging trace to a short one.")] = True,
    topology: option.Topology = defaults.CHECK_TOPOLOGY,
    accel: option.Accelerator = "auto",
    cmdline: option.Cmdline = None,
    flavour: option.Flavour = "measure",
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    build_jobs: option.BuildJobs = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name for the run, part of the directory's name."),
    ] = None,
    as_json: option.Json = False,
) -> int:
    """Do the same operations in a guest and in the reference model; report, shrink and keep divergences."""
    from orchestrator.cli.attempt import attempt
    from orchestrator.execution.check_run import (
        Check,
        execute,
        known_stages,
        load_trace,
        manifest_of,
        memory_nodes,
    )
    from orchestrator.machine.topology import Topology
    from orchestrator.model.generator import PROFILES, generate
    from orchestrator.store.run import RunWriter

    terminal = terminal_of(context)
    if profile not in PROFILES:
        raise UserError(f"--profile {profile}: unknown profile; {hint(profile, PROFILES)}")
    if trace and (seed is not None or seeds is not None):
        raise UserError("give --trace or seeds, not both; a trace file is what its seed made.")
    with terminal.events() as events:
        bench = terminal.bench(events, source, accel, flavour, build_jobs, series)
        machine = Topology.parse(topology)
        machine.check_host(1)
        loaded = {path.stem: load_trace(path) for path in trace or ()}
        if len(loaded) < len(trace or ()):
            raise UserError("two of the --trace files have the same name; their results would, too.")
        patchset = patchset or _patchset_of(loaded)
        names = known_stages(bench.series.select(patchset))
        asked = Check(
            patchset,
            loaded
            or {
                f"seed-{each}": generate(each, ops, profile, names, nodes=memory_nodes(machine))
                for each in parse_seeds(seed, seeds)
            },
            machine,
            tuple(cmdline or ()),
            shrink,
            stages,
        )
        writer = RunWriter.create(
            terminal.project.results,
            name or f"check-{patchset}",
            manifest_of(asked, bench, ["orchestrate", *sys.argv[1:]]),
        )
        with attempt(events, writer):
            summary = execute(asked, bench, writer)
    text = as_text(patchset, summary)
    (writer.path / "check.txt").write_text(fitted(text, WIDTH) + "\n", encoding="utf-8")
    if as_json:
        terminal.print_json({"run": str(writer.path), "patchset": patchset, **summary.to_json()})
    else:
        terminal.print(fitted(text, terminal.width))
        terminal.print(str(writer.path))
    return summary.exit_status


def parse_seeds(seed: int | None, seeds: str | None) -> range:
    """The seeds that ``--seed N`` or ``--seeds FIRST..LAST`` ask for; 1 where neither was given.

    Raises:
        UserError: both, or no such range.

    >>> parse_seeds(None, "3..5")
    range(3, 6)
    """
    if seeds is None:
        return range(1, 2) if seed is None else range(seed, seed + 1)
    if seed is not None:
        raise UserError("give --seed or --seeds, not both.")
    match = _SEEDS.fullmatch(seeds.strip())
    if match is None:
        raise UserError(f"--seeds {seeds}: write FIRST..LAST, e.g. 1..100.")
    first = int(match[1])
    last = int(match[2] or first)
    if not first <= last < first + _MOST_SEEDS:
        raise UserError(f"--seeds {seeds}: that is no range of 1 to {_MOST_SEEDS} seeds.")
    return range(first, last + 1)


def _patchset_of(traces: dict[str, Trace]) -> str:
    """The patchset that the trace files name, if they all name the same."""
    named = {trace.patchset for trace in traces.values() if trace.patchset}
    if len(named) == 1:
        return named.pop()
    if named:
        raise UserError(
            f"the traces are for {' and '.join(sorted(named))}; say which one to check: --patchset."
        )
    raise UserError("name what to check: --patchset core-only, or --patchset baseline.")


def _wrapped(label: str, names: Sequence[str]) -> list[str]:
    """A list of names after its label, on as many lines as it takes."""
    return textwrap.wrap(label + ", ".join(names), 110, subsequent_indent="    ", break_on_hyphens=False)


def as_text(patchset: str, summary: CheckSummary) -> str:
    """How much was compared, then what differs."""
    compared, uncompared = sum(summary.compared.values()), sum(summary.uncompared.values())
    speed = summary.steps / summary.run_s if summary.run_s else 0
    lines = [
        f"{patchset}: {summary.traces} traces, {summary.steps} operations compared ({speed:.0f} per second)",
        f"{compared} fields compared, {summary.moved_share:.0%} of them of kinds that change in these traces",
    ]
    constant = sorted(set(summary.compared) - summary.moved)
    if constant:
        lines += _wrapped(f"never changed ({len(constant)} kinds): ", constant)
    if uncompared:
        names = sorted(summary.uncompared)
        lines += _wrapped(f"{uncompared} fields not compared, as the model does not have them: ", names)
    for found in summary.found:
        lines.append(f"{found.name}: diverges at {found.divergence}")
        more = len(found.divergence.differences) - 1
        for each in found.divergence.differences[1:6]:
            lines.append(f"    {each.field} is {each.observed}, expected {each.expected}")
        if more > 5:
            lines.append(f"    and {more - 5} more fields")
        lines += _shown(found.report)
        lines.append(f"    {len(found.minimal.operations)} operations: {found.file}")
        if found.first_stage:
            lines.append(f"    from {found.first_stage} on")
        elif found.stages:
            lines.append(
                f"    not with the last stage ({', '.join(s for s, d in found.stages.items() if d)})"
            )
    for name, ending in summary.incomparable.items():
        first, _, rest = ending.evidence.partition("\n")
        lines += [f"{name}: {ending.outcome.value}: {first}", *_shown(rest)]
    if not summary.found:
        compared = summary.traces - len(summary.incomparable)
        lines.append("no divergence" if not summary.incomparable else f"no divergence in {compared} traces")
    return "\n".join(lines)


def _shown(report: str) -> list[str]:
    """The first lines of what the kernel or QEMU said; the run directory has all of them."""
    said = report.splitlines()
    more = [f"    and {len(said) - _SHOWN_LINES} more lines"] if len(said) > _SHOWN_LINES else []
    return [*(f"    {line}" for line in said[:_SHOWN_LINES]), *more]
