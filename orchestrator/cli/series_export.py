# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate series export``: exports the series as mail, with a cover letter that has figures from a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import completion, option
from orchestrator.cli.terminal import terminal_of
from orchestrator.errors import UserError

NAME = "export"
EXAMPLE = "Example: orchestrate series export outgoing --patchset core-only --run latest"
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


def command(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory to write the patches to.")],
    patchset: option.Patchset = "full",
    version: Annotated[
        int,
        typer.Option(
            "--version",
            "-V",
            min=1,
            metavar="N",
            help="Version of the series, as in [PATCH vN n/m]; not printed for version 1.",
        ),
    ] = 1,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="Run whose results the cover letter shows.",
            autocompletion=completion.runs,
        ),
    ] = None,
    notes: Annotated[
        Path | None,
        typer.Option(
            "--notes",
            metavar="FILE",
            help="Text on what changed since the last version, for the cover letter.",
        ),
    ] = None,
    sender: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PERSON",
            help="Sender, whose Signed-off-by is added: 'Name <mail>'; default: the user in git config.",
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="COMMIT", help="Commit ID for the base-commit line.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace an earlier export even if it was edited; other files stay."),
    ] = False,
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    as_json: option.Json = False,
) -> int:
    """Write the series for git send-email: a cover letter, and one signed-off patch per stage."""
    from orchestrator.kernel.source import origin_commit
    from orchestrator.mail.cover_letter import cover_text
    from orchestrator.mail.mailbox import Letter, Person, authors_without_sign_off, write_mailbox
    from orchestrator.mail.outbox import Outbox
    from orchestrator.store.run import Run, find_run

    terminal = terminal_of(context)
    outbox = Outbox(directory)
    outbox.check(force)
    person = Person.parse(sender) if sender else Person.configured()
    if base is not None and not _COMMIT.fullmatch(base):
        raise UserError(f"--base {base}: give the full commit ID, as printed by git rev-parse.")
    if notes is not None and not notes.is_file():
        raise UserError(f"--notes {notes}: there is no such file.")
    with terminal.events() as events:
        bench = terminal.bench(events, source, series=series)
        stages = bench.series.select(patchset)
        if not stages:
            raise UserError(f"patchset {patchset} has no patches to export.")
        opened = Run.open(find_run(terminal.project.results, run)) if run else None
        texts = terminal.series_directory(series)
        tree = bench.tree(patchset)
        letter = Letter(
            bench.series.title,
            cover_text(bench.series, stages, tree.source, texts, opened, notes),
            base or origin_commit(source, tree.source.tree),
        )
        files = outbox.fill(lambda place: write_mailbox(tree, letter, person, version, place))
    if as_json:
        terminal.print_json(
            {"from": str(person), "version": version, "base": letter.base, "files": list(map(str, files))}
        )
        return 0
    for path in files:
        terminal.print(str(path))
    for lack in authors_without_sign_off(tree, person):
        typer.echo(f"orchestrate: {lack}.", err=True)
    return 0
