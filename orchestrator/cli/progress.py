# SPDX-License-Identifier: GPL-2.0-only
"""Live progress: bars on a terminal, plain lines elsewhere. Both go to stderr; stdout is for results."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from orchestrator.events import Event
from orchestrator.execution.durations import in_words

#: Seconds between two plain lines of the same step's progress: CI logs stay readable, and alive.
_LINE_EVERY_S = 30.0
#: Without a terminal, steps shorter than this do not get a line when they end.
_BRIEF_S = 1.0
#: Seconds after which a silent step is named, to show that something happens.
_SILENT_S = 1.5
#: Seconds between two checks for silent steps.
_LOOK_EVERY_S = 0.25


class PlainProgress:
    """Plain progress: a line per longer step and per part of a step, and at intervals a line of progress.

    Within its block, a silent step is named after two seconds, and again every 30 seconds.
    """

    def __init__(self, verbose: bool = False) -> None:
        self._verbose = verbose
        self._said: dict[tuple[str, ...], float] = {}
        self._under_way: dict[tuple[str, ...], tuple[float, Event]] = {}
        self._last = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._name_the_silent, name="progress", daemon=True)

    def __call__(self, event: Event) -> None:
        """Print `event`, if it is worth a line."""
        with self._lock:
            self._hear(event)

    def _hear(self, event: Event) -> None:
        name = ": ".join(event.step)
        told = self._verbose or not event.part
        if event.kind == "start":
            self._said[event.step] = 0.0
            self._under_way[event.step] = (time.monotonic(), event)
            if self._verbose:
                self._print(f"{name} ...")
        elif event.kind == "note" and told:
            self._print(f"{name}: {event.text}")
        elif event.kind == "item":
            self._said[event.step] = event.seconds
            self._under_way[event.step] = (time.monotonic() - event.seconds, event)
            self._print(f"{_number(event)} {event.text}{_left(event)}")
        elif event.kind == "progress":
            self._under_way[event.step] = (time.monotonic() - event.seconds, event)
            if event.seconds - self._said.get(event.step, 0.0) >= _LINE_EVERY_S:
                self._said[event.step] = event.seconds
                self._print(f"{name}: {_amount(event)} after {in_words(event.seconds)}{_left(event)}")
        elif event.kind in ("end", "failed"):
            self._under_way.pop(event.step, None)
            if event.kind == "failed" and told:
                first = event.text.splitlines()[0] if event.text else ""
                self._print(f"{name}: failed after {event.seconds:.1f} s: {first}")
            elif event.kind == "end" and told and (event.seconds >= _BRIEF_S or self._verbose):
                self._print(f"{name}: done in {event.seconds:.1f} s")

    def __enter__(self) -> PlainProgress:
        """Start watching for silent steps."""
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop printing."""
        self._ended.set()
        self._watch.join()

    def _name_the_silent(self) -> None:
        limit = _SILENT_S
        while not self._ended.wait(_LOOK_EVERY_S):
            with self._lock:
                now = time.monotonic()
                steps = [each for each in self._under_way.values() if not each[1].part]
                if not steps or now - self._last < limit or now - steps[-1][0] < _SILENT_S:
                    continue
                began, event = steps[-1]
                amount = {"progress": f": {_amount(event)}", "item": f": {_count(event)}"}.get(event.kind, "")
                after = f" after {in_words(now - began)}" if now - began >= _LINE_EVERY_S else " ..."
                self._print(f"{': '.join(event.step)}{amount}{after}{_left(event, now - began)}")
                limit = _LINE_EVERY_S

    def _print(self, line: str) -> None:
        self._last = time.monotonic()
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is the one place that prints progress


class TerminalProgress:
    """A bar or a spinner per running step; finished steps and parts of steps leave a line above."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=True,
        )
        self._tasks: dict[tuple[str, ...], TaskID] = {}
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Show `event`."""
        name = ": ".join(event.step)
        with self._lock:
            if event.kind == "start":
                self._tasks[event.step] = self._progress.add_task(
                    name, total=None, amount="", left=_left(event).lstrip(", ")
                )
            elif event.kind in ("progress", "item") and event.step in self._tasks:
                task = self._tasks[event.step]
                amount = _amount(event) if event.kind == "progress" else _count(event)
                left = _left(event).lstrip(", ")
                self._progress.update(task, completed=event.done, total=event.total, amount=amount, left=left)
                if event.kind == "item":
                    self._console.print(f"  {_number(event)} {event.text}", markup=False, highlight=False)
            elif event.kind == "note":
                if not event.part:
                    self._console.print(f"  {name}: {event.text}", markup=False, highlight=False)
            elif event.kind in ("end", "failed"):
                task = self._tasks.pop(event.step, TaskID(-1))
                if task != -1:
                    self._progress.remove_task(task)
                if event.part:
                    return
                if event.kind == "failed":
                    first = event.text.splitlines()[0] if event.text else ""
                    self._console.print(f"✗ {name}: {first}", style="red", markup=False)
                elif event.seconds >= _BRIEF_S:
                    self._console.print(f"✓ {name}  {event.seconds:.1f} s", style="green", markup=False)

    def __enter__(self) -> TerminalProgress:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing, and restore the terminal."""
        self._progress.stop()


def _amount(event: Event) -> str:
    return f"{_count(event)} {event.text}".strip()


def _number(event: Event) -> str:
    total = f"/{event.total:.0f}" if event.total else ""
    return f"[{event.done:.0f}{total}]"


def _count(event: Event) -> str:
    if event.done is None:
        return ""
    total = f" of {event.total:,.0f}" if event.total else ""
    return f"{event.done:,.0f}{total} {event.unit}".strip()


def _left(event: Event, seconds: float = 0.0) -> str:
    """The remaining time of the step; by the time it is shown, `event` may be old.

    Args:
        seconds: seconds since the step began; 0 if the event is new.
    """
    if event.left_s is None:
        return ""
    left = event.left_s - max(seconds - event.seconds, 0.0)
    return f", about {in_words(left)} left" if left >= 1 else ""
