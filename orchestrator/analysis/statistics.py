# SPDX-License-Identifier: GPL-2.0-only
"""Statistics of a few repetitions against a few: pure functions on arrays whose last axis is the repetitions.

Choices, and why:

- *Tests are permutation tests on ranks.* A boot is expensive, so samples are small and their distribution is
  not known; with instruction counts the spread may be exactly zero, where a t-test divides by it. A
  permutation test needs exchangeable boots and nothing else. Ranks rather than medians as the statistic: with
  five against five, a difference of medians cannot fall below p = 0.048, ranks reach 0.0079.
- *The effect size is Cliff's delta*, not Hedges' g: g is infinite without spread, and delta is the very
  statistic that the test ranks by. Whether an effect *matters* is said by its relative size, not by delta.
- *Equivalence is two one-sided tests* (TOST) with the same permutation test: that the variant is below
  baseline * (1 + margin), and above baseline * (1 - margin). Exact without spread, too.
- *Significance is not enough*: :func:`decide` also wants the effect to exceed a threshold and the noise floor
  that an A/A control shows, as Firecracker's A/B tests do (tools/ab_test.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Alternative = Literal["two-sided", "less", "greater"]

#: Probability of a false claim, per family of tests.
ALPHA: Final = 0.05
CONFIDENCE: Final = 0.95
#: Below this number of distinct arrangements of the repetitions the test enumerates them all, else it draws.
_ARRANGEMENTS: Final = 9999
_RESAMPLES: Final = 4999
#: Two repetitions have no interval worth the name: its ends would be the two values.
_LEAST_FOR_INTERVAL: Final = 3


class Verdict(StrEnum):
    """What may be said of one metric of one variant."""

    IMPROVED = "improved"
    REGRESSED = "regressed"
    EQUIVALENT = "equivalent"
    DIFFERS = "differs"  # beyond doubt, but neither direction is better
    INCONCLUSIVE = "inconclusive"
    NO_TEST = "no-test"  # nothing could have been claimed, whatever the values


@dataclass(frozen=True)
class Interval:
    """A confidence interval, in the unit of what was asked for."""

    low: float
    high: float

    @property
    def reach(self) -> float:
        """The largest distance from zero that the interval allows."""
        return max(abs(self.low), abs(self.high))


def median(values: Values) -> Values:
    """The median over the last axis."""
    return np.asarray(np.median(values, axis=-1), dtype=np.float64)


def bootstrap_interval(
    baseline: Values, variant: Values, kind: Literal["ratio", "difference"], seed: int
) -> Interval | None:
    """Interval of what the medians differ by, at :data:`CONFIDENCE`.

    The percentile method: BCa estimates an acceleration that medians of a few values do not have. Simulated on
    normal values it covers the truth 88 times of 100 with three repetitions, and 95 or more from five on.

    Args:
        baseline, variant: one axis each.
        kind: ``ratio`` for variant / baseline - 1, ``difference`` for variant - baseline.
        seed: the same values and seed give the same interval.

    Returns:
        None with fewer than three repetitions on a side, or for a ratio to values that are not positive.
    """
    from scipy import stats  # here, for it takes longer to import than a command without figures to run

    if min(baseline.size, variant.size) < _LEAST_FOR_INTERVAL or (kind == "ratio" and baseline.min() <= 0):
        return None

    def statistic(b: Values, v: Values, axis: int = -1) -> Values:
        low, high = np.median(b, axis=axis), np.median(v, axis=axis)
        return np.asarray(high / low - 1 if kind == "ratio" else high - low, dtype=np.float64)

    if np.ptp(baseline) == 0 and np.ptp(variant) == 0:
        exact = float(statistic(baseline, variant))
        return Interval(exact, exact)
    result = stats.bootstrap(
        (baseline, variant),
        statistic,
        n_resamples=_RESAMPLES,
        vectorized=True,
        method="percentile",
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(seed),
    )
    return Interval(float(result.confidence_interval.low), float(result.confidence_interval.high))


def median_interval(values: Values, seed: int) -> Interval | None:
    """Interval of one median, at :data:`CONFIDENCE`, by the same method as :func:`bootstrap_interval`.

    Returns:
        None with fewer than three values.
    """
    from scipy import stats  # here, for it takes longer to import than a command without figures to run

    if values.size < _LEAST_FOR_INTERVAL:
        return None
    if np.ptp(values) == 0:
        return Interval(float(values[0]), float(values[0]))
    result = stats.bootstrap(
        (values,),
        np.median,
        n_resamples=_RESAMPLES,
        vectorized=True,
        method="percentile",
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(seed),
    )
    return Interval(float(result.confidence_interval.low), float(result.confidence_interval.high))


def permutation_p(
    baseline: Values, variant: Values, alternative: Alternative = "two-sided", seed: int = 0
) -> Values:
    """P value of the rank sum over all arrangements of the repetitions (or 9999 drawn ones, where there are more).

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


