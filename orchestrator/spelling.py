# SPDX-License-Identifier: GPL-2.0-only
"""Which of some names a person may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

#: Similarity (difflib.SequenceMatcher.ratio) from which on one name is taken for a misspelling of another: two
#: letters changed places in a word of five, or one of four is wrong.
_NEAR: Final = 0.75


def near(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` is a likely misspelling of; None where none is near.

    >>> near("core-onyl", ["baseline", "core-only"])
    'core-only'
    >>> near("frobnicate", ["baseline", "core-only"])
    """
    return next(iter(difflib.get_close_matches(name, list(known), 1, _NEAR)), None)
