# SPDX-License-Identifier: GPL-2.0-only
"""Live progress: bars on a terminal, plain lines elsewhere. Both go to stderr; stdout is for results."""

from __future__ import annotations

import sys
import threading
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from orchestrator.events import Event

#: Seconds between two plain lines of the same step's progress: CI logs stay readable, and alive.
_LINE_EVERY_S = 30.0
#: A step shorter than this ends without a line of its own where nobody watches.
_BRIEF_S = 1.0


class PlainProgress:
    """One line for each step that starts or ends, and now and then one of its progress."""

    def __init__(self, verbose: bool = False) -> None:
        self._verbose = verbose
        self._said: dict[tuple[str, ...], float] = {}

    def __call__(self, event: Event) -> None:
        """Print what is worth a line of `event`."""
        name = ": ".join(event.step)
        if event.kind == "start":
            self._said[event.step] = 0.0
            if self._verbose:
                self._print(f"{name} ...")
        elif event.kind == "note":
            self._print(f"{name}: {event.text}")
        elif event.kind == "progress":
            if event.seconds - self._said.get(event.step, 0.0) >= _LINE_EVERY_S:
                self._said[event.step] = event.seconds
                self._print(f"{name}: {_amount(event)} after {event.seconds:.0f} s")
        elif event.kind == "failed":
            self._print(f"{name}: failed after {event.seconds:.1f} s: {event.text.splitlines()[0]}")
        elif event.seconds >= _BRIEF_S or self._verbose:
            self._print(f"{name}: done in {event.seconds:.1f} s")

    def __enter__(self) -> PlainProgress:
        """Nothing to set up; a twin of :class:`TerminalProgress`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to tear down."""

    @staticmethod
    def _print(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is the one place that prints progress


class TerminalProgress:
    """A bar or a spinner for each step under way; ended steps leave a line above."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
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
                self._tasks[event.step] = self._progress.add_task(name, total=None, amount="")
            elif event.kind == "progress" and event.step in self._tasks:
                task = self._tasks[event.step]
                self._progress.update(task, completed=event.done, total=event.total, amount=_amount(event))
            elif event.kind == "note":
                self._console.print(f"  {name}: {event.text}", markup=False, highlight=False)
            elif event.kind in ("end", "failed"):
                task = self._tasks.pop(event.step, TaskID(-1))
                if task != -1:
                    self._progress.remove_task(task)
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
        """Stop drawing; the terminal is as it was."""
        self._progress.stop()


def _amount(event: Event) -> str:
    if event.done is None:
        return event.text
    total = f" of {event.total:,.0f}" if event.total else ""
    return f"{event.done:,.0f}{total} {event.unit} {event.text}".strip()
