# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate simulate``: calculates the chunk test for any size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.analysis.layout import listing, text_of, wrapped
from orchestrator.cli import completion, option
from orchestrator.cli.terminal import Terminal, terminal_of
from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.analysis.chunk_measured import MeasuredPoint
    from orchestrator.model.chunk_test import ChunkTestMachine, ChunkTestResult, Distribution

NAME = "simulate"
EXAMPLE = "Example: orchestrate simulate --memory 256G --chunk 16G"
DEFAULT_THRESHOLDS = "1,2,32,64,128,256,384,512"

_SIZE = re.compile(r"(\d{1,9})([MGT])")
_SHARE = re.compile(r"(installed|available)/(\d{1,6})")
_KIB = {"M": 1 << 10, "G": 1 << 20, "T": 1 << 30}
_LEAST_MEMORY_KIB = 512 << 10


def command(
    context: typer.Context,
    memory: Annotated[
        str, typer.Option("--memory", metavar="SIZE", help="Installed memory, e.g. 256G.")
    ] = "256G",
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", help="NUMA nodes.", min=1, max=1024)] = 8,
    chunk: Annotated[
        str,
        typer.Option(
            "--chunk",
            metavar="SIZE",
            help="Memory that each child maps: e.g. 16G, installed/16 or available/16.",
        ),
    ] = "installed/16",
    pattern: Annotated[
        str,
        typer.Option(
            "--pattern",
            metavar="NAME",
            help=f"Distribution of the number of pages touched per range: {option.PATTERNS}.",
        ),
    ] = "mixed",
    pages: Annotated[
        int,
        typer.Option(
            "--pages",
            metavar="N",
            help="Maximum number of pages touched per range; for `fixed` the number itself, for `geometric` the mean.",
        ),
    ] = 256,
    thresholds: Annotated[
        str,
        typer.Option(
            "--thresholds",
            metavar="N,...",
            help="Pages in use from which a range is promoted; with 1, the first write maps a huge page.",
        ),
    ] = DEFAULT_THRESHOLDS,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="Take the machine and the pattern from a run, and show its results for comparison.",
            autocompletion=completion.runs,
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write a plot to FILE.png and FILE.svg.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Seed for the number of pages touched.", min=0)
    ] = 1,
    as_json: option.Json = False,
) -> int:
    """Calculate how many children of the chunk test fit into a machine."""
    from orchestrator.analysis.chunk_measured import measured_chunk
    from orchestrator.model.chunk_test import ChunkTestMachine, Policy, simulate
    from orchestrator.store.run import Run, find_run

    terminal = terminal_of(context)
    values = _thresholds(thresholds)
    if plot is not None and not plot.absolute().parent.is_dir():
        raise UserError(f"--plot {plot}: there is no directory {plot.parent}.")
    points: Sequence[MeasuredPoint] = ()
    if run is not None:
        measured = measured_chunk(Run.open(find_run(terminal.project.results, run)))
        machine, chunk_kib, draw, points = (
            measured.machine,
            measured.chunk_kib,
            measured.draw,
            measured.points,
        )
        pattern, pages = measured.pattern, measured.pages
    else:
        machine = ChunkTestMachine(_size(memory, "--memory"), nodes)
        if machine.memory_kib < _LEAST_MEMORY_KIB or machine.begin_kib < machine.memory_kib // 4:
            raise UserError(
                f"--memory {memory}: too little for {nodes} nodes; choose more memory or fewer --nodes."
            )
        chunk_kib = _chunk(chunk, machine)
        draw = _distribution(pattern, pages)
    policies = [Policy(value, promotes) for promotes in (False, True) for value in values]
    try:
        outcomes = simulate(machine, chunk_kib, draw, policies, seed)
    except ValueError as error:
        raise UserError(str(error)) from error
    none, every = outcomes[: len(values)], outcomes[len(values) :]
    under = (
        f"{_human(machine.memory_kib)}, {machine.nodes} nodes, {_human(machine.begin_kib)} available; chunks of "
        f"{_human(chunk_kib)}; {pattern}{'' if pattern in ('one', 'dense') else f' {pages}'}"
    )
    files: list[Path] = []
    if plot is not None:
        from orchestrator.analysis.plots.simulation import (
            draw_simulation,
        )  # imported here, so that --help is fast

        files = draw_simulation(values, none, every, points, under, plot)
    if as_json:
        terminal.print_json(_as_json(machine, chunk_kib, pattern, pages, seed, values, none, every, points))
    else:
        _print(terminal, under, values, none, every, points)
        for file in files:
            terminal.print(str(file))
    return 0


