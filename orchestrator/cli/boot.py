# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate boot``: boot a variant, print how to connect to it, and keep it running until Ctrl-C."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from orchestrator.cli import option
from orchestrator.cli.terminal import terminal_of

NAME = "boot"
EXAMPLE = "Example: orchestrate boot --patchset core-only --topology 2x1G --set promotion_threshold=256"


def command(
    context: typer.Context,
    patchset: option.GuestPatchset = None,
    kernel: option.Kernel = None,
    vmlinux: option.Vmlinux = None,
    topology: option.Topology = option.DEFAULT_TOPOLOGY,
    accel: option.Accelerator = "auto",
    qemu: option.Qemu = None,
    settings: option.Settings = None,
    cmdline: option.Cmdline = None,
    flavour: option.Flavour = "measure",
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    build_jobs: option.BuildJobs = None,
    logs: option.Logs = None,
    check: Annotated[
        bool, typer.Option("--check", help="Shut the guest down as soon as it is up; for scripts.")
    ] = False,
) -> int:
    """Boot a variant, print how to connect to it, and keep it running until it shuts down or you press Ctrl-C."""
    from orchestrator.cli.guest_of import GuestRequest, Up, guest_of
    from orchestrator.guest.ssh import ssh_command

    terminal = terminal_of(context)

    def use(up: Up) -> int:
        machine = up.booted.machine
        terminal.print(f"up after {up.booted.boot_s:.1f} s; console log {machine.console_log}")
        terminal.print("shell    " + " ".join(ssh_command(machine.ssh_port, up.image)))
        while not check and machine.alive:
            time.sleep(0.2)
        return 0

    return guest_of(
        terminal,
        GuestRequest(
            patchset,
            topology,
            accel,
            settings,
            cmdline,
            flavour,
            source,
            series,
            build_jobs,
            logs,
            kernel=kernel,
            vmlinux=vmlinux,
        ),
        use,
    )
