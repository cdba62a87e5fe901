# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate check``: the same trace in a guest and in the reference model."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import option
from orchestrator.cli.attempt import attempt
from orchestrator.cli.terminal import terminal_of
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.execution.check_run import (
    Check,
    CheckSummary,
    execute,
    known_stages,
    load_trace,
    manifest_of,
    memory_nodes,
)
from orchestrator.execution.differential import DEFAULT_TOPOLOGY
from orchestrator.guest.ssh import GuestLost
from orchestrator.machine.qemu import MachineFailure
from orchestrator.machine.topology import Topology
from orchestrator.model.generator import PROFILES, generate
from orchestrator.model.trace import Trace
from orchestrator.store.run import RunWriter

NAME = "check"
EXAMPLE = "Example: orchestrate check --patchset core-only --seeds 1..20 --ops 1000"

_SEEDS = re.compile(r"(\d{1,18})(?:\.\.(\d{1,18}))?")
_MOST_SEEDS = 100_000


def command(
    context: typer.Context,
    patchset: Annotated[
        str | None,
        typer.Option("--patchset", "-p", help="What to check, also `baseline`; default: what a trace says."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of one random trace.", min=0)] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="FIRST..LAST: one random trace each, in one boot.")
    ] = None,
    ops: Annotated[int, typer.Option("--ops", help="Operations per random trace.", min=1)] = 1000,
    profile: Annotated[
        str, typer.Option("--profile", help=f"What random traces do most: {', '.join(PROFILES)}.")
    ] = "mixed",
    trace: Annotated[
        list[Path] | None, typer.Option("--trace", help="Replay a file instead; repeatable.")
    ] = None,
    stages: Annotated[
        bool, typer.Option("--stages", help="Find the stage from which on a divergence is there.")
    ] = False,
    shrink: Annotated[bool, typer.Option(help="Make a short trace of what diverges.")] = True,
    topology: option.Topology = DEFAULT_TOPOLOGY,
    accel: option.Accelerator = "auto",
    cmdline: option.Cmdline = None,
    flavour: option.Flavour = "measure",
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    build_jobs: option.BuildJobs = None,
    name: Annotated[str | None, typer.Option("--name", help="Part of the run directory's name.")] = None,
    as_json: option.Json = False,
) -> int:
    """Do random operations in a guest and in the reference model; report, shrink and keep what differs."""
    terminal = terminal_of(context)
    if profile not in PROFILES:
        raise UserError(f"--profile {profile}: choose {', '.join(PROFILES)}.")
    if trace and (seed is not None or seeds is not None):
        raise UserError("give --trace or seeds, not both; a trace file is what its seed made.")
    with terminal.events() as events:
        bench = terminal.bench(events, source, accel, flavour, build_jobs, series)
        loaded = {path.stem: load_trace(path) for path in trace or ()}
        if len(loaded) < len(trace or ()):
            raise UserError("two of the --trace files have the same name; their results would, too.")
        patchset = patchset or _patchset_of(loaded)
        names = known_stages(bench.series.select(patchset))
        machine = Topology.parse(topology)
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
        asked.topology.check_host(1)
        bench.configuration()  # an unknown flavour is said before anything is written
        writer = RunWriter.create(
            terminal.project.results,
            name or f"check-{patchset}",
            manifest_of(asked, bench, ["orchestrate", *sys.argv[1:]]),
        )
        with attempt(events, writer):
            try:
                summary = execute(asked, bench, writer)
            except (MachineFailure, GuestLost) as error:
                raise InfrastructureError(f"{patchset} did not come up: {error}") from error
    text = as_text(patchset, summary)
    (writer.path / "check.txt").write_text(text + "\n", encoding="utf-8")
    if as_json:
        terminal.print_json({"run": str(writer.path), "patchset": patchset, **summary.to_json()})
    else:
        terminal.print(text)
        terminal.print(str(writer.path))
    return 3 if summary.found else 0


def parse_seeds(seed: int | None, seeds: str | None) -> range:
    """The seeds that ``--seed N`` or ``--seeds FIRST..LAST`` ask for; 1 where nothing was said.

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
    """What the trace files were made for, where they agree."""
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
        lines.append(f"    {len(found.minimal.operations)} operations: {found.file}")
        if found.first_stage:
            lines.append(f"    from {found.first_stage} on")
        elif found.stages:
            lines.append(
                f"    not with the last stage ({', '.join(s for s, d in found.stages.items() if d)})"
            )
    if not summary.found:
        lines.append("no divergence")
    return "\n".join(lines)
