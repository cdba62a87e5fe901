# SPDX-License-Identifier: GPL-2.0-only
"""Common code of all kinds of run: create or reopen a run directory, prepare kernels, store the results.

Each kind of run is a package next to this module: ``request.py`` describes the request, ``run.py`` executes it, and
``report.py`` shows the results. The packages do not import each other, except that a bisection measures and checks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Event, Events
from orchestrator.execution.bench import Bench
from orchestrator.execution.provenance import (
    builds,
    built,
    keep_build_log,
    measuring_code,
)
from orchestrator.kernel.build import BuildFailed, KernelBuild
from orchestrator.kernel.series import Series, change_digest, load_series
from orchestrator.store.manifest import Manifest, RunKind, read_manifest
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import RunWriter, find_run

#: The command that resumes a run of each kind.
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
    RunKind.TEST: "a correctness test",
    RunKind.BISECT: "a bisection",
    RunKind.VERIFY: "a verification of a series",
}

#: The kernel per patchset, or the build failure, with which its cells end.
Kernels = Mapping[str, KernelBuild | BuildFailed]


def resume_command(kind: RunKind, run: str) -> str:
    """The command that resumes a run."""
    return f"{RESUMES[kind]} {run}"


def reopen(results: Path, name: str, kind: RunKind) -> RunWriter:
    """Reopen a run directory to resume the run, and record the version of the code that resumes it.

    Args:
        name: name of the run, see :func:`orchestrator.store.run.find_run`.
        kind: the kind of run that the command resumes.

    Raises:
        UserError: no such run, one of another kind, or one that is being written to.
    """
    path = find_run(results, name)
    manifest = read_manifest(path)
    if manifest.kind is not kind:
        raise UserError(
            f"{path.name} is {_CALLED[manifest.kind]}, not {_CALLED[kind]}; resume it with: "
            f"{resume_command(manifest.kind, path.name)}"
        )
    writer = RunWriter.reopen(path)
    code = measuring_code()
    if code not in (manifest.code, *manifest.finished_by):
        writer.update_manifest(finished_by=(*manifest.finished_by, code))
    return writer


def series_of(manifest: Manifest, project: Path) -> tuple[Series, Path | None]:
    """The series of a run, and its directory if it is not that of the project.

    Args:
        project: directory of the project's own series.
    """
    directory = Path(manifest.series.directory) if manifest.series.directory else None
    return load_series(directory or project), directory


def check_same_series(writer: RunWriter, bench: Bench) -> None:
    """Check that the patches have not changed since the run began.

    If the series has a new alternative patch for another base, the source is the same: so compare the trees.

    Raises:
        UserError: the patches have changed.
    """
    for variant in writer.manifest.variants:
        stages = bench.series.select(variant.patchset)
        if bench.is_prebuilt(variant.patchset):
            if variant.kernel is not None and bench.kernel(variant.patchset).digest != variant.kernel.digest:
                raise UserError(
                    f"the kernel of {variant.name} has changed since {writer.path.name} began; start a new run."
                )
            continue
        same_stages = [stage.digest for stage in variant.stages] == [stage.digest for stage in stages]
        # A source of its own may have changed without the patches.
        if same_stages and (variant.other is None or variant.tree is None):
            continue
        if variant.tree is not None:
            check_same_source(writer, bench)
            same = bench.tree(variant.patchset).tree == variant.tree
        else:  # nothing was built, and without alternatives the digest is that of the patch alone
            same = len(stages) == len(variant.stages) and all(
                before.digest in (now.digest, change_digest(now.patch))
                for before, now in zip(variant.stages, stages, strict=True)
            )
        if not same:
            raise UserError(
                f"the patches of {variant.patchset} have changed since {writer.path.name} began; start a new run."
            )


def check_same_source(writer: RunWriter, bench: Bench) -> None:
    """Check that the kernel source has not changed since the run began.

    Raises:
        UserError: the source has changed.
    """
    began = writer.manifest.source
    if began.commit is not None and began.commit != bench.source_tree.commit:
        raise UserError(
            f"{bench.source_tree.description} is not the source that {writer.path.name} began with "
            f"({began.description}); start a new run."
        )


def record_source(writer: RunWriter, bench: Bench) -> None:
    """Import the kernel source if necessary, and record its version and commit in ``run.json``.

    Raises:
        UserError: the source has changed since the run began.
    """
    check_same_source(writer, bench)
    source = bench.source_tree
    began = writer.manifest.source
    writer.update_manifest(source=replace(began, version=source.version, commit=source.commit))


def record_accelerator(writer: RunWriter, bench: Bench) -> None:
    """Record the accelerator in ``run.json``.

    If a resumed run keeps results of another one, e.g. of an older QEMU, that one stays recorded too.
    """
    before, now = writer.manifest.accelerator, bench.accelerator.record
    earlier = writer.manifest.earlier_accelerators
    if before.clock is not None and replace(before, reason=now.reason) != now:
        kept = _kept_results(writer)
        if kept and not _is_complete(writer):
            earlier = (*earlier, before)
        elif kept:
            return
    writer.update_manifest(accelerator=now, earlier_accelerators=earlier)


def record_kernel(writer: RunWriter, bench: Bench, patchset: str, kernel: KernelBuild) -> None:
    """Record a built kernel in ``run.json``, for all variants of its patchset.

    If a resumed run keeps results of another kernel, e.g. of an older compiler, that one stays recorded too.
    """
    variants = []
    for variant in writer.manifest.variants:
        if variant.patchset == patchset:
            before, variant = variant.kernel, built(variant, kernel, bench)
            now = variant.kernel
            if before and now and (before.digest, before.compiler) != (now.digest, now.compiler):
                kept = _kept_results(writer, variant.name)
                if kept and _is_complete(writer):
                    variant = replace(variant, kernel=before)
                elif kept:
                    variant = replace(variant, earlier_kernels=(*variant.earlier_kernels, before))
        variants.append(variant)
    writer.update_manifest(variants=tuple(variants))


def _kept_results(writer: RunWriter, variant: str | None = None) -> int:
    """The number of results, of one variant or of all, that a resumed run keeps: those that the host did not lose."""
    return sum(
        row.outcome is not Outcome.LOST and variant in (None, row.planned.variant) for row in writer.ends()
    )


def _is_complete(writer: RunWriter) -> bool:
    """Whether a resumed run has nothing left to boot. A bisection plans each boot when it needs it."""
    bisection = writer.manifest.bisection
    if bisection is not None:
        return bisection.answer is not None and bisection.answer.conclusion != "undecided"
    return _kept_results(writer) == len(writer.manifest.cells)


def prepare(
    writer: RunWriter, bench: Bench, patchsets: Iterable[str], images: Mapping[str, Sequence[str]]
) -> Kernels:
    """Prepare everything slow that the cells of a run share, and record it in ``run.json``.

    Args:
        patchsets: patchsets whose kernels are needed.
        images: workload -> layers of its guest image.

    Raises:
        UserError: the source has changed since the run began, or a patch does not apply.
        InfrastructureError: the host failed.
    """
    is_source_needed = builds(writer.manifest.variants)
    if is_source_needed:
        record_source(writer, bench)
    record_accelerator(writer, bench)
    kernels = {patchset: build(writer, bench, patchset) for patchset in dict.fromkeys(patchsets)}
    writer.update_manifest(image={name: bench.image_with(layers).digest for name, layers in images.items()})
    if is_source_needed:
        (writer.path / "logs" / "kernel.config").write_text(bench.configuration().text, encoding="utf-8")
    return kernels


def build(writer: RunWriter, bench: Bench, patchset: str) -> KernelBuild | BuildFailed:
    """Build the kernel of a patchset; store its build log, and its record in ``run.json``."""
    kernel: KernelBuild | BuildFailed
    try:
        kernel = bench.kernel(patchset)
    except BuildFailed as error:
        kernel = error
    keep_build_log(writer.path, patchset, kernel)
    if isinstance(kernel, KernelBuild):
        record_kernel(writer, bench, patchset, kernel)
    return kernel


@contextmanager
def attempt(events: Events, writer: RunWriter) -> Iterator[None]:
    """Keep a log of every event while the block fills a run directory.

    Raises:
        UserError: raised by the block. The run directory is removed if it has no results.
        InfrastructureError: raised by the block; the run directory is added to the message.
    """
    with _event_log(events, writer.path):
        try:
            yield
        except UserError:
            # E.g. a patch that does not apply, or an option that is not in the final configuration.
            if not writer.outcomes():
                shutil.rmtree(writer.path)
            raise
        except InfrastructureError as error:
            raise InfrastructureError(
                f"{error} The results so far are in {writer.path}.", error.log
            ) from error


@contextmanager
def _event_log(events: Events, run: Path) -> Iterator[None]:
    """Write all events except progress to ``logs/events.jsonl`` of the run."""
    with (run / "logs" / "events.jsonl").open("a", encoding="utf-8") as log:

        def keep(event: Event) -> None:
            if event.kind != "progress" and not log.closed:
                fact = {"kind": event.kind, "step": event.step, "text": event.text, "s": event.seconds}
                log.write(json.dumps(fact) + "\n")
                log.flush()

        events.listen(keep)
        yield
