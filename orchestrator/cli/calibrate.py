# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate calibrate``: compares instruction counts of page faults with times on this host's processor."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.analysis.calibration import DEFAULT_ROUNDS, DENSITIES, Calibration, Costs, Spread
from orchestrator.analysis.layout import listing, text_of
from orchestrator.cli import option
from orchestrator.cli.terminal import Terminal, terminal_of
from orchestrator.errors import UserError

NAME = "calibrate"
EXAMPLE = "Example: orchestrate calibrate --again"


def command(
    context: typer.Context,
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds",
            metavar="N",
            help="Number of rounds on this host, each with base pages and with huge pages.",
            min=1,
            max=1000,
        ),
    ] = DEFAULT_ROUNDS,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Measure again, even if there is a result since the host booted; implied by --rounds and --source.",
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write the plot to FILE.png and FILE.svg.")
    ] = None,
    source: option.Source = None,
    as_json: option.Json = False,
) -> int:
    """Time page faults on this host's processor, and compare them with instruction counts from a guest."""
    # Imported here, so that --help is fast.
    from orchestrator.analysis.plots.calibration import draw_calibration
    from orchestrator.execution.calibration import calibrate

    terminal = terminal_of(context)
    if plot is not None and not plot.absolute().parent.is_dir():
        raise UserError(f"--plot {plot}: there is no directory {plot.parent}.")
    with terminal.events() as events:
        bench = terminal.bench(events, source, "icount")
        # Options for the measurement imply a new measurement.
        anew = again or any(option.is_given(context, name) for name in ("rounds", "source"))
        calibration, directory = calibrate(bench, rounds, anew)
    files = draw_calibration(calibration, plot or directory / "calibration")
    if as_json:
        terminal.print_json(_as_json(calibration, files))
    else:
        _print(terminal, calibration)
        for file in files:
            terminal.print(str(file))
    return 0


def _print(terminal: Terminal, calibration: Calibration) -> None:
    real, counted = calibration.processor, calibration.guest
    terminal.print(
        f"{calibration.cpu}, Linux {calibration.host_kernel}; {calibration.rounds} rounds, thread CPU time, load "
        f"{calibration.load[0]:g} before and {calibration.load[1]:g} after; {calibration.measured_utc}"
    )
    terminal.print(
        f"guest: Linux {calibration.kernel}, QEMU {calibration.qemu}, icount, -cpu {calibration.guest_cpu}\n"
    )
    columns = ("", "processor, p10", "processor, p50", "instructions, p50")
    rows: list[list[str]] = []
    for title, one, other in (
        ("base fault", real.base_fault, counted.base_fault),
        ("huge fault", real.huge_fault, counted.huge_fault),
    ):
        rows.append([title, f"{one.p10 / 1000:.3g} us", f"{one.p50 / 1000:.3g} us", f"{other.p50:,.0f}"])
    _row(rows, "huge fault / base fault", real.faults_per_huge_fault, counted.faults_per_huge_fault, ".0f")
    _row(rows, "break-even, pages of 512", real.break_even, counted.break_even, ".0f")
    for pages in DENSITIES:
        title = f"base / huge, {pages} of 512 pages"
        _row(rows, title, real.base_over_huge(pages), counted.base_over_huge(pages), ".2f")
    terminal.print(text_of(listing(rows, terminal.width, columns, right=(1, 2, 3))))
    terminal.print("")


def _row(rows: list[list[str]], title: str, real: Spread, counted: Spread, form: str) -> None:
    values = (real.p10, real.p50, counted.p50)
    rows.append([title, *("none" if math.isnan(value) else format(value, form) for value in values)])


def _as_json(calibration: Calibration, files: list[Path]) -> dict[str, object]:
    return {
        **json.loads(calibration.to_json()),
        "ratios": {"processor": _ratios(calibration.processor), "guest": _ratios(calibration.guest)},
        "sentence": calibration.sentence,
        "plots": [str(file) for file in files],
    }


def _ratios(costs: Costs) -> dict[str, object]:
    def both(spread: Spread) -> dict[str, float | None]:
        return {key: None if math.isnan(value) else value for key, value in vars(spread).items()}

    return {
        "huge_fault_over_base_fault": both(costs.faults_per_huge_fault),
        "break_even_pages": both(costs.break_even),
        "base_over_huge": {str(pages): both(costs.base_over_huge(pages)) for pages in DENSITIES},
    }
