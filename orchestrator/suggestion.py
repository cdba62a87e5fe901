# SPDX-License-Identifier: GPL-2.0-only
"""What a mistyped name was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

#: Similarity (:meth:`difflib.SequenceMatcher.ratio`) that one or two wrong letters leave of a name.
_NEAR: Final = 0.75
#: Letters of a part of a name that stand for all of it.
_PART: Final = 4


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is near to: mistyped in a letter or two, or a part of just that one.

    >>> nearest("core-onyl", ["core-only", "memcg"]), nearest("threshold", ["promotion_threshold", "enabled"])
    ('core-only', 'promotion_threshold')
    >>> nearest("nonsense", ["core-only", "memcg", "shrinker"]) is None
    True
    """
    names = list(known)
    folded = {each.casefold(): each for each in reversed(names)}
    close = difflib.get_close_matches(name.casefold(), folded, 1, _NEAR)
    if close:
        return folded[close[0]]
    holding = [each for each in names if len(name) >= _PART and name.casefold() in each.casefold()]
    return holding[0] if len(holding) == 1 else None


def hint(name: str, known: Iterable[str], otherwise: str = "there are") -> str:
    """The end of a sentence that refuses `name`: the name that was meant, or all there are.

    >>> hint("chnuk", ["chunk", "touch"]), hint("x", ["chunk", "touch"])
    ('did you mean chunk?', 'there are chunk, touch.')
    """
    names = list(known)
    near = nearest(name, names)
    return f"did you mean {near}?" if near else f"{otherwise} {', '.join(names) or 'none'}."
