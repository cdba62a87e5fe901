# SPDX-License-Identifier: GPL-2.0-only
"""What a test of correctness fails for, without a guest."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from records import MANIFEST, manifest

from orchestrator.cache import Cache
from orchestrator.cli.progress import PlainProgress
from orchestrator.errors import UserError
from orchestrator.events import Events
from orchestrator.execution.correctness import run as correctness_run
from orchestrator.execution.correctness.judgement import judge, suspects
from orchestrator.execution.correctness.report import as_text
from orchestrator.execution.correctness.request import CorrectnessRequest, planned_cell
from orchestrator.execution.correctness.run import execute
from orchestrator.execution.correctness.suite import (
    SUITES,
    Found,
    Leak,
    choose,
    having,
    parse_leaks,
    reservation_tests,
    result_of_stressor,
    results_of_selftest,
    scan_for_leaks,
)
from orchestrator.execution.correctness.summary import CorrectnessSummary, SuiteResult
from orchestrator.execution.durations import Durations
from orchestrator.guest.ktap import Status, TestResult
from orchestrator.guest.selftests import Selftest, load_selftests
from orchestrator.guest.ssh import Guest
from orchestrator.kernel.build import KernelBuild
from orchestrator.machine.oops import Finding
from orchestrator.machine.topology import Topology
from orchestrator.store.manifest import RunKind
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import RunWriter

ROOT = Path(__file__).resolve().parents[2]
WARNING = Finding(Outcome.KERNEL_BUG, "WARNING in f at mm/f.c:1", "the whole report", 12)
LEAK = Leak(("kmalloc", "thp_resv_alloc"), "unreferenced object")


def result(
    patchset: str,
    suite: str,
    tests: dict[str, Status],
    findings: tuple[Finding, ...] = (),
    leak: bool = False,
) -> SuiteResult:
    found = Found([TestResult(name, status, f"about {name}") for name, status in tests.items()])
    if leak:
        found.leaks.append(LEAK)
    return SuiteResult(patchset, SUITES[suite], found, Outcome.OK, "", findings)


P, F, S = Status.PASSED, Status.FAILED, Status.SKIPPED


def test_what_passes_on_the_baseline_must_pass() -> None:
    before = result("baseline", "selftests", {"a": P, "b": P, "c": F, "d": P, "e": S})
    after = result("full", "selftests", {"a": P, "b": F, "c": F, "d": S, "e": S})
    troubles, notes = judge([before, after])
    assert [(each.where, each.what, each.text) for each in troubles] == [
        ("full.selftests.1", "b fails", "about b")
    ]
    assert [each.what for each in notes] == [
        "c fails, also on the baseline",
        "d is skipped, but passes on the baseline",
    ]


def test_a_skipped_test_that_lost_its_name_is_not_missing() -> None:
    """As selftests/mm/cow says it: what is skipped has a number only, and the others' names are not unique."""
    before = result(
        "baseline", "selftests", {"cow: leak": P, "cow: leak (2)": P, "cow: leak (3)": P, "cow": P}
    )
    after = result("full", "selftests", {"cow: leak": P, "cow: 2": S, "cow: leak (2)": P, "cow": P})
    troubles, notes = judge([before, after])
    assert troubles == []
    assert [note.what for note in notes] == ["cow: leak (2) is skipped, but passes on the baseline"]
    after = result("full", "selftests", {"cow: leak": P, "cow: 2": S, "cow": F})
    assert [trouble.what for trouble in judge([before, after])[0]] == [
        "cow fails",
        "cow: leak (2) has no result, but passes on the baseline",
        "cow: leak (3) has no result, but passes on the baseline",
    ]


