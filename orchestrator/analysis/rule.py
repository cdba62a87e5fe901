# SPDX-License-Identifier: GPL-2.0-only
"""The rule for the marks in words, for the legend of the table and the report."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.analysis.comparison import Comparison, Row
from orchestrator.analysis.looks import looks
from orchestrator.analysis.notation import percent
from orchestrator.analysis.statistics import CONFIDENCE, REPETITIONS_FOR_INTERVAL
from orchestrator.analysis.undecided import undecided


def rule_lines(comparison: Comparison) -> list[tuple[str, str]]:
    """Keyword and sentence, in the order of the legend."""
    margin = percent(comparison.margin, signed=False)
    shown = (
        "median (median change over the repetitions, paired by seed) mark, [interval of the change]; "
        f"{_coverage(comparison.rows)}; below the baseline: the A/A noise floor"
    )
    most = comparison.conditions.max_repeat
    level = "the level of its look" if most else f"{comparison.alpha:g}"
    primary = (
        f"+ - ! if a permutation test within repetitions, with the A/A control, gives p <= {level} after "
        "Holm over the primary metrics of a workload and variant, the interval excludes 0, and the change is beyond "
        f"{margin} and the noise floor"
    )
    other = f"+ - ! if the whole interval is beyond {margin} and the noise floor"
    same = f"= if the whole interval is within {margin}; ~ if it is, but single boots are not"
    lines = [
        ("shown", shown),
        ("primary", primary),
        ("other", other),
        ("same", same),
        ("tested", _testable(comparison)),
        *([("looks", _looks(comparison, most))] if most else []),
    ]
    spread = _spread(comparison)
    return [*lines, ("spread", spread)] if spread else lines


def _looks(comparison: Comparison, most: int) -> str:
    """The looks of a run with ``--until-decided``, the error of each, and the undecided metrics."""
    each = ", ".join(f"{look.repetitions} ({look.alpha:g})" for look in looks(most))
    left = undecided(comparison)
    open_ones = ", ".join(
        f"{metric} of {variant} in {workload}"
        for (variant, workload), metrics in left.items()
        for metric in metrics
    )
    planned = f"planned after {each} boots, with the allowed error in parentheses; a variant stops once it is decided"
    return f"{planned}; more than {most} boots would be needed for {open_ones}" if open_ones else planned


def _coverage(rows: Iterable[Row]) -> str:
    reached = [row.interval.confidence for row in rows if row.interval is not None]
    if not reached:
        return "no interval, since it needs three repetitions"
    if min(reached) >= CONFIDENCE:
        return f"it covers the true change in {CONFIDENCE:.0%} of runs or more"
    return (
        f"it covers the true change in only {int(1000 * min(reached)) / 10:g}% of runs; {CONFIDENCE:.0%} needs "
        f"{REPETITIONS_FOR_INTERVAL} repetitions"
    )


def _testable(comparison: Comparison) -> str:
    tested, number = comparison.testable
    claims = f"{tested} of {number} comparisons have enough repetitions to claim a difference"
    families = len({(row.workload, row.variant) for row in comparison.rows if row.primary and row.tests})
    if families < 2:
        return claims
    return f"{claims}; the error of {comparison.alpha:.0%} holds for each of {families} families of primary metrics"


def _spread(comparison: Comparison) -> str:
    """The coefficients of variation of the primary metrics, smallest to largest over the variants."""
    shown: dict[str, list[float]] = {}
    several = len(comparison.workloads) > 1
    for row in comparison.rows:
        if row.primary:
            name = f"{row.workload} {row.metric}" if several else row.metric
            sides = (row.baseline.variation, row.compared.variation)
            shown.setdefault(name, []).extend(side for side in sides if side is not None)
    parts = [
        f"{name} {percent(min(each), signed=False)}"
        + (f" to {percent(max(each), signed=False)}" if max(each) > min(each) else "")
        for name, each in shown.items()
        if each
    ]
    return f"standard deviation over the boots, divided by the mean: {', '.join(parts)}" if parts else ""


def expected_by_chance(comparison: Comparison) -> str:
    """The number of differences of the A/A control expected by chance; empty if unknown."""
    rows = [row for row in comparison.control if row.interval is not None and not row.always_zero]
    expected = sum(1 - row.interval.confidence for row in rows if row.interval is not None)
    differing = any(row.claimed for row in rows)
    return f"at most {expected:.0f} by chance" if differing and expected >= 1 else ""
