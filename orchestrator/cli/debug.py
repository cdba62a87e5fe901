# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate debug``: boot a variant and attach gdb to it through QEMU's gdb stub."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import option
from orchestrator.cli.terminal import terminal_of

NAME = "debug"
EXAMPLE = "Example: orchestrate debug --patchset core-only --topology 2x1G --break thp_resv_alloc"


def command(
    context: typer.Context,
    patchset: option.GuestPatchset = None,
    kernel: option.Kernel = None,
    vmlinux: option.Vmlinux = None,
    topology: option.Topology = "2x1G",
    accel: option.Accelerator = "tcg",
    qemu: option.Qemu = None,
    settings: option.Settings = None,
    cmdline: option.Cmdline = None,
    flavour: option.Flavour = "measure",
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    build_jobs: option.BuildJobs = None,
    logs: option.Logs = None,
    breakpoints: Annotated[
        list[str] | None,
        typer.Option("--break", "-b", metavar="SYMBOL", help="Set a breakpoint at this symbol; repeatable."),
    ] = None,
    batch: Annotated[
        list[str] | None,
        typer.Option(
            "--command",
            "-x",
            metavar="COMMAND",
            help="Run this gdb command, print its output and continue; repeatable.",
        ),
    ] = None,
) -> int:
    """Boot a variant built with debugging information, and attach gdb with the matching vmlinux."""
    from orchestrator.cli.guest_of import GuestRequest, Up, guest_of
    from orchestrator.debugger.gdb import Gdb
    from orchestrator.guest.ssh import ssh_command

    terminal = terminal_of(context)

    def use(up: Up) -> int:
        machine = up.booted.machine
        assert machine.gdb_socket is not None
        notes = up.booted.guest.read_bytes("/sys/kernel/notes")
        terminal.print("shell    " + " ".join(ssh_command(machine.ssh_port, up.image)))
        with Gdb.attach(machine.gdb_socket, up.kernel.vmlinux, notes) as gdb:
            for symbol in breakpoints or ():
                gdb.break_at(symbol)
            if batch:  # an interactive user notices it without a message
                machine.on_failure(lambda failure: gdb.stop_waiting())
            for line in batch or ():
                terminal.print(gdb.command(line))
            if not batch:
                gdb.interactive()
        return 0

    request = GuestRequest(
        patchset, topology, accel, settings, cmdline, flavour, source, series, build_jobs, logs,
        kernel=kernel, vmlinux=vmlinux, gdb=True, dwarf=True, breakpoints=breakpoints or (),
    )  # fmt: skip
    return guest_of(terminal, request, use)
