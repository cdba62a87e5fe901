# SPDX-License-Identifier: GPL-2.0-only
"""A saved boot: a guest that has come up, saved to files, so that clones of it can be started.

The guest's memory is a file per node. While the guest boots, QEMU maps these files shared, so they hold its memory when
it stops; the rest of its state (CPUs, devices) is a migration stream that leaves shared memory out (capability
x-ignore-shared, docs/devel/migration in QEMU). A clone maps the same files privately: pages are read when they are
first used, all clones of a boot share those that they only read, and none of them changes a file.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InfrastructureError
from orchestrator.machine.qmp import Qmp, QmpError

#: Host seconds for the state of the guest, a few MiB, to be written or read.
TRANSFER_TIMEOUT_S = 60.0
_CHUNK = 1 << 20
_CAPABILITY = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}
_POLL_S = 0.005


@dataclass(frozen=True)
class SavedBoot:
    """The files of a saved boot.

    Args:
        directory: their directory.
    """

    directory: Path

    @property
    def state(self) -> Path:
        """The migration stream without the memory of the nodes."""
        return self.directory / "state"

    @property
    def console(self) -> Path:
        """What the guest had printed."""
        return self.directory / "console.log"


def save(qmp: Qmp, saved: SavedBoot, sockets: Path) -> None:
    """Stop a guest and write its state; its memory is in the files of `saved` already.

    Args:
        sockets: a directory for a Unix socket.

    Raises:
        QmpError: QEMU cannot save this guest.
        InfrastructureError: the state cannot be written.
    """
    qmp.execute("stop")
    qmp.execute("migrate-set-capabilities", _CAPABILITY)
    path = sockets / "migration"
    failure: list[OSError] = []

    def receive(listener: socket.socket) -> None:
        try:
            stream, _ = listener.accept()
            stream.settimeout(TRANSFER_TIMEOUT_S)
            with stream, saved.state.open("wb") as file:
                while chunk := stream.recv(_CHUNK):
                    file.write(chunk)
        except OSError as error:
            failure.append(error)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(TRANSFER_TIMEOUT_S)
        receiver = threading.Thread(target=receive, args=(listener,), name="saved boot", daemon=True)
        receiver.start()
        qmp.execute("migrate", {"uri": f"unix:{path}"})
        _await_end(qmp)
        receiver.join(TRANSFER_TIMEOUT_S)
    if failure:
        raise InfrastructureError(f"{saved.state} cannot be written: {failure[0]}.") from failure[0]


def load(qmp: Qmp, saved: SavedBoot, sockets: Path) -> None:
    """Give a QEMU that waits for it (``-incoming defer``) the state of a saved boot, and start its CPUs.

    Raises:
        QmpError: QEMU rejects the state.
    """
    path = sockets / "migration"
    qmp.execute("migrate-set-capabilities", _CAPABILITY)
    qmp.execute("migrate-incoming", {"uri": f"unix:{path}"})
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream, saved.state.open("rb") as file:
            stream.settimeout(TRANSFER_TIMEOUT_S)
            stream.connect(str(path))
            stream.sendfile(file)
    except OSError as error:
        raise QmpError(f"QEMU does not take the state: {error}") from error
    _await_end(qmp)
    qmp.execute("cont")


def _await_end(qmp: Qmp) -> None:
    until = time.monotonic() + TRANSFER_TIMEOUT_S
    while time.monotonic() < until:
        told = qmp.execute("query-migrate")
        status = told.get("status")
        if status == "completed":
            return
        if status in ("failed", "cancelled"):
            raise QmpError(f"the state was not transferred: {told.get('error-desc', status)}")
        time.sleep(_POLL_S)
    with contextlib.suppress(QmpError):
        qmp.execute("migrate_cancel")
    raise QmpError(f"the state was not transferred within {TRANSFER_TIMEOUT_S:g} s")
