# SPDX-License-Identifier: GPL-2.0-only
"""Probes: what an experiment file may say, and what gdb does at them. gdb is made up; what it reads is recorded."""

from __future__ import annotations

import json
import struct
import threading
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from guest_data import ROOT

from orchestrator.debugger import hold as hold_module
from orchestrator.debugger import probe as probe_module
from orchestrator.debugger.counters import read_vmstat
from orchestrator.debugger.gdb import StackFrame, Stop, StopTimeout
from orchestrator.debugger.hold import Holder
from orchestrator.debugger.probe import EVENTS, Probed, ProbeSession, check_kernels, probes_of
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.experiment.experiment import load_experiment
from orchestrator.guest.workload import load_workloads
from orchestrator.kernel.elf import Symbol
from orchestrator.kernel.series import load_series
from orchestrator.store.observation import Observation
from orchestrator.store.probe import Probe, check_probes, label_of, probe_metrics

# --- what a file may say ---------------------------------------------------------------------------------------------

EXPERIMENT = """
[[variant]]
name = "baseline"
patchset = "baseline"
[[variant]]
name = "full"
patchset = "full"
[workload.touch]
"""
PROBES = """
[[probe]]
at = "thp_resv_alloc"
hit = 3
do = ["capture", "sample", "return = -12"]
fields = ["vma->vm_start"]
[[probe]]
at = "do_exit"
do = "count"
"""


def experiment_of(tmp_path: Path, text: str) -> Any:
    file = tmp_path / "probes.toml"
    file.write_text(EXPERIMENT + text)
    return load_experiment(
        file, load_series(ROOT / "kernel_patches"), load_workloads(ROOT / "guest_workloads")
    )


