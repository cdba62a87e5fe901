# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate decode``: the kernel's reports in a console log, with source lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import completion, option
from orchestrator.cli.terminal import Terminal, terminal_of

if TYPE_CHECKING:
    from orchestrator.kernel.decoding import AddressDecoder

NAME = "decode"
EXAMPLE = "Example: orchestrate decode console.log --patchset core-only:5 --config debug-vm"


def command(
    context: typer.Context,
    log: Annotated[Path, typer.Argument(metavar="LOG", help="Console log, from this host or another one.")],
    patchset: Annotated[
        str | None,
        typer.Option(
            "--patchset",
            "-p",
            metavar="NAME",
            help="The kernel that printed the log; built with debugging information if it is not in the cache.",
            autocompletion=completion.patchsets,
        ),
    ] = None,
    vmlinux: Annotated[
        Path | None,
        typer.Option(
            "--vmlinux", metavar="FILE", help="The kernel that printed the log, with debugging information."
        ),
    ] = None,
    source_directory: Annotated[
        Path | None,
        typer.Option("--code", metavar="DIR", help="With --vmlinux: directory of its source files."),
    ] = None,
    flavour: option.Flavour = "measure",
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    build_jobs: option.BuildJobs = None,
    as_json: option.Json = False,
) -> int:
    """Print the kernel's reports in a console log, each frame with its file, line and inlined functions."""
    from orchestrator.errors import UserError
    from orchestrator.machine.oops import parse_console_file

    if (patchset is None) == (vmlinux is None):
        raise UserError("name the kernel that printed the log: either --patchset NAME or --vmlinux FILE.")
    if vmlinux is not None:
        option.refuse(
            context,
            ("flavour", "source", "series", "build_jobs"),
            "--vmlinux names a kernel that is already built",
        )
    else:
        option.refuse(context, ("source_directory",), "--patchset brings its source")
    terminal = terminal_of(context)
    try:
        findings = parse_console_file(log, advice=True)
        text = log.read_text(encoding="utf-8", errors="replace") if findings else ""
    except OSError as error:
        raise UserError(f"cannot read {log}: {error.strerror}.") from error
    if not findings:
        terminal.print_json([]) if as_json else terminal.print(f"{log} has no report of the kernel.")
        return 0
    if vmlinux is not None:
        decoder = _of_file(vmlinux, source_directory)
        decoder.check(text)
    else:
        assert patchset is not None
        decoder = _of_patchset(terminal, patchset, flavour, source, series, build_jobs, text)
    if as_json:
        terminal.print_json([{**each.to_json(), "text": decoder.decoded(each.text)} for each in findings])
        return 0
    for number, each in enumerate(findings, 1):
        times = f", {each.count} times" if each.count > 1 else ""
        terminal.print(f"[{number}] {each.title} (line {each.line}{times})")
        terminal.print(f"fingerprint: {each.fingerprint}")
        terminal.print(decoder.decoded(each.text) + "\n")
    return 0


def _of_file(vmlinux: Path, directory: Path | None) -> AddressDecoder:
    from orchestrator.kernel.decoding import AddressDecoder, source_of_directory

    return AddressDecoder(vmlinux, source_of_directory(directory)) if directory else AddressDecoder(vmlinux)


def _of_patchset(
    terminal: Terminal,
    patchset: str,
    flavour: str,
    source: str | None,
    series: Path | None,
    build_jobs: int | None,
    log: str,
) -> AddressDecoder:
    from orchestrator.kernel.decoding import AddressDecoder, source_of_tree

    with terminal.events() as events:
        bench = terminal.bench(events, source, flavour=flavour, build_jobs=build_jobs, series=series)
        bench.series.select(patchset)
        kernel = bench.kernel(patchset, dwarf=True)
        # The kernel that ran usually has no debugging information, and for that another build ID, but the same code.
        same = [bench.kernel(patchset).build_id] if bench.has_kernel(patchset) else []
        tree = bench.tree(patchset)
        decoder = AddressDecoder(kernel.vmlinux, source_of_tree(tree.repository, tree.tree))
        decoder.check(log, same)
    return decoder
