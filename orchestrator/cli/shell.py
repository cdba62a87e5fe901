# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate shell``: boot a variant and open an SSH shell in it."""

from __future__ import annotations

import typer

from orchestrator.cli import option
from orchestrator.cli.terminal import terminal_of

NAME = "shell"
EXAMPLE = "Example: orchestrate shell --patchset core-only --set promotion_threshold=64"


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
) -> int:
    """Boot a variant and open an SSH shell in it; the guest stops when the shell exits."""
    from orchestrator.cli.guest_of import guest_of
    from orchestrator.guest.ssh import ssh_command
    from orchestrator.process import spawn

    terminal = terminal_of(context)
    with guest_of(terminal, patchset, topology, accel, settings, cmdline, flavour, source, series) as up:
        # stdin, stdout and stderr are the person's own: ssh makes the terminal raw and restores it.
        argv = ssh_command(up.booted.machine.ssh_port, up.image)
        return up.ended(spawn(argv, stdin=None, stdout=None, stderr=None, own_session=False).wait())
