# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import EFFECTS, VARIANTS, Synthetic

from orchestrator.analysis.comparison import Comparison, Row, compare, compare_runs
from orchestrator.analysis.conclusion import conclusion
from orchestrator.analysis.invariants import check_counters
from orchestrator.analysis.notation import percent, scale_of
from orchestrator.analysis.statistics import Verdict
from orchestrator.analysis.table import to_text
from orchestrator.errors import UserError
from orchestrator.store.manifest import AcceleratorRecord, TopologyRecord
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import Run

QUIET = Synthetic(effects={}, histograms=False)
#: One workload each, and samples only where counters are looked at, since most of the time goes into writing the runs.
CHUNK = replace(QUIET, workloads=("chunk",), samples=False)
FAULTS = replace(QUIET, workloads=("fault_latency",), samples=False)


def row_of(comparison: Comparison, variant: str, workload: str, metric: str) -> Row:
    return next(row for row in comparison.rows_of(variant=variant, workload=workload) if row.metric == metric)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Synthetic(repeat=6, histograms=False).write(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def compared(run: Run) -> Comparison:
    return compare(run)


class TestVerdicts:
    @pytest.mark.parametrize(
        ("variant", "workload", "metric", "verdict"),
        [
            ("core-only@256", "chunk", "survivors.total", Verdict.IMPROVED),
            ("core-only@256", "chunk", "memory_kib.max", Verdict.IMPROVED),
            ("core-only@256", "chunk", "huge_faults.total", Verdict.DIFFERS),
            ("core-only@256", "fault_latency", "fault_insns.p50", Verdict.REGRESSED),
            ("core-only@1", "fault_latency", "fault_insns.p50", Verdict.EQUIVALENT),
            ("core-only@1", "chunk", "survivors.total", Verdict.EQUIVALENT),
            ("core-only@1", "chunk", "survivors_oom.total", Verdict.INCONCLUSIVE),
            ("core-only@1", "chunk", "promotions.total", Verdict.NO_TEST),
        ],
    )
    def test_of_metrics(
        self, compared: Comparison, variant: str, workload: str, metric: str, verdict: Verdict
    ) -> None:
        assert row_of(compared, variant, workload, metric).verdict is verdict

    def test_a_row_has_everything_a_reader_needs(self, compared: Comparison) -> None:
        row = row_of(compared, "core-only@256", "fault_latency", "fault_insns.p50")
        assert row.baseline.n == row.compared.n == row.pairs == row.agreeing == 6
        assert row.baseline.median is not None
        assert row.compared.median is not None
        each = [v - b for b, v in zip(row.baseline.values, row.compared.values, strict=True)]
        assert row.difference == statistics.median(each)
        assert row.relative is not None
        assert row.relative == pytest.approx(0.012, abs=0.002)
        assert row.interval is not None
        assert row.interval.low < row.relative < row.interval.high
        assert row.interval.confidence == 1 - 2 / 2**6
        assert row.p == pytest.approx(2 / 3**6)
        assert row.tests == 4
        assert row.p_adjusted == pytest.approx(4 * 2 / 3**6)
        assert row.baseline.variation == pytest.approx(0.0006, rel=0.6)
        assert row.floor is not None
        assert row.unit == "insns"

    def test_primary_metrics_come_first_in_the_order_of_the_manifest(self, compared: Comparison) -> None:
        names = [row.metric for row in compared.rows_of(variant="core-only@1", workload="chunk")]
        assert names[:4] == ["survivors.total", "survivors_oom.total", "memory_kib.max", "promotions.total"]

    def test_a_metric_that_only_one_side_has_is_kept_without_a_verdict(self, compared: Comparison) -> None:
        row = row_of(compared, "core-only@256", "chunk", "reservations.total")
        assert row.baseline.median is None
        assert row.compared.median == 27392
        assert row.verdict is Verdict.NO_TEST
        assert "the baseline has no value" in row.reason

    def test_a_baseline_of_zero_has_no_per_cent_but_a_verdict(self, tmp_path: Path) -> None:
        effects = {"core-only@256": {"chunk": {"promotions.total": "48"}}}
        row = row_of(
            compare(replace(CHUNK, effects=effects).write(tmp_path)),
            "core-only@256",
            "chunk",
            "promotions.total",
        )
        assert (row.relative, row.difference, row.verdict) == (None, 48.0, Verdict.IMPROVED)
        assert "+48 ranges" in row.reason

    def test_a_change_within_the_margin_is_not_a_regression(self, tmp_path: Path) -> None:
        effects = {"core-only@256": {"fault_latency": {"fault_insns.p50": 1.003}}}
        run = replace(FAULTS, effects=effects).write(tmp_path)
        row = row_of(compare(run), "core-only@256", "fault_latency", "fault_insns.p50")
        assert row.verdict is Verdict.EQUIVALENT
        stricter = row_of(compare(run, margin=0.0001), "core-only@256", "fault_latency", "fault_insns.p50")
        assert stricter.verdict is Verdict.REGRESSED

    def test_a_change_within_the_noise_of_the_control_is_not_claimed(self, tmp_path: Path) -> None:
        # The control is as far away as the variant: what differs is the boot, not the kernel.
        effects = {
            "core-only@256": {"fault_latency": {"fault_insns.p50": 1.03}},
            "baseline-control": {"fault_latency": {"fault_insns.p50": 1.03}},
        }
        comparison = compare(replace(FAULTS, repeat=6, effects=effects).write(tmp_path))
        row = row_of(comparison, "core-only@256", "fault_latency", "fault_insns.p50")
        assert row.verdict is Verdict.INCONCLUSIVE
        assert "no larger than margin and noise floor" in row.reason
        assert any("this metric is not reliable" in note for note in comparison.notes)
        assert not comparison.found_something

    def test_three_repetitions_show_everything_and_claim_nothing(self, tmp_path: Path) -> None:
        comparison = compare(replace(FAULTS, repeat=3, effects=EFFECTS).write(tmp_path))
        assert {row.verdict for row in comparison.rows} == {Verdict.NO_TEST}
        row = row_of(comparison, "core-only@256", "fault_latency", "fault_insns.p50")
        assert row.p == pytest.approx(2 / 27)
        assert row.interval is not None and row.interval.confidence == 0.75
        assert "too few repetitions (3 against 3)" in row.reason
        assert "5 repetitions are needed" in row.reason
        assert comparison.testable[0] == 0
        assert "covers the true change in only 75% of runs" in " ".join(to_text(comparison).split())
        assert not comparison.found_something

    def test_one_repetition_shows_the_difference_only(self, tmp_path: Path) -> None:
        comparison = compare(replace(CHUNK, repeat=1, effects=EFFECTS).write(tmp_path))
        row = row_of(comparison, "core-only@256", "chunk", "survivors.total")
        assert (row.difference, row.interval, row.p, row.verdict) == (92.0, None, None, Verdict.NO_TEST)
        assert "without a claim" in row.reason
        assert "too few repetitions" in conclusion(comparison, "core-only@256")

    def test_a_value_that_is_not_finite_is_left_out_and_reported(self, tmp_path: Path) -> None:
        run = CHUNK.write(tmp_path)
        run.metrics.loc[0, "value"] = math.inf
        assert any("1 values are not finite" in note for note in compare(run).notes)


class TestBaseline:
    def test_against_another_variant(self, run: Run) -> None:
        comparison = compare(run, "core-only@1")
        assert comparison.baseline == "core-only@1"
        assert [variant.name for variant in comparison.compared] == ["baseline", "core-only@256"]

    def test_unknown_variant(self, run: Run) -> None:
        with pytest.raises(
            UserError, match=r"no variant nothing; it has baseline, baseline-control, core-only@1"
        ):
            compare(run, "nothing")

    def test_margin_must_be_a_fraction(self, run: Run) -> None:
        with pytest.raises(UserError, match="fraction"):
            compare(run, margin=5)

    def test_a_run_without_a_control_says_that_its_noise_is_unknown(self, tmp_path: Path) -> None:
        variants = {"baseline": "baseline", "core-only@256": "patched"}
        comparison = compare(replace(CHUNK, variants=variants).write(tmp_path))
        assert comparison.control == ()
        assert any("noise floor is unknown" in note for note in comparison.notes)
        assert "noise floor is unknown" in to_text(comparison)


class TestFailures:
    FAILED: Mapping[str, tuple[Outcome, str]] = {
        "core-only@256.chunk.2": (Outcome.KERNEL_BUG, "\nBUG: Bad page state in process chunk\nmore"),
        "baseline.chunk.1": (Outcome.LOST, ""),
    }

    def test_are_counted_and_shown(self, tmp_path: Path) -> None:
        comparison = compare(Synthetic(failures=self.FAILED, histograms=False).write(tmp_path))
        assert comparison.found_something
        assert {failure.outcome for failure in comparison.failures} == {Outcome.KERNEL_BUG, Outcome.LOST}
        assert row_of(comparison, "core-only@256", "chunk", "survivors_oom.total").compared.n == 4
        text = to_text(comparison)
        assert "core-only@256 4 of 5 [2]" in text
        assert "[2] core-only@256.chunk.2: kernel-bug: BUG: Bad page state in process chunk" in text
        assert "[1] baseline.chunk.1: lost: the end was not recorded" in text
        assert "38 of 40 ok" in text
        assert "1 of 10 cells failed" in conclusion(comparison, "core-only@256")

    def test_everything_failed(self, tmp_path: Path) -> None:
        cells = [entry.cell for entry in QUIET.manifest().cells]
        failures = dict.fromkeys(cells, (Outcome.BOOT_FAILED, "no console output"))
        comparison = compare(replace(QUIET, failures=failures).write(tmp_path))
        assert comparison.found_something
        assert comparison.rows == ()
        text = to_text(comparison)
        assert "All 40 cells failed; nothing was measured." in text
        assert "and 28 more failed cells: 28 boot-failed" in text
        assert "none of its 10 cells ended ok" in conclusion(comparison, "core-only@1")
        json.loads(comparison.to_json())

    def test_a_run_that_has_just_begun(self, tmp_path: Path) -> None:
        cells = [entry.cell for entry in CHUNK.manifest().cells]
        accelerator = {
            "accelerator": AcceleratorRecord(name="auto", clock=None, reason="requested; not yet chosen")
        }
        begun = replace(CHUNK, failures=dict.fromkeys(cells, (Outcome.LOST, "")), changes=accelerator)
        assert "not yet chosen (auto)" in to_text(compare(begun.write(tmp_path)))


class TestFindings:
    def test_nothing_found(self, tmp_path: Path) -> None:
        comparison = compare(QUIET.write(tmp_path))
        assert not comparison.found_something
        assert comparison.counters_checked == 20

    def test_a_primary_regression(self, compared: Comparison) -> None:
        assert {finding.kind for finding in compared.findings} == {"regression"}
        assert [finding.where for finding in compared.findings] == [
            "core-only@256: fault_latency first_fault_insns.p50",
            "core-only@256: fault_latency fault_insns.p50",
        ]

    def test_a_regression_of_a_secondary_metric_is_found_and_reported(self, tmp_path: Path) -> None:
        effects = {"core-only@256": {"fault_latency": {"fault_insns.p99": 1.05}}}
        comparison = compare(replace(FAULTS, repeat=6, effects=effects).write(tmp_path))
        row = row_of(comparison, "core-only@256", "fault_latency", "fault_insns.p99")
        assert row.verdict is Verdict.REGRESSED and not row.primary
        assert [finding.where for finding in comparison.findings] == [
            "core-only@256: fault_latency fault_insns.p99"
        ]
        assert comparison.found_something
        sentence = conclusion(comparison, "core-only@256")
        assert re.search(r"other regressions: fault_latency fault_insns\.p99 \+[45]\.\d\d%", sentence)

    def test_a_secondary_metric_without_a_direction_is_not_a_finding(self, tmp_path: Path) -> None:
        effects = {"core-only@256": {"chunk": {"huge_faults.total": "5000"}}}
        comparison = compare(replace(CHUNK, repeat=6, effects=effects).write(tmp_path))
        assert row_of(comparison, "core-only@256", "chunk", "huge_faults.total").verdict is Verdict.DIFFERS
        assert not comparison.found_something


class TestPairing:
    """The variants of a repetition share a seed, so they are compared with each other."""

    def test_spread_that_the_seed_makes_does_not_hide_one_per_cent(self, tmp_path: Path) -> None:
        for factor, verdict in ((1.01, Verdict.REGRESSED), (1.0, Verdict.EQUIVALENT)):
            run = replace(FAULTS, repeat=6).write(tmp_path, f"by-{factor}")
            chosen = run.metrics["metric"] == "fault_insns.p50"
            by_seed = {n: 1 + 0.025 * (-1) ** n * n / 6 for n in range(1, 7)}
            shifted = run.metrics["variant"] == "core-only@256"
            run.metrics.loc[chosen, "value"] *= run.metrics.loc[chosen, "repetition"].map(by_seed)
            run.metrics.loc[chosen & shifted, "value"] *= factor
            row = row_of(compare(run), "core-only@256", "fault_latency", "fault_insns.p50")
            assert row.baseline.variation is not None and row.baseline.variation > 0.01
            assert row.verdict is verdict

    def test_a_repetition_that_one_side_lost_is_left_out_of_the_pairs(self, tmp_path: Path) -> None:
        failures = {"core-only@256.fault_latency.2": (Outcome.KERNEL_BUG, "BUG")}
        run = replace(FAULTS, repeat=6, failures=failures).write(tmp_path)
        comparison = compare(run)
        row = row_of(comparison, "core-only@256", "fault_latency", "fault_insns.p50")
        assert (row.baseline.n, row.compared.n, row.pairs) == (6, 5, 5)
        assert not any("unpaired" in note for note in comparison.notes)

    def test_broken_pairs_are_compared_unpaired_with_a_note(self, tmp_path: Path) -> None:
        failures = {
            f"{variant}.fault_latency.{n}": (Outcome.TIMEOUT, "too slow")
            for variant, lost in (("baseline", (1, 2, 3)), ("core-only@256", (4, 5, 6)))
            for n in lost
        }
        effects = {"core-only@256": {"fault_latency": {"fault_insns.p50": 1.02}}}
        run = replace(QUIET, repeat=9, failures=failures, effects=effects).write(tmp_path)
        comparison = compare(run)
        row = row_of(comparison, "core-only@256", "fault_latency", "fault_insns.p50")
        assert (row.pairs, row.agreeing, row.verdict) == (0, None, Verdict.REGRESSED)
        assert row.p == pytest.approx(2 / math.comb(12, 6))
        assert "unpaired boots" in row.reason
        note = next(note for note in comparison.notes if note.startswith("unpaired"))
        assert "core-only@256 in fault_latency" in note and "chunk" not in note
        assert "note: unpaired" in to_text(comparison)

    def test_runs_of_different_seeds_are_unpaired(self, tmp_path: Path) -> None:
        first = replace(FAULTS, repeat=6).write(tmp_path, "first")
        second = replace(FAULTS, repeat=6, seed=2).write(tmp_path, "second")
        assert {row.pairs for row in compare_runs(first, second).rows} == {0}
        third = replace(FAULTS, repeat=6).write(tmp_path, "third")
        assert {row.pairs for row in compare_runs(first, third).rows if row.difference is not None} == {6}

    def test_the_control_takes_part_only_where_its_own_baseline_is_compared(self, tmp_path: Path) -> None:
        effects = {"core-only@256": {"fault_latency": {"fault_insns.p50": 1.02}}}
        run = replace(FAULTS, repeat=6, effects=effects).write(tmp_path)
        own = row_of(compare(run), "core-only@256", "fault_latency", "fault_insns.p50")
        other = row_of(compare(run, "core-only@1"), "core-only@256", "fault_latency", "fault_insns.p50")
        assert own.p == pytest.approx(2 / 3**6)
        assert other.p == pytest.approx(2 / 2**6)


class TestSpread:
    def test_one_slow_boot_is_not_hidden_behind_an_equal_median(self, tmp_path: Path) -> None:
        run = replace(FAULTS, repeat=20).write(tmp_path)
        slow = (
            (run.metrics["metric"] == "fault_insns.p50")
            & (run.metrics["variant"] == "core-only@256")
            & run.metrics["repetition"].isin([3, 11])
        )
        run.metrics.loc[slow, "value"] *= 1.5
        comparison = compare(run)
        row = row_of(comparison, "core-only@256", "fault_latency", "fault_insns.p50")
        assert row.verdict is Verdict.SCATTERED
        assert row.compared.variation is not None and row.compared.variation > 0.1
        assert "single repetitions are not" in row.reason
        assert "single boots are not" in conclusion(comparison, "core-only@256")
        line = next(line for line in to_text(comparison).splitlines() if line.startswith("fault_insns.p50"))
        assert line.endswith(" ~")
        assert re.search(r"fault_insns\.p50 0\.0\d% to \d\d\.\d%", to_text(comparison))


class TestCounters:
    @pytest.mark.parametrize(
        ("counters", "sentence"),
        [
            (
                {"thp_res_alloc": 3},
                "512 * thp_res_alloc (3) = 1536, but nr_thp_reserved (0) + thp_res_mapped (0)",
            ),
            ({"thp_res_mapped": 1}, "counter identity broken"),
            (
                {"nr_thp_reserved": 512, "thp_res_alloc": 1},
                "nr_thp_reserved is 512 after the workload, 0 before",
            ),
            ({"nr_thp_reserved": -895, "thp_res_released": 895}, "nr_thp_reserved fell to -895"),
        ],
    )
    def test_a_contradiction_is_a_finding(
        self, tmp_path: Path, counters: dict[str, int], sentence: str
    ) -> None:
        comparison = compare(
            replace(CHUNK, samples=True, counters={"core-only@1.chunk.1": counters}).write(tmp_path)
        )
        assert comparison.found_something
        assert {finding.kind for finding in comparison.findings} == {"counters"}
        assert {finding.where for finding in comparison.findings} == {"core-only@1.chunk.1"}
        assert any(sentence in finding.text for finding in comparison.findings)
        assert "consistent in 9 of 10 patched cells" in to_text(comparison)

    def test_all_four_kinds_of_pages_count(self, tmp_path: Path) -> None:
        counters = {"thp_res_alloc": 2, "thp_res_mapped": 300, "thp_res_released": 600, "thp_res_filled": 124}
        check = check_counters(
            replace(CHUNK, samples=True, counters={"core-only@1.chunk.1": counters}).write(tmp_path)
        )
        assert check.violations == ()

    def test_a_kernel_without_the_counters_is_not_checked(self, tmp_path: Path) -> None:
        run = replace(QUIET, variants={"baseline": "baseline", "other": "patched"}, samples=False).write(
            tmp_path
        )
        assert check_counters(run).cells == 0
        assert "consistent in" not in to_text(compare(run))


class TestTwoRuns:
    def test_variants_of_the_second_against_the_baseline_of_the_first(self, tmp_path: Path) -> None:
        first = CHUNK.write(tmp_path, "first")
        second = replace(CHUNK, seed=2, effects=EFFECTS).write(tmp_path, "second")
        comparison = compare_runs(first, second)
        assert [variant.name for variant in comparison.compared] == [
            f"core-only@1 ({second.name})",
            f"core-only@256 ({second.name})",
        ]
        assert comparison.control_variant == f"baseline ({second.name})"
        assert any("different seeds" in note for note in comparison.notes)
        row = row_of(comparison, f"core-only@256 ({second.name})", "chunk", "survivors.total")
        assert row.verdict is Verdict.IMPROVED

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            (
                {"accelerator": AcceleratorRecord(name="kvm", clock="ns", reason="")},
                r"clock \(insns and ns\); accelerator",
            ),
            (
                {"topology": TopologyRecord(text="1x8G", nodes=(), distances=((10,),))},
                r"topology \(4x2G and 1x8G\); NUMA distances \(10 20 20 20 / ",
            ),
            ({"flavour": "debug-vm"}, r"kernel configuration \(measure and debug-vm\)"),
        ],
    )
    def test_incomparable_runs_are_refused(self, tmp_path: Path, changed: dict[str, Any], named: str) -> None:
        first = CHUNK.write(tmp_path, "first")
        second = replace(CHUNK, changes=changed).write(tmp_path, "second")
        with pytest.raises(UserError, match=named):
            compare_runs(first, second)

    def test_other_parameters_or_no_common_workload_are_refused(self, tmp_path: Path) -> None:
        first = QUIET.write(tmp_path, "first")
        chunk = replace(first.manifest.workloads["chunk"], parameters={"chunk_mib": "256"})
        other = {**first.manifest.workloads, "chunk": chunk}
        with pytest.raises(UserError, match=r"parameter chunk_mib of workload chunk \(512 and 256\)"):
            compare_runs(first, replace(QUIET, changes={"workloads": other}).write(tmp_path, "second"))
        one = replace(QUIET, workloads=("chunk",)).write(tmp_path, "one")
        two = replace(QUIET, workloads=("fault_latency",)).write(tmp_path, "two")
        with pytest.raises(UserError, match="none in common"):
            compare_runs(one, two)


