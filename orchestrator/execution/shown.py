# SPDX-License-Identifier: GPL-2.0-only
"""A finished run as its command printed it, whatever its kind."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.analysis.layout import fitted
from orchestrator.store.manifest import RunKind
from orchestrator.store.run import Run

#: Texts that a run of each kind leaves, the first that is there is shown; a measuring run is shown by its comparison.
_TEXTS = {
    RunKind.RUN: (),
    RunKind.CHECK: ("check.txt",),
    RunKind.TEST: ("correctness.txt",),
    RunKind.BISECT: ("bisection.txt", "bisection.log"),
    RunKind.VERIFY: ("verification.txt",),
}


def shown(run: Run, width: int) -> str | None:
    """What the command that made a run printed.

    Args:
        width: columns.

    Returns:
        None where that is a comparison, or where the run did not come to it.
    """
    table = _table(run, width)
    if table is not None:
        return table
    for name in _TEXTS[run.manifest.kind]:
        if (run.path / name).is_file():
            return fitted((run.path / name).read_text(encoding="utf-8").rstrip(), width)
    return None


def _table(run: Run, width: int) -> str | None:
    """A table that is laid out for the width: of a kind that keeps what the table is made of."""
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
