# SPDX-License-Identifier: GPL-2.0-only
"""Which of some names a person may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

#: Similarity (difflib.SequenceMatcher.ratio) from which on one name is taken for a misspelling of another.
_NEAR: Final = 0.75
#: The same for a name of at most four letters, where two that changed places already make a third of it differ.
_NEAR_SHORT: Final = 0.66


def near(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` is a likely misspelling of; None where none is near.

    >>> near("core-onyl", ["baseline", "core-only"])
    'core-only'
    >>> near("frobnicate", ["baseline", "core-only"])
    """
    least = _NEAR if len(name) > 4 else _NEAR_SHORT
    return next(iter(difflib.get_close_matches(name, list(known), 1, least)), None)
