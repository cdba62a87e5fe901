# SPDX-License-Identifier: GPL-2.0-only
"""gdb on a live guest: a reservation is seen being made, its arguments are read, and the guest goes on unharmed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from orchestrator.debugger.gdb import ARGUMENT_REGISTERS, Gdb
from orchestrator.errors import UserError
from orchestrator.execution.bench import Bench, Booted
from orchestrator.guest.workload import WorkloadResult, run_workload
from orchestrator.kernel.build import KernelBuild

#: Boots a kernel on a topology, see the fixture.
Boot = Callable[..., AbstractContextManager[Booted]]

#: Where the series makes a reservation (kernel_patches/).
FUNCTION = "thp_resv_alloc"
HUGE_PAGE = 2 << 20
TIMEOUT_S = 300.0


class Touch:
    """The workload ``touch``, on a thread of its own: a guest at a breakpoint answers nobody."""

    def __init__(self, bench: Bench, booted: Booted, log_directory: Path) -> None:
        self.result: WorkloadResult | None = None
        self.error: BaseException | None = None

        def run() -> None:
            try:
                self.result = run_workload(
                    booted.guest,
                    bench.workloads["touch"],
                    {"memory": "8M"},
                    1,
                    "ns",
                    log_directory,
                    TIMEOUT_S,
                )
            except BaseException as error:
                self.error = error

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def finish(self) -> WorkloadResult:
        self._thread.join(TIMEOUT_S)
        if self.error is not None:
            raise self.error
        assert self.result is not None, "the workload did not end"
        return self.result


def attached(booted: Booted, kernel: KernelBuild, transcript: Path) -> Gdb:
    assert booted.machine.gdb_socket is not None
    notes = booted.guest.read_bytes("/sys/kernel/notes")
    return Gdb.attach(booted.machine.gdb_socket, kernel.vmlinux, notes, transcript)


def unharmed(booted: Booted, touch: Touch) -> None:
    assert touch.finish().status.status == 0
    assert booted.guest.run(["uname", "-s"], timeout_s=TIMEOUT_S).stdout == "Linux\n"
    assert booted.machine.findings() == []
    booted.machine.watch()


def test_a_reservation_is_seen_by_name(
    bench: Bench, boot: Boot, dwarf_kernel: KernelBuild, tmp_path: Path
) -> None:
    with boot(dwarf_kernel, knobs={"promotion_threshold": "256"}, gdb=True) as booted:
        with attached(booted, dwarf_kernel, tmp_path / "gdb.log") as gdb:
            gdb.break_at(FUNCTION)
            gdb.continue_()
            touch = Touch(bench, booted, tmp_path)
            stop = gdb.wait_stop(TIMEOUT_S)
            assert stop.function == FUNCTION and "reakpoint" in stop.reason
            assert stop.args_by_name and set(stop.args) == {"vma", "haddr"}
            vma, haddr = stop.args["vma"], stop.args["haddr"]
            assert isinstance(vma, int) and isinstance(haddr, int)
            assert vma > 1 << 63, "a pointer into the kernel"
            assert haddr % HUGE_PAGE == 0
            start, end = gdb.evaluate("vma->vm_start"), gdb.evaluate("vma->vm_end")
            assert isinstance(start, int) and isinstance(end, int)
            assert start <= haddr < haddr + HUGE_PAGE <= end
            assert any("fault" in frame.function for frame in gdb.backtrace()), (
                "a first touch is a page fault"
            )
        unharmed(booted, touch)


def test_without_dwarf_the_registers_are_read(
    bench: Bench, boot: Boot, kernel: KernelBuild, tmp_path: Path
) -> None:
    with boot(kernel, knobs={"promotion_threshold": "256"}, gdb=True) as booted:
        with attached(booted, kernel, tmp_path / "gdb.log") as gdb:
            gdb.break_at(FUNCTION)
            gdb.continue_()
            touch = Touch(bench, booted, tmp_path)
            stop = gdb.wait_stop(TIMEOUT_S)
            assert stop.function == FUNCTION and "reakpoint" in stop.reason
            assert not stop.args_by_name and tuple(stop.args) == ARGUMENT_REGISTERS
            vma, haddr = stop.args["rdi"], stop.args["rsi"]
            assert isinstance(vma, int) and vma > 1 << 63
            assert isinstance(haddr, int) and haddr % HUGE_PAGE == 0 and 0 < haddr < 1 << 47
        unharmed(booted, touch)


def test_the_vmlinux_of_another_kernel_is_refused(
    boot: Boot, kernel: KernelBuild, baseline_kernel: KernelBuild, tmp_path: Path
) -> None:
    with boot(kernel, gdb=True) as booted:
        with pytest.raises(UserError, match="give gdb the vmlinux of the kernel that was booted"):
            attached(booted, baseline_kernel, tmp_path / "gdb.log")
        assert booted.guest.run(["true"], timeout_s=TIMEOUT_S).status == 0
