# SPDX-License-Identifier: GPL-2.0-only
"""The way into a guest: commands, files and a shell over SSH.

A command's arguments never meet a shell, its exit status and the signal that ended it are told apart, and a
connection that breaks is told apart from both. One connection carries everything; a Guest may be used from
several threads.
"""

from __future__ import annotations

import base64
import json
import queue
import secrets
import shlex
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.guest.image import HOST_ALIAS, GuestImage

if TYPE_CHECKING:
    import paramiko

_ADDRESS = "127.0.0.1"
_USER = "root"
_PROGRAM = "/usr/bin/argv-exec"
_STATE = "/run/argv-exec"
#: vm_images/guest/init keeps a processor busy until this is there.
_CONNECTED = "/run/connected"
#: argv-exec's exit status for "look into the file".
_TOLD = 255
#: dropbear refuses commands of 9000 bytes (its sysoptions.h, MAX_CMD_LEN).
_LONGEST_COMMAND = 8000
_CHUNK = 1 << 16
#: Host seconds that a command may take to end when asked to, and a guest short of memory to answer a request.
_STOP_TIMEOUT_S = 20.0
_ANSWER_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 5.0
#: Host seconds that the machine may take to notice why a connection broke; a panic's report is waited for.
_REASON_S = 5.0
_RETRY_S = 0.2
#: The symmetric ciphers that cost an emulated processor least, of those both sides have.
_CIPHERS = ("aes128-ctr", "aes256-ctr")


#: Why the machine that the guest ran in has ended; None while it runs. Waits up to so many host seconds for a reason.
Why = Callable[[float], Exception | None]


class GuestLost(Exception):  # noqa: N818 - it is an end, and values name it so
    """The connection to the guest broke: it died, or it was ended. What was asked of it did not finish.

    Args:
        message: a sentence; the machine's reason where it has one.
        why: that reason.
    """

    def __init__(self, message: str, why: Exception | None = None) -> None:
        super().__init__(message)
        self.why = why


class CommandTimeout(Exception):  # noqa: N818 - it is an end, and values name it so
    """A command took too long and was killed.

    Args:
        message: a sentence with the command and the bound.
        stdout, stderr: what it had printed until then.
    """

    def __init__(self, message: str, stdout: str = "", stderr: str = "") -> None:
        super().__init__(message)
        self.stdout = stdout
        self.stderr = stderr


class CommandFailed(InfrastructureError):  # noqa: N818 - it is an end, and values name it so
    """A command that had to succeed ended with another status than 0."""


@dataclass(frozen=True)
class Finished:
    """A command that ended in the guest.

    Args:
        argv: its command line.
        status: exit status; None where a signal ended it.
        signal: name of that signal, e.g. ``SIGKILL``; None where it exited.
        stdout, stderr: what it printed; bytes that are no UTF-8 are replaced.
        seconds: host time it took.
    """

    argv: tuple[str, ...]
    status: int | None
    signal: str | None
    stdout: str
    stderr: str
    seconds: float

    @property
    def end(self) -> str:
        """How it ended, for a sentence: ``exit status 1``, ``signal SIGKILL``."""
        return f"exit status {self.status}" if self.signal is None else f"signal {self.signal}"


