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

Kind = Literal["start", "progress", "note", "end", "failed"]


@dataclass(frozen=True)
class Event:
    """One thing that happened in one step.

    Args:
        kind: what happened to the step.
        step: path of the step's names, outermost first, e.g. ``("build core-only", "compile")``.
        text: what a person reads; for ``failed`` the error's message.
        done, total: progress in the step's own `unit`; ``total`` is None where it is not known.
        unit: the plural of what is counted, e.g. ``files``.
        seconds: since the step began.
    """

    kind: Kind
    step: tuple[str, ...]
    text: str = ""
    done: float | None = None
    total: float | None = None
    unit: str = ""
    seconds: float = 0.0


Listener = Callable[[Event], None]


@dataclass
class Step:
    """A step under way; made by :meth:`Events.step`."""

    events: Events
    names: tuple[str, ...]
    began: float = field(default_factory=time.monotonic)

    def progress(self, done: float, total: float | None = None, unit: str = "", text: str = "") -> None:
        """Say how far the step is, `done` of `total` in `unit`."""
        self._emit(Event("progress", self.names, text, done, total, unit, self.seconds))

    def note(self, text: str) -> None:
        """Say something that a person should see, e.g. why a cached artefact is not used."""
        self._emit(Event("note", self.names, text, seconds=self.seconds))

    @property
    def seconds(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.began

    def _emit(self, event: Event) -> None:
        self.events.emit(event)


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
    def step(self, *names: str) -> Iterator[Step]:
        """Announce a step, and its end: ``failed`` when an exception leaves the block, else ``end``."""
        step = Step(self, names)
        self.emit(Event("start", names))
        try:
            yield step
        except BaseException as error:
            self.emit(Event("failed", names, str(error) or type(error).__name__, seconds=step.seconds))
            raise
        self.emit(Event("end", names, seconds=step.seconds))
