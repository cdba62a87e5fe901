# SPDX-License-Identifier: GPL-2.0-only
"""Judgement of a correctness test: suites on a patched kernel, compared with those on the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from fnmatch import fnmatch

from orchestrator.execution.correctness.suite import Leak
from orchestrator.execution.correctness.summary import SuiteResult, Trouble
from orchestrator.guest.ktap import Status, TestResult
from orchestrator.kernel.series import BASELINE
from orchestrator.store.outcome import Outcome


def judge(
    results: Sequence[SuiteResult], different: Mapping[str, str] | None = None, only: Sequence[str] = ()
) -> tuple[list[Trouble], list[Trouble]]:
    """Problems that fail a correctness test, and notes.

    Tests of this project fail by themselves. Kernel selftests and stress-ng only fail if the baseline passes them in
    all its boots. Reports of the kernel and leaks that the baseline has in the same suite are not problems.

    Args:
        different: see :class:`SelftestPlan`: tests that should have another result, if the suite is not strict.
        only: names of the requested tests; a test that is in no suite counts as a failure.
    """
    baseline = {
        result.suite.name: result
        for result in results
        if result.patchset == BASELINE and result.repetition == 1
    }
    patched = [result for result in results if result.patchset != BASELINE] or list(results)
    notes: list[Trouble] = []
    lost_baselines = [
        Trouble(result.cell, f"ended as {result.outcome.value}", result.evidence, is_lost=True)
        for result in baseline.values()
        if result.outcome is Outcome.LOST and result not in patched
    ]
    there = {test.name for result in patched for test in result.found.results}
    troubles = [Trouble("every suite", f"unknown test {name}") for name in only if name not in there]
    if any(result.outcome is Outcome.LOST for result in patched):
        troubles = []  # the test may be among those that did not run
    troubles += lost_baselines
    for result in patched:
        on_baseline = baseline.get(result.suite.baseline_suite or result.suite.name)
        if on_baseline is result:
            on_baseline = None
        is_lost = result.outcome is Outcome.LOST
        if result.outcome not in (Outcome.OK, Outcome.WORKLOAD_FAILED, Outcome.KERNEL_BUG):
            what = f"ended as {result.outcome.value}"
            troubles.append(Trouble(result.cell, what, result.evidence, is_lost))
        elif not result.found.complete:
            # Even if the baseline ends with the same report: the remaining tests did not run.
            troubles.append(Trouble(result.cell, "ended before all of its tests had run", result.evidence))
        troubles += [Trouble(result.cell, fault) for fault in result.found.faults]
        meant = {} if result.suite.strict else different or {}
        for trouble, is_note in _of_tests(result, on_baseline, meant, _failing_at_times(result, results)):
            (notes if is_note else troubles).append(trouble)
        known = {finding.fingerprint for finding in on_baseline.findings} if on_baseline else set()
        for finding in result.findings:
            during = f" during {finding.test}" if finding.test else ""
            said = Trouble(result.cell, f"{finding.title} ({finding.count} x){during}", finding.text)
            (notes if finding.fingerprint in known else troubles).append(said)
        notes += _of_lockdep(result)
        for leak, trouble in _of_leaks(result):
            (notes if on_baseline and leak in _signatures(on_baseline) else troubles).append(trouble)
    return troubles, notes


def _of_lockdep(result: SuiteResult) -> list[Trouble]:
    """A note if lockdep was off for a part of the suite."""
    last = next((finding for finding in result.findings if finding.ends_lockdep), None)
    if last is None:
        return []
    tests = [test.name for test in result.found.results]
    begins = next((at for at, name in enumerate(tests) if name.partition(": ")[0] == last.test), None)
    which = "later tests" if begins is None else f"the {len(tests) - begins - 1} tests after {last.test}"
    return [Trouble(result.cell, f"lockdep was off after its report: the locks of {which} were not checked")]


def _failing_at_times(result: SuiteResult, results: Sequence[SuiteResult]) -> set[str]:
    """The tests that failed in the extra boots of the baseline."""
    return {
        test.name
        for other in results
        if other.patchset == BASELINE
        and other.repetition > 1
        and _baseline_suite(other) == _baseline_suite(result)
        for test in other.found.results
        if test.status is Status.FAILED
    }


def _baseline_suite(result: SuiteResult) -> str:
    return result.suite.baseline_suite or result.suite.name


def suspects(results: Sequence[SuiteResult], different: Mapping[str, str]) -> dict[str, set[str]]:
    """Per baseline suite, the programs that fail with the series and passed on the baseline; without our own tests."""
    found: dict[str, set[str]] = {}
    before = {r.suite.name: r for r in results if r.patchset == BASELINE and r.repetition == 1}
    for result in results:
        on_baseline = before.get(_baseline_suite(result))
        if result.patchset == BASELINE or result.suite.is_own or on_baseline is None:
            continue
        at_times = _failing_at_times(result, results)
        for test, known in _paired(result.found.results, on_baseline.found.results):
            if test is None or test.status is not Status.FAILED or test.name in at_times:
                continue
            meant = not result.suite.strict and any(fnmatch(test.name, pattern) for pattern in different)
            if not meant and known is not None and known.status is not Status.FAILED:
                found.setdefault(_baseline_suite(result), set()).add(test.name.partition(": ")[0])
    return found


def _of_tests(
    result: SuiteResult,
    on_baseline: SuiteResult | None,
    different: Mapping[str, str],
    at_times: Set[str] = frozenset(),
) -> list[tuple[Trouble, bool]]:
    """Problems with tests, each with whether it is not a regression."""
    own = result.suite.is_own
    said: list[tuple[Trouble, bool]] = []

    def meant(name: str) -> str | None:
        return next((why for pattern, why in different.items() if not own and fnmatch(name, pattern)), None)

    for test, before in _paired(result.found.results, on_baseline.found.results if on_baseline else ()):
        passed_before = not own and before is not None and before.status is Status.PASSED
        if test is None:
            assert before is not None
            # Ignore tests that did not run because the guest was lost.
            if passed_before and result.outcome is not Outcome.LOST:
                what, why = f"{before.name} has no result, but passes on the baseline", meant(before.name)
                said.append((Trouble(result.cell, f"{what}: {why}" if why else what), bool(why)))
        elif test.status is Status.FAILED and meant(test.name):
            what = f"{test.name} fails, as expected: {meant(test.name)}"
            said.append((Trouble(result.cell, what, test.text), True))
        elif test.status is Status.FAILED:
            known = not own and before is not None and before.status is Status.FAILED
            # Without a baseline, it is unknown whether the test failed before.
            how = (
                ", also on the baseline"
                if known
                else ", sometimes also on the baseline"
                if test.name in at_times
                else ""
            )
            said.append((Trouble(result.cell, f"{test.name} fails{how}", test.text), bool(how)))
        elif test.status is Status.SKIPPED and passed_before:
            assert before is not None
            what = f"{before.name} is skipped, but passes on the baseline"
            said.append((Trouble(result.cell, what, test.text), not result.suite.strict))
    return said


def _paired(
    results: Sequence[TestResult], before: Sequence[TestResult]
) -> Iterator[tuple[TestResult | None, TestResult | None]]:
    """Pair each test with its result on the baseline; None if one of the two is missing.

    Skipped selftests print only their number, and names of selftests are not unique. So if a program has as many
    results as on the baseline, they are paired by order.
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
        return " < ".join(leak.signature[:6]) or "no backtrace"

    return [
        (leak.signature, Trouble(result.cell, f"leak of {leak.count} objects: {where(leak)}", leak.text))
        for leak in result.found.leaks
    ]
