# SPDX-License-Identifier: GPL-2.0-only
"""Statistics for few repetitions: pure functions on arrays whose last axis is the repetitions.

The choices and their reasons:

- *Everything is paired by repetition.* The variants of a repetition share a seed, so they differ less than two boots
  drawn at random. Effects are ratios of the two boots of a repetition (differences if a value of the baseline is not
  positive).
- *The test permutes within repetitions* (:func:`placement_p`). If the variant does not differ from the baseline,
  its boot could have been any boot of its repetition. Ranks of the log values, aligned by the median of
  their repetition (Hodges and Lehmann, 1962), make it robust; the null distribution is counted, not drawn. With
  only baseline and variant this is the sign-flip test on signed ranks, whose smallest p is 2/2^n: 0.031 for n = 6, too
  large for a family of two. The A/A control runs the baseline's kernel in the same repetition, so it is included: the
  smallest p is then 2/3^n, 0.0027 for n = 6, which is enough for a family of 18.
- *Intervals are order statistics* of the paired effects (:func:`sign_interval`): exact for any distribution and any
  n, unlike a percentile bootstrap (tests/benchmarks/verdict_errors.py measures both). An interval has its actual
  coverage.
- *Equivalence is two one-sided tests* (TOST): the interval of the effect lies within the margin, and for primary
  metrics the test above rejects both ends of the margin after Holm, too.
- *Significance is not enough*: :func:`judge` also requires that the effect exceeds the margin and the noise floor of
  the A/A control, as Firecracker's A/B tests do (tools/ab_test.py).
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
#: Up to this number of arrangements, the test of unpaired boots enumerates all of them; above, it samples.
_ARRANGEMENTS: Final = 9999
#: Fewest values for an interval: with two, its ends would be the values, which cover the median only half of the time.
_LEAST_FOR_INTERVAL: Final = 3


class Verdict(StrEnum):
    """The supported claim on one metric of one variant."""

    IMPROVED = "improved"
    REGRESSED = "regressed"
    EQUIVALENT = "equivalent"
    SCATTERED = "scattered"  # the median is equivalent, but single repetitions exceed the margin
    DIFFERS = "differs"  # significant, but neither direction is better
    INCONCLUSIVE = "inconclusive"
    NO_TEST = "no-test"  # too few repetitions to claim a difference


#: Verdicts that claim a difference.
DIFFERENT: Final = frozenset({Verdict.IMPROVED, Verdict.REGRESSED, Verdict.DIFFERS})


@dataclass(frozen=True)
class Interval:
    """A confidence interval, in the unit of the values.

    Args:
        confidence: its coverage for any distribution, 0 to 1.
    """

    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Boots:
    """The values of one metric for a variant, the baseline and the control.

    Leading axes, if there are any, are separate comparisons of the same size.

    Args:
        baseline, variant: values; the last axis is the repetitions. If `paired`, equal indices are the same repetition.
        control: values of the A/A control in the same repetitions, with NaN for missing ones; None without a control.
            Only for paired boots.
        paired: whether the repetitions of both sides share a seed.
    """

    baseline: Values
    variant: Values
    control: Values | None = None
    paired: bool = True

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of repetitions of the baseline and of the variant."""
        return self.baseline.shape[-1], self.variant.shape[-1]

    @property
    def smallest_p(self) -> float:
        """The smallest possible two-sided p value for this number of boots."""
        if not self.paired:
            return smallest_unpaired_p(*self.sizes)
        pairs, controls = self.sizes[1], 0
        if self.control is not None:
            present = ~np.isnan(self.control)
            controls = int(present.reshape(-1, present.shape[-1]).all(axis=0).sum())
        return smallest_p(pairs, controls)


@dataclass(frozen=True)
class Effect:
    """The differences between variants and baselines; arrays over the leading axes.

    Args:
        relative: whether the numbers are variant / baseline - 1 (all baseline values are positive), or
            variant - baseline.
        estimate: median over the repetitions (for unpaired boots, over all pairs).
        low, high: interval of the median; NaN for fewer than three repetitions.
        confidence: coverage of the interval.
        farthest: largest absolute effect in a single repetition; NaN for unpaired boots.
    """

    relative: Flags
    estimate: Values
    low: Values
    high: Values
    confidence: float
    farthest: Values


