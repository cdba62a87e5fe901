# SPDX-License-Identifier: GPL-2.0-only
"""What every command shares: how much to say, where the project and its cache are, how results are printed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.analysis.layout import NARROWEST, WIDEST, WIDTH
from orchestrator.events import Events

# What a command does not use it does not import: --help takes no longer than it has to.
if TYPE_CHECKING:
    from orchestrator.analysis.comparison import Comparison
    from orchestrator.cache import Cache
    from orchestrator.execution.bench import Bench
    from orchestrator.execution.durations import Durations
    from orchestrator.project import Project


@dataclass
class Terminal:
    """The person or script at the other end.

    Args:
        quiet: no progress.
        verbose: every step, and each program that is started.
        debug: tracebacks.
    """

    quiet: bool = False
    verbose: bool = False
    debug: bool = False

    @cached_property
    def project(self) -> Project:
        """The checkout that is worked in."""
        from orchestrator.project import find_project

        return find_project()

    @cached_property
    def cache(self) -> Cache:
        """This user's cache."""
        from orchestrator.cache import Cache

        return Cache.default()

    @property
    def width(self) -> int:
        """Columns that a table may take: the terminal's, or those of a stored file where there is none."""
        if not sys.stdout.isatty():
            return WIDTH
        return min(max(shutil.get_terminal_size((WIDTH, 24)).columns, NARROWEST), WIDEST)

    @cached_property
    def durations(self) -> Durations:
        """How long things take on this host."""
        from orchestrator.execution.durations import Durations

        return Durations(self.cache)

    @contextmanager
    def events(self) -> Iterator[Events]:
        """A stream of events that is shown as this terminal wants it."""
        if self.quiet:
            yield Events()
            return
        from orchestrator.cli.progress import PlainProgress, TerminalProgress

        live = sys.stderr.isatty() and not self.verbose
        with TerminalProgress() if live else PlainProgress(self.verbose) as progress:
            yield Events(progress)

    def bench(
        self,
        events: Events,
        source: str | None = None,
        accelerator: str = "auto",
        flavour: str = "measure",
        build_jobs: int | None = None,
        series: Path | None = None,
    ) -> Bench:
        """A bench for this project, or for another series.

        Raises:
            UserError: no such accelerator or kernel configuration.
        """
        from orchestrator.execution.bench import Bench

        bench = Bench(self.project, self.cache, events, source, accelerator, flavour, build_jobs, series)
        bench.check()
        events.listen(bench.durations.heard)
        events.expected = lambda like: bench.durations.expected(like).seconds if like else None
        return bench

    @staticmethod
    def print(text: str) -> None:
        """Print a result."""
        typer.echo(text)

    def print_table(self, comparison: Comparison) -> None:
        """Print a comparison, in colour and as wide as it is on a terminal."""
        from orchestrator.analysis.table import to_text

        typer.echo(to_text(comparison, colour=sys.stdout.isatty(), width=self.width).rstrip("\n"))

    @staticmethod
    def print_json(value: object) -> None:
        """Print a result for a machine."""
        typer.echo(json.dumps(value, indent=2, sort_keys=True, default=str))


def terminal_of(context: typer.Context) -> Terminal:
    """The terminal that the common options made."""
    terminal = context.find_object(Terminal)
    assert terminal is not None
    return terminal
