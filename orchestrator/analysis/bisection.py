# SPDX-License-Identifier: GPL-2.0-only
"""The search for the first bad stage of a series, where single boots may be wrong. It does no I/O.

Stages are numbered from 1 in the order they are applied; 0 is the kernel that they are applied to. The hypotheses are
"stage f is the first bad one" for each f, and "no stage is bad". A boot of a good stage shows the fault with a small
probability, a boot of a bad stage with a large one. Both are unknown, so a :class:`Noise` lists pairs of them.

The rule to stop (Wald's sequential test with a mixture in the denominator): with ``L(f, r)`` the likelihood of all
boots under hypothesis f and rates r, and ``M`` its mean over the priors of both, the search ends when for *every* r the
prior mean of ``L(f, r)`` over all other f is at most ``(1 - confidence) M``. Summed over all possible observations
``M`` is 1. So for every pair of true rates, at most ``1 - confidence`` of all bisections end with a wrong result,
however the stages to boot are chosen and however often the evidence is checked.

The result states its condition. "No stage is bad" needs a rate: it holds for bad stages that show the fault at least
at the requested rate. "Stage f is the first" holds down to :data:`LEAST_RATE`: once a boot has shown the fault, rates
below the requested one are considered too, and the search continues until they no longer point to another stage. A
result whose boots are almost impossible with all rates is withdrawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

#: Prior probabilities of the special results; the rest is divided among the stages.
_PRIOR_NONE: Final = 0.2
_PRIOR_START: Final = 0.05
#: Number of consecutive unclear boots after which a stage is skipped.
UNCLEAR_BOOTS: Final = 3
#: The lowest reproduction rate for which the confidence in a first bad stage holds.
LEAST_RATE: Final = 0.05
#: Possible rates of false alarms of a good stage in an emulated guest, e.g. a lockup on a busy host.
_FALSE_ALARMS: Final = (0.001, 0.02)


class Mark(StrEnum):
    """The judgement of one boot of a stage."""

    GOOD = "good"
    BAD = "bad"
    UNCLEAR = "unclear"  # neither good nor bad


@dataclass(frozen=True)
class Rates:
    """A pair of rates that may be the true one.

    Args:
        good, bad: share of the boots of a good and of a bad stage that show the fault.
        weight: prior probability of the pair.
        rarer: the bad rate is below the requested one, so it is not used for "no stage is bad".
    """

    good: float
    bad: float
    weight: float
    rarer: bool = False


@dataclass(frozen=True)
class Noise:
    """How boots may err.

    Args:
        name: name for the report.
        condition: condition of the confidence in a first bad stage, a clause that begins with "if".
        condition_of_none: the same for "no stage is bad".
        rates: the pairs of rates to consider; weights sum to 1.
        otherwise: used instead once two boots of a stage contradict each other, if that is almost impossible with
            these rates; else None.
    """

    name: str
    rates: tuple[Rates, ...]
    condition: str = ""
    condition_of_none: str = ""
    otherwise: Noise | None = None


def flaky(lowest: float) -> Noise:
    """An outcome that a bad stage shows in a share of its boots.

    Args:
        lowest: the lowest reproduction rate for which "no stage is bad" must hold. For a first bad stage the
            confidence holds down to :data:`LEAST_RATE`.
    """
    steps = list(map(float, np.linspace(lowest, 0.999, 5))) if lowest < 0.999 else [0.999]
    # The lowest rate is the most expensive to exclude; a large weight limits the cost to one or two boots.
    weights = [0.3] + [0.45 / (len(steps) - 1)] * (len(steps) - 1) if len(steps) > 1 else [0.75]
    least = min(LEAST_RATE, lowest)
    number = int(np.ceil(np.log(lowest / least) / np.log(1.7))) if lowest > least else 0
    rarer = [float(rate) for rate in np.geomspace(least, lowest, number + 1)[:-1]]
    if rarer:
        weights += [0.25 / len(rarer)] * len(rarer)
    total = sum(weights)
    rates = tuple(
        Rates(good, bad, weight / total / len(_FALSE_ALARMS), bad < lowest)
        for good in _FALSE_ALARMS
        for bad, weight in zip([*steps, *rarer], weights, strict=True)
    )
    least_of_none, most = (
        f"if a bad stage shows it in at least {lowest:.0%} of its boots",
        f"and a good one in at most {_FALSE_ALARMS[-1]:.0%}",
    )
    least_of_found = f"if a bad stage shows it in at least {least:.0%} of its boots"
    return Noise("flaky", rates, f"{least_of_found} {most}", f"{least_of_none} {most}")


def noisy() -> Noise:
    """A metric with a noisy clock: most boots of a bad stage are past the limit, and fewer of a good stage."""
    pairs = list(itertools.product((0.001, 0.1, 0.2, 0.3), (0.7, 0.8, 0.9, 0.999)))
    condition = "if at least 70% of a bad stage's boots are past the limit and at most 30% of a good one's"
    return Noise(
        "noisy", tuple(Rates(good, bad, 1 / len(pairs)) for good, bad in pairs), condition, condition
    )


def repeatable() -> Noise:
    """A metric that is repeatable, like instructions with icount; one boot in 20 may still be wrong."""
    condition = "if at most one boot in 20 is on the wrong side of the limit"
    rates = (Rates(0.001, 0.999, 0.9), Rates(0.05, 0.95, 0.1))
    return Noise("repeatable", rates, condition, condition, noisy())


class Conclusion(StrEnum):
    """The result of a bisection."""

    FOUND = "found"  # one stage, or several if stages between them cannot be tested
    NONE = "none"  # no stage is bad
    ALREADY = "already"  # the kernel that the stages are applied to is bad
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Answer:
    """The current state of a bisection.

    Args:
        conclusion: UNDECIDED until the result is sure enough and verified.
        candidates: the most likely first bad stages, in order; more than one if skipped stages are between them.
        sure: lower bound of the probability for all rates, under the condition of the noise.
        verified: the first bad stage and its parent were booted once more, with the same judgement.
        seen: of the boots that should be bad if the result is right, how many were, and their total number.
        alarms: the same for boots that should be good.
        contradicted: one of the two is almost impossible with all rates, so there is no result.
        condition: condition of `sure`, a clause that begins with "if".
    """

    conclusion: Conclusion
    candidates: tuple[int, ...]
    sure: float
    verified: bool
    seen: tuple[int, int] = (0, 0)
    alarms: tuple[int, int] = (0, 0)
    contradicted: bool = False
    condition: str = ""


@dataclass(frozen=True)
class Step:
    """The next boot.

    Args:
        verifies: whether it verifies a result, instead of searching for one.
    """

    stage: int
    verifies: bool


class Bisection:
    """A search. Its state depends only on the observed boots, so it can be replayed.

    Args:
        stages: number of stages.
        noise: how boots may be wrong.
        confidence: required probability that the result is right, above 0.5 and below 1.
        start_is_good: stage 0 cannot be bad, e.g. because a metric is compared with that of stage 0.
    """

    def __init__(
        self, stages: int, noise: Noise, confidence: float = 0.99, *, start_is_good: bool = False
    ) -> None:
        if stages < 1 or not 0.5 < confidence < 1:
            raise ValueError(f"{stages} stages, confidence {confidence}")
        self.stages = stages
        self.confidence = confidence
        self._noise = noise
        self._good = np.zeros(stages + 1)
        self._bad = np.zeros(stages + 1)
        self._unclear = [0] * (stages + 1)  # in a row
        self._skipped: set[int] = set()
        self._prior = np.full(stages + 2, (1 - _PRIOR_NONE - _PRIOR_START) / stages)
        self._prior[0] = 0.0 if start_is_good else _PRIOR_START
        self._prior[-1] = _PRIOR_NONE
        self._claim: tuple[int, ...] = ()
        self._unverified: set[int] = set()

    # What is known

    @property
    def noise(self) -> Noise:
        """How boots may be wrong, as far as is known."""
        contradicted = bool(((self._good > 0) & (self._bad > 0)).any())
        return self._noise.otherwise if contradicted and self._noise.otherwise else self._noise

    @property
    def skipped(self) -> Collection[int]:
        """Stages that cannot be tested."""
        return frozenset(self._skipped)

    def counts(self, stage: int) -> tuple[int, int]:
        """Numbers of good and bad boots of a stage."""
        return int(self._good[stage]), int(self._bad[stage])

    def posterior(self) -> Mapping[int | None, float]:
        """Probability of each stage to be the first bad one; the key None stands for no bad stage."""
        mass = np.exp(self._joint()).sum(axis=0)
        keys: list[int | None] = [*range(self.stages + 1), None]
        return dict(zip(keys, map(float, mass), strict=True))

    # What is learned

    def observe(self, stage: int, mark: Mark) -> None:
        """Take one boot into account."""
        if mark is Mark.UNCLEAR:
            self._unclear[stage] += 1
            if self._unclear[stage] >= UNCLEAR_BOOTS:
                self.skip(stage)
            return
        self._unclear[stage] = 0
        (self._bad if mark is Mark.BAD else self._good)[stage] += 1
        before = self._claim
        self._update()
        # Boots that led to a result do not verify it; the first bad stage must show the fault again.
        if self._claim == before and (stage != self._shown_by(before) or mark is Mark.BAD):
            self._unverified.discard(stage)

    def skip(self, stage: int) -> None:
        """Skip a stage: it does not build, or its boots are unclear."""
        self._skipped.add(stage)
        self._update()

    def equate(self, earlier: int, later: int) -> None:
        """Two stages have identical binaries, so neither `later` nor a stage between them is the first bad one."""
        self._prior[earlier + 1 : later + 1] = 0.0
        self._prior /= self._prior.sum()
        self._update()

    # What follows

    def answer(self) -> Answer:
        """The current state."""
        claim = self._claim or self._likeliest()
        sure = self._sure(claim)
        verified = bool(self._claim) and not self._unverified
        seen, alarms = self._shares(claim)
        contradicted = self._contradicted(seen, alarms)
        decided = verified and not contradicted
        none = self.stages + 1
        conclusion = Conclusion.UNDECIDED
        if decided and none not in claim:
            conclusion = Conclusion.ALREADY if claim == (0,) else Conclusion.FOUND
        elif decided and len(claim) == 1:
            conclusion = Conclusion.NONE
        candidates = tuple(f for f in claim if f != none)
        condition = self.noise.condition_of_none if none in claim else self.noise.condition
        return Answer(conclusion, candidates, sure, verified, seen, alarms, contradicted, condition)

    def _shares(self, claim: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Bad boots and all boots, for the stages that are bad and for those that are good according to `claim`."""
        stages = np.arange(self.stages + 1)
        parts = []
        for chosen in (stages >= claim[-1], stages < claim[0]):
            bad, good = int(self._bad[chosen].sum()), int(self._good[chosen].sum())
            parts.append((bad, bad + good))
        return parts[0], parts[1]

    def _contradicted(self, seen: tuple[int, int], alarms: tuple[int, int]) -> bool:
        from scipy import stats  # imported here, since it is slow

        least = min(rates.bad for rates in self.noise.rates)
        most = max(rates.good for rates in self.noise.rates)
        too_few = stats.binom.cdf(seen[0], seen[1], least) if seen[1] else 1.0
        too_many = stats.binom.sf(alarms[0] - 1, alarms[1], most) if alarms[1] else 1.0
        return bool(min(too_few, too_many) < 1 - self.confidence)

    def next_step(self, cost: Callable[[int], float] = lambda _: 1.0) -> Step | None:
        """The stage whose boot has the most information per cost; None if there is a result, or nothing left to boot.

        Args:
            cost: cost of a boot of a stage, in any unit; higher if it has to be built first.
        """
        if self._claim:
            # First the bad stage: if it is not bad again, its parent need not be booted yet.
            waiting = sorted(self._unverified, reverse=True)
            return Step(waiting[0], True) if waiting else None
        testable = self._testable()
        if not testable or len({self._shown_by((int(f),)) for f in np.flatnonzero(self._prior)}) == 1:
            return None
        gains = self._information()
        # Stages with identical binaries have the same information, up to rounding; prefer the later one.
        worth = {stage: float(f"{gains[stage] / cost(stage):.9g}") for stage in testable}
        return Step(max(testable, key=lambda stage: (worth[stage], stage)), False)

    def _testable(self) -> list[int]:
        return [stage for stage in range(self.stages + 1) if stage not in self._skipped]

    def _shown_by(self, claim: tuple[int, ...]) -> int | None:
        """The first bad stage if `claim` is right; None if no stage that can be booted would be bad."""
        return next((stage for stage in self._testable() if claim and stage >= claim[0]), None)

    def _likeliest(self) -> tuple[int, ...]:
        """The most likely group of hypotheses; those in a group differ only in skipped stages."""
        mass = np.exp(self._joint()).sum(axis=0)
        return tuple(max(self._groups(), key=lambda group: float(mass[group].sum())))

    def _groups(self) -> list[list[int]]:
        groups: dict[int | None, list[int]] = {}
        for f in map(int, np.flatnonzero(self._prior)):
            groups.setdefault(self._shown_by((f,)), []).append(f)
        return list(groups.values())

    def _update(self) -> None:
        claim = self._likeliest()
        if self._sure(claim) < self.confidence:
            claim = ()
        if claim == self._claim:
            self._unverified -= self._skipped
            return
        self._claim = claim
        self._unverified = set()
        if not claim:
            return
        testable = self._testable()
        shown_by = self._shown_by(claim)
        if shown_by is not None:
            self._unverified.add(shown_by)
        self._unverified.update([stage for stage in testable if stage < claim[0]][-1:])

    def _log_likelihood(self) -> Values:
        """Log likelihood of all boots, by rates (rows) and first bad stage (columns; the last one is none)."""
        good = np.array([[rates.good] for rates in self.noise.rates])
        bad = np.array([[rates.bad] for rates in self.noise.rates])
        as_good = self._good * np.log1p(-good) + self._bad * np.log(good)
        as_bad = self._good * np.log1p(-bad) + self._bad * np.log(bad)
        before = np.cumsum(np.pad(as_good, ((0, 0), (1, 0))), axis=1)
        behind = np.cumsum(np.pad(as_bad, ((0, 0), (0, 1)))[:, ::-1], axis=1)[:, ::-1]
        return np.asarray(before + behind, dtype=np.float64)

    def _joint(self) -> Values:
        """Logarithm of the posterior, by rates and first bad stage."""
        with np.errstate(divide="ignore"):
            joint = self._log_likelihood() + np.log(self._prior)
        joint += np.log([[rates.weight] for rates in self.noise.rates])
        return np.asarray(joint - np.logaddexp.reduce(joint, axis=None), dtype=np.float64)

    def _sure(self, claim: Collection[int]) -> float:
        return float(max(0.0, 1.0 - self._errors(self._joint(), claim).max()))

    def _errors(self, joint: Values, claim: Collection[int]) -> Values:
        """The weight of all results but `claim`, by rates; 0 for rates that do not count for `claim`."""
        others = [f for f in range(self.stages + 2) if f not in claim]
        weights = np.array([rates.weight for rates in self.noise.rates])
        errors = np.exp(joint[:, others]).sum(axis=1) / weights
        if self.stages + 1 in claim:
            errors[[rates.rarer for rates in self.noise.rates]] = 0.0
        return np.asarray(errors, dtype=np.float64)

    def _information(self) -> Values:
        """The expected information of a boot of each stage.

        It is the sum of two terms: the information about the first bad stage in bits, which finds a candidate, and the
        decrease of the error bound of the most likely candidate, which confirms it. With the rate that delays the
        search, no boot may locate the stage, but a boot of a bad stage can exclude that rate.
        """
        joint = self._joint()
        mass = np.exp(joint)
        stages, first = np.ogrid[: self.stages + 1, : self.stages + 2]
        good = np.array([rates.good for rates in self.noise.rates])[:, None, None]
        bad = np.array([rates.bad for rates in self.noise.rates])[:, None, None]
        shows = np.where(first <= stages, bad, good)  # by rates, stage, first bad stage
        by_first = mass.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.nan_to_num((shows * mass[:, None, :]).sum(axis=0) / by_first)
        information = _entropy(share @ by_first) - _entropy(share) @ by_first

        groups = self._groups()
        member = np.zeros((self.stages + 2, len(groups)))
        for number, group in enumerate(groups):
            member[group, number] = 1.0
        without = np.array([self.stages + 1 in group for group in groups])
        rarer = np.array([rates.rarer for rates in self.noise.rates])
        weights = np.array([rates.weight for rates in self.noise.rates])
        now = np.log(self._errors(joint, self._likeliest()).sum() + 1e-12)
        settled = np.full(self.stages + 1, now)
        for outcome in (shows, 1 - shows):
            after = np.einsum("rsf,rf,fg->srg", outcome, mass, member)
            chance = after.sum(axis=(1, 2))
            after /= chance[:, None, None]
            best = after.sum(axis=1).argmax(axis=-1)
            own = np.take_along_axis(after, best[:, None, None], axis=-1)[..., 0]
            errors = (after.sum(axis=-1) - own) / weights
            errors[without[best][:, None] & rarer[None, :]] = 0.0
            settled -= chance * np.log(np.maximum(errors.sum(axis=-1), 0.0) + 1e-12)
        return np.asarray(np.maximum(information, 0.0) + np.maximum(settled, 0.0), dtype=np.float64)


def _entropy(probability: Values) -> Values:
    """Entropy of a yes-or-no answer, in bits."""
    p = np.clip(probability, 1e-300, 1 - 1e-16)
    return np.asarray(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)), dtype=np.float64)
