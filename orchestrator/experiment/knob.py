# SPDX-License-Identifier: GPL-2.0-only
"""Knobs: the sysfs files that a variant may set before its workload starts.

Those of the unpatched kernel are listed here (Documentation/admin-guide/mm/transhuge.rst); those that a series
introduces come from its ``series.toml``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import UserError
from orchestrator.kernel.series import Knob, Series
from orchestrator.spelling import hint

_THP = "/sys/kernel/mm/transparent_hugepage"


@dataclass(frozen=True)
class StockKnob:
    """A knob of the unpatched kernel.

    Args:
        path: its file in the guest.
        choices: what it accepts; an empty tuple means an integer from `minimum` to `maximum`.
    """

    path: str
    choices: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int = 2**32 - 1


STOCK_KNOBS: Mapping[str, StockKnob] = {
    "enabled": StockKnob(f"{_THP}/enabled", ("always", "madvise", "never")),
    "defrag": StockKnob(f"{_THP}/defrag", ("always", "defer", "defer+madvise", "madvise", "never")),
    "use_zero_page": StockKnob(f"{_THP}/use_zero_page", maximum=1),
    "shrink_underused": StockKnob(f"{_THP}/shrink_underused", maximum=1),
    "khugepaged/defrag": StockKnob(f"{_THP}/khugepaged/defrag", maximum=1),
    "khugepaged/max_ptes_none": StockKnob(f"{_THP}/khugepaged/max_ptes_none", maximum=511),
    "khugepaged/max_ptes_swap": StockKnob(f"{_THP}/khugepaged/max_ptes_swap", maximum=511),
    "khugepaged/max_ptes_shared": StockKnob(f"{_THP}/khugepaged/max_ptes_shared", maximum=511),
    "khugepaged/pages_to_scan": StockKnob(f"{_THP}/khugepaged/pages_to_scan", minimum=1),
    "khugepaged/scan_sleep_millisecs": StockKnob(f"{_THP}/khugepaged/scan_sleep_millisecs"),
    "khugepaged/alloc_sleep_millisecs": StockKnob(f"{_THP}/khugepaged/alloc_sleep_millisecs"),
    "hugepages-64kB/enabled": StockKnob(
        f"{_THP}/hugepages-64kB/enabled", ("always", "inherit", "madvise", "never")
    ),
}


def parse_settings(arguments: Iterable[str], series: Series) -> dict[str, tuple[str, ...]]:
    """Read ``--set KEY=VALUE[,VALUE...]`` options; several values make a sweep.

    Raises:
        UserError: no ``=``, an unknown key, a key given twice, or a value that the knob does not accept.
    """
    settings: dict[str, tuple[str, ...]] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not text:
            raise UserError(f"--set {argument}: write KEY=VALUE, e.g. promotion_threshold=1,64,256.")
        if key in settings:
            raise UserError(f"--set {key} is given twice; join the values with commas to sweep them.")
        values = tuple(value.strip() for value in text.split(","))
        if len(set(values)) != len(values):
            raise UserError(f"--set {argument}: a value is given twice; name each once.")
        for value in values:
            check_value(key, value, series)
        settings[key] = values
    return settings


def check_value(key: str, value: str, series: Series) -> None:
    """Check one knob's value against what the kernel accepts.

    Raises:
        UserError: unknown key, or a value out of its range.
    """
    knob = series_knob(key, series)
    if knob is not None:
        choices: Sequence[str] = ()
        minimum, maximum = knob.minimum, knob.maximum
    elif key in STOCK_KNOBS:
        stock = STOCK_KNOBS[key]
        choices, minimum, maximum = stock.choices, stock.minimum, stock.maximum
    else:
        known = [*(each.name for each in series.knobs), *STOCK_KNOBS]
        raise UserError(f"unknown knob {key!r}; {hint(key, known, 'known are')}")
    if choices:
        if value not in choices:
            raise UserError(f"knob {key} takes one of {', '.join(choices)}, not {value!r}.")
        return
    if not value.isascii() or not value.isdigit() or not minimum <= int(value) <= maximum:
        raise UserError(f"knob {key} takes a whole number from {minimum} to {maximum}, not {value!r}.")


def series_knob(key: str, series: Series) -> Knob | None:
    """The series' own knob of that name, or None where it is a stock knob or unknown."""
    return next((each for each in series.knobs if each.name == key), None)


def knob_path(key: str, series: Series) -> str:
    """The file in the guest that knob `key`, already checked, is written to."""
    knob = series_knob(key, series)
    return knob.path if knob is not None else STOCK_KNOBS[key].path


def combinations(settings: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every combination of a sweep, in the order given; one empty combination where nothing is set.

    >>> combinations({"a": ("1", "2"), "b": ("x",)})
    [{'a': '1', 'b': 'x'}, {'a': '2', 'b': 'x'}]
    """
    return [dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())]
