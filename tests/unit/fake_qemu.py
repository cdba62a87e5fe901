# SPDX-License-Identifier: GPL-2.0-only
"""A program that behaves like QEMU towards a :class:`Machine`: control socket, console log, sockets, ways to end.

A word of the guest's kernel command line says what it does: ``fake=`` ready, panic, late-panic, oops-hang, late-oops,
hang, die, late-die, reset, off, terminated, end, option, late-option, internal-error, mute or no-port.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PANIC = "[    1.000000] Kernel panic - not syncing: made up\n[    1.000001] CPU: 0\n"
OOPS = "[    0.900000] WARNING: CPU: 0 PID: 1 at mm/made_up.c:7 made_up+0x1/0x2\n"
DIED = """\
[    1.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000
[    1.000001] Oops: Oops: 0000 [#1] SMP NOPTI
[    1.000002] RIP: 0010:made_up+0x10db/0x1290
[    1.000003] ---[ end trace 0000000000000000 ]---
"""


def option(name: str, prefix: str) -> dict[str, str]:
    """The sub-options of the ``-name prefix…`` argument; doubled commas are one."""
    for word, value in zip(sys.argv, sys.argv[1:], strict=False):
        if word == name and value.startswith(prefix):
            parts = value.replace(",,", "\0").split(",")
            return dict(part.replace("\0", ",").split("=", 1) for part in parts if "=" in part)
    raise SystemExit(f"no {name} {prefix}")


class Fake:
    def __init__(self) -> None:
        self.does = next(
            (word[5:] for word in " ".join(sys.argv).split() if word.startswith("fake=")),
            "ready",
        )
        self.log = Path(option("-chardev", "socket,id=console")["logfile"]).open("a", buffering=1)  # noqa: SIM115
        self.status = "running"
        self.qmp = socket.socket(socket.AF_UNIX)

    def send(self, message: object) -> None:
        self.qmp.sendall(json.dumps(message).encode() + b"\n")

    def event(self, name: str, **data: object) -> None:
        self.send({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 0}})

    def answer(self, command: str, arguments: dict[str, str]) -> object:
        if command == "human-monitor-command":
            if arguments["command-line"] == "info usernet":
                port = "" if self.does == "no-port" else "34567"
                return f"  TCP[HOST_FORWARD]   9       127.0.0.1 {port}       10.0.2.15    22     0     0\r\n"
            return "CPU#0\r\nRIP=ffffffff81000042 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n"
        if command == "query-status":
            return {"status": self.status, "running": self.status == "running"}
        return {}

    def serve(self) -> None:
        self.send(
            {
                "QMP": {
                    "version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""},
                    "capabilities": [],
                }
            }
        )
        for request in self.requests():
            if request["execute"] == "quit":
                self.send({"return": {}, "id": request.get("id")})
                os._exit(0)
            answer = self.answer(request["execute"], request.get("arguments", {}))
            self.send({"return": answer, "id": request.get("id")})
            if request["execute"] == "human-monitor-command":
                threading.Thread(target=self.run, daemon=True).start()

    def requests(self) -> Iterator[dict[str, Any]]:
        """QMP's messages need no newline between them."""
        said = ""
        while more := self.qmp.recv(65536).decode():
            said += more
            while said.strip():
                try:
                    request, end = json.JSONDecoder().raw_decode(said.lstrip())
                except json.JSONDecodeError:
                    break
                said = said.lstrip()[end:]
                yield request

    def run(self) -> None:
        if self.does == "mute" or self.log.tell():
            return
        self.log.write("[    0.000000] Linux version 6.12.0\n")
        if self.does == "panic":
            self.log.write(PANIC)
            self.reset()
        elif self.does in ("reset", "off", "terminated"):  # the last as QEMU ends at SIGTERM
            reasons = {"reset": "guest-reset", "off": "guest-shutdown", "terminated": "host-signal"}
            self.reset(reasons[self.does])
        elif self.does == "end":  # as at SIGTERM before the event can be sent
            os._exit(0)
        elif self.does == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.does == "oops-hang":
            self.log.write(OOPS)
        elif self.does == "internal-error":
            sys.stderr.write("KVM internal error. Suberror: 1\n")
            sys.stderr.flush()
            self.status = "internal-error"
            self.event("STOP")
        elif self.does != "hang":
            self.log.write("orchestrate: ready\n")
            if self.does.startswith("late-"):
                time.sleep(0.4)
            if self.does == "late-panic":
                self.log.write(PANIC)
                self.reset()
            if self.does == "late-oops":
                self.log.write(DIED)
            if self.does == "late-die":
                os.kill(os.getpid(), signal.SIGKILL)

    def reset(self, reason: str = "guest-reset") -> None:
        self.event("SHUTDOWN", guest=True, reason=reason)
        os._exit(0)


def main() -> None:
    fake = Fake()
    if fake.does != "option":
        fake.qmp.connect(option("-chardev", "socket,id=qmp")["path"])
    if fake.does in ("option", "late-option"):
        raise SystemExit("qemu-system-x86_64: -fake: invalid option")
    fake.serve()


if __name__ == "__main__":
    main()
