# SPDX-License-Identifier: GPL-2.0-only
"""Plots made of ASCII characters, for mails without images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Final

import numpy as np

from orchestrator.analysis.notation import Scale, short_number
from orchestrator.analysis.statistics import median_ends

#: Fewest columns for the drawing, without labels.
_LEAST_PLOT: Final = 20
_INDENT: Final = "    "


@dataclass(frozen=True)
class Bar:
    """The boots of one variant.

    Args:
        values: values of the boots; at least one.
    """

    name: str
    values: tuple[float, ...]

    @property
    def middle(self) -> float:
        """The median."""
        return float(np.median(self.values))

    @property
    def ends(self) -> tuple[float, float]:
        """The interval of the median; for fewer than three boots, their range."""
        return median_ends(np.array(self.values, dtype=np.float64))


def bars(rows: Sequence[Bar], scale: Scale, width: int, name_width: int = 20) -> list[str]:
    """One bar per row from 0 to its median ``|``, with the interval of the median between ``[`` and ``]``.

    Args:
        scale: scale for the medians.
        width: columns.

    Returns:
        The lines; empty if a value is below 0, or if none is above 0.

    >>> rows = [Bar("a", (4.0,) * 6), Bar("b", (9.0, 9.0, 10.0, 10.0, 12.0, 12.0))]
    >>> print("\\n".join(bars(rows, Scale("x", 1.0, 0), 50, name_width=2)))
        a   4 =============|
        b  10 =============================[--|------]
    """
    largest = max((value for row in rows for value in row.values), default=0.0)
    if largest <= 0 or any(value < 0 for row in rows for value in row.values):
        return []
    texts = [scale.text(row.middle) for row in rows]
    text_width = max(map(len, texts))
    columns = width - len(_INDENT) - name_width - text_width - 2
    if columns < _LEAST_PLOT:
        return []

    def column(value: float) -> int:
        return round(value / largest * (columns - 1))

    lines = []
    for row, text in zip(rows, texts, strict=True):
        least, most = row.ends
        low, middle, high = (column(value) for value in (least, row.middle, most))
        drawn = list("=" * middle + " " * (columns - middle))
        if high > low:
            drawn[low : high + 1] = "-" * (high + 1 - low)
            drawn[low], drawn[high] = "[", "]"
        drawn[middle] = "|"
        if len(row.name) > name_width:
            lines.append(f"{_INDENT}{row.name}")
        shown = row.name if len(row.name) <= name_width else ""
        lines.append(f"{_INDENT}{shown:<{name_width}}{text:>{text_width + 1}} {''.join(drawn)}".rstrip())
    return lines


def points(columns: Mapping[str, Sequence[float]], places: Sequence[int], width: int) -> list[str]:
    """One line per place, with a letter per column at its value on a logarithmic axis; ``*`` marks overlaps.

    Args:
        columns: name -> its value at each place; positive.
        places: labels of the lines.
        width: columns of text.

    Returns:
        The lines, the axis first. The letters are a, b, c ... in the order of `columns`.

    >>> print("\\n".join(points({"huge": [9.0, 9.0], "base": [1.0, 99.0]}, [1, 512], 40)))
               1                          99
          1    b            a
        512                 a              b
    """
    values = [value for column in columns.values() for value in column]
    least, most = math.log(min(values)), math.log(max(values))
    label_width = max(len(str(place)) for place in places)
    room = width - len(_INDENT) - label_width - 4

    def at(value: float) -> int:
        return round((math.log(value) - least) / ((most - least) or 1.0) * (room - 1))

    low, high = (short_number(value) for value in (min(values), max(values)))
    margin = " " * (len(_INDENT) + label_width + 4)
    lines = [f"{margin}{low}{high:>{room - len(low)}}"]
    for line, place in enumerate(places):
        drawn = [" "] * room
        for letter, column in zip(ascii_lowercase, columns.values(), strict=False):
            position = at(column[line])
            drawn[position] = letter if drawn[position] == " " else "*"
        lines.append(f"{_INDENT}{place:>{label_width}}    {''.join(drawn)}".rstrip())
    return lines
