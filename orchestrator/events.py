# SPDX-License-Identifier: GPL-2.0-only
"""Events: what the tool is doing, as steps that start, make progress and end.

Live progress on a terminal, plain lines elsewhere, and ``logs/events.jsonl`` of a run are all written by
listeners of the same stream of events, so they cannot disagree.
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
    """An event of a step.

    Args:
        kind: what happened to the step; ``item``: one of its equal parts ended, which is reported on a line.
        step: names of the nested steps, outermost first, e.g. ``("build core-only", "compile")``.
        text: text to show; for ``failed`` the error message.
        done, total: progress in `unit`; ``total`` is None if unknown.
        unit: what is counted, in the plural, e.g. ``files``.
        seconds: host seconds since the step began.
        left_s: estimated host seconds until the step ends; None if unknown.
        like: class of steps with a similar duration, e.g. ``kernel-next measure``; empty if there is none.
        part: the step is an item of an outer step, and the outer step reports how it ended.
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

#: Share of a step that must be done before the remaining time is estimated from its rate.
_RATE_FROM = 0.05


@dataclass
class Step:
    """A running step; created by :meth:`Events.step`."""

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
        """Report that `done` of `total` `unit` are done.

        Args:
            left_s: host seconds left, if the caller has a better estimate than the rate so far.
        """
        self._emit("progress", text, done, total, unit, left_s)

    def item(self, done: int, total: int | None, unit: str, text: str, left_s: float | None = None) -> None:
        """Report that the `done`-th of `total` equal parts ended, and how.

        Args:
            total: None if the number of parts is unknown.
            left_s: host seconds left, if the caller has a better estimate than the rate so far.
        """
        self._emit("item", text, done, total, unit, left_s)

    def note(self, text: str) -> None:
        """Report something the user should see, e.g. why a cached artefact is not used."""
        self._emit("note", text)

    @property
    def seconds(self) -> float:
        """Host seconds since the step began."""
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
        """Estimated seconds left: from the rate so far, else from the duration of earlier steps of this class."""
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
        #: Expected duration in seconds of a step of a class (`Event.like`); None if unknown.
        self.expected: Callable[[str], float | None] = lambda like: None

    def listen(self, listener: Listener) -> None:
        """Add a listener. It is called in the emitting thread, one event at a time."""
        with self._lock:
            self._listeners.append(listener)

    def emit(self, event: Event) -> None:
        """Pass an event to every listener."""
        with self._lock:
            for listener in self._listeners:
                listener(event)

    @contextmanager
    def step(self, *names: str, like: str = "", part: bool = False) -> Iterator[Step]:
        """Report the start of a step and its end: ``failed`` if the block raises, else ``end``.

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
