# SPDX-License-Identifier: GPL-2.0-only
"""A guest of another process: gdb's way into a cell while it runs, or into one that was kept after a failure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pexpect

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.machine.console import dialogue
from orchestrator.machine.description import MachineDescription

_PROMPT = "(qemu) "
#: Host seconds for an answer of QEMU's human monitor.
_ANSWER_S = 10.0


@dataclass(frozen=True)
class LiveMachine:
    """A machine that another process runs.

    Args:
        name: name of its cell or log directory, for messages.
        monitor: socket of QEMU's human monitor.
        gdb: socket for gdb; None if QEMU does not serve gdb yet.
    """

    name: str
    monitor: Path
    gdb: Path | None

    @classmethod
    def of_directory(cls, directory: Path) -> LiveMachine:
        """The machine with this log directory.

        Raises:
            UserError: it has no machine, or one that has ended.
        """
        machine = MachineDescription.read(directory)
        if machine is None:
            raise UserError(f"{directory} has no guest yet; wait until its cell runs.")
        name = directory.name
        if not machine.runs_with(machine.monitor):
            raise UserError(
                f"the guest of {name} has ended; attach to a cell that runs, or use --keep-on-failure in the next run."
            )
        return cls(name, machine.monitor, machine.gdb)

    def serve_gdb(self) -> Path:
        """The socket for gdb; QEMU starts to serve gdb if it did not.

        Raises:
            InfrastructureError: QEMU does not answer, or cannot serve gdb.
        """
        if self.gdb is not None:
            return self.gdb
        socket = self.monitor.with_name("gdb")
        if not socket.exists():
            said = self.ask(f"gdbserver unix:{socket},server=on,wait=off")
            if not socket.exists():
                raise InfrastructureError(f"QEMU cannot serve gdb for {self.name}: {said.strip()}")
        return socket

    def ask(self, command: str, timeout_s: float = _ANSWER_S) -> str:
        """Run a command of QEMU's human monitor and return its output.

        Raises:
            InfrastructureError: QEMU does not answer in time, e.g. as another client uses the monitor.
        """
        try:
            with dialogue(self.monitor, timeout_s) as monitor:
                monitor.expect_exact(_PROMPT)
                monitor.sendline(command)
                monitor.expect_exact("\n")  # its echo
                monitor.expect_exact(_PROMPT)
                return str(monitor.before or "").replace("\r\n", "\n")
        except (OSError, pexpect.ExceptionPexpect) as error:
            raise InfrastructureError(
                f"the monitor of {self.name} did not answer {command!r} within {timeout_s:g} s."
            ) from error