@dataclass(frozen=True)
class Floor:
    """The noise floor: how much boots of the same kernel may differ.

    Args:
        relative: as a fraction of the baseline; NaN if a value of the baseline is not positive.
        absolute: in the unit of the values.
        confidence: confidence of the A/A interval, whose far end it is.
    """

    relative: Values
    absolute: Values
    confidence: float


@dataclass(frozen=True)
class Judgement:
    """The judgement of one metric; arrays over the leading axes.

    Args:
        effect: the estimate and its interval.
        p: p value of the permutation test; NaN if there was no test.
        p_equivalence: p value of the two one-sided tests; 1 if the interval is not within the margin.
        p_adjusted, p_equivalence_adjusted: p values adjusted by Holm.
        tests: number of tests of a difference in the adjustment.
        claimable: the smallest effect that can be claimed: the larger of margin and floor, in the unit of the effect.
        different, equivalent: the claims; never both.
        scattered: equivalent, but single repetitions exceed the margin.
        testable: whether this number of repetitions can support the claim of a difference.
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
        """The verdict for a single comparison, i.e. without leading axes.

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
    """The rule for all claims, used in `compare` and in the simulations that measure its errors.

    A difference is claimed for a

    - *primary* metric if the permutation test rejects after Holm over the family, the interval excludes zero, and the
      estimate is beyond margin and noise floor;
    - *other* metric if the whole interval, at 95 % or more, is beyond margin and noise floor. Without a noise floor it
      is treated like a primary one, in a separate family.

    Equivalence is claimed if the whole interval is within the margin, and for a primary metric if the permutation tests
    also reject both ends of the margin after Holm. Otherwise there is no claim.

    Args:
        family: metrics to judge together, either all primary or all not.
        floors: noise floor per metric; None without an A/A control.
        margin: relative margin, e.g. 0.005.
        alpha: probability of a false claim of a difference in the family.
        alpha_equivalence: the same for equivalence; None for the same value, 0 for no such claims.
    """
    if not family:
        return []
    if alpha_equivalence is None:
        alpha_equivalence = alpha
    # Two one-sided tests at `alpha` correspond to an interval at 1 - 2 alpha.
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
    """The effect and its interval, at `confidence` or the highest confidence for this number of repetitions.

    For unpaired boots it is the Hodges-Lehmann estimate: the median of the differences between all pairs, with the
    interval of the shifts that the rank-sum test does not reject.
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


def median_ends(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The interval of the median; for too few values, their range."""
    interval = median_interval(values)
    if interval is None:
        return float(values.min()), float(values.max())
    return interval.low, interval.high


@cache
def sign_interval(n: int, confidence: float = CONFIDENCE) -> tuple[int, float]:
    """The order statistics that bound the median of `n` values, by inverting the sign test.

    This is the range of the values if no smaller interval has `confidence`, e.g. for fewer than six values.

    Returns:
        Index of the lower end in the sorted values (the upper end is symmetric), and the coverage for any distribution:
        exact for continuous values, a lower bound for others.

    >>> sign_interval(6), sign_interval(3)
    ((0, 0.96875), (0, 0.75))
    """
    from scipy import stats  # imported here, since it is slow

    index = max(0, int(stats.binom.ppf((1 - confidence) / 2, n, 0.5)) - 1)
    return index, max(0.0, 1 - 2 * float(stats.binom.cdf(index, n, 0.5)))


