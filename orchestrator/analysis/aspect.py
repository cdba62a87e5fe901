# SPDX-License-Identifier: GPL-2.0-only
"""What a THP series is judged by: fault latency, memory consumption, promotions. Which metric speaks for which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from orchestrator.analysis.comparison import Comparison, Row

#: Heading -> how the names of its metrics begin.
ASPECTS: Final = (
    ("Fault latency", ("fault_", "first_fault_", "touch_", "region_", "insert_")),
    ("Memory consumption", ("memory_", "held_", "rss_", "reserved_kib", "survivors")),
    (
        "Successful promotions",
        ("promotions.", "promoted_", "promotion_", "collapses_", "huge_"),
    ),
)
OTHERS: Final = "Other metrics"

#: What is shown first, by the beginnings of names: the whole cost before that of a fault, and dense use beside sparse.
_FIRST: Final = {
    "Fault latency": (("touch_", "fault_"), ("region_512_",)),
    "Memory consumption": (("survivors", "memory_", "rss_"),),
    "Successful promotions": (("huge_regions.", "promotions."),),
}


@dataclass(frozen=True)
class Answer:
    """What a comparison says of one aspect.

    Args:
        heading: one of :data:`ASPECTS`.
        rows: variant -> the rows that speak for it, the one for sparse use first; empty where nothing was measured.
    """

    heading: str
    rows: dict[str, list[Row]]


def aspect_of(metric: str) -> str:
    """The heading that a metric belongs to; :data:`OTHERS` where to none."""
    return next((heading for heading, starts in ASPECTS if metric.startswith(starts)), OTHERS)


def answers(comparison: Comparison) -> list[Answer]:
    """The three answers of a comparison, in the order of :data:`ASPECTS`."""
    return [
        Answer(
            heading,
            {
                variant.name: _rows(comparison.rows_of(variant=variant.name), _FIRST[heading])
                for variant in comparison.compared
            },
        )
        for heading, _ in ASPECTS
    ]


def _rows(rows: Sequence[Row], wanted: Sequence[Sequence[str]]) -> list[Row]:
    """For each of `wanted` the first row with a difference: primary ones first, then by the order of beginnings."""
    chosen = []
    for starts in wanted:
        candidates = [
            row
            for row in rows
            if row.difference is not None and not row.always_zero and row.metric.startswith(tuple(starts))
        ]
        candidates.sort(
            key=lambda row: (
                not row.primary,
                next(n for n, s in enumerate(starts) if row.metric.startswith(s)),
            )
        )
        chosen += candidates[:1]
    return chosen