def _thresholds(text: str) -> list[int]:
    try:
        values = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise UserError(f"--thresholds {text}: write numbers, e.g. {DEFAULT_THRESHOLDS}.") from error
    if not 1 <= values[0] <= values[-1] <= 512:
        raise UserError(f"--thresholds {text}: choose numbers from 1 to 512.")
    return values


def _size(text: str, flag: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UserError(f"{flag} {text}: write a size, e.g. 8G or 512M.")
    return int(match[1]) * _KIB[match[2]]


def _chunk(text: str, machine: ChunkTestMachine) -> int:
    from orchestrator.model.chunk_test import RANGE_KIB

    match = _SHARE.fullmatch(text)
    if match is not None and int(match[2]):
        whole = machine.memory_kib if match[1] == "installed" else machine.begin_kib
        size = whole // int(match[2])
    else:
        size = _size(text, "--chunk")
    return max(size // RANGE_KIB * RANGE_KIB, RANGE_KIB)


def _distribution(pattern: str, pages: int) -> Distribution:
    from orchestrator.model.chunk_test import distribution

    try:
        return distribution(pattern, pages)
    except ValueError as error:
        raise UserError(str(error)) from error


def _human(kib: int) -> str:
    return f"{kib / (1 << 20):.4g} GiB" if kib >= 1 << 20 else f"{kib / 1024:.4g} MiB"


def _print(
    terminal: Terminal,
    under: str,
    thresholds: Sequence[int],
    none: Sequence[ChunkTestResult],
    every: Sequence[ChunkTestResult],
    points: Sequence[MeasuredPoint],
) -> None:
    columns = (
        "threshold",
        "promoted",
        "fit",
        "fit until OOM",
        "first that fails",
        "at the threshold",
        "used",
    )
    rows = []
    for threshold, least, most in zip(thresholds, none, every, strict=True):
        for label, outcome in (("none", least), ("all", most)) if threshold > 1 else (("at once", least),):
            rows.append(
                (
                    str(threshold),
                    label,
                    str(outcome.survivors),
                    str(outcome.survivors_oom),
                    f"{outcome.survivors + 1} or {outcome.survivors_oom + 1}",
                    str(outcome.promotions),
                    _human(outcome.used_kib),
                )
            )
    lines = wrapped(under, terminal.width)
    lines.append(text_of(listing(rows, terminal.width, columns, right=(0, 2, 3, 4, 5, 6))))
    for point in points:
        measured = (
            f"measured: {point.variant}: {point.survivors:g} fit, {point.survivors_oom:g} until OOM, "
            f"{point.promotions:g} promotions"
        )
        lines += wrapped(measured, terminal.width, "  ")
    terminal.print("\n".join(lines))


def _as_json(
    machine: ChunkTestMachine,
    chunk_kib: int,
    pattern: str,
    pages: int,
    seed: int,
    thresholds: Sequence[int],
    none: Sequence[ChunkTestResult],
    every: Sequence[ChunkTestResult],
    points: Sequence[MeasuredPoint],
) -> dict[str, object]:
    return {
        "memory_kib": machine.memory_kib,
        "nodes": machine.nodes,
        "available_kib": machine.begin_kib,
        "chunk_kib": chunk_kib,
        "pattern": pattern,
        "pages": pages,
        "seed": seed,
        "outcomes": [
            {"threshold": threshold, "promoted": label, **vars(outcome)}
            for label, outcomes in (("none", none), ("all", every))
            for threshold, outcome in zip(thresholds, outcomes, strict=True)
        ],
        "measured": [vars(point) for point in points],
    }
