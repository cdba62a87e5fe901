# SPDX-License-Identifier: GPL-2.0-only
"""The report of a verification: one row per stage, one column per check, and below the table the failures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.analysis.layout import WIDTH, listing, text_of
from orchestrator.execution.verify.answer import CHECKS, State, in_order

#: File in the run directory.
TEXT = "verification.txt"


def table(summary: Mapping[str, Any], width: int = WIDTH) -> str:
    """One row per stage, one column per check, and below the table the failures with reasons.

    Args:
        summary: content of ``verification.json``.
        width: columns of the table; output of checks is not wrapped.
    """
    stages = summary["stages"]
    columns = in_order({*CHECKS, *(check for stage in stages for check in stage["checks"])})
    rows = [
        (f"{stage['number']:2} {stage['name']}", *(_state(stage, check) for check in columns))
        for stage in stages
    ]
    lines = [text_of(listing(rows, width, ("stage", *columns)))]
    states = []
    for stage in stages:
        for check, answer in stage["checks"].items():
            states.append(answer["state"])
            if answer["state"] == State.FAILED:
                lines += ["", f"stage {stage['number']} ({stage['name']}): {check}:"]
                lines += [f"    {line}" for line in answer["detail"].splitlines()]
                lines += [f"    log: {answer['log']}"] if answer["log"] else []
    ok, failed, left = (states.count(state) for state in (State.OK, State.FAILED, State.NOT_MADE))
    lines += ["", f"{ok} ok, {failed} failed, {left} not run."]
    return "\n".join(lines)


def _state(stage: Mapping[str, Any], check: str) -> str:
    answer = stage["checks"].get(check)
    return str(answer["state"] if answer else State.NOT_MADE)
