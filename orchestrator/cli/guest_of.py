# SPDX-License-Identifier: GPL-2.0-only
"""A booted guest for interactive use: common code of ``boot``, ``shell``, ``exec`` and ``debug``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.cli.terminal import Terminal
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.temporary import temporary_directory

if TYPE_CHECKING:
    from orchestrator.events import Events
    from orchestrator.execution.bench import Bench, Booted
    from orchestrator.guest.image import GuestImage
    from orchestrator.kernel.build import KernelBuild
    from orchestrator.machine.topology import Topology

#: Files of a guest in its log directory; those of another guest must not be overwritten.
_CONSOLE = "console.log"


@dataclass(frozen=True)
class GuestRequest:
    """The guest that the options request.

    Args:
        patchset: None if `kernel` is given.
        settings: ``KEY=VALUE``, one value per knob.
        logs: directory for the logs of the guest; None to keep nothing.
        gdb: serve gdb.
        dwarf: build the kernel with debugging information.
        breakpoints: places that the kernel must have.
        kernel, vmlinux: files of a kernel that was built elsewhere.
        keep: keep the guest if it fails, for gdb.
        clone: start a clone of a saved boot where that is possible.
    """

    patchset: str | None
    topology: str
    accel: str = "auto"
    settings: Sequence[str] | None = None
    cmdline: Sequence[str] | None = None
    flavour: str = "measure"
    source: str | None = None
    series: Path | None = None
    build_jobs: int | None = None
    logs: Path | None = None
    gdb: bool = False
    dwarf: bool = False
    breakpoints: Sequence[str] = ()
    clone: bool = False
    keep: bool = False
    kernel: str | None = None
    vmlinux: str | None = None

    @property
    def name(self) -> str:
        """The patchset, or a name for the kernel that takes its place."""
        return self.patchset or "kernel"

    def check(self) -> None:
        """Check that exactly one kernel is named.

        Raises:
            UserError: it is not, or an option does not go with it.
        """
        if self.patchset is None and self.kernel is None:
            raise UserError("give a patchset, e.g. --patchset baseline, or a kernel with --kernel BZIMAGE.")
        if self.patchset is not None and self.kernel is not None:
            raise UserError("--kernel takes the place of a patchset; omit --patchset or --kernel.")
        if self.kernel is None and self.vmlinux is not None:
            raise UserError("--vmlinux goes with --kernel; give --kernel BZIMAGE too.")
        if self.kernel is not None and self.gdb and self.vmlinux is None:
            raise UserError("gdb needs the vmlinux of --kernel; give --vmlinux.")


@dataclass(frozen=True)
class Up:
    """A running guest, with its kernel and image."""

    booted: Booted
    kernel: KernelBuild
    image: GuestImage
    bench: Bench


def guest_of(terminal: Terminal, request: GuestRequest, use: Callable[[Up], int]) -> int:
    """Boot a guest, let a command use it, and report how it ended.

    Progress is shown until the guest is up; then the command uses the terminal. Reports of the kernel are printed,
    however the command ended.

    Args:
        use: returns the exit status of the command.

    Returns:
        The exit status of the command, or instead: 3 if the kernel died, 1 if the guest was lost because of the host
        or the tool, and 3 instead of 0 if the kernel reported a problem.

    Raises:
        UserError: an option is wrong, a knob has several values, or the kernel has no such breakpoint.
        InfrastructureError: the host failed before the guest was up.
    """
    from orchestrator.execution.ending import GuestEnded
    from orchestrator.guest.ssh import check_loopback
    from orchestrator.machine.topology import Topology

    request.check()
    topology = Topology.parse(request.topology)
    topology.check_host(1)
    check_loopback()  # before a kernel is built
    booted: Booted | None = None
    with _log_directory(request.logs) as logs:
        try:
            with ExitStack() as stack:
                with terminal.events() as events:
                    up = _booted(terminal, request, topology, events, logs, stack)
                booted = up.booted
                try:
                    status = use(up)
                except KeyboardInterrupt:
                    if not booted.findings():
                        raise
                    status = 0
                ending = booted.ending()
                if ending.is_lost and booted.machine.switched_off:
                    return status  # the guest shut itself down
        except GuestEnded as error:
            cause = error.__cause__
            if isinstance(cause, InfrastructureError) and str(cause) == error.ending.evidence:
                raise cause from None  # not caused by the guest
            if terminal.debug:
                raise
            ending, status = error.ending, error.exit_status
            if booted is None:
                _say(f"{request.name} did not come up:")
        if ending.is_ok:
            return status
        for report in ending.reports:
            typer.echo(report, err=True)
        kept = f"the logs are in {logs}" if request.logs else "--logs DIR keeps the console log"
        _say(f"{kept}.")
        is_gone = booted is None or booted.machine.failure is not None
        return ending.exit_status if is_gone else status or ending.exit_status


def _booted(
    terminal: Terminal,
    request: GuestRequest,
    topology: Topology,
    events: Events,
    logs: Path,
    stack: ExitStack,
) -> Up:
    """Boot the requested guest; it ends when `stack` is left."""
    from orchestrator.experiment.knob import parse_settings
    from orchestrator.experiment.variant import Variant, check_variant
    from orchestrator.store.manifest import Role

    others = {}
    if request.kernel is not None:
        from orchestrator.kernel.prebuilt import other_of_files

        others[request.name] = other_of_files(request.kernel, request.vmlinux)
    bench = terminal.bench(
        events,
        request.source,
        request.accel,
        request.flavour,
        request.build_jobs,
        request.series,
        others,
        keep=request.keep,
    )
    knobs = {}
    for key, values in parse_settings(request.settings or (), bench.series).items():
        if len(values) > 1:
            raise UserError(f"--set {key}: a guest takes one value, not {','.join(values)}.")
        knobs[key] = values[0]
    asked = Variant(request.name, Role.PATCHED, request.name, knobs, tuple(request.cmdline or ()))
    check_variant(asked, bench.series)
    kernel = bench.kernel(request.name, request.dwarf)
    if request.breakpoints:
        from orchestrator.debugger.gdb import check_places

        check_places(kernel.vmlinux, request.breakpoints)
    image = bench.image
    with events.step("boot", request.name) as step:
        step.note(bench.accelerator.reason)
        booted = stack.enter_context(
            bench.boot(
                kernel,
                topology,
                log_directory=logs,
                knobs=knobs,
                cmdline=request.cmdline or (),
                gdb=request.gdb,
                clone=request.clone,
            )
        )
    return Up(booted, kernel, image, bench)


@contextmanager
def _log_directory(wanted: Path | None) -> Iterator[Path]:
    """The directory for the guest's logs: the requested one, or a temporary one."""
    if wanted is None:
        with temporary_directory("logs") as directory:
            yield Path(directory)
        return
    if (wanted / _CONSOLE).exists():
        raise UserError(
            f"--logs {wanted}: this directory has the logs of another guest; name a new directory."
        )
    try:
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--logs {wanted}: cannot create this directory ({error.strerror}).") from error
    yield wanted


def _say(message: str) -> None:
    typer.echo(f"orchestrate: {message}", err=True)
