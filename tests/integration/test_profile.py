# SPDX-License-Identifier: GPL-2.0-only
"""Instructions per kernel function, of a program whose number of them is known; and sizes, of a running kernel."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from orchestrator.cache import Cache
from orchestrator.debugger.profiler import Profiler, plugin_library
from orchestrator.events import Events
from orchestrator.execution.bench import Bench
from orchestrator.guest.ssh import Guest
from orchestrator.kernel.build import KernelBuild
from orchestrator.kernel.structure import structures
from orchestrator.machine.topology import Topology
from orchestrator.project import Project
from orchestrator.store.profile import USER, Profile

FUNCTION = "__x64_sys_getppid"
CALLS = 200_000
TIMEOUT_S = 300.0
PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static long long now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}
int main(int argc, char **argv)
{
	long calls = atol(argv[1]), i;
	long long began = now();
	for (i = 0; i < calls; i++)
		syscall(SYS_getppid);
	printf("%lld\\n", now() - began);
}
"""


def instructions_of(vmlinux: Path, function: str) -> list[str]:
    """The disassembly of a function, according to objdump(1)."""
    said = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={function}", str(vmlinux)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = [
        match[1] for line in said.splitlines() if (match := re.match(r"ffffffff[0-9a-f]{8}:\t(.*)", line))
    ]
    while found and found[-1].split()[0] in ("int3", "nop", "nopw", "nopl", "cs", "xchg", "data16"):
        found.pop()
    return found


@pytest.fixture(scope="module")
def counting_bench(project: Project, cache: Cache, events: Events) -> Bench:
    return Bench(project, cache, events, accelerator_request="icount")


def elapsed(guest: Guest, calls: int) -> int:
    return int(guest.run(["/tmp/getppid", str(calls)], timeout_s=TIMEOUT_S).stdout)


def test_instructions_of_a_known_function(counting_bench: Bench, tmp_path: Path) -> None:
    kernel = counting_bench.kernel("baseline")
    (tmp_path / "getppid.c").write_text(PROGRAM)
    subprocess.run(
        ["gcc", "-O2", "-static", "-o", str(tmp_path / "getppid"), str(tmp_path / "getppid.c")], check=True
    )
    listed = instructions_of(kernel.vmlinux, FUNCTION)
    # Each call executes each instruction once: there is a call and a return, and no other jump.
    assert [each for each in listed if each.startswith("j")] in ([], [listed[-1]])
    library = plugin_library(Cache.default(), Events())
    profiler = Profiler(kernel.vmlinux, library, tmp_path)
    logs = tmp_path / "logs"
    with counting_bench.boot(
        kernel, Topology.parse("1x512M/1"), log_directory=logs, plugin=profiler.plugin
    ) as booted:
        booted.guest.upload(tmp_path / "getppid", "/tmp/getppid", 0o755)
        windows: list[tuple[int, Profile]] = []
        for calls in (0, CALLS):
            before = profiler.read(booted.machine)
            took = elapsed(booted.guest, calls)
            windows.append((took, profiler.between(before, profiler.read(booted.machine))))
    (_, idle), (took, busy) = windows
    counted = busy.own[FUNCTION] - idle.own.get(FUNCTION, 0)
    assert counted == pytest.approx(CALLS * len(listed), rel=0.001)
    # The guest's own clock counts the same instructions.
    assert busy.total - idle.total == pytest.approx(took, rel=0.05)
    chains = {chain for chain in busy.chains if chain[-1] == FUNCTION and busy.chains[chain] > counted / 2}
    assert chains == {(USER, "entry_SYSCALL_64", "do_syscall_64", "x64_sys_call", FUNCTION)}


def test_the_size_of_a_structure_is_that_of_the_running_kernel(
    bench: Bench, dwarf_kernel: KernelBuild, tmp_path: Path
) -> None:
    """SLUB rounds a size up to the alignment of the cache, at most a line; vm_area_struct has none but a word."""
    with bench.boot(dwarf_kernel, Topology.parse("1x512M/1"), log_directory=tmp_path / "logs") as booted:
        slabs = booted.guest.read_text("/proc/slabinfo")
    found = structures(dwarf_kernel.vmlinux, ["vm_area_struct", "mm_struct"])
    sizes = {line.split()[0]: int(line.split()[3]) for line in slabs.splitlines()[2:]}
    assert 0 <= sizes["vm_area_struct"] - found["vm_area_struct"].size < 64
    assert 0 <= sizes["mm_struct"] - found["mm_struct"].size < 256  # and two CPU masks at its end
