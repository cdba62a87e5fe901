# SPDX-License-Identifier: GPL-2.0-only
"""What all kinds of run share: create or reopen a run directory, prepare kernels, keep what was reached.

A kind of run is a folder beside this module: ``request.py`` says what is asked for, ``run.py`` does it, ``report.py``
shows what came of it. They do not know each other, except that a bisection measures and checks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from orchestrator.cache import file_digest
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Event, Events
from orchestrator.execution.bench import Bench
from orchestrator.execution.provenance import (
    built,
    keep_build_log,
    measuring_code,
    source_record,
)
from orchestrator.kernel.build import BuildFailed, KernelBuild
from orchestrator.kernel.series import Series, load_series
from orchestrator.store.manifest import Manifest, RunKind, read_manifest
from orchestrator.store.run import RunWriter, find_run

#: The command that finishes a run of each kind.
RESUMES: Mapping[RunKind, str] = {
    RunKind.RUN: "orchestrate run --resume",
    RunKind.CHECK: "orchestrate check --resume",
    RunKind.TEST: "orchestrate test --resume",
    RunKind.BISECT: "orchestrate bisect --resume",
    RunKind.VERIFY: "orchestrate series verify --resume",
}
_CALLED: Mapping[RunKind, str] = {
    RunKind.RUN: "a measuring run",
    RunKind.CHECK: "a check",
    RunKind.TEST: "a test of correctness",
    RunKind.BISECT: "a bisection",
    RunKind.VERIFY: "a verification of a series",
}

#: The kernel of each patchset; one that does not build is a value, for its cells end as build-failed.
Kernels = Mapping[str, KernelBuild | BuildFailed]


def resume_command(kind: RunKind, run: str) -> str:
    """The command that finishes a run."""
    return f"{RESUMES[kind]} {run}"


def reopen(results: Path, name: str, kind: RunKind) -> RunWriter:
    """Open a run directory to finish it, and record the code that does.

    Args:
        name: as :func:`orchestrator.store.run.find_run` takes it.
        kind: what the command finishes.

    Raises:
        UserError: no such run, one of another kind, or one that is being written to.
    """
    path = find_run(results, name)
    manifest = read_manifest(path)
    if manifest.kind is not kind:
        raise UserError(
            f"{path.name} is {_CALLED[manifest.kind]}, not {_CALLED[kind]}; finish it with: "
            f"{resume_command(manifest.kind, path.name)}"
        )
    writer = RunWriter.reopen(path)
    code = measuring_code()
    if code not in (manifest.code, *manifest.finished_by):
        writer.update_manifest(finished_by=(*manifest.finished_by, code))
    return writer


def series_of(manifest: Manifest, project: Path) -> tuple[Series, Path | None]:
    """The series of a run, and its directory where it is not the project's.

    Args:
        project: directory of the project's own series.
    """
    directory = Path(manifest.series.directory) if manifest.series.directory else None
    return load_series(directory or project), directory


def check_same_series(writer: RunWriter, bench: Bench) -> None:
    """A run is finished with the patches that it began with, or not at all.

    A series that has got an alternative patch for another base gives the same source: then the trees decide.

    Raises:
        UserError: the patches have changed.
    """
    for variant in writer.manifest.variants:
        stages = bench.series.select(variant.patchset)
        if [stage.digest for stage in variant.stages] == [stage.digest for stage in stages]:
            continue
        if variant.tree is not None:
            check_same_source(writer, bench)
            same = bench.tree(variant.patchset).tree == variant.tree
        else:  # nothing was built: the digest was that of the patch alone, before there was an alternative
            same = len(stages) == len(variant.stages) and all(
                before.digest in (now.digest, file_digest(now.patch))
                for before, now in zip(variant.stages, stages, strict=True)
            )
        if not same:
            raise UserError(
                f"the patches of {variant.patchset} have changed since {writer.path.name} began; start a new run."
            )


def check_same_source(writer: RunWriter, bench: Bench) -> None:
    """A run is finished on the source that it began with, or not at all.

    Raises:
        UserError: the source has changed.
    """
    began = writer.manifest.source
    if began.commit is not None and began.commit != bench.source_tree.commit:
        raise UserError(
            f"{bench.source_tree.description} is not the source that {writer.path.name} began with "
            f"({began.description}); start a new run."
        )


def prepare(
    writer: RunWriter, bench: Bench, patchsets: Iterable[str], images: Mapping[str, Sequence[str]]
) -> Kernels:
    """Everything slow that the cells of a run share, and what ``run.json`` says of it.

    Args:
        patchsets: whose kernels are needed.
        images: workload -> layers of its guest image.

    Raises:
        UserError: the source has changed since the run began, or a patch does not apply.
        InfrastructureError: the host failed.
    """
    check_same_source(writer, bench)
    writer.update_manifest(accelerator=bench.accelerator.record)
    kernels = {patchset: build(writer, bench, patchset) for patchset in dict.fromkeys(patchsets)}
    source = bench.source_tree
    writer.update_manifest(
        source=replace(source_record(bench), version=source.version, commit=source.commit),
        image={name: bench.image_with(layers).digest for name, layers in images.items()},
    )
    (writer.path / "logs" / "kernel.config").write_text(bench.configuration().text, encoding="utf-8")
    return kernels


def build(writer: RunWriter, bench: Bench, patchset: str) -> KernelBuild | BuildFailed:
    """The kernel of a patchset, with its build log and what ``run.json`` says of it."""
    kernel: KernelBuild | BuildFailed
    try:
        kernel = bench.kernel(patchset)
    except BuildFailed as error:
        kernel = error
    keep_build_log(writer.path, patchset, kernel)
    if isinstance(kernel, KernelBuild):
        writer.update_manifest(
            variants=tuple(
                built(variant, kernel, bench) if variant.patchset == patchset else variant
                for variant in writer.manifest.variants
            )
        )
    return kernel


@contextmanager
def attempt(events: Events, writer: RunWriter) -> Iterator[None]:
    """Keep a log of every event while the block fills a run directory.

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
