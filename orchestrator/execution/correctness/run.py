# SPDX-License-Identifier: GPL-2.0-only
"""Execution of a correctness test: suites on a patched kernel and on the baseline, stored in a run directory."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from orchestrator.execution.bench import Bench
from orchestrator.execution.correctness.judgement import judge, suspects
from orchestrator.execution.correctness.report import SUMMARY
from orchestrator.execution.correctness.request import CMDLINE, METRICS, CorrectnessRequest, planned_cell
from orchestrator.execution.correctness.suite import Kind, Suite, SuiteRun
from orchestrator.execution.correctness.summary import CorrectnessSummary, SuiteResult
from orchestrator.execution.countdown import Countdown, line_of
from orchestrator.execution.driver import prepare
from orchestrator.execution.ending import GuestEnded
from orchestrator.guest.ktap import Status
from orchestrator.guest.selftests import Selftest, SelftestPlan, Selftests, selftests_artefact
from orchestrator.kernel.build import BuildFailed, KernelBuild
from orchestrator.kernel.series import BASELINE
from orchestrator.machine.oops import Finding
from orchestrator.store.observation import Observation
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import CellRow, RunWriter

#: Extra baseline boots for tests that fail only with the series, to tell flaky tests from regressions.
_MORE_YARDSTICKS: Final = 6
#: File in the log directory of a suite: its results.
_RESULT: Final = "suite.json"


def execute(test: CorrectnessRequest, bench: Bench, writer: RunWriter) -> CorrectnessSummary:
    """Run each suite in a separate guest. Failures of the kernel are results, never exceptions.

    Raises:
        UserError: a patch does not apply, a requested option is missing, or the guest rejects a setting.
        InfrastructureError: the host failed; results so far are kept.
    """
    summary = CorrectnessSummary()
    plan = bench.selftest_plan
    try:
        kernels = prepare(
            writer,
            bench,
            [patchset for patchset, _ in test.cells()],
            {suite.name: suite.layers for _, suite in test.cells()},
        )
        with bench.events.step("test") as step:
            done = {
                cell: kept
                for cell, kept in ((cell, _restored(*cell, 1, writer)) for cell in test.cells())
                if kept is not None
            }
            kinds = [
                _kind(suite, test, bench) for patchset, suite in test.cells() if (patchset, suite) not in done
            ]
            countdown = Countdown(step, bench.durations, kinds, "suites")
            for patchset, suite in test.cells():
                if (patchset, suite) in done:
                    summary.results.append(done[patchset, suite])
                    continue
                result = SuiteResult(patchset, suite)
                summary.results.append(result)
                kernel = kernels[patchset]
                if isinstance(kernel, BuildFailed):
                    result.outcome, result.evidence = Outcome.BUILD_FAILED, str(kernel)
                else:
                    _run(result, test, kernel, bench, plan, writer.cell_directory(result.cell))
                _keep(result, writer)
                _tell(result, test, bench, countdown)
            if isinstance(baseline := kernels.get(BASELINE), KernelBuild):
                _ask_again(summary, test, baseline, bench, plan, writer, countdown)
        return summary
    finally:
        summary.troubles, summary.notes = judge(summary.results, plan.different, test.only)
        writer.write_json(SUMMARY, summary.to_json())
        writer.finish()


def _run(
    result: SuiteResult,
    test: CorrectnessRequest,
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
    applied = bench.series.select(result.patchset)
    stages = [stage.name for stage in applied]
    neutral = bench.series.neutral_values(applied)
    with bench.events.step(f"test {suite.name}", result.patchset, part=True) as step:
        try:
            with bench.boot(
                kernel,
                test.topology,
                log_directory=logs,
                cmdline=[*CMDLINE, *suite.cmdline, *test.cmdline],
                layers=suite.layers,
                gdb=suite.kind is Kind.RACES,
                counts=_is_no_leak,
            ) as booted:
                result.boot_s = booted.boot_s
                booted.machine.end_after_oops()
                started = time.monotonic()
                try:
                    SuiteRun(
                        suite,
                        booted,
                        stages,
                        neutral,
                        test.only,
                        logs,
                        result.found,
                        step,
                        selftests,
                        kernel.vmlinux,
                    ).run()
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


def _kind(suite: Suite, test: CorrectnessRequest, bench: Bench) -> str:
    """The key for the duration of a suite."""
    only = f" only {','.join(test.only)}" if test.only else ""
    return f"suite {suite.name} {bench.flavour} {bench.accelerator.name} {test.topology.text}{only}"


def _tell(result: SuiteResult, test: CorrectnessRequest, bench: Bench, countdown: Countdown) -> None:
    """Report how a suite ended."""
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
    test: CorrectnessRequest,
    kernel: KernelBuild,
    bench: Bench,
    plan: SelftestPlan,
    writer: RunWriter,
    countdown: Countdown,
) -> None:
    """Repeat tests that fail with the series on the baseline, until they fail there too or have passed often enough."""
    for repetition in range(2, 2 + _MORE_YARDSTICKS):
        tests = []
        for name, programs in suspects(summary.results, plan.different).items():
            suite = next(r.suite for r in summary.results if r.patchset == BASELINE and r.suite.name == name)
            again = replace(test, only=tuple(sorted(programs)))
            kept = _restored(BASELINE, suite, repetition, writer)
            tests.append((suite, again, kept))
            if kept is None:
                countdown.add(_kind(suite, again, bench))
        for suite, again, kept in tests:
            writer.plan(planned_cell(BASELINE, suite, repetition))
            if kept is not None:
                summary.results.append(kept)
                continue
            result = SuiteResult(BASELINE, suite, repetition=repetition)
            summary.results.append(result)
            _run(result, again, kernel, bench, plan, writer.cell_directory(result.cell))
            _keep(result, writer)
            _tell(result, again, bench, countdown)


def _is_no_leak(finding: Finding) -> bool:
    """Whether a finding is not kmemleak's summary on the console; leaks are compared individually instead."""
    return finding.kind != "kmemleak"


def _restored(patchset: str, suite: Suite, repetition: int, writer: RunWriter) -> SuiteResult | None:
    """The result of an earlier attempt, if the suite ran to its end."""
    cell = planned_cell(patchset, suite, repetition).cell
    kept = writer.path / "logs" / cell / _RESULT
    if not kept.is_file() or not writer.has_ended(cell):
        return None
    result = SuiteResult.of_json(suite, json.loads(kept.read_text(encoding="utf-8")))
    return result if result.is_final else None


def _keep(result: SuiteResult, writer: RunWriter) -> None:
    text = json.dumps(result.to_json(), indent=2) + "\n"
    (writer.cell_directory(result.cell) / _RESULT).write_text(text, encoding="utf-8")
    writer.record(*_row(result))


def _row(result: SuiteResult) -> tuple[CellRow, list[Observation]]:
    row = CellRow(
        planned_cell(result.patchset, result.suite, result.repetition),
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
    return row, [Observation(metric, METRICS[metric].unit, value) for metric, value in counted.items()]
