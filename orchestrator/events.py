# SPDX-License-Identifier: GPL-2.0-only
"""Events: what the tool is doing, as steps with a start, progress and an end.

Live progress on a terminal, the plain lines elsewhere and the run's ``logs/events.jsonl`` are all written by
listeners of the same stream, so they cannot disagree.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["start", "progress", "item", "note", "end", "failed"]


@dataclass(frozen=True)
class Event:
    """One thing that happened in one step.

    Args:
        kind: what happened to the step; ``item``: one of its equal parts ended, which is worth a line.
        step: path of the step's names, outermost first, e.g. ``("build core-only", "compile")``.
        text: what a person reads; for ``failed`` the error's message.
        done, total: progress in the step's own `unit`; ``total`` is None where it is not known.
        unit: the plural of what is counted, e.g. ``files``.
        seconds: since the step began.
        left_s: host seconds that it will take still; None where nobody knows.
        like: what the step's duration can be compared with, e.g. ``kernel-next measure``; empty for nothing.
        part: the step is one of another's equal parts, and the other says how it ended.
    """

    kind: Kind
    step: tuple[str, ...]
    text: str = ""
    done: float | None = None
    total: float | None = None
    unit: str = ""
    seconds: float = 0.0
    left_s: float | None = None
    like: str = ""
    part: bool = False


Listener = Callable[[Event], None]

#: Share of a step that has to be done before its rate says how long the rest takes.
_RATE_FROM = 0.05


@dataclass
class Step:
    """A step under way; made by :meth:`Events.step`."""

    events: Events
    names: tuple[str, ...]
    like: str = ""
    part: bool = False
    began: float = field(default_factory=time.monotonic)

    def progress(
        self,
        done: float,
        total: float | None = None,
        unit: str = "",
        text: str = "",
        left_s: float | None = None,
    ) -> None:
        """Say how far the step is, `done` of `total` in `unit`.

        Args:
            left_s: host seconds that are left, where the caller knows better than the rate until now.
        """
        self._emit("progress", text, done, total, unit, left_s)

    def item(self, done: int, total: int | None, unit: str, text: str, left_s: float | None = None) -> None:
        """Say that the `done`-th of `total` equal parts ended, and how.

        Args:
            total: None where nobody knows how many there will be.
            left_s: host seconds that the others will take, where the caller knows better than the rate until now.
        """
        self._emit("item", text, done, total, unit, left_s)

    def note(self, text: str) -> None:
        """Say something that a person should see, e.g. why a cached artefact is not used."""
        self._emit("note", text)

    @property
    def seconds(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.began

    def _emit(
        self,
        kind: Kind,
        text: str = "",
        done: float | None = None,
        total: float | None = None,
        unit: str = "",
        left_s: float | None = None,
    ) -> None:
        if kind in ("progress", "item") and left_s is None:
            left_s = self._left(done, total)
        self.events.emit(
            Event(kind, self.names, text, done, total, unit, self.seconds, left_s, self.like, self.part)
        )

    def _left(self, done: float | None, total: float | None) -> float | None:
        """Seconds that are left: by the rate until now, else by how long such steps took."""
        if total and done and done >= _RATE_FROM * total:
            return self.seconds * (total - done) / done
        expected = self.events.expected(self.like)
        return max(expected - self.seconds, 0.0) if expected is not None else None


class Events:
    """A stream of events with listeners; safe to use from several threads.

    >>> seen = []
    >>> events = Events(seen.append)
    >>> with events.step("boot") as step:
    ...     step.note("4 nodes")
    >>> [event.kind for event in seen]
    ['start', 'note', 'end']
    """

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = list(listeners)
        self._lock = threading.Lock()
        #: How many seconds a step like that is expected to take; None where nobody knows.
        self.expected: Callable[[str], float | None] = lambda like: None

    def listen(self, listener: Listener) -> None:
        """Add a listener; it is called in the thread that emits, one event at a time."""
        with self._lock:
            self._listeners.append(listener)

    def emit(self, event: Event) -> None:
        """Hand one event to every listener."""
        with self._lock:
            for listener in self._listeners:
                listener(event)

    @contextmanager
    def step(self, *names: str, like: str = "", part: bool = False) -> Iterator[Step]:
        """Announce a step, and its end: ``failed`` when an exception leaves the block, else ``end``.

        Args:
            like, part: see :class:`Event`.
        """
        step = Step(self, names, like, part)
        self.emit(Event("start", names, left_s=self.expected(like), like=like, part=part))
        try:
            yield step
        except BaseException as error:
            text = str(error) or type(error).__name__
            self.emit(Event("failed", names, text, seconds=step.seconds, like=like, part=part))
            raise
        self.emit(Event("end", names, seconds=step.seconds, like=like, part=part))
