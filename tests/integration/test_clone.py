# SPDX-License-Identifier: GPL-2.0-only
"""Clones of real guests: they start fast, differ where they must, share what they can, and count as a boot does."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from orchestrator.cache import Cache, damage
from orchestrator.events import Event, Events
from orchestrator.execution.bench import Bench
from orchestrator.guest.sampler import Sampler
from orchestrator.guest.workload import run_workload
from orchestrator.kernel.build import KernelBuild
from orchestrator.machine.topology import Topology
from orchestrator.project import Project

Record = Callable[[str, object], None]
TOPOLOGY = Topology.parse("2x256M/1")


def test_two_clones_at_once(
    project: Project,
    cache: Cache,
    baseline_kernel: KernelBuild,
    tmp_path: Path,
    record_testsuite_property: Record,
) -> None:
    seen: list[Event] = []
    bench = Bench(project, cache, Events(seen.append), accelerator_request="tcg")
    with bench.boot(baseline_kernel, TOPOLOGY, log_directory=tmp_path / "first", clone=True) as first:
        assert first.is_clone, [event.text for event in seen if event.kind == "note"]
        with ExitStack() as stack:
            began = time.monotonic()
            second = stack.enter_context(
                bench.boot(
                    baseline_kernel, TOPOLOGY, log_directory=tmp_path / "second", knobs={"vm.swappiness": "7"},
                    clone=True,
                )
            )  # fmt: skip
            second.guest.run(["true"], timeout_s=60)
            record_testsuite_property("clone_s", round(time.monotonic() - began, 2))
            both = (first.guest, second.guest)
            assert all(guest.run(["true"], timeout_s=60).status == 0 for guest in both)
            names, random = (
                {guest.run(argv, timeout_s=60, check=True).stdout for guest in both}
                for argv in (["hostname"], ["head", "-c", "32", "/dev/urandom"])
            )
            assert len(names) == 2 and len(random) == 2
            assert [guest.read_text("/proc/sys/vm/swappiness").strip() for guest in both] == ["60", "7"]
            for guest in both:
                assert abs(int(guest.run(["date", "+%s"], timeout_s=60).stdout) - time.time()) < 60
            first.guest.write_text("/tmp/which", "first")
            assert second.guest.run(["cat", "/tmp/which"], timeout_s=60).status != 0
            assert first.findings() == second.findings() == []
            assert "Linux version" in second.machine.console.text(), "its log begins with that of the boot"
        sampler = Sampler(first.guest, 100)
        sampler.before()
        sampler.after()
        assert any(sample.counter == "pgfault" for sample in sampler.samples)
    (saved,) = {
        part.partition("mem-path=")[2].rpartition("/memory")[0]
        for part in first.machine.argv
        if "mem-path=" in part and "share=off" in part and "memory0" in part
    }
    assert damage(Path(saved)) is None, "clones change no file of the boot"


def test_a_guest_for_gdb_is_booted(
    project: Project, cache: Cache, baseline_kernel: KernelBuild, tmp_path: Path
) -> None:
    seen: list[Event] = []
    bench = Bench(project, cache, Events(seen.append), accelerator_request="tcg")
    with bench.boot(
        baseline_kernel, Topology.parse("1x256M/1"), log_directory=tmp_path, gdb=True, clone=True
    ) as booted:
        assert not booted.is_clone
        assert booted.guest.run(["true"], timeout_s=60).status == 0
    notes = [event.text for event in seen if event.kind == "note"]
    assert "the guest is booted instead: a clone does not go on after gdb has detached" in notes


def test_instructions_count_in_a_clone_as_in_a_boot(
    project: Project, cache: Cache, baseline_kernel: KernelBuild, tmp_path: Path
) -> None:
    seen: list[Event] = []
    bench = Bench(project, cache, Events(seen.append), accelerator_request="icount")
    workload = bench.workloads["fault_latency"]
    found = []
    for name, clone in (("boot", False), ("clone", True), ("again", True)):
        logs = tmp_path / name
        with bench.boot(
            baseline_kernel, Topology.parse("1x512M/1"), log_directory=logs, clone=clone
        ) as booted:
            assert booted.is_clone == clone, [event.text for event in seen if event.kind == "note"]
            parameters = {"advice": "nohugepage", "regions": "16", "sweep_regions": "2"}
            done = run_workload(booted.guest, workload, parameters, 1, "insns", logs, 300)
            found.append({o.metric: o.value for o in done.observations})
    for metric in ("fault_insns.p50", "first_fault_insns.p50", "region_1_insns.p50"):
        boot, *clones = (each[metric] for each in found)
        assert all(abs(each - boot) <= 0.0006 * boot for each in clones), (metric, found)
