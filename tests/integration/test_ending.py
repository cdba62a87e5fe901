# SPDX-License-Identifier: GPL-2.0-only
"""A guest that panics and a QEMU that is killed, under each command: real guests, one kernel for all stages.

tests/unit/test_ending.py has every ending and what each command makes of it. Here real guests show that they end as
the fake ones do.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cache import Cache
from orchestrator.cli.application import status_of
from orchestrator.execution.bench import Bench, Booted
from orchestrator.guest.ssh import GuestLost
from orchestrator.kernel.build import KernelBuild
from orchestrator.store.run import Run

_SMALL = ["-t", "1x512M/1", "-a", "tcg"]
_GUEST = ["-p", "baseline", *_SMALL]
COMMANDS = {
    "run": ["run", "-p", "stage-1", "-w", "touch", "-n", "1", "-j", "2", *_SMALL],
    "check": ["check", "-p", "baseline", "--no-shrink", *_SMALL],
    "bisect": ["bisect", "-p", "stage-1", "-w", "touch", "--until", "failure", "--max-boots", "1", *_SMALL],
    "bisect diverges": ["bisect", "-p", "stage-1", "--until", "diverges", "--max-boots", "1", *_SMALL],
    "test": ["test", "-p", "stage-1", "--config", "measure", "--suite", "reservations", "--no-baseline", *_SMALL],
    "verify": ["series", "verify", "--stage", "1", "--only", "smoke", *_SMALL],
    "exec": ["exec", *_GUEST, "--", "sleep", "300"],
    "boot": ["boot", *_GUEST],
    "shell": ["shell", *_GUEST],
    "debug": ["debug", *_GUEST, "-x", "continue"],
}  # fmt: skip
#: A search that may boot only once comes to no answer.
_UNDECIDED = ("bisect", "bisect diverges")


def panic(booted: Booted) -> None:
    """Have the kernel panic while its guest is at work."""
    with suppress(GuestLost):
        booted.guest.run(["sh", "-c", "echo c >/proc/sysrq-trigger"], timeout_s=60)


def kill(booted: Booted) -> None:
    """End QEMU as the host does when it runs out of memory."""
    os.kill(booted.machine.pid, signal.SIGKILL)


@pytest.fixture
def struck(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, baseline_kernel: KernelBuild, request: Any
) -> Callable[[Callable[[Booted], None], bool], None]:
    """From now on something happens to each guest once it is up."""
    monkeypatch.setenv("ORCHESTRATE_RESULTS", str(tmp_path))
    monkeypatch.setattr(Bench, "kernel", lambda bench, patchset, dwarf=False: baseline_kernel)
    # `series verify` boots no guest for a stage whose inventory is in the cache.
    has = Cache.has
    monkeypatch.setattr(Cache, "has", lambda cache, kind, key: kind != "inventory" and has(cache, kind, key))
    # What follows a run is not how it ended, and takes a while.
    monkeypatch.setattr("orchestrator.analysis.plots.plot_run", lambda run, directory: [])
    monkeypatch.setattr("orchestrator.analysis.report.write_report", lambda *_: None)
    boot = Bench.boot

    def strike(blow: Callable[[Booted], None], at_once: bool) -> None:
        @contextmanager
        def booted_and_struck(self: Bench, *arguments: Any, **options: Any) -> Iterator[Booted]:
            with boot(self, *arguments, **options) as booted:
                if at_once:
                    blow(booted)
                    yield booted
                    return
                timer = threading.Timer(0.3, blow, [booted])
                timer.start()
                try:
                    yield booted
                finally:
                    timer.join(30)

        monkeypatch.setattr(Bench, "boot", booted_and_struck)

    return strike


@pytest.fixture
def open_input() -> Iterator[None]:
    """A standard input that does not end, as a terminal's does not: a shell would leave at once."""
    reading, writing = os.pipe()
    before = os.dup(0)
    os.dup2(reading, 0)
    yield
    os.dup2(before, 0)
    for descriptor in (reading, writing, before):
        os.close(descriptor)


@pytest.mark.usefixtures("open_input")
@pytest.mark.parametrize(
    ("blow", "outcome", "status", "shown"),
    [
        (panic, "kernel-panic", 3, "Kernel panic: sysrq triggered crash"),
        (kill, "lost", 1, "QEMU was ended by signal 9"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_real_guest_that_ends_is_reported_as_what_it_was(
    command: str,
    blow: Callable[[Booted], None],
    outcome: str,
    status: int,
    shown: str,
    struck: Callable[[Callable[[Booted], None], bool], None],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # The smoke test of a stage may be over within the delay.
    struck(blow, command == "verify")
    ended = status_of(COMMANDS[command])
    out, err = capfd.readouterr()
    assert shown in out + err
    assert ended == (1 if command in _UNDECIDED else status), out + err
    runs = [Run.open(path.parent) for path in tmp_path.glob("*/run.json")]
    for run in runs:
        assert set(run.cells["outcome"]) == {outcome}
    assert len(runs) == (command in ("run", "check", "bisect", "bisect diverges", "test", "verify"))
