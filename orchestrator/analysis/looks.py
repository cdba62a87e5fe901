# SPDX-License-Identifier: GPL-2.0-only
"""The interim analyses (looks) of a run with ``--until-decided``, and the error that each may spend.

A run that stops as soon as a mark appears makes more false claims than its tests allow. So the looks are fixed before
the first boot, and the error is divided among them. The errors of all looks add up to at most the total (Bonferroni's
inequality), for any data and any dependence between looks.

Differences and equivalences have separate budgets, because both errors cannot happen together: a false difference
needs no difference, and a false equivalence a difference of at least the margin. The first look is after five
repetitions. With an A/A control, a family of three metrics can then differ with half of the error:
3 * 2/3^5 = 0.0247. Equivalence needs an interval of at least 95 %, so its budget starts at six repetitions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from orchestrator.analysis.statistics import ALPHA, REPETITIONS_FOR_INTERVAL

_FIRST: Final = 5
#: From the third look on, each has at least a third more repetitions than the previous one.
_GROWTH: Final = 4 / 3
#: Shares of the error for the first looks; the others divide the rest evenly. The second share is large enough for a
#: family of three to differ after six repetitions: 3 * 2/3^6 = 0.0082.
_SHARES: Final = (0.5, 0.2)


@dataclass(frozen=True)
class Look:
    """An interim analysis.

    Args:
        repetitions: number of repetitions after which it takes place.
        alpha: probability of a false claim of a difference in a family, at this look.
        alpha_equivalence: the same for equivalence; 0 if equivalence cannot be claimed yet.
    """

    repetitions: int
    alpha: float
    alpha_equivalence: float


def looks(most: int, alpha: float = ALPHA) -> tuple[Look, ...]:
    """The looks of a run with at most this number of repetitions.

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
    """The error for each of this number of looks."""
    first = _SHARES[: max(0, number - 1)]
    others = number - len(first)
    return [alpha * share for share in (*first, *[(1 - sum(first)) / max(others, 1)] * others)]


def look_at(repetitions: int, most: int) -> Look:
    """The last look at or before this number of repetitions; before the first look, one without any claims."""
    past = [look for look in looks(most) if look.repetitions <= repetitions]
    return past[-1] if past else Look(repetitions, 0.0, 0.0)
