# SPDX-License-Identifier: GPL-2.0-only
"""A guest's memory read from outside: what the kernel has is what is shown, and a fault in its memory is found."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.application import status_of
from orchestrator.debugger.inspection import MAPPED, PAGES, RESERVED, Inspection, inspect
from orchestrator.debugger.memory import Attached, KernelFiles, RunningGuest, attached, memory_of_dump
from orchestrator.debugger.violation import violations
from orchestrator.execution.bench import Booted
from orchestrator.guest.counters import parse_pairs
from orchestrator.kernel.build import KernelBuild

#: Boots a kernel on a topology, see the fixture.
Boot = Callable[..., AbstractContextManager[Booted]]

TIMEOUT_S = 120.0
RANGES = 60
TOUCHED = 3
HOLD = """
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	size_t ranges = atoi(argv[1]), pages = atoi(argv[2]), range, page;
	char *map = mmap(0, (ranges + 1) << 21, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *first = (char *)(((unsigned long)map + (2 << 20) - 1) & ~((2UL << 20) - 1));
	for (range = 0; range < ranges; range++)
		for (page = 0; page < pages; page++)
			first[(range << 21) + (page << 12)] = 1;
	printf("%d %lx\\n", getpid(), (unsigned long)first);
	fflush(stdout);
	pause();
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hold") / "hold"
    subprocess.run(
        ["gcc", "-static", "-O1", "-x", "c", "-", "-o", str(path)], input=HOLD.encode(), check=True
    )
    return path


@contextmanager
def holding(booted: Booted, program: Path) -> Iterator[tuple[int, int]]:
    """A process that holds ranges: its process ID, and the address of the first range."""
    booted.guest.upload(program, "/tmp/hold", 0o755)
    running = booted.guest.spawn(["/tmp/hold", str(RANGES), str(TOUCHED)])
    try:
        pid, first = next(running.lines()).split()
        yield int(pid), int(first, 16)
    finally:
        running.stop()


def guest_memory(booted: Booted, kernel: KernelBuild) -> AbstractContextManager[Attached]:
    guest = RunningGuest.in_directory(booted.machine.log_dir)
    return attached(guest, KernelFiles.of(guest.vmlinux, kernel.vmlinux))


def test_what_the_kernel_has_is_shown_and_what_is_wrong_with_it_is_found(
    boot: Boot, dwarf_kernel: KernelBuild, program: Path, tmp_path: Path
) -> None:
    with (
        boot(dwarf_kernel, knobs={"promotion_threshold": "256"}) as booted,
        holding(booted, program) as (pid, first),
        guest_memory(booted, dwarf_kernel) as live,
    ):
        vmstat = parse_pairs(booted.guest.read_text("/proc/vmstat"))
        with live.stopped() as memory:
            began = time.monotonic()
            inspection = inspect(memory)
            assert time.monotonic() - began < 10  # 0.1 s on an idle host
            live.save(tmp_path / "dump")
            shows_what_is_held(inspection, pid, first)
            assert sum(each.bits for each in inspection.reservations) == vmstat["nr_thp_reserved"]
            dump = memory_of_dump(tmp_path / "dump", KernelFiles.of(dwarf_kernel.vmlinux))
            assert inspect(dump) == inspection
            faults_are_found(booted, memory, inspection)
        # The guest goes on, and nothing of that is left.
        assert booted.guest.run(["uname", "-s"], timeout_s=TIMEOUT_S).stdout == "Linux\n"
        with live.stopped() as memory:
            assert violations(inspect(memory)) == []
    assert booted.machine.findings() == []


def shows_what_is_held(inspection: Inspection, pid: int, first: int) -> None:
    own = [each for each in inspection.only(pid).reservations if each.start >= first]
    assert [each.start for each in own] == [first + number * (2 << 20) for number in range(RANGES)]
    for each in own:
        assert [each.pages(state) for state in (MAPPED, RESERVED)] == [TOUCHED, PAGES - TOUCHED]
    (process,) = inspection.only(pid).processes
    assert process.name == "hold" and sum(each.states == "3m509r" for each in process.ranges) == RANGES
    assert violations(inspection) == []


def faults_are_found(booted: Booted, memory: Any, sound: Inspection) -> None:
    """Write to the guest's memory what must not be there, one after the other."""
    from drgn.helpers.linux.mm import follow_phys
    from drgn.helpers.linux.mmzone import NODE_DATA

    program = memory.program
    one = sound.reservations[-1]
    resv = program.type("struct thp_resv")
    page_type = program.type("struct page")
    page = program.read_u64(one.address + resv.member("page").bit_offset // 8) + PAGES // 2 * page_type.size
    from drgn import offsetof

    (process,) = [each for each in sound.processes if each.mm == one.mm]
    mm = program.object("init_mm").address_of_()
    node = NODE_DATA(program, one.node)
    entry_of = page_table_entry(memory, one.mm, one.start)
    faults = {
        "the count of": (one.address + resv.member("nr_unused").bit_offset // 8, 4, one.nr_unused - 1),
        "an unused page": (page + offsetof(page_type, "_refcount"), 4, 2),
        "the list of": (int(node.thp_resv_list.nr.address_of_().value_()), 8, 0),
        "the counter of a node": (
            int(node.vm_stat[program.constant("NR_THP_RESERVED")].address_of_().value_()), 8, 10**6,
        ),
    }  # fmt: skip
    writes = {
        rule: (int(follow_phys(mm, address)), size, value) for rule, (address, size, value) in faults.items()
    }
    # Another entry of the same page table maps a page that is not handed out.
    writes["no page table maps"] = (entry_of + 8 * (PAGES - 1), 8, ((one.pfn + PAGES // 2) << 12) | 0x67)
    for rule, (address, size, value) in writes.items():
        before = memory.physical(address, size)
        write(booted, address, value.to_bytes(size, "little"))
        found = violations(inspect(memory))
        write(booted, address, before)
        assert found and any(rule in each.rule for each in found), (rule, found)
        assert all(re.search(r"0x[0-9a-f]{3}|node \d", each.what) for each in found), found
    assert process.ranges and violations(inspect(memory)) == []


def page_table_entry(memory: Any, mm: int, address: int) -> int:
    """The physical address of the page table that maps a range."""
    from drgn import Object

    table = int(Object(memory.program, "struct mm_struct", address=mm).pgd.value_())
    entry = memory.program.read_u64(table + 8 * (address >> 39 & 511))
    for shift in (30, 21):
        entry = memory.program.read_u64(
            (entry & 0xFFFFFFFFFF000) + 8 * (address >> shift & 511), physical=True
        )
    return int(entry & 0xFFFFFFFFFF000)


def write(booted: Booted, address: int, content: bytes) -> None:
    """Write to the guest's physical memory."""
    told = booted.machine.qmp.monitor(f"gpa2hva {address:#x}")
    host = int(re.findall(r"0x[0-9a-f]+", told)[-1], 16)
    with Path(f"/proc/{booted.machine.pid}/mem").open("r+b", buffering=0) as file:
        file.seek(host)
        file.write(content)


def test_a_guest_without_debugging_information_is_read_by_the_command(
    boot: Boot,
    kernel: KernelBuild,
    dwarf_kernel: KernelBuild,
    program: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with (
        boot(kernel, knobs={"promotion_threshold": "256"}) as booted,
        holding(booted, program) as (pid, _),
    ):
        inspect_it = ["-q", "inspect", str(booted.machine.log_dir)]
        assert status_of([*inspect_it, "-p", "core-only", "--plot", str(tmp_path / "map")]) == 0
        said = capsys.readouterr().out
        assert f"hold (pid {pid})" in said and "No violation" in said
        assert (tmp_path / "map.png").stat().st_size > 10_000 and (tmp_path / "map.svg").exists()
        assert status_of([*inspect_it, "--vmlinux", str(dwarf_kernel.vmlinux)]) == 2
        refused = capsys.readouterr().err
        assert refused.count("\n") == 1
        assert re.search("has build ID [0-9a-f]{40}, but the guest has [0-9a-f]{40}; name", refused)
