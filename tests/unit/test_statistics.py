# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from simulated_boots import ICOUNT_SPREAD, MTTCG_SPREAD, NOISE, Simulation

from orchestrator.analysis.statistics import (
    ALPHA,
    CONFIDENCE,
    REPETITIONS_FOR_INTERVAL,
    Boots,
    Floor,
    Interval,
    Judgement,
    Values,
    Verdict,
    effect_of,
    holm,
    judge,
    median_interval,
    noise_floor,
    permutation_p,
    placement_p,
    repetitions_needed,
    sign_interval,
    smallest_p,
    smallest_unpaired_p,
    variation,
)


def values(*numbers: float) -> Values:
    return np.array(numbers, dtype=np.float64)


class TestInterval:
    @pytest.mark.parametrize("n", [0, 1, 2])
    def test_there_is_none_of_less_than_three_values(self, n: int) -> None:
        assert median_interval(np.arange(1.0, n + 1)) is None

    def test_carries_the_coverage_that_it_reaches(self) -> None:
        assert median_interval(values(3, 1, 2)) == Interval(1, 3, 0.75)
        assert median_interval(values(6, 5, 4, 3, 2, 1)) == Interval(1, 6, 0.96875)

    def test_six_values_are_the_fewest_that_reach_the_confidence(self) -> None:
        reached = [n for n in range(1, 100) if sign_interval(n)[1] >= CONFIDENCE]
        assert reached == list(range(REPETITIONS_FOR_INTERVAL, 100))

    @pytest.mark.parametrize("n", [7, 9, 10, 20, 33])
    def test_is_the_interval_of_scipy(self, n: int) -> None:
        sample = np.random.default_rng(n).normal(size=n)
        # The stubs say that this is a number.
        expected: Any = stats.quantile_test(sample, q=0, p=0.5).confidence_interval(CONFIDENCE)
        interval = median_interval(sample)
        assert interval is not None
        assert (interval.low, interval.high) == (expected.low, expected.high)

    @pytest.mark.parametrize("kind", NOISE)
    @pytest.mark.parametrize("n", [3, 6, 10])
    def test_covers_the_truth_as_often_as_it_says(self, kind: str, n: int) -> None:
        draw = np.random.default_rng(n)
        runs = 4000
        truth = float(np.median(NOISE[kind](draw, (400_000,))))
        index, confidence = sign_interval(n)
        ordered = np.sort(NOISE[kind](draw, (runs, n)), axis=-1)
        hits = (ordered[:, index] <= truth) & (truth <= ordered[:, -1 - index])
        assert hits.mean() >= confidence - 3 * math.sqrt(confidence * (1 - confidence) / runs)

    def test_of_unpaired_boots_covers_a_shift(self) -> None:
        draw = np.random.default_rng(5)
        runs = 2000
        effect = effect_of(
            Boots(draw.standard_t(2, (runs, 6)) - 50, draw.standard_t(2, (runs, 5)) - 40, paired=False)
        )
        hits = (effect.low <= 10) & (effect.high >= 10)
        assert effect.confidence >= CONFIDENCE
        assert hits.mean() >= effect.confidence - 3 * math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / runs)


class TestEffect:
    def test_is_the_median_of_the_paired_ratios(self) -> None:
        effect = effect_of(Boots(values(100, 200, 400), values(101, 204, 404)))
        assert float(effect.estimate) == pytest.approx(0.01)
        assert (float(effect.low), float(effect.high)) == pytest.approx((0.01, 0.02))
        assert effect.confidence == 0.75

    def test_is_a_difference_where_a_baseline_is_not_positive(self) -> None:
        effect = effect_of(Boots(values(0, 2, 4), values(1, 4, 6)))
        assert (bool(effect.relative), float(effect.estimate)) == (False, 2.0)

    def test_a_variant_may_fall_to_nothing(self) -> None:
        effect = effect_of(Boots(values(5, 5, 5), values(0, 0, 0)))
        assert (bool(effect.relative), float(effect.estimate)) == (True, -1.0)

    def test_two_boots_have_no_interval(self) -> None:
        effect = effect_of(Boots(values(1, 2), values(2, 3)))
        assert math.isnan(float(effect.low)) and effect.confidence == 0.0

    def test_of_unpaired_boots_is_that_of_hodges_and_lehmann(self) -> None:
        effect = effect_of(Boots(values(1, 2, 4), values(11, 12), paired=False))
        pairs = sorted(v / b - 1 for b in (1, 2, 4) for v in (11, 12))
        assert float(effect.estimate) == pytest.approx(math.expm1(np.median(np.log1p(pairs))))


