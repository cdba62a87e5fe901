# SPDX-License-Identifier: GPL-2.0-only
"""The output of a finished run of any kind, as its command printed it."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.analysis.condition import mixed
from orchestrator.analysis.layout import fitted
from orchestrator.store.manifest import RunKind
from orchestrator.store.run import Run

#: Result files per kind of run, of which the first that exists is shown; for a measuring run it is the comparison.
_TEXTS = {
    RunKind.RUN: (),
    RunKind.CHECK: ("check.txt",),
    RunKind.TEST: ("correctness.txt",),
    RunKind.BISECT: ("bisection.txt", "bisection.log"),
    RunKind.VERIFY: ("verification.txt",),
}


def result_text(run: Run, width: int) -> str | None:
    """The output of the command that made a run.

    Args:
        width: columns.

    Returns:
        The output; None if it is a comparison, or the run has none yet.
    """
    table = _table(run, width)
    if table is not None:
        return with_changes(run, table, width)
    for name in _TEXTS[run.manifest.kind]:
        if (run.path / name).is_file():
            return fitted((run.path / name).read_text(encoding="utf-8").rstrip(), width)
    return None


def with_changes(run: Run, text: str, width: int) -> str:
    """The output of a run, with a sentence for each condition that changed before the run was resumed.

    Args:
        width: columns.
    """
    return "\n".join((text, *(fitted(sentence, width) for sentence in mixed(run))))


def _table(run: Run, width: int) -> str | None:
    """A table formatted for `width`, for kinds of run that store the data of their table."""
    if run.manifest.kind is RunKind.TEST:
        from orchestrator.execution.correctness.report import SUMMARY, text_of_summary

        summary = run.path / SUMMARY
        return text_of_summary(_json(summary), width) if summary.is_file() else None
    if run.manifest.kind is RunKind.VERIFY:
        from orchestrator.execution.verify.report import table
        from orchestrator.execution.verify.run import SUMMARY as VERIFICATION

        summary = run.path / VERIFICATION
        return table(_json(summary), width) if summary.is_file() else None
    return None


def _json(path: Path) -> dict[str, object]:
    facts: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return facts