def test_the_baseline_is_asked_again_for_what_fails_at_times() -> None:
    before = result("baseline", "selftests", {"ksm: merge": P, "ksm": P, "cow": P, "gup": F})
    after = result("full", "selftests-1", {"ksm: merge": F, "ksm": F, "cow": F, "gup": F})
    ours = result("full", "reservations", {"zeroed_pages": F})
    assert suspects([before, after, ours], {}) == {"selftests": {"ksm", "cow"}}
    again = replace(result("baseline", "selftests", {"ksm: merge": F, "ksm": F, "cow": P}), repetition=2)
    assert suspects([before, after, ours, again], {}) == {"selftests": {"cow"}}
    troubles, notes = judge([before, after, again])
    assert [trouble.what for trouble in troubles] == ["cow fails"]
    assert [note.what for note in notes] == [
        "ksm: merge fails, sometimes also on the baseline",
        "ksm fails, sometimes also on the baseline",
        "gup fails, also on the baseline",
    ]
    assert (again.cell, after.cell) == ("baseline.selftests.2", "full.selftests-1.1")


def test_at_threshold_1_nothing_may_be_skipped_either() -> None:
    before = result("baseline", "selftests", {"a": P, "b": P})
    after = result("full", "selftests-1", {"a": S})
    troubles, notes = judge([before, after])
    assert [each.what for each in troubles] == [
        "a is skipped, but passes on the baseline",
        "b has no result, but passes on the baseline",
    ]
    assert not notes


def test_what_the_threshold_is_to_change_is_only_worth_knowing() -> None:
    before = result("baseline", "selftests", {"khugepaged": P, "khugepaged: one": P, "cow": P})
    tests = {"khugepaged": F, "cow": F}
    troubles, notes = judge([before, result("full", "selftests", tests)], {"khugepaged*": "one is too few"})
    assert [each.what for each in troubles] == ["cow fails"]
    assert [each.what for each in notes] == [
        "khugepaged fails, as expected: one is too few",
        "khugepaged: one has no result, but passes on the baseline: one is too few",
    ]
    troubles, _ = judge([before, result("full", "selftests-1", tests)], {"khugepaged*": "one is too few"})
    assert len(troubles) == 3


def test_a_test_of_our_own_is_not_compared_with_the_baseline() -> None:
    before = result("baseline", "reservations", {"zeroed_pages": F})
    after = result("full", "reservations", {"zeroed_pages": F, "ksm": S})
    troubles, notes = judge([before, after])
    assert [each.what for each in troubles] == ["zeroed_pages fails"]
    assert not notes


def test_a_known_report_is_known_by_its_fingerprint_wherever_it_moved() -> None:
    known = replace(WARNING, fingerprint="warning: f")
    moved = replace(known, title="WARNING in f at mm/f.c:41")
    other = replace(known, fingerprint="warning: g")
    before, after = result("baseline", "stress", {}, (known,)), result("full", "stress", {}, (moved,))
    assert judge([before, after])[0] == []
    troubles, _ = judge([before, result("full", "stress", {}, (other,))])
    assert len(troubles) == 1


def test_tests_after_a_lockdep_report_are_noted_as_unchecked() -> None:
    cycle = replace(WARNING, kind="lockdep", fingerprint="lockdep: a, b", test="two")
    tests = dict.fromkeys(("one", "two", "three", "four"), Status.PASSED)
    _, notes = judge([result("full", "stress", tests, (cycle,))])
    assert [each.what for each in notes] == [
        "lockdep was off after its report: the locks of the 2 tests after two were not checked"
    ]


def test_reports_of_the_kernel_fail_it_unless_the_baseline_has_them() -> None:
    other = replace(
        WARNING, title="lockdep: possible circular locking dependency", fingerprint="lockdep: a, b"
    )
    before = result("baseline", "stress", {}, (WARNING,))
    after = result("full", "stress", {}, (WARNING, other))
    troubles, notes = judge([before, after])
    assert [each.what for each in troubles] == [f"{other.title} (1 x)"]
    assert [each.what for each in notes] == ["WARNING in f at mm/f.c:1 (1 x)"]
    # A report of another suite's guest is no excuse.
    troubles, _ = judge([replace_suite(before, "selftests"), after])
    assert len(troubles) == 2


