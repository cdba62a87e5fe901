# SPDX-License-Identifier: GPL-2.0-only
"""A run as a list of checks, for test formats.

Three things are checked: each cell ended ok; no metric regressed beyond margin and noise floor; the counters of the
series are consistent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import pandas as pd

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.statistics import Verdict
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import Run


class CheckStatus(StrEnum):
    """How a check ended.

    ``error`` means that the host, the tool or the workload failed, and ``skipped`` that there was nothing to check;
    both say nothing about the kernel.
    """

    PASSED = "passed"
    SKIPPED = "skipped"
    FAILED = "failed"
    ERROR = "error"


#: Outcome of a cell -> status of the check. A failed workload may be caused by the kernel, which needs investigation.
_STATUS = {
    Outcome.OK: CheckStatus.PASSED,
    Outcome.WORKLOAD_FAILED: CheckStatus.FAILED,
    Outcome.KERNEL_BUG: CheckStatus.FAILED,
    Outcome.KERNEL_PANIC: CheckStatus.FAILED,
    Outcome.BOOT_FAILED: CheckStatus.FAILED,
    Outcome.BUILD_FAILED: CheckStatus.FAILED,
    Outcome.TIMEOUT: CheckStatus.FAILED,
    Outcome.LOST: CheckStatus.ERROR,
}


@dataclass(frozen=True)
class Check:
    """One check.

    Args:
        suite: the workload, or ``counters``.
        name: unique within its suite.
        variant: the variant that was checked; empty for the whole run.
        kind: outcome of the cell, or verdict on the metric.
        text: the evidence, or the text of the comparison; several lines.
        seconds: duration in host seconds; None if not applicable.
        started: start time, ISO 8601; None if unknown.
    """

    suite: str
    name: str
    variant: str
    status: CheckStatus
    kind: str
    text: str
    seconds: float | None = None
    started: str | None = None

    @property
    def title(self) -> str:
        """The first line of its text."""
        return self.text.splitlines()[0] if self.text else ""


def checks_of(run: Run, comparison: Comparison) -> list[Check]:
    """All checks of `run`, cells first.

    Args:
        comparison: comparison of `run`.
    """
    return [*_cells(run), *_metrics(comparison), _counters(comparison)]


def _cells(run: Run) -> Iterator[Check]:
    for row in run.cells.to_dict("records"):
        outcome = Outcome(row["outcome"])
        yield Check(
            suite=str(row["workload"]),
            name=str(row["cell"]),
            variant=str(row["variant"]),
            status=_STATUS[outcome],
            kind=outcome.value,
            text=str(row["evidence"] or ""),
            seconds=None if pd.isna(row["total_s"]) else float(row["total_s"]),
            started=None if pd.isna(row["started_utc"]) else str(row["started_utc"]),
        )


def _metrics(comparison: Comparison) -> Iterator[Check]:
    for row in comparison.rows:
        if not row.primary and row.verdict is not Verdict.REGRESSED:
            continue
        status = CheckStatus.FAILED if row.verdict is Verdict.REGRESSED else CheckStatus.PASSED
        if row.verdict is Verdict.NO_TEST:
            status = CheckStatus.SKIPPED
        yield Check(
            suite=row.workload,
            name=f"{row.variant}:{row.metric}",
            variant=row.variant,
            status=status,
            kind=row.verdict.value,
            text=f"{comparison.baseline} {_median(row.baseline.median)}, {row.variant} "
            f"{_median(row.compared.median)} {row.unit}: {row.reason}",
        )


def _counters(comparison: Comparison) -> Check:
    broken = [
        f"{finding.where}: {finding.text}" for finding in comparison.findings if finding.kind == "counters"
    ]
    status, kind = CheckStatus.PASSED, "held"
    if broken:
        status, kind = CheckStatus.FAILED, "broken"
    elif not comparison.counters_checked:
        status, kind = CheckStatus.SKIPPED, "not-checked"
    return Check(
        suite="counters",
        name="identities",
        variant="",
        status=status,
        kind=kind,
        text="\n".join(broken) or f"consistent in {comparison.counters_checked} cells",
    )


def _median(value: float | None) -> str:
    return "-" if value is None else f"{value:.10g}"
