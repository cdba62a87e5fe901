# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate results``: lists and shows runs, and cleans up the cache."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from orchestrator.analysis.layout import WIDTH, fitted, listing, text_of
from orchestrator.cli import option
from orchestrator.cli.terminal import terminal_of
from orchestrator.errors import OrchestrateError, UserError

if TYPE_CHECKING:
    from orchestrator.store.run import Run

app = typer.Typer(help="List and show runs; clean up the cache.", no_args_is_help=True, rich_markup_mode=None)

_TABLE: Final = "comparison.txt"


@app.command("list", epilog="Example: orchestrate results list --json")
def list_runs(context: typer.Context, as_json: option.Json = False) -> int:
    """List the run directories, newest last."""
    from orchestrator.store.run import Run, run_directories

    terminal = terminal_of(context)
    rows: list[dict[str, Any]] = []
    for path in run_directories(terminal.project.results):
        try:
            run = Run.open(path)
            outcomes = run.outcomes()
        except OrchestrateError as error:
            rows.append({"run": path.name, "problem": str(error)})
            continue
        rows.append(
            {
                "run": path.name,
                "created": run.manifest.created_utc,
                "kind": run.manifest.kind.value,
                "topology": run.manifest.topology.text,
                "accelerator": run.manifest.accelerator.name,
                "outcomes": outcomes,
            }
        )
    rows.sort(key=lambda row: (row.get("created", ""), row["run"]))
    if as_json:
        terminal.print_json(rows)
        return 0
    if not rows:
        terminal.print(
            f"there is no run in {terminal.project.results} yet; start one with: orchestrate run -p core-only"
        )
    table = [[row["run"], row.get("topology", ""), row.get("accelerator", ""), _ends_of(row)] for row in rows]
    if table:
        terminal.print(text_of(listing(table, terminal.width)))
    return 0


def _ends_of(row: dict[str, Any]) -> str:
    outcomes: dict[str, int] = row.get("outcomes", {})
    return ", ".join(f"{count} {name}" for name, count in outcomes.items()) or row.get("problem", "")


@app.command("show", epilog="Example: orchestrate results show latest")
def show(context: typer.Context, run: option.Run) -> int:
    """Print the results of a run, in the same form as the command that created it, and the path of its files."""
    from orchestrator.store.run import Run, find_run

    terminal = terminal_of(context)
    opened = Run.open(find_run(terminal.project.results, run))
    shown = _shown(opened, terminal.width)
    if shown is None and terminal.width >= WIDTH and _is_current(opened):
        table = (opened.path / _TABLE).read_text(encoding="utf-8")
        shown = fitted(table.rstrip(), terminal.width)
    if shown is None:
        from orchestrator.analysis.comparison import compare

        with terminal.events() as events, events.step("compare", opened.name):
            comparison = compare(opened)
        terminal.print_table(comparison)
    else:
        terminal.print(shown)
    terminal.print(f"run      {opened.path}")
    return 0


def _shown(run: Run, width: int) -> str | None:
    """The output of the command that made a run; None if it is a comparison, or the run has none yet."""
    from orchestrator.execution.result_text import result_text

    return result_text(run, width)


def _is_current(run: Run) -> bool:
    """Whether the stored table covers all cells; the run may have been resumed since."""
    ended = run.manifest.ended_utc
    table = run.path / _TABLE
    return bool(
        ended and table.is_file() and table.stat().st_mtime >= datetime.fromisoformat(ended).timestamp()
    )


@app.command("gc", epilog="Example: orchestrate results gc --older-than 30d --dry-run")
def collect(
    context: typer.Context,
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than",
            metavar="AGE",
            help="Remove entries not used for this long, e.g. 12h, 30d.",
        ),
    ] = "30d",
    keep_gib: Annotated[
        float | None,
        typer.Option(
            "--keep-gib",
            metavar="GIB",
            help="Also remove least recently used entries until the cache is at most this large.",
            min=0,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed; remove nothing.")
    ] = False,
) -> int:
    """Remove cached kernels, object directories, images and trees not used recently; runs are never removed."""
    terminal = terminal_of(context)
    limit_s = _age_s(older_than)
    limit_bytes = None if keep_gib is None else keep_gib * 2**30
    cache = terminal.cache
    total = sum(entry.size() for entry in cache.entries())
    freed = 0
    for each in cache.collect(limit_s, limit_bytes, dry_run=dry_run):
        if not each.is_gone:
            terminal.print(f"in use, kept {each.entry.name}")
            continue
        freed += each.size
        done = "would remove" if dry_run else "removed"
        terminal.print(f"{done} {each.entry.name}  {each.size / 2**20:.0f} MiB")
    terminal.print(
        f"{freed / 2**30:.2f} GiB of {total / 2**30:.2f} GiB {'would be ' if dry_run else ''}freed"
    )
    return 0


def _age_s(text: str) -> float:
    match = re.fullmatch(r"(\d+)([mhd])", text)
    if not match:
        raise UserError(f"--older-than {text}: write a number and m, h or d, e.g. 30d.")
    return int(match[1]) * {"m": 60, "h": 3600, "d": 86400}[match[2]]
