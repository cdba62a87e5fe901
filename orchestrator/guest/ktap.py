# SPDX-License-Identifier: GPL-2.0-only
"""Parsers for results of tests in a guest: KTAP, and the format of the khugepaged selftest.

They are as strict as kunit's parser: missing results of planned tests are a failure, and so is output that ends
early. KTAP: Documentation/dev-tools/ktap.rst. Programs in tools/testing/selftests print it flat, as TAP version 13.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from orchestrator.printable import printable

_PLAN = re.compile(r"1\.\.(\d+)")
_RESULT = re.compile(r"(?P<bad>not )?ok (?P<number>\d+)(?: -)? ?(?P<name>[^#]*?)(?: ?# ?(?P<directive>.*))?")
_DIAGNOSTIC = re.compile(r"#(?: (?P<text>.*))?")
_RUN_TEST = re.compile(r"Run test: (?P<name>.*)")
_VERDICT = re.compile(r".*\.\.\. (?P<verdict>OK|Fail|Skip|Timeout)\b.*")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SUMMARY = re.compile(r"(?:# )?Totals: pass:|# (?:Totals|PASSED|FAILED|Planned)")


class Status(StrEnum):
    """How a test ended. ``expected-fail`` (XFAIL) counts as passed."""

    PASSED = "ok"
    FAILED = "FAIL"
    SKIPPED = "skip"


@dataclass(frozen=True)
class TestResult:
    """One test.

    Args:
        name: name of the test, unique within its program; a repeated name gets a number.
        text: diagnostic lines; for a skipped test the reason.
    """

    __test__ = False  # not a test class of pytest, despite its name

    name: str
    status: Status
    text: str = ""

    def __post_init__(self) -> None:
        """Make name and text safe to print, since the guest printed them."""
        object.__setattr__(self, "name", printable(self.name))
        object.__setattr__(self, "text", printable(self.text))


def parse_ktap(lines: Iterable[str]) -> tuple[list[TestResult], str]:
    """The results in a program's output.

    Args:
        lines: output lines without newlines. Lines that are not KTAP belong to the next result.

    Returns:
        The results in order, and a fault of the output as a whole: empty, or a sentence such as "3 of 5 planned
        tests have a result". Output without any KTAP has no results and no fault.
    """
    results: list[TestResult] = []
    names: dict[str, int] = {}
    said: list[str] = []
    planned: int | None = None
    for line in lines:
        text = line.strip()
        plan = _PLAN.fullmatch(text.split(" #")[0])
        result = _RESULT.fullmatch(text)
        if plan is not None:
            planned = (planned or 0) + int(plan[1])
        elif result is not None:
            results.append(_named(_result(result, said), names))
            said = []
        elif text and not text.startswith(("TAP version", "KTAP version")) and not _SUMMARY.match(text):
            diagnostic = _DIAGNOSTIC.fullmatch(text)
            said.append((diagnostic["text"] or "") if diagnostic else text)
    fault = ""
    if planned is not None and planned != len(results):
        fault = f"{len(results)} of {planned} planned tests have a result"
        if said:
            fault += f"; the last line is: {said[-1]}"
    return results, fault


def parse_khugepaged(lines: Iterable[str]) -> list[TestResult]:
    """The results of selftests/mm/khugepaged: ``Run test: NAME``, then one line per check with OK or Fail.

    A test without any further line has failed: the program ended in the middle of it.
    """
    results: list[TestResult] = []
    names: dict[str, int] = {}
    unsaid = "it has no result"
    for raw in lines:
        line = _COLOUR.sub("", raw).strip()
        begun = _RUN_TEST.fullmatch(line)
        if begun is not None:
            results.append(_named(TestResult(begun["name"].strip(), Status.FAILED, unsaid), names))
            continue
        verdict = _VERDICT.fullmatch(line)
        if verdict is None or not results:
            continue
        last = results[-1]
        if last.text == unsaid:
            last = replace(last, status=Status.PASSED, text="")
        if verdict["verdict"] in ("Fail", "Timeout"):
            said = "\n".join(filter(None, (last.text, line)))
            last = replace(last, status=Status.FAILED, text=said)
        elif verdict["verdict"] == "Skip" and last.status is Status.PASSED:
            last = replace(last, status=Status.SKIPPED, text=line)
        results[-1] = last
    return results


def _result(match: re.Match[str], said: list[str]) -> TestResult:
    name = match["name"].strip() or match["number"]
    directive = (match["directive"] or "").strip()
    word, _, reason = directive.partition(" ")
    text = "\n".join(said)
    if match["bad"]:
        return TestResult(name, Status.FAILED, "\n".join(filter(None, (text, directive))))
    if word.upper().rstrip(":") == "SKIP":
        return TestResult(name, Status.SKIPPED, reason.strip() or text)
    return TestResult(name, Status.PASSED, text)


def _named(result: TestResult, names: dict[str, int]) -> TestResult:
    """Number repeated names, from the second on: selftests use one name for several tests."""
    names[result.name] = count = names.get(result.name, 0) + 1
    return result if count == 1 else replace(result, name=f"{result.name} ({count})")
