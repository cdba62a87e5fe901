# SPDX-License-Identifier: GPL-2.0-only
"""gdb on a live guest: a reservation is seen being made, its arguments are read, and the guest goes on unharmed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.debugger.batch import Batch, Event, run_batch
from orchestrator.debugger.gdb import ARGUMENT_REGISTERS, Gdb
from orchestrator.debugger.kernel_scripts import write_kernel_scripts
from orchestrator.debugger.live import LiveMachine
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.execution.bench import Bench, Booted
from orchestrator.execution.ending import GuestEnded
from orchestrator.execution.keeper import Keeper
from orchestrator.execution.measured_cell import measure_cell
from orchestrator.experiment.experiment import load_experiment
from orchestrator.guest.workload import WorkloadResult, run_workload
from orchestrator.kernel.build import KernelBuild
from orchestrator.machine.topology import Topology
from orchestrator.store.outcome import Outcome

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


def test_a_session_without_a_person(
    bench: Bench, boot: Boot, dwarf_kernel: KernelBuild, tmp_path: Path
) -> None:
    """A guest whose QEMU does not serve gdb yet: a condition, the kernel's scripts, a script of the user's, a dump."""
    script, dump = tmp_path / "script.py", tmp_path / "core"
    script.write_text('print("pid", int(gdb.parse_and_eval("$lx_current().pid")))\n')
    tree = bench.tree("core-only")
    (tmp_path / "scripts").mkdir()
    loader = write_kernel_scripts(tree.repository, tree.tree, tmp_path / "scripts")
    events: list[Event] = []
    with boot(dwarf_kernel, "1x640M", knobs={"promotion_threshold": "256"}) as booted:
        machine = LiveMachine.of_directory(booted.machine.log_dir)
        with Gdb.attach(machine.serve_gdb(), dwarf_kernel.vmlinux, transcript=tmp_path / "gdb.log") as gdb:
            gdb.check_kernel(dwarf_kernel.vmlinux)
            commands = [f"source {loader}", "lx-ps", "lx-dmesg"]
            batch = Batch([FUNCTION], f"haddr % {HUGE_PAGE} == 0", commands=commands, script=script)
            touches: list[Touch] = []
            assert run_batch(
                gdb, batch, events.append, lambda: touches.append(Touch(bench, booted, tmp_path))
            )
            assert [event["event"] for event in events] == ["stop", *["command"] * 3, "script"]
            assert "swapper/0" in events[2]["output"] and "Linux version" in events[3]["output"]
            assert events[4]["output"].startswith("pid ")
            gdb.delete()
            # A bound, and what it waited for.
            assert not run_batch(gdb, Batch(until="init_task.pid", timeout_s=1.0), events.append)
            assert events[-1]["waited_for"] == "init_task.pid to become other than 0"
            machine.ask(f"dump-guest-memory -p {dump}", TIMEOUT_S)
        with Gdb.open_core(dump, dwarf_kernel.vmlinux) as gdb:
            assert gdb.evaluate("init_task.comm") == '"swapper/0\\000\\000\\000\\000\\000\\000"'
        unharmed(booted, touches[0])


def test_a_guest_that_panics_is_kept(bench: Bench, baseline_kernel: KernelBuild, tmp_path: Path) -> None:
    said: list[str] = []
    found: list[str] = []

    def look(message: str) -> None:
        said.append(message)

        def attach() -> None:
            machine = LiveMachine.of_directory(tmp_path / "logs")
            with Gdb.attach(machine.serve_gdb(), baseline_kernel.vmlinux) as gdb:
                found.extend(frame.function for frame in gdb.backtrace())
            with suppress(InfrastructureError):  # it ends without an answer
                machine.ask("quit")

        threading.Thread(target=attach).start()

    keeping = replace(bench, keeper=Keeper(look, TIMEOUT_S))
    with (
        pytest.raises(GuestEnded, match="kernel-panic"),
        keeping.boot(baseline_kernel, Topology.parse("1x512M"), log_directory=tmp_path / "logs") as booted,
    ):
        booted.guest.run(["sh", "-c", "echo c >/proc/sysrq-trigger"], timeout_s=TIMEOUT_S)
    assert "attach to it: gdb -ex 'target remote /" in said[0]
    assert found, "it was there to be looked at"


def test_probes_of_a_cell(bench: Bench, dwarf_kernel: KernelBuild, tmp_path: Path) -> None:
    """A counter read from memory agrees with the guest's, a failure is injected, and the results are metrics."""
    file = tmp_path / "probes.toml"
    file.write_text(
        'topology = "1x640M"\naccel = "tcg"\nrepeat = 1\n'
        '[[variant]]\nname = "baseline"\npatchset = "baseline"\n'
        '[[variant]]\nname = "core"\npatchset = "core-only"\nset = { promotion_threshold = 256 }\n'
        '[workload.touch]\nmemory = "8M"\n'
        '[[probe]]\nat = "thp_resv_insert"\nhit = 2\ndo = ["capture", "sample"]\nfields = ["resv->index"]\n'
        f'[[probe]]\nat = "{FUNCTION}"\nhit = 1\ndo = "return = 0"\n'
    )
    asked = load_experiment(file, bench.series, bench.workloads)
    cell = next(each for each in asked.cells if each.variant == "core")
    result = measure_cell(cell, asked, bench, dwarf_kernel, tmp_path / "logs")
    assert result.outcome is Outcome.OK, result.evidence
    values = {each.metric: each.value for each in result.observations}
    assert values["thp_resv_alloc_hits.total"] == values["thp_resv_insert_hits.total"] + 1
    assert 0 < values["thp_resv_insert_resv_index.first"] < 1 << 26, "an address by 2 MiB"
    read = {
        each.counter: each.value
        for each in result.samples
        if each.phase == "during" and each.source == "vmstat"
    }
    after = {
        each.counter: each.value
        for each in result.samples
        if each.phase == "after" and each.source == "vmstat"
    }
    assert read["thp_res_alloc"] < after["thp_res_alloc"] and read["pgfault"] <= after["pgfault"]
    assert read["thp_res_alloc_failed"] == after["thp_res_alloc_failed"] == 1, (
        "the first allocation was made to fail"
    )