def replace_suite(which: SuiteResult, suite: str) -> SuiteResult:
    return SuiteResult(which.patchset, SUITES[suite], which.found, which.outcome, "", which.findings)


def test_leaks_are_compared_by_who_allocated() -> None:
    clean, leaky = result("baseline", "stress", {}), result("baseline", "stress", {}, leak=True)
    after = result("full", "stress", {}, leak=True)
    troubles, _ = judge([clean, after])
    assert [each.what for each in troubles] == ["leak of 1 objects: kmalloc < thp_resv_alloc"]
    troubles, notes = judge([leaky, after])
    assert not troubles and len(notes) == 1


def test_a_guest_that_died_fails_it_whatever_it_had_passed() -> None:
    died = result("full", "reservations", {"a": P})
    died.outcome, died.evidence = Outcome.KERNEL_PANIC, "Kernel panic: Fatal exception"
    troubles, _ = judge([died])
    assert [(each.what, each.text) for each in troubles] == [
        ("ended as kernel-panic", "Kernel panic: Fatal exception")
    ]


def test_what_a_lost_guest_did_not_run_is_not_a_regression() -> None:
    before = result("baseline", "selftests", {"a": P, "b": F, "c": P})
    lost = result("full", "selftests", {"a": P, "b": F})
    lost.outcome, lost.evidence = Outcome.LOST, "QEMU was ended by signal 9"
    troubles, notes = judge([before, lost], only=["c"])
    assert [(each.what, each.is_lost) for each in troubles] == [("ended as lost", True)]
    assert [each.what for each in notes] == ["b fails, also on the baseline"]
    assert CorrectnessSummary(troubles=troubles).exit_status == 1
    failing = result("full", "reservations", {"a": F})
    assert CorrectnessSummary(troubles=judge([lost, failing])[0]).exit_status == 3


def test_a_baseline_that_was_lost_is_reported() -> None:
    lost = result("baseline", "selftests", {"a": P})
    lost.outcome, lost.evidence = Outcome.LOST, "QEMU was ended by signal 9"
    troubles, _ = judge([lost, result("full", "selftests", {"a": P})])
    assert [(each.where, each.text, each.is_lost) for each in troubles] == [
        ("baseline.selftests.1", "QEMU was ended by signal 9", True)
    ]


def test_a_suite_that_was_cut_short_fails_it_even_by_what_the_baseline_reports_too() -> None:
    before = result("baseline", "stress", {"vm": P}, (WARNING,))
    after = result("full", "stress", {"vm": P}, (WARNING,))
    assert judge([before, after])[0] == []
    for each in (before, after):
        each.outcome, each.found.complete = Outcome.KERNEL_BUG, False
    (trouble,), _ = judge([before, after])
    assert (trouble.where, trouble.what) == ("full.stress.1", "ended before all of its tests had run")


def test_a_test_that_no_suite_has_is_a_trouble() -> None:
    after = result("full", "reservations", {"ksm": P})
    assert judge([after], only=["ksm"])[0] == []
    (trouble,), _ = judge([after], only=["ksm", "kms"])
    assert trouble.what == "unknown test kms"


def test_suites_that_cannot_have_a_test_are_left_out() -> None:
    def names(*only: str) -> list[str]:
        return [suite.name for suite in having(tuple(SUITES.values()), only, ["cow", "ksm_tests"], ours)]

    ours = {"fork_twice": (True, False), "vmstat_names": (False, True)}
    assert names() == list(SUITES)
    assert names("cow") == ["selftests-1", "selftests"]
    assert names("vm") == ["stress", "stress-classic-swap"]
    assert names("vmstat_names") == ["reservations", "reservations-init"]
    assert names("fork_twice") == [
        "reservations",
        "reservations-swap",
        "reservations-classic",
        "reservations-classic-swap",
    ]


