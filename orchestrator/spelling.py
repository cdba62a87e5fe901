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
#: Letters of a part of a name that stand for all of it.
_PART: Final = 4


def near(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` is a likely misspelling of; None where none is near.

    >>> near("core-onyl", ["baseline", "core-only"])
    'core-only'
    >>> near("frobnicate", ["baseline", "core-only"])
    """
    least = _NEAR if len(name) > 4 else _NEAR_SHORT
    return next(iter(difflib.get_close_matches(name, list(known), 1, least)), None)


def meant(name: str, known: Iterable[str]) -> str | None:
    """As :func:`near`, and also the one of `known` that `name` is a part of, whatever the case of its letters.

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
    """The end of a sentence that refuses `name`: the name that was meant, or all there are.

    >>> hint("chnuk", ["chunk", "touch"]), hint("x", ["chunk", "touch"])
    ('did you mean chunk?', 'there are chunk, touch.')
    """
    names = list(known)
    close = meant(name, names)
    return f"did you mean {close}?" if close else f"{otherwise} {', '.join(names) or 'none'}."
