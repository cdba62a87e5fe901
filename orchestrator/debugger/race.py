# SPDX-License-Identifier: GPL-2.0-only
"""Races in a fixed order: khugepaged is held at a point of the kernel while a test in the guest does something else.

The test (vm_images/guest/tests/race.c) prints what it wants, and is answered in a file of the guest::

    # race: hold after __thp_resv_charge        -> armed, then held (or missed)
    # race: release                             -> released
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from orchestrator.debugger.gdb import Gdb, Stop, StopTimeout
from orchestrator.debugger.hold import Held, Holder
from orchestrator.errors import UserError
from orchestrator.guest.ssh import CommandTimeout, GuestLost

#: File in which the test reads the answers.
CUE: Final = "/run/race"
#: Host seconds for khugepaged to come to a point. It scans every 10 ms of guest time.
COME_S: Final = 40.0
_KHUGEPAGED: Final = "*(unsigned long *)&khugepaged_thread"
_HOLD: Final = re.compile(r"# race: hold (?P<after>after )?(?P<function>\w+)")
_RELEASE: Final = "# race: release"


class RaceDirector:
    """Holds and releases khugepaged as the tests say. gdb must be attached; the guest runs between two calls.

    Args:
        gdb: attached to a guest that runs.
        vmlinux: its kernel; no debugging information is needed.
        answer: tells the test a word, in the file :data:`CUE`. The guest runs then.
        come_s: host seconds for khugepaged to come to a point.
    """

    def __init__(
        self, gdb: Gdb, vmlinux: Path, answer: Callable[[str], object], come_s: float = COME_S
    ) -> None:
        self._gdb = gdb
        self._answer = answer
        self._come_s = come_s
        self._holder = Holder(gdb, vmlinux)
        self._held: Held | None = None

    def heard(self, line: str) -> None:
        """Do what a line of the test's output wants; most lines want nothing.

        Raises:
            InfrastructureError: the guest or gdb ended.
        """
        match = _HOLD.fullmatch(line.rstrip())
        if match is not None:
            self._hold(match["function"], is_after=match["after"] is not None)
        elif line.rstrip() == _RELEASE:
            self.release()
            self._answer("released")

    def release(self) -> None:
        """Let khugepaged go on, if it is held, and remove all that was written into the kernel."""
        if self._held is None:
            return
        self._gdb.interrupt()
        self._holder.release(self._held)
        self._held = None
        self._holder.restore()
        self._gdb.continue_()

    def _hold(self, function: str, *, is_after: bool) -> None:
        self.release()  # of a test that did not
        self._gdb.interrupt()
        try:
            number = self._gdb.break_at(function, condition=self._holder.is_current(_KHUGEPAGED), first=True)
        except UserError:  # the test fails, and says at which point
            self._gdb.continue_()
            self._answer("armed")
            self._answer("missed")
            return
        self._gdb.continue_()
        # khugepaged may come, and the guest stop, before the answer has been delivered.
        arming = threading.Thread(target=self._arm, name="race", daemon=True)
        arming.start()
        stop = self._stop(number)
        if stop is not None and is_after:
            # Of this call: the address that it returns to, for khugepaged only.
            back = self._gdb.number("*(unsigned long *)$rsp")
            self._gdb.delete(number)
            number = self._gdb.break_at(f"*{back:#x}", condition=self._holder.is_current(_KHUGEPAGED))
            self._gdb.continue_()
            stop = self._stop(number)
        self._gdb.delete(number)
        if stop is not None:
            self._held = self._holder.hold(stop)
        self._gdb.continue_()
        arming.join()
        self._answer("held" if stop is not None else "missed")

    def _arm(self) -> None:
        with suppress(CommandTimeout, GuestLost):  # the next answer meets the same
            self._answer("armed")

    def _stop(self, number: int) -> Stop | None:
        """The stop at a breakpoint, with its CPU selected; None if khugepaged does not come. The guest stands."""
        try:
            stop = self._gdb.wait_stop(self._come_s)
        except StopTimeout:
            self._gdb.interrupt()
            return None
        if stop.breakpoint != number:
            return None
        self._gdb.select(stop.thread)
        return stop
