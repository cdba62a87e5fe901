# SPDX-License-Identifier: GPL-2.0-only
"""A test of correctness as a run: suites on a patched kernel and on its baseline, compared, kept in a run directory."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from orchestrator.defaults import TEST_TOPOLOGY
from orchestrator.execution.bench import Bench
from orchestrator.execution.correctness import Found, Kind, Leak, Suite, SuiteRun
from orchestrator.execution.countdown import Countdown, line_of
from orchestrator.execution.ending import GuestEnded
from orchestrator.execution.provenance import begin, built, keep_build_log, variant_record
from orchestrator.experiment.variant import Variant
from orchestrator.guest.ktap import Status, TestResult
from orchestrator.guest.selftests import Selftest, SelftestPlan, Selftests, selftests_artefact
from orchestrator.kernel.build import BuildFailed, KernelBuild
from orchestrator.kernel.series import BASELINE
from orchestrator.machine.oops import Finding
from orchestrator.machine.topology import Topology
from orchestrator.store.manifest import Manifest, PlannedCell, Role, RunKind, WorkloadRecord
from orchestrator.store.observation import Metric, Observation
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import CellRow, RunWriter

#: Two nodes, small enough to fill; a quarter of it movable, so that memory can be taken offline.
DEFAULT_TOPOLOGY: Final = TEST_TOPOLOGY
#: Extra baseline boots for tests that fail only with the series, to tell flaky tests from regressions.
_MORE_YARDSTICKS: Final = 6
#: For every guest; what a kernel's configuration does not have ignores its word.
_CMDLINE: Final = ("movablecore=25%", "cma=64M", "page_poison=1")
_METRICS: Final = {
    metric.name: metric
    for metric in (
        Metric("passed_tests.total", "tests", None, help="Tests that passed."),
        Metric("failed_tests.total", "tests", "lower", help="Tests that failed."),
        Metric("skipped_tests.total", "tests", None, help="Tests that could not run."),
        Metric(
            "kernel_reports.total",
            "reports",
            "lower",
            help="Different reports of the kernel: oops, WARNING, KASAN, lockdep.",
        ),
        Metric("leaks.total", "objects", "lower", help="Objects that kmemleak reported."),
    )
}


@dataclass(frozen=True)
class CorrectnessTest:
    """What is asked for.

    Args:
        only: names of tests; all where empty.
        compare: run the suites' yardsticks on the baseline.
    """

    patchset: str
    suites: tuple[Suite, ...]
    topology: Topology
    only: tuple[str, ...] = ()
    cmdline: tuple[str, ...] = ()
    compare: bool = True

    def cells(self) -> list[tuple[str, Suite]]:
        """Patchset and suite of each guest, the baseline's first: what they show is known to be no regression."""
        cells = []
        if self.compare and self.patchset != BASELINE:
            yardsticks = {
                suite.yardstick or suite.name: suite for suite in self.suites if not suite.yardstick
            }
            missing = [
                suite for suite in self.suites if suite.yardstick and suite.yardstick not in yardsticks
            ]
            for suite in missing:
                # The baseline has no threshold: with another one it is the same suite.
                yardsticks.setdefault(suite.yardstick, _without_threshold(suite))
            cells += [(BASELINE, suite) for suite in yardsticks.values()]
        return [*cells, *((self.patchset, suite) for suite in self.suites)]


@dataclass
class SuiteResult:
    """How one suite ended in one guest.

    Args:
        evidence: why it has no better outcome; empty where it is ok.
        findings: what the kernel reported, without leaks.
        boot_s, run_s: host seconds.
        repetition: more than 1 for an extra boot of the baseline.
    """

    patchset: str
    suite: Suite
    found: Found = field(default_factory=Found)
    outcome: Outcome = Outcome.LOST
    evidence: str = "no end was recorded"
    findings: Sequence[Finding] = ()
    boot_s: float | None = None
    run_s: float | None = None
    total_s: float = 0.0
    started_utc: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    repetition: int = 1

    @property
    def cell(self) -> str:
        """Its name in the run."""
        return _cell(self.patchset, self.suite, self.repetition)


@dataclass(frozen=True)
class Trouble:
    """Something for which a test of correctness fails.

    Args:
        where: a cell.
        what: one line.
        text: the words of the test or the kernel.
        is_lost: whether the host or the tool is to blame, not the kernel.
    """

    where: str
    what: str
    text: str = ""
    is_lost: bool = False


