# SPDX-License-Identifier: GPL-2.0-only
"""Statistics of a few repetitions: pure functions on arrays whose last axis is the repetitions.

Choices, and why:

- *Everything is paired by repetition.* The variants of a repetition share a seed, so they differ by less than two
  boots drawn at random do. Effects are ratios of the two boots of a repetition (differences where a baseline's
  value is not positive).
- *The test permutes within repetitions* (:func:`placement_p`). If the variant does not differ from the baseline,
  its boot could as well have been any of those of its repetition. Ranks of the log values, aligned by the median of
  their repetition (Hodges and Lehmann, 1962), make it robust; the null distribution is counted, not drawn. With
  baseline and variant alone this is the sign-flip test on signed ranks, whose smallest p is 2/2^n: 0.031 at n = 6,
  too large for a family of two. The A/A control runs the baseline's kernel in the same repetition, so it takes part:
  2/3^n, 0.0027 at n = 6, is enough for a family of 18.
- *Intervals are order statistics* of the paired effects (:func:`sign_interval`): exact for any distribution and any
  n, which a percentile bootstrap is not (tests/benchmarks/verdict_errors.py measures both). An interval carries the
  coverage that it reaches.
- *Equivalence is two one-sided tests* (TOST): the interval of the effect lies within the margin, and for primary
  metrics the test above rejects both ends of the margin after Holm, too.
- *Significance is not enough*: :func:`judge` also wants the effect to exceed the margin and the noise floor that the
  A/A control shows, as Firecracker's A/B tests do (tools/ab_test.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Alternative = Literal["two-sided", "less", "greater"]

#: Probability of a false claim, per family of tests.
ALPHA: Final = 0.05
CONFIDENCE: Final = 0.95
#: Up to this number of arrangements the test of unpaired boots enumerates them all, above it draws.
_ARRANGEMENTS: Final = 9999
#: Two repetitions have no interval: its ends would be the two values, which cover the median half of the time.
_LEAST_FOR_INTERVAL: Final = 3


class Verdict(StrEnum):
    """What may be said of one metric of one variant."""

    IMPROVED = "improved"
    REGRESSED = "regressed"
    EQUIVALENT = "equivalent"
    SCATTERED = "scattered"  # the median is equivalent, but single repetitions are beyond the margin
    DIFFERS = "differs"  # beyond doubt, but neither direction is better
    INCONCLUSIVE = "inconclusive"
    NO_TEST = "no-test"  # so few repetitions could not have led to the claim of a difference


#: Verdicts that claim a difference.
DIFFERENT: Final = frozenset({Verdict.IMPROVED, Verdict.REGRESSED, Verdict.DIFFERS})


@dataclass(frozen=True)
class Interval:
    """A confidence interval, in the unit of what was asked for.

    Args:
        confidence: the coverage that it reaches whatever the distribution, 0 to 1.
    """

    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Boots:
    """The values of one metric for one variant and what it is compared with.

    Leading axes, if there are any, are separate comparisons of equal size.

    Args:
        baseline, variant: the last axis is the repetitions; the two are of one repetition where `paired`.
        control: the baseline's kernel once more, in the same repetitions; NaN where it has no value; None without
            one. Only of paired boots.
        paired: whether the repetitions of both sides share a seed.
    """

    baseline: Values
    variant: Values
    control: Values | None = None
    paired: bool = True

    @property
    def sizes(self) -> tuple[int, int]:
        """Repetitions of the baseline and of the variant."""
        return self.baseline.shape[-1], self.variant.shape[-1]

    @property
    def smallest_p(self) -> float:
        """The smallest two-sided p value that these boots could give, whatever their values."""
        if not self.paired:
            return smallest_unpaired_p(*self.sizes)
        pairs, controls = self.sizes[1], 0
        if self.control is not None:
            present = ~np.isnan(self.control)
            controls = int(present.reshape(-1, present.shape[-1]).all(axis=0).sum())
        return smallest_p(pairs, controls)


@dataclass(frozen=True)
class Effect:
    """By how much the variants differ from the baselines; arrays over the leading axes.

    Args:
        relative: whether the figures are variant / baseline - 1 (every baseline value is positive), else they are
            variant - baseline.
        estimate: the median over the repetitions (of unpaired boots, over all pairs).
        low, high: the interval of the median; NaN below three repetitions.
        confidence: the coverage that the interval reaches.
        farthest: the largest distance from zero of a single repetition; NaN for unpaired boots.
    """

    relative: Flags
    estimate: Values
    low: Values
    high: Values
    confidence: float
    farthest: Values


@dataclass(frozen=True)
class Floor:
    """The noise floor: how far apart boots of one and the same kernel may be.

    Args:
        relative: as a fraction of the baseline; NaN where a value of the baseline is not positive.
        absolute: in the unit of the values.
        confidence: of the A/A interval whose far end it is.
    """

    relative: Values
    absolute: Values
    confidence: float


@dataclass(frozen=True)
class Judgement:
    """What the rule says of one metric; arrays over the leading axes.

    Args:
        effect: the estimate and its interval.
        p: of the permutation test; NaN where none was made.
        p_equivalence: of the two one-sided ones; 1 where the interval is not within the margin.
        p_adjusted, p_equivalence_adjusted: after Holm.
        tests: how many tests of a difference Holm counted.
        claimable: the least effect that may be claimed, the larger of margin and floor, in the effect's unit.
        different, equivalent: what is claimed; never both.
        scattered: an equivalence where single repetitions are beyond the margin.
        testable: whether so many repetitions could have led to the claim of a difference.
    """

    effect: Effect
    p: Values
    p_adjusted: Values
    p_equivalence: Values
    p_equivalence_adjusted: Values
    tests: npt.NDArray[np.int64]
    claimable: Values
    different: Flags
    equivalent: Flags
    scattered: Flags
    testable: Flags

    def verdict(self, better: str | None) -> Verdict:
        """The verdict on a single comparison, i.e. without leading axes.

        Args:
            better: ``lower``, ``higher`` or None.
        """
        if self.different:
            if better is None:
                return Verdict.DIFFERS
            lower = float(self.effect.estimate) < 0
            return Verdict.IMPROVED if lower == (better == "lower") else Verdict.REGRESSED
        if self.equivalent:
            return Verdict.SCATTERED if self.scattered else Verdict.EQUIVALENT
        return Verdict.INCONCLUSIVE if self.testable else Verdict.NO_TEST


def judge(
    family: Sequence[Boots],
    floors: Sequence[Floor | None],
    margin: float,
    *,
    primary: bool,
    alpha: float = ALPHA,
    alpha_equivalence: float | None = None,
) -> list[Judgement]:
    """The rule that every claim follows, in `compare` as in the simulations that measure its errors.

    A difference is claimed of a

    - *primary* metric if the permutation test rejects after Holm over the family, the interval excludes zero, and the
      estimate is beyond margin and noise floor;
    - *other* metric if the whole interval, at 95 % or more, lies beyond margin and noise floor. Without a noise
      floor it is treated as a primary one, in a family of its own.

    Equivalence is claimed if the whole interval lies within the margin; of a primary metric, if the permutation
    tests reject both ends of the margin after Holm, too. What is neither stays open.

    Args:
        family: the metrics that are judged together, all primary or all not.
        floors: of each metric; None where there is no A/A control.
        margin: relative, e.g. 0.005.
        alpha: probability of a false claim of a difference in the family.
        alpha_equivalence: of a false claim of equivalence; None for the same, 0 where none may be made.
    """
    if not family:
        return []
    if alpha_equivalence is None:
        alpha_equivalence = alpha
    # Two one-sided tests at a level are an interval at one less twice that level.
    confidence = max(CONFIDENCE, 1 - 2 * alpha_equivalence) if primary and alpha_equivalence else CONFIDENCE
    effects = [effect_of(boots, confidence) for boots in family]
    within = [each.relative & (each.low >= -margin) & (each.high <= margin) for each in effects]
    untested = np.full(effects[0].estimate.shape, np.nan)
    tested = [primary or floor is None for floor in floors]
    p = np.stack(
        [_difference_p(boots) if own else untested for boots, own in zip(family, tested, strict=True)], -1
    )
    p_equivalence = np.stack(
        [
            _equivalence_p(boots, margin, flags) if primary else untested
            for boots, flags in zip(family, within, strict=True)
        ],
        -1,
    )
    adjusted, adjusted_equivalence = holm(p), holm(p_equivalence)
    tests = np.sum(~np.isnan(p), axis=-1)

    judgements = []
    for index, (boots, effect, floor) in enumerate(zip(family, effects, floors, strict=True)):
        scale = np.abs(np.median(boots.baseline, axis=-1))
        threshold = np.where(effect.relative, margin, margin * scale)
        claimable = np.maximum(threshold, _in_unit_of(effect, floor, scale))
        if floor is None or primary:
            testable = np.maximum(tests, 1) * boots.smallest_p <= alpha
            different = (
                ((effect.low > 0) | (effect.high < 0))
                & (np.abs(effect.estimate) > claimable)
                & (adjusted[..., index] <= alpha)
            )
        else:
            testable = np.full(tests.shape, min(effect.confidence, floor.confidence) >= CONFIDENCE)
            different = testable & ((effect.low > claimable) | (effect.high < -claimable))
        equivalent = (
            within[index] & (effect.confidence >= 1 - 2 * alpha_equivalence) & (alpha_equivalence > 0)
        )
        if primary:
            equivalent = equivalent & (adjusted_equivalence[..., index] <= alpha_equivalence)
        equivalent = equivalent & ~different
        judgements.append(
            Judgement(
                effect=effect,
                p=p[..., index],
                p_adjusted=adjusted[..., index],
                p_equivalence=p_equivalence[..., index],
                p_equivalence_adjusted=adjusted_equivalence[..., index],
                tests=np.asarray(tests),
                claimable=claimable,
                different=np.asarray(different),
                equivalent=np.asarray(equivalent),
                scattered=np.asarray(equivalent & (effect.farthest > margin)),
                testable=np.asarray(testable),
            )
        )
    return judgements


def _in_unit_of(effect: Effect, floor: Floor | None, scale: Values) -> Values:
    if floor is None:
        return np.zeros_like(effect.estimate)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(np.isnan(floor.relative), floor.absolute / scale, floor.relative)
    return np.where(effect.relative, relative, floor.absolute)


# Effects and intervals


def effect_of(boots: Boots, confidence: float = CONFIDENCE) -> Effect:
    """The effect and its interval, at `confidence` or as much as so few repetitions reach.

    Of unpaired boots it is that of Hodges and Lehmann: the median of the differences between all pairs, with the
    interval of those shifts that the rank-sum test does not reject.
    """
    baseline, variant = boots.baseline, boots.variant
    if not boots.paired:
        shape = (*variant.shape[:-1], variant.shape[-1] * baseline.shape[-1])
        variant, baseline = np.broadcast_arrays(variant[..., :, None], baseline[..., None, :])
        variant, baseline = variant.reshape(shape), baseline.reshape(shape)
    relative = np.asarray((baseline > 0).all(axis=-1))
    logarithmic = relative & (variant > 0).all(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(relative[..., None], variant / baseline - 1, variant - baseline)
        in_log = np.expm1(np.median(np.log1p(each), axis=-1))
    estimate = np.where(logarithmic, in_log, np.median(each, axis=-1))
    if boots.paired:
        index, reached = sign_interval(each.shape[-1], confidence)
        enough = each.shape[-1] >= _LEAST_FOR_INTERVAL
        farthest = np.abs(each).max(axis=-1)
    else:
        index, reached = _rank_sum_interval(*boots.sizes, confidence)
        enough = min(boots.sizes) >= _LEAST_FOR_INTERVAL
        farthest = np.full(estimate.shape, np.nan)
    ordered = np.sort(each, axis=-1)
    nothing = np.full(estimate.shape, np.nan)
    return Effect(
        relative=relative,
        estimate=estimate,
        low=ordered[..., index] if enough else nothing,
        high=ordered[..., -1 - index] if enough else nothing,
        confidence=reached if enough else 0.0,
        farthest=farthest,
    )


@cache
def sign_interval(n: int, confidence: float = CONFIDENCE) -> tuple[int, float]:
    """Which order statistics bound the median of `n` values, by inverting the sign test.

    The range of the values where no smaller interval reaches `confidence`, e.g. with fewer than six values.

    Returns:
        Index of the lower end in the sorted values (the upper end is as far from the other end), and the coverage
        that is reached for any distribution: exact for continuous values, at least that for others.

    >>> sign_interval(6), sign_interval(3)
    ((0, 0.96875), (0, 0.75))
    """
    from scipy import stats  # here, for it takes longer to import than a command without figures to run

    index = max(0, int(stats.binom.ppf((1 - confidence) / 2, n, 0.5)) - 1)
    return index, max(0.0, 1 - 2 * float(stats.binom.cdf(index, n, 0.5)))


@cache
def _rank_sum_interval(n: int, m: int, confidence: float = CONFIDENCE) -> tuple[int, float]:
    """As :func:`sign_interval`, of the n * m differences of two samples, by inverting the rank-sum test."""
    # Arrangements by their number of pairs in which the second sample's value is the smaller one: the coefficients
    # of a Gaussian binomial.
    counts = np.zeros(n * m + 1)
    counts[0] = 1.0
    for i in range(1, m + 1):
        for power in range(n * m, n + i - 1, -1):
            counts[power] -= counts[power - n - i]
        for power in range(i, n * m + 1):
            counts[power] += counts[power - i]
    below = np.cumsum(counts) / counts.sum()
    index = max(0, int(np.searchsorted(below, (1 - confidence) / 2, side="right")) - 1)
    return index, max(0.0, 1 - 2 * float(below[index]))


def median_interval(values: Values) -> Interval | None:
    """Interval of one median, at :data:`CONFIDENCE` or as much as so few values reach.

    Returns:
        None with fewer than three values.
    """
    if values.size < _LEAST_FOR_INTERVAL:
        return None
    index, confidence = sign_interval(values.size)
    ordered = np.sort(values)
    return Interval(float(ordered[index]), float(ordered[-1 - index]), confidence)


def noise_floor(boots: Boots) -> Floor:
    """How far apart boots of one kernel may be: the far end of the interval of the A/A effect.

    Below six repetitions that is the largest effect seen.

    Args:
        boots: the baseline, with the A/A control as the variant.
    """
    baseline, control = boots.baseline, boots.variant
    if not boots.paired:
        shape = (*control.shape[:-1], control.shape[-1] * baseline.shape[-1])
        control, baseline = np.broadcast_arrays(control[..., :, None], baseline[..., None, :])
        control, baseline = control.reshape(shape), baseline.reshape(shape)
        index, confidence = _rank_sum_interval(*boots.sizes)
    else:
        index, confidence = sign_interval(baseline.shape[-1])

    def far_end(each: Values) -> Values:
        ordered = np.sort(each, axis=-1)
        return np.maximum(np.abs(ordered[..., index]), np.abs(ordered[..., -1 - index]))

    positive = (baseline > 0).all(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(positive, far_end(control / baseline - 1), np.nan)
    return Floor(relative, far_end(control - baseline), confidence)


def variation(values: Values) -> float | None:
    """The coefficient of variation, standard deviation over mean; None of one value or of a mean of zero."""
    mean = float(np.mean(values)) if values.size > 1 else 0.0
    return float(np.std(values, ddof=1)) / abs(mean) if mean else None


# Tests


def placement_p(blocks: Values, alternative: Alternative = "two-sided") -> Values:
    """P value of the variant's place within its repetitions.

    The statistic is the sum of the variant's aligned ranks; under the hypothesis that its kernel is like the others,
    the variant could have been any of the boots of each repetition. All choices are counted, so the p value is exact
    for any distribution, ties included.

    Args:
        blocks: shape (..., repetitions, boots); the variant is first. NaN where there is no boot, in the same
            places along the leading axes.
        alternative: ``less`` asks whether the variant's values are smaller.

    Returns:
        Two-sided: twice the smaller tail. NaN with fewer than two repetitions, or where the boots of every
        repetition are equal, so that no choice differs from another.
    """
    from scipy import stats

    *leading, repetitions, size = blocks.shape
    if repetitions < 2:
        return np.full(leading, np.nan)
    aligned = blocks - np.nanmedian(blocks, axis=-1, keepdims=True)
    flat = aligned.reshape(*leading, repetitions * size)
    ranks = stats.rankdata(flat, axis=-1, nan_policy="omit").reshape(blocks.shape)
    present = ~np.isnan(blocks)
    # Mean ranks of ties are halves. Less the smallest of the repetition, which changes no comparison.
    doubled = np.where(present, 2 * (ranks - np.nanmin(ranks, axis=-1, keepdims=True)), 0).astype(np.int64)
    total = int(doubled.max(axis=-1).sum(axis=-1).max()) + 1
    share = present / present.sum(axis=-1, keepdims=True)
    distribution = np.zeros((*leading, total))
    distribution[..., 0] = 1.0
    sums = np.arange(total)
    for repetition in range(repetitions):
        after = np.zeros_like(distribution)
        for boot in range(size):
            source = sums - doubled[..., repetition, boot, None]
            moved = np.take_along_axis(distribution, np.maximum(source, 0), axis=-1)
            after += np.where(source >= 0, moved, 0.0) * share[..., repetition, boot, None]
        distribution = after
    observed = doubled[..., 0].sum(axis=-1)[..., None]
    greater = np.where(sums >= observed, distribution, 0.0).sum(axis=-1)
    less = np.where(sums <= observed, distribution, 0.0).sum(axis=-1)
    alike = np.nanmax(aligned, axis=(-2, -1)) == np.nanmin(aligned, axis=(-2, -1))
    p = {"greater": greater, "less": less, "two-sided": np.minimum(1.0, 2 * np.minimum(less, greater))}
    return np.asarray(np.where(alike, np.nan, p[alternative]), dtype=np.float64)


def permutation_p(
    baseline: Values, variant: Values, alternative: Alternative = "two-sided", seed: int = 0
) -> Values:
    """P value of the rank sum of two unpaired samples over all arrangements (9999 drawn ones, where there are more).

    Args:
        baseline, variant: the last axis is the repetitions, any others are separate tests.
        alternative: ``less`` asks whether the variant's values are smaller.
        seed: of the draws.

    Returns:
        NaN with fewer than two repetitions on a side.
    """
    from scipy import stats

    if min(baseline.shape[-1], variant.shape[-1]) < 2:
        return np.full(np.broadcast_shapes(baseline.shape[:-1], variant.shape[:-1]), np.nan)
    ranks = stats.rankdata(np.concatenate((baseline, variant), axis=-1), axis=-1)
    n = baseline.shape[-1]

    def statistic(_: Values, v: Values, axis: int = -1) -> Values:
        return np.asarray(np.sum(v, axis=axis))

    result: Any = stats.permutation_test(
        (ranks[..., :n], ranks[..., n:]),
        statistic,
        permutation_type="independent",
        vectorized=True,
        n_resamples=_ARRANGEMENTS,
        batch=256,
        alternative=alternative,
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    return np.asarray(result.pvalue, dtype=np.float64)


def _difference_p(boots: Boots) -> Values:
    if boots.paired:
        return placement_p(_blocks(boots, boots.variant))
    alike = np.ptp(np.concatenate((boots.baseline, boots.variant), axis=-1), axis=-1) == 0
    return np.where(alike, np.nan, permutation_p(boots.baseline, boots.variant))


def _equivalence_p(boots: Boots, margin: float, within: Flags) -> Values:
    """The larger of the two one-sided p values; NaN where a value is not positive: there is no relative margin.

    Where the interval is not `within` the margin, nothing is claimed, so the p value is 1 and need not be counted.
    """
    positive = (boots.baseline > 0).all(axis=-1) & (boots.variant > 0).all(axis=-1)
    p = np.where(positive, 1.0, np.nan)
    if within.any():
        ends = boots.variant / (1 + margin), boots.variant / (1 - margin)
        if boots.paired:
            below = placement_p(_blocks(boots, ends[0]), "less")
            above = placement_p(_blocks(boots, ends[1]), "greater")
        else:
            below = permutation_p(boots.baseline, ends[0], "less")
            above = permutation_p(boots.baseline, ends[1], "greater")
        p = np.where(positive & within, np.maximum(below, above), p)
    return p


def _blocks(boots: Boots, variant: Values) -> Values:
    sides = [variant, boots.baseline] + ([] if boots.control is None else [boots.control])
    blocks = np.stack(sides, axis=-1)
    positive = np.asarray(((blocks > 0) | np.isnan(blocks)).all(axis=(-2, -1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(positive[..., None, None], np.log(blocks), blocks)


def smallest_p(pairs: int, controls: int = 0) -> float:
    """The smallest two-sided p value of :func:`placement_p`: where the variant is first, or last, each time.

    Args:
        pairs: repetitions with a boot of the baseline and of the variant.
        controls: those of them that also have one of the A/A control.

    >>> smallest_p(6), round(smallest_p(6, 6), 4)
    (0.03125, 0.0027)
    """
    if pairs < 2:
        return 1.0  # one boot says nothing of how boots differ
    return min(1.0, 2 / (3.0**controls * 2.0 ** (pairs - controls)))


def smallest_unpaired_p(n_baseline: int, n_variant: int) -> float:
    """The smallest two-sided p value of :func:`permutation_p`: when all of one side are larger.

    >>> smallest_unpaired_p(3, 3)
    0.1
    """
    if min(n_baseline, n_variant) < 2:
        return 1.0
    arrangements = math.comb(n_baseline + n_variant, n_variant)
    if arrangements > _ARRANGEMENTS:
        return 2 / (_ARRANGEMENTS + 1)
    return min(1.0, 2 / arrangements)


def repetitions_needed(tests: int, *, control: bool, alpha: float = ALPHA) -> int:
    """Repetitions of each variant with which a family of so many primary metrics can come to any claim.

    Args:
        control: whether there is an A/A control.

    >>> repetitions_needed(18, control=True), repetitions_needed(4, control=False)
    (6, 8)
    """
    tests = max(1, tests)
    return next(n for n in range(3, 1000) if tests * smallest_p(n, n if control else 0) <= alpha)


#: Repetitions from which on an interval reaches :data:`CONFIDENCE`.
REPETITIONS_FOR_INTERVAL: Final = 6


def holm(p_values: Values) -> Values:
    """P values of one family (last axis), adjusted by Holm's step-down method; NaN is no test and stays NaN.

    >>> holm(np.array([0.01, 0.04, np.nan])).tolist()
    [0.02, 0.04, nan]
    """
    tests = np.sum(~np.isnan(p_values), axis=-1, keepdims=True)
    order = np.argsort(p_values, axis=-1)  # NaN sorts last
    ordered = np.take_along_axis(p_values, order, axis=-1)
    factors = np.maximum(tests - np.arange(p_values.shape[-1]), 1)
    adjusted = np.minimum(np.maximum.accumulate(ordered * factors, axis=-1), 1.0)
    result = np.empty_like(p_values)
    np.put_along_axis(result, order, adjusted, axis=-1)
    return result


def median(values: Values) -> Values:
    """The median over the last axis."""
    return np.asarray(np.median(values, axis=-1), dtype=np.float64)
