# SPDX-License-Identifier: GPL-2.0-only
"""Access to a guest over SSH: commands, files and a shell.

Arguments of a command are not interpreted by a shell. Exit status, death by a signal and a broken connection are
distinguished. Everything uses one connection; a Guest may be used from several threads.
"""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import queue
import secrets
import select
import shlex
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, cast

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.guest.image import HOST_ALIAS, GuestImage

if TYPE_CHECKING:
    import paramiko

_ADDRESS = "127.0.0.1"
_USER = "root"
_PROGRAM = "/usr/bin/argv-exec"
_STATE = "/run/argv-exec"
#: vm_images/guest/init keeps a CPU busy until this file exists.
_CONNECTED = "/run/connected"
#: Exit status of argv-exec that means: the real status is in the state file.
_TOLD = 255
#: dropbear rejects commands of 9000 bytes or more (MAX_CMD_LEN in its sysoptions.h).
_LONGEST_COMMAND = 8000
_CHUNK = 1 << 16
#: Bytes of a command's standard output, and of its standard error, that are kept. A guest can print without end.
LONGEST_OUTPUT = 64 << 20
#: Bytes that the guest may send ahead of the reader; output is read as it arrives. When a tenth of it is read, paramiko
#: asks for more. This should be rare, as it does so without its lock; see _send_end_of_file().
_WINDOW = 1 << 28
#: Host seconds for a command to end after SIGTERM, and for a guest that is short of memory to answer a request.
_STOP_TIMEOUT_S = 20.0
_ANSWER_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 5.0
#: Host seconds that the guest has to kill a command which took too long. Its end is reported in any case.
_KILL_TIMEOUT_S = 3.0
#: Host seconds that the machine may take to notice why a connection broke; a panic's report is waited for.
_REASON_S = 5.0
_RETRY_S = 0.2
#: Host seconds between two looks whether a command that waits for its standard input has ended.
_INPUT_S = 0.2
#: Errors of a disk of this host, which no other path would avoid.
_OF_HOST = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)
#: Ciphers that both sides support, the cheapest for an emulated CPU first.
_CIPHERS = ("aes128-ctr", "aes256-ctr")


#: Why the machine that the guest ran in has ended; None while it runs. Waits up to so many host seconds for a reason.
Why = Callable[[float], Exception | None]


class GuestLost(Exception):  # noqa: N818 - named like an outcome
    """The connection to the guest broke: it died, or it was ended. Pending commands did not finish.

    Args:
        message: a sentence; the machine's reason where it has one.
        why: that reason.
    """

    def __init__(self, message: str, why: Exception | None = None) -> None:
        super().__init__(message)
        self.why = why


class CommandTimeout(Exception):  # noqa: N818 - named like an outcome
    """A command took too long and was killed.

    Args:
        message: a sentence with the command and the time limit.
        stdout, stderr: its output up to then.
    """

    def __init__(self, message: str, stdout: str = "", stderr: str = "") -> None:
        super().__init__(message)
        self.stdout = stdout
        self.stderr = stderr


class CommandFailed(InfrastructureError):  # noqa: N818 - named like an outcome
    """A command that had to succeed failed."""


@dataclass(frozen=True)
class Finished:
    """The result of a command that ended in the guest.

    Args:
        argv: command line.
        status: exit status; None if a signal killed it.
        signal: name of the signal that killed it, e.g. ``SIGKILL``; None if it exited.
        stdout, stderr: its output; bytes that are not UTF-8 are replaced.
        seconds: host seconds it took.
        missing_bytes: bytes of its standard output above :data:`LONGEST_OUTPUT`, which were not kept.
    """

    argv: tuple[str, ...]
    status: int | None
    signal: str | None
    stdout: str
    stderr: str
    seconds: float
    missing_bytes: int = 0

    @property
    def end(self) -> str:
        """How it ended, for messages: ``exit status 1``, ``signal SIGKILL``."""
        return f"exit status {self.status}" if self.signal is None else f"signal {self.signal}"


