# SPDX-License-Identifier: GPL-2.0-only
"""Real machines: what boots, what is noticed and how fast, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from orchestrator.cache import Cache
from orchestrator.events import Events
from orchestrator.guest.image import GuestImage
from orchestrator.guest.ssh import Guest, GuestLost
from orchestrator.kernel.build import KernelBuild
from orchestrator.machine.accelerator import Accelerator, choose_accelerator, probe
from orchestrator.machine.console import dialogue
from orchestrator.machine.qemu import Machine, MachineFailure
from orchestrator.machine.topology import NodeTable, Topology, TopologyTable
from orchestrator.store.outcome import Outcome

BOOT_TIMEOUT_S = 300.0
#: How soon a panic or a death has to be told: "within a second".
NOTICE_S = 1.0

Make = Callable[..., Machine]
Record = Callable[[str, object], None]


@pytest.fixture
def make(baseline_kernel: KernelBuild, image: GuestImage, tmp_path: Path, events: Events) -> Make:
    def made(
        topology: str | Topology = "2x256M",
        name: str = "cell",
        accelerator: str = "tcg",
        cmdline: Sequence[str] = (),
        **options: object,
    ) -> Machine:
        return Machine(
            baseline_kernel.bzimage,
            image.initramfs,
            Topology.parse(topology) if isinstance(topology, str) else topology,
            Accelerator.named(accelerator, "for a test"),  # type: ignore[arg-type]
            cmdline,
            tmp_path / name,
            events=events,
            **options,  # type: ignore[arg-type]
        )

    return made


def connect(machine: Machine, image: GuestImage) -> Guest:
    return Guest.connect(machine.ssh_port, image, BOOT_TIMEOUT_S)


def nodes_of(guest: Guest) -> dict[str, tuple[str, str, bool]]:
    """Node -> its CPU list, its distances, and whether it has memory, as the guest sees them."""
    listing = guest.run(["ls", "/sys/devices/system/node"], timeout_s=60, check=True).stdout.split()
    with_memory = guest.read_text("/sys/devices/system/node/has_memory").strip()
    found = {}
    for node in sorted(name for name in listing if name.startswith("node")):
        directory = f"/sys/devices/system/node/{node}"
        total = guest.read_text(f"{directory}/meminfo").splitlines()[0].split()
        cpus = guest.read_text(f"{directory}/cpulist").strip()
        found[node] = cpus, guest.read_text(f"{directory}/distance").strip(), int(total[3]) > 0
    assert with_memory
    return found


@pytest.mark.parametrize("accelerator", ["tcg", "icount"])
def test_a_boot_to_ssh(
    make: Make, image: GuestImage, accelerator: str, record_testsuite_property: Record
) -> None:
    with make(accelerator=accelerator) as machine:
        boot_s = machine.boot(BOOT_TIMEOUT_S)
        with connect(machine, image) as guest:
            assert guest.run(["true"], timeout_s=60).status == 0
        assert machine.findings() == [], "a healthy kernel boots on it without a warning"
        record_testsuite_property(f"boot_s.{accelerator}", round(boot_s, 2))


def test_memoryless_and_cpuless_nodes_and_distances(make: Make, image: GuestImage) -> None:
    topology = Topology.from_table(
        TopologyTable(
            (NodeTable("384M", 1), NodeTable(0, 2), NodeTable("128M", 0)),
            ((10, 21, 31), (22, 10, 41), (32, 42, 10)),
        )
    )
    with make(topology) as machine:
        machine.boot(BOOT_TIMEOUT_S)
        with connect(machine, image) as guest:
            assert nodes_of(guest) == {
                "node0": ("0", "10 21 31", True),
                "node1": ("1-2", "22 10 41", False),
                "node2": ("", "32 42 10", True),
            }
        assert machine.findings() == []


def test_two_machines_side_by_side(make: Make, image: GuestImage) -> None:
    with make(name="one") as one, make(name="other") as other:
        one.boot(BOOT_TIMEOUT_S)
        other.boot(BOOT_TIMEOUT_S)
        assert one.ssh_port != other.ssh_port
        with connect(one, image) as first, connect(other, image) as second:
            first.write_text("/tmp/which", "one")
            assert second.run(["cat", "/tmp/which"], timeout_s=60).status != 0
        one.close()
        assert not one.alive and other.alive


def test_an_early_panic_is_reported_at_once_with_the_log(
    make: Make, record_testsuite_property: Record
) -> None:
    with make(cmdline=["rdinit=/nonexistent"]) as machine:
        seen_at = watch_log(machine.console_log, b"Kernel panic - not syncing")
        with pytest.raises(MachineFailure) as caught:
            machine.boot(BOOT_TIMEOUT_S)
        told_at = time.monotonic()
        late = told_at - seen_at()
    assert late < NOTICE_S
    assert caught.value.outcome is Outcome.KERNEL_PANIC
    assert "Kernel panic" in caught.value.evidence and "Call Trace" in caught.value.evidence
    record_testsuite_property("panic_told_s", round(late, 3))


def test_a_panic_under_a_workload_ends_it(make: Make, image: GuestImage) -> None:
    with make() as machine:
        machine.boot(BOOT_TIMEOUT_S)
        with connect(machine, image) as guest:
            machine.on_failure(guest.abort)
            seen_at = watch_log(machine.console_log, b"Kernel panic - not syncing")
            with pytest.raises(GuestLost):
                guest.run(["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 1000"], timeout_s=BOOT_TIMEOUT_S)
            assert time.monotonic() - seen_at() < NOTICE_S
        with pytest.raises(MachineFailure) as caught:
            machine.watch(within_s=NOTICE_S)
    assert caught.value.outcome is Outcome.KERNEL_PANIC
    assert "sysrq triggered crash" in caught.value.evidence


def test_a_dead_qemu_is_noticed(make: Make, record_testsuite_property: Record) -> None:
    with make() as machine:
        machine.boot(BOOT_TIMEOUT_S)
        told = threading.Event()
        machine.on_failure(lambda failure: told.set())
        killed_at = time.monotonic()
        os.kill(machine.pid, signal.SIGKILL)
        assert told.wait(NOTICE_S)
        record_testsuite_property("death_told_s", round(time.monotonic() - killed_at, 3))
        with pytest.raises(MachineFailure, match="QEMU was ended by signal 9") as caught:
            machine.watch()
    assert caught.value.outcome is Outcome.LOST


def test_a_bad_option_is_reported(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Accelerator("tcg", "ns", "", "nonsense", "")
    monkeypatch.setattr(Accelerator, "named", classmethod(lambda cls, name, reason: bad))
    with (
        pytest.raises(MachineFailure, match="unable to find CPU model 'nonsense'") as caught,
        make(),
    ):
        pass
    assert caught.value.outcome is Outcome.LOST


def test_a_hung_boot_is_asked_where_it_hangs(make: Make) -> None:
    with make(ready_mark="never said") as machine, pytest.raises(MachineFailure) as caught:
        machine.boot(30)
    assert caught.value.outcome is Outcome.BOOT_FAILED
    assert "the guest was not up within 30 s (its last output was" in caught.value.evidence
    assert "CPU 3 " in caught.value.evidence


def test_sysrq_and_a_dialogue_over_the_serial_line(make: Make) -> None:
    with make() as machine:
        machine.boot(BOOT_TIMEOUT_S)
        machine.ask_where("lm")
        said = machine.console.text()
        assert "sysrq: Show backtrace of all active CPUs" in said
        assert "sysrq: Show Memory" in said
        assert machine.findings() == [], "to be asked is no defect"
        with dialogue(machine.sockets.console, timeout_s=60) as line:
            machine.qmp.execute("chardev-send-break", {"id": "console"})
            line.send("h")
            line.expect("sysrq: HELP")
        assert machine.alive


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_qemu_dies_with_us(
    baseline_kernel: KernelBuild, image: GuestImage, tmp_path: Path, how: signal.Signals
) -> None:
    script = f"""
