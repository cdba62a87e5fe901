# SPDX-License-Identifier: GPL-2.0-only
"""Compares the diagnostics of compilers and sparse(1) between two trees."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_PLACE = re.compile(r"^([^\s:]+):\d+(?::\d+)?: ")


def added(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Messages that occur more often than before, each once. Line numbers move, so messages are only counted.

    >>> added(["a.c:1:2: warning: x"], ["a.c:5:2: warning: x", "a.c:7:1: warning: x"])
    ['a.c:7:1: warning: x']
    """
    known = Counter(map(_unplaced, before))
    found = []
    for line in after:
        text = _unplaced(line)
        if known[text]:
            known[text] -= 1
        else:
            found.append(line)
    return list(dict.fromkeys(found))


def _unplaced(line: str) -> str:
    return _PLACE.sub(r"\1: ", line)