@pytest.mark.parametrize(
    ("suite", "only", "sentence"),
    [
        ("selftests", ["nonsense"], "--only nonsense: these suites have no such test; there are cow."),
        ("reservations", ["vmstat_name"], "--only vmstat_name: .*; did you mean vmstat_names?"),
        ("reservations-swap", ["vmstat_names"], "--only vmstat_names: .*; there are fork_twice."),
        ("reservations", ["fork_twice", "foo"], "--only foo: .*; there are fork_twice, vmstat_names."),
    ],
)
def test_a_test_that_no_suite_has_is_refused(suite: str, only: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        having(choose([suite]), only, ["cow"], {"fork_twice": (True, False), "vmstat_names": (False, True)})


def test_the_hostile_stress_runs_only_if_named_and_as_long_as_asked() -> None:
    assert "hostile" not in [suite.name for suite in choose(())]
    (hostile,) = choose(["hostile"])
    assert hostile.hostile_s == 600 and hostile.lasting(None) is hostile
    assert hostile.lasting(2).arguments[-2:] == ("--hostile", "120")
    assert hostile.lasting(30).timeout_s > 4 * 1800
    (other,) = choose(["reservations"])
    assert other.lasting(2) is other


def test_our_own_tests_are_known_without_a_guest(tmp_path: Path) -> None:
    """What the sources are read for is what the program itself lists."""
    program, common = tmp_path / "reservations", ROOT / "guest_workloads" / "common"
    sources = [*(ROOT / "vm_images" / "guest" / "tests").glob("*.c"), *common.glob("*.c")]
    flags = ["-std=gnu11", "-pthread", f"-I{common}", "-o", str(program)]
    subprocess.run(["gcc", *flags, *map(str, sources), "-lm"], check=True)

    def listed(*options: str) -> set[str]:
        done = subprocess.run([program, "--list", *options], capture_output=True, text=True, check=True)
        return {line.split("\t")[0] for line in done.stdout.splitlines()}

    known = reservation_tests(ROOT / "vm_images" / "guest" / "tests")
    assert set(known) == listed() | listed("--races")
    assert {name for name, (in_matrix, _) in known.items() if in_matrix} == listed("--matrix")
    assert {name for name, (_, is_quick) in known.items() if is_quick} == listed("--quick")


def test_each_suite_is_one_line_with_what_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = {("baseline", 1): (P, 60.0), ("full", 1): (F, 80.0), ("baseline", 2): (F, 5.0)}

    def run(result: SuiteResult, *_: object) -> None:
        status, result.total_s = ends[result.patchset, result.repetition]
        result.found.results.append(TestResult("vm", status, ""))
        result.outcome = Outcome.OK if status is P else Outcome.WORKLOAD_FAILED
        result.evidence = "" if status is P else "1 tests failed"

    monkeypatch.setattr(correctness_run, "_run", run)
    kernels = dict.fromkeys(
        ("full", "baseline"), KernelBuild(tmp_path, "6.12", "id", "gcc", (), 1.0, True, "digest")
    )
    monkeypatch.setattr(correctness_run, "prepare", lambda *_: kernels)
    kernel = KernelBuild(tmp_path, "6.12", "id", "gcc", (), 1.0, True, "digest")
    bench = SimpleNamespace(
        events=Events(PlainProgress()),
        durations=Durations(Cache(tmp_path / "cache")),
        flavour="debug-vm",
        accelerator=SimpleNamespace(name="tcg", record=MANIFEST.accelerator),
        selftest_plan=SimpleNamespace(different={}),
        kernel=lambda _: kernel,
    )
    asked = CorrectnessRequest("full", (SUITES["stress"],), Topology.parse("2x512M"))
    planned = tuple(planned_cell(patchset, suite) for patchset, suite in asked.cells())
    writer = RunWriter.create(tmp_path / "results", "test", manifest(kind=RunKind.TEST, cells=planned))
    execute(asked, cast(Any, bench), writer)
    # On a busy host a line follows that says how long the step took.
    assert capsys.readouterr().err.splitlines()[:4] == [
        "test: 2 suites, about 10 min (a guess)",
        "[1/2] stress baseline ok 60 s: 1 passed, 0 failed, 0 skipped, 0 reports, 0 leaks, about 60 s left",
        "[2/2] stress full workload-failed 80 s: 0 passed, 1 failed, 0 skipped, 0 reports, 0 leaks",
        "[3/3] stress baseline #2 workload-failed 5 s: 0 passed, 1 failed, 0 skipped, 0 reports, 0 leaks",
    ]


class Leaking:
    """A guest whose kmemleak finds something, or has given up."""

    def __init__(self, *, off: bool) -> None:
        self.off = off

    def run(self, argv: list[str], **_how: object) -> SimpleNamespace:
        scan = argv[0] == "sh"
        return SimpleNamespace(
            status=int(scan and self.off), stderr="sh: write error: Operation not permitted\n"
        )

    def read_text(self, path: str) -> str:
        return (
            ""
            if self.off
            else "unreferenced object 0xff (size 32):\n  backtrace:\n    [<00>] kmalloc+0x1/0x2\n"
        )


def test_a_kmemleak_that_is_switched_off_is_not_one_that_finds_nothing() -> None:
    leaks, fault = scan_for_leaks(cast(Guest, Leaking(off=False)), lambda _: None)
    assert [leak.signature for leak in leaks] == [("kmalloc",)] and fault == ""
    leaks, fault = scan_for_leaks(cast(Guest, Leaking(off=True)), lambda _: None)
    assert leaks == [] and fault.startswith("kmemleak is disabled") and "not permitted" in fault


def test_a_baseline_alone_is_judged_by_itself() -> None:
    troubles, _ = judge([result("baseline", "selftests", {"a": F}, (WARNING,))])
    assert [each.what for each in troubles] == ["a fails", "WARNING in f at mm/f.c:1 (1 x)"]


def test_the_baseline_runs_each_suite_once_and_first() -> None:
    suites = choose(["selftests", "selftests-1", "reservations"])
    asked = CorrectnessRequest("full", suites, Topology.parse("1x512M"))
    assert [(patchset, suite.name) for patchset, suite in asked.cells()] == [
        ("baseline", "reservations"),
        ("baseline", "selftests"),
        ("full", "reservations"),
        ("full", "selftests-1"),
        ("full", "selftests"),
    ]
    alone = CorrectnessRequest("full", choose(["selftests-1"]), Topology.parse("1x512M"))
    (baseline, suite), _ = alone.cells()
    assert (baseline, suite.name, suite.neutral) == ("baseline", "selftests", False)
    assert len(CorrectnessRequest("baseline", suites, Topology.parse("1x512M")).cells()) == 3


def test_an_unknown_suite_is_reported_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="--suite nonsense: unknown suite; there are reservations, "):
        choose(["nonsense"])


