# SPDX-License-Identifier: GPL-2.0-only
"""Following a console log, and talking to whoever listens on the line."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path

import pytest

from orchestrator.machine import console as console_module
from orchestrator.machine.console import ConsoleLog, dialogue

CONSOLE = Path(__file__).parent / "data" / "console"


def test_a_log_that_is_not_there_yet_says_nothing(tmp_path: Path) -> None:
    console = ConsoleLog(tmp_path / "console.log")
    assert not console.poll()
    assert console.text() == "" and console.findings() == []


def test_ready_is_seen_when_its_line_is_complete(tmp_path: Path) -> None:
    console = ConsoleLog(tmp_path / "console.log")
    with console.path.open("wb", buffering=0) as log:
        log.write(b"[    1.0] Run /init\r\norchestrate: rea")
        assert console.poll() and not console.ready
        log.write(b"dy")
        assert console.poll() and not console.ready
        log.write(b"\r\n")
        assert console.poll() and console.ready
    assert not console.poll()


def test_ready_is_seen_where_a_message_of_the_kernel_cuts_its_line(tmp_path: Path) -> None:
    """Seen on a busy host under tcg: the clock is calibrated in the second in which the guest comes up."""
    console = ConsoleLog(tmp_path / "console.log")
    console.path.write_text(
        "[    1.134985] Run /init as init process\n"
        "orchestrate: ready[    1.721097] tsc: Refined TSC clocksource calibration: 2596.141 MHz\n"
    )
    assert console.poll() and console.ready


def test_another_ready_mark(tmp_path: Path) -> None:
    console = ConsoleLog(tmp_path / "console.log", "login:")
    console.path.write_text("orchestrate: ready\nlogin: ")
    console.poll()
    assert console.ready


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_panic_is_seen_however_the_log_arrives(tmp_path: Path, size: int) -> None:
    recorded = (CONSOLE / "panic-sysrq.log").read_bytes()
    console = ConsoleLog(tmp_path / "console.log")
    begins = recorded.index(b"Kernel panic - not syncing")
    with console.path.open("wb", buffering=0) as log:
        for at in range(0, len(recorded), size):
            log.write(recorded[at : at + size])
            console.poll()
            assert console.panicked == (at + size >= begins + len(b"Kernel panic - not syncing"))
    assert [finding.title for finding in console.findings()] == ["Kernel panic: sysrq triggered crash"]


@pytest.mark.parametrize("name", ["oom-kill", "oops-null", "hung-task", "warning"])
def test_no_panic_is_seen_where_none_is(name: str) -> None:
    console = ConsoleLog(CONSOLE / f"{name}.log")
    console.poll()
    assert not console.panicked


def test_bytes_that_are_not_text_do_no_harm(tmp_path: Path) -> None:
    console = ConsoleLog(tmp_path / "console.log")
    console.path.write_bytes(b"\xff\xfe\x00 Probing EDD\n[    1.000000] Kernel panic - not syncing: x\n")
    console.poll()
    assert console.panicked and console.tail(1).endswith("Kernel panic - not syncing: x")


def test_a_dialogue(tmp_path: Path) -> None:
    path = tmp_path / "console"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def guest() -> None:
            line, _ = listener.accept()
            with line:
                line.sendall(b"/ # ")
                line.sendall(b"you said " + line.recv(100))

        answering = threading.Thread(target=guest)
        answering.start()
        with dialogue(path, timeout_s=5) as line:
            line.expect_exact("/ # ")
            line.sendline("uname")
            line.expect_exact("you said uname\n")
        answering.join()


def test_a_dialogue_with_nobody(tmp_path: Path) -> None:
    with pytest.raises(OSError), dialogue(tmp_path / "console"):
        pass


def test_a_log_without_end_is_cut_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "LONGEST", 4000)
    monkeypatch.setattr(console_module, "KEPT", 1000)
    path = tmp_path / "console.log"
    log = ConsoleLog(path)
    written = 0
    for number in range(500):
        text = f"[    1.{number:06d}] line {number} of a guest that prints without end\n"
        if number == 40:
            text += "[    1.000041] WARNING: CPU: 0 PID: 1 at mm/a.c:7 made_up+0x1/0x2\n"
        with path.open("a") as stream:
            stream.write(text)
        written += len(text)
        log.poll()
        assert path.stat().st_size <= 4000 + len(text)
    kept = path.read_text()
    assert kept.startswith("[    1.000000] line 0 of")
    found = re.search(r"\norchestrate: the console log was cut here; (\d+) bytes are missing\n", kept)
    assert found is not None
    assert written - int(found[1]) == len(kept) - len(found[0])
    assert log.tail(1).endswith("line 499 of a guest that prints without end")
    assert [each.title.startswith("WARNING") for each in log.findings()].count(True) == 1, (
        "a report in the part that was removed"
    )


def test_control_characters_of_a_guest_are_not_printed(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"\x1b[2J\x1b]0;owned\x07[    1.0] text\r\n\xc2\x9b31m\x00\n")
    shown = ConsoleLog(path).text()
    assert shown == "\\x1b[2J\\x1b]0;owned\\x07[    1.0] text\n\\x9b31m\\x00\n"