class TestPlacement:
    @given(st.data(), st.integers(2, 4), st.booleans())
    @settings(max_examples=60, deadline=None)
    def test_counts_every_choice_within_the_repetitions(
        self, data: st.DataObject, n: int, control: bool
    ) -> None:
        size = 3 if control else 2
        numbers = data.draw(st.lists(st.integers(0, 6), min_size=n * size, max_size=n * size))
        blocks = np.array(numbers, dtype=np.float64).reshape(n, size)
        aligned = blocks - np.median(blocks, axis=1, keepdims=True)
        ranks = stats.rankdata(aligned).reshape(n, size)
        sums = np.array(
            [
                sum(ranks[i, boot] for i, boot in enumerate(c))
                for c in itertools.product(range(size), repeat=n)
            ]
        )
        seen = ranks[:, 0].sum()
        less, greater = (sums <= seen).mean(), (sums >= seen).mean()
        if np.ptp(aligned) == 0:
            assert math.isnan(float(placement_p(blocks)))
            return
        assert float(placement_p(blocks, "less")) == pytest.approx(less)
        assert float(placement_p(blocks, "greater")) == pytest.approx(greater)
        assert float(placement_p(blocks)) == pytest.approx(min(1, 2 * min(less, greater)))

    @pytest.mark.parametrize(("n", "controls"), [(2, 0), (6, 0), (6, 6), (6, 4), (10, 10)])
    def test_smallest_p_is_what_full_separation_gives(self, n: int, controls: int) -> None:
        blocks = np.stack([np.full(n, 2.0), np.ones(n), np.full(n, 1.1)], axis=-1)
        blocks[controls:, 2] = np.nan
        assert float(placement_p(blocks)) == pytest.approx(smallest_p(n, controls))

    def test_one_repetition_is_not_tested(self) -> None:
        assert math.isnan(float(placement_p(values(1, 2, 3).reshape(1, 3))))
        assert smallest_p(1) == 1.0

    def test_agrees_with_the_sign_flip_test_of_scipy(self) -> None:
        draw = np.random.default_rng(3)
        for _ in range(5):
            difference = draw.normal(0.6, 1, 8)
            blocks = np.stack([difference, np.zeros(8)], axis=-1)
            expected = stats.wilcoxon(difference, method="exact").pvalue
            assert float(placement_p(blocks)) == pytest.approx(expected, abs=0.06)

    def test_repetitions_side_by_side_equal_tests_one_by_one(self) -> None:
        blocks = np.random.default_rng(2).normal(size=(7, 5, 3))
        assert placement_p(blocks) == pytest.approx([float(placement_p(each)) for each in blocks])

    @pytest.mark.parametrize("control", [True, False])
    def test_repetitions_needed(self, control: bool) -> None:
        for tests in range(1, 40):
            n = repetitions_needed(tests, control=control)
            assert tests * smallest_p(n, n if control else 0) <= ALPHA
            assert tests * smallest_p(n - 1, n - 1 if control else 0) > ALPHA

    def test_six_repetitions_and_a_control_are_enough_for_the_families_of_the_workloads(self) -> None:
        assert repetitions_needed(18, control=True) == 6