import sys, time
from pathlib import Path
from orchestrator.machine.accelerator import Accelerator
from orchestrator.machine.qemu import Machine
from orchestrator.machine.topology import NodeTable, Topology, TopologyTable
machine = Machine(Path({str(baseline_kernel.bzimage)!r}), Path({str(image.initramfs)!r}), Topology.parse("1x256M"),
                  Accelerator.named("tcg", ""), [], Path({str(tmp_path)!r}))
with machine:
    print(machine.pid, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        qemu = int(parent.stdout.readline())
        assert Path(f"/proc/{qemu}").exists()
        parent.send_signal(how)
        parent.wait()
    until = time.monotonic() + 5
    while running(qemu) and time.monotonic() < until:
        time.sleep(0.02)
    assert not running(qemu)


def test_machine_json_is_enough_to_reach_a_live_guest(make: Make, image: GuestImage) -> None:
    with make() as machine:
        machine.boot(BOOT_TIMEOUT_S)
        told = json.loads((machine.log_dir / "machine.json").read_text())
        with Guest.connect(told["ssh_port"], image, BOOT_TIMEOUT_S) as second:
            assert second.run(["true"], timeout_s=60).status == 0
        assert Path(told["console"]).is_socket() and Path(told["monitor"]).is_socket()


@pytest.mark.parametrize("name", ["tcg", "icount"])
def test_the_probe_can_succeed(name: str, record_testsuite_property: Record) -> None:
    answer = probe(name, timeout_s=60)  # type: ignore[arg-type]
    assert answer.reached, answer.reason
    record_testsuite_property(f"probe_s.{name}", round(answer.seconds, 2))


def test_auto_chooses_something_that_works_and_says_why(
    tmp_path: Path, record_testsuite_property: Record
) -> None:
    began = time.monotonic()
    chosen = choose_accelerator("auto", Cache(tmp_path), Events())
    assert time.monotonic() - began < 15
    assert chosen.name == "kvm" or chosen.reason.startswith("icount; KVM not used: ")
    record_testsuite_property("accelerator", chosen.reason)


def watch_log(log: Path, words: bytes) -> Callable[[], float]:
    """Note, on a thread of its own, when `words` appear in `log`; the result waits for that time."""
    seen: list[float] = []

    def look() -> None:
        while not seen:
            if log.exists() and words in log.read_bytes():
                seen.append(time.monotonic())
            time.sleep(0.005)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()

    def when() -> float:
        looking.join(10)
        return seen[0]

    return when


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
