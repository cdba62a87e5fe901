# SPDX-License-Identifier: GPL-2.0-only
"""KTAP, version 1: the kernel's format for test results (Documentation/dev-tools/ktap.rst)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from orchestrator.analysis.export.check import Check, CheckStatus

#: Statuses that are "ok" in KTAP; a skipped test has a directive after its name.
_GOOD: Final = (CheckStatus.PASSED, CheckStatus.SKIPPED)


def to_ktap(run: str, checks: Sequence[Check]) -> str:
    """`checks` as KTAP: one test per workload with its checks as subtests, and evidence as diagnostic lines.

    Args:
        run: name of the run, for the first diagnostic line.
    """
    suites: dict[str, list[Check]] = {}
    for check in checks:
        suites.setdefault(check.suite, []).append(check)
    lines = ["KTAP version 1", f"# {run}", f"1..{len(suites)}"]
    for number, (suite, members) in enumerate(suites.items(), 1):
        lines += [f"  {line}" for line in _subtests(suite, members)]
        passed = all(check.status in _GOOD for check in members)
        lines.append(_result(passed, number, suite))
    return "\n".join(lines) + "\n"


def _subtests(suite: str, checks: Sequence[Check]) -> Iterator[str]:
    yield "KTAP version 1"
    yield f"# Subtest: {suite}"
    yield f"1..{len(checks)}"
    for number, check in enumerate(checks, 1):
        for line in check.text.splitlines():
            yield f"# {line}"
        why = "" if check.status is CheckStatus.PASSED else check.kind
        if check.status is CheckStatus.SKIPPED:
            why = f"SKIP {why}"
        yield _result(check.status in _GOOD, number, check.name, why)


def _result(passed: bool, number: int, name: str, why: str = "") -> str:
    # A "#" in a description would start a directive.
    described = " ".join(name.replace("#", "_").split())
    return f"{'ok' if passed else 'not ok'} {number} {described}{f' # {why}' if why else ''}"
