# SPDX-License-Identifier: GPL-2.0-only
"""The one place that starts external programs.

Each command line is logged, its output is kept, and it dies with us: ``setpriv --pdeathsig`` (setpriv(1),
prctl(2) PR_SET_PDEATHSIG) makes the kernel kill it when the thread that started it ends. A process is therefore
started by the thread that will also wait for it.
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

#: Debian packages of the programs we start, for the sentence that says what to install.
PACKAGES = {
    "apt-get": "apt",
    "bc": "bc",
    "bison": "bison",
    "ccache": "ccache",
    "cpio": "cpio",
    "dpkg-deb": "dpkg",
    "flex": "flex",
    "gcc": "gcc",
    "gdb": "gdb",
    "git": "git",
    "ld": "binutils",
    "make": "make",
    "perl": "perl",
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
    """A program that ended.

    Args:
        argv: its command line.
        returncode: exit status; negative signal number where a signal ended it.
        stdout, stderr: what it printed; ``stderr`` is empty where both were joined by `on_line`.
        seconds: wall time it took.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    seconds: float


def tied(argv: Sequence[str], parent_death: str = "KILL") -> list[str]:
    """The command line that runs `argv` so that it dies with the thread that starts it."""
    return ["setpriv", "--pdeathsig", parent_death, "--", *argv]


def require(program: str) -> str:
    """The path of `program`.

    Raises:
        InfrastructureError: it is not installed; the sentence names its Debian package.
    """
    found = shutil.which(program)
    if found is None:
        package = PACKAGES.get(program)
        hint = f"install the Debian package {package}" if package else "install it"
        raise InfrastructureError(f"the program {program} is missing on this host; {hint}.")
    return found


def version_of(program: str) -> str:
    """The first line that ``PROGRAM --version`` prints; asked once, until the program is another file.

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
    """Start a program that goes on while we do other things.

    Args:
        argv: command line; never a shell string.
        env: variables *added* to ours.
        own_session: in a session and process group of its own, so that a terminal's Ctrl-C reaches only us;
            False for a program that a person talks to on that terminal.

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
    """Run a program to its end.

    Args:
        argv: command line; never a shell string.
        env: variables *added* to ours.
        input_text: what it reads from standard input; nothing where None.
        timeout_s: seconds after which its whole process group is killed.
        check: raise where its exit status is not 0.
        log_file: appended to: the command line, then everything it prints.
        on_line: called with each line (stdout and stderr joined) as it appears, without the newline.

    Raises:
        InfrastructureError: not installed, timed out, or (with `check`) failed; the sentence ends with the
            last line that the program printed.
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
            f"{shlex.join(argv)} took more than {timeout_s:g} s and was ended.", log_file
        )
    if check and completed.returncode != 0:
        last = next(
            (line for line in reversed((stderr or stdout).splitlines()) if line.strip()), "it printed nothing"
        )
        raise InfrastructureError(
            f"{shlex.join(argv)} ended with status {completed.returncode}: {last.strip()}", log_file
        )
    return completed


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process made by :func:`spawn` with all its children."""
    with suppress(ProcessLookupError):  # it may have ended by itself
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
