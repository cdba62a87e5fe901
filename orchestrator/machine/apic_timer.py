# SPDX-License-Identifier: GPL-2.0-only
"""Tells an emulated guest's kernel the frequency of its local APIC timer, so that it need not measure it.

Linux measures the frequency for 100 ms of guest time (calibrate_APIC_clock() in arch/x86/kernel/apic/apic.c), in a loop
with PAUSE. QEMU leaves its execution loop at each PAUSE, so with icount these 100 ms take longer than the rest of the
boot. Some hypervisors tell the frequency by CPUID, and Linux stores it in ``lapic_timer_period``; QEMU has no such leaf
for TCG. So QEMU's gdb stub stores the same value where the measurement would begin.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: Frequency of QEMU's local APIC timer: its counter counts nanoseconds (hw/intc/apic.c).
FREQUENCY_HZ = 1_000_000_000
#: The function that measures the frequency unless it is known, and the variable that it checks. Both have had these
#: names since Linux 5.3.
FUNCTION = "setup_boot_APIC_clock"
VARIABLE = "lapic_timer_period"


@dataclass(frozen=True)
class ApicTimer:
    """Where a kernel keeps the frequency of the timer.

    Args:
        function: link address of :data:`FUNCTION`.
        variable: link address of :data:`VARIABLE`, an unsigned int.
        hz: jiffies per second (CONFIG_HZ).
    """

    function: int
    variable: int
    hz: int

    @property
    def period(self) -> int:
        """Cycles of the timer per jiffy."""
        return FREQUENCY_HZ // self.hz


class StubError(Exception):
    """QEMU's gdb stub did not do what it was asked to."""


class Stub:
    """A connection to QEMU's gdb stub (GDB manual, appendix "GDB Remote Serial Protocol").

    The guest's CPUs stop when it is opened.

    Args:
        path: socket of the stub.

    Raises:
        OSError: QEMU does not listen on the socket.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._unread = b""

    def close(self) -> None:
        """Disconnect. May be called repeatedly, and from another thread, which ends :meth:`answer`."""
        with suppress(OSError):  # it is closed already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def ask(self, command: str) -> str:
        """Send a command and return the answer.

        Raises:
            StubError: the connection has ended.
        """
        self.send(command)
        return self.answer()

    def send(self, command: str) -> None:
        """Send a command.

        Raises:
            StubError: the connection has ended.
        """
        data = command.encode("ascii")
        try:
            self._socket.sendall(b"$%s#%02x" % (data, sum(data) & 0xFF))
        except OSError as error:
            raise StubError(f"the gdb stub is gone: {error}") from error

    def answer(self) -> str:
        """Wait for the next packet, without a time limit.

        Raises:
            StubError: the connection has ended.
        """
        while True:
            begin = self._unread.find(b"$")
            end = self._unread.find(b"#", begin)
            if begin >= 0 and end >= 0 and len(self._unread) >= end + 3:
                packet = self._unread[begin + 1 : end]
                self._unread = self._unread[end + 3 :]
                try:
                    self._socket.sendall(b"+")
                except OSError as error:
                    raise StubError(f"the gdb stub is gone: {error}") from error
                return packet.decode("ascii", errors="replace")
            try:
                received = self._socket.recv(4096)
            except OSError as error:
                raise StubError(f"the gdb stub is gone: {error}") from error
            if not received:
                raise StubError("the gdb stub is gone")
            self._unread += received


def tell_frequency(stub: Stub, timer: ApicTimer) -> None:
    """Start the CPUs of a machine that waits for gdb, and tell the kernel the frequency; returns when it knows.

    The CPUs run afterwards, and the stub is free for gdb.

    Raises:
        StubError: the machine ended before its kernel came so far, or the stub refused a command.
    """
    breakpoint_ = f"0,{timer.function:x},1"
    try:
        _do(stub, f"Z{breakpoint_}")
        _tell(stub, timer)
    except StubError:
        # Nobody would continue a guest that stops there later.
        stub.send(f"z{breakpoint_}")
        stub.send("D")
        raise
    _do(stub, f"z{breakpoint_}")
    _do(stub, "D")


def _tell(stub: Stub, timer: ApicTimer) -> None:
    stopped = stub.ask("c")
    if not stopped.startswith(("T05", "S05")):
        raise StubError(f"the guest stopped for another reason: {stopped}")
    # A kernel that was told by its hypervisor keeps what it knows.
    if stub.ask(f"m{timer.variable:x},4") == "00000000":
        _do(stub, f"M{timer.variable:x},4:{timer.period.to_bytes(4, 'little').hex()}")


def _do(stub: Stub, command: str) -> None:
    answer = stub.ask(command)
    if answer != "OK":
        raise StubError(f"the gdb stub answers {answer!r} to {command!r}")
