# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate inspect``: the reservations in a guest's memory, read from outside."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import completion, option
from orchestrator.cli.terminal import Terminal, terminal_of

if TYPE_CHECKING:
    from orchestrator.debugger.inspection import Inspection
    from orchestrator.debugger.memory import Attached, GuestMemory, KernelFiles
    from orchestrator.debugger.violation import BrokenRule

NAME = "inspect"
EXAMPLE = "Example: orchestrate inspect guest-logs --patchset core-only --blocks --plot map"

#: Host seconds after which a violation is looked for again, and how often it must be there.
_AGAIN_S = 0.05
_TIMES = 3


def command(
    context: typer.Context,
    guest: Annotated[
        Path,
        typer.Argument(
            metavar="GUEST",
            help="A running guest: the directory with its logs (boot --logs, or logs/CELL of a run). Or a file that "
            "--save, or QEMU's dump-guest-memory, wrote.",
        ),
    ],
    patchset: Annotated[
        str | None,
        typer.Option(
            "--patchset",
            "-p",
            metavar="NAME",
            help="The kernel that the guest runs; built with debugging information if it is not in the cache.",
            autocompletion=completion.patchsets,
        ),
    ] = None,
    vmlinux: Annotated[
        Path | None,
        typer.Option(
            "--vmlinux", metavar="FILE", help="The kernel that the guest runs, with debugging information."
        ),
    ] = None,
    flavour: option.Flavour = "measure",
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    build_jobs: option.BuildJobs = None,
    pid: Annotated[
        int | None, typer.Option("--pid", metavar="PID", help="Show only this process of the guest.", min=1)
    ] = None,
    blocks: Annotated[
        bool, typer.Option("--blocks", help="List each reservation, with the pages of its block.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw processes and nodes to FILE.png and FILE.svg."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save", metavar="FILE", help="Save the guest's memory to this file, to inspect it later."
        ),
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(
            "--every",
            metavar="SECONDS",
            help="Inspect again after this many seconds, until the guest ends; prints a line each time.",
            min=0.01,
        ),
    ] = None,
    as_json: option.Json = False,
) -> int:
    """Print the reservations in a guest's memory, and check them; the guest stands still meanwhile."""
    from orchestrator.debugger.memory import RunningGuest, attached, memory_of_dump
    from orchestrator.errors import UserError
    from orchestrator.output import check_output

    if patchset is not None and vmlinux is not None:
        raise UserError("name the guest's kernel once: either --patchset NAME or --vmlinux FILE.")
    if patchset is None:
        option.refuse(
            context, ("flavour", "source", "series", "build_jobs"), "they choose the kernel of --patchset"
        )
    for name, file in (("--plot", plot), ("--save", save)):
        if file is not None:
            check_output(name, file)
    terminal = terminal_of(context)
    report = _InspectionReport(terminal, pid, blocks, plot, as_json)
    kernels = _Kernels(terminal, patchset, vmlinux, flavour, source, series, build_jobs)
    if not guest.exists():
        raise UserError(
            f"{guest} does not exist; name the log directory of a running guest, or a file with its memory."
        )
    if not guest.is_dir():
        option.refuse(context, ("save", "every"), f"{guest} is not the log directory of a running guest")
        report.show(*_checked(kernels.opened(lambda kernel: memory_of_dump(guest, kernel))))
        return report.exit_status
    running = RunningGuest.in_directory(guest)
    with attached(running, kernels.of_guest(running.vmlinux)) as live:
        if every is None:
            report.show(*_look(live, save))
        else:
            option.refuse(
                context, ("blocks", "plot", "pid", "save"), "--every prints one line per inspection"
            )
            _watch(live, guest, every, report)
    return report.exit_status


class _InspectionReport:
    """Prints inspections, and remembers whether something was wrong."""

    def __init__(
        self, terminal: Terminal, pid: int | None, blocks: bool, plot: Path | None, as_json: bool
    ) -> None:
        self._terminal = terminal
        self._pid = pid
        self._blocks = blocks
        self._plot = plot
        self._as_json = as_json
        self.exit_status = 0

    def show(self, inspection: Inspection, found: Sequence[BrokenRule]) -> None:
        from orchestrator.debugger.summary import to_json, to_text

        self.exit_status = 3 if found else self.exit_status
        shown = inspection if self._pid is None else inspection.only(self._pid)
        if self._as_json:
            self._terminal.print_json(to_json(shown, found))
        else:
            width = self._terminal.width
            self._terminal.print(to_text(inspection, found, width, blocks=self._blocks, pid=self._pid))
        if self._plot is not None:
            from orchestrator.debugger.memory_map import draw

            for suffix in (".png", ".svg"):
                file = self._plot.with_name(self._plot.name + suffix)
                draw(inspection, file, self._pid)
                if not self._as_json:
                    self._terminal.print(str(file))

    def line(self, inspection: Inspection, found: Sequence[BrokenRule], at_s: float) -> None:
        """One line for one of many inspections."""
        from orchestrator.debugger.summary import to_json, to_line

        self.exit_status = 3 if found else self.exit_status
        if self._as_json:
            self._terminal.print(json.dumps({"host_s": round(at_s, 3), **to_json(inspection, found)}))
        else:
            self._terminal.print(f"{at_s:8.1f} s  {to_line(inspection, found)}")


