# SPDX-License-Identifier: GPL-2.0-only
"""Keeps a guest that failed: stopped, until the user has looked at it with gdb."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.kernel.build import KernelBuild
from orchestrator.machine.qemu import Machine

#: Host seconds after which a kept guest ends.
KEPT_S = 3600.0
_LOOK_S = 0.5


@dataclass(frozen=True)
class Keeper:
    """Keeps guests for `--keep-on-failure`.

    Args:
        say: prints a message for the user.
        limit_s: host seconds after which a guest ends if nobody ends it before.
    """

    say: Callable[[str], object]
    limit_s: float = KEPT_S
    _released: threading.Event = field(default_factory=threading.Event)

    def keep(self, machine: Machine, kernel: KernelBuild, why: str) -> bool:
        """Stop a guest, say how to attach to it, and wait until :meth:`release` or the limit.

        Args:
            why: how it failed, in one line.

        Returns:
            Whether it was kept; False if its QEMU had ended.
        """
        if self._released.is_set() or machine.gdb_socket is None or not machine.stop():
            return False
        attach = ["gdb", "-ex", f"target remote {machine.gdb_socket}", str(kernel.vmlinux)]
        self.say(
            f"kept the guest of {machine.log_dir.name} ({why})\n"
            f"attach to it: {shlex.join(attach)}\n"
            f"monitor:      socat -,rawer UNIX-CONNECT:{machine.sockets.monitor}\n"
            f"waiting at most {self.limit_s / 60:g} minutes; `kill` in gdb ends the guest, Ctrl-C the command"
        )
        until = time.monotonic() + self.limit_s
        while machine.has_process and time.monotonic() < until and not self._released.wait(_LOOK_S):
            pass
        return True

    def release(self) -> None:
        """End all waits, now and later."""
        self._released.set()
