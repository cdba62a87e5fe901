# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.analysis.statistics import (
    ALPHA,
    Interval,
    Values,
    Verdict,
    bootstrap_interval,
    cliffs_delta,
    decide,
    equivalence_p,
    holm,
    median,
    noise_floor,
    permutation_p,
    repetitions_needed,
    smallest_p,
)

#: Spread of the median anonymous fault over independent boots, in instructions under icount.
ICOUNT_SPREAD = 0.0006
FAULT_INSNS = 6290.0

Claimed = np.ndarray[tuple[int], np.dtype[np.bool_]]


def values(*numbers: float) -> Values:
    return np.array(numbers, dtype=np.float64)


class TestInterval:
    def test_is_the_same_for_the_same_seed(self) -> None:
        b, v = values(100, 101, 99, 102, 98), values(110, 111, 109, 113, 108)
        assert bootstrap_interval(b, v, "ratio", 3) == bootstrap_interval(b, v, "ratio", 3)

    def test_holds_the_ratio_of_the_medians(self) -> None:
        interval = bootstrap_interval(
            values(100, 101, 99, 102, 98), values(110, 111, 109, 113, 108), "ratio", 3
        )
        assert interval is not None
        assert interval.low < 0.1 < interval.high
        assert interval.low > 0.05
        assert interval.high < 0.16

    def test_without_spread_it_is_the_exact_difference(self) -> None:
        assert bootstrap_interval(
            values(6290, 6290, 6290), values(6294, 6294, 6294), "difference", 1
        ) == Interval(4, 4)

    @pytest.mark.parametrize("n", [1, 2])
    def test_there_is_none_of_one_or_two_repetitions(self, n: int) -> None:
        assert bootstrap_interval(np.arange(1.0, n + 1), np.arange(1.0, n + 1), "difference", 1) is None

    def test_there_is_no_ratio_to_zero(self) -> None:
        assert bootstrap_interval(values(0, 1, 2), values(1, 2, 3), "ratio", 1) is None
        assert bootstrap_interval(values(0, 1, 2), values(1, 2, 3), "difference", 1) is not None

    @pytest.mark.parametrize(("n", "least"), [(3, 0.80), (5, 0.90), (10, 0.90)])
    def test_covers_the_truth_about_as_often_as_it_says(self, n: int, least: float) -> None:
        draw = np.random.default_rng(n)
        hits = 0
        for seed in range(150):
            b, v = draw.normal(1000, 10, n), draw.normal(1010, 10, n)
            interval = bootstrap_interval(b, v, "difference", seed)
            assert interval is not None
            hits += interval.low <= 10 <= interval.high
        assert hits / 150 >= least


