# SPDX-License-Identifier: GPL-2.0-only
"""A guest of another process: gdb's way into a cell while it runs, or into one that was kept after a failure."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pexpect

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.machine.console import dialogue

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
        try:
            facts = json.loads((directory / "machine.json").read_text(encoding="utf-8"))
            name, pid, is_alive = directory.name, int(facts["pid"]), facts["alive"] is True
            monitor, gdb = Path(facts["monitor"]), facts.get("gdb")
        except FileNotFoundError:
            raise UserError(f"{directory} has no guest yet; wait until its cell runs.") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{directory / 'machine.json'} is damaged ({error}).") from error
        if not is_alive or not _runs(pid) or not monitor.exists():
            raise UserError(
                f"the guest of {name} has ended; attach to a cell that runs, or use --keep-on-failure in the next run."
            )
        return cls(name, monitor, Path(gdb) if gdb else None)

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


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
