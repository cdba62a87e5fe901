# SPDX-License-Identifier: GPL-2.0-only
"""An SSH server of this host that stands for a guest: it runs commands with the real argv-exec."""

from __future__ import annotations

import contextlib
import io
import socket
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from guest_data import ROOT
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED

from orchestrator.guest.image import GuestImage


def new_key() -> tuple[paramiko.Ed25519Key, bytes]:
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return paramiko.Ed25519Key.from_private_key(io.StringIO(pem.decode())), pem


def compile_argv_exec(directory: Path) -> Path:
    """The guest's program with its state in `directory`."""
    source = ROOT / "vm_images" / "guest" / "tools" / "argv-exec.c"
    program = directory / "argv-exec"
    state = directory / "state"
    state.mkdir()
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", f'-DSTATE="{state}"']
    subprocess.run(["gcc", *flags, str(source), "-o", str(program)], check=True)
    return program


@dataclass
class Server(paramiko.ServerInterface):
    """One listening server for one connection after another.

    Args:
        program: the argv-exec that stands for the guest's.
        directory: where the image's files for the client are written.
    """

    program: Path
    directory: Path
    _transports: list[paramiko.Transport] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._host_key, _ = new_key()
        self._client_key, pem = new_key()
        self.image = GuestImage(self.directory, "test")
        self.image.client_key.write_bytes(pem)
        self.image.host_key_public.write_text(f"ssh-ed25519 {self._host_key.get_base64()}\n")
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()
        self.die()

    def die(self) -> None:
        """Break every connection, as a machine that goes away does."""
        for transport in self._transports:
            transport.close()

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        known = username == "root" and key == self._client_key
        return AUTH_SUCCESSFUL if known else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=self._execute, args=(channel, command.decode()), daemon=True).start()
        return True

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transport.add_server_key(self._host_key)
            self._transports.append(transport)
            # A client that did not like our key is gone.
            with contextlib.suppress(EOFError, OSError, paramiko.SSHException):
                transport.start_server(server=self)

    def _execute(self, channel: paramiko.Channel, command: str) -> None:
        command = command.replace("/usr/bin/argv-exec", str(self.program))
        command = command.replace("/run/argv-exec", str(self.program.parent / "state"))
        process = subprocess.Popen(
            ["sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        assert process.stdin and process.stdout and process.stderr

        def feed() -> None:
            assert process.stdin
            try:
                while chunk := channel.recv(4096):
                    process.stdin.write(chunk)
                process.stdin.close()
            except OSError:
                pass  # it did not want it

        threads = [threading.Thread(target=feed, daemon=True)]
        for stream, send in ((process.stdout, channel.sendall), (process.stderr, channel.sendall_stderr)):

            def pump(stream=stream, send=send) -> None:  # type: ignore[no-untyped-def]
                try:
                    while chunk := stream.read(4096):
                        send(chunk)
                except OSError:
                    pass  # the client is gone

            threads.append(threading.Thread(target=pump, daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads[1:]:
            thread.join()
        status = process.wait()
        try:
            channel.send_exit_status(status)
            channel.close()
        except (OSError, EOFError, paramiko.SSHException):
            pass  # the client is gone
