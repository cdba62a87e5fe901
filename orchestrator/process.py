# SPDX-License-Identifier: GPL-2.0-only
"""The one place that starts external programs.

Every command line is logged and its output is kept. Children die with their parent: ``setpriv --pdeathsig``
(setpriv(1), prctl(2) PR_SET_PDEATHSIG) makes the kernel kill a child when the *thread* that started it ends.
So the thread that starts a process must also wait for it.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from orchestrator.errors import InfrastructureError

log = logging.getLogger(__name__)

#: Debian packages of the programs that are started, for error messages.
PACKAGES = {
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "aarch64-linux-gnu-ld": "binutils-aarch64-linux-gnu",
    "addr2line": "binutils",
    "apt-get": "apt",
    "bc": "bc",
    "bison": "bison",
    "ccache": "ccache",
    "clang": "clang",
    "cpio": "cpio",
    "dpkg-deb": "dpkg",
    "flex": "flex",
    "gcc": "gcc",
    "gdb": "gdb",
    "git": "git",
    "ld": "binutils",
    "make": "make",
    "perl": "perl",
    "powerpc64le-linux-gnu-gcc": "gcc-powerpc64le-linux-gnu",
    "powerpc64le-linux-gnu-ld": "binutils-powerpc64le-linux-gnu",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "sparse": "sparse",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "tar": "tar",
    "xz": "xz-utils",
}


@dataclass(frozen=True)
class Completed:
    """The result of a program that ended.

    Args:
        argv: command line.
        returncode: exit status; the negative signal number if a signal killed it.
        stdout, stderr: output; with `on_line` both are in ``stdout``, and ``stderr`` is empty.
        seconds: wall-clock seconds it took.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    seconds: float


def tied(argv: Sequence[str], parent_death: str = "KILL") -> list[str]:
    """The command line that runs `argv` and makes it die with the thread that starts it."""
    return ["setpriv", "--pdeathsig", parent_death, "--", *argv]


def require(program: str) -> str:
    """The path of `program`.

    Raises:
        InfrastructureError: it is not installed; the message names its Debian package.
    """
    found = shutil.which(program)
    if found is None:
        package = PACKAGES.get(program)
        hint = f"install the Debian package {package}" if package else "install it"
        raise InfrastructureError(f"the program {program} is missing on this host; {hint}.")
    return found


def version_of(program: str) -> str:
    """The first line that ``PROGRAM --version`` prints; cached until the program's file changes.

    Raises:
        InfrastructureError: it is not installed, or fails.
    """
    path = require(program)
    status = Path(path).stat()
    return _version_line(program, path, status.st_mtime_ns, status.st_size)


@lru_cache
def _version_line(program: str, path: str, changed_ns: int, size: int) -> str:
    lines = run([program, "--version"], timeout_s=30).stdout.splitlines()
    return lines[0].strip() if lines else "prints no version"


def spawn(
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    own_session: bool = True,
) -> subprocess.Popen[bytes]:
    """Start a program in the background.

    Args:
        argv: command line; never a shell string.
        env: variables *added* to the environment.
        own_session: start it in a new session and process group, so that Ctrl-C on the terminal does not reach
            it; False for an interactive program on that terminal.

    Raises:
        InfrastructureError: the program is not installed.
    """
    require(argv[0])
    require("setpriv")
    log.debug("start %s", shlex.join(argv))
    return subprocess.Popen(
        tied(argv),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=own_session,
    )


def run(
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    input_text: str | None = None,
    timeout_s: float | None = None,
    check: bool = True,
    log_file: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run a program until it ends.

    Args:
        argv: command line; never a shell string.
        env: variables *added* to the environment.
        input_text: its standard input; None for empty input.
        timeout_s: wall-clock seconds after which its whole process group is killed.
        check: raise an error if its exit status is not 0.
        log_file: file to append to: the command line, then all output.
        on_line: called with each line (stdout and stderr joined) as it appears, without the newline.

    Raises:
        InfrastructureError: it is not installed, timed out, or (with `check`) failed; the message ends with the
            last line of its output.
    """
    began = time.monotonic()
    joined = on_line is not None or log_file is not None
    process = spawn(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.PIPE if input_text is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if joined else subprocess.PIPE,
    )
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        kill_group(process)

    timer = threading.Timer(timeout_s, expire) if timeout_s is not None else None
    try:
        if timer:
            timer.start()
        if joined:
            stdout, stderr = _stream(process, argv, input_text, log_file, on_line), ""
        else:
            out, err = process.communicate(input_text.encode() if input_text is not None else None)
            stdout, stderr = out.decode(errors="replace"), err.decode(errors="replace")
    finally:
        if timer:
            timer.cancel()
        if process.poll() is None:
            kill_group(process)
            process.wait()
    completed = Completed(tuple(argv), process.returncode, stdout, stderr, time.monotonic() - began)
    if expired.is_set():
        raise InfrastructureError(
            f"{shlex.join(argv)} took more than {timeout_s:g} s and was killed.", log_file
        )
    if check and completed.returncode != 0:
        last = next(
            (line for line in reversed((stderr or stdout).splitlines()) if line.strip()), "it printed nothing"
        )
        raise InfrastructureError(
            f"{shlex.join(argv)} ended with status {completed.returncode}: {last.strip()}", log_file
        )
    return completed


def is_stopped(process: subprocess.Popen[bytes]) -> bool:
    """Whether a signal has stopped the process, e.g. SIGSTOP (state T in proc_pid_stat(5))."""
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process started by :func:`spawn` and its whole process group."""
    with suppress(ProcessLookupError):  # it may have ended already
        os.killpg(process.pid, signal.SIGKILL)


def _stream(
    process: subprocess.Popen[bytes],
    argv: Sequence[str],
    input_text: str | None,
    log_file: Path | None,
    on_line: Callable[[str], None] | None,
) -> str:
    assert process.stdout is not None
    if process.stdin is not None and input_text is not None:
        process.stdin.write(input_text.encode())
        process.stdin.close()
    lines: list[str] = []
    kept = log_file.open("a", encoding="utf-8") if log_file else None
    try:
        if kept:
            kept.write(f"$ {shlex.join(argv)}\n")
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip("\n")
            lines.append(line)
            if kept:
                kept.write(line + "\n")
                kept.flush()
            if on_line:
                on_line(line)
    finally:
        if kept:
            kept.close()
    process.wait()
    return "\n".join(lines)
