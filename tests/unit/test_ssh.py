# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paramiko.common import MSG_CHANNEL_CLOSE, MSG_CHANNEL_EOF, MSG_CHANNEL_OPEN
from ssh_server import Server, compile_argv_exec, new_key

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.guest.image import GuestImage
from orchestrator.guest.ssh import (
    CommandFailed,
    CommandTimeout,
    Guest,
    GuestLost,
    check_loopback,
    encode_command,
    ssh_command,
)

ARGUMENTS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]))


@pytest.fixture(scope="module")
def argv_exec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_argv_exec(tmp_path_factory.mktemp("argv-exec"))


@pytest.fixture
def server(argv_exec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    # The first thing a connection does, in the guest's own file system.
    monkeypatch.setattr("orchestrator.guest.ssh._CONNECTED", str(tmp_path / "connected"))
    with Server(argv_exec, tmp_path) as server:
        yield server


@pytest.fixture
def guest(server: Server, tmp_path: Path) -> Iterator[Guest]:
    with Guest.connect(server.port, server.image, 10, tmp_path / "ssh.log") as guest:
        yield guest


def transcript(tmp_path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (tmp_path / "ssh.log").read_text().splitlines()]


def test_exit_status_and_both_streams_come_back(guest: Guest) -> None:
    finished = guest.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (finished.status, finished.signal) == (7, None)
    assert (finished.stdout, finished.stderr) == ("out\n", "err\n")


def test_a_signal_is_told_apart_from_the_status_that_a_shell_would_make_of_it(guest: Guest) -> None:
    killed = guest.run(["sh", "-c", "kill -SEGV $$"])
    assert (killed.status, killed.signal) == (None, "SIGSEGV")
    exited = guest.run(["sh", "-c", "exit 139"])
    assert (exited.status, exited.signal) == (139, None)
    assert guest.run(["sh", "-c", "exit 255"]).status == 255


def test_no_shell_sees_the_arguments(guest: Guest) -> None:
    hostile = ["$(echo no)", "a  b", "'", '"', "\\", "*", "; exit 3", "é\n", ""]
    finished = guest.run(["printf", r"%s\0", *hostile])
    assert finished.stdout.split("\0")[:-1] == hostile


def test_a_missing_program_has_the_shells_status_and_says_so(guest: Guest) -> None:
    finished = guest.run(["no-such-program"])
    assert finished.status == 127 and "No such file" in finished.stderr


def test_standard_input_environment_and_directory(guest: Guest, tmp_path: Path) -> None:
    finished = guest.run(
        ["sh", "-c", 'cat; echo "$COLOUR"; pwd'],
        stdin="given",
        environment={"COLOUR": "blue=green"},
        directory=str(tmp_path),
    )
    assert finished.stdout == f"givenblue=green\n{tmp_path}\n"
    assert guest.run(["cat"]).stdout == ""  # without input it reads the end at once


def test_output_is_in_its_file_while_the_command_runs(guest: Guest, tmp_path: Path) -> None:
    gate, out = tmp_path / "gate", tmp_path / "out"
    script = 'echo first; while [ ! -e "$1" ]; do sleep 0.01; done; echo second'
    done: list[str] = []
    thread = threading.Thread(
        target=lambda: done.append(guest.run(["sh", "-c", script, "sh", str(gate)], stdout=out).stdout)
    )
    thread.start()
    deadline = time.monotonic() + 10
    while not (out.exists() and out.read_text() == "first\n"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    gate.touch()
    thread.join(10)
    assert done == ["first\nsecond\n"] and out.read_text() == done[0]


def test_a_command_that_takes_too_long_is_killed_with_its_children(guest: Guest, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = 'sleep 1000 & echo $! >"$1"; echo $$ >>"$1"; echo partly; sleep 1000'
    with pytest.raises(CommandTimeout, match=r"took more than 0\.5 s") as error:
        guest.run(["sh", "-c", script, "sh", str(pids)], timeout_s=0.5)
    assert error.value.stdout == "partly\n"
    for pid in pids.read_text().split():
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
    assert guest.run(["true"]).status == 0  # the connection goes on


def test_check_raises_with_the_last_line(guest: Guest) -> None:
    with pytest.raises(CommandFailed, match="exit status 2: why"):
        guest.run(["sh", "-c", "echo other >&2; echo why >&2; exit 2"], check=True)


def test_a_machine_that_goes_away_is_not_a_failed_command(server: Server, guest: Guest) -> None:
    threading.Timer(0.3, server.die).start()
    with pytest.raises(GuestLost):
        guest.run(["sleep", "1000"])
    with pytest.raises(GuestLost):
        guest.run(["true"])


def test_a_connection_that_breaks_asks_the_machine_why(server: Server) -> None:
    asked: list[float] = []

    def why(within_s: float) -> Exception:
        asked.append(within_s)
        return RuntimeError("the guest's kernel panicked")

    with Guest.connect(server.port, server.image, 30, why=why) as guest:
        server.die()
        with pytest.raises(GuestLost, match=r"^the guest's kernel panicked$") as caught:
            guest.run(["true"])
    assert isinstance(caught.value.why, RuntimeError)
    assert asked and min(asked) > 0, "the machine gets a moment to notice"


def test_a_machine_that_has_ended_is_not_waited_for(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(GuestLost, match="QEMU was ended"):
        Guest.connect(port, server.image, 60, why=lambda within_s: RuntimeError("QEMU was ended"))
    assert time.monotonic() - began < 20


def test_abort_frees_whoever_waits_and_says_why(guest: Guest) -> None:
    threading.Timer(0.3, guest.abort, ["the machine panicked"]).start()
    with pytest.raises(GuestLost, match="the machine panicked"):
        guest.run(["sleep", "1000"])
    assert not guest.alive


def test_spawned_lines_arrive_while_it_runs_and_stop_ends_it(guest: Guest) -> None:
    remote = guest.spawn(["sh", "-c", "while :; do echo tick; sleep 0.01; done"])
    lines = remote.lines()
    assert [next(lines), next(lines)] == ["tick", "tick"]
    finished = remote.stop()
    assert finished.signal == "SIGTERM"
    assert set(lines) <= {"tick"}  # and it ends
    assert remote.stop() is finished


def test_a_program_that_ignores_the_request_to_end_is_killed(guest: Guest) -> None:
    remote = guest.spawn(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done"])
    assert next(remote.lines()) == "ready"
    assert remote.stop(timeout_s=0.5).signal == "SIGKILL"


def test_a_listener_that_fails_is_reported(guest: Guest) -> None:
    def refuse(line: str) -> None:
        raise InfrastructureError(f"cannot use {line}")

    with pytest.raises(InfrastructureError, match="cannot use one"):
        guest.spawn(["sh", "-c", "echo one; sleep 1000"], on_line=refuse).wait(10)


def test_files_are_read_and_written_whole(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "it's a $file"
    guest.write_text(str(path), "some\ntext")
    assert guest.read_text(str(path)) == path.read_text() == "some\ntext"
    path.write_bytes(bytes(range(256)))
    assert guest.read_bytes(str(path)) == bytes(range(256))
    with pytest.raises(UserError, match=r"cannot read /no/such in the guest: .*No such file"):
        guest.read_text("/no/such")
    with pytest.raises(UserError, match="rejected '7' for /no/such/file"):
        guest.write_text("/no/such/file", "7\n")


def test_several_threads_share_a_connection(guest: Guest) -> None:
    results: dict[int, str] = {}

    def work(number: int) -> None:
        results[number] = guest.run(["echo", str(number)]).stdout

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {number: f"{number}\n" for number in range(6)}


def test_the_transcript_has_a_line_a_command(guest: Guest, tmp_path: Path) -> None:
    guest.run(["sh", "-c", "exit 3"])
    record = transcript(tmp_path)[-1]
    assert record["argv"] == ["sh", "-c", "exit 3"] and record["status"] == 3
    assert isinstance(record["seconds"], float)


def test_another_host_key_is_refused(server: Server, tmp_path: Path) -> None:
    stranger, _ = new_key()
    server.image.host_key_public.write_text(f"ssh-ed25519 {stranger.get_base64()}\n")
    with pytest.raises(InfrastructureError, match="another host key"):
        Guest.connect(server.port, server.image, 10)


def test_a_guest_that_refuses_our_key_is_reported_at_once(server: Server) -> None:
    _, pem = new_key()
    server.image.client_key.write_bytes(pem)
    began = time.monotonic()
    with pytest.raises(InfrastructureError, match="rejects the key"):
        Guest.connect(server.port, server.image, 30)
    assert time.monotonic() - began < 10


def test_nobody_there_is_a_lost_guest_after_the_time(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(GuestLost, match=r"no SSH connection to the guest in 0\.5 s"):
        Guest.connect(port, server.image, 0.5)


@settings(deadline=None, max_examples=40)
@given(st.lists(ARGUMENTS, max_size=5), st.dictionaries(st.from_regex(r"[A-Z]+", fullmatch=True), ARGUMENTS))
def test_argv_exec_decodes_what_is_encoded(
    argv_exec: Path, arguments: list[str], environment: dict[str, str]
) -> None:
    script = r'for name in "$@"; do printf "%s\0" "$name"; done; env -0'
    payload = encode_command(["sh", "-c", script, "sh", *arguments], environment)
    done = subprocess.run(
        [argv_exec, "ab12", payload], capture_output=True, check=True, env={"PATH": os.defpath}
    )
    fields = done.stdout.split(b"\0")
    assert fields[: len(arguments)] == [argument.encode() for argument in arguments]
    for name, value in environment.items():
        if name not in ("PWD", "OLDPWD", "PATH", "IFS"):
            assert f"{name}={value}".encode() in fields


@pytest.mark.parametrize(
    "payload",
    ["", "!", "AA", base64.urlsafe_b64encode(b"\x000\x00").decode().rstrip("="),
     base64.urlsafe_b64encode(b"\x002\x00A=1\x00sh\x00").decode().rstrip("=")],
)  # fmt: skip
def test_argv_exec_refuses_a_broken_payload(argv_exec: Path, payload: str) -> None:
    done = subprocess.run([argv_exec, "ab12", payload], capture_output=True, check=False)
    assert done.returncode == 126 and done.stderr.startswith(b"argv-exec: ")


def test_argv_exec_refuses_a_token_that_is_a_path(argv_exec: Path) -> None:
    done = subprocess.run([argv_exec, "../x", encode_command(["true"])], capture_output=True, check=False)
    assert done.returncode == 126


def test_argv_exec_leaves_nothing_behind(argv_exec: Path) -> None:
    subprocess.run([argv_exec, "cd34", encode_command(["true"])], check=True)
    assert not (argv_exec.parent / "state" / "cd34").exists()


def test_a_command_needs_a_name_and_no_nul() -> None:
    with pytest.raises(UserError, match="no command"):
        encode_command([])
    with pytest.raises(UserError, match="NUL"):
        encode_command(["echo", "a\0b"])


def test_the_command_for_a_person_trusts_this_guest_only(tmp_path: Path) -> None:
    argv = ssh_command(2222, GuestImage(tmp_path, "x"), ["uname"])
    assert argv[0] == "ssh" and argv[-2:] == ["root@127.0.0.1", "uname"]
    assert "StrictHostKeyChecking=yes" in argv and f"UserKnownHostsFile={tmp_path / 'known_hosts'}" in argv


def test_streams_of_this_process_are_attached_byte_for_byte_while_the_command_runs(guest: Guest) -> None:
    given, taken = os.pipe(), os.pipe()
    errors = io.BytesIO()
    ended: list[int | None] = []

    def attached() -> None:
        with os.fdopen(given[0], "rb") as stdin, os.fdopen(taken[1], "wb", buffering=0) as stdout:
            ended.append(guest.attach(["cat"], stdin=stdin, stdout=stdout, stderr=errors).status)

    thread = threading.Thread(target=attached)
    thread.start()
    os.write(given[1], b"\xff\x00\n")
    assert os.read(taken[0], 10) == b"\xff\x00\n", "it comes back before the end of the input"
    os.write(given[1], b"more")
    os.close(given[1])
    thread.join(10)
    assert os.read(taken[0], 10) == b"more" and ended == [0]
    os.close(taken[0])


def test_a_command_that_reads_no_input_ends_although_the_input_does_not(guest: Guest) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stdin, os.fdopen(writing, "wb"):
        finished = guest.attach(["sh", "-c", "exit 3"], stdin=stdin, stdout=io.BytesIO(), stderr=io.BytesIO())
    assert finished.status == 3


def test_a_reader_of_the_output_that_has_gone_ends_the_command(guest: Guest, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    script = 'echo $$ >"$1"; while :; do echo; done'
    with os.fdopen(writing, "wb", buffering=0) as stdout, pytest.raises(BrokenPipeError):
        argv = ["sh", "-c", script, "sh", str(tmp_path / "pid")]
        guest.attach(argv, stdin=None, stdout=stdout, stderr=io.BytesIO())
    pid = (tmp_path / "pid").read_text().strip()
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or "Z" in stat.read_text().split()[2]


@pytest.mark.parametrize("attached", [False, True])
def test_a_full_disk_is_named_and_is_no_lost_connection(guest: Guest, *, attached: bool) -> None:
    with pytest.raises(InfrastructureError, match="cannot be written: No space left on device"):
        if attached:
            with Path("/dev/full").open("wb", buffering=0) as full:
                guest.attach(["echo", "x"], stdin=None, stdout=full, stderr=io.BytesIO())
        else:
            guest.run(["echo", "x"], stdout=Path("/dev/full"))
    assert guest.run(["true"]).status == 0


def test_a_host_without_loopback_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    check_loopback()
    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(InfrastructureError, match="ip link set lo up"):
        check_loopback()


def test_nothing_is_sent_on_a_channel_that_is_closed(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropbear ends the connection when it gets a message for a channel that both sides have closed."""
    sent: list[tuple[int, bytes]] = []
    send: Callable[[paramiko.Transport, paramiko.Message], None] = vars(paramiko.Transport)[
        "_send_user_message"
    ]

    def sending(self: paramiko.Transport, message: paramiko.Message) -> None:
        if self is guest._transport:
            data = message.asbytes()
            if data[0] == MSG_CHANNEL_EOF:
                time.sleep(0.05)  # the command ends, and the server closes the channel
            sent.append((data[0], data[1:5]))
        send(self, message)

    monkeypatch.setattr(paramiko.Transport, "_send_user_message", sending)
    for _ in range(3):
        assert guest.run(["true"]).status == 0
        guest.kill("0123", 15)
    closed: set[bytes] = set()
    for kind, channel in sent:
        if kind == MSG_CHANNEL_CLOSE:
            closed.add(channel)
        elif kind != MSG_CHANNEL_OPEN:
            assert channel not in closed, f"message {kind} on a closed channel"
    assert closed


def test_a_guest_that_is_stopped_does_not_delay_a_timeout(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.guest.ssh._KILL_TIMEOUT_S", 0.2)
    never = threading.Event()
    monkeypatch.setattr(guest, "kill", lambda token, number: never.wait(30))
    began = time.monotonic()
    with pytest.raises(CommandTimeout):
        guest.run(["sleep", "3"], timeout_s=0.2)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("lines", [90, 2000])
def test_output_without_end_is_cut_and_says_where(
    lines: int, guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.guest.ssh.LONGEST_OUTPUT", 1000)
    done = guest.run(["sh", "-c", f"yes 123456789 | head -n {lines}"], stdout=tmp_path / "out", timeout_s=20)
    missing = max(0, 10 * lines - 1000)
    assert (done.status, done.missing_bytes) == (0, missing)
    cut = f"\norchestrate: the output was cut here; {missing} bytes are missing\n" if missing else ""
    assert done.stdout == "123456789\n" * min(lines, 100) + cut
    assert (tmp_path / "out").read_text() == done.stdout


def test_a_line_without_end_is_cut(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.guest.ssh.LONGEST_OUTPUT", 1000)
    lines: list[str] = []
    remote = guest.spawn(["sh", "-c", "head -c 1000000 /dev/zero; echo; echo x"], on_line=lines.append)
    assert remote.wait(20).status == 0
    assert len(lines) == 2 and len(lines[0]) < 200_000 and lines[1] == "x"


class _FileOfGuest:
    """A file transfer of three bytes."""

    def open(self, path: str, mode: str) -> io.BytesIO:
        return io.BytesIO(b"abc")

    def get_channel(self) -> None:
        return None


@pytest.mark.parametrize(
    ("local", "kind"), [("/dev/full", InfrastructureError), ("/nowhere/at/all", UserError)]
)
def test_a_full_disk_is_the_hosts_fault_and_a_wrong_path_the_users(
    local: str, kind: type[Exception], guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paramiko.SFTPClient, "from_transport", lambda transport: _FileOfGuest())
    with pytest.raises(kind, match=f"cannot download /etc/x to {local}: No s"):
        guest.download("/etc/x", Path(local))
