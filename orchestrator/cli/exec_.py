# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate exec``: runs one command in a new guest, and exits with its status."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.cli import option
from orchestrator.cli.help import ArgvCommand
from orchestrator.cli.terminal import terminal_of

NAME = "exec"
CLASS = ArgvCommand
EXAMPLE = (
    "Example: orchestrate exec --patchset baseline --set vm.swappiness=10 -- grep thp_ /proc/vmstat\n\n"
    "A kernel built elsewhere: orchestrate exec --kernel bzImage --vmlinux vmlinux --qemu ~/qemu/build/"
    "qemu-system-x86_64 -- uname -r"
)


def command(
    context: typer.Context,
    argv: Annotated[
        list[str],
        typer.Argument(
            metavar="-- COMMAND [ARGUMENT]...", help="Command to run in the guest, without a shell."
        ),
    ],
    patchset: option.GuestPatchset = None,
    kernel: option.Kernel = None,
    vmlinux: option.Vmlinux = None,
    topology: option.Topology = option.DEFAULT_TOPOLOGY,
    accel: option.Accelerator = "auto",
    qemu: option.Qemu = None,
    settings: option.Settings = None,
    swap: option.Swap = None,
    cmdline: option.Cmdline = None,
    flavour: option.Flavour = "measure",
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    build_jobs: option.BuildJobs = None,
    logs: option.Logs = None,
    keep: option.KeepOnFailure = False,
    clone: Annotated[
        bool,
        typer.Option(
            "--clone/--no-clone",
            help="Start a clone of a guest that was booted and saved before, or boot a new one. A boot is saved per "
            "kernel, image, topology, accelerator and --cmdline.",
        ),
    ] = True,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", metavar="SECONDS", help="Timeout for the command, in seconds of host time.", min=1
        ),
    ] = 600,
) -> int:
    """Boot a variant, run one command in it, and exit with the command's status.

    Standard input goes to the command, and its output comes back byte for byte while it runs. In a shell loop,
    redirect its input from /dev/null, or it consumes the input of the loop, as ssh
    does.
    """
    from orchestrator.cli.guest_of import GuestRequest, Up, guest_of
    from orchestrator.experiment.knob import with_swap
    from orchestrator.guest.ssh import CommandTimeout

    def use(up: Up) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            end = up.booted.guest.attach(
                argv,
                stdin=sys.stdin.buffer if sys.stdin else None,
                stdout=sys.stdout.buffer,
                stderr=sys.stderr.buffer,
                timeout_s=timeout,
            )
        except CommandTimeout as late:
            typer.echo(f"orchestrate: {late} Use --timeout to give it more time.", err=True)
            if up.bench.keeper is not None:
                up.bench.keeper.keep(up.booted.machine, up.kernel, str(late))
            return 3
        if end.status is None:
            typer.echo(f"orchestrate: {argv[0]} was killed by signal {end.signal}.", err=True)
            return 3
        return end.status

    return guest_of(
        terminal_of(context),
        GuestRequest(
            patchset,
            topology,
            accel,
            with_swap(settings, swap),
            cmdline,
            flavour,
            source,
            series,
            build_jobs,
            logs,
            kernel=kernel,
            vmlinux=vmlinux,
            keep=keep,
            clone=clone,
        ),
        use,
    )
