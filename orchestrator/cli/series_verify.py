# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate series verify``: every stage built, booted and checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.analysis.layout import WIDTH, listing, text_of
from orchestrator.cli import option
from orchestrator.cli.terminal import terminal_of
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.spelling import hint

if TYPE_CHECKING:
    from orchestrator.execution.series_verification import StageReport
    from orchestrator.kernel.series import Series, Stage

NAME = "verify"
EXAMPLE = "Example: orchestrate series verify --stage 5"
DEFAULT_TOPOLOGY = "4x512M"


def command(
    context: typer.Context,
    stage: Annotated[
        list[str] | None,
        typer.Option("--stage", metavar="STAGE", help="Number or name of a stage; repeatable. Default: all."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="CHECK", help=f"One of {option.CHECKS}; repeatable. Default: all."),
    ] = None,
    topology: option.Topology = DEFAULT_TOPOLOGY,
    accel: option.Accelerator = "auto",
    flavour: option.Flavour = "measure",
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    build_jobs: option.BuildJobs = None,
    as_json: option.Json = False,
) -> int:
    """Check each stage by itself: patch applies, style, builds, sparse, boot, smoke test, knobs and counters."""
    from orchestrator.execution.series_verification import CHECKS, SeriesVerification
    from orchestrator.machine.topology import Topology

    terminal = terminal_of(context)
    for check in only or ():
        if check not in CHECKS:
            raise UserError(f"--only {check}: there is no such check; {hint(check, CHECKS)}")
    reports = []
    with terminal.events() as events:
        bench = terminal.bench(events, source, accel, flavour, build_jobs, series)
        stages = _stages(bench.series, stage)
        machine = Topology.parse(topology)
        machine.check_host(1)
        verification = SeriesVerification(bench, only or CHECKS, machine)
        try:
            for report in verification.verify(stages):
                reports.append(report)
        except (KeyboardInterrupt, InfrastructureError):
            if reports and not as_json:
                terminal.print(table(reports, terminal.width))
            raise
    if as_json:
        terminal.print_json({"ok": not _failed(reports), "stages": [_as_json(report) for report in reports]})
    else:
        terminal.print(table(reports, terminal.width))
    return 3 if _failed(reports) else 0


def table(reports: Sequence[StageReport], width: int = WIDTH) -> str:
    """A row per stage, a column per check, and below it what failed and why.

    Args:
        width: columns of the table; what a check printed stays as it is.
    """
    from orchestrator.execution.series_verification import CHECKS, State

    rows = [
        (
            f"{report.stage.number:2} {report.stage.name}",
            *(str(report.answers[check].state) for check in CHECKS),
        )
        for report in reports
    ]
    lines = [text_of(listing(rows, width, ("stage", *CHECKS)))]
    for report in reports:
        for check, answer in report.answers.items():
            if answer.state is State.FAILED:
                lines += ["", f"stage {report.stage.number} ({report.stage.name}): {check}:"]
                lines += [f"    {line}" for line in answer.detail.splitlines()]
                lines += [f"    log: {answer.log}"] if answer.log else []
    counts = [answer.state for report in reports for answer in report.answers.values()]
    ok, failed, left = (counts.count(state) for state in (State.OK, State.FAILED, State.NOT_MADE))
    lines += ["", f"{ok} ok, {failed} failed, {left} not made."]
    return "\n".join(lines)


def _stages(series: Series, names: Sequence[str] | None) -> Sequence[Stage]:
    if not names:
        return series.stages
    chosen = [stage for stage in series.stages if {str(stage.number), stage.name} & set(names)]
    known = {name for stage in series.stages for name in (str(stage.number), stage.name)}
    for name in names:
        if name not in known:
            there = ", ".join(f"{stage.number} ({stage.name})" for stage in series.stages)
            raise UserError(f"--stage {name}: there is no such stage; there are {there}.")
    return chosen


def _failed(reports: Sequence[StageReport]) -> bool:
    return any(report.failed for report in reports)


def _as_json(report: StageReport) -> dict[str, object]:
    return {
        "number": report.stage.number,
        "name": report.stage.name,
        "digest": report.stage.digest,
        "checks": {
            check: {
                "state": str(answer.state),
                "detail": answer.detail,
                "log": str(answer.log) if answer.log else None,
            }
            for check, answer in report.answers.items()
        },
    }
