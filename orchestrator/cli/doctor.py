# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate doctor``: shows what this host has, what is missing, and how to install it."""

from __future__ import annotations

import typer

from orchestrator.analysis.layout import listing
from orchestrator.cli import option
from orchestrator.cli.terminal import terminal_of

NAME = "doctor"
_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "lacks": ("LACK", "red")}
EXAMPLE = "Example: orchestrate doctor --json"


def command(context: typer.Context, as_json: option.Json = False) -> int:
    """Check what this host has, what is missing and how to install it; exit 1 if a run could not work."""
    from orchestrator.execution.host import examine

    terminal = terminal_of(context)
    with terminal.events() as events:
        findings = examine(terminal.project, terminal.cache, events)
    if as_json:
        terminal.print_json([vars(finding) for finding in findings])
    else:
        rows = [(f"{_MARKS[finding.state][0]:<4} {finding.what}", finding.text) for finding in findings]
        label = max(len(head) for head, _ in rows)
        for finding, row in zip(findings, rows, strict=True):
            mark, colour = _MARKS[finding.state]
            # Keep a command on one line, so that it can be copied.
            width = sum(map(len, row)) + label if "apt-get install" in finding.text else terminal.width
            ((first, *more),) = listing([(row[0].ljust(label), row[1])], width)
            # No colour without a terminal.
            terminal.print("\n".join([typer.style(mark, fg=colour) + first.removeprefix(mark), *more]))
    return 1 if any(finding.state == "lacks" for finding in findings) else 0