class TestConclusion:
    def test_a_neutral_variant_has_to_show_equivalence(self, compared: Comparison, tmp_path: Path) -> None:
        assert compared.variant("core-only@1").neutral
        assert not compared.variant("core-only@256").neutral
        assert "shown for 6 of 7 primary metrics; not for survivors_oom.total" in conclusion(
            compared, "core-only@1"
        )
        still = replace(QUIET, workloads=("fault_latency",))
        assert "is shown for all 4 primary metrics" in conclusion(
            compare(still.write(tmp_path)), "core-only@1"
        )

    def test_a_neutral_variant_that_regressed(self, tmp_path: Path) -> None:
        effects = {"core-only@1": {"fault_latency": {"fault_insns.p50": 1.02}}}
        sentence = conclusion(compare(replace(FAULTS, effects=effects).write(tmp_path)), "core-only@1")
        assert "not for" in sentence
        assert "(regressed)" in sentence

    def test_says_what_improved_and_what_regressed(self, compared: Comparison) -> None:
        sentence = conclusion(compared, "core-only@256")
        assert "survivors.total +613% [+613%, +613%] (improved)" in sentence
        assert "fault_insns.p50 +1." in sentence
        assert "(regressed)" in sentence
        assert "fault_latency memory_kib.max within 0.50%" in sentence


