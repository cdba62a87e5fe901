# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate results``: what was run, and what may be cleaned up."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.analysis.comparison import compare
from orchestrator.cli import option
from orchestrator.cli.terminal import terminal_of
from orchestrator.errors import OrchestrateError, UserError
from orchestrator.store.run import Run, find_run

app = typer.Typer(
    help="What was run, and clean-up of the cache.", no_args_is_help=True, rich_markup_mode=None
)

#: Kinds of artefact that `gc` may take; probe answers and keys are small and stay.
_COLLECTED = ("kernel", "image", "tree", "source")


@app.command("list", epilog="Example: orchestrate results list --json")
def list_runs(context: typer.Context, as_json: option.Json = False) -> int:
    """List the run directories, newest last."""
    terminal = terminal_of(context)
    rows: list[dict[str, Any]] = []
    for path in sorted(terminal.project.results.glob("*/run.json")):
        try:
            run = Run.open(path.parent)
        except OrchestrateError as error:
            rows.append({"run": path.parent.name, "problem": str(error)})
            continue
        outcomes = run.cells["outcome"].value_counts().to_dict()
        rows.append(
            {
                "run": path.parent.name,
                "topology": run.manifest["topology"]["text"],
                "accelerator": run.manifest["accelerator"]["name"],
                "outcomes": {str(key): int(value) for key, value in outcomes.items()},
            }
        )
    if as_json:
        terminal.print_json(rows)
        return 0
    for row in rows:
        ends: dict[str, int] = row.get("outcomes", {})
        summary = (
            ", ".join(f"{count} {name}" for name, count in ends.items()) if ends else row.get("problem", "")
        )
        terminal.print(
            f"{row['run']:<44} {row.get('topology', ''):<8} {row.get('accelerator', ''):<7} {summary}"
        )
    return 0


@app.command("show", epilog="Example: orchestrate results show latest")
def show(context: typer.Context, run: option.Run) -> int:
    """Print a run's table, failed cells and where its files are."""
    terminal = terminal_of(context)
    opened = Run.open(find_run(terminal.project.results, run))
    terminal.print_table(compare(opened))
    terminal.print(f"run      {opened.path}")
    return 0


@app.command("gc", epilog="Example: orchestrate results gc --older-than 30d --dry-run")
def collect(
    context: typer.Context,
    older_than: Annotated[str, typer.Option("--older-than", help="Age of last use, e.g. 12h, 30d.")] = "30d",
    keep_gib: Annotated[
        float | None,
        typer.Option("--keep-gib", help="Take the oldest until the cache is at most this large."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; take nothing.")] = False,
) -> int:
    """Remove cached kernels, images and trees that were not used lately; run directories are never touched."""
    terminal = terminal_of(context)
    limit_s = _age_s(older_than)
    cache = terminal.cache
    entries = sorted(
        (key.stat().st_mtime, key.parent)
        for kind in _COLLECTED
        for key in (cache.root / kind).glob("*/key.json")
    )
    sizes = {path: _size(path) for _, path in entries}
    total = sum(sizes.values())
    freed = 0
    for used, path in entries:
        old = time.time() - used > limit_s
        large = keep_gib is not None and total - freed > keep_gib * 2**30
        if not (old or large):
            continue
        freed += sizes[path]
        terminal.print(
            f"{'would remove' if dry_run else 'removed'} {path.parent.name}/{path.name}  {sizes[path] / 2**20:.0f} MiB"
        )
        if not dry_run:
            with cache.lock(f"{path.parent.name}-{path.name}"):
                shutil.rmtree(path)
    terminal.print(
        f"{freed / 2**30:.2f} GiB of {total / 2**30:.2f} GiB {'would be ' if dry_run else ''}freed"
    )
    return 0


def _age_s(text: str) -> float:
    match = re.fullmatch(r"(\d+)([mhd])", text)
    if not match:
        raise UserError(f"--older-than {text}: write a number and m, h or d, e.g. 30d.")
    return int(match[1]) * {"m": 60, "h": 3600, "d": 86400}[match[2]]


def _size(directory: Path) -> int:
    return sum(
        path.stat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink()
    )
