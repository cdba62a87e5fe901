# SPDX-License-Identifier: GPL-2.0-only
"""When a run that goes on until it is decided looks at its boots, and the error that each look may spend.

A run that stops as soon as a mark appears errs more often than its tests say. So the looks are fixed before the first
boot, and the error is divided among them. The errors of all looks add up to at most that (Bonferroni's inequality),
whatever the data and however one look depends on another.

Differences and equivalences spend apart, because no truth allows both errors: a difference is claimed wrongly where
there is none, an equivalence where the difference is at least the margin. The first look is at five repetitions. With
an A/A control a family of three metrics can then differ at half of the error: 3 * 2/3^5 = 0.0247. Equivalence takes an
interval of at least 95 %, so it spends from six repetitions on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from orchestrator.analysis.statistics import ALPHA, REPETITIONS_FOR_INTERVAL

_FIRST: Final = 5
#: From the third look on, each has at least a third more repetitions than the one before.
_GROWTH: Final = 4 / 3
#: Shares of the error that the first looks of a kind may spend; the others divide the rest evenly. The second is as
#: much as a family of three needs to differ at six repetitions: 3 * 2/3^6 = 0.0082.
_SHARES: Final = (0.5, 0.2)


@dataclass(frozen=True)
class Look:
    """One look.

    Args:
        repetitions: after which it is.
        alpha: probability of claiming a difference in a family where there is none, at this look.
        alpha_equivalence: the same of claiming an equivalence; 0 where none is claimed yet.
    """

    repetitions: int
    alpha: float
    alpha_equivalence: float


def looks(most: int, alpha: float = ALPHA) -> tuple[Look, ...]:
    """The looks of a run of at most so many repetitions.

    >>> [look.repetitions for look in looks(20)]
    [5, 6, 8, 11, 15, 20]
    >>> [round(sum(getattr(look, kind) for look in looks(20)), 9) for kind in ("alpha", "alpha_equivalence")]
    [0.05, 0.05]
    """
    places = [min(_FIRST, most)]
    while places[-1] < most:
        following = REPETITIONS_FOR_INTERVAL if len(places) == 1 else math.ceil(places[-1] * _GROWTH)
        places.append(min(following, most))
    differ = _spent(len(places), alpha)
    late = [each for each in places if each >= REPETITIONS_FOR_INTERVAL]
    same = [0.0] * (len(places) - len(late)) + _spent(len(late), alpha)
    return tuple(Look(*each) for each in zip(places, differ, same, strict=True))


def _spent(number: int, alpha: float) -> list[float]:
    """What each of so many looks may spend."""
    first = _SHARES[: max(0, number - 1)]
    others = number - len(first)
    return [alpha * share for share in (*first, *[(1 - sum(first)) / max(others, 1)] * others)]


def look_at(repetitions: int, most: int) -> Look:
    """The last look at or before so many repetitions; before the first look, one that claims nothing."""
    past = [look for look in looks(most) if look.repetitions <= repetitions]
    return past[-1] if past else Look(repetitions, 0.0, 0.0)