class TestTable:
    def test_shape(self, compared: Comparison) -> None:
        text = to_text(compared)
        lines = text.splitlines()
        assert max(map(len, lines)) <= 100
        assert text.isascii()
        header = next(line for line in lines if "baseline" in line and line.startswith(" "))
        assert header.split() == ["baseline", "core-only@1", "core-only@256"]
        line = next(line for line in lines if line.startswith("fault_insns.p50"))
        assert line.endswith(" -")
        assert "insns, lower is better" in text
        assert re.search(r"\+7\d(\.\d)? insns", text)
        assert "clock     guest instructions (icount)" in text
        assert "0 in every cell: promotions.total, oom_kills.total" in text
        assert lines.index("other metrics") > next(
            i for i, each in enumerate(lines) if "survivors_oom.total" in each
        )

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_variants_stand_beside_each_other_where_they_fit(self, tmp_path: Path, number: int) -> None:
        names, lines = self._table(tmp_path, number)
        headers = [line.split() for line in lines if line.startswith(" ") and "core-only@1" in line]
        assert headers == [["baseline", *names]] * 2

    @pytest.mark.parametrize("number", [4, 7])
    def test_variants_stand_below_each_other_where_they_do_not_fit(self, tmp_path: Path, number: int) -> None:
        names, lines = self._table(tmp_path, number)
        start = lines.index("survivors.total (children, higher is better)")
        under = [line.split()[0] for line in lines[start + 1 : start + 2 + number]]
        assert under == ["baseline", *names]

    @staticmethod
    def _table(results: Path, number: int) -> tuple[list[str], list[str]]:
        names = [f"core-only@{2**step}" for step in range(number)]
        variants = {"baseline": "baseline", "baseline-control": "control", **dict.fromkeys(names, "patched")}
        lines = to_text(
            compare(replace(QUIET, variants=variants, repeat=1, samples=False).write(results))
        ).splitlines()
        assert max(map(len, lines)) <= 100
        return names, lines

    def test_a_long_name_is_wrapped(self, tmp_path: Path) -> None:
        name = "full@thp_enabled=always,promotion_threshold=512"
        variants = {**VARIANTS, name: "patched"}
        text = to_text(compare(replace(CHUNK, variants=variants, repeat=1).write(tmp_path)))
        assert "promotion_threshold=512\n" in text

    def test_colour_is_the_only_difference(self, compared: Comparison) -> None:
        coloured = to_text(compared, colour=True)
        assert "\x1b[" in coloured
        plain = (
            "\n".join(line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", coloured).splitlines()) + "\n"
        )
        assert plain == to_text(compared)

    def test_is_the_same_every_time(self, run: Run, compared: Comparison) -> None:
        again = compare(Run.open(run.path))
        assert to_text(again) == to_text(compared)
        assert again.to_json() == compared.to_json()


class TestJson:
    def test_is_sorted_and_plain(self, compared: Comparison) -> None:
        content = json.loads(compared.to_json())
        assert list(content) == sorted(content)
        assert content["found_something"] is True
        assert content["conditions"]["clock"] == "insns"
        assert {row["verdict"] for row in content["rows"]} <= {verdict.value for verdict in Verdict}


@pytest.mark.parametrize(
    ("unit", "largest", "shown"),
    [
        ("KiB", 7_801_240.0, ("MiB", "7618.4")),
        ("KiB", 512.0, ("KiB", "512")),
        ("ns", 1500.5, ("ns", "1500.5")),
        ("ns", 2_500_000.0, ("us", "2500.0")),
        ("insns", 15_472.0, ("insns", "15472")),
        ("ratio", 0.123456, ("ratio", "0.1235")),
    ],
)
def test_scale(unit: str, largest: float, shown: tuple[str, str]) -> None:
    scale = scale_of(unit, [largest, None])
    assert (scale.unit, scale.text(largest)) == shown
    assert scale.text(None) == "-"


def test_percent_has_about_three_digits() -> None:
    assert [percent(x) for x in (0.0, 0.0999, 0.09999, 0.9994, 0.99999)] == [
        "+0.00%",
        "+9.99%",
        "+10.0%",
        "+99.9%",
        "+100%",
    ]
