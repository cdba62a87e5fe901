# SPDX-License-Identifier: GPL-2.0-only
"""One sentence per variant on what the statistics support."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis.comparison import Comparison, Row
from orchestrator.analysis.notation import change_with_unit, interval, percent, row_scale
from orchestrator.analysis.statistics import Verdict


def conclusion(comparison: Comparison, variant: str) -> str:
    """Supported claims on a variant's primary metrics, regressions of others, and the number of failed cells."""
    rows = [
        row
        for row in comparison.rows_of(variant=variant)
        if row.primary and row.difference is not None and not row.always_zero
    ]
    planned = sum(comparison.planned[variant].values())
    failed = sum(failure.variant == variant for failure in comparison.failures)
    if planned and failed == planned:
        return f"{variant}: no conclusion, since none of its {planned} cells ended ok."
    if comparison.unjudged:
        return f"{variant}: no verdict, since {comparison.unjudged}."
    others = [
        row
        for row in comparison.rows_of(variant=variant)
        if not row.primary and row.verdict is Verdict.REGRESSED
    ]
    worse = "; other regressions: " if others else ""
    worse += ", ".join(f"{row.workload} {row.metric} {change_with_unit(row)}" for row in others)
    lost = f"; {failed} of {planned} cells failed" if failed else ""
    if not rows:
        claim = f"no conclusion, since it has no primary metric in common with {comparison.baseline}"
    elif comparison.variant(variant).neutral:
        claim = _neutral(comparison, rows)
    else:
        claim = _changed(comparison, rows)
    return f"{variant}: {claim}{worse}{lost}."


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
        _named(row, rows)
        + (f" {_effect(row)}" if row.claimed else "")
        + (" (its median is within it, but single boots are not)" if row.verdict is Verdict.SCATTERED else "")
        for row in others
    )


def _changed(comparison: Comparison, rows: Sequence[Row]) -> str:
    clauses = [f"{_named(row, rows)} {_effect(row)}" for row in rows if row.claimed]
    same = [_named(row, rows) for row in rows if row.verdict is Verdict.EQUIVALENT]
    if same:
        clauses.append(f"{', '.join(same)} within {percent(comparison.margin, signed=False)}")
    scattered = [_named(row, rows) for row in rows if row.verdict is Verdict.SCATTERED]
    if scattered:
        clauses.append(
            f"{', '.join(scattered)} within {percent(comparison.margin, signed=False)} by the median, but single boots "
            "are not"
        )
    open_ones = [_named(row, rows) for row in rows if row.verdict is Verdict.INCONCLUSIVE]
    if open_ones:
        most = comparison.conditions.max_repeat
        what = f"not decided, needs more than {most} boots" if most else "inconclusive"
        clauses.append(f"{what}: {', '.join(open_ones)}")
    untested = [_named(row, rows) for row in rows if row.verdict is Verdict.NO_TEST]
    if len(untested) == len(rows):
        return "too few repetitions for a claim"
    if untested:
        clauses.append(f"not tested: {', '.join(untested)}")
    return f"against {comparison.baseline}, " + "; ".join(clauses)


def _effect(row: Row) -> str:
    return f"{change_with_unit(row)} {interval(row, row_scale(row))}".rstrip() + f" ({row.verdict.value})"


def _named(row: Row, rows: Sequence[Row]) -> str:
    """The metric, with its workload if another workload has the same metric."""
    shared = any(other.metric == row.metric and other.workload != row.workload for other in rows)
    return f"{row.workload} {row.metric}" if shared else row.metric
