# SPDX-License-Identifier: GPL-2.0-only
"""Formatting of figures in the table, the changelog, the report and the plots. ASCII only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from orchestrator.analysis.comparison import Row, Side
from orchestrator.analysis.statistics import Verdict

#: The mark after a change.
MARKS: Final = {
    Verdict.IMPROVED: "+",
    Verdict.REGRESSED: "-",
    Verdict.EQUIVALENT: "=",
    Verdict.SCATTERED: "~",
    Verdict.DIFFERS: "!",
    Verdict.INCONCLUSIVE: "?",
    Verdict.NO_TEST: ".",
}


def meanings(margin: str) -> dict[str, str]:
    """Each mark and its meaning, as in the legend and in ``docs/first-steps.md``.

    Args:
        margin: the equivalence margin, as text.
    """
    return {
        "+": "improved",
        "-": "regressed",
        "=": f"within {margin}",
        "~": "its median only",
        "!": "differs",
        "?": "inconclusive",
        ".": "not tested",
    }


CLOCKS: Final = {"insns": "guest instructions", "ns": "guest nanoseconds", None: "not yet chosen"}


@dataclass(frozen=True)
class Scale:
    """The unit and precision for the values of one metric.

    Args:
        unit: unit for display.
        divisor: divisor of the stored value.
        decimals: digits after the point.
    """

    unit: str
    divisor: float
    decimals: int

    def text(self, value: float | None) -> str:
        """`value`, given in the stored unit, as text without the unit; ``-`` if there is none."""
        return "-" if value is None else f"{value / self.divisor:.{self.decimals}f}"


_LARGER: Final = {
    "KiB": (("MiB", 1024.0, 100 * 1024.0),),
    "ns": (("ms", 1e6, 1e8), ("us", 1e3, 1e5)),
    "insns": (("million insns", 1e6, 1e8),),
    "pages": (("thousand pages", 1e3, 1e7),),
}


def scale_of(unit: str, values: Iterable[float | None]) -> Scale:
    """A scale with which the largest of `values` has at most about seven characters."""
    known = [abs(value) for value in values if value is not None]
    largest = max(known, default=0.0)
    for larger, divisor, least in _LARGER.get(unit, ()):
        if largest >= least:
            return Scale(larger, divisor, 1)
    if all(value == int(value) for value in known):
        return Scale(unit, 1.0, 0)
    decimals = 1 if largest >= 100 else 2 if largest >= 1 else 4
    return Scale(unit, 1.0, decimals)


def percent(fraction: float, *, signed: bool = True) -> str:
    """A fraction as a percentage with about three digits.

    >>> percent(0.00064), percent(-0.1234), percent(6.1333)
    ('+0.06%', '-12.3%', '+613%')
    """
    size = abs(fraction) * 100
    decimals = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{fraction * 100:{'+' if signed else ''}.{decimals}f}%"


def change(row: Row, scale: Scale) -> str:
    """The difference of a row: in per cent if possible, else in the unit."""
    if row.difference is None:
        return ""
    if row.relative is None:
        return f"{row.difference / scale.divisor:+.{scale.decimals}f}"
    return percent(row.relative)


def row_scale(row: Row) -> Scale:
    """The scale for both medians of a row."""
    return scale_of(row.unit, (row.baseline.median, row.compared.median))


def change_with_unit(row: Row) -> str:
    """The change of a row, with the unit if it is absolute."""
    scale = row_scale(row)
    return change(row, scale) + (f" {scale.unit}" if row.relative is None else "")


def interval(row: Row, scale: Scale) -> str:
    """The interval of a row, in the same form as :func:`change` if possible; empty if there is none."""
    if row.interval is None:
        return ""
    if row.interval_of == "relative":
        return f"[{percent(row.interval.low)}, {percent(row.interval.high)}]"
    low, high = (
        f"{end / scale.divisor:+.{scale.decimals}f}" for end in (row.interval.low, row.interval.high)
    )
    return f"[{low}, {high}]"


def instructions(row: Row) -> str:
    """The exact difference in guest instructions; empty for other metrics.

    With almost no spread, the number is more informative than a percentage.
    """
    if row.unit != "insns" or row.difference is None:
        return ""
    decimals = 0 if row.difference == int(row.difference) else 1
    return f"{row.difference:+.{decimals}f} insns"


def floor(row: Row, scale: Scale) -> str:
    """The noise floor of a row's metric; empty without a control."""
    if row.floor is None:
        return ""
    if row.baseline.median:
        return percent(row.floor / abs(row.baseline.median), signed=False)
    return scale.text(row.floor)


def spread(side: Side, scale: Scale) -> str:
    """Coefficient of variation and range of the boots of one variant; empty for fewer than two."""
    if side.n < 2:
        return ""
    ends = f"{scale.text(min(side.values))} to {scale.text(max(side.values))}"
    return ends if side.variation is None else f"{ends}, CoV {percent(side.variation, signed=False)}"


def folded(name: str, width: int = 20) -> str:
    """The name of a variant, wrapped at its knobs if it is longer than `width`.

    The name of another run, in brackets after it, is wrapped at its hyphens if necessary.

    >>> folded("full@thp_enabled=always,promotion_threshold=512").splitlines()
    ['full@', 'thp_enabled=always,', 'promotion_threshold=512']
    """
    if len(name) <= width:
        return name
    lines = [""]
    pieces = re.split(r"(?<=[@,+ ])", name)
    if any(piece.startswith("(") and len(piece) > 2 * width for piece in pieces):
        pieces = re.split(r"(?<=[@,+ -])", name)
    for piece in pieces:
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def direction(row: Row) -> str:
    """Which direction is better, in words; empty if neither is."""
    return f"{row.better} is better" if row.better else ""


def short_number(value: float, _: object = None) -> str:
    """A number for an axis: with k, M or G above a thousand, else unchanged.

    >>> short_number(1500), short_number(0.5), short_number(2e6), short_number(0)
    ('1.5k', '0.5', '2M', '0')
    """
    size = abs(value)
    for divisor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= divisor:
            return f"{value / divisor:.3g}{letter}"
    return f"{value:.3g}"