class TestPermutation:
    def test_full_separation_gives_the_smallest_p(self) -> None:
        assert float(permutation_p(values(1, 2, 3), values(4, 5, 6))) == pytest.approx(0.1)
        assert float(permutation_p(values(1, 2, 3, 4, 5), values(6, 7, 8, 9, 10))) == pytest.approx(2 / 252)

    @pytest.mark.parametrize(("n", "m"), [(2, 2), (2, 3), (3, 3), (4, 5), (6, 6)])
    def test_smallest_p_is_what_full_separation_gives(self, n: int, m: int) -> None:
        p = float(permutation_p(np.arange(n, dtype=float), np.arange(100, 100 + m, dtype=float)))
        assert p == pytest.approx(smallest_p(n, m))

    def test_one_boot_is_not_tested(self) -> None:
        assert math.isnan(float(permutation_p(values(1), values(2, 3, 4))))
        assert smallest_p(1, 20) == 1.0

    def test_is_the_exact_rank_sum_test(self) -> None:
        b, v = values(1.1, 2.7, 3.1, 0.5, 4.4), values(2.9, 5.0, 3.3, 6.1, 2.0)
        expected = stats.mannwhitneyu(v, b, alternative="two-sided", method="exact").pvalue
        assert float(permutation_p(b, v)) == pytest.approx(expected)

    def test_equal_values_are_no_evidence(self) -> None:
        assert float(permutation_p(values(5, 5, 5, 5), values(5, 5, 5, 5))) == 1.0

    def test_one_sided(self) -> None:
        b, v = values(1, 2, 3, 4), values(5, 6, 7, 8)
        assert float(permutation_p(b, v, "greater")) == pytest.approx(1 / 70)
        assert float(permutation_p(b, v, "less")) == 1.0

    def test_many_repetitions_are_drawn_reproducibly(self) -> None:
        draw = np.random.default_rng(1)
        b, v = draw.normal(size=12), draw.normal(size=12)
        assert float(permutation_p(b, v, seed=5)) == float(permutation_p(b, v, seed=5))
        assert float(permutation_p(b, b + 100)) == pytest.approx(smallest_p(12, 12))

    def test_tests_side_by_side_equal_tests_one_by_one(self) -> None:
        draw = np.random.default_rng(2)
        b, v = draw.normal(size=(7, 4)), draw.normal(size=(7, 5))
        assert permutation_p(b, v) == pytest.approx(
            [float(permutation_p(*pair)) for pair in zip(b, v, strict=True)]
        )

    def test_repetitions_needed(self) -> None:
        assert repetitions_needed(1) == 4
        assert repetitions_needed(3) == 5
        for tests in range(1, 40):
            n = repetitions_needed(tests)
            assert tests * smallest_p(n, n) <= ALPHA < tests * smallest_p(n - 1, n - 1)


class TestEffectSize:
    def test_of_separate_and_of_equal_samples(self) -> None:
        assert float(cliffs_delta(values(1, 2, 3), values(4, 5))) == 1.0
        assert float(cliffs_delta(values(4, 5), values(1, 2, 3))) == -1.0
        assert float(cliffs_delta(values(7, 7), values(7, 7))) == 0.0

    @given(
        st.lists(st.integers(0, 9), min_size=1, max_size=6),
        st.lists(st.integers(0, 9), min_size=1, max_size=6),
    )
    def test_is_antisymmetric(self, left: list[int], right: list[int]) -> None:
        a, b = values(*left), values(*right)
        assert float(cliffs_delta(a, b)) == pytest.approx(-float(cliffs_delta(b, a)))


class TestEquivalence:
    def test_without_any_spread_it_is_claimed_within_the_margin_only(self) -> None:
        b = np.full(5, 1000.0)
        assert float(equivalence_p(b, np.full(5, 1004.0), 0.005)) == pytest.approx(1 / 252)
        assert float(equivalence_p(b, np.full(5, 996.0), 0.005)) == pytest.approx(1 / 252)
        assert float(equivalence_p(b, np.full(5, 1006.0), 0.005)) > 0.5
        assert float(equivalence_p(b, np.full(5, 994.0), 0.005)) > 0.5

    def test_spread_wider_than_the_margin_is_not_equivalent(self) -> None:
        b, v = values(980, 990, 1000, 1010, 1020), values(981, 991, 1001, 1011, 1021)
        assert float(equivalence_p(b, v, 0.005)) > ALPHA

    def test_there_is_no_relative_margin_around_zero(self) -> None:
        assert math.isnan(float(equivalence_p(np.zeros(5), np.zeros(5), 0.005)))


class TestHolm:
    def test_by_hand(self) -> None:
        assert holm(values(0.01, 0.04, 0.03)) == pytest.approx([0.03, 0.06, 0.06])

    def test_what_was_not_tested_does_not_count(self) -> None:
        adjusted = holm(values(0.01, float("nan"), 0.04))
        assert adjusted[[0, 2]] == pytest.approx([0.02, 0.04])
        assert math.isnan(adjusted[1])

    def test_nothing_tested(self) -> None:
        assert holm(values()).size == 0
        assert np.isnan(holm(values(float("nan")))).all()

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    @settings(max_examples=200)
    def test_between_the_raw_p_and_bonferroni(self, numbers: list[float]) -> None:
        raw = values(*numbers)
        adjusted = holm(raw)
        assert (adjusted >= raw).all()
        assert (adjusted <= np.minimum(raw * raw.size, 1) + 1e-12).all()
        assert (np.diff(adjusted[np.argsort(raw, kind="stable")]) >= -1e-12).all()


