# SPDX-License-Identifier: GPL-2.0-only
"""The report of a correctness test: one row per guest, then problems, then notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.analysis.layout import WIDTH, first_lines, listing, text_of, wrapped, wrapped_below
from orchestrator.execution.correctness.summary import CorrectnessSummary
from orchestrator.guest.ktap import Status
from orchestrator.store.outcome import Outcome

#: Files in the run directory.
SUMMARY = "correctness.json"
TEXT = "correctness.txt"
#: Number of lines of a test or kernel report to print; the run directory has all of them.
_SHOWN_LINES = 6


def as_text(summary: CorrectnessSummary, width: int = WIDTH) -> str:
    """See :func:`text_of_summary`."""
    return text_of_summary(summary.to_json(), width)


def text_of_summary(summary: Mapping[str, Any], width: int) -> str:
    """One row per guest, then problems, then notes.

    Args:
        summary: content of ``correctness.json``.
        width: columns of the table and of titles; output of tests and of the kernel is not wrapped.
    """
    titles = ("kernel", "suite", "passed", "failed", "skipped", "reports", "leaks", "s", "outcome")
    rows = []
    for suite in summary["suites"]:
        statuses = [test["status"] for test in suite["tests"]]
        counts = [statuses.count(status) for status in (Status.PASSED, Status.FAILED, Status.SKIPPED)]
        counts += [len(suite["reports"]), sum(leak["count"] for leak in suite["leaks"])]
        run_s = f"{suite['run_s']:.0f}" if suite["run_s"] is not None else ""
        outcome = "" if suite["outcome"] == Outcome.OK else suite["outcome"]
        rows.append([suite["patchset"], suite["suite"], *map(str, counts), run_s, outcome])
    lines = [text_of(listing(rows, width, titles, right=range(2, 8)))]
    for title, troubles in (("problems", summary["troubles"]), ("notes", summary["notes"])):
        if troubles:
            lines += ["", f"{title}:"]
            for trouble in troubles:
                lines += _lines_of(trouble, width)
    if not summary["troubles"]:
        none = "no regression, and no kernel report that the baseline does not have"
        lines += ["", *wrapped(none, width)]
    return "\n".join(lines)


def _lines_of(trouble: Mapping[str, str], width: int) -> list[str]:
    shown = first_lines(trouble["text"], _SHOWN_LINES, " " * 6)
    return [*wrapped_below("  ", f"{trouble['where']}: {trouble['what']}", width, "    "), *shown]
