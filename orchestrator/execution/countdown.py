# SPDX-License-Identifier: GPL-2.0-only
"""A countdown: one line per finished part of a step, with its result and the remaining time."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.events import Step
from orchestrator.execution.durations import Durations, in_words
from orchestrator.execution.forecast import Remaining


class Countdown:
    """The parts of a step, e.g. the cells of a run.

    Args:
        step: the step that reports finished parts.
        durations: durations of earlier runs.
        kinds: one kind per part, see :class:`Remaining`.
        unit: name of the parts, in the plural, e.g. ``cells``.
        slots: number of parts that run in parallel.
        condition: condition of the first estimate, e.g. ``if nothing is in the cache``.
    """

    def __init__(
        self,
        step: Step,
        durations: Durations,
        kinds: Sequence[str],
        unit: str,
        slots: int = 1,
        condition: str = "",
    ) -> None:
        self._step = step
        self._remaining = Remaining(durations, kinds, slots)
        self._unit = unit
        self._total = len(kinds)
        self._done = 0
        expected = self._remaining.expected
        basis = "a guess" if expected.basis == "a guess" else f"from {expected.basis}"
        step.progress(0, self._total, unit, left_s=expected.seconds)
        when = f" {condition}" if condition else ""
        step.note(f"{self._total} {unit}, about {in_words(expected.seconds)}{when} ({basis})")

    def add(self, kind: str) -> None:
        """Add a part."""
        self._remaining.add(kind)
        self._total += 1

    def ended(self, kind: str, line: str, seconds: float | None) -> None:
        """Report that a part ended; for `line` see :func:`line_of`.

        Args:
            seconds: its duration; None if it is not typical, e.g. because the part failed.
        """
        self._remaining.ended(kind, seconds)
        self._done += 1
        self._step.item(self._done, self._total, self._unit, line, self._remaining.expected.seconds)

    def left_out(self, kind: str) -> None:
        """Remove a part that will not run."""
        self._remaining.ended(kind, None)
        self._total -= 1


def line_of(name: str, result: str, seconds: float | None, reason: str = "") -> str:
    """One line on how a part ended.

    Args:
        seconds: host seconds; omitted if None or 0.
        reason: the reason, of which the first line is shown.

    >>> line_of("chunk baseline #3", "boot-failed", 41, "no answer\\nafter the boot")
    'chunk baseline #3 boot-failed 41 s: no answer'
    """
    took = f" {in_words(seconds)}" if seconds else ""
    first = reason.splitlines()[0] if reason else ""
    return f"{name} {result}{took}{': ' + first if first else ''}"