def test_a_selftest_is_its_tests_and_itself() -> None:
    test = Selftest("mremap_test", ("mremap_test",))
    lines = ["1..2", "ok 1 five", "not ok 2 six"]
    results = results_of_selftest(test, lines, "exit status 1")
    assert [(each.name, each.status) for each in results] == [
        ("mremap_test: five", P),
        ("mremap_test: six", F),
        ("mremap_test", F),
    ]
    assert [each.status for each in results_of_selftest(test, ["1..2", "ok 1 five"], "")] == [P, F]
    assert [each.status for each in results_of_selftest(test, ["no KSM"], "exit status 4")] == [S]
    assert [each.status for each in results_of_selftest(test, ["[PASS]"], "")] == [P]


def test_what_stress_ng_says_with_its_exit_status() -> None:
    assert result_of_stressor("vm", [], "").status is P
    failed = result_of_stressor("vm", ["stress-ng: fail:  [9] vm: detected 3 bit errors"], "exit status 2")
    assert failed.status is F and "3 bit errors" in failed.text
    assert result_of_stressor("numa", [], "exit status 4").status is S
    assert result_of_stressor("vm", [], "signal SIGKILL").status is F
    unknown = result_of_stressor("pageswap", ["stress-ng: unrecognized option '--pageswap'"], "exit status 1")
    assert unknown.status is S


