# SPDX-License-Identifier: GPL-2.0-only
"""A program that stands for QEMU with a booted guest: a control socket, a console, and an SSH server as the guest has.

It takes the guest's keys from the image and its figures from the kernel and the seed, so a damaged image does not
answer and a wrong kernel measures something else. Signals end it as they end QEMU (qemu_system_killed() in QEMU's
softmmu/runstate.c): SIGTERM, SIGINT and SIGHUP with status 0 and an event.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fake_qemu import Fake

BOOT_S = 0.15
WORK_S = 0.25
#: What the image holds besides the keys, so that it is not read in one piece.
PADDING = 1 << 20
#: Where the guest's sampler reads nothing.
_READING = b"s 1000 0\ne 0\n"
_TOLD = 255


class StandInGuest:
    """The SSH server in the guest, on a port of the host."""

    def __init__(self, kernel: Path, image: Path) -> None:
        self._kernel = kernel
        self._facts: dict[str, str] = json.loads(image.read_bytes()[PADDING:])
        self._files: dict[str, bytes] = {}
        self._killed: dict[str, threading.Event] = {}
        self._ends: dict[str, str] = {}
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

    def serve(self) -> None:
        import paramiko
        from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED, cMSG_CHANNEL_SUCCESS

        guest = self
        client = paramiko.Ed25519Key(data=base64.b64decode(self._facts["client"].split()[1]))
        host = paramiko.Ed25519Key.from_private_key(io.StringIO(self._facts["host"]))

        class StandInServer(paramiko.ServerInterface):
            asked: threading.Thread

            def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
                return AUTH_SUCCESSFUL if key == client else AUTH_FAILED

            def check_channel_request(self, kind: str, chanid: int) -> int:
                return OPEN_SUCCEEDED

            def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
                self.asked = threading.Thread(
                    target=guest._execute, args=(channel, command.decode()), daemon=True
                )
                return True

        class StandInTransport(paramiko.Transport):
            server: StandInServer

            def _send_user_message(self, message: paramiko.Message) -> None:
                super()._send_user_message(message)  # type: ignore[misc]
                # A command that ended before the answer to its request would close the channel first.
                if message.asbytes()[:1] == cMSG_CHANNEL_SUCCESS:
                    self.server.asked.start()

        transports = []
        while True:
            connection, _ = self._socket.accept()
            transport = StandInTransport(connection)
            transport.server = StandInServer()
            transport.add_server_key(host)
            transports.append(transport)
            with suppress(EOFError, OSError, paramiko.SSHException):
                transport.start_server(server=transport.server)

    def _execute(self, channel: Any, command: str) -> None:
        with suppress(EOFError, OSError):
            words = command.split()
            if words[0] == "cat":  # the state of a command that ended otherwise
                channel.sendall(self._ends.pop(words[1].rstrip(";").rpartition("/")[2], "").encode())
                status = 0
            elif words[2] == "--kill":
                self._killed.setdefault(words[3], threading.Event()).set()
                status = 0
            else:
                status = self._run(channel, words[2], words[3])
            channel.send_exit_status(status)
            channel.close()

    def _run(self, channel: Any, token: str, payload: str) -> int:
        padded = payload + "=" * (-len(payload) % 4)
        fields = base64.urlsafe_b64decode(padded).decode().split("\0")[:-1]
        argv = fields[2 + int(fields[1]) :]
        program = argv[0].rpartition("/")[2]
        if argv == ["cat", "/sys/kernel/notes"]:
            from orchestrator.kernel.elf import build_id

            identity = bytes.fromhex(build_id(self._kernel))
            channel.sendall(struct.pack("<III", 4, len(identity), 3) + b"GNU\0" + identity)
        elif program == "cat":
            channel.sendall(self._files.get(argv[1], b""))
        elif program == "sh":
            self._files[argv[-1]] = channel.makefile("rb").read()
        elif "--once" in argv:
            channel.sendall(_READING)
        elif "--while" in argv:
            channel.sendall(b"r\n")
            self._killed.setdefault(token, threading.Event()).wait()
            self._ends[token] = "signal 15"
            return _TOLD
        elif "--seed" in argv:
            self._measure(channel, argv)
        return 0

    def _measure(self, channel: Any, argv: list[str]) -> None:
        seed = argv[argv.index("--seed") + 1]
        kernel = hashlib.sha256(self._kernel.read_bytes()).digest()
        # The first has a better direction and is the same for all kernels, so that no regression is found.
        for name, value in (
            ("rss_kib.max", int(seed) % 1000),
            ("anon_huge_kib.max", kernel[0]),
            ("touched_kib.sum", kernel[1]),
        ):
            time.sleep(WORK_S / 3)
            line = {"metric": name, "unit": "KiB", "value": 1000 + value}
            channel.sendall((json.dumps(line) + "\n").encode())
        channel.sendall(b'{"end": "ok"}\n')


class StandInMachine(Fake):
    """The machine around the guest."""

    def __init__(self) -> None:
        super().__init__()
        self._guest = StandInGuest(
            *(Path(sys.argv[sys.argv.index(name) + 1]) for name in ("-kernel", "-initrd"))
        )
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._killed)

    def answer(self, command: str, arguments: dict[str, str]) -> object:
        if arguments.get("command-line") == "info usernet":
            return f"  TCP[HOST_FORWARD]   9       127.0.0.1 {self._guest.port}       10.0.2.15    22     0     0\r\n"
        return super().answer(command, arguments)

    def run(self) -> None:
        if self.log.tell():
            return
        self.log.write("[    0.000000] Linux version 6.12.0\n")
        threading.Thread(target=self._guest.serve, daemon=True).start()
        time.sleep(BOOT_S)
        self.log.write("orchestrate: ready\n")

    def _killed(self, number: int, frame: object) -> None:
        sys.stderr.write(f"qemu-system-x86_64: terminating on signal {number}\n")
        sys.stderr.flush()
        with suppress(OSError):
            self.event("SHUTDOWN", guest=False, reason="host-signal")
        os._exit(0)


def main() -> None:
    from fake_qemu import option

    machine = StandInMachine()
    machine.qmp.connect(option("-chardev", "socket,id=qmp")["path"])
    machine.serve()


if __name__ == "__main__":
    main()
