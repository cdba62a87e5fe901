# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate boot``: boot a variant, say how to reach it, and keep it up until Ctrl-C."""

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
    patchset: option.Patchset,
    topology: option.Topology = option.DEFAULT_TOPOLOGY,
    accel: option.Accelerator = "auto",
    settings: option.Settings = None,
    cmdline: option.Cmdline = None,
    flavour: option.Flavour = "measure",
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    check: Annotated[
        bool, typer.Option("--check", help="Shut the guest down as soon as it is up; for scripts.")
    ] = False,
) -> int:
    """Boot a variant, print how to connect to it, and keep it running until it ends or Ctrl-C."""
    from orchestrator.cli.guest_of import guest_of
    from orchestrator.guest.ssh import ssh_command

    terminal = terminal_of(context)
    with guest_of(terminal, patchset, topology, accel, settings, cmdline, flavour, source, series) as up:
        terminal.print(f"up after {up.booted.boot_s:.1f} s; console log {up.booted.machine.console_log}")
        terminal.print("shell    " + " ".join(ssh_command(up.booted.machine.ssh_port, up.image)))
        machine = up.booted.machine
        try:
            while not check and machine.alive:
                time.sleep(0.2)
        except KeyboardInterrupt:
            if up.ended():
                return 3
            raise
        status = up.ended()
        if not status and not machine.switched_off:
            machine.watch()
        return status
