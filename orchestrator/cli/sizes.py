# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate sizes``: what a patchset adds to the kernel's code and structures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import completion, option
from orchestrator.cli.terminal import Terminal, terminal_of

if TYPE_CHECKING:
    from orchestrator.kernel.growth import KernelSizes
    from orchestrator.kernel.series import Stage

NAME = "sizes"
EXAMPLE = (
    "Example: orchestrate sizes --patchset core-only\n\n"
    "Two kernels from elsewhere: orchestrate sizes --vmlinux old/vmlinux --vmlinux new/vmlinux"
)


def command(
    context: typer.Context,
    patchset: Annotated[
        str | None,
        typer.Option(
            "--patchset",
            "-p",
            metavar="NAME",
            help="Patchset to compare; what is not in the cache is built.",
            autocompletion=completion.patchsets,
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="NAME",
            help="Patchset to compare with.",
            autocompletion=completion.patchsets,
        ),
    ] = "baseline",
    stages: Annotated[
        bool, typer.Option("--stages", help="Also a table with each stage; this builds every one of them.")
    ] = False,
    vmlinux: Annotated[
        list[Path] | None,
        typer.Option(
            "--vmlinux",
            metavar="FILE",
            help="Compare two kernels that are built, with debugging information: the old one, then the new one.",
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="With --vmlinux: refuse a file that is not a kernel of this run, by its build ID.",
            autocompletion=completion.runs,
        ),
    ] = None,
    structure: Annotated[
        list[str] | None,
        typer.Option(
            "--struct",
            metavar="NAME",
            help="Also show this structure, beside page, vm_area_struct, mm_struct and those that the patches change; "
            "repeatable.",
        ),
    ] = None,
    no_structs: Annotated[
        bool,
        typer.Option(
            "--no-structs",
            help="Functions only, without compiling objects with debugging information.",
        ),
    ] = False,
    functions: Annotated[
        int, typer.Option("--functions", metavar="N", help="Functions to show; 0 for all.", min=0)
    ] = 25,
    flavour: option.Flavour = "measure",
    config_set: option.ConfigSet = None,
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    build_jobs: option.BuildJobs = None,
    as_json: option.Json = False,
) -> int:
    """Print the growth of each function, and sizes and holes of structures; text for a changelog."""
    from orchestrator.errors import UserError
    from orchestrator.kernel.growth import growth, stages_text, text_of

    if (patchset is None) == (not vmlinux):
        raise UserError("name what to compare: either --patchset NAME or --vmlinux FILE twice.")
    if no_structs:
        option.refuse(context, ("structure",), "--no-structs shows functions only")
    terminal = terminal_of(context)
    wanted = tuple(structure or ())
    if vmlinux:
        option.refuse(
            context,
            ("against", "stages", "flavour", "config_set", "source", "series", "build_jobs"),
            "--vmlinux names kernels that are already built",
        )
        kernels = _of_files(terminal, vmlinux, run, wanted, not no_structs)
    else:
        option.refuse(context, ("run",), "--run checks the files of --vmlinux")
        assert patchset is not None
        kernels = _of_series(
            terminal,
            patchset,
            against,
            stages,
            wanted,
            not no_structs,
            flavour,
            config_set,
            source,
            series,
            build_jobs,
        )
    missing = [name for name in wanted if not any(name in kernel.structures for kernel in kernels)]
    if missing:
        raise UserError(f"--struct {missing[0]}: neither init/main.c nor a changed source file defines it.")
    found = growth(kernels[0], kernels[-1])
    if as_json:
        steps = [growth(kernels[0], kernel).to_json() for kernel in kernels[1:-1]]
        terminal.print_json({**found.to_json(), **({"stages": steps} if stages else {})})
        return 0
    terminal.print(text_of(found, functions))
    if stages:
        terminal.print("\n" + stages_text(kernels))
    return 0


def _of_files(
    terminal: Terminal, files: list[Path], run: str | None, wanted: tuple[str, ...], layouts: bool
) -> list[KernelSizes]:
    from orchestrator.errors import UserError
    from orchestrator.kernel.growth import ALWAYS, check_is_of, growth, sizes_of, with_structures

    if len(files) != 2:
        raise UserError("--vmlinux names two kernels: the old one, then the new one.")
    names = [str(file) for file in files]
    if run is not None:
        from orchestrator.store.manifest import read_manifest
        from orchestrator.store.run import find_run

        path = find_run(terminal.project.results, run)
        known: dict[str, str] = {}
        for variant in read_manifest(path).variants:
            for kernel in (variant.kernel, *variant.earlier_kernels):
                if kernel is not None:
                    known.setdefault(kernel.build_id, variant.name)
        names = [check_is_of(file, known, path.name) for file in files]
    plain = [sizes_of(name, file) for name, file in zip(names, files, strict=True)]
    if not layouts:
        return plain
    changes = growth(*plain).changes
    asked = (*ALWAYS, *wanted)
    return [with_structures(kernel, file, asked, changes) for kernel, file in zip(plain, files, strict=True)]


def _of_series(
    terminal: Terminal,
    patchset: str,
    against: str,
    stages: bool,
    wanted: tuple[str, ...],
    with_structures: bool,
    flavour: str,
    config_set: list[str] | None,
    source: str | None,
    series: Path | None,
    build_jobs: int | None,
) -> list[KernelSizes]:
    from orchestrator.kernel.config import with_settings
    from orchestrator.kernel.debug_object import changed_sources, debug_objects
    from orchestrator.kernel.growth import ALWAYS, check_is_of, sizes_of, structures_in, with_layouts
    from orchestrator.kernel.structure import structures_of

    with terminal.events() as events:
        bench = terminal.bench(
            events,
            source,
            flavour=with_settings(flavour, config_set or ()),
            build_jobs=build_jobs,
            series=series,
        )
        first, last = bench.series.select(against), bench.series.select(patchset)
        between = _between(first, last) if stages else []
        names = [against, *between, patchset]
        tree = bench.tree(patchset)
        changed = dict.fromkeys(
            name
            for stage in last
            for name in structures_in(tree.patch_of(stage).read_text(encoding="utf-8", errors="replace"))
        )
        kernels = []
        for name in names:
            built = bench.kernel(name)
            check_is_of(built.vmlinux, {built.build_id: name}, name)
            kernels.append(sizes_of(name, built.vmlinux))
        if not with_structures:
            return kernels
        asked = dict.fromkeys((*ALWAYS, *changed, *wanted))
        sources = changed_sources(tree)
        dwarf = bench.configuration(dwarf=True)
        found = []
        for kernel in kernels:
            files = debug_objects(bench.tree(kernel.name), sources, dwarf, bench.cache, events, build_jobs)
            with events.step("read structures", kernel.name, part=True):
                found.append(with_layouts(kernel, structures_of(files, asked)))
        return found


def _between(first: tuple[Stage, ...], last: tuple[Stage, ...]) -> list[str]:
    """The patchsets that end at the stages between two others."""
    known = {stage.number for stage in first}
    return [f"{stage.group}:{stage.number}" for stage in last[:-1] if stage.number not in known]
