# SPDX-License-Identifier: GPL-2.0-only
"""``logs/events.jsonl`` of a run directory: what was done when, for whoever looks later."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.events import Event, Events


@contextmanager
def event_log(events: Events, run: Path) -> Iterator[None]:
    """Write every event but progress to the run's log while the block lasts.

    Args:
        run: the run directory.
    """
    with (run / "logs" / "events.jsonl").open("a", encoding="utf-8") as log:

        def keep(event: Event) -> None:
            if event.kind != "progress" and not log.closed:
                fact = {"kind": event.kind, "step": event.step, "text": event.text, "s": event.seconds}
                log.write(json.dumps(fact) + "\n")
                log.flush()

        events.listen(keep)
        yield
