# SPDX-License-Identifier: GPL-2.0-only
"""Holds a task of the guest at a point of the kernel while the rest of the guest runs.

gdb stops and continues all CPUs together. So a held task is made to spin instead: its program counter is set to a
loop of two instructions, which is written into the padding between two functions, and is set back to release it.
Its registers, stack and locks stay as they are, and its CPU still answers interrupts, also those that flush the TLB
of other CPUs. A kernel without kernel preemption (CONFIG_PREEMPT_VOLUNTARY) does not switch to another task there.
So the guest needs one CPU more than it has held tasks, and a point must not have interrupts disabled.

No debugging information is needed: the current task is found by symbols.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from orchestrator.debugger.gdb import Gdb, GdbError, Stop, StopTimeout
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.kernel.elf import symbol_address, text_symbols

#: ``1: pause; jmp 1b``. QEMU's single-threaded TCG goes on to the next CPU at a pause.
_LOOP = bytes.fromhex("f390ebfc")
#: What the compiler puts between two functions (int3).
_PADDING = b"\xcc" * len(_LOOP)
#: Symbols of the current task, by kernel version: Linux 6.2 to 6.14 have it first in a struct; others by itself.
_CURRENT = ("pcpu_hot", "current_task")
#: How often, and for how many host seconds each, a held CPU may leave an interrupt before it is released.
_TRIES = 200
_TRY_S = 0.01


@dataclass(frozen=True)
class Held:
    """A task that is held.

    Args:
        task: address of its ``task_struct``.
        pc: where it goes on.
        loop: where it spins.
    """

    task: int
    pc: int
    loop: int


class Holder:
    """Holds and releases tasks; the guest must be stopped for each call.

    Args:
        gdb: attached to the guest.
        vmlinux: its kernel.

    Raises:
        UserError: this kernel has no padding to spin in, or no symbol of the current task.
    """

    def __init__(self, gdb: Gdb, vmlinux: Path) -> None:
        self._gdb = gdb
        self._current = _current_symbol(vmlinux)
        self._free = self._loops(vmlinux)
        self._written: set[int] = set()
        #: A breakpoint that another CPU hit while a task was being released.
        self.pending: Stop | None = None

    def current(self, thread: int) -> int:
        """The address of the task that runs on a CPU, in kernel mode or not.

        Args:
            thread: gdb's number of the CPU.
        """
        offset = f"((unsigned long *)&__per_cpu_offset)[{thread - 1}]"
        return self._gdb.number(f"*(unsigned long *)({offset} + (unsigned long)&{self._current})")

    def is_current(self, task: str) -> str:
        """The condition of a breakpoint: only for this task.

        Args:
            task: a C expression with its address, e.g. ``*(unsigned long *)&khugepaged_thread``.
        """
        offset = "((unsigned long *)&__per_cpu_offset)[$_thread - 1]"
        return f"*(unsigned long *)({offset} + (unsigned long)&{self._current}) == ({task})"

    def hold(self, stop: Stop) -> Held:
        """Hold the task that a stop is about."""
        loop = next(self._free, None)
        if loop is None:
            raise UserError(
                "this kernel has no padding between its functions that a held task could spin in."
            )
        if loop not in self._written:
            self._gdb.write_memory(loop, _LOOP)
            self._written.add(loop)
        held = Held(self.current(stop.thread), stop.pc, loop)
        self._gdb.select(stop.thread)
        self._gdb.assign("$rip", loop)
        return held

    def release(self, held: Held) -> None:
        """Let a held task go on when the guest is next continued.

        Raises:
            InfrastructureError: its CPU does not come back from an interrupt.
        """
        for _ in range(_TRIES):
            for thread in range(1, self._gdb.threads() + 1):
                self._gdb.select(thread)
                if held.loop <= self._gdb.number("$rip") < held.loop + len(_LOOP):
                    self._gdb.assign("$rip", held.pc)
                    return
            self._let_run()
        raise InfrastructureError(f"the task held at {held.pc:#x} does not come back from an interrupt.")

    def restore(self) -> None:
        """Remove the loops; no task may be held."""
        for loop in self._written:
            self._gdb.write_memory(loop, _PADDING)
        self._written.clear()

    def _let_run(self) -> None:
        self._gdb.continue_()
        try:
            self.pending = self._gdb.wait_stop(_TRY_S)
        except StopTimeout:
            self._gdb.interrupt()

    def _loops(self, vmlinux: Path) -> Iterator[int]:
        symbols = sorted((each for each in text_symbols(vmlinux) if each.size), key=lambda each: each.address)
        for before, after in pairwise(symbols):
            end = before.address + before.size
            if after.address - end < len(_LOOP):
                continue
            try:
                found = self._gdb.read_memory(f"{end:#x}", str(len(_LOOP)))
            except GdbError:
                continue
            if found == _PADDING:
                yield end


def _current_symbol(vmlinux: Path) -> str:
    for name in _CURRENT:
        try:
            symbol_address(vmlinux, name)
        except UserError:
            continue
        return name
    raise UserError(f"{vmlinux} has no symbol {' or '.join(_CURRENT)}; the current task cannot be found.")
