# SPDX-License-Identifier: GPL-2.0-only
"""Knobs: sysfs files that a variant may set before its workload starts.

The knobs of the baseline kernel are listed here (Documentation/admin-guide/mm/transhuge.rst). The knobs that a
series adds are listed in its ``series.toml``.
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
class BaselineKnob:
    """A knob of the baseline kernel.

    Args:
        path: file in the guest.
        default: value after boot, with the configuration in ``vm_images/kernel/base.config``.
        help: one line of help; see Documentation/admin-guide/mm/transhuge.rst.
        choices: accepted values; if empty, the knob takes an integer from `minimum` to `maximum`.
        unit: unit of an integer knob.
    """

    path: str
    default: str
    help: str
    choices: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int = 2**32 - 1
    unit: str = ""


def _switch(path: str, default: str, text: str) -> BaselineKnob:
    return BaselineKnob(f"{_THP}/{path}", default, text, maximum=1)


def _choice(path: str, default: str, text: str, *choices: str) -> BaselineKnob:
    return BaselineKnob(f"{_THP}/{path}", default, text, choices)


def _number(
    path: str, default: int, unit: str, text: str, *, minimum: int = 0, maximum: int = 2**32 - 1
) -> BaselineKnob:
    return BaselineKnob(f"{_THP}/{path}", str(default), text, minimum=minimum, maximum=maximum, unit=unit)


BASELINE_KNOBS: Mapping[str, BaselineKnob] = {
    "enabled": _choice(
        "enabled", "always", "Which anonymous memory may use huge pages.", "always", "madvise", "never"
    ),
    "defrag": _choice(
        "defrag",
        "madvise",
        "When a fault that finds no free huge page reclaims and compacts memory.",
        *("always", "defer", "defer+madvise", "madvise", "never"),
    ),
    "use_zero_page": _switch("use_zero_page", "1", "Map the huge zero page on a read fault."),
    "shrink_underused": _switch(
        "shrink_underused", "1", "Split huge pages that are mostly zero under memory pressure."
    ),
    "khugepaged/defrag": _switch(
        "khugepaged/defrag", "1", "Whether khugepaged reclaims and compacts memory."
    ),
    "khugepaged/max_ptes_none": _number(
        "khugepaged/max_ptes_none",
        511,
        "pages",
        "Maximum number of empty PTEs in a range that khugepaged collapses.",
        maximum=511,
    ),
    "khugepaged/max_ptes_swap": _number(
        "khugepaged/max_ptes_swap",
        64,
        "pages",
        "Maximum number of swapped-out pages in a range that khugepaged collapses.",
        maximum=511,
    ),
    "khugepaged/max_ptes_shared": _number(
        "khugepaged/max_ptes_shared",
        256,
        "pages",
        "Maximum number of shared pages in a range that khugepaged collapses.",
        maximum=511,
    ),
    "khugepaged/pages_to_scan": _number(
        "khugepaged/pages_to_scan", 4096, "pages", "Pages that khugepaged scans per pass.", minimum=1
    ),
    "khugepaged/scan_sleep_millisecs": _number(
        "khugepaged/scan_sleep_millisecs", 10000, "ms", "Time that khugepaged sleeps between passes."
    ),
    "khugepaged/alloc_sleep_millisecs": _number(
        "khugepaged/alloc_sleep_millisecs",
        60000,
        "ms",
        "Time that khugepaged sleeps after a failed allocation.",
    ),
    "hugepages-64kB/enabled": _choice(
        "hugepages-64kB/enabled",
        "never",
        "Which anonymous memory may use 64 KiB folios.",
        *("always", "inherit", "madvise", "never"),
    ),
}


def parse_settings(arguments: Iterable[str], series: Series) -> dict[str, tuple[str, ...]]:
    """Parse ``--set KEY=VALUE[,VALUE...]`` options; several values make a sweep.

    Raises:
        UserError: no ``=``, an unknown key, a key given twice, or a value that the knob does not accept.
    """
    settings: dict[str, tuple[str, ...]] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not text:
            known = next((knob.name for knob in series.knobs), next(iter(BASELINE_KNOBS)))
            raise UserError(
                f"--set {argument}: write KEY=VALUE, or KEY=VALUE,VALUE for a sweep, e.g. {known}=1."
            )
        if key in settings:
            raise UserError(
                f"--set {key} is given twice; to sweep several values, separate them with commas."
            )
        values = tuple(value.strip() for value in text.split(","))
        if len(set(values)) != len(values):
            raise UserError(f"--set {argument}: a value occurs twice; give each value once.")
        for value in values:
            check_value(key, value, series)
        settings[key] = values
    return settings


def check_value(key: str, value: str, series: Series) -> None:
    """Check that the kernel accepts `value` for a knob.

    Raises:
        UserError: unknown knob, or a value out of range.
    """
    knob = series_knob(key, series)
    if knob is not None:
        choices: Sequence[str] = ()
        minimum, maximum = knob.minimum, knob.maximum
    elif key in BASELINE_KNOBS:
        baseline = BASELINE_KNOBS[key]
        choices, minimum, maximum = baseline.choices, baseline.minimum, baseline.maximum
    else:
        known = [*(each.name for each in series.knobs), *BASELINE_KNOBS]
        raise UserError(f"unknown knob {key!r}; {hint(key, known, 'the knobs are')}")
    if choices:
        if value not in choices:
            raise UserError(f"knob {key} takes one of {', '.join(choices)}, not {value!r}.")
        return
    if not value.isascii() or not value.isdigit() or not minimum <= int(value) <= maximum:
        raise UserError(f"knob {key} takes a whole number from {minimum} to {maximum}, not {value!r}.")


def series_knob(key: str, series: Series) -> Knob | None:
    """The knob of the series with this name; None if the baseline has it or nobody does."""
    return next((each for each in series.knobs if each.name == key), None)


def knob_path(key: str, series: Series) -> str:
    """The file in the guest of knob `key`, which must exist."""
    knob = series_knob(key, series)
    return knob.path if knob is not None else BASELINE_KNOBS[key].path


def combinations(settings: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """All combinations of a sweep, in the order given; one empty combination if nothing is set.

    >>> combinations({"a": ("1", "2"), "b": ("x",)})
    [{'a': '1', 'b': 'x'}, {'a': '2', 'b': 'x'}]
    """
    return [dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())]
