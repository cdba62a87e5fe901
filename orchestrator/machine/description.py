# SPDX-License-Identifier: GPL-2.0-only
"""``machine.json`` in a log directory: how another process reaches the guest while it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from orchestrator.errors import UserError

FILE: Final = "machine.json"


@dataclass(frozen=True)
class MachineDescription:
    """What is needed to reach a machine of another process.

    Args:
        alive: whether it ran when this was written.
        pid: process ID of QEMU.
        monitor: socket of QEMU's human monitor.
        control: QMP socket for commands; None if QEMU was started without one.
        memory: QMP socket for drgn; None if QEMU was started without one.
        gdb: socket for gdb; None if QEMU does not serve gdb yet.
        argv: QEMU's command line.
    """

    alive: bool
    pid: int
    monitor: Path
    control: Path | None
    memory: Path | None
    gdb: Path | None
    argv: tuple[str, ...]

    @classmethod
    def read(cls, directory: Path) -> MachineDescription | None:
        """The machine with this log directory; None if there is none yet.

        Raises:
            UserError: the description is damaged.
        """
        path = directory / FILE
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            control, memory, gdb = (
                Path(facts[name]) if facts.get(name) else None for name in ("control", "memory", "gdb")
            )
            return cls(
                alive=facts["alive"] is True,
                pid=int(facts["pid"]),
                monitor=Path(facts["monitor"]),
                control=control,
                memory=memory,
                gdb=gdb,
                argv=tuple(map(str, facts["argv"])),
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); boot the guest again.") from error

    def runs_with(self, socket: Path | None) -> bool:
        """Whether the machine still runs and has this socket. A description outlives a process that was killed."""
        return self.alive and Path(f"/proc/{self.pid}").exists() and socket is not None and socket.exists()


def write_description(directory: Path, facts: Mapping[str, Any]) -> None:
    """Write ``machine.json`` atomically; it has at least the keys that :class:`MachineDescription` has as fields."""
    temporary = directory / f".{FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    temporary.replace(directory / FILE)
