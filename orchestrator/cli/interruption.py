# SPDX-License-Identifier: GPL-2.0-only
"""SIGTERM and SIGHUP end the command as Ctrl-C does: results are stored, and no process is left behind.

A second signal that arrives while the command ends is ignored, since it would interrupt the writing of results.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Host seconds after a signal in which another one is ignored; the command has ended by then, or hangs.
GRACE_S = 15.0


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end.

    Args:
        number: the signal.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.signal = number

    @property
    def exit_status(self) -> int:
        """The exit status that a shell shows for the signal: 130 for Ctrl-C."""
        return 128 + self.signal


class CommandEnded(Exception):  # noqa: N818 - how a command ended
    """A command was interrupted. Typer makes exit status 130 of each KeyboardInterrupt, whatever the signal.

    Args:
        interrupted: the signal.
    """

    def __init__(self, interrupted: Interrupted) -> None:
        super().__init__(interrupted.signal.name)
        self.interrupted = interrupted


class Interruption:
    """The handler of the signals. A signal that the caller ignores stays ignored, e.g. SIGHUP under nohup(1)."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._terminals = [number for number in (1, 2) if os.isatty(number)]

    def install(self) -> None:
        """Handle the signals from now on; only in the main thread."""
        for number in _ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def ignore(self) -> None:
        """Ignore the signals from now on, as the command has ended."""
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._leave_terminal()
        now = time.monotonic()
        if self._at is not None and now - self._at < GRACE_S:
            return
        self._at = now
        raise Interrupted(signal.Signals(number))

    def _leave_terminal(self) -> None:
        """Discard further output to a terminal that is gone: writing to it fails, which would stop the clean-up."""
        null = os.open(os.devnull, os.O_WRONLY)
        for number in self._terminals:
            os.dup2(null, number)
        os.close(null)


def interruption_of(error: BaseException) -> Interrupted:
    """The signal behind a KeyboardInterrupt, or behind the exception that typer raises instead of it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Interrupted):
            return cause
        if isinstance(cause, CommandEnded):
            return cause.interrupted
        cause = cause.__cause__ or cause.__context__
    return Interrupted(signal.SIGINT)
