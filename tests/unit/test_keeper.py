# SPDX-License-Identifier: GPL-2.0-only
"""Guests that are kept after a failure: how long, and what the user is told."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.execution import keeper as keeper_module
from orchestrator.execution.keeper import Keeper


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(keeper_module, "_LOOK_S", 0.01)
    return SimpleNamespace(
        gdb_socket=Path("/run/a b/gdb"),
        log_dir=Path("logs/chunk.full.1"),
        sockets=SimpleNamespace(monitor=Path("/run/a b/monitor")),
        stop=lambda: True,
        has_process=True,
    )


KERNEL: Any = SimpleNamespace(vmlinux=Path("/cache/vmlinux"))


def test_the_user_is_told_how_to_attach(machine: Any) -> None:
    said: list[str] = []
    assert Keeper(said.append, limit_s=0.01).keep(machine, KERNEL, "kernel-bug: KASAN")
    assert said[0].splitlines()[:2] == [
        "kept the guest of chunk.full.1 (kernel-bug: KASAN)",
        "attach to it: gdb -ex 'target remote /run/a b/gdb' /cache/vmlinux",
    ]


def test_a_kept_guest_is_ended_by_its_user_or_with_the_command(machine: Any) -> None:
    keeper = Keeper(lambda message: None, limit_s=60)
    began = time.monotonic()
    threading.Timer(0.05, lambda: setattr(machine, "has_process", False)).start()
    assert keeper.keep(machine, KERNEL, "")
    machine.has_process = True
    threading.Timer(0.05, keeper.release).start()
    assert keeper.keep(machine, KERNEL, "")
    assert time.monotonic() - began < 30
    assert not keeper.keep(machine, KERNEL, ""), "the command is ending"


def test_there_is_nothing_to_keep_of_a_qemu_that_ended(machine: Any) -> None:
    machine.stop = lambda: False
    assert not Keeper(pytest.fail, limit_s=60).keep(machine, KERNEL, "")
