# SPDX-License-Identifier: GPL-2.0-only
"""One sentence a variant: what the statistics support, never more."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis.comparison import Comparison, Row
from orchestrator.analysis.notation import change, interval, percent, scale_of
from orchestrator.analysis.statistics import Verdict


def conclusion(comparison: Comparison, variant: str) -> str:
    """What may be said of the primary metrics of `variant`, and how many of its cells failed."""
    rows = [
        row
        for row in comparison.rows_of(variant=variant)
        if row.primary and row.difference is not None and not row.always_zero
    ]
    planned = sum(comparison.planned[variant].values())
    failed = sum(failure.variant == variant for failure in comparison.failures)
    if planned and failed == planned:
        return f"{variant}: nothing can be said, for none of its {planned} cells ended ok."
    if not rows:
        return f"{variant}: nothing can be said, for it shares no primary metric with {comparison.baseline}."
    said = _neutral(comparison, rows) if comparison.variant(variant).neutral else _changed(comparison, rows)
    lost = f"; {failed} of {planned} cells failed" if failed else ""
    return f"{variant}: {said}{lost}."


def _neutral(comparison: Comparison, rows: Sequence[Row]) -> str:
    within = f"equivalence with {comparison.baseline} within {percent(comparison.margin, signed=False)}"
    shown = [row for row in rows if row.verdict is Verdict.EQUIVALENT]
    if len(shown) == len(rows):
        number = f"all {len(rows)} primary metrics" if len(rows) > 1 else "the primary metric"
        return f"{within} is shown for {number}"
    if all(row.verdict is Verdict.NO_TEST for row in rows):
        return f"too few repetitions to show {within}"
    others = [row for row in rows if row not in shown]
    return f"{within} is shown for {len(shown)} of {len(rows)} primary metrics; not for " + ", ".join(
        _named(row, rows) + (f" {_effect(row)}" if _claimed(row) else "") for row in others
    )


def _changed(comparison: Comparison, rows: Sequence[Row]) -> str:
    clauses = [f"{_named(row, rows)} {_effect(row)}" for row in rows if _claimed(row)]
    same = [_named(row, rows) for row in rows if row.verdict is Verdict.EQUIVALENT]
    if same:
        clauses.append(f"{', '.join(same)} within {percent(comparison.margin, signed=False)}")
    open_ones = [_named(row, rows) for row in rows if row.verdict is Verdict.INCONCLUSIVE]
    if open_ones:
        clauses.append(f"inconclusive: {', '.join(open_ones)}")
    untested = [_named(row, rows) for row in rows if row.verdict is Verdict.NO_TEST]
    if len(untested) == len(rows):
        return "too few repetitions for a test, so nothing is claimed"
    if untested:
        clauses.append(f"not tested: {', '.join(untested)}")
    return f"against {comparison.baseline}, " + "; ".join(clauses)


def _claimed(row: Row) -> bool:
    return row.verdict in (Verdict.IMPROVED, Verdict.REGRESSED, Verdict.DIFFERS)


def _effect(row: Row) -> str:
    scale = scale_of(row.unit, (row.baseline.median, row.compared.median))
    unit = f" {scale.unit}" if row.relative is None else ""
    return f"{change(row, scale)}{unit} {interval(row, scale)}".rstrip() + f" ({row.verdict.value})"


def _named(row: Row, rows: Sequence[Row]) -> str:
    """The metric, with its workload where another one has the same metric."""
    shared = any(other.metric == row.metric and other.workload != row.workload for other in rows)
    return f"{row.workload} {row.metric}" if shared else row.metric