class TestUnpairedTest:
    def test_full_separation_gives_the_smallest_unpaired_p(self) -> None:
        assert float(permutation_p(values(1, 2, 3), values(4, 5, 6))) == pytest.approx(0.1)
        assert float(permutation_p(values(1, 2, 3, 4, 5), values(6, 7, 8, 9, 10))) == pytest.approx(2 / 252)

    @pytest.mark.parametrize(("n", "m"), [(2, 2), (2, 3), (3, 3), (4, 5), (6, 6)])
    def test_smallest_unpaired_p_is_what_full_separation_gives(self, n: int, m: int) -> None:
        p = float(permutation_p(np.arange(n, dtype=float), np.arange(100, 100 + m, dtype=float)))
        assert p == pytest.approx(smallest_unpaired_p(n, m))

    def test_one_boot_is_not_tested(self) -> None:
        assert math.isnan(float(permutation_p(values(1), values(2, 3, 4))))
        assert smallest_unpaired_p(1, 20) == 1.0

    def test_is_the_exact_rank_sum_test(self) -> None:
        b, v = values(1.1, 2.7, 3.1, 0.5, 4.4), values(2.9, 5.0, 3.3, 6.1, 2.0)
        expected = stats.mannwhitneyu(v, b, alternative="two-sided", method="exact").pvalue
        assert float(permutation_p(b, v)) == pytest.approx(expected)

    def test_equal_values_are_not_evidence(self) -> None:
        assert float(permutation_p(values(5, 5, 5, 5), values(5, 5, 5, 5))) == 1.0

    def test_one_sided(self) -> None:
        b, v = values(1, 2, 3, 4), values(5, 6, 7, 8)
        assert float(permutation_p(b, v, "greater")) == pytest.approx(1 / 70)
        assert float(permutation_p(b, v, "less")) == 1.0

    def test_many_repetitions_are_drawn_reproducibly(self) -> None:
        draw = np.random.default_rng(1)
        b, v = draw.normal(size=12), draw.normal(size=12)
        assert float(permutation_p(b, v, seed=5)) == float(permutation_p(b, v, seed=5))
        assert float(permutation_p(b, b + 100)) == pytest.approx(smallest_unpaired_p(12, 12))

    def test_tests_side_by_side_equal_tests_one_by_one(self) -> None:
        draw = np.random.default_rng(2)
        b, v = draw.normal(size=(7, 4)), draw.normal(size=(7, 5))
        assert permutation_p(b, v) == pytest.approx(
            [float(permutation_p(*pair)) for pair in zip(b, v, strict=True)]
        )


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
    def test_is_the_far_end_of_the_interval_of_the_paired_differences(self) -> None:
        floor = noise_floor(Boots(values(100, 200, 100), values(101, 198, 100)))
        assert (float(floor.relative), float(floor.absolute)) == pytest.approx((0.01, 2.0))
        assert floor.confidence == 0.75

    def test_what_both_boots_of_a_repetition_share_is_not_noise(self) -> None:
        seed = np.linspace(100, 200, 6)
        floor = noise_floor(Boots(seed, seed * 1.001))
        assert float(floor.relative) == pytest.approx(0.001)

    def test_of_single_boots_is_their_difference(self) -> None:
        assert float(noise_floor(Boots(values(100), values(97))).absolute) == 3.0


def test_variation() -> None:
    assert variation(values(9, 10, 11)) == pytest.approx(0.1)
    assert variation(values(5)) is None
    assert variation(values(-1, 1)) is None


STILL = Floor(np.asarray(0.0), np.asarray(0.0), 1.0)
SIX = values(1000, 1010, 990, 1020, 980, 1000)


def one(
    variant: Values, *, control: Values | None = None, floor: Floor | None = STILL, primary: bool = True
) -> Judgement:
    return judge(
        [Boots(SIX, variant, SIX * 1.0001 if control is None else control)], [floor], 0.005, primary=primary
    )[0]


