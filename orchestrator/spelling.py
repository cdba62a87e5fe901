# SPDX-License-Identifier: GPL-2.0-only
"""Suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

#: Lowest similarity (difflib.SequenceMatcher.ratio) at which one name counts as a misspelling of another.
_NEAR: Final = 0.75
#: The same for names of at most four letters, where two swapped letters are already a large part of the name.
_NEAR_SHORT: Final = 0.66
#: Shortest part of a name, in letters, that is accepted for the whole name.
_PART: Final = 4


def near(name: str, known: Iterable[str]) -> str | None:
    """The name in `known` that `name` is most likely a misspelling of; None if none is similar.

    >>> near("core-onyl", ["baseline", "core-only"])
    'core-only'
    >>> near("frobnicate", ["baseline", "core-only"])
    """
    least = _NEAR if len(name) > 4 else _NEAR_SHORT
    return next(iter(difflib.get_close_matches(name, list(known), 1, least)), None)


def meant(name: str, known: Iterable[str]) -> str | None:
    """Like :func:`near`, but also finds the name in `known` that contains `name`, ignoring case.

    >>> meant("threshold", ["promotion_threshold", "enabled"]), meant("ALWAYS", ["always"])
    ('promotion_threshold', 'always')
    """
    names = list(known)
    close = near(name, names)
    if close is not None:
        return close
    holding = [each for each in names if len(name) >= _PART and name.casefold() in each.casefold()]
    return holding[0] if len(holding) == 1 else None


def hint(name: str, known: Iterable[str], otherwise: str = "there are") -> str:
    """The end of an error message about an unknown `name`: the name that was probably meant, or all names.

    >>> hint("chnuk", ["chunk", "touch"]), hint("x", ["chunk", "touch"])
    ('did you mean chunk?', 'there are chunk, touch.')
    """
    names = list(known)
    close = meant(name, names)
    return f"did you mean {close}?" if close else f"{otherwise} {', '.join(names) or 'none'}."