def encode_command(
    argv: Sequence[str], environment: Mapping[str, str] | None = None, directory: str = ""
) -> str:
    """The payload of ``argv-exec`` (vm_images/guest/tools/argv-exec.c): base64url of NUL-terminated fields.

    Raises:
        UserError: `argv` is empty, or a part of it holds a NUL byte, which no argument can.

    >>> encode_command(["true"])
    'ADAAdHJ1ZQA'
    """
    entries = [f"{name}={value}" for name, value in (environment or {}).items()]
    fields = [directory, str(len(entries)), *entries, *argv]
    if not argv:
        raise UserError("there is no command to run in the guest; give at least its name.")
    if any("\0" in part for part in fields):
        raise UserError("an argument for the guest holds a NUL byte; no argument of a program can.")
    data = b"".join(part.encode(errors="surrogateescape") + b"\0" for part in fields)
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def ssh_command(port: int, image: GuestImage, argv: Sequence[str] = ()) -> list[str]:
    """The ssh(1) command line that opens a shell for a person, trusting exactly this guest's host key.

    Args:
        port: on this host, forwarded to the guest.
        argv: a command instead of a login shell; ssh hands it to the guest's shell.
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
    """A connection to a booted guest; made by :meth:`connect`, closed by leaving its block.

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
        """Connect to the guest behind `port` of this host.

        Args:
            image: holds our key and the host key that the guest must prove to have.
            timeout_s: host seconds; attempts that fail earlier are repeated.
            transcript: gets a JSON line for each command and each file transferred.
            why: asked when the connection breaks, and while there is none yet.

        Raises:
            GuestLost: no connection within the time, or the machine has ended.
            InfrastructureError: something else than our guest answers there.
        """
        import paramiko  # here, for most commands connect to no guest, and it takes a while to import

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
                    f"the guest refuses the key of its own image ({error}); build the image again."
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
        """Close the connection; the guest stays as it is."""
        self._transport.close()

    def abort(self, reason: object = None) -> None:
        """Break the connection: whoever waits for the guest, in any thread, gets :class:`GuestLost`.

        Args:
            reason: why, the sentence of that exception.
        """
        if reason is not None:
            self._reason = str(reason)
        self._transport.close()

    @property
    def alive(self) -> bool:
        """Whether the connection stands."""
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
        """Run a command to its end.

        Args:
            argv: command line; no shell sees it.
            stdout, stderr: files that are written as output appears; it is returned as well.
            stdin: what the command reads; it reads end-of-file where None.
            timeout_s: host seconds after which it is killed with its whole process group.
            check: raise where it ends with anything but exit status 0.
            environment: variables *added* to the server's.
            directory: working directory.

        Raises:
            GuestLost: the connection broke.
            CommandTimeout: it took more than `timeout_s`.
            CommandFailed: `check`, and it failed.
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
        """Start a command that goes on while we do other things.

        Args:
            on_line: called with each line of its standard output, without the newline, in a thread of its
                own; where None the lines wait for :meth:`Remote.lines`.

        Raises:
            GuestLost: the connection broke.
        """
        lines: queue.SimpleQueue[str | None] | None = None
        if on_line is None:
            lines = queue.SimpleQueue()
            on_line = lines.put
        return self._start(argv, stdout, stderr, stdin, on_line, environment, "", lines)

    def read_bytes(self, path: str) -> bytes:
        """The content of a file, also of one in /proc or /sys.

        Raises:
            UserError: it cannot be read.
        """
        remote = self._start(["cat", path], None, None, None, None, None, "")
        finished = remote.wait(_ANSWER_TIMEOUT_S)
        if finished.status != 0:
            raise UserError(f"cannot read {path} in the guest: {_last_line(finished)}.")
        return remote.stdout_bytes

    def read_text(self, path: str) -> str:
        """The content of a text file, see :meth:`read_bytes`."""
        return self.read_bytes(path).decode(errors="replace")

    def write_text(self, path: str, text: str) -> None:
        """Write a file in one go, as files in /proc and /sys want it.

        Raises:
            UserError: the guest's kernel refused; the sentence has its reason.
        """
        # The path is an argument of the script, not a part of it.
        finished = self.run(["sh", "-c", 'cat >"$1"', "sh", path], stdin=text, timeout_s=_ANSWER_TIMEOUT_S)
        if finished.status != 0:
            raise UserError(f"the guest refused {text.strip()!r} for {path}: {_last_line(finished)}.")

    def upload(self, local: Path, remote: str, mode: int | None = None) -> None:
        """Copy a file into the guest.

        Args:
            remote: path of the new file, not of a directory.
            mode: permission bits; the guest's default where None.

        Raises:
            UserError: a path is wrong on either side.
        """
        with self._sftp("upload", str(local), remote) as client:
            client.put(str(local), remote)
            if mode is not None:
                client.chmod(remote, mode)

    def download(self, remote: str, local: Path) -> None:
        """Copy a file out of the guest; files of /proc and /sys with all that can be read from them.

        Raises:
            UserError: a path is wrong on either side.
        """
        # Not client.get(): it believes the file's size, which is 0 in /proc.
        with (
            self._sftp("download", remote, str(local)) as client,
            client.open(remote, "rb") as source,
            local.open("wb") as target,
        ):
            while chunk := source.read(_CHUNK):
                target.write(chunk)

    @contextmanager
    def _sftp(self, what: str, source: str, target: str) -> Iterator[paramiko.SFTPClient]:
        """A file transfer; its server leaves the guest's memory afterwards."""
        import paramiko

        began = time.monotonic()
        try:
            client = paramiko.SFTPClient.from_transport(self._transport)
        except _connection_errors() as error:
            raise self.lost() from error
        assert client is not None
        try:
            yield client
        except (paramiko.SSHException, EOFError) as error:
            raise self.lost() from error
        except OSError as error:
            if not self.alive:
                raise self.lost() from error
            raise UserError(f"cannot {what} {source} to {target}: {error}.") from error
        finally:
            _end_of_input(client.get_channel())
        self.note({"argv": [what, source, target], "seconds": round(time.monotonic() - began, 3)})

    def lost(self) -> GuestLost:
        """The exception to raise when the connection turns out to be broken, with the machine's reason if any."""
        reason = self._why(_REASON_S)
        if reason is not None:
            return GuestLost(str(reason), reason)
        error = self._transport.get_exception()
        return GuestLost(f"{self._reason} ({error})" if str(error or "") else self._reason)

    def note(self, record: Mapping[str, object]) -> None:
        """Add one line to the transcript."""
        if self._transcript is None:
            return
        line = json.dumps({"utc": datetime.now(UTC).isoformat(timespec="milliseconds"), **record})
        with self._lock, self._transcript.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def kill(self, token: str, number: int) -> None:
        """Send a signal to the process group of a command of ours; nothing where it has ended."""
        self._plain(f"exec {_PROGRAM} --kill {token} {number}")

    def ended_otherwise(self, token: str) -> str:
        """What argv-exec wrote about the end of a command: ``exit 255``, ``signal 9`` or what it last knew."""
        return self._plain(f"cat {_STATE}/{token}; rm -f {_STATE}/{token}")

    def _plain(self, command: str) -> str:
        """Hand the guest's shell a command that is ours in every letter; what it prints."""
        channel = self._channel()
        try:
            channel.settimeout(_ANSWER_TIMEOUT_S)
            _request(channel, command)
            text: str = channel.makefile("rb").read().decode(errors="replace").strip()
            _end_of_input(channel)
            return text
        except _connection_errors() as error:
            raise self.lost() from error
        finally:
            channel.close()

    def _channel(self) -> paramiko.Channel:
        try:
            return self._transport.open_session()
        except _connection_errors() as error:
            raise self.lost() from error

    def _start(
        self,
        argv: Sequence[str],
        stdout: Path | None,
        stderr: Path | None,
        stdin: str | bytes | None,
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
            raise self.lost() from error
        data = stdin.encode() if isinstance(stdin, str) else stdin
        return Remote(self, channel, token, tuple(argv), data, stdout, stderr, on_line, lines)

    def _put_payload(self, path: str, payload: str) -> None:
        with self._sftp("upload", "a long command", path) as client, client.open(path, "wb") as target:
            target.write(payload.encode())


class Remote:
    """A command under way in the guest; made by :meth:`Guest.spawn`."""

    def __init__(
        self,
        guest: Guest,
        channel: paramiko.Channel,
        token: str,
        argv: tuple[str, ...],
        stdin: bytes | None,
        stdout: Path | None,
        stderr: Path | None,
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
        self._output = bytearray()
        self._errors = bytearray()
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._guarded, args=work, daemon=True, name=f"guest-{work[0].__name__}")
            for work in (
                (self._pump, channel.recv, self._output, stdout, on_line),
                (self._pump, channel.recv_stderr, self._errors, stderr, None),
                (self._feed, stdin or b""),
            )
        ]
        for thread in self._threads:
            thread.start()

    @property
    def stdout_bytes(self) -> bytes:
        """What it printed on standard output until now, unchanged."""
        return bytes(self._output)

    def lines(self) -> Iterator[str]:
        """Its lines of standard output as they appear; ends with the command or the connection."""
        assert self._lines is not None, "the lines go to on_line"
        while (line := self._lines.get()) is not None:
            yield line

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> Finished:
        """Ask it to end (SIGTERM), kill it where it does not within `timeout_s`, and say how it ended.

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
        """Wait for its end.

        Raises:
            GuestLost: the connection broke.
            CommandTimeout: it took more than `timeout_s` from now, and was killed.
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
            raise self._failure
        status: int | None = self._channel.exit_status
        name = None
        if status == -1:  # paramiko's "never told"
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
        )
        self._note(status, name)
        return self._finished

    def _ended(self, timeout_s: float | None) -> bool:
        """Wait until all output is here and the status is known; False where that takes too long."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s

        def left() -> float | None:
            return None if deadline is None else max(deadline - time.monotonic(), 0.0)

        for thread in self._threads[:2]:
            thread.join(left())
            if thread.is_alive():
                return False
        # Set when the exit status comes, and when the channel closes without one.
        return self._channel.status_event.wait(left())

    def _kill(self) -> None:
        try:
            self._guest.kill(self._token, signal.SIGKILL)
            self._ended(_ANSWER_TIMEOUT_S)
        except GuestLost:
            pass  # it is gone as well
        self._channel.close()

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except _connection_errors():
            pass  # the connection broke; whoever waits sees that there is no status
        except BaseException as error:
            self._failure = error
            self._channel.close()

    def _feed(self, data: bytes) -> None:
        if data:
            self._channel.sendall(data)
        self._channel.shutdown_write()

    def _pump(
        self,
        receive: Callable[[int], bytes],
        kept: bytearray,
        path: Path | None,
        on_line: Callable[[str], None] | None,
    ) -> None:
        stream: IO[bytes] | None = path.open("wb") if path else None
        rest = b""
        try:
            while chunk := receive(_CHUNK):
                if on_line is None:
                    kept += chunk
                else:
                    *complete, rest = (rest + chunk).split(b"\n")
                    for line in complete:
                        on_line(line.decode(errors="replace"))
                if stream:
                    stream.write(chunk)
                    stream.flush()
        finally:
            if stream:
                stream.close()
            if on_line is not None:
                if rest:
                    on_line(rest.decode(errors="replace"))
                if self._lines is not None:
                    self._lines.put(None)

    @staticmethod
    def _text(data: bytearray) -> str:
        return bytes(data).decode(errors="replace")

    def _note(self, status: int | None, name: str | None) -> None:
        self._guest.note(
            {
                "argv": list(self.argv),
                "status": status,
                "signal": name,
                "seconds": round(time.monotonic() - self._began, 3),
                "stdout_bytes": len(self._output),
                "stderr": self._text(self._errors)[-500:],
            }
        )


def _connection_errors() -> tuple[type[Exception], ...]:
    """What a connection that breaks raises."""
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
                f"port {port} of this host shows another host key than this cache's guests have; "
                "something else listens there, or the guest's image is not the one given."
            )
        transport.auth_publickey(_USER, client_key)
        transport.channel_timeout = _ANSWER_TIMEOUT_S
    except BaseException:
        transport.close()
        raise
    return transport


def _request(channel: paramiko.Channel, command: str) -> None:
    """Ask for a command; paramiko itself would wait for the answer without a bound."""
    overdue = threading.Timer(_ANSWER_TIMEOUT_S, channel.close)
    overdue.daemon = True
    overdue.start()
    try:
        channel.exec_command(command)
    finally:
        overdue.cancel()


def _end_of_input(channel: paramiko.Channel | None) -> None:
    """Close a channel from the guest's side: it is told the end of its input, and closes when it is done.

    Closing it from ours while the server's process still runs makes dropbear 2022.83 now and then close the
    channel that is opened next, without an answer to its request.
    """
    if channel is None:
        return
    try:
        # paramiko sets this event when the channel closes; before, for the answer to our request.
        channel.event.clear()
        channel.shutdown_write()
        _await_close(channel)
    except _connection_errors():
        pass  # the connection broke, which the next command will say


def _await_close(channel: paramiko.Channel) -> None:
    if not channel.closed:
        channel.event.wait(_CLOSE_TIMEOUT_S)
    channel.close()


def _last_line(finished: Finished) -> str:
    text = finished.stderr.strip() or finished.stdout.strip()
    return text.splitlines()[-1] if text else "it printed nothing"
