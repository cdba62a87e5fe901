# SPDX-License-Identifier: GPL-2.0-only
"""The search for the first bad stage of a series, if a boot may mislead. Arithmetic only: it reads and writes nothing.

Stages are numbered from 1 in the order they are applied; 0 is the baseline they are applied to. The hypotheses are
"stage f is the first bad one", one for each f, and "none is". A boot of a good stage shows the fault with a
small probability, one of a bad stage with a large one; neither is known, so a :class:`Noise` lists pairs of them.

The stopping rule (Wald's sequential test with a mixture in the denominator): with ``L(f, r)`` the likelihood of all
boots under hypothesis f and rates r, and ``M`` its mean over the priors of both, an answer is given when for
*every* r the prior mean of ``L(f, r)`` over all other f is at most ``(1 - confidence) M``. Summed over everything that
can be observed, ``M`` is 1: so whichever of the rates is the true one, at most ``1 - confidence`` of all bisections end
with a wrong answer, however the stages to boot were chosen and however often the evidence was looked at.

The answer states the condition under which this holds. "No stage shows it" depends on a reproduction rate: it holds if
a bad stage shows the fault at least as often as requested, and the answer says so. "Stage f is the first" holds down to
:data:`LEAST_RATE`: once a boot has shown the fault, rates below the requested one are considered too, and the search
continues until they no longer point to another stage. An answer is withdrawn if its own boots are nearly impossible
under all rates.
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

#: Prior probabilities of these two conclusions; the rest is divided among the stages.
_PRIOR_NONE: Final = 0.2
_PRIOR_START: Final = 0.05
#: Boots in a row without a verdict after which a stage is skipped.
UNCLEAR_BOOTS: Final = 3
#: Lowest reproduction rate for which the confidence in a first bad stage holds.
LEAST_RATE: Final = 0.05
#: Assumed rates at which boots of a good stage show the fault by accident, e.g. a lockup because the host is busy.
_FALSE_ALARMS: Final = (0.001, 0.02)


class Mark(StrEnum):
    """The judgement of one boot."""

    GOOD = "good"
    BAD = "bad"
    UNCLEAR = "unclear"  # neither good nor bad


@dataclass(frozen=True)
class Rates:
    """A pair of rates that may be the true one.

    Args:
        good, bad: share of boots of a good and of a bad stage that show the fault.
        weight: prior probability of the pair.
        rarer: the bad rate is below the requested one, so it is ignored for "no stage shows it".
    """

    good: float
    bad: float
    weight: float
    rarer: bool = False


@dataclass(frozen=True)
class Noise:
    """How often boots may mislead.

    Args:
        name: for the report.
        condition: condition for the confidence in a first bad stage, a clause that begins with "if".
        condition_of_none: the same for "no stage shows it".
        rates: pairs of rates to consider; the weights sum to 1.
        otherwise: used instead after two boots of one stage contradict each other, if that is nearly impossible under
            these rates; None if they allow for it.
    """

    name: str
    rates: tuple[Rates, ...]
    condition: str = ""
    condition_of_none: str = ""
    otherwise: Noise | None = None


def flaky(lowest: float) -> Noise:
    """Noise of an outcome that a bad stage shows only in a share of its boots.

    Args:
        lowest: lowest share for which "no stage shows it" must hold. The confidence in a first bad stage holds down to
            :data:`LEAST_RATE`.
    """
    steps = list(map(float, np.linspace(lowest, 0.999, 5))) if lowest < 0.999 else [0.999]
    # The lowest rate needs the most boots to exclude; a large weight limits this to one or two extra boots.
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
    """Noise of a metric with a noisy clock: most boots of a bad stage are past the limit, and few of a good one."""
    pairs = list(itertools.product((0.001, 0.1, 0.2, 0.3), (0.7, 0.8, 0.9, 0.999)))
    condition = "if at least 70% of a bad stage's boots are past the limit and at most 30% of a good one's"
    return Noise(
        "noisy", tuple(Rates(good, bad, 1 / len(pairs)) for good, bad in pairs), condition, condition
    )


def repeatable() -> Noise:
    """Noise of a metric that repeats, like instructions under icount; one boot in 20 may still mislead."""
    condition = "if at most one boot in 20 is on the wrong side of the limit"
    rates = (Rates(0.001, 0.999, 0.9), Rates(0.05, 0.95, 0.1))
    return Noise("repeatable", rates, condition, condition, noisy())


class Conclusion(StrEnum):
    """The conclusion of a bisection."""

    FOUND = "found"  # a stage, or several if the stages between them cannot be tested
    NONE = "none"  # no stage shows it
    ALREADY = "already"  # the baseline shows it
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class SearchState:
    """The state of a search.

    Args:
        conclusion: UNDECIDED until it is sure enough and has been verified.
        candidates: the stages that the evidence points to, in order; several if skipped stages make them
            indistinguishable.
        sure: lower limit of the probability that the answer is right, under `condition`.
        verified: the first bad stage and its parent were booted once more, with the same result.
        seen: among the boots that should show the fault if the answer is right: how many did, and how many there were.
        alarms: the same for the boots that should not show it.
        contradicted: `seen` or `alarms` is nearly impossible under all considered rates, so there is no conclusion.
        condition: condition for `sure`, a clause that begins with "if".
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
class NextBoot:
    """The next boot.

    Args:
        verifies: whether it confirms an answer rather than searches for one.
    """

    stage: int
    verifies: bool


