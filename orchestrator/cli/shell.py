# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate shell``: boot a variant and open an SSH shell in it."""

from __future__ import annotations

import typer

from orchestrator.cli import option
from orchestrator.cli.terminal import terminal_of

#: Exit status of ssh(1) if the connection failed; all others are those of the shell.
_SSH_FAILED = 255
#: Host seconds for the machine to notice that the guest has ended.
_REASON_S = 5.0

NAME = "shell"
EXAMPLE = "Example: orchestrate shell --patchset core-only --set promotion_threshold=64"


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
) -> int:
    """Boot a variant and open an SSH shell in it; the guest stops when the shell exits."""
    from orchestrator.cli.guest_of import GuestRequest, Up, guest_of
    from orchestrator.guest.ssh import GuestLost, ssh_command
    from orchestrator.process import spawn

    def use(up: Up) -> int:
        # ssh uses the user's stdin, stdout and stderr: it makes the terminal raw and restores it.
        argv = ssh_command(up.booted.machine.ssh_port, up.image)
        status = spawn(argv, stdin=None, stdout=None, stderr=None, own_session=False).wait()
        if status != _SSH_FAILED:
            return status
        machine = up.booted.machine
        reason = machine.why(_REASON_S)
        if machine.switched_off:
            return 0
        raise GuestLost(str(reason or "the connection of the shell broke, but the guest still runs"), reason)

    return guest_of(
        terminal_of(context),
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
