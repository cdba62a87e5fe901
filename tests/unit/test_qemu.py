# SPDX-License-Identifier: GPL-2.0-only
"""A machine's life: how it starts, what it notices, what it leaves. QEMU is ``fake_qemu.py``."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_qemu
import pytest

from orchestrator import process
from orchestrator.errors import InfrastructureError
from orchestrator.events import Event, Events
from orchestrator.machine.accelerator import QEMU, Accelerator
from orchestrator.machine.qemu import SOCKET_PATH_BYTES, Machine, MachineFailure, Sockets, qemu_argv
from orchestrator.machine.topology import Topology
from orchestrator.store.outcome import Outcome

Make = Callable[..., Machine]
TCG = Accelerator("tcg", "ns", "for a test", "max", "7.2.22")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sockets go, as short as a real one."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield Path(directory)


@pytest.fixture
def make(tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    program = tmp_path / "bin" / QEMU
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_qemu.__file__} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")

    def made(does: str = "ready", name: str = "cell", **options: object) -> Machine:
        return Machine(
            tmp_path / "bzImage",
            tmp_path / "initramfs",
            Topology.parse("2x256M"),
            TCG,
            [f"fake={does}"],
            tmp_path / "logs" / name,
            **options,  # type: ignore[arg-type]
        )

    yield made
    assert not [thread.name for thread in threading.enumerate() if thread.name in ("qmp", "machine cell")]


def arguments(argv: list[str], option: str) -> list[str]:
    return [value for word, value in itertools.pairwise(argv) if word == option]


def argv(**options: object) -> list[str]:
    return qemu_argv(
        Path("/k/bzImage"),
        Path("/i/initramfs"),
        Topology.parse("2x256M"),
        Accelerator("icount", "insns", "", "max,-erms", "7.2.22"),
        ["panic=5", "quiet"],
        Path("/logs/core-only@a=1,2/console.log"),
        Sockets(Path("/run/x")),
        **options,  # type: ignore[arg-type]
    )


def test_the_command_line() -> None:
    words = argv()
    assert words[0] == QEMU
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)
    assert arguments(words, "-icount") == ["shift=0,sleep=off"]
    assert arguments(words, "-kernel") == ["/k/bzImage"] and arguments(words, "-initrd") == ["/i/initramfs"]
    assert "-gdb" not in words and "-S" not in words
    assert arguments(words, "-sandbox") == [
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    ]
    (network,) = arguments(words, "-netdev")
    assert "restrict=on" in network and "hostfwd=tcp:127.0.0.1:0-:22" in network


def test_the_callers_words_come_last_on_the_kernels_command_line() -> None:
    (line,) = arguments(argv(), "-append")
    words = line.split()
    assert words[-2:] == ["panic=5", "quiet"]
    assert words.index("panic=-1") < words.index("panic=5")


def test_linux_does_not_test_the_timer_since_a_busy_host_fails_that() -> None:
    assert "no_timer_check" in arguments(argv(), "-append")[0].split()


def test_a_comma_in_a_path_is_doubled() -> None:
    console = next(value for value in arguments(argv(), "-chardev") if "id=console" in value)
    assert "logfile=/logs/core-only@a=1,,2/console.log" in console


def test_gdb_is_served_on_a_socket_to_a_kernel_that_stays_where_it_was_linked() -> None:
    words = argv(gdb=True)
    assert arguments(words, "-gdb") == ["chardev:gdb"] and "-S" not in words
    assert "nokaslr" in arguments(words, "-append")[0].split()
    assert "-S" in argv(wait_for_gdb=True) and arguments(argv(wait_for_gdb=True), "-gdb")


def test_a_boot(make: Make, runtime: Path, tmp_path: Path) -> None:
    seen: list[Event] = []
    with make(gdb=True, events=Events(seen.append)) as machine:
        assert 0 < machine.boot(20) < 20
        assert machine.alive and machine.ssh_port == 34567
        machine.watch()
        assert machine.findings() == []
        told = json.loads((tmp_path / "logs/cell/machine.json").read_text())
        assert told["alive"] and told["ssh_port"] == 34567 and told["pid"] == machine.pid
        assert told["gdb"] == str(machine.gdb_socket) and told["argv"] == list(machine.argv)
        (directory,) = runtime.iterdir()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert len(os.fsencode(machine.sockets.monitor)) <= SOCKET_PATH_BYTES
        pid = machine.pid
    assert not machine.alive
    assert not Path(f"/proc/{pid}").exists()
    assert list(runtime.iterdir()) == []
    assert not json.loads((tmp_path / "logs/cell/machine.json").read_text())["alive"]
    assert (tmp_path / "logs/cell/qemu.log").read_text().startswith(f"$ {QEMU} ")
    assert [(event.kind, event.step) for event in seen] == [
        ("start", ("boot cell",)),
        ("end", ("boot cell",)),
    ]


@pytest.mark.parametrize(
    ("does", "outcome", "evidence"),
    [
        ("panic", Outcome.KERNEL_PANIC, "Kernel panic - not syncing: made up"),
        ("die", Outcome.LOST, "QEMU was ended by signal 9 before the guest was up"),
        (
            "reset",
            Outcome.BOOT_FAILED,
            "the guest reset itself before the guest was up\n[    0.000000] Linux version",
        ),
        ("off", Outcome.BOOT_FAILED, "the guest switched itself off"),
        ("end", Outcome.LOST, "QEMU was ended from outside before the guest was up"),
        ("terminated", Outcome.LOST, "QEMU was ended from outside before the guest was up"),
        (
            "internal-error",
            Outcome.BOOT_FAILED,
            "QEMU stopped the guest (internal-error)\nKVM internal error",
        ),
    ],
)
def test_a_boot_that_fails_is_noticed_at_once(make: Make, does: str, outcome: Outcome, evidence: str) -> None:
    with make(does) as machine, pytest.raises(MachineFailure) as caught:
        began = time.monotonic()
        machine.boot(60)
    assert time.monotonic() - began < 5
    assert caught.value.outcome is outcome
    assert evidence in caught.value.evidence


@pytest.mark.parametrize(
    ("does", "outcome", "evidence"),
    [
        ("hang", Outcome.BOOT_FAILED, "CPU 0 halted at ffffffff81000042"),
        ("mute", Outcome.BOOT_FAILED, "it never printed anything"),
        ("oops-hang", Outcome.KERNEL_BUG, "WARNING in made_up at mm/made_up.c:7"),
    ],
)
def test_a_boot_that_hangs_says_where(make: Make, does: str, outcome: Outcome, evidence: str) -> None:
    with make(does) as machine:
        with pytest.raises(MachineFailure) as caught:
            machine.boot(1)
        assert not machine.alive
    assert caught.value.outcome is outcome
    assert "the guest was not up within 1 s" in caught.value.evidence
    assert evidence in caught.value.evidence


@pytest.mark.parametrize("does", ["option", "late-option"])
def test_a_bad_option_is_reported_in_qemus_words(make: Make, runtime: Path, does: str) -> None:
    with pytest.raises(MachineFailure) as caught, make(does):
        pass
    assert caught.value.outcome is Outcome.LOST
    assert "QEMU ended with status 1" in caught.value.evidence.splitlines()[0]
    assert "-fake: invalid option" in caught.value.evidence
    assert list(runtime.iterdir()) == []


def test_a_qemu_that_does_not_tell_its_port(make: Make) -> None:
    with pytest.raises(InfrastructureError, match="which port"), make("no-port"):
        pass


def test_a_missing_qemu(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfrastructureError, match="qemu-system-x86"), make():
        pass


@pytest.mark.parametrize(
    ("does", "outcome"), [("late-panic", Outcome.KERNEL_PANIC), ("late-die", Outcome.LOST)]
)
def test_what_happens_after_the_boot_is_reported(make: Make, does: str, outcome: Outcome) -> None:
    told: list[MachineFailure] = []
    heard = threading.Event()

    def hear(failure: MachineFailure) -> None:
        told.append(failure)
        heard.set()

    with make(does) as machine:
        machine.boot(20)
        machine.watch()
        machine.on_failure(hear)
        with pytest.raises(MachineFailure) as caught:
            machine.watch(within_s=5)
        assert heard.wait(5)
        machine.on_failure(hear)
    assert caught.value.outcome is outcome
    assert told == [caught.value, caught.value], "once when it happened, once when it was asked for too late"


def test_an_oops_ends_a_workload_that_does_not_end_by_itself(make: Make) -> None:
    with make("late-oops") as machine:
        machine.boot(20)
        machine.watch(within_s=1.0)  # somebody may look at what is left
        machine.end_after_oops(grace_s=0.2)
        with pytest.raises(
            MachineFailure, match=r"oopsed, and its workload had not ended 0\.2 s later"
        ) as caught:
            machine.watch(within_s=5)
    assert caught.value.outcome is Outcome.KERNEL_BUG
    assert "kernel NULL pointer dereference in made_up" in str(caught.value)


def test_closing_ends_whoever_waits_and_is_not_a_failure(make: Make) -> None:
    told: list[MachineFailure] = []
    with make("hang") as machine:
        machine.on_failure(told.append)
        closer = threading.Timer(0.3, machine.close)
        closer.start()
        with pytest.raises(MachineFailure, match="the machine was closed") as caught:
            machine.boot(60)
        closer.join()
        machine.close()
    assert caught.value.outcome is Outcome.LOST
    assert told == []


def test_a_machine_outlives_the_thread_that_started_it(make: Make) -> None:
    machine = make()
    starter = threading.Thread(target=machine.__enter__)
    starter.start()
    starter.join()
    with contextlib.closing(machine):
        machine.boot(20)
        time.sleep(0.3)
        assert machine.alive


def test_machines_side_by_side(make: Make) -> None:
    with make(name="cell") as one, make(name="other") as other:
        one.boot(20)
        other.boot(20)
        assert one.pid != other.pid and one.sockets.directory != other.sockets.directory


def test_a_qemu_that_connects_before_its_starter_goes_on(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    spawn = process.spawn

    def slow(*arguments: Any, **options: Any) -> Any:
        started = spawn(*arguments, **options)
        time.sleep(1.0)  # a busy host: QEMU has connected long since
        return started

    monkeypatch.setattr(process, "spawn", slow)
    with make() as machine:
        machine.boot(20)
        assert machine.alive


def test_a_qemu_that_is_stopped_is_ended_without_waiting_for_an_answer(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    with make("ready") as machine:
        machine.boot(60)
        monkeypatch.setattr(machine.qmp, "execute", lambda command, *_, **__: asked.append(command))
        os.kill(machine.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{machine.pid}/stat")
        while ") T " not in stat.read_text():  # it stops a moment later
            time.sleep(0.01)
    assert not asked and not Path(f"/proc/{machine.pid}").exists()
