# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.errors import InfrastructureError
from orchestrator.process import kill_group, run, spawn


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pid: int, limit_s: float = 5.0) -> bool:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if not alive(pid):
            return True
        time.sleep(0.02)
    return False


def test_output_and_status_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines: list[str] = []
    done = run(["sh", "-c", "echo one; echo two >&2"], log_file=log, on_line=lines.append)
    assert sorted(lines) == ["one", "two"] and done.returncode == 0
    assert log.read_text().startswith("$ sh -c") and "two" in log.read_text()


def test_a_failure_says_the_last_line() -> None:
    with pytest.raises(InfrastructureError, match=r"status 3: no space left"):
        run(["sh", "-c", "echo no space left >&2; exit 3"])


def test_a_failure_is_a_value_where_asked() -> None:
    assert run(["sh", "-c", "exit 7"], check=False).returncode == 7


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfrastructureError, match="Debian package bison"):
        run(["bison"])


def test_a_timeout_kills_the_whole_group(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with pytest.raises(InfrastructureError, match=r"more than 0\.5 s"):
        run(["sh", "-c", f"sleep 60 & echo $! >{pid_file}; wait"], timeout_s=0.5)
    assert wait_until_gone(int(pid_file.read_text()))


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "from orchestrator.process import spawn; import sys, time\n"
        "print(spawn(['sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    deadline = time.monotonic() + 5  # setpriv needs a moment to become sleep
    while "sleep" not in Path(f"/proc/{child}/comm").read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    assert wait_until_gone(child)


def test_input_is_read_and_environment_added() -> None:
    done = run(["sh", "-c", 'cat; printf %s "$EXTRA"'], input_text="in", env={"EXTRA": "side"})
    assert done.stdout == "inside"


def test_kill_group_of_an_ended_process_is_not_an_error() -> None:
    process = spawn(["true"])
    process.wait()
    kill_group(process)
    assert os.getpid()