@dataclass
class CorrectnessSummary:
    """How a test of correctness went.

    Args:
        results: of the guests that were run, in their order.
        troubles: what it fails for.
        notes: what differs from the baseline and is no regression.
    """

    results: list[SuiteResult] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    notes: list[Trouble] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """3 if a test regressed or the kernel reported a problem, 1 if guests were lost and nothing else is wrong."""
        return max((1 if trouble.is_lost else 3 for trouble in self.troubles), default=0)

    def to_json(self) -> dict[str, Any]:
        """For ``--json`` and ``correctness.json``."""
        return {
            "suites": [
                {
                    "cell": result.cell,
                    "patchset": result.patchset,
                    "suite": result.suite.name,
                    "outcome": result.outcome.value,
                    "evidence": result.evidence,
                    "boot_s": result.boot_s,
                    "run_s": result.run_s,
                    "tests": [
                        {"name": test.name, "status": test.status.value, "text": test.text}
                        for test in result.found.results
                    ],
                    "faults": list(result.found.faults),
                    "reports": [
                        {
                            "title": finding.title,
                            "line": finding.line,
                            "count": finding.count,
                            "text": finding.text,
                        }
                        for finding in result.findings
                    ],
                    "leaks": [asdict(leak) for leak in result.found.leaks],
                }
                for result in self.results
            ],
            "troubles": [asdict(trouble) for trouble in self.troubles],
            "notes": [asdict(note) for note in self.notes],
        }


def manifest_of(test: CorrectnessTest, bench: Bench, command: Sequence[str]) -> Manifest:
    """What ``run.json`` says before anything slow starts."""
    cells = test.cells()
    cmdline = (*_CMDLINE, *test.cmdline)
    return begin(
        RunKind.TEST,
        f"test-{test.patchset}",
        bench,
        test.topology,
        command,
        variants=[
            variant_record(Variant(patchset, _role(patchset), patchset, cmdline=cmdline), bench)
            for patchset in dict.fromkeys(patchset for patchset, _ in cells)
        ],
        workloads={suite.name: WorkloadRecord(title=suite.title, metrics=_METRICS) for _, suite in cells},
        cells=[_planned(patchset, suite) for patchset, suite in cells],
    )


def execute(test: CorrectnessTest, bench: Bench, writer: RunWriter) -> CorrectnessSummary:
    """Run every suite in a guest of its own; what a kernel does wrong is a value, never an exception.

    Raises:
        UserError: a patch does not apply, an option vanished, the guest refuses a setting.
        InfrastructureError: the host failed; what was found until then is kept.
    """
    summary = CorrectnessSummary()
    plan = bench.selftest_plan
    try:
        writer.update_manifest(accelerator=bench.accelerator.record)
        kernels: dict[str, KernelBuild | BuildFailed] = {}
        for patchset in dict.fromkeys(patchset for patchset, _ in test.cells()):
            try:
                kernels[patchset] = bench.kernel(patchset)
            except BuildFailed as error:
                kernels[patchset] = error
            keep_build_log(writer.path, patchset, kernels[patchset])
        writer.update_manifest(
            variants=tuple(
                built(variant, kernel, bench)
                if isinstance(kernel := kernels[variant.patchset], KernelBuild)
                else variant
                for variant in writer.manifest.variants
            )
        )
        with bench.events.step("test") as step:
            kinds = [_kind(suite, test, bench) for _, suite in test.cells()]
            countdown = Countdown(step, bench.durations, kinds, "suites")
            for patchset, suite in test.cells():
                result = SuiteResult(patchset, suite)
                summary.results.append(result)
                kernel = kernels[patchset]
                if isinstance(kernel, BuildFailed):
                    result.outcome, result.evidence = Outcome.BUILD_FAILED, str(kernel)
                else:
                    _run(result, test, kernel, bench, plan, writer.cell_directory(result.cell))
                writer.record(*_row(result))
                _tell(result, test, bench, countdown)
            if isinstance(stock := kernels.get(BASELINE), KernelBuild):
                _ask_again(summary, test, stock, bench, plan, writer, countdown)
        return summary
    finally:
        summary.troubles, summary.notes = judge(summary.results, plan.different, test.only)
        text = json.dumps(summary.to_json(), indent=2) + "\n"
        (writer.path / "correctness.json").write_text(text, encoding="utf-8")
        writer.finish()


