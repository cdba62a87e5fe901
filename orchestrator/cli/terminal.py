# SPDX-License-Identifier: GPL-2.0-only
"""Common code of all commands: verbosity, project and cache, and printing of results."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.analysis.layout import NARROWEST, WIDEST, WIDTH
from orchestrator.events import Events

# Imports are inside of functions, so that --help is fast.
if TYPE_CHECKING:
    from orchestrator.analysis.comparison import Comparison
    from orchestrator.cache import Cache
    from orchestrator.execution.bench import Bench
    from orchestrator.execution.durations import Durations
    from orchestrator.kernel.series import OtherKernel
    from orchestrator.project import Project
    from orchestrator.store.manifest import RunKind
    from orchestrator.store.run import RunWriter


@dataclass
class Terminal:
    """The terminal, or the script that reads the output.

    Args:
        quiet: print no progress.
        verbose: print every step, and every program that is started.
        debug: print tracebacks.
        qemu: path of the QEMU to use; None for the host's.
    """

    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    qemu: str | None = None

    @cached_property
    def project(self) -> Project:
        """The checkout in use."""
        from orchestrator.project import find_project

        return find_project()

    @cached_property
    def cache(self) -> Cache:
        """This user's cache."""
        from orchestrator.cache import Cache

        return Cache.default()

    @property
    def width(self) -> int:
        """Columns for a table: those of the terminal, or those of a stored file if there is none."""
        if not sys.stdout.isatty():
            return WIDTH
        return min(max(shutil.get_terminal_size((WIDTH, 24)).columns, NARROWEST), WIDEST)

    @cached_property
    def durations(self) -> Durations:
        """Durations of earlier steps on this host."""
        from orchestrator.execution.durations import Durations

        return Durations(self.cache)

    @contextmanager
    def events(self) -> Iterator[Events]:
        """A stream of events that is shown in the way that suits this terminal."""
        from orchestrator.temporary import sweep_temporary

        sweep_temporary()
        if self.quiet:
            yield Events()
            return
        from orchestrator.cli.progress import PlainProgress, TerminalProgress

        live = sys.stderr.isatty() and not self.verbose
        with TerminalProgress() if live else PlainProgress(self.verbose) as progress:
            yield Events(progress)

    def series_directory(self, given: Path | None) -> Path:
        """The directory of the series: that of the project, or of the argument of ``--series``.

        Raises:
            UserError: there is no such series.
        """
        if given is None:
            return self.project.kernel_patches
        from orchestrator.kernel.posting import series_directory

        return series_directory(given, self.cache)

    def bench(
        self,
        events: Events,
        source: str | None = None,
        accelerator: str = "auto",
        flavour: str = "measure",
        build_jobs: int | None = None,
        series: Path | None = None,
        others: Mapping[str, OtherKernel] | None = None,
        *,
        keep: bool = False,
        dwarf: bool = False,
    ) -> Bench:
        """A bench for this project, or for another series.

        Args:
            keep: keep guests that failed, for gdb.
            dwarf: build all kernels with debugging information.

        Raises:
            UserError: unknown accelerator or kernel configuration.
        """
        from orchestrator.execution.bench import Bench
        from orchestrator.execution.keeper import Keeper
        from orchestrator.machine.accelerator import QEMU

        directory = self.series_directory(series) if series is not None else None
        bench = Bench(
            self.project,
            self.cache,
            events,
            source,
            accelerator,
            flavour,
            build_jobs,
            directory,
            others=others or {},
            qemu=self.qemu or QEMU,
            keeper=Keeper(partial(typer.echo, err=True)) if keep else None,
            dwarf=dwarf,
        )
        bench.check()
        events.listen(bench.durations.observe)
        events.expected = lambda like: bench.durations.expected(like).seconds if like else None
        return bench

    def reopen(
        self, events: Events, name: str, kind: RunKind, build_jobs: int | None = None, *, keep: bool = False
    ) -> tuple[RunWriter, Bench]:
        """A run to be resumed, and a bench with its settings.

        Args:
            name: name of the run.
            kind: the kind of run that the command resumes.
            keep: keep guests that failed, for gdb.

        Raises:
            UserError: no such run, one of another kind, or its patches have changed.
        """
        from orchestrator.execution import driver
        from orchestrator.execution.provenance import other_kernel, requested_source

        writer = driver.reopen(self.project.results, name, kind)
        manifest = writer.manifest
        self.qemu = manifest.accelerator.program
        series, directory = driver.series_of(manifest, self.project.kernel_patches)
        source = requested_source(manifest, series)
        others = {
            each.patchset: other for each in manifest.variants if (other := other_kernel(each)) is not None
        }
        bench = self.bench(
            events,
            source,
            manifest.accelerator.name,
            manifest.flavour,
            build_jobs,
            directory,
            others,
            keep=keep,
            dwarf=any(probe.needs_dwarf for probe in manifest.probes),
        )
        driver.check_same_series(writer, bench)
        return writer, bench

    @contextmanager
    def attempt(self, events: Events, writer: RunWriter) -> Iterator[None]:
        """Fill a run directory; after Ctrl-C, print how to resume the run.

        Raises:
            UserError, InfrastructureError: see :func:`orchestrator.execution.driver.attempt`.
        """
        from orchestrator.execution import driver

        try:
            with driver.attempt(events, writer):
                yield
        except KeyboardInterrupt:
            command = driver.resume_command(writer.manifest.kind, writer.path.name)
            typer.echo(f"interrupted; resume it with: {command}", err=True)
            raise

    def conclude(
        self,
        run: Path,
        file: str,
        render: Callable[[int], str],
        facts: Mapping[str, object],
        as_json: bool,
        *places: str,
    ) -> None:
        """Store the text of a finished run in its directory, and print it.

        Args:
            file: name of the text file.
            render: makes the text for a width in columns.
            facts: printed instead with ``--json``, with the run directory.
            places: further lines, which say where the results are.
        """
        from orchestrator.execution.result_text import with_changes
        from orchestrator.store.run import Run

        opened = Run.open(run)
        (run / file).write_text(with_changes(opened, render(WIDTH), WIDTH) + "\n", encoding="utf-8")
        if as_json:
            self.print_json({"run": str(run), **facts})
        else:
            self.print("\n".join((with_changes(opened, render(self.width), self.width), *places)))

    @staticmethod
    def print(text: str) -> None:
        """Print a result."""
        typer.echo(text)

    def print_table(self, comparison: Comparison) -> None:
        """Print a comparison; on a terminal in colour and in its width."""
        from orchestrator.analysis.table import to_text

        typer.echo(to_text(comparison, colour=sys.stdout.isatty(), width=self.width).rstrip("\n"))

    @staticmethod
    def print_json(value: object) -> None:
        """Print a result as JSON."""
        typer.echo(json.dumps(value, indent=2, sort_keys=True, default=str))


def terminal_of(context: typer.Context) -> Terminal:
    """The terminal, according to the common options."""
    terminal = context.find_object(Terminal)
    assert terminal is not None
    return terminal