@cache
def _rank_sum_interval(n: int, m: int, confidence: float = CONFIDENCE) -> tuple[int, float]:
    """Like :func:`sign_interval`, for the n * m differences of two samples, by inverting the rank-sum test."""
    # Number of arrangements by the number of pairs in which the value of the second sample is smaller: the
    # coefficients of a Gaussian binomial.
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
    """Interval of a median, at :data:`CONFIDENCE` or the highest confidence for this number of values.

    Returns:
        None for fewer than three values.
    """
    if values.size < _LEAST_FOR_INTERVAL:
        return None
    index, confidence = sign_interval(values.size)
    ordered = np.sort(values)
    return Interval(float(ordered[index]), float(ordered[-1 - index]), confidence)


def noise_floor(boots: Boots) -> Floor:
    """How much boots of the same kernel may differ: the far end of the interval of the A/A effect.

    For fewer than six repetitions, this is the largest observed effect.

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
    """The coefficient of variation: standard deviation divided by mean; None for one value or a mean of zero."""
    mean = float(np.mean(values)) if values.size > 1 else 0.0
    return float(np.std(values, ddof=1)) / abs(mean) if mean else None


# Tests


def placement_p(blocks: Values, alternative: Alternative = "two-sided") -> Values:
    """P value of the variant's rank within its repetitions.

    The statistic is the sum of the variant's aligned ranks. Under the hypothesis that its kernel is like the others,
    the variant could have been any boot of each repetition. All choices are counted, so the p value is exact for any
    distribution, including ties.

    Args:
        blocks: array of shape (..., repetitions, boots) with the variant first. NaN stands for a missing boot, at the
            same positions along the leading axes.
        alternative: ``less`` tests whether the values of the variant are smaller.

    Returns:
        For two-sided tests, twice the smaller tail. NaN for fewer than two repetitions, or if the boots of every
        repetition are equal.
    """
    from scipy import stats

    *leading, repetitions, size = blocks.shape
    if repetitions < 2:
        return np.full(leading, np.nan)
    aligned = blocks - np.nanmedian(blocks, axis=-1, keepdims=True)
    flat = aligned.reshape(*leading, repetitions * size)
    ranks = stats.rankdata(flat, axis=-1, nan_policy="omit").reshape(blocks.shape)
    present = ~np.isnan(blocks)
    # Mean ranks of ties are multiples of 1/2. Subtract the smallest of each repetition, which changes no comparison.
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
    """P value of the rank sum of two unpaired samples over all arrangements (if there are too many, 9999 random ones).

    Args:
        baseline, variant: values; the last axis is the repetitions, all others are separate tests.
        alternative: ``less`` tests whether the values of the variant are smaller.
        seed: seed for random arrangements.

    Returns:
        The p value; NaN for fewer than two repetitions on a side.
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
    """The larger of the two one-sided p values; NaN if a value is not positive, as there is no relative margin.

    If the interval is not `within` the margin, there is no claim, so the p value is 1 without a computation.
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
    """The smallest two-sided p value of :func:`placement_p`: if the variant is always first, or always last.

    Args:
        pairs: number of repetitions with a boot of the baseline and of the variant.
        controls: number of these that also have a boot of the A/A control.

    >>> smallest_p(6), round(smallest_p(6, 6), 4)
    (0.03125, 0.0027)
    """
    if pairs < 2:
        return 1.0  # one boot does not show how much boots differ
    return min(1.0, 2 / (3.0**controls * 2.0 ** (pairs - controls)))


def smallest_unpaired_p(n_baseline: int, n_variant: int) -> float:
    """The smallest two-sided p value of :func:`permutation_p`: if all values of one side are larger.

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
    """Number of repetitions per variant needed for claims in a family of this many primary metrics.

    Args:
        control: whether there is an A/A control.

    >>> repetitions_needed(18, control=True), repetitions_needed(4, control=False)
    (6, 8)
    """
    tests = max(1, tests)
    return next(n for n in range(3, 1000) if tests * smallest_p(n, n if control else 0) <= alpha)


#: Fewest repetitions for an interval at :data:`CONFIDENCE`.
REPETITIONS_FOR_INTERVAL: Final = 6


def holm(p_values: Values) -> Values:
    """Adjust the p values of a family (last axis) by Holm's step-down method; NaN means no test and stays NaN.

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