def judge(
    results: Sequence[SuiteResult], different: Mapping[str, str] | None = None, only: Sequence[str] = ()
) -> tuple[list[Trouble], list[Trouble]]:
    """What a test of correctness fails for, and what is only worth knowing.

    A test of our own fails by itself. The kernel's own tests, and stress-ng's, are compared with what the baseline
    passes each time that it is asked. A report of the kernel or a leak that the baseline has in the same suite is not
    the series' doing.

    Args:
        different: of :class:`SelftestPlan`; what is meant to end otherwise, where the suite is not strict.
        only: the tests that were asked for by name; one that no suite has is as bad as one that fails.
    """
    baseline = {
        result.suite.name: result
        for result in results
        if result.patchset == BASELINE and result.repetition == 1
    }
    patched = [result for result in results if result.patchset != BASELINE] or list(results)
    notes: list[Trouble] = []
    lost_yardsticks = [
        Trouble(result.cell, f"ended as {result.outcome.value}", result.evidence, is_lost=True)
        for result in baseline.values()
        if result.outcome is Outcome.LOST and result not in patched
    ]
    there = {test.name for result in patched for test in result.found.results}
    troubles = [Trouble("every suite", f"there is no test {name}") for name in only if name not in there]
    if any(result.outcome is Outcome.LOST for result in patched):
        troubles = []  # it may be among those that were not run
    troubles += lost_yardsticks
    for result in patched:
        yardstick = baseline.get(result.suite.yardstick or result.suite.name)
        if yardstick is result:
            yardstick = None
        is_lost = result.outcome is Outcome.LOST
        if result.outcome not in (Outcome.OK, Outcome.WORKLOAD_FAILED, Outcome.KERNEL_BUG):
            what = f"ended as {result.outcome.value}"
            troubles.append(Trouble(result.cell, what, result.evidence, is_lost))
        elif not result.found.complete:
            # Even where the baseline ends by the same report: what was not run is not known to be as good.
            troubles.append(Trouble(result.cell, "ended before all of its tests were run", result.evidence))
        troubles += [Trouble(result.cell, fault) for fault in result.found.faults]
        meant = {} if result.suite.strict else different or {}
        for trouble, is_note in _of_tests(result, yardstick, meant, _failing_at_times(result, results)):
            (notes if is_note else troubles).append(trouble)
        known = {finding.title for finding in yardstick.findings} if yardstick else set()
        for finding in result.findings:
            said = Trouble(result.cell, f"{finding.title} ({finding.count} x)", finding.text)
            (notes if finding.title in known else troubles).append(said)
        for leak, trouble in _of_leaks(result):
            (notes if yardstick and leak in _signatures(yardstick) else troubles).append(trouble)
    return troubles, notes


def _failing_at_times(result: SuiteResult, results: Sequence[SuiteResult]) -> set[str]:
    """The tests that failed in the extra boots of the baseline."""
    return {
        test.name
        for other in results
        if other.patchset == BASELINE and other.repetition > 1 and _yardstick(other) == _yardstick(result)
        for test in other.found.results
        if test.status is Status.FAILED
    }


def _yardstick(result: SuiteResult) -> str:
    return result.suite.yardstick or result.suite.name


def suspects(results: Sequence[SuiteResult], different: Mapping[str, str]) -> dict[str, set[str]]:
    """By yardstick the programs that fail with the series and have not failed on the baseline; not our own."""
    found: dict[str, set[str]] = {}
    before = {r.suite.name: r for r in results if r.patchset == BASELINE and r.repetition == 1}
    for result in results:
        yardstick = before.get(_yardstick(result))
        if result.patchset == BASELINE or result.suite.kind is Kind.RESERVATIONS or yardstick is None:
            continue
        at_times = _failing_at_times(result, results)
        for test, known in _paired(result.found.results, yardstick.found.results):
            if test is None or test.status is not Status.FAILED or test.name in at_times:
                continue
            meant = not result.suite.strict and any(fnmatch(test.name, pattern) for pattern in different)
            if not meant and known is not None and known.status is not Status.FAILED:
                found.setdefault(_yardstick(result), set()).add(test.name.partition(": ")[0])
    return found