class TestRule:
    @pytest.mark.parametrize("primary", [True, False])
    @pytest.mark.parametrize(
        ("factor", "better", "verdict"),
        [
            (1.02, "lower", Verdict.REGRESSED),
            (0.98, "lower", Verdict.IMPROVED),
            (1.02, "higher", Verdict.IMPROVED),
            (0.98, "higher", Verdict.REGRESSED),
            (1.02, None, Verdict.DIFFERS),
            (1.004, "lower", Verdict.EQUIVALENT),
            (0.996, "lower", Verdict.EQUIVALENT),
            (1.0, "lower", Verdict.EQUIVALENT),
        ],
    )
    def test_of_boots_that_agree(
        self, factor: float, better: str | None, verdict: Verdict, primary: bool
    ) -> None:
        assert one(SIX * factor, primary=primary).verdict(better) is verdict

    @pytest.mark.parametrize("primary", [True, False])
    def test_a_change_no_larger_than_the_floor_is_not_claimed(self, primary: bool) -> None:
        floor = Floor(np.asarray(0.03), np.asarray(30.0), 1.0)
        assert one(SIX * 1.02, floor=floor, primary=primary).verdict("lower") is Verdict.INCONCLUSIVE

    @pytest.mark.parametrize("primary", [True, False])
    def test_one_repetition_of_six_that_contradicts_leaves_it_open(self, primary: bool) -> None:
        variant = SIX * 1.02
        variant[2] = SIX[2] * 0.99
        assert one(variant, primary=primary).verdict("lower") is Verdict.INCONCLUSIVE

    def test_another_metric_needs_the_whole_interval_beyond_the_margin(self) -> None:
        variant = SIX * values(1.02, 1.02, 1.02, 1.02, 1.02, 1.003)
        assert one(variant).verdict("lower") is Verdict.REGRESSED
        assert one(variant, primary=False).verdict("lower") is Verdict.INCONCLUSIVE

    def test_an_equal_median_with_a_slow_boot_is_marked(self) -> None:
        baseline = np.tile(SIX, 3)
        variant = baseline.copy()
        variant[4] *= 1.5
        (judgement,) = judge([Boots(baseline, variant, baseline)], [STILL], 0.005, primary=True)
        assert judgement.verdict("lower") is Verdict.SCATTERED

    def test_there_is_no_equivalence_around_zero(self) -> None:
        zeros = np.zeros(6)
        (judgement,) = judge([Boots(zeros, zeros, zeros)], [STILL], 0.005, primary=True)
        assert judgement.verdict("lower") is Verdict.INCONCLUSIVE

    @pytest.mark.parametrize("primary", [True, False])
    def test_nothing_is_claimed_of_three_repetitions(self, primary: bool) -> None:
        for factor in (1.0, 1.5):
            boots = Boots(SIX[:3], SIX[:3] * factor, SIX[:3])
            (judgement,) = judge([boots], [noise_floor(Boots(SIX[:3], SIX[:3]))], 0.005, primary=primary)
            assert judgement.verdict("lower") is Verdict.NO_TEST

    def test_a_floor_from_too_few_boots_carries_no_claim_of_another_metric(self) -> None:
        floor = Floor(np.asarray(0.0), np.asarray(0.0), 0.75)
        assert one(SIX * 1.02, floor=floor, primary=False).verdict("lower") is Verdict.NO_TEST

    def test_without_a_control_a_family_of_two_cannot_be_tested_with_six_repetitions(self) -> None:
        for family, verdict in ((1, Verdict.REGRESSED), (2, Verdict.NO_TEST)):
            judged = judge([Boots(SIX, SIX * 1.02)] * family, [None] * family, 0.005, primary=True)
            assert judged[0].verdict("lower") is verdict

    def test_unpaired_boots(self) -> None:
        floor = noise_floor(Boots(SIX, SIX[:5] * 1.001, paired=False))
        boots = Boots(SIX, SIX[:5] * 1.2, paired=False)
        (judgement,) = judge([boots], [floor], 0.005, primary=True)
        assert judgement.verdict("lower") is Verdict.REGRESSED
        assert float(judgement.p) == pytest.approx(2 / math.comb(11, 5))


