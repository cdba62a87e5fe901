# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_run import VARIANTS, Synthetic

from orchestrator.analysis.changelog import changelog_text
from orchestrator.analysis.comparison import Comparison, compare
from orchestrator.errors import UserError
from orchestrator.store.manifest import CalibrationRecord
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import Run

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference-core-only"
SYNTHETIC = Synthetic(histograms=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return SYNTHETIC.write(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def compared(run: Run) -> Comparison:
    return compare(run)


@pytest.fixture(scope="module")
def text(run: Run, compared: Comparison) -> str:
    return changelog_text(run, compared)


def test_is_ascii_of_at_most_75_columns(text: str) -> None:
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 75
    assert all(line == line.rstrip() for line in text.splitlines())


def test_the_three_metrics_that_reviewers_ask_for_come_first(text: str) -> None:
    headings = [line for line in text.splitlines() if line in ("Fault latency", "Memory consumption")]
    assert headings == ["Fault latency", "Memory consumption"]
    assert text.index("Memory consumption") < text.index("Successful promotions")
    assert (
        text.index("Fault latency") < text.index("first_fault_insns.p50") < text.index("Memory consumption")
    )


def test_says_where_it_was_measured_and_by_which_clock(text: str) -> None:
    plain = " ".join(text.split())
    assert "Medians of 5 fresh boots in a 4x2G guest (linux-source-6.12 6.12.117-1" in plain
    assert "clock: guest instructions" in plain
    assert "A/A control: baseline-control" in plain


def test_a_variant_has_its_value_change_interval_and_verdict(text: str) -> None:
    line = next(line for line in text.splitlines() if "core-only@256" in line and "regressed" in line)
    words = line.split()
    assert words[0] == "core-only@256"
    assert words[2].startswith("+")
    assert words[3].startswith("[")
    assert words[-1] == "regressed"
    assert "+73 insns" in text


def test_every_metric_of_a_real_run_fits() -> None:
    run = Run.open(REFERENCE)
    compared = compare(run)
    metrics = sorted({row.metric for row in compared.rows})
    lines = changelog_text(run, compared, metrics=metrics).splitlines()
    assert "  pmd_splits.total [splits], workload fault_latency: 0 in every cell" in lines
    assert max(map(len, lines)) <= 75


def test_the_conclusion_claims_no_more_than_the_verdicts(text: str) -> None:
    plain = " ".join(text.split())
    assert "core-only@1: equivalence with baseline within 0.50% is shown for 6 of 7 primary metrics" in plain
    assert "(improved)" in plain
    assert "(regressed)" in plain


def test_secondary_metrics_are_left_to_the_table(text: str) -> None:
    assert "huge_faults.total" not in text
    assert "fault_insns.p99" not in text


def test_the_command_can_be_pasted_also_when_it_is_long(tmp_path: Path) -> None:
    command = ["orchestrate", "run", "--name", "two words", *(f"--set=knob_{n}={n}" for n in range(12))]
    run = replace(SYNTHETIC, repeat=1, changes={"command": tuple(command)}).write(tmp_path)
    text = changelog_text(run, compare(run))
    pasted = text.partition("    $ ")[2].replace("\\\n", " ")
    assert shlex.split(pasted) == command
    assert max(map(len, text.splitlines())) <= 75


def test_failures_are_reported(tmp_path: Path) -> None:
    failures = {
        "core-only@256.chunk.2": (Outcome.KERNEL_PANIC, "Kernel panic"),
        "baseline.chunk.1": (Outcome.LOST, ""),
    }
    counters = {"core-only@1.chunk.1": {"thp_res_alloc": 3}}
    run = replace(SYNTHETIC, failures=failures, counters=counters).write(tmp_path)
    text = changelog_text(run, compare(run))
    assert "2 of 40 cells failed: 1 lost, 1 kernel-panic." in text
    assert "core-only@1.chunk.1: counter identity broken" in text


def test_three_repetitions_conclude_nothing(tmp_path: Path) -> None:
    run = replace(SYNTHETIC, repeat=3).write(tmp_path)
    text = changelog_text(run, compare(run))
    assert "too few repetitions" in text
    assert not any(word in text for word in ("improved", "regressed", "same ("))


def test_a_run_without_values(tmp_path: Path) -> None:
    cells = [entry.cell for entry in SYNTHETIC.manifest().cells]
    run = replace(SYNTHETIC, failures=dict.fromkeys(cells, (Outcome.TIMEOUT, "too slow"))).write(tmp_path)
    text = " ".join(changelog_text(run, compare(run)).split())
    assert "No cell with a primary metric ended ok." in text
    assert "40 of 40 cells failed: 40 timeout." in text


def test_one_stage_only(run: Run, compared: Comparison) -> None:
    assert "core-only@256" in changelog_text(run, compared, stages=[9])
    with pytest.raises(UserError, match="--stage 5: no variant of this run ends at it; choose one of 9"):
        changelog_text(run, compared, stages=[5])


def test_a_long_name_has_a_line_of_its_own(tmp_path: Path) -> None:
    name = "full@thp_enabled=always,promotion_threshold=512"
    run = replace(SYNTHETIC, repeat=1, variants={**VARIANTS, name: "patched"}).write(tmp_path)
    lines = changelog_text(run, compare(run)).splitlines()
    assert f"    {name}" in lines
    assert max(map(len, lines)) <= 75


def test_is_the_same_every_time(run: Run, text: str) -> None:
    again = Run.open(run.path)
    assert changelog_text(again, compare(again)) == text


def test_one_workload_only(run: Run, compared: Comparison) -> None:
    text = changelog_text(run, compared, workloads=["chunk"])
    assert "survivors.total" in text and "fault_latency" not in text
    assert "first_fault_insns" in changelog_text(run, compared)
    with pytest.raises(UserError, match="--workload churn: this run did not measure it; it measured "):
        changelog_text(run, compared, workloads=["churn"])


def test_a_metric_that_is_not_primary(run: Run, compared: Comparison, text: str) -> None:
    other = next(row.metric for row in compared.rows if not row.primary)
    assert other not in text
    assert other in changelog_text(run, compared, metrics=[other])
    with pytest.raises(UserError, match="--metric happiness: this run did not measure it there"):
        changelog_text(run, compared, metrics=["happiness"])


def bar_of(text: str, variant: str, heading: str) -> str:
    lines = text.partition("Medians as bars")[2].partition(heading)[2].splitlines()
    return next(line for line in lines if line.split()[:1] == [variant])


def test_bars_are_as_long_as_the_medians(run: Run, text: str) -> None:
    lengths = {
        name: bar_of(text, name, "survivors.total [children], chunk").index("|")
        - bar_of(text, name, "survivors.total [children], chunk").index("=")
        for name in ("baseline", "core-only@256")
    }
    assert lengths["core-only@256"] / lengths["baseline"] == pytest.approx(107 / 15, rel=0.1)
    plain = changelog_text(run, compare(run), plots=False)
    assert "Medians as bars" not in plain and "Medians as bars" in text
    # Nothing is said with the plots only.
    assert [line for line in plain.splitlines() if line not in text.splitlines()] == []


def test_cost_against_density_is_drawn_with_the_break_even(tmp_path: Path) -> None:
    run = replace(SYNTHETIC, ranges=True).write(tmp_path)
    text = changelog_text(run, compare(run))
    lines = text.partition("Cost of touching a 2 MiB range")[2].splitlines()
    drawn = {words[0]: line for line in lines if (words := line.split()) and words[0] in ("1", "64", "512")}
    # a is the baseline and b core-only@1, on the same spot; c is core-only@256.
    assert drawn["1"].index("c") < drawn["64"].index("c") < drawn["64"].index("*") < drawn["512"].index("c")
    assert re.search(r"core-only@256 costs as much as baseline at \d+ pages", text)
    assert max(map(len, text.splitlines())) <= 75
    assert "Cost of touching" not in changelog_text(run, compare(run), workloads=["chunk"])


def test_instructions_have_the_processor_beside_them(tmp_path: Path) -> None:
    said = "one huge fault costs 50 base faults on the host's processor (X) and 96 in instructions"
    changes = {"calibration": CalibrationRecord(sentence=said, cpu="X")}
    run = replace(SYNTHETIC, changes=changes).write(tmp_path)
    assert f"Instructions and time: {said}." in " ".join(changelog_text(run, compare(run)).split())
    other = replace(SYNTHETIC, repeat=1).write(tmp_path)
    assert "run `orchestrate calibrate` there" in " ".join(changelog_text(other, compare(other)).split())