class TestNoiseFloor:
    def test_of_boots_without_spread_is_their_difference(self) -> None:
        assert noise_floor(np.full(3, 100.0), np.full(3, 102.0), 1) == 2.0

    def test_is_at_least_the_seen_difference(self) -> None:
        b, c = values(100, 103, 98, 101, 99), values(104, 99, 102, 106, 103)
        assert noise_floor(b, c, 1) >= abs(float(median(c) - median(b)))

    def test_of_single_boots_is_their_difference(self) -> None:
        assert noise_floor(values(100), values(97), 1) == 3.0


class TestDecision:
    @pytest.mark.parametrize(
        ("difference", "p", "p_equivalence", "better", "verdict"),
        [
            (10, 0.01, 0.9, "lower", Verdict.REGRESSED),
            (-10, 0.01, 0.9, "lower", Verdict.IMPROVED),
            (10, 0.01, 0.9, "higher", Verdict.IMPROVED),
            (-10, 0.01, 0.9, "higher", Verdict.REGRESSED),
            (10, 0.01, 0.9, None, Verdict.DIFFERS),
            (10, 0.06, 0.9, "lower", Verdict.INCONCLUSIVE),
            (4, 0.01, 0.9, "lower", Verdict.INCONCLUSIVE),  # within the noise floor
            (2, 0.01, 0.9, "lower", Verdict.INCONCLUSIVE),  # within the threshold
            (2, 0.01, 0.01, "lower", Verdict.EQUIVALENT),
            (0, 1.0, float("nan"), "lower", Verdict.INCONCLUSIVE),
            (9, float("nan"), float("nan"), "lower", Verdict.INCONCLUSIVE),
        ],
    )
    def test_rule(
        self, difference: float, p: float, p_equivalence: float, better: str, verdict: Verdict
    ) -> None:
        assert (
            decide(
                difference=difference,
                threshold=3,
                floor=5,
                p_adjusted=p,
                p_equivalence_adjusted=p_equivalence,
                better=better,
                testable=True,
            )
            is verdict
        )

    def test_nothing_is_claimed_of_too_few_repetitions(self) -> None:
        verdict = decide(
            difference=99,
            threshold=0,
            floor=0,
            p_adjusted=0.0,
            p_equivalence_adjusted=0.0,
            better="lower",
            testable=False,
        )
        assert verdict is Verdict.NO_TEST


def claims(
    baseline: Values, variant: Values, control: Values, margin: float, equivalence: bool = True
) -> tuple[Claimed, Claimed]:  # axes: run, metric, repetition
    """Of each simulated run: whether it claims any difference, any equivalence. The rule as `compare` applies it."""
    p = holm(permutation_p(baseline, variant))
    p_equivalence = holm(equivalence_p(baseline, variant, margin)) if equivalence else np.full_like(p, np.nan)
    difference = median(variant) - median(baseline)
    floor = np.abs(median(control) - median(baseline))
    runs, metrics = difference.shape
    different, equivalent = np.zeros(runs, dtype=bool), np.zeros(runs, dtype=bool)
    for run in range(runs):
        for metric in range(metrics):
            verdict = decide(
                difference=float(difference[run, metric]),
                threshold=margin * float(median(baseline)[run, metric]),
                floor=float(floor[run, metric]),
                p_adjusted=float(p[run, metric]),
                p_equivalence_adjusted=float(p_equivalence[run, metric]),
                better="lower",
                testable=metrics * smallest_p(baseline.shape[-1], variant.shape[-1]) <= ALPHA,
            )
            different[run] |= verdict in (Verdict.IMPROVED, Verdict.REGRESSED)
            equivalent[run] |= verdict is Verdict.EQUIVALENT
    return different, equivalent


