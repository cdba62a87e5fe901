# SPDX-License-Identifier: GPL-2.0-only
"""The guest's serial console: follows its log, and talks to the guest.

QEMU itself writes the log (``logfile=`` of the chardev), so the log does not depend on a reader or its speed. The
socket stays free for interactive use (``socat -,raw,echo=0 UNIX:console.sock``) or for :func:`dialogue`.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pexpect.fdpexpect import fdspawn

from orchestrator.machine.oops import EARLY, STAMP, Finding, parse_console
from orchestrator.printable import printable

#: Line that the guest's init prints once SSH accepts connections.
READY = "orchestrate: ready"

# The kernel may print a message, starting with its timestamp, before the newline has left the serial port.
_LINE_END = r"[\s\[]"
_READY = re.compile(re.escape(READY) + _LINE_END)
# A message of the kernel begins with its timestamp: a program that prints the words of a panic does not end the
# machine.
_PANIC = re.compile(STAMP + r" (?:Kernel panic - not syncing|(?:traps: )?PANIC: double fault)|" + EARLY)
_PANIC_OVER = re.compile(STAMP + r" (?:---\[ end Kernel panic|Rebooting in \d+ seconds)|" + EARLY)
# die(), arch/x86/kernel/dumpstack.c: a task died in the kernel, and the locks it held are never released.
_OOPS = re.compile(STAMP + r" Oops: [^\n]{1,120}\[#\d+\]")
_CARRY = 240  # longer than any match of the patterns, so that none is missed between two reads
_CHUNK = 1 << 20
#: Bytes of a console log above which it is cut, and how many of its first bytes are kept then.
LONGEST = 32 << 20
KEPT = 8 << 20


class ConsoleLog:
    """A console log that another process writes, and what has been found in it so far.

    A guest can print without end. A log above :data:`LONGEST` bytes is cut: its first :data:`KEPT` bytes stay, followed
    by a line that says how much is missing, and by what the guest prints next. Reports of the kernel in the part that
    is removed are kept. The writer must append to the file (O_APPEND).

    Args:
        path: the log file; it may not exist yet.
        ready_mark: line that the guest prints when it is up.

    Attributes:
        oopsed_at: when the first oops was seen, in seconds of the monotonic clock; None if there was none.
    """

    def __init__(self, path: Path, ready_mark: str = READY) -> None:
        self.path = path
        self.ready = False
        self.panicked = False
        self.panic_over = False
        self.oopsed_at: float | None = None
        self.size = 0
        self.last_output = time.monotonic()
        self._ready_mark = _READY if ready_mark == READY else re.compile(re.escape(ready_mark) + _LINE_END)
        self._carry = ""
        self._removed = 0
        self._begin = 0
        self._earlier: list[Finding] = []

    def poll(self) -> bool:
        """Read new output; return whether there was any."""
        is_new = False
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.size)
                while new := stream.read(_CHUNK):
                    is_new = True
                    self._take(new)
        except FileNotFoundError:
            return False
        if self.size > LONGEST:
            self._cut()
        return is_new

    def _cut(self) -> None:
        self._earlier = self.findings()
        with self.path.open("r+b") as stream:
            end = stream.seek(0, os.SEEK_END)
            self._removed += end - max(KEPT, self._begin)
            stream.seek(KEPT)
            stream.truncate()
            stream.write(
                f"\norchestrate: the console log was cut here; {self._removed} bytes are missing\n".encode()
            )
            self.size = self._begin = stream.tell()

    def _take(self, new: bytes) -> None:
        self.size += len(new)
        self.last_output = time.monotonic()
        text = self._carry + new.decode(errors="replace")
        self._carry = text[-_CARRY:]
        self.ready = self.ready or _match(self._ready_mark, text)
        self.panicked = self.panicked or _match(_PANIC, text)
        self.panic_over = self.panic_over or _match(_PANIC_OVER, text)
        if self.oopsed_at is None and _match(_OOPS, text):
            self.oopsed_at = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Host seconds since the last output of the guest."""
        return time.monotonic() - self.last_output

    def text(self) -> str:
        """The whole log, without control characters; empty if it does not exist yet."""
        return self._text_from(0)

    def _text_from(self, begin: int) -> str:
        try:
            with self.path.open("rb") as stream:
                stream.seek(begin)
                return printable(stream.read(LONGEST + KEPT).decode(errors="replace"))
        except FileNotFoundError:
            return ""

    def tail(self, lines: int = 30) -> str:
        """The last lines of the log."""
        return "\n".join(line.rstrip("\r") for line in self.text().splitlines()[-lines:])

    def findings(self) -> list[Finding]:
        """The kernel's reports so far."""
        return [*self._earlier, *parse_console(self._text_from(self._begin))]


@contextmanager
def dialogue(path: Path, timeout_s: float = 10.0) -> Iterator[fdspawn[str]]:
    """Talk to the guest over its serial line, with ``sendline`` and ``expect``.

    A QEMU socket serves one client at a time: a second one waits until the first has disconnected.

    Args:
        path: socket of the console.
        timeout_s: default timeout of ``expect`` in seconds.

    Raises:
        OSError: QEMU no longer listens on the socket.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.connect(str(path))
        yield fdspawn(line, timeout=timeout_s, encoding="utf-8", codec_errors="replace")


def _match(pattern: re.Pattern[str], text: str) -> bool:
    return pattern.search(text) is not None
