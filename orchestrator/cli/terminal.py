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
    from orchestrator.store.manifest import RunKind
    from orchestrator.store.run import RunWriter


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

    def reopen(
        self, events: Events, name: str, kind: RunKind, build_jobs: int | None = None
    ) -> tuple[RunWriter, Bench]:
        """A run that is to be finished, and the bench that it began on.

        Args:
            name: of the run.
            kind: what the command finishes.

        Raises:
            UserError: no such run, one of another kind, or its patches have changed.
        """
        from orchestrator.execution import driver
        from orchestrator.execution.provenance import requested_source

        writer = driver.reopen(self.project.results, name, kind)
        manifest = writer.manifest
        series, directory = driver.series_of(manifest, self.project.kernel_patches)
        source = requested_source(manifest, series)
        bench = self.bench(events, source, manifest.accelerator.name, manifest.flavour, build_jobs, directory)
        driver.check_same_series(writer, bench)
        return writer, bench

    @contextmanager
    def attempt(self, events: Events, writer: RunWriter) -> Iterator[None]:
        """Fill a run directory; say how to finish it where Ctrl-C ends the block.

        Raises:
            UserError, InfrastructureError: see :func:`orchestrator.execution.driver.attempt`.
        """
        from orchestrator.execution import driver

        try:
            with driver.attempt(events, writer):
                yield
        except KeyboardInterrupt:
            command = driver.resume_command(writer.manifest.kind, writer.path.name)
            typer.echo(f"interrupted; finish it with: {command}", err=True)
            raise

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