class _Kernels:
    """Finds the kernel of a guest, with debugging information."""

    def __init__(
        self,
        terminal: Terminal,
        patchset: str | None,
        vmlinux: Path | None,
        flavour: str,
        source: str | None,
        series: Path | None,
        build_jobs: int | None,
    ) -> None:
        self._terminal = terminal
        self._patchset = patchset
        self._vmlinux = vmlinux
        self._settings = (flavour, source, series, build_jobs)

    def of_guest(self, own: Path) -> KernelFiles:
        """The kernel of a guest that was booted from the directory of `own`.

        Raises:
            UserError: nothing says where its debugging information is.
        """
        from orchestrator.debugger.memory import KernelFiles
        from orchestrator.errors import UserError
        from orchestrator.kernel.elf import build_id, has_dwarf

        if self._vmlinux is not None:
            return KernelFiles.of(self._vmlinux)
        if own.is_file() and has_dwarf(own):
            return KernelFiles.of(own)
        if self._patchset is None:
            raise UserError(
                "the guest's kernel was built without debugging information; name its patchset with --patchset, and "
                "its --config and --series if they are not the default."
            )
        plain, with_types = self._built(self._patchset)
        if not own.is_file():
            return KernelFiles.of(with_types)
        if plain is None or build_id(plain) != build_id(own):
            raise UserError(
                f"the guest does not run {self._patchset} as the options describe it: its build ID is {build_id(own)}; "
                "name its patchset, and its --config and --series if they are not the default."
            )
        return KernelFiles.of(own, with_types)

    def opened(self, attach: Callable[[KernelFiles], GuestMemory]) -> GuestMemory:
        """The memory of a guest of which nothing says whether its kernel had debugging information.

        Raises:
            UserError: the kernel of the options is not the one in the memory.
        """
        from orchestrator.debugger.memory import KernelFiles
        from orchestrator.errors import UserError

        if self._vmlinux is not None:
            return attach(KernelFiles.of(self._vmlinux))
        if self._patchset is None:
            raise UserError("name the kernel in the dump: --patchset NAME or --vmlinux FILE.")
        plain, with_types = self._built(self._patchset)
        try:
            return attach(KernelFiles.of(with_types))
        except UserError:
            if plain is None:
                raise
            return attach(KernelFiles.of(plain, with_types))

    def _built(self, patchset: str) -> tuple[Path | None, Path]:
        """The vmlinux without debugging information, if it is in the cache, and that with it."""
        flavour, source, series, build_jobs = self._settings
        with self._terminal.events() as events:
            bench = self._terminal.bench(
                events, source, flavour=flavour, build_jobs=build_jobs, series=series
            )
            bench.series.select(patchset)
            with_types = bench.kernel(patchset, dwarf=True).vmlinux
            plain = bench.kernel(patchset).vmlinux if bench.has_kernel(patchset) else None
        return plain, with_types


def _checked(memory: GuestMemory) -> tuple[Inspection, list[BrokenRule]]:
    from orchestrator.debugger.inspection import inspect
    from orchestrator.debugger.violation import violations

    inspection = inspect(memory)
    return inspection, violations(inspection)


def _look(live: Attached, save: Path | None = None) -> tuple[Inspection, list[BrokenRule]]:
    """Inspect a running guest; a violation counts if it does not go away."""
    from orchestrator.debugger.violation import lasting

    with live.stopped() as memory:
        inspection, found = _checked(memory)
        if save is not None:
            live.save(save)
    for _ in range(_TIMES - 1):
        if not found:
            break
        time.sleep(_AGAIN_S)
        with live.stopped() as memory:
            inspection, again = _checked(memory)
        found = lasting(found, again)
    return inspection, found


def _watch(live: Attached, directory: Path, every_s: float, report: _InspectionReport) -> None:
    """Inspect a guest until it ends, or the user presses Ctrl-C."""
    from orchestrator.debugger.memory import RunningGuest
    from orchestrator.errors import InfrastructureError, UserError

    began = time.monotonic()
    with _until_interrupted():
        while True:
            at_s = time.monotonic() - began
            try:
                report.line(*_look(live), at_s)
            except InfrastructureError:
                time.sleep(_AGAIN_S)
                try:
                    RunningGuest.in_directory(directory)
                except UserError:  # it has ended meanwhile
                    return
                raise
            time.sleep(max(0.0, at_s + every_s - (time.monotonic() - began)))


@contextmanager
def _until_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        return
