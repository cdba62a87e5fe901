# SPDX-License-Identifier: GPL-2.0-only
"""JUnit XML, which most continuous integration services can display."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import junitparser

from orchestrator.analysis.export.check import Check, CheckStatus

# Characters that are invalid in XML 1.0 (section 2.2), but possible on a console.
_NO_CHARACTER = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_RESULTS: Final = {
    CheckStatus.FAILED: junitparser.Failure,
    CheckStatus.ERROR: junitparser.Error,
    CheckStatus.SKIPPED: junitparser.Skipped,
}


def to_junit(run: str, checks: Sequence[Check]) -> str:
    """`checks` as one XML document: one test suite per workload, one test case per check.

    Args:
        run: name of the run, used as the name of the document.
    """
    document = junitparser.JUnitXml(run)
    suites: dict[str, junitparser.TestSuite] = {}
    for check in checks:
        if check.suite not in suites:
            suites[check.suite] = junitparser.TestSuite(f"{run}.{check.suite}")
        case = junitparser.TestCase(check.name, f"{run}.{check.suite}", check.seconds)
        text = _NO_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", check.text)
        if check.status is CheckStatus.PASSED:
            case.system_out = text
        else:
            result = _RESULTS[check.status](text.partition("\n")[0], check.kind)
            result.text = text
            case.result = [result]
        suites[check.suite].add_testcase(case)
    for suite in suites.values():
        document.add_testsuite(suite)
    document.update_statistics()  # type: ignore[no-untyped-call]
    return bytes(document.tostring()).decode() + "\n"  # type: ignore[no-untyped-call]