class TestErrorRates:
    """The rule that `compare` applies, on simulated runs; tests/benchmarks/verdict_errors.py has larger tables."""

    #: Runs by repetitions: the null distribution of many repetitions takes longer to count.
    RUNS: ClassVar = {6: 600, 10: 300, 20: 80}

    @pytest.mark.parametrize("kind", [*NOISE, "counts"])
    @pytest.mark.parametrize("n", RUNS)
    def test_false_positives_of_a_family_are_at_most_nominal(self, kind: str, n: int) -> None:
        # The hardest case for the rule: no margin.
        simulation = Simulation(kind, n, self.RUNS[n])
        assert simulation.claims(1, 1e-9)[0] <= ALPHA
        others = replace(simulation, runs=self.RUNS[n] // 4, metrics=20)
        assert others.claims(2, 1e-9, primary=False)[0] <= ALPHA

    @pytest.mark.parametrize("kind", ["normal", "t2", "outlier", "discrete"])
    def test_the_test_alone_holds_its_level(self, kind: str) -> None:
        # No margin, and an A/A control that is taken to show no noise.
        runs = 1000
        share, _ = Simulation(kind, 6, runs).claims(3, 1e-9, known_floor=False)
        assert share <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)

    def test_without_a_control_too(self) -> None:
        simulation = Simulation("normal", 10, 500, control=False)
        assert simulation.claims(4, 1e-9)[0] <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 500)

    @pytest.mark.parametrize("primary", [True, False])
    def test_a_shift_of_one_per_cent_is_seen_at_the_spread_of_instruction_counts(self, primary: bool) -> None:
        # The seeds make each side spread by 2.5 %; the pairs by 0.06 %.
        simulation = Simulation("normal", 6, 300, shift=0.01)
        assert simulation.power(5, 0.005, primary=primary) >= 0.99
        assert simulation.claims(5, 0.005, primary=primary)[1] <= 0.01

    def test_that_one_boot_in_ten_is_much_slower_does_not_hide_it_for_long(self) -> None:
        simulation = Simulation("outlier", 20, 60, shift=0.01)
        assert simulation.power(6, 0.005) >= 0.9

    @pytest.mark.parametrize("primary", [True, False])
    def test_neutrality_is_shown_at_the_spread_of_instruction_counts(self, primary: bool) -> None:
        simulation = Simulation("normal", 6, 300, metrics=1)
        different, equivalent = simulation.claims(7, 0.005, primary=primary)
        assert equivalent >= 0.99
        assert different == 0

    @pytest.mark.parametrize("shift", [0.005, -0.005])
    def test_equivalence_is_seldom_claimed_of_a_shift_as_large_as_the_margin(self, shift: float) -> None:
        simulation = Simulation("normal", 6, 1000, shift=shift)
        _, equivalent = simulation.claims(8, 0.005)
        assert equivalent <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 1000)

    def test_noise_is_never_called_equivalence(self) -> None:
        assert Simulation("normal", 6, 300, spread=MTTCG_SPREAD).claims(9, 0.005)[1] <= 0.01

    def test_the_check_would_notice_a_rule_without_correction(self) -> None:
        # One test after another at the level of a single one: what Holm is there for.
        judged = Simulation("normal", 10, 300, metrics=8).judged(1, 1e-9, known_floor=False)
        assert np.any([each.p <= ALPHA for each in judged], axis=0).mean() > 2 * ALPHA

    def test_pairing_is_what_sees_it(self) -> None:
        family, _ = Simulation("normal", 6, 200, shift=0.01).family(1)
        unpaired = [Boots(boots.baseline, boots.variant, paired=False) for boots in family]
        judged = judge(unpaired, [STILL] * len(unpaired), 0.005, primary=False)
        assert np.mean([each.different for each in judged]) < 0.05
        assert ICOUNT_SPREAD < 0.001
