# SPDX-License-Identifier: GPL-2.0-only
"""The primary metrics that a comparison has not decided: neither a difference nor equivalence within the margin."""

from __future__ import annotations

from typing import Final

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.statistics import Verdict

_OPEN: Final = frozenset({Verdict.INCONCLUSIVE, Verdict.NO_TEST})


def undecided(comparison: Comparison) -> dict[tuple[str, str], tuple[str, ...]]:
    """Variant and workload -> their undecided primary metrics; pairs without any are omitted.

    A metric without a value on one side, or that is 0 in every boot, cannot be decided by more boots.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for row in comparison.rows:
        if row.primary and row.verdict in _OPEN and row.difference is not None and not row.always_zero:
            found.setdefault((row.variant, row.workload), []).append(row.metric)
    return {pair: tuple(metrics) for pair, metrics in found.items()}
