# SPDX-License-Identifier: GPL-2.0-only
"""The three aspects of a THP series: fault latency, memory consumption and promotions, with their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from orchestrator.analysis.comparison import Comparison, Row

#: Heading -> prefixes of the names of its metrics.
ASPECTS: Final = (
    ("Fault latency", ("fault_", "first_fault_", "touch_", "region_", "insert_")),
    ("Memory consumption", ("memory_", "held_", "rss_", "reserved_kib", "survivors")),
    (
        "Successful promotions",
        ("promotions.", "promoted_", "promotion_", "collapses_", "huge_"),
    ),
)
OTHERS: Final = "Other metrics"

#: Metrics to show, by prefix, most important first: total cost before the cost of a fault; sparse use, then dense use.
_FIRST: Final = {
    "Fault latency": (("touch_", "fault_"), ("region_512_",)),
    "Memory consumption": (("survivors", "memory_", "rss_"),),
    "Successful promotions": (("huge_regions.", "promotions."),),
}


@dataclass(frozen=True)
class Answer:
    """The result of a comparison for one aspect.

    Args:
        heading: one of :data:`ASPECTS`.
        rows: variant -> its rows for this aspect, the one for sparse use first; empty if nothing was measured.
    """

    heading: str
    rows: dict[str, list[Row]]


def aspect_of(metric: str) -> str:
    """The heading of a metric; :data:`OTHERS` if it belongs to none of the aspects."""
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
    """For each of `wanted` the first row with a difference: primary ones first, then in the order of the prefixes."""
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