def encode_command(
    argv: Sequence[str], environment: Mapping[str, str] | None = None, directory: str = ""
) -> str:
    """The payload of ``argv-exec`` (vm_images/guest/tools/argv-exec.c): base64url of NUL-terminated fields.

    Raises:
        UserError: `argv` is empty, or an argument contains a NUL byte.

    >>> encode_command(["true"])
    'ADAAdHJ1ZQA'
    """
    entries = [f"{name}={value}" for name, value in (environment or {}).items()]
    fields = [directory, str(len(entries)), *entries, *argv]
    if not argv:
        raise UserError("there is no command to run in the guest; give at least the name of a program.")
    if any("\0" in part for part in fields):
        raise UserError("an argument for the guest contains a NUL byte; remove it.")
    data = b"".join(part.encode(errors="surrogateescape") + b"\0" for part in fields)
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def ssh_command(port: int, image: GuestImage, argv: Sequence[str] = ()) -> list[str]:
    """The ssh(1) command line for an interactive shell, which accepts only the host key of this guest.

    Args:
        port: port of this host that is forwarded to the guest.
        argv: a command to run instead of a login shell; it is interpreted by the guest's shell.
    """
    options = {
        "UserKnownHostsFile": str(image.known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": HOST_ALIAS,
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "PasswordAuthentication": "no",
        "LogLevel": "ERROR",
    }
    flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    return [
        "ssh", "-F", "/dev/null", *flags, "-i", str(image.client_key), "-p", str(port), f"{_USER}@{_ADDRESS}",
        *argv,
    ]  # fmt: skip


class Guest:
    """A connection to a booted guest; a context manager, opened by :meth:`connect`.

    For example::

        with Guest.connect(port, image, 60, None) as guest:
            guest.run(["uname", "-r"]).stdout  # '6.12.117\\n'
    """

    def __init__(
        self, transport: paramiko.Transport, transcript: Path | None, why: Why = lambda within_s: None
    ) -> None:
        self._transport = transport
        self._transcript = transcript
        self._why = why
        self._lock = threading.Lock()
        self._reason = "the connection to the guest broke"

    @classmethod
    def connect(
        cls,
        port: int,
        image: GuestImage,
        timeout_s: float,
        transcript: Path | None = None,
        why: Why = lambda within_s: None,
    ) -> Guest:
        """Connect to the guest through `port` of this host.

        Args:
            image: image of the guest, with the client key and the expected host key.
            timeout_s: time limit in host seconds; failed attempts are repeated until then.
            transcript: file for one JSON line per command and per transferred file.
            why: called when the connection breaks, and while there is none yet.

        Raises:
            GuestLost: no connection within the time limit, or the machine has ended.
            InfrastructureError: the server on this port is not this guest.
        """
        import paramiko  # here, since most commands connect to no guest and the import is slow

        host_key = paramiko.Ed25519Key(data=base64.b64decode(image.host_key_public.read_text().split()[1]))
        client_key = paramiko.Ed25519Key.from_private_key_file(str(image.client_key))
        deadline = time.monotonic() + timeout_s
        while True:
            left = max(deadline - time.monotonic(), 1.0)
            try:
                guest = cls(_transport(port, host_key, client_key, left), transcript, why)
                guest.run(["touch", _CONNECTED], timeout_s=left)
                return guest
            except paramiko.AuthenticationException as error:
                raise InfrastructureError(
                    f"the guest rejects the key of its image ({error}); rebuild the image."
                ) from error
            except _connection_errors() as error:
                reason = why(0.0)
                if reason is not None:
                    raise GuestLost(str(reason), reason) from error
                if time.monotonic() >= deadline:
                    raise GuestLost(f"no SSH connection to the guest in {timeout_s:g} s: {error}") from error
            time.sleep(_RETRY_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the guest keeps running."""
        self._transport.close()

    def rest(self) -> None:
        """Prepare the guest to be saved: after :meth:`close` it is as busy as one to which nobody has connected yet.

        Raises:
            GuestLost: the connection broke.
            CommandFailed: a program failed.
        """
        # With icount the clock of an idle guest leaps; see vm_images/guest/init.
        script = f"rm {_CONNECTED}; while [ ! -e {_CONNECTED} ]; do :; done </dev/null >/dev/null 2>&1 &"
        self.run(["sh", "-c", script], timeout_s=_ANSWER_TIMEOUT_S, check=True)

    def wake(self, hostname: str) -> None:
        """Make a clone differ from its siblings: hostname and random numbers; and set its clock.

        Raises:
            GuestLost: the connection broke.
            CommandFailed: a program failed.
        """
        script = f'hostname "$1" && date -u -s "@$2" >/dev/null && {_PROGRAM} --reseed'
        argv = ["sh", "-c", script, "sh", hostname, str(int(time.time()))]
        self.run(argv, stdin=secrets.token_bytes(64), timeout_s=_ANSWER_TIMEOUT_S, check=True)

    def abort(self, reason: object = None) -> None:
        """Break the connection: all threads that wait for the guest get :class:`GuestLost`.

        Args:
            reason: message of that exception.
        """
        if reason is not None:
            self._reason = str(reason)
        self._transport.close()

    @property
    def alive(self) -> bool:
        """Whether the connection is up."""
        return self._transport.is_active()

    def run(
        self,
        argv: Sequence[str],
        *,
        stdout: Path | None = None,
        stderr: Path | None = None,
        stdin: str | bytes | None = None,
        timeout_s: float | None = None,
        check: bool = False,
        environment: Mapping[str, str] | None = None,
        directory: str = "",
    ) -> Finished:
        """Run a command until it ends.

        Args:
            argv: command line; it is not interpreted by a shell.
            stdout, stderr: files that output is written to as it appears; it is returned as well. Both are cut at
                :data:`LONGEST_OUTPUT` bytes, with a line that says so.
            stdin: its standard input; None for empty input.
            timeout_s: host seconds after which its whole process group is killed.
            check: raise an error unless its exit status is 0.
            environment: variables *added* to the environment of the SSH server.
            directory: working directory.

        Raises:
            GuestLost: the connection broke.
            CommandTimeout: it took more than `timeout_s`.
            CommandFailed: it failed, with `check`.
        """
        remote = self._start(argv, stdout, stderr, stdin, None, environment, directory)
        finished = remote.wait(timeout_s)
        if check and (finished.status != 0):
            raise CommandFailed(f"{shlex.join(argv)} in the guest: {finished.end}: {_last_line(finished)}")
        return finished

    def spawn(
        self,
        argv: Sequence[str],
        *,
        on_line: Callable[[str], None] | None = None,
        stdout: Path | None = None,
        stderr: Path | None = None,
        stdin: str | bytes | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Remote:
        """Start a command in the background.

        Args:
            on_line: called in a separate thread with each line of its standard output, without the newline; if None,
                the lines are returned by :meth:`Remote.lines`.

        Raises:
            GuestLost: the connection broke.
        """
        lines: queue.SimpleQueue[str | None] | None = None
        if on_line is None:
            lines = queue.SimpleQueue()
            on_line = lines.put
        return self._start(argv, stdout, stderr, stdin, on_line, environment, "", lines)

    def attach(
        self,
        argv: Sequence[str],
        *,
        stdin: IO[bytes] | None,
        stdout: IO[bytes],
        stderr: IO[bytes],
        timeout_s: float | None = None,
    ) -> Finished:
        """Run a command with the streams of this process, byte for byte, while it runs; nothing of them is kept.

        Args:
            argv: command line; it is not interpreted by a shell.
            stdin: read until its end, or until the command ends; None for empty input.
            stdout, stderr: written to as output arrives.
            timeout_s: host seconds after which its whole process group is killed.

        Raises:
            GuestLost: the connection broke.
            CommandTimeout: it took more than `timeout_s`.
            BrokenPipeError: the reader of `stdout` or `stderr` has gone; the command was killed.
            InfrastructureError: `stdin` cannot be read, or `stdout` or `stderr` cannot be written.
        """
        return self._start(argv, stdout, stderr, stdin, None, None, "").wait(timeout_s)

    def read_bytes(self, path: str) -> bytes:
        """The content of a file, including files in /proc and /sys.

        Raises:
            UserError: it cannot be read.
        """
        remote = self._start(["cat", path], None, None, None, None, None, "")
        finished = remote.wait(_ANSWER_TIMEOUT_S)
        if finished.status != 0:
            raise UserError(f"cannot read {path} in the guest: {_last_line(finished)}.")
        if finished.missing_bytes:
            raise UserError(f"{path} in the guest has more than {LONGEST_OUTPUT >> 20} MiB; copy it instead.")
        return remote.stdout_bytes

    def read_text(self, path: str) -> str:
        """The content of a text file; see :meth:`read_bytes`."""
        return self.read_bytes(path).decode(errors="replace")

    def write_text(self, path: str, text: str) -> None:
        """Write a file with a single write, as files in /proc and /sys require.

        Raises:
            UserError: the guest's kernel rejected the write; the message has its reason.
        """
        # The path is an argument of the script, not a part of it.
        finished = self.run(["sh", "-c", 'cat >"$1"', "sh", path], stdin=text, timeout_s=_ANSWER_TIMEOUT_S)
        if finished.status != 0:
            raise UserError(f"the guest rejected {text.strip()!r} for {path}: {_last_line(finished)}.")

    def upload(self, local: Path, remote: str, mode: int | None = None) -> None:
        """Copy a file into the guest.

        Args:
            remote: path of the new file; not a directory.
            mode: permission bits; None for the guest's default.

        Raises:
            UserError: one of the paths is wrong.
        """
        with self._sftp("upload", str(local), remote) as client:
            client.put(str(local), remote)
            if mode is not None:
                client.chmod(remote, mode)

    def download(self, remote: str, local: Path) -> None:
        """Copy a file from the guest; files in /proc and /sys are copied completely.

        Raises:
            UserError: one of the paths is wrong.
            InfrastructureError: the disk is full, read-only or broken.
        """
        # Not client.get(): it relies on the file size, which is 0 in /proc.
        with (
            self._sftp("download", remote, str(local)) as client,
            client.open(remote, "rb") as source,
            local.open("wb") as target,
        ):
            while chunk := source.read(_CHUNK):
                target.write(chunk)

    @contextmanager
    def _sftp(self, what: str, source: str, target: str) -> Iterator[paramiko.SFTPClient]:
        """A file transfer; the SFTP server exits afterwards and frees its memory."""
        import paramiko

        began = time.monotonic()
        try:
            client = paramiko.SFTPClient.from_transport(self._transport)
        except _connection_errors() as error:
            raise self.lost(error) from error
        assert client is not None
        try:
            yield client
        except (paramiko.SSHException, EOFError) as error:
            raise self.lost(error) from error
        except OSError as error:
            if not self.alive:
                raise self.lost(error) from error
            kind = InfrastructureError if error.errno in _OF_HOST else UserError
            raise kind(f"cannot {what} {source} to {target}: {error.strerror or error}.") from error
        finally:
            _end_of_input(client.get_channel())
        self.note({"argv": [what, source, target], "seconds": round(time.monotonic() - began, 3)})

    def lost(self, error: Exception | None = None) -> GuestLost:
        """The exception to raise when the connection turns out to be broken, with the machine's reason if any.

        Args:
            error: what the SSH library said. It says each reason only once.
        """
        reason = self._why(_REASON_S)
        if reason is not None:
            return GuestLost(str(reason), reason)
        error = self._transport.get_exception() or error
        return GuestLost(f"{self._reason} ({error})" if str(error or "") else self._reason)

    def note(self, record: Mapping[str, object]) -> None:
        """Add one line to the transcript."""
        if self._transcript is None:
            return
        line = json.dumps({"utc": datetime.now(UTC).isoformat(timespec="milliseconds"), **record})
        with self._lock, self._transcript.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def kill(self, token: str, number: int) -> None:
        """Send a signal to the process group of a command; does nothing if it has ended."""
        self._plain(f"exec {_PROGRAM} --kill {token} {number}")

    def ended_otherwise(self, token: str) -> str:
        """The state file that argv-exec wrote for a command: ``exit 255``, ``signal 9`` or its last known state."""
        return self._plain(f"cat {_STATE}/{token}; rm -f {_STATE}/{token}")

    def _plain(self, command: str) -> str:
        """Run a fixed command in the guest's shell, without any input from the user; return its output."""
        channel = self._channel()
        try:
            channel.settimeout(_ANSWER_TIMEOUT_S)
            _request(channel, command)
            text: str = channel.makefile("rb").read().decode(errors="replace").strip()
            _end_of_input(channel)
            return text
        except _connection_errors() as error:
            raise self.lost(error) from error
        finally:
            channel.close()

    def _channel(self) -> paramiko.Channel:
        try:
            return self._transport.open_session(window_size=_WINDOW)
        except _connection_errors() as error:
            raise self.lost(error) from error

    def _start(
        self,
        argv: Sequence[str],
        stdout: Path | IO[bytes] | None,
        stderr: Path | IO[bytes] | None,
        stdin: str | bytes | IO[bytes] | None,
        on_line: Callable[[str], None] | None,
        environment: Mapping[str, str] | None,
        directory: str,
        lines: queue.SimpleQueue[str | None] | None = None,
    ) -> Remote:
        token = secrets.token_hex(8)
        payload = encode_command(argv, environment, directory)
        if len(payload) > _LONGEST_COMMAND:
            self._put_payload(f"{_STATE}/{token}.argv", payload)
            payload = "@"
        channel = self._channel()
        try:
            _request(channel, f"exec {_PROGRAM} {token} {payload}")
            channel.event.clear()  # from now on it means that the channel is closed
        except _connection_errors() as error:
            raise self.lost(error) from error
        data = stdin.encode() if isinstance(stdin, str) else stdin
        return Remote(self, channel, token, tuple(argv), data, stdout, stderr, on_line, lines)

    def _put_payload(self, path: str, payload: str) -> None:
        with self._sftp("upload", "a long command", path) as client, client.open(path, "wb") as target:
            target.write(payload.encode())


class Remote:
    """A running command in the guest; created by :meth:`Guest.spawn`."""

    def __init__(
        self,
        guest: Guest,
        channel: paramiko.Channel,
        token: str,
        argv: tuple[str, ...],
        stdin: bytes | IO[bytes] | None,
        stdout: Path | IO[bytes] | None,
        stderr: Path | IO[bytes] | None,
        on_line: Callable[[str], None] | None,
        lines: queue.SimpleQueue[str | None] | None,
    ) -> None:
        self.argv = argv
        self._guest = guest
        self._channel = channel
        self._token = token
        self._lines = lines
        self._began = time.monotonic()
        self._finished: Finished | None = None
        self._output = _Kept()
        self._errors = _Kept()
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._guarded, args=work, daemon=True, name=f"guest-{work[0].__name__}")
            for work in (
                (self._pump, channel.recv, self._output, stdout, on_line),
                (self._pump, channel.recv_stderr, self._errors, stderr, None),
                (self._feed, stdin),
            )
        ]
        for thread in self._threads:
            thread.start()

    @property
    def stdout_bytes(self) -> bytes:
        """Its standard output so far, unchanged."""
        return bytes(self._output.data)

    def lines(self) -> Iterator[str]:
        """Lines of its standard output as they appear; ends with the command or the connection."""
        assert self._lines is not None, "the lines go to on_line"
        while (line := self._lines.get()) is not None:
            yield line

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> Finished:
        """Send SIGTERM, kill it if it does not end within `timeout_s` host seconds, and return how it ended.

        Raises:
            GuestLost: the connection broke.
        """
        if self._finished is None:
            self._guest.kill(self._token, signal.SIGTERM)
        try:
            return self.wait(timeout_s)
        except CommandTimeout:
            return self.wait(_ANSWER_TIMEOUT_S)

    def wait(self, timeout_s: float | None = None) -> Finished:
        """Wait until it ends.

        Raises:
            GuestLost: the connection broke.
            CommandTimeout: it did not end within `timeout_s` host seconds from now, and was killed.
        """
        if self._finished is not None:
            return self._finished
        if not self._ended(timeout_s):
            self._kill()
            stdout, stderr = self._text(self._output), self._text(self._errors)
            self._note(None, "timeout")
            raise CommandTimeout(
                f"{shlex.join(self.argv)} in the guest took more than {timeout_s:g} s and was killed.",
                stdout,
                stderr,
            )
        if self._failure is not None:
            with suppress(GuestLost):  # nobody takes its output any more
                self._guest.kill(self._token, signal.SIGKILL)
            raise self._failure
        status: int | None = self._channel.exit_status
        name = None
        if status == -1:  # paramiko: no status was received
            if not self._guest.alive:
                raise self._guest.lost()
            status, name = None, "unknown"  # argv-exec itself was killed
        elif status == _TOLD:
            what, _, number = self._guest.ended_otherwise(self._token).partition(" ")
            if what == "signal":
                status, name = None, signal.Signals(int(number)).name
            elif what != "exit":
                status, name = None, "unknown"
        _await_close(self._channel)
        self._finished = Finished(
            self.argv,
            status,
            name,
            self._text(self._output),
            self._text(self._errors),
            time.monotonic() - self._began,
            self._output.missing,
        )
        self._note(status, name)
        return self._finished

    def _ended(self, timeout_s: float | None) -> bool:
        """Wait until all output has arrived and the status is known; False after the timeout."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s

        def left() -> float | None:
            return None if deadline is None else max(deadline - time.monotonic(), 0.0)

        for thread in self._threads[:2]:
            thread.join(left())
            if thread.is_alive():
                return False
        # Set when the exit status arrives, or when the channel closes without one.
        return self._channel.status_event.wait(left())

    def _kill(self) -> None:
        def kill() -> None:
            with suppress(GuestLost):  # the connection is lost as well
                self._guest.kill(self._token, signal.SIGKILL)

        # A guest that is short of memory answers late; one whose QEMU is stopped never does.
        killer = threading.Thread(target=kill, daemon=True, name="guest-kill")
        killer.start()
        killer.join(_KILL_TIMEOUT_S)
        if not killer.is_alive():
            self._ended(_KILL_TIMEOUT_S)
        self._channel.close()

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except _connection_errors():
            pass  # the connection broke; wait() notices that there is no status
        except _WriteFailedError as error:
            self._failure = error.__cause__
            self._channel.close()
        except BaseException as error:
            self._failure = error
            self._channel.close()

    def _feed(self, data: bytes | IO[bytes] | None) -> None:
        if isinstance(data, bytes):
            self._channel.sendall(data)
        elif data is not None:
            for chunk in self._read(data):
                self._channel.sendall(chunk)
        _send_end_of_file(self._channel)

    def _read(self, stream: IO[bytes]) -> Iterator[bytes]:
        """What `stream` has, as it arrives, until its end or until the command ends.

        A read that waits for a terminal would keep what is typed after the end of the command.
        """
        try:
            descriptor = stream.fileno()
        except io.UnsupportedOperation:  # it is in memory
            yield from iter(lambda: stream.read(_CHUNK), b"")
            return
        while not self._channel.closed and not self._channel.status_event.is_set():
            try:
                if not select.select([descriptor], [], [], _INPUT_S)[0]:
                    continue
                chunk = os.read(descriptor, _CHUNK)
            except OSError as error:
                raise InfrastructureError(f"standard input cannot be read: {error.strerror}.") from error
            if not chunk:
                return
            yield chunk

    def _pump(
        self,
        receive: Callable[[int], bytes],
        kept: _Kept,
        target: Path | IO[bytes] | None,
        on_line: Callable[[str], None] | None,
    ) -> None:
        rest = b""
        file: IO[bytes] | None = None
        try:
            if isinstance(target, Path):
                with _written(target):
                    file = target.open("wb")
            stream = file or cast("IO[bytes] | None", target)
            while chunk := receive(_CHUNK):
                if on_line is not None:
                    *complete, rest = (rest + chunk).split(b"\n")
                    rest = rest[:LONGEST_OUTPUT]
                    for line in complete:
                        on_line(line.decode(errors="replace"))
                elif target is None or file:  # a stream of the caller is not kept as well
                    chunk = kept.take(chunk)
                if stream:
                    with _written(target):
                        stream.write(chunk)
                        stream.flush()
        finally:
            if file:
                with suppress(OSError):  # what could not be written has been said
                    file.write(kept.cut)
                    file.close()
            if on_line is not None:
                if rest:
                    on_line(rest.decode(errors="replace"))
                if self._lines is not None:
                    self._lines.put(None)

    @staticmethod
    def _text(kept: _Kept) -> str:
        return (bytes(kept.data) + kept.cut).decode(errors="replace")

    def _note(self, status: int | None, name: str | None) -> None:
        self._guest.note(
            {
                "argv": list(self.argv),
                "status": status,
                "signal": name,
                "seconds": round(time.monotonic() - self._began, 3),
                "stdout_bytes": len(self._output.data) + self._output.missing,
                "stderr": self._text(self._errors)[-500:],
            }
        )


class _Kept:
    """The output of a command up to :data:`LONGEST_OUTPUT` bytes, and how many more there were."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.missing = 0

    def take(self, chunk: bytes) -> bytes:
        """Keep what there is room for, and return it."""
        fitting = chunk[: LONGEST_OUTPUT - len(self.data)]
        self.data += fitting
        self.missing += len(chunk) - len(fitting)
        return fitting

    @property
    def cut(self) -> bytes:
        """The line that says what is missing; empty if nothing is."""
        return (
            f"\norchestrate: the output was cut here; {self.missing} bytes are missing\n".encode()
            if self.missing
            else b""
        )