def smallest_p(n_baseline: int, n_variant: int) -> float:
    """The smallest two-sided p value that so many repetitions can give: when all of one side are larger.

    >>> smallest_p(3, 3)
    0.1
    """
    if min(n_baseline, n_variant) < 2:
        return 1.0  # one boot says nothing of how boots differ, however many the other side has
    arrangements = math.comb(n_baseline + n_variant, n_variant)
    if arrangements > _ARRANGEMENTS:
        return 2 / (_ARRANGEMENTS + 1)
    return min(1.0, 2 / arrangements)


def repetitions_needed(tests: int, alpha: float = ALPHA) -> int:
    """Repetitions of each variant with which a family of so many tests can come to any claim.

    >>> repetitions_needed(1), repetitions_needed(3), repetitions_needed(8)
    (4, 5, 6)
    """
    return next(n for n in range(2, 1000) if max(1, tests) * smallest_p(n, n) <= alpha)


def cliffs_delta(baseline: Values, variant: Values) -> Values:
    """P(variant > baseline) - P(variant < baseline) over all pairs of repetitions: -1 to 1."""
    pairs = np.sign(variant[..., :, None] - baseline[..., None, :])
    return np.asarray(pairs.mean(axis=(-2, -1)), dtype=np.float64)


def equivalence_p(baseline: Values, variant: Values, margin: float, seed: int = 0) -> Values:
    """P value of "the variant is within `margin` of the baseline", the larger of two one-sided tests.

    Args:
        margin: relative, e.g. 0.005.

    Returns:
        NaN where a value is not positive: no relative margin exists around zero.
    """
    below = permutation_p(baseline, variant / (1 + margin), "less", seed)
    above = permutation_p(baseline, variant / (1 - margin), "greater", seed)
    positive = (baseline > 0).all(axis=-1) & (variant > 0).all(axis=-1)
    return np.where(positive, np.maximum(below, above), np.nan)


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


def noise_floor(baseline: Values, control: Values, seed: int) -> float:
    """How far apart two sets of boots of one and the same kernel may be, in the unit of the values.

    The far end of the interval of the A/A difference; with too few repetitions for one, the difference.
    """
    interval = bootstrap_interval(baseline, control, "difference", seed)
    if interval is None:
        return abs(float(median(control) - median(baseline)))
    return interval.reach


def decide(
    *,
    difference: float,
    threshold: float,
    floor: float,
    p_adjusted: float,
    p_equivalence_adjusted: float,
    better: str | None,
    testable: bool,
    alpha: float = ALPHA,
) -> Verdict:
    """The decision rule: what may be claimed.

    A difference is claimed when it is significant *and* larger than threshold and noise floor; equivalence
    when its own test says so. The absence of significance claims nothing.

    Args:
        difference: of the medians, variant - baseline.
        threshold: the margin as a distance, in the same unit.
        floor: of the A/A control, in the same unit.
        p_adjusted, p_equivalence_adjusted: after Holm; NaN where there is no such test.
        better: ``lower``, ``higher`` or None.
        testable: whether so few repetitions could have led to any claim.
    """
    if not testable:
        return Verdict.NO_TEST
    if p_adjusted <= alpha and abs(difference) > max(threshold, floor):
        if better is None:
            return Verdict.DIFFERS
        return Verdict.IMPROVED if (difference < 0) == (better == "lower") else Verdict.REGRESSED
    if p_equivalence_adjusted <= alpha:
        return Verdict.EQUIVALENT
    return Verdict.INCONCLUSIVE
