# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate build``: builds the kernel of a variant."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import option
from orchestrator.cli.terminal import terminal_of

NAME = "build"
EXAMPLE = "Example: orchestrate build --patchset core-only:5 --config debug-vm"


def command(
    context: typer.Context,
    patchset: option.Patchset,
    flavour: option.Flavour = "measure",
    config_set: option.ConfigSet = None,
    cc: option.Compiler = None,
    dwarf: Annotated[
        bool, typer.Option("--dwarf", help="Build with debugging information, for gdb and drgn.")
    ] = False,
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    build_jobs: option.BuildJobs = None,
    as_json: option.Json = False,
) -> int:
    """Build the kernel of a variant, and print the path of its image."""
    from orchestrator.kernel.config import with_settings

    terminal = terminal_of(context)
    with terminal.events() as events:
        bench = terminal.bench(
            events,
            source,
            flavour=with_settings(flavour, config_set or (), cc),
            build_jobs=build_jobs,
            series=series,
        )
        bench.series.select(patchset)
        kernel = bench.kernel(patchset, dwarf)
    facts = {
        "release": kernel.release,
        "build_id": kernel.build_id,
        "bzimage": str(kernel.bzimage),
        "vmlinux": str(kernel.vmlinux),
        "config": str(kernel.config),
        "log": str(kernel.log),
        "warnings": list(kernel.warnings),
        "seconds": kernel.seconds,
        "cached": kernel.cached,
    }
    if as_json:
        terminal.print_json(facts)
        return 0
    for key in ("release", "build_id", "bzimage", "vmlinux", "config", "log"):
        terminal.print(f"{key:<9} {facts[key]}")
    for warning in kernel.warnings:
        terminal.print(f"warning   {warning}")
    return 0