def test_equal_leaks_are_counted_together() -> None:
    record = """unreferenced object 0xffff888{n} (size 96):
  comm "reservations", pid {n}, jiffies 42
  hex dump (first 32 bytes):
    00 01
  backtrace (crc 0):
    [<000000001a2b3c4d>] kmalloc_trace+0x2d/0x90
    thp_resv_alloc+0x33/0x200
"""
    other = record.replace("thp_resv_alloc", "elsewhere")
    leaks = parse_leaks(record.format(n=1) + record.format(n=2) + other.format(n=3))
    assert [(leak.signature, leak.count) for leak in leaks] == [
        (("kmalloc_trace", "thp_resv_alloc"), 2),
        (("kmalloc_trace", "elsewhere"), 1),
    ]
    assert leaks[0].text.startswith("unreferenced object 0xffff8881 ")
    assert parse_leaks("") == []


def test_the_list_of_selftests_is_sound(tmp_path: Path) -> None:
    plan = load_selftests(ROOT / "vm_images" / "guest" / "selftests.toml")
    names = [test.name for test in plan.tests]
    assert len(set(names)) == len(names)
    wanted = {"khugepaged", "cow", "split_huge_page_test", "transhuge-stress", "mremap_test", "madv_populate"}
    assert wanted | {"migration", "ksm_functional_tests"} <= set(names)
    broken = tmp_path / "selftests.toml"
    broken.write_text('packages = []\nflags = []\ndifferent = {}\n[[test]]\nname = "x"\n')
    with pytest.raises(UserError, match=r"selftests\.toml:4: test 1: argv: this key is missing"):
        load_selftests(broken)


def test_the_table_says_what_is_wrong_and_where() -> None:
    summary = CorrectnessSummary([result("full", "stress", {"vm": P, "fork": F})])
    summary.troubles, summary.notes = judge(summary.results)
    text = as_text(summary)
    assert "full    stress       1       1        0        0      0" in text
    assert "problems:\n  full.stress.1: fork fails\n      about fork" in text
    summary = CorrectnessSummary([result("full", "stress", {"vm": P})])
    assert as_text(summary).endswith("no regression, and no kernel report that the baseline does not have")


def test_every_test_of_our_own_has_a_stage_of_the_series_and_a_mistake(tmp_path: Path) -> None:
    """The program lists itself; a test of a stage that does not exist would never run."""
    from orchestrator.kernel.series import load_series

    program = tmp_path / "reservations"
    tests, common = ROOT / "vm_images" / "guest" / "tests", ROOT / "guest_workloads" / "common"
    subprocess.run(
        ["gcc", "-std=gnu11", "-O1", "-pthread", f"-I{common}", *tests.glob("*.c"), *common.glob("*.c"), "-lm",
         "-o", program],
        check=True,
    )  # fmt: skip
    listed = subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout
    rows = [line.split("\t") for line in listed.splitlines()]
    stages = {stage.name for stage in load_series(ROOT / "kernel_patches").stages}
    assert len(rows) > 60 and len({name for name, _, _ in rows}) == len(rows)
    assert all(stage in stages and mistake for _, stage, mistake in rows)
    documented = (ROOT / "docs" / "correctness.md").read_text(encoding="utf-8")
    assert [name for name, _, _ in rows if f"`{name}`" not in documented] == []
    matrix = subprocess.run(
        [program, "--list", "--matrix"], check=True, capture_output=True, text=True
    ).stdout
    assert 5 < len(matrix.splitlines()) < len(rows) and set(matrix.splitlines()) < set(listed.splitlines())
    assert subprocess.run([program, "--only", "nonsense"], capture_output=True, check=False).returncode == 2
