# SPDX-License-Identifier: GPL-2.0-only
"""A real guest: its image, the way in, the workloads, the counters."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Events
from orchestrator.execution.bench import Booted
from orchestrator.execution.ending import GuestEnded
from orchestrator.guest.image import GuestImage, image_artefact
from orchestrator.guest.sampler import Sampler
from orchestrator.guest.ssh import CommandTimeout, Guest, GuestLost, ssh_command
from orchestrator.guest.topology_check import verify
from orchestrator.guest.workload import load_workloads, run_workload
from orchestrator.kernel.build import KernelBuild
from orchestrator.machine.topology import Topology
from orchestrator.project import Project
from orchestrator.store.outcome import Outcome

Boot = Callable[..., AbstractContextManager[Booted]]
THP = "/sys/kernel/mm/transparent_hugepage"


@pytest.fixture(scope="module")
def one(
    bench: object, baseline_kernel: KernelBuild, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Booted]:
    """One guest for the tests that leave it as it was: two nodes with memory, a third without."""
    logs = tmp_path_factory.mktemp("guest")
    topology = Topology.parse("2x512M+1x0/1")
    with bench.boot(baseline_kernel, topology, log_directory=logs) as booted:  # type: ignore[attr-defined]
        yield booted


def test_the_image_is_found_again(project: Project, cache: Cache, image: GuestImage) -> None:
    assert image_artefact(project, cache, Events()).is_made
    assert image_artefact(project, cache, Events()).obtain() == image


def test_ends_of_commands_are_told_apart(one: Booted) -> None:
    guest = one.guest
    assert guest.run(["sh", "-c", "echo $0 >&2; exit 255", "a 'b'"]).stderr == "a 'b'\n"
    assert guest.run(["sh", "-c", "exit 255"]).status == 255
    assert guest.run(["sh", "-c", "kill -KILL $$"]).signal == "SIGKILL"
    assert guest.run(["nonsense"]).status == 127
    with pytest.raises(CommandTimeout):
        guest.run(["sh", "-c", "sleep 99991 & sleep 99991"], timeout_s=2)
    assert "sleep 99991" not in guest.run(["ps"]).stdout


def test_many_commands_and_transfers_in_a_row(one: Booted, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(bytes(range(256)) * 1000)
    for round_number in range(10):
        one.guest.upload(source, "/tmp/file", 0o640)
        assert one.guest.run(["stat", "-c", "%s %a", "/tmp/file"]).stdout == "256000 640\n", round_number
        one.guest.download("/tmp/file", back)
        assert back.read_bytes() == source.read_bytes()
    long = "x" * 100_000
    assert one.guest.run(["echo", long]).stdout == f"{long}\n"
    one.guest.download("/proc/meminfo", back)
    assert back.read_text().startswith("MemTotal:")
    with pytest.raises(UserError, match="No such file"):
        one.guest.download("/no/such", back)


def test_a_setting_the_kernel_refuses_is_reported(one: Booted) -> None:
    with pytest.raises(UserError, match="Invalid argument"):
        one.guest.write_text(f"{THP}/enabled", "sometimes")


def test_the_ssh_client_of_a_person_gets_in(one: Booted, image: GuestImage) -> None:
    done = subprocess.run(
        ssh_command(one.machine.ssh_port, image, ["cat", "/proc/1/comm"]),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "init\n"), done.stderr


def test_the_topology_is_what_was_asked_for_and_another_is_noticed(one: Booted) -> None:
    assert verify(one.guest, Topology.parse("2x512M+1x0/1")) == []
    assert verify(one.guest, Topology.parse("3x512M")) != []


def test_commands_are_fair_game_for_the_oom_killer_and_the_way_in_is_not(one: Booted) -> None:
    assert one.guest.read_text("/proc/self/oom_score_adj") == "0\n"
    server = one.guest.read_text("/run/dropbear.pid").strip()
    assert one.guest.read_text(f"/proc/{server}/oom_score_adj") == "-1000\n"


def test_nothing_spins_once_somebody_is_connected(one: Booted) -> None:
    commands = one.guest.run(["ps", "-o", "args"]).stdout.splitlines()
    assert not [line for line in commands if "/init" in line]


def test_touch_finds_memory_as_it_should_be_while_counters_are_sampled(
    one: Booted, project: Project, tmp_path: Path
) -> None:
    workload = load_workloads(project.guest_workloads)["touch"]
    sampler = Sampler(one.guest, 10)
    sampler.before()
    sampler.start()
    result = run_workload(one.guest, workload, {"memory": "128M"}, 1, "ns", tmp_path, 120)
    sampler.stop()
    sampler.after()
    assert {o.metric: o.value for o in result.observations}["touched_kib.sum"] == 64 * 64 * 4
    faults = [
        s.value for s in sampler.samples if (s.source, s.node, s.counter) == ("vmstat", None, "pgfault")
    ]
    assert len(faults) >= 3 and faults == sorted(faults) and faults[-1] > faults[0]
    assert {s.node for s in sampler.samples if s.source == "meminfo"} >= {None, 0, 1}
    times = [s.guest_s for s in sampler.samples]
    assert times == sorted(times)
    cost = sampler.cost
    assert cost.readings >= 1 and cost.cpu_ms > 0


def test_chunk_fits_more_children_without_huge_pages(one: Booted, project: Project, tmp_path: Path) -> None:
    workload = load_workloads(project.guest_workloads)["chunk"]
    survivors = {}
    before = one.guest.read_text(f"{THP}/enabled")
    assert "[always]" in before
    for enabled in ("always", "never"):
        one.guest.write_text(f"{THP}/enabled", enabled)
        result = run_workload(one.guest, workload, {}, 1, "ns", tmp_path, 300)
        values = {o.metric: o.value for o in result.observations}
        assert values["survivors_oom.total"] >= values["survivors.total"] >= 10
        survivors[enabled] = values["survivors.total"]
    one.guest.write_text(f"{THP}/enabled", "always")
    # A 16th of memory each, and less than a third of it touched.
    assert survivors["always"] <= 16 and survivors["never"] > 4 * survivors["always"]


def test_the_barrier_waits_for_khugepaged_and_leaves_its_settings(one: Booted) -> None:
    before = one.guest.read_text(f"{THP}/khugepaged/scan_sleep_millisecs")
    scans = int(one.guest.read_text(f"{THP}/khugepaged/full_scans"))
    done = one.guest.run(["khugepaged-barrier", "2", "60000"], timeout_s=1200)
    assert done.status == 0 and int(done.stdout) >= 2
    assert int(one.guest.read_text(f"{THP}/khugepaged/full_scans")) >= scans + 2
    assert one.guest.read_text(f"{THP}/khugepaged/scan_sleep_millisecs") == before
    one.guest.write_text(f"{THP}/enabled", "never")
    try:
        late = one.guest.run(["khugepaged-barrier", "2", "1000"], timeout_s=60)
        assert late.status == 3 and "0 of 2 full scans" in late.stderr
    finally:
        one.guest.write_text(f"{THP}/enabled", "always")


def test_a_machine_that_ends_is_a_lost_guest_at_once(boot: Boot, baseline_kernel: KernelBuild) -> None:
    with boot(baseline_kernel, "512M/1") as booted:
        remote = booted.guest.spawn(["sleep", "100000"])
        began = time.monotonic()
        booted.machine.close()
        with pytest.raises(GuestLost):
            remote.wait(60)
        assert time.monotonic() - began < 30


def test_poweroff_ends_the_machine(boot: Boot, baseline_kernel: KernelBuild) -> None:
    with boot(baseline_kernel, "512M/1") as booted:
        booted.guest.spawn(["poweroff"])
        deadline = time.monotonic() + 60
        while booted.machine.alive:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_another_image_is_not_let_in(one: Booted, project: Project, tmp_path: Path) -> None:
    stranger = image_artefact(project, Cache(tmp_path / "cache"), Events()).obtain()
    with pytest.raises(InfrastructureError, match="another host key"):
        Guest.connect(one.machine.ssh_port, stranger, 30)


def test_a_guest_whose_qemu_is_killed_is_lost_for_that_reason(boot: Boot, kernel: KernelBuild) -> None:
    def killed() -> None:
        with boot(kernel) as booted:
            os.kill(booted.machine.pid, signal.SIGKILL)
            booted.guest.run(["sleep", "60"])

    with pytest.raises(GuestEnded, match="ended by signal 9; the host's dmesg") as caught:
        killed()
    assert caught.value.ending.outcome is Outcome.LOST
