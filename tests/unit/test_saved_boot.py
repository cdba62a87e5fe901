# SPDX-License-Identifier: GPL-2.0-only
"""A saved boot: what QEMU is told to save and to load it, and what happens where it does not."""

from __future__ import annotations

import itertools
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fake_guest import TOPOLOGY, World, install

from orchestrator.cache import Cache, damage, seal
from orchestrator.cli.application import status_of
from orchestrator.errors import InfrastructureError
from orchestrator.machine import saved_boot
from orchestrator.machine.accelerator import Accelerator
from orchestrator.machine.qemu import Sockets, qemu_argv
from orchestrator.machine.qmp import QmpError
from orchestrator.machine.saved_boot import SavedBoot
from orchestrator.machine.topology import NodeMemory, Topology

STATE = os.urandom(3 << 20)


class MigratingQmp:
    """A QEMU that sends or takes a state over a Unix socket; its migrations end with `status`."""

    def __init__(self, status: str = "completed") -> None:
        self.asked: list[str] = []
        self.taken = b""
        self._status = status
        self._thread: threading.Thread | None = None

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> dict[str, str]:
        self.asked.append(command)
        if command == "migrate":
            with socket.socket(socket.AF_UNIX) as line, suppress(BrokenPipeError):
                line.connect(arguments["uri"].removeprefix("unix:"))  # type: ignore[index]
                line.sendall(STATE)
        elif command == "migrate-incoming":
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(arguments["uri"].removeprefix("unix:"))  # type: ignore[index]
            listener.listen()
            self._thread = threading.Thread(target=self._take, args=(listener,), daemon=True)
            self._thread.start()
        elif command == "query-migrate":
            if self._thread is not None:
                self._thread.join()
            return {"status": self._status, "error-desc": "made up"}
        return {}

    def _take(self, listener: socket.socket) -> None:
        with listener, listener.accept()[0] as line:
            while received := line.recv(1 << 16):
                self.taken += received


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as name:
        yield Path(name)


def test_a_state_that_was_saved_is_loaded(directory: Path) -> None:
    saved = SavedBoot(directory)
    source, clone = MigratingQmp(), MigratingQmp()
    saved_boot.save(source, saved, directory)  # type: ignore[arg-type]
    assert saved.state.read_bytes() == STATE
    (directory / "s").mkdir()
    saved_boot.load(clone, saved, directory / "s")  # type: ignore[arg-type]
    assert clone.taken == STATE
    capabilities = "migrate-set-capabilities"
    assert source.asked[:3] == ["stop", capabilities, "migrate"], "the guest stands still while it is saved"
    assert clone.asked[:2] == [capabilities, "migrate-incoming"] and clone.asked[-1] == "cont"


def test_a_qemu_that_rejects_the_state(directory: Path) -> None:
    SavedBoot(directory).state.write_bytes(STATE)
    (directory / "s").mkdir()
    clone = MigratingQmp(status="failed")
    with pytest.raises(QmpError, match="the state was not transferred: made up"):
        saved_boot.load(clone, SavedBoot(directory), directory / "s")  # type: ignore[arg-type]
    assert "cont" not in clone.asked


def test_a_state_that_cannot_be_written(directory: Path) -> None:
    with pytest.raises(InfrastructureError, match="cannot be written"):
        saved_boot.save(MigratingQmp(), SavedBoot(directory / "none"), directory)  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [True, False])
def test_the_memory_of_each_node_is_a_file(shared: bool) -> None:
    words = qemu_argv(
        Path("/k/bzImage"),
        Path("/i/initramfs"),
        Topology.parse("1x256M+1x0/1+1x128M"),
        Accelerator("icount", "insns", "", "max", "7.2.22"),
        [],
        Path("/logs/console.log"),
        Sockets(Path("/run/x")),
        memory=NodeMemory(Path("/c,1"), shared),
    )
    objects = [value for word, value in itertools.pairwise(words) if word == "-object"]
    on = "on" if shared else "off"
    assert objects == [
        f"memory-backend-file,id=memory{node},size={size}M,mem-path=/c,,1/memory{node},share={on}"
        for node, size in ((0, 256), (2, 128))
    ]
    assert ("-incoming" in words) == (not shared), "a clone waits for its state"


def test_a_sparse_file_is_sealed_by_its_data(tmp_path: Path) -> None:
    memory = tmp_path / "memory0"
    with memory.open("wb") as stream:
        stream.truncate(64 << 20)
        stream.seek(32 << 20)
        stream.write(b"data")
    seal(tmp_path)
    assert damage(tmp_path) is None
    when = memory.stat().st_mtime_ns
    with memory.open("r+b") as stream:
        stream.seek(32 << 20)
        stream.write(b"Data")
    assert memory.stat().st_mtime_ns != when
    assert damage(tmp_path) == "the content of memory0 has changed"


def test_only_entries_of_one_kind_are_collected(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def make(directory: Path) -> None:
        (directory / "x").write_bytes(bytes(8192))

    for kind in ("boot", "kernel"):
        cache.obtain(kind, {"a": 1}, make)
    assert [each.entry.path.parent.name for each in cache.collect(limit_bytes=0, kind="boot")] == ["boot"]
    assert cache.has("kernel", {"a": 1}) and not cache.has("boot", {"a": 1})


@pytest.mark.parametrize("option", ["--clone", "--no-clone"])
def test_exec_boots_where_it_cannot_clone_and_says_so(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    world = World("well", tmp_path)
    install(world, monkeypatch)
    assert status_of(["exec", "-p", "baseline", "-t", TOPOLOGY, option, "--", "program"]) == 0
    out, err = capfdbinary.readouterr()
    assert out == b"printed\n" and world.boots == 1
    said = b"the guest is booted instead: a fake guest has no state" in err
    assert said == (option == "--clone")