def _of_tests(
    result: SuiteResult,
    yardstick: SuiteResult | None,
    different: Mapping[str, str],
    at_times: Set[str] = frozenset(),
) -> list[tuple[Trouble, bool]]:
    """Troubles with tests; with each whether it is no regression."""
    own = result.suite.kind is Kind.RESERVATIONS
    said: list[tuple[Trouble, bool]] = []

    def meant(name: str) -> str | None:
        return next((why for pattern, why in different.items() if not own and fnmatch(name, pattern)), None)

    for test, before in _paired(result.found.results, yardstick.found.results if yardstick else ()):
        passed_before = not own and before is not None and before.status is Status.PASSED
        if test is None:
            assert before is not None
            # What a lost guest did not come to says nothing.
            if passed_before and result.outcome is not Outcome.LOST:
                what, why = f"{before.name} has no result, and passes on the baseline", meant(before.name)
                said.append((Trouble(result.cell, f"{what}: {why}" if why else what), bool(why)))
        elif test.status is Status.FAILED and meant(test.name):
            what = f"{test.name} fails, as it has to: {meant(test.name)}"
            said.append((Trouble(result.cell, what, test.text), True))
        elif test.status is Status.FAILED:
            known = not own and before is not None and before.status is Status.FAILED
            # Without a yardstick there is nothing that could have been so before.
            how = (
                ", on the baseline as well"
                if known
                else ", on the baseline at times"
                if test.name in at_times
                else ""
            )
            said.append((Trouble(result.cell, f"{test.name} fails{how}", test.text), bool(how)))
        elif test.status is Status.SKIPPED and passed_before:
            assert before is not None
            what = f"{before.name} is skipped, and passes on the baseline"
            said.append((Trouble(result.cell, what, test.text), not result.suite.strict))
    return said


def _paired(
    results: Sequence[TestResult], before: Sequence[TestResult]
) -> Iterator[tuple[TestResult | None, TestResult | None]]:
    """Each test with what it was on the baseline; None where it is missing.

    A selftest that is skipped says its number and not its name, and the names of the others are not unique. So where
    a program has as many results as on the baseline, they are paired by their order.
    """
    mine, theirs = _by_program(results), _by_program(before)
    for program in dict.fromkeys([*mine, *theirs]):
        tests, others = mine.get(program, []), theirs.get(program, [])
        if len(tests) == len(others):
            yield from zip(tests, others, strict=True)
            continue
        known = {other.name: other for other in others}
        for test in tests:
            yield test, known.pop(test.name, None)
        for other in known.values():
            yield None, other


def _by_program(results: Sequence[TestResult]) -> dict[str, list[TestResult]]:
    programs: dict[str, list[TestResult]] = {}
    for result in results:
        programs.setdefault(result.name.partition(": ")[0], []).append(result)
    return programs


def _signatures(result: SuiteResult) -> set[tuple[str, ...]]:
    return {leak.signature for leak in result.found.leaks}


def _of_leaks(result: SuiteResult) -> list[tuple[tuple[str, ...], Trouble]]:
    def where(leak: Leak) -> str:
        return " < ".join(leak.signature[:6]) or "without a trace"

    return [
        (leak.signature, Trouble(result.cell, f"leak of {leak.count} objects: {where(leak)}", leak.text))
        for leak in result.found.leaks
    ]


def _run(
    result: SuiteResult,
    test: CorrectnessTest,
    kernel: KernelBuild,
    bench: Bench,
    plan: SelftestPlan,
    logs: Path,
) -> None:
    suite = result.suite
    began = time.monotonic()
    selftests: tuple[Sequence[Selftest], Selftests] | None = None
    if suite.kind is Kind.SELFTESTS:
        selftests = (
            plan.tests,
            selftests_artefact(bench.tree(result.patchset), plan, bench.cache, bench.events).obtain(),
        )
    stages = [stage.name for stage in bench.series.select(result.patchset)]
    with bench.events.step(f"test {suite.name}", result.patchset, part=True) as step:
        try:
            with bench.boot(
                kernel,
                test.topology,
                log_directory=logs,
                cmdline=[*_CMDLINE, *suite.cmdline, *test.cmdline],
                layers=suite.layers,
                counts=_is_no_leak,
            ) as booted:
                result.boot_s = booted.boot_s
                booted.machine.end_after_oops()
                started = time.monotonic()
                try:
                    SuiteRun(suite, booted, stages, test.only, logs, result.found, step, selftests).run()
                finally:
                    result.run_s = time.monotonic() - started
                ending = booted.ending()
        except GuestEnded as error:
            ending = error.ending
        result.outcome, result.evidence, result.findings = ending.outcome, ending.evidence, ending.findings
        bad = result.found.count(Status.FAILED)
        if ending.is_ok and (bad or result.found.faults):
            result.outcome = Outcome.WORKLOAD_FAILED
            result.evidence = f"{bad} tests failed" + "".join(f"; {each}" for each in result.found.faults)
        result.total_s = time.monotonic() - began


