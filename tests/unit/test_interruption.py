# SPDX-License-Identifier: GPL-2.0-only
"""The signals that end a command."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from orchestrator.cli import application, interruption
from orchestrator.cli.interruption import Interrupted, Interruption, interruption_of


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGINT, 130, "interrupted; all"),
        (signal.SIGTERM, 143, "ended by SIGTERM; all"),
        (signal.SIGHUP, 129, "ended by SIGHUP; all"),
    ],
)
def test_each_signal_ends_the_command_in_order(
    number: signal.Signals,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done: list[str] = []

    def app(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), number)
            done.append("not ended")
        except KeyboardInterrupt as error:
            os.kill(os.getpid(), signal.SIGTERM)  # the second one does not interrupt the clean-up
            done.append("stored")
            raise typer.Abort from error  # as typer does

    monkeypatch.setattr(application, "app", app)
    Interruption().install()
    assert application.status_of([]) == status
    assert done == ["stored"]
    assert said in capsys.readouterr().err


def test_a_clean_up_that_hangs_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "GRACE_S", 0.0)
    Interruption().install()
    for _ in range(2):
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup(1) does
    Interruption().install()
    os.kill(os.getpid(), signal.SIGHUP)


def test_an_interrupt_of_another_origin_counts_as_ctrl_c() -> None:
    assert interruption_of(KeyboardInterrupt()).exit_status == 130


@pytest.mark.parametrize(("limit", "is_enough"), [(20, False), (200, True)])
def test_too_few_file_descriptors_are_said_at_once(limit: int, is_enough: bool, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "results", "list"],
        env={**os.environ, "ORCHESTRATE_RESULTS": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
    )
    if is_enough:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1
        assert done.stderr == (
            "orchestrate: this process may have only 20 files open, and needs 128; raise the limit with: "
            "ulimit -n 4096\n"
        )


def test_ctrl_c_while_the_command_line_is_imported_is_no_traceback() -> None:
    script = (
        "import os, signal; from orchestrator.__main__ import start\n"
        "start(lambda: os.kill(os.getpid(), signal.SIGINT))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_signal_after_the_command_has_ended_changes_nothing() -> None:
    script = (
        "import atexit, os, signal, sys; from orchestrator.__main__ import start\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGTERM)\n"
        "sys.argv = ['orchestrate', '--version']; start()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("orchestrate ")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_the_signal_passes_the_command_line_library(
    number: signal.Signals,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from orchestrator.cli import list_

    monkeypatch.setattr(list_, "terminal_of", lambda context: os.kill(os.getpid(), number))
    Interruption().install()
    assert application.status_of(["list", "workloads"]) == status
    assert "all measurements so far are kept" in capsys.readouterr().err


def test_too_little_address_space_is_said_at_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "results", "list"],
        env={**os.environ, "ORCHESTRATE_RESULTS": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "orchestrate: this process may have only 1024 MiB of address space, and needs 2048; raise the limit with: "
        "ulimit -v unlimited\n"
    )


def test_a_thread_that_cannot_start_is_a_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(application, "app", app)
    assert application.status_of([]) == 1
    assert "no memory left" in capsys.readouterr().err
