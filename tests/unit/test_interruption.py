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
