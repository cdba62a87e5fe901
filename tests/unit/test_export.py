# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import junitparser
import kcidb_io
import pytest
from synthetic_run import Synthetic

from orchestrator.analysis.comparison import Comparison, compare
from orchestrator.analysis.export.check import Check, CheckStatus, checks_of
from orchestrator.analysis.export.junit import to_junit
from orchestrator.analysis.export.kcidb import to_kcidb
from orchestrator.analysis.export.ktap import to_ktap
from orchestrator.analysis.statistics import Verdict
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import Run

OOPS = "BUG: <b>bad</b> page state \x1b[31m# not a directive\nCall Trace:\n dump_stack+0x1"
SYNTHETIC = Synthetic(
    failures={
        "core-only@256.chunk.2": (Outcome.KERNEL_BUG, OOPS),
        "baseline.chunk.1": (Outcome.LOST, ""),
    },
    counters={"core-only@256.fault_latency.1": {"nr_thp_reserved": 7}},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return SYNTHETIC.write(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def comparison(run: Run) -> Comparison:
    return compare(run)


@pytest.fixture(scope="module")
def checks(run: Run, comparison: Comparison) -> list[Check]:
    return checks_of(run, comparison)


def test_every_cell_is_a_check_and_says_how_it_ended(run: Run, checks: list[Check]) -> None:
    by_name = {check.name: check for check in checks}
    assert set(run.cells["cell"]) <= set(by_name)
    assert (by_name["core-only@256.chunk.2"].status, by_name["core-only@256.chunk.2"].text) == (
        CheckStatus.FAILED,
        OOPS,
    )
    assert by_name["baseline.chunk.1"].status is CheckStatus.ERROR
    assert by_name["baseline.fault_latency.1"].status is CheckStatus.PASSED


def test_a_regression_and_a_broken_counter_are_failed_checks(checks: list[Check]) -> None:
    by_name = {check.name: check for check in checks}
    first = by_name["core-only@256:first_fault_insns.p50"]  # invented as 1.9 times the baseline's
    assert (first.status, first.kind) == (CheckStatus.FAILED, "regressed")
    assert by_name["core-only@1:first_fault_insns.p50"].status is CheckStatus.PASSED
    assert by_name["identities"].status is CheckStatus.FAILED
    assert "core-only@256.fault_latency.1" in by_name["identities"].text


def test_what_could_not_be_checked_has_not_passed(tmp_path: Path) -> None:
    run = replace(SYNTHETIC, repeat=3, counters={}).write(tmp_path)
    comparison = compare(run)
    checks = checks_of(run, comparison)
    untested = [row for row in comparison.rows if row.primary and row.verdict is Verdict.NO_TEST]
    skipped = {(check.suite, check.name) for check in checks if check.status is CheckStatus.SKIPPED}
    assert untested and skipped == {(row.workload, f"{row.variant}:{row.metric}") for row in untested}
    assert to_junit("run", checks).count("<skipped") == len(skipped)
    assert to_ktap("run", checks).count("# SKIP no-test") == len(skipped)
    (identities,) = checks_of(run, replace(comparison, counters_checked=0, findings=()))[-1:]
    assert (identities.status, identities.kind) == (CheckStatus.SKIPPED, "not-checked")


def test_names_are_unique_in_a_suite(checks: list[Check]) -> None:
    names = [(check.suite, check.name) for check in checks]
    assert len(names) == len(set(names))


def test_junit_is_read_back_with_the_same_counts(run: Run, checks: list[Check]) -> None:
    document = junitparser.JUnitXml.fromstring(to_junit(run.name, checks).encode())
    assert document.tests == len(checks)
    assert document.failures == sum(check.status is CheckStatus.FAILED for check in checks)
    assert document.errors == sum(check.status is CheckStatus.ERROR for check in checks) == 1
    texts = [result.text for suite in document for case in suite for result in case.result]
    assert OOPS.replace("\x1b", "\N{REPLACEMENT CHARACTER}") in texts


def test_ktap_has_a_plan_that_its_results_fulfil(run: Run, checks: list[Check]) -> None:
    lines = to_ktap(run.name, checks).splitlines()
    assert lines[0] == "KTAP version 1"
    for indent in ("", "  "):
        plan = [int(m[1]) for line in lines if (m := re.fullmatch(rf"{indent}1\.\.(\d+)", line))]
        results = [line for line in lines if re.match(rf"{indent}(not )?ok \d+ ", line)]
        assert sum(plan) == len(results) > 0
    assert len([line for line in lines if line.startswith("  ")]) > len(checks)
    assert any(re.fullmatch(r"  not ok \d+ core-only@256\.chunk\.2 # kernel-bug", line) for line in lines)
    assert "  # Call Trace:" in lines
    assert re.search(r"^not ok \d+ counters$", "\n".join(lines), re.MULTILINE)


def test_kcidb_accepts_the_report(run: Run, comparison: Comparison, checks: list[Check]) -> None:
    report: dict[str, Any] = json.loads(to_kcidb(run, comparison, checks, "made_up"))
    kcidb_io.schema.LATEST.validate(report)
    builds = {build["id"]: build for build in report["builds"]}
    checkouts = {checkout["id"] for checkout in report["checkouts"]}
    assert len(builds) == len(report["builds"]) == 4
    assert {build["checkout_id"] for build in builds.values()} == checkouts
    assert {test["build_id"] for test in report["tests"]} <= set(builds)
    bug = next(test for test in report["tests"] if test["comment"] == "core-only@256.chunk.2")
    assert (bug["status"], bug["log_excerpt"]) == ("FAIL", OOPS)
    lost = next(test for test in report["tests"] if test["comment"] == "baseline.chunk.1")
    assert lost["status"] == "MISS"
    survivors = next(test for test in report["tests"] if test["comment"] == "core-only@256:survivors.total")
    assert survivors["number"] == {"value": 107.0, "unit": "children"}


def test_a_kernel_that_does_not_build_is_a_failed_build(tmp_path: Path) -> None:
    failed = {f"core-only@256.chunk.{n}": (Outcome.BUILD_FAILED, "mm/foo.c:7: error") for n in range(1, 6)}
    run = Synthetic(failures=failed, workloads=("chunk",)).write(tmp_path)
    comparison = compare(run)
    report = json.loads(to_kcidb(run, comparison, checks_of(run, comparison)))
    kcidb_io.schema.LATEST.validate(report)
    (build,) = (build for build in report["builds"] if build["comment"] == "core-only@256")
    assert (build["status"], build["log_excerpt"]) == ("FAIL", "mm/foo.c:7: error")
    assert not [test for test in report["tests"] if test["comment"].startswith("core-only@256.")]