class _WriteFailedError(Exception):
    """Output of a command could not be written on this host: not an error of the connection, as an OSError would be."""


@contextmanager
def _written(target: Path | IO[bytes] | None) -> Iterator[None]:
    """Raises another error than that of a broken connection if output cannot be written on this host."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise _WriteFailedError from error
        name = target if isinstance(target, Path) else "the standard output or standard error of this command"
        raise InfrastructureError(f"{name} cannot be written: {error.strerror or error}.") from error


def check_loopback() -> None:
    """Check that this host can reach a port of its own, through which it reaches its guests.

    Raises:
        InfrastructureError: the loopback interface is down, as in a new network namespace.
    """
    try:
        with (
            socket.create_server((_ADDRESS, 0)) as server,
            socket.create_connection(server.getsockname(), timeout=_ANSWER_TIMEOUT_S),
        ):
            pass
    except OSError as error:
        raise InfrastructureError(
            f"this host cannot connect to its own address {_ADDRESS}, through which it reaches its guests "
            f"({error.strerror or error}); bring its loopback interface up: ip link set lo up."
        ) from error


def _connection_errors() -> tuple[type[Exception], ...]:
    """Exceptions that a broken connection raises."""
    import paramiko

    return paramiko.SSHException, EOFError, OSError


def _transport(
    port: int, host_key: paramiko.PKey, client_key: paramiko.PKey, timeout_s: float
) -> paramiko.Transport:
    import paramiko

    connection = socket.create_connection((_ADDRESS, port), timeout=timeout_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = paramiko.Transport(connection)
    transport.banner_timeout = transport.handshake_timeout = timeout_s
    transport.auth_timeout = transport.channel_timeout = timeout_s
    options = transport.get_security_options()
    options.key_types = ("ssh-ed25519",)
    options.ciphers = _CIPHERS
    try:
        transport.start_client(timeout=timeout_s)
        if transport.get_remote_server_key() != host_key:
            raise InfrastructureError(
                f"the server on port {port} of this host has another host key than the guests of this cache; "
                "something else listens there, or the guest was booted from another image."
            )
        transport.auth_publickey(_USER, client_key)
        transport.channel_timeout = _ANSWER_TIMEOUT_S
    except BaseException:
        transport.close()
        raise
    return transport


def _request(channel: paramiko.Channel, command: str) -> None:
    """Request a command; paramiko itself would wait for the answer without a time limit."""
    overdue = threading.Timer(_ANSWER_TIMEOUT_S, channel.close)
    overdue.daemon = True
    overdue.start()
    try:
        channel.exec_command(command)
    finally:
        overdue.cancel()


def _end_of_input(channel: paramiko.Channel | None) -> None:
    """Send end-of-file to the guest, so that it closes the channel when the command is done.

    If we close it while the server's process still runs, dropbear 2022.83 sometimes closes the next channel without
    an answer to its request.
    """
    if channel is None:
        return
    try:
        # paramiko sets this event when the channel closes; earlier it is set for the answer to a request.
        channel.event.clear()
        _send_end_of_file(channel)
        _await_close(channel)
    except _connection_errors():
        pass  # the connection broke; the next command reports it


def _send_end_of_file(channel: paramiko.Channel) -> None:
    """Send end-of-file, unless the channel is closed.

    Channel.shutdown_write() of paramiko releases its lock before it sends. Meanwhile its other thread may answer when
    the server closes the channel, and the end-of-file that follows is for a channel that no longer exists: dropbear
    then ends the whole connection (getchannel() in its common-channel.c).
    """
    internals: Any = channel
    with channel.lock:
        if channel.closed:
            return
        message = internals._send_eof()
        if message is not None:
            internals.transport._send_user_message(message)


def _await_close(channel: paramiko.Channel) -> None:
    if not channel.closed:
        channel.event.wait(_CLOSE_TIMEOUT_S)
    channel.close()


def _last_line(finished: Finished) -> str:
    text = finished.stderr.strip() or finished.stdout.strip()
    return text.splitlines()[-1] if text else "it printed nothing"
