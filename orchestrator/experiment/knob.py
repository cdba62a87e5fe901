# SPDX-License-Identifier: GPL-2.0-only
"""Knobs: files in sysfs and /proc/sys that a variant may set before its workload starts.

The knobs of the baseline kernel are listed here (Documentation/admin-guide/mm/transhuge.rst). The knobs that a
series adds are listed in its ``series.toml``. Any other is named as sysctl(8) does (``vm.swappiness``) or by its path
(``/sys/kernel/mm/ksm/run``); only the guest knows whether it exists and what it takes.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import UserError
from orchestrator.kernel.series import Knob, Series
from orchestrator.spelling import hint

_THP = "/sys/kernel/mm/transparent_hugepage"
_SYSCTLS = "/proc/sys/"
#: The knob for the size of a compressed swap device (zram), which a guest does not have otherwise.
SWAP = "swap"
#: The file that sets the size of the swap device.
SWAP_PATH = "/sys/block/zram0/disksize"
_SWAP_SIZE = re.compile(r"[1-9]\d*[KMG]", re.ASCII)
#: Where a knob without a name of its own may be.
_ROOTS = ("/sys/", _SYSCTLS)
_SYSCTL = re.compile(r"[a-z0-9_-]+(\.[A-Za-z0-9_/:@-]+)+")
#: What the kernel prints for a boolean parameter (kernel/params.c, param_get_bool()).
_BOOLEANS = {"Y": "1", "N": "0"}


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
    check_paths(settings, series)
    return settings


def check_value(key: str, value: str, series: Series) -> None:
    """Check that the kernel accepts `value` for a knob.

    Raises:
        UserError: unknown knob, or a value out of range.
    """
    knob = series_knob(key, series)
    if key == SWAP and knob is None:
        if not _SWAP_SIZE.fullmatch(value):
            raise UserError(f"swap takes a size such as 512M or 1G, not {value!r}.")
        return
    if knob is not None:
        choices: Sequence[str] = ()
        minimum, maximum = knob.minimum, knob.maximum
    elif key in BASELINE_KNOBS:
        baseline = BASELINE_KNOBS[key]
        choices, minimum, maximum = baseline.choices, baseline.minimum, baseline.maximum
    else:
        if path_of_setting(key) is None:
            known = [*(each.name for each in series.knobs), *BASELINE_KNOBS, SWAP]
            raise UserError(
                f"unknown knob {key!r}; {hint(key, known, 'the knobs are')} Other settings are named like "
                "vm.swappiness or /sys/kernel/mm/ksm/run."
            )
        if not value.strip() or "\n" in value:
            raise UserError(f"knob {key} takes one line of text, not {value!r}.")
        return
    if choices:
        if value not in choices:
            raise UserError(f"knob {key} takes one of {', '.join(choices)}, not {value!r}.")
        return
    if not value.isascii() or not value.isdigit() or not minimum <= int(value) <= maximum:
        raise UserError(f"knob {key} takes a whole number from {minimum} to {maximum}, not {value!r}.")


def series_knob(key: str, series: Series) -> Knob | None:
    """The knob of the series with this name; None if the baseline has it or nobody does."""
    return next((each for each in series.knobs if each.name == key), None)


def with_swap(settings: Sequence[str] | None, swap: str | None) -> list[str]:
    """The values of ``--set``, with that of ``--swap`` as one of them."""
    return [*(settings or ()), *([f"{SWAP}={swap}"] if swap is not None else [])]


def is_named(key: str, series: Series) -> bool:
    """Whether `key` is the name of a knob of the series or the baseline, so that its values have been checked."""
    return series_knob(key, series) is not None or key in BASELINE_KNOBS


def path_of_setting(key: str) -> str | None:
    """The file of a setting that is not a named knob: a sysctl or a path; None if `key` is neither.

    Raises:
        UserError: the path is not below /sys or /proc/sys.

    >>> path_of_setting("vm.swappiness")
    '/proc/sys/vm/swappiness'
    """
    if key.startswith("/"):
        path = posixpath.normpath(key)
        if not path.startswith(_ROOTS):
            raise UserError(f"--set {key}: only files below /sys and /proc/sys can be set.")
        return path
    # In the name of an interface a slash stands for a dot, as with sysctl(8).
    return _SYSCTLS + key.translate(str.maketrans("./", "/.")) if _SYSCTL.fullmatch(key) else None


def knob_path(key: str, series: Series) -> str:
    """The file in the guest of knob `key`, which has been checked with :func:`check_value`."""
    knob = series_knob(key, series)
    if knob is not None:
        return knob.path
    if key in BASELINE_KNOBS:
        return BASELINE_KNOBS[key].path
    if key == SWAP:
        return SWAP_PATH
    path = path_of_setting(key)
    assert path is not None
    return path


def check_paths(keys: Iterable[str], series: Series) -> None:
    """Check that no file is set twice under different names.

    Raises:
        UserError: two of `keys`, which exist, name the same file.
    """
    names: dict[str, str] = {}
    for key in keys:
        path = knob_path(key, series)
        if path in names:
            raise UserError(f"{names[path]} and {key} are the same file, {path}; set it once.")
        names[path] = key


def reads_back(value: str, text: str) -> bool:
    """Whether a file that contains `text` has been set to `value`.

    A choice reads back as ``always [madvise] never``, a boolean as ``Y`` or ``N``, a number perhaps in another base,
    and several numbers with other spaces between them.

    >>> reads_back("madvise", "always [madvise] never"), reads_back("0x10", "16"), reads_back("1", "0 1")
    (True, True, False)
    """
    words = text.split()
    if f"[{value.strip()}]" in words:
        return True
    wanted = value.split()
    return len(wanted) == len(words) and all(map(_is_same, wanted, words))


def _is_same(wanted: str, found: str) -> bool:
    wanted, found = (_BOOLEANS.get(word, word) for word in (wanted, found))
    if wanted == found:
        return True
    try:
        return int(wanted, 0) == int(found, 0)
    except ValueError:
        return False


def combinations(settings: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """All combinations of a sweep, in the order given; one empty combination if nothing is set.

    >>> combinations({"a": ("1", "2"), "b": ("x",)})
    [{'a': '1', 'b': 'x'}, {'a': '2', 'b': 'x'}]
    """
    return [dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())]
