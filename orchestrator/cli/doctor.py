# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate doctor``: what this host has, what it lacks and how to get it."""

from __future__ import annotations

import typer

from orchestrator.cli import option
from orchestrator.cli.terminal import terminal_of

NAME = "doctor"
EXAMPLE = "Example: orchestrate doctor --json"


def command(context: typer.Context, as_json: option.Json = False) -> int:
    """Say what this host has and lacks, and how to get it; exit 1 where a run could not work."""
    from rich.console import Console

    from orchestrator.execution.host import examine

    terminal = terminal_of(context)
    with terminal.events() as events:
        findings = examine(terminal.project, terminal.cache, events)
    if as_json:
        terminal.print_json([vars(finding) for finding in findings])
    else:
        console = Console(highlight=False)
        for finding in findings:
            mark, style = {"ok": ("ok  ", "green"), "note": ("note", "yellow"), "lacks": ("LACK", "red")}[
                finding.state
            ]
            console.print(f"[{style}]{mark}[/] {finding.what:<22} ", end="", soft_wrap=True)
            console.print(finding.text, markup=False, soft_wrap=True)
    return 1 if any(finding.state == "lacks" for finding in findings) else 0
