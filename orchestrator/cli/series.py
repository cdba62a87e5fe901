# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate series``: the patch series: its groups, its stages, and their patches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.analysis.layout import listing, wrapped, wrapped_below
from orchestrator.cli import option, series_export, series_verify
from orchestrator.cli.terminal import terminal_of
from orchestrator.errors import UserError

app = typer.Typer(
    help="List, show, verify and export the stages of a series, or write one of your own.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

for module in (series_verify, series_export):
    app.command(module.NAME, epilog=module.EXAMPLE)(module.command)


@app.command("list", epilog="Example: orchestrate series list")
def list_stages(
    context: typer.Context, directory: option.SeriesDirectory = None, as_json: option.Json = False
) -> int:
    """List the stages in order, with the group, knobs and counters of each."""
    from orchestrator.kernel.series import load_series

    terminal = terminal_of(context)
    series = load_series(terminal.series_directory(directory))
    if as_json:
        terminal.print_json(
            {
                "name": series.name,
                "title": series.title,
                "base": series.bases.linux,
                "package": series.bases.package,
                "versions": list(series.bases.versions),
                "groups": list(series.groups),
                "stages": [
                    {
                        "number": stage.number,
                        "name": stage.name,
                        "group": stage.group,
                        "title": stage.title,
                        "patch": str(stage.patch),
                        "variants": {each.name: str(each.patch) for each in stage.variants},
                        "digest": stage.digest,
                        "knobs": list(stage.knobs),
                        "counters": list(stage.counters),
                        "defaults": dict(stage.defaults),
                    }
                    for stage in series.stages
                ],
            }
        )
        return 0
    on = f"Linux {series.bases.linux} ({series.bases})" if series.bases.linux else str(series.bases)
    lines = wrapped(f"{series.title}, on {on}", terminal.width)
    rows = [
        (f"{stage.number:3}", *([stage.group] if series.groups else []), stage.name, stage.title)
        for stage in series.stages
    ]
    for stage, block in zip(series.stages, listing(rows, terminal.width), strict=True):
        lines += block
        defaults = [f"{name} {value}" for name, value in stage.defaults.items()]
        variants = [each.name for each in stage.variants]
        for what, names in (
            ("knobs", stage.knobs),
            ("counters", stage.counters),
            ("default", defaults),
            ("another patch for", variants),
        ):
            if names:
                lines += wrapped_below(" " * 8, f"{what}: {', '.join(names)}", terminal.width, " " * 10)
    terminal.print("\n".join(lines))
    return 0


@app.command("init", epilog="Example: orchestrate series init my-series --series ~/linux#v6.12..my-branch")
def init(
    context: typer.Context,
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Directory to write to; without --series, the one with the patches."
        ),
    ],
    given: option.SeriesDirectory = None,
    as_json: option.Json = False,
) -> int:
    """Write a series.toml for patches, an mbox or a range of commits; refine it with groups, knobs and metrics."""
    from orchestrator.kernel.posting import write_series
    from orchestrator.kernel.series import load_series

    terminal = terminal_of(context)
    written = write_series(given or directory, directory)
    stages = load_series(written.parent).stages
    if as_json:
        terminal.print_json({"series": str(written), "stages": [stage.name for stage in stages]})
        return 0
    terminal.print(f"{written}: {len(stages)} stage{'s' if len(stages) > 1 else ''}")
    for stage in stages:
        terminal.print(f"{stage.number:3}  {stage.name}")
    return 0


@app.command("show", epilog="Example: orchestrate series show 5")
def show(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="Number or name of the stage.")],
    directory: option.SeriesDirectory = None,
) -> int:
    """Print one stage's patch."""
    from orchestrator.kernel.series import load_series

    terminal = terminal_of(context)
    series = load_series(terminal.series_directory(directory))
    for each in series.stages:
        if stage in (str(each.number), each.name):
            # As it is: a patch may have any bytes; nobody says in which charset.
            typer.echo(each.patch.read_bytes(), nl=False)
            return 0
    known = ", ".join(f"{each.number} ({each.name})" for each in series.stages)
    raise UserError(f"unknown stage {stage!r}; the stages are {known}.")
