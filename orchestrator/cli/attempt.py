# SPDX-License-Identifier: GPL-2.0-only
"""One attempt at a run: what was done when is logged, and what was found is kept, whatever ends it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Event, Events

if TYPE_CHECKING:
    from orchestrator.store.run import RunWriter


@contextmanager
def attempt(events: Events, writer: RunWriter, resume: str = "") -> Iterator[None]:
    """Keep a log of every event while the block fills a run directory.

    Args:
        resume: the command that finishes the run, without its name, e.g. ``orchestrate run --resume``; empty where
            there is none.

    Raises:
        UserError: as the block. A directory where nothing was measured is removed: the request was wrong.
        InfrastructureError: as the block, with the directory's name.
    """
    with _event_log(events, writer.path):
        try:
            yield
        except UserError:
            # A patch that does not apply, an option that vanished.
            if not writer.outcomes():
                shutil.rmtree(writer.path)
            raise
        except KeyboardInterrupt:
            if resume:
                typer.echo(f"interrupted; finish it with: {resume} {writer.path.name}", err=True)
            raise
        except InfrastructureError as error:
            raise InfrastructureError(f"{error} What was found is in {writer.path}.", error.log) from error


@contextmanager
def _event_log(events: Events, run: Path) -> Iterator[None]:
    """Write every event but progress to ``logs/events.jsonl`` of the run."""
    with (run / "logs" / "events.jsonl").open("a", encoding="utf-8") as log:

        def keep(event: Event) -> None:
            if event.kind != "progress" and not log.closed:
                fact = {"kind": event.kind, "step": event.step, "text": event.text, "s": event.seconds}
                log.write(json.dumps(fact) + "\n")
                log.flush()

        events.listen(keep)
        yield