def test_an_experiment_file_has_probes(tmp_path: Path) -> None:
    asked = experiment_of(tmp_path, PROBES)
    assert [probe.at for probe in asked.probes] == ["thp_resv_alloc", "do_exit"]
    first, second = asked.probes
    assert (first.value, first.hit, first.hold, first.needs_dwarf) == (-12, 3, "", True)
    assert second.only_counts and not second.needs_dwarf and asked.needs_dwarf
    assert set(probe_metrics(asked.probes)) == {
        "thp_resv_alloc_hits.total",
        "thp_resv_alloc_vma_vm_start.first",
        "thp_resv_alloc_vma_vm_start.last",
        "do_exit_hits.total",
    }


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ('at = "do exit"\ndo = "count"', "name a function of the kernel"),
        ('at = "f"\ndo = []', "say what to do"),
        (
            'at = "f"\ndo = "stop"',
            "'stop' is no action; write count, capture, sample, return = VALUE, hold = NAME",
        ),
        ('at = "f"\ndo = "return"', "'return' is no action"),
        ('at = "f"\ndo = "return = ten"', "'return = ten' is no action"),
        ('at = "f"\ndo = "count = 3"', "'count = 3' is no action"),
        ('at = "f"\ndo = ["return = 1", "return = 2"]', "each action can be given once"),
        ('at = "f"\nhit = -1\ndo = "count"', "hit counts from 1"),
        ('at = "f"\nfields = ["x"]\ndo = "count"', 'add "capture" to do'),
        ('at = "f"\nwhen = "a\\nb"\ndo = "count"', "must be one line"),
        ('at = "f"\ndo = "hold = a"', "hold 'a' has one probe; it needs two"),
        ('at = "f"\ndo = "count"\n[[probe]]\nat = "f"\ndo = "capture"', "two probes are at f"),
        ('do = "count"', "at"),
    ],
)
def test_a_wrong_probe_is_one_sentence(tmp_path: Path, table: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        experiment_of(tmp_path, f"[[probe]]\n{table}\n")
    assert complaint in str(caught.value) and "probes.toml" in str(caught.value)


def test_labels_are_parts_of_metric_names() -> None:
    assert label_of("folio->_refcount.counter") == "folio_refcount_counter"
    assert label_of("*") == "value"


def test_a_function_must_be_in_one_kernel_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def address(vmlinux: Path, name: str) -> int:
        if name == "nosuch" or (name, vmlinux.name) == ("thp_resv_alloc", "baseline"):
            raise UserError("no symbol")
        return 1

    monkeypatch.setattr(probe_module, "symbol_address", address)
    monkeypatch.setattr(probe_module, "has_dwarf", lambda vmlinux: False)
    probes = [Probe("thp_resv_alloc", ("count",)), Probe("do_exit", ("count", "return = 0"))]
    check_kernels([Path("baseline"), Path("full")], probes)
    assert probes_of(Path("baseline"), probes) == (probes[1],)
    with pytest.raises(UserError, match="probe at nosuch: no kernel of this run has this function"):
        check_kernels([Path("baseline"), Path("full")], [*probes, Probe("nosuch", ("count",))])
    for probe in (Probe("f", ("capture",)), Probe("f", ("sample",)), Probe("f", ("count",), when="x > 1")):
        with pytest.raises(UserError, match=r"probe at f: .* need a kernel with debugging information"):
            probes_of(Path("full"), [probe])


# --- what gdb does ---------------------------------------------------------------------------------------------------


class GdbOfTwoCpus:
    """A guest of two CPUs whose stops are given: (number of the breakpoint, CPU)."""

    def __init__(self, stops: list[tuple[int, int]]) -> None:
        self.stops = deque(stops)
        self.places: list[str] = []
        self.ignored: dict[int, int] = {}
        self.registers: dict[tuple[int, str], int] = {}
        self.memory: dict[int, bytes] = {0x1100: b"\xcc" * 4, 0x1200: b"\xcc" * 4}
        self.thread = 1
        self.running = False
        self.ended = threading.Event()
        self.asked: list[str] = []

    def __enter__(self) -> GdbOfTwoCpus:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def break_at(self, place: str, condition: str = "", *, first: bool = False) -> int:
        assert first, "where the arguments are, and from where a function can return"
        self.places.append(place)
        return len(self.places)

    def ignore(self, number: int, count: int) -> None:
        self.ignored[number] = count

    def hits(self, number: int) -> int:
        return 10 * number

    def continue_(self) -> None:
        self.running = True

    def wait_stop(self, timeout_s: float) -> Stop:
        if not self.stops:
            self.ended.set()
            raise StopTimeout
        number, thread = self.stops.popleft()
        if number == 0:  # one look without a stop
            raise StopTimeout
        self.running, self.thread = False, thread
        self.registers[thread, "$rip"] = 0x1000 * number
        return Stop(self.places[number - 1], {"a": 1}, True, thread, 0x1000 * number, "", "f.c:1", number)

    def interrupt(self) -> None:
        self.running = False

    def backtrace(self) -> list[StackFrame]:
        return [StackFrame("f", 1, ""), StackFrame("", 0x40, "")]

    def evaluate(self, expression: str) -> int | str:
        if expression == "bad->x":
            raise UserError("gdb cannot evaluate bad->x: Cannot access memory.")
        return "struct" if expression == "text" else 5 + len(self.asked)

    def select(self, thread: int) -> None:
        self.thread = thread

    def threads(self) -> int:
        return 2

    def number(self, expression: str) -> int:
        if expression.startswith("$"):
            return self.registers.get((self.thread, expression), 0)
        return 0xFFFF0000 + self.thread

    def assign(self, register: str, value: int) -> None:
        self.registers[self.thread, register] = value

    def return_from(self, value: int) -> None:
        self.asked.append(f"return {value} on {self.thread}")

    def read_memory(self, address: str, size: str) -> bytes:
        return self.memory[int(address, 16)]

    def write_memory(self, address: int, content: bytes) -> None:
        self.memory[address] = content


def session(
    gdb: GdbOfTwoCpus, probes: list[Probe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Probed:
    monkeypatch.setattr(probe_module, "probes_of", lambda vmlinux, probes: tuple(probes))
    monkeypatch.setattr(hold_module, "_current_symbol", lambda vmlinux: "pcpu_hot")
    symbols = [Symbol("f", 0x1000, 0x100), Symbol("g", 0x1110, 0xF0), Symbol("h", 0x1210, 1)]
    monkeypatch.setattr(hold_module, "text_symbols", lambda vmlinux: symbols)
    ready: Any = gdb
    probing = ProbeSession(tmp_path / "socket", tmp_path / "vmlinux", probes, tmp_path, lambda *_: ready)
    probing.start()
    gdb.ended.wait(10)
    return probing.stop()


def events_in(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / EVENTS).read_text().splitlines()]


def test_hits_are_counted_without_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gdb = GdbOfTwoCpus([])
    found = session(gdb, [Probe("f", ("count",)), Probe("g", ("count",))], tmp_path, monkeypatch)
    assert found.observations == [
        Observation("f_hits.total", "hits", 10.0),
        Observation("g_hits.total", "hits", 20.0),
    ]
    assert all(count > 1 << 20 for count in gdb.ignored.values())


def test_values_are_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe("f", ("capture",), fields=("vma->vm_start", "bad->x", "text"), limit=2)
    gdb = GdbOfTwoCpus([(1, 1), (1, 2)])
    found = session(gdb, [probe], tmp_path, monkeypatch)
    assert {(each.metric, each.value) for each in found.observations} == {
        ("f_hits.total", 10.0),
        ("f_vma_vm_start.first", 5.0),
        ("f_vma_vm_start.last", 5.0),
    }
    events = events_in(tmp_path)
    assert [event["hit"] for event in events] == [1, 2] and [event["cpu"] for event in events] == [0, 1]
    assert events[0]["args"] == {"a": 1} and events[0]["backtrace"] == ["f", "0x40"]
    assert "Cannot access memory" in events[0]["fields"]["bad->x"]
    assert gdb.ignored[1] > 1 << 20, "the limit is reached"


def test_one_hit_is_chosen_and_a_function_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gdb = GdbOfTwoCpus([(1, 2)])
    session(gdb, [Probe("f", ("return = -12",), hit=3)], tmp_path, monkeypatch)
    assert gdb.asked == ["return -12 on 2"]
    assert events_in(tmp_path)[0]["hit"] == 3 and events_in(tmp_path)[0]["returned"] == -12


def test_two_tasks_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gdb = GdbOfTwoCpus([(1, 1), (2, 2)])
    found = session(gdb, [Probe("f", ("hold = a",)), Probe("g", ("hold = a",))], tmp_path, monkeypatch)
    assert [event["hold"] for event in events_in(tmp_path)] == ["waits", "meets f"]
    assert gdb.registers[1, "$rip"] == 0x1000, "it goes on where it was held"
    assert gdb.memory[0x1100] == b"\xcc" * 4, "no trace is left in the kernel"
    assert not found.troubles


def test_a_held_task_spins_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gdb: Any = GdbOfTwoCpus([])
    monkeypatch.setattr(hold_module, "_current_symbol", lambda vmlinux: "pcpu_hot")
    monkeypatch.setattr(
        hold_module, "text_symbols", lambda vmlinux: [Symbol("f", 0x1000, 0x100), Symbol("g", 0x1110, 1)]
    )
    holder = Holder(gdb, tmp_path)
    held = holder.hold(Stop("f", {}, True, 2, 0x1000, "", "", 1))
    assert gdb.registers[2, "$rip"] == held.loop == 0x1100
    assert gdb.memory[0x1100] == bytes.fromhex("f390ebfc")
    with pytest.raises(UserError, match="no padding"):
        holder.hold(Stop("f", {}, True, 1, 0x1000, "", "", 1))
    gdb.registers[2, "$rip"] = 0x1102  # at the jump
    holder.release(held)
    assert gdb.registers[2, "$rip"] == 0x1000


def test_a_task_in_an_interrupt_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gdb: Any = GdbOfTwoCpus([])
    monkeypatch.setattr(hold_module, "_current_symbol", lambda vmlinux: "pcpu_hot")
    monkeypatch.setattr(
        hold_module, "text_symbols", lambda vmlinux: [Symbol("f", 0x1000, 0x100), Symbol("g", 0x1110, 1)]
    )
    holder = Holder(gdb, tmp_path)
    held = holder.hold(Stop("f", {}, True, 2, 0x1000, "", "", 1))
    gdb.registers[2, "$rip"] = 0x9999
    looks = 0

    def wait(timeout_s: float) -> Stop:
        nonlocal looks
        looks += 1
        if looks == 3:
            gdb.registers[2, "$rip"] = held.loop
        raise StopTimeout

    monkeypatch.setattr(gdb, "wait_stop", wait)
    holder.release(held)
    assert looks == 3 and gdb.registers[2, "$rip"] == 0x1000
    monkeypatch.setattr(hold_module, "_TRIES", 2)
    with pytest.raises(InfrastructureError, match="does not come back from an interrupt"):
        holder.release(held)


def test_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "HOLD_S", -1.0)
    gdb = GdbOfTwoCpus([(1, 1), (0, 0)])
    found = session(gdb, [Probe("f", ("hold = a",)), Probe("g", ("hold = a",))], tmp_path, monkeypatch)
    assert found.troubles == ["hold a: nobody came to the other point within -1 s of f."]
    assert gdb.registers[1, "$rip"] == 0x1000
    assert gdb.ignored[1] > 1 << 20 and gdb.ignored[2] > 1 << 20


def test_a_failure_of_gdb_is_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gdb = GdbOfTwoCpus([])

    def broken(timeout_s: float) -> Stop:
        gdb.ended.set()
        raise InfrastructureError("the guest ended while gdb waited for it.")

    monkeypatch.setattr(gdb, "wait_stop", broken)
    with pytest.raises(InfrastructureError, match="the guest ended"):
        session(gdb, [Probe("f", ("count",))], tmp_path, monkeypatch)


def test_check_of_holds() -> None:
    check_probes([Probe("f", ("hold = a",)), Probe("g", ("hold = a", "count"))])


# --- counters --------------------------------------------------------------------------------------------------------


class CountersInMemory:
    """mm/vmstat.c of a kernel with two zone counters, no NUMA events, one of a node, one limit and two events."""

    numbers = {  # noqa: RUF012
        "NR_VM_ZONE_STAT_ITEMS": 2,
        "NR_VM_NODE_STAT_ITEMS": 1,
        "NR_VM_STAT_ITEMS": 1,
        "NR_VM_EVENT_ITEMS": 2,
        "*(unsigned long *)&tick_nsec": 4_000_000,
        "jiffies_64": (1 << 32) - 75_000 + 500,
    }
    names = b"nr_free_pages\0nr_mlock\0nr_thp_reserved\0nr_dirty_threshold\0pgfault\0thp_res_alloc\0"

    def number(self, expression: str) -> int:
        if expression in self.numbers:
            return self.numbers[expression]
        if expression == "0":
            return 0
        raise UserError(f"gdb cannot evaluate {expression}: No symbol.")

    def threads(self) -> int:
        return 2

    def read_memory(self, address: str, size: str) -> bytes:
        words = {
            "&vm_zone_stat": (100, -3),
            "&vm_node_stat": (7,),
            "(long)&vm_event_states + __per_cpu_offset[0]": (10, 1),
            "(long)&vm_event_states + __per_cpu_offset[1]": (20, 2),
        }
        if address in words:
            return struct.pack(f"<{len(words[address])}q", *words[address])
        offsets = [0, 14, 23, 39, 58, 66]
        if address == "&vmstat_text":
            return struct.pack("<6Q", *(0x8000 + offset for offset in offsets))
        assert int(address, 16) == 0x8000
        return self.names.ljust(int(size), b"\0")


def test_counters_are_read_as_vmstat_shows_them() -> None:
    gdb: Any = CountersInMemory()
    samples = read_vmstat(gdb, 12.0)
    assert {sample.counter: sample.value for sample in samples} == {
        "nr_free_pages": 100,
        "nr_mlock": 0,
        "nr_thp_reserved": 7,
        "pgfault": 30,
        "thp_res_alloc": 3,
    }
    assert {(each.guest_s, each.host_s, each.phase, each.source, each.node) for each in samples} == {
        (2.0, 12.0, "during", "vmstat", None)
    }


def test_a_kernel_without_these_counters_is_one_sentence() -> None:
    gdb: Any = CountersInMemory()
    gdb.numbers = {}
    with pytest.raises(UserError, match="counters of this kernel cannot be read from its memory"):
        read_vmstat(gdb, 12.0)