class TestWholeRule:
    """Simulated: how often the rule claims what is not so, and how often it sees what is so."""

    RUNS = 2000

    @staticmethod
    def boots(draw: np.random.Generator, shape: tuple[int, ...], spread: float, kind: str) -> Values:
        noise = draw.standard_t(2, shape) if kind == "heavy tails" else draw.standard_normal(shape)
        boots = FAULT_INSNS * np.exp(spread * noise)
        return np.asarray(np.round(boots) if kind == "whole numbers" else boots)

    @pytest.mark.parametrize("kind", ["normal", "heavy tails", "whole numbers"])
    @pytest.mark.parametrize(("n", "metrics"), [(4, 1), (5, 3)])
    @pytest.mark.parametrize("spread", [ICOUNT_SPREAD, 0.05])
    def test_false_positives_are_at_most_nominal(
        self, kind: str, n: int, metrics: int, spread: float
    ) -> None:
        draw = np.random.default_rng(11)
        shape = (self.RUNS, metrics, n)
        b, v = (self.boots(draw, shape, spread, kind) for _ in range(2))
        # The hardest case for the rule: no threshold and an A/A control that shows no noise at all.
        different, _ = claims(b, v, b, margin=1e-9, equivalence=False)
        sampling = 3 * math.sqrt(ALPHA * (1 - ALPHA) / self.RUNS)
        assert different.mean() <= ALPHA + sampling

    def test_a_shift_of_one_per_cent_is_seen_at_the_spread_of_instruction_counts(self) -> None:
        draw = np.random.default_rng(12)
        shape = (500, 3, 5)
        b, c = (self.boots(draw, shape, ICOUNT_SPREAD, "normal") for _ in range(2))
        v = 1.01 * self.boots(draw, shape, ICOUNT_SPREAD, "normal")
        different, equivalent = claims(b, v, c, margin=0.005)
        assert different.mean() >= 0.99
        assert equivalent.mean() <= 0.01

    def test_neutrality_is_shown_at_the_spread_of_instruction_counts(self) -> None:
        draw = np.random.default_rng(13)
        shape = (500, 3, 5)
        b, v, c = (self.boots(draw, shape, ICOUNT_SPREAD, "normal") for _ in range(3))
        different, equivalent = claims(b, v, c, margin=0.005)
        assert equivalent.mean() >= 0.99
        assert different.mean() <= 0.01

    def test_equivalence_is_seldom_claimed_of_a_shift_as_large_as_the_margin(self) -> None:
        draw = np.random.default_rng(14)
        shape = (self.RUNS, 3, 5)
        b, c = (self.boots(draw, shape, ICOUNT_SPREAD, "normal") for _ in range(2))
        v = 1.005 * self.boots(draw, shape, ICOUNT_SPREAD, "normal")
        _, equivalent = claims(b, v, c, margin=0.005)
        assert equivalent.mean() <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / self.RUNS)

    def test_noise_is_never_called_equivalence(self) -> None:
        draw = np.random.default_rng(15)
        b, v, c = (self.boots(draw, (500, 3, 5), 0.05, "normal") for _ in range(3))
        _, equivalent = claims(b, v, c, margin=0.005)
        assert equivalent.mean() <= 0.01

    def test_three_repetitions_claim_nothing(self) -> None:
        draw = np.random.default_rng(16)
        b, c = (self.boots(draw, (50, 1, 3), ICOUNT_SPREAD, "normal") for _ in range(2))
        for factor in (1.0, 1.5):
            different, equivalent = claims(b, factor * b, c, margin=0.005)
            assert not different.any()
            assert not equivalent.any()
