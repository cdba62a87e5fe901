# SPDX-License-Identifier: GPL-2.0-only
"""Expected durations on this host: from earlier runs, else a guess that is reported as one."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from filelock import Timeout

from orchestrator.cache import Cache, digest
from orchestrator.events import Event

Basis = Literal["this run", "earlier runs on this host", "a guess"]

#: Number of durations to keep per kind; their median is the expected duration.
_KEPT: Final = 9
#: Guesses in host seconds, by the first word of the kind; for kernels in CPU seconds.
_GUESSES_S: Final[Mapping[str, float]] = {
    "source": 150.0,
    "image": 20.0,
    "selftests": 90.0,
    "kernel-first": 1500.0,
    "kernel-next": 180.0,
    "cell": 45.0,
    "suite": 300.0,
    "check": 10.0,
    "trace": 5.0,
    "conclusion": 20.0,
}
_PER_CPU: Final = ("kernel-first", "kernel-next", "selftests")


@dataclass(frozen=True)
class Expected:
    """An expected duration.

    Args:
        seconds: host seconds.
        basis: where the number comes from.
    """

    seconds: float
    basis: Basis


class Durations:
    """The durations stored in a cache on this host.

    A kind is a word, followed by what the duration depends on, e.g. ``cell chunk icount 4x2G``.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        host = {"cpus": os.cpu_count(), "machine": platform.machine(), "node": platform.node()}
        self._path: Path = cache.root / "durations" / f"{digest(host)}.json"

    def expected(self, kind: str) -> Expected:
        """The expected duration: the median of measured ones, else a guess."""
        measured = self._measured().get(kind)
        if measured:
            return Expected(statistics.median(measured), "earlier runs on this host")
        word = kind.partition(" ")[0]
        cpus = (os.cpu_count() or 1) if word in _PER_CPU else 1
        return Expected(_GUESSES_S[word] / cpus, "a guess")

    def remember(self, kind: str, seconds: float) -> None:
        """Store a duration; errors are ignored."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._cache.lock("durations").acquire(timeout=2):
                known = dict(self._measured())
                known[kind] = [*known.get(kind, []), round(seconds, 2)][-_KEPT:]
                new = self._path.with_suffix(".new")
                new.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
                new.replace(self._path)
        except (OSError, Timeout):
            return

    def observe(self, event: Event) -> None:
        """Store the duration of a successful step, if the step has a kind."""
        if event.kind == "end" and event.like:
            self.remember(event.like, event.seconds)

    def _measured(self) -> Mapping[str, Sequence[float]]:
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def in_words(seconds: float) -> str:
    """Format a duration for display.

    >>> in_words(41), in_words(660), in_words(7500)
    ('41 s', '11 min', '2 h 5 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
