# SPDX-License-Identifier: GPL-2.0-only
"""A booted guest for a person: what ``boot``, ``shell``, ``exec`` and ``debug`` have in common."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.cli.terminal import Terminal
from orchestrator.errors import InfrastructureError, UserError

if TYPE_CHECKING:
    from orchestrator.execution.bench import Bench, Booted
    from orchestrator.guest.image import GuestImage
    from orchestrator.kernel.build import KernelBuild


@dataclass(frozen=True)
class Up:
    """A guest that is up, with what it was made of."""

    booted: Booted
    kernel: KernelBuild
    image: GuestImage
    bench: Bench

    def ended(self, status: int = 0) -> int:
        """The exit status of the command: its own status, or 3 where that is 0 and the kernel has reported anything.

        What it has reported is shown. To be called while the guest is still there.
        """
        findings = self.booted.machine.findings()
        for finding in findings:
            typer.echo(f"{finding.outcome}: {finding.title}\n{finding.text}", err=True)
        return status or (3 if findings else 0)


@contextmanager
def guest_of(
    terminal: Terminal,
    patchset: str,
    topology: str,
    accel: str,
    settings: Sequence[str] | None,
    cmdline: Sequence[str] | None,
    flavour: str,
    source: str | None,
    series: Path | None = None,
    *,
    gdb: bool = False,
    dwarf: bool = False,
    breakpoints: Sequence[str] = (),
) -> Iterator[Up]:
    """Boot a variant named by the flags; progress is shown until it is up, then the screen is the caller's.

    Raises:
        UserError: a flag is wrong, a knob is given several values, or the kernel has no such breakpoint.
        InfrastructureError: the guest did not come up; the sentence names the console log.
    """
    from orchestrator.experiment.knob import parse_settings
    from orchestrator.experiment.variant import Variant, check_variant
    from orchestrator.guest.ssh import GuestLost
    from orchestrator.machine.qemu import MachineFailure
    from orchestrator.machine.topology import Topology
    from orchestrator.store.manifest import Role

    asked = Topology.parse(topology)
    asked.check_host(1)
    with terminal.events() as events:
        bench = terminal.bench(events, source, accel, flavour, series=series)
        knobs = {}
        for key, values in parse_settings(settings or (), bench.series).items():
            if len(values) > 1:
                raise UserError(f"--set {key}: one guest takes one value, not {','.join(values)}.")
            knobs[key] = values[0]
        check_variant(Variant(patchset, Role.PATCHED, patchset, knobs), bench.series)
        kernel = bench.kernel(patchset, dwarf)
        if breakpoints:
            from orchestrator.debugger.gdb import check_places

            check_places(kernel.vmlinux, breakpoints)
        image = bench.image
        logs = Path(tempfile.mkdtemp(prefix="orchestrate-logs-"))
        with events.step("boot", patchset) as step:
            step.note(bench.accelerator.reason)
            context = bench.boot(
                kernel, asked, log_directory=logs, knobs=knobs, cmdline=cmdline or (), gdb=gdb
            )
            try:
                booted = context.__enter__()
            except (MachineFailure, GuestLost) as error:
                raise InfrastructureError(
                    f"{patchset} did not come up: {error}", logs / "console.log"
                ) from error
    try:
        yield Up(booted, kernel, image, bench)
    except (MachineFailure, GuestLost) as error:
        raise InfrastructureError(f"the guest went away: {error}", logs / "console.log") from error
    finally:
        context.__exit__(None, None, None)