def _kind(suite: Suite, test: CorrectnessTest, bench: Bench) -> str:
    """What the duration of a suite depends on."""
    only = f" only {','.join(test.only)}" if test.only else ""
    return f"suite {suite.name} {bench.flavour} {bench.accelerator.name} {test.topology.text}{only}"


def _tell(result: SuiteResult, test: CorrectnessTest, bench: Bench, countdown: Countdown) -> None:
    """Say how a suite ended."""
    found = result.found
    counts = (
        f"{found.count(Status.PASSED)} passed, {found.count(Status.FAILED)} failed, "
        f"{found.count(Status.SKIPPED)} skipped, {len(result.findings)} reports, {len(found.leaks)} leaks"
    )
    reason = result.evidence if result.outcome is Outcome.BUILD_FAILED else counts
    again = f" #{result.repetition}" if result.repetition > 1 else ""
    name = f"{result.suite.name} {result.patchset}{again}"
    typical_s = result.total_s if result.outcome in (Outcome.OK, Outcome.WORKLOAD_FAILED) else None
    line = line_of(name, result.outcome.value, result.total_s, reason)
    countdown.ended(_kind(result.suite, test, bench), line, typical_s)


def _ask_again(
    summary: CorrectnessSummary,
    test: CorrectnessTest,
    kernel: KernelBuild,
    bench: Bench,
    plan: SelftestPlan,
    writer: RunWriter,
    countdown: Countdown,
) -> None:
    """Run what fails with the series on the baseline again, until it has failed there too or often enough not."""
    for repetition in range(2, 2 + _MORE_YARDSTICKS):
        tests = []
        for name, programs in suspects(summary.results, plan.different).items():
            suite = next(r.suite for r in summary.results if r.patchset == BASELINE and r.suite.name == name)
            again = replace(test, only=tuple(sorted(programs)))
            tests.append((suite, again))
            countdown.add(_kind(suite, again, bench))
        for suite, again in tests:
            result = SuiteResult(BASELINE, suite, repetition=repetition)
            summary.results.append(result)
            writer.plan(_planned(BASELINE, suite, repetition))
            _run(result, again, kernel, bench, plan, writer.cell_directory(result.cell))
            writer.record(*_row(result))
            _tell(result, again, bench, countdown)


def _is_no_leak(finding: Finding) -> bool:
    """kmemleak's own line on the console says only that there are some: which, is compared one by one."""
    return not finding.title.startswith("kmemleak: suspected")


def _row(result: SuiteResult) -> tuple[CellRow, list[Observation]]:
    row = CellRow(
        _planned(result.patchset, result.suite, result.repetition),
        outcome=result.outcome,
        evidence=result.evidence,
        boot_s=result.boot_s,
        run_s=result.run_s,
        total_s=result.total_s,
        started_utc=result.started_utc,
    )
    counted: Mapping[str, float] = {
        "passed_tests.total": result.found.count(Status.PASSED),
        "failed_tests.total": result.found.count(Status.FAILED),
        "skipped_tests.total": result.found.count(Status.SKIPPED),
        "kernel_reports.total": len(result.findings),
        "leaks.total": sum(leak.count for leak in result.found.leaks),
    }
    return row, [Observation(metric, _METRICS[metric].unit, value) for metric, value in counted.items()]


def _without_threshold(suite: Suite) -> Suite:
    return Suite(
        suite.yardstick, suite.kind, suite.title, suite.lru_gen, suite.swap, None, "", suite.arguments
    )


def _role(patchset: str) -> Role:
    return Role.BASELINE if patchset == BASELINE else Role.PATCHED


def _planned(patchset: str, suite: Suite, repetition: int = 1) -> PlannedCell:
    return PlannedCell(
        cell=_cell(patchset, suite, repetition),
        variant=patchset,
        role=_role(patchset),
        workload=suite.name,
        repetition=repetition,
        seed=0,
    )


def _cell(patchset: str, suite: Suite, repetition: int = 1) -> str:
    return f"{patchset}.{suite.name}.{repetition}"