class Bisection:
    """A search for the first bad stage; replaying the same boots results in the same state.

    Args:
        stages: number of stages.
        noise: how often boots may mislead.
        confidence: probability that the answer is right, above 0.5 and below 1.
        start_is_good: stage 0 cannot be bad, e.g. because the limit of a metric is relative to stage 0.
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
        """The current assumption on how often boots mislead."""
        contradicted = bool(((self._good > 0) & (self._bad > 0)).any())
        return self._noise.otherwise if contradicted and self._noise.otherwise else self._noise

    @property
    def skipped(self) -> Collection[int]:
        """Stages that cannot be tested."""
        return frozenset(self._skipped)

    def counts(self, stage: int) -> tuple[int, int]:
        """Numbers of good and of bad boots of a stage."""
        return int(self._good[stage]), int(self._bad[stage])

    def posterior(self) -> Mapping[int | None, float]:
        """Probability of each stage to be the first bad one; None: that there is none."""
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
        # Verification needs boots that the claim is not based on, and the first bad stage must show the fault again.
        if self._claim == before and (stage != self._shown_by(before) or mark is Mark.BAD):
            self._unverified.discard(stage)

    def skip(self, stage: int) -> None:
        """Skip a stage: it does not build, or its boots are unclear."""
        self._skipped.add(stage)
        self._update()

    def equate(self, earlier: int, later: int) -> None:
        """Two stages have identical kernels, so neither `later` nor a stage between them is the first bad one."""
        self._prior[earlier + 1 : later + 1] = 0.0
        self._prior /= self._prior.sum()
        self._update()

    # What follows

    def answer(self) -> SearchState:
        """The state of the search."""
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
        return SearchState(conclusion, candidates, sure, verified, seen, alarms, contradicted, condition)

    def _shares(self, claim: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Per group (bad and good stages under `claim`): boots that showed the fault, and all boots."""
        stages = np.arange(self.stages + 1)
        parts = []
        for chosen in (stages >= claim[-1], stages < claim[0]):
            bad, good = int(self._bad[chosen].sum()), int(self._good[chosen].sum())
            parts.append((bad, bad + good))
        return parts[0], parts[1]

    def _contradicted(self, seen: tuple[int, int], alarms: tuple[int, int]) -> bool:
        from scipy import stats  # imported here, because it takes long

        least = min(rates.bad for rates in self.noise.rates)
        most = max(rates.good for rates in self.noise.rates)
        too_few = stats.binom.cdf(seen[0], seen[1], least) if seen[1] else 1.0
        too_many = stats.binom.sf(alarms[0] - 1, alarms[1], most) if alarms[1] else 1.0
        return bool(min(too_few, too_many) < 1 - self.confidence)

    def next_step(self, cost: Callable[[int], float] = lambda _: 1.0) -> NextBoot | None:
        """The stage whose boot is worth most for its cost; None if there is an answer, or nothing left to boot.

        Args:
            cost: returns the cost of one boot of a stage, in any unit; higher if the kernel must be built first.
        """
        if self._claim:
            # The first bad stage goes first: if it does not show the fault again, the parent need not be booted yet.
            waiting = sorted(self._unverified, reverse=True)
            return NextBoot(waiting[0], True) if waiting else None
        testable = self._testable()
        if not testable or len({self._shown_by((int(f),)) for f in np.flatnonzero(self._prior)}) == 1:
            return None
        gains = self._information()
        # Stages with identical kernels are worth the same except for rounding; choose the later, the next one's parent.
        worth = {stage: float(f"{gains[stage] / cost(stage):.9g}") for stage in testable}
        return NextBoot(max(testable, key=lambda stage: (worth[stage], stage)), False)

    def _testable(self) -> list[int]:
        return [stage for stage in range(self.stages + 1) if stage not in self._skipped]

    def _shown_by(self, claim: tuple[int, ...]) -> int | None:
        """The first stage that would be bad if `claim` were right; None if no stage that can be booted would be."""
        return next((stage for stage in self._testable() if claim and stage >= claim[0]), None)

    def _likeliest(self) -> tuple[int, ...]:
        """The most likely group of hypotheses; a group has those that only skipped stages could tell apart."""
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
        """Log likelihood of all boots, by rates (rows) and first bad stage (columns; the last is none)."""
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
        """Weight of all answers except `claim`, by rates; 0 for rates that are ignored for `claim`."""
        others = [f for f in range(self.stages + 2) if f not in claim]
        weights = np.array([rates.weight for rates in self.noise.rates])
        errors = np.exp(joint[:, others]).sum(axis=1) / weights
        if self.stages + 1 in claim:
            errors[[rates.rarer for rates in self.noise.rates]] = 0.0
        return np.asarray(errors, dtype=np.float64)

    def _information(self) -> Values:
        """The expected gain from a boot of each stage.

        It is the sum of two terms: the information on the first bad stage in bits, which finds a candidate, and the
        reduction of the candidate's probability to be wrong, which confirms it. Under the rate that delays the search,
        no boot may tell the first bad stage, but a boot of a bad stage can show that the rate is different.
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
    """Entropy of a yes-or-no event, in bits."""
    p = np.clip(probability, 1e-300, 1 - 1e-16)
    return np.asarray(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)), dtype=np.float64)
