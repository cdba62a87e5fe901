# SPDX-License-Identifier: GPL-2.0-only
"""A run: prepare what an experiment needs, measure its cells, keep whatever was reached."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from orchestrator.errors import UserError
from orchestrator.execution.bench import Bench
from orchestrator.execution.countdown import Countdown, line_of
from orchestrator.execution.derived import DERIVED_METRICS
from orchestrator.execution.forecast import kind_of_cell
from orchestrator.execution.measured_cell import CellResult, write_evidence
from orchestrator.execution.place import Place
from orchestrator.execution.provenance import keep_build_log, kernel_facts, provenance, source_facts
from orchestrator.experiment.cell import Cell
from orchestrator.experiment.experiment import Experiment
from orchestrator.experiment.variant import Role
from orchestrator.guest.sampler import SAMPLER_METRICS
from orchestrator.guest.workload import Metric, Workload
from orchestrator.kernel.build import BuildFailed, KernelBuild
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import CellRow, RunWriter

#: Cells in a row that are lost before their guest is up: then it is the host that is broken, not a kernel.
_GIVE_UP_AFTER = 4


@dataclass(frozen=True)
class RunSummary:
    """How many of the planned cells ended how.

    Args:
        outcomes: outcome -> number of cells, over all of the run (earlier attempts of a resumed one included).
    """

    outcomes: Mapping[Outcome, int]

    @property
    def all_ok(self) -> bool:
        """Whether every planned cell ended ok."""
        return set(self.outcomes) <= {Outcome.OK}


def manifest_of(experiment: Experiment, bench: Bench, command: Sequence[str]) -> dict[str, object]:
    """What ``run.json`` says before anything slow starts; nothing here builds or boots."""
    series = bench.series
    return {
        **provenance(bench, experiment.topology, command),
        "name": experiment.name,
        "margin": experiment.margin,
        "repeat": experiment.repeat,
        "seed": experiment.seed,
        "timeout_s": experiment.timeout_s,
        "tradeoff": dict(experiment.tradeoff),
        "variants": [
            {
                "name": variant.name,
                "role": variant.role.value,
                "patchset": variant.patchset,
                "knobs": dict(variant.knobs),
                "cmdline": list(variant.cmdline),
                "stages": [
                    {"number": stage.number, "name": stage.name, "digest": stage.digest}
                    for stage in series.select(variant.patchset)
                ],
            }
            for variant in experiment.variants
        ],
        "workloads": {
            name: {
                "title": bench.workloads[name].title,
                "parameters": {
                    **{key: str(p.default) for key, p in bench.workloads[name].parameters.items()},
                    **parameters,
                },
                "metrics": {
                    metric.name.replace("{clock}", clock): {
                        "unit": metric.unit.replace("{clock}", clock),
                        "better": metric.better,
                        "primary": metric.primary,
                        "help": metric.help,
                    }
                    # A workload may say itself what a metric that all have means to it.
                    for metric in _metrics_of(bench.workloads[name])
                    for clock in (("insns", "ns") if "{clock}" in metric.name else ("",))
                },
            }
            for name, parameters in experiment.workloads.items()
        },
        "cells": [
            {
                "cell": cell.id,
                "variant": cell.variant,
                "role": experiment.variant(cell.variant).role.value,
                "workload": cell.workload,
                "repetition": cell.repetition,
                "seed": cell.seed,
            }
            for cell in experiment.cells
        ],
    }


def _metrics_of(workload: Workload) -> Iterable[Metric]:
    """The workload's own metrics, then those that all have; it may say itself what one of these means to it."""
    own = workload.metrics
    return {**own, **DERIVED_METRICS, **SAMPLER_METRICS, **own}.values()


def execute(experiment: Experiment, bench: Bench, writer: RunWriter, place: Place) -> RunSummary:
    """Measure every cell of `experiment` that `writer` has no good end of yet.

    Args:
        place: where the guests run.

    Raises:
        InfrastructureError: the host failed. What was measured until then is kept.
        KeyboardInterrupt: as it came; guests are ended, what was measured is kept.
    """
    done = writer.completed_cells()
    todo = [cell for cell in experiment.cells if cell.id not in done]
    stopping = threading.Event()
    try:
        if todo:
            kernels = _prepare(experiment, bench, writer, {cell.variant for cell in todo})
            place.ship(
                bench, {name: kernel for name, kernel in kernels.items() if isinstance(kernel, KernelBuild)}
            )
            _measure_all(todo, experiment, bench, writer, kernels, place, stopping)
    except BaseException:
        stopping.set()
        place.abort()
        raise
    finally:
        writer.finish()
    outcomes = writer.outcomes()
    lost = len(experiment.cells) - sum(outcomes.values())
    return RunSummary(outcomes | ({Outcome.LOST: outcomes.get(Outcome.LOST, 0) + lost} if lost else {}))


#: The kernel of each patchset; one that does not build is a value, for its cells end as build-failed.
Kernels = Mapping[str, KernelBuild | BuildFailed]


def _prepare(experiment: Experiment, bench: Bench, writer: RunWriter, needed: Set[str]) -> Kernels:
    """Everything slow that cells share, and its facts in ``run.json``."""
    check_same_source(writer, bench)
    writer.update_manifest(accelerator=bench.accelerator.facts)
    kernels: dict[str, KernelBuild | BuildFailed] = {}
    facts = {variant["name"]: variant for variant in writer.manifest["variants"]}
    for variant in experiment.variants:
        if variant.name not in needed:
            continue
        if variant.patchset not in kernels:
            try:
                kernels[variant.patchset] = bench.kernel(variant.patchset)
            except BuildFailed as error:
                kernels[variant.patchset] = error
            keep_build_log(writer.path, variant.patchset, kernels[variant.patchset])
        kernel = kernels[variant.patchset]
        if isinstance(kernel, KernelBuild):
            facts[variant.name].update(kernel_facts(variant.patchset, kernel, bench))
    source = bench.source_tree
    writer.update_manifest(
        variants=list(facts.values()),
        source={
            **source_facts(bench),
            "version": source.version,
            "commit": source.commit,
        },
        image={name: bench.image_with(bench.workloads[name].layers).digest for name in experiment.workloads},
    )
    (writer.path / "logs" / "kernel.config").write_text(bench.configuration().text, encoding="utf-8")
    return kernels


def check_same_source(writer: RunWriter, bench: Bench) -> None:
    """A run is finished on the source it was begun with, or not at all.

    Raises:
        UserError: the source has changed.
    """
    began = writer.manifest["source"].get("commit")
    if began is not None and began != bench.source_tree.commit:
        raise UserError(
            f"{bench.source_tree.description} is not the source that {writer.path.name} began with "
            f"({writer.manifest['source'].get('description')}); start a new run."
        )


def _measure_all(
    todo: Sequence[Cell],
    experiment: Experiment,
    bench: Bench,
    writer: RunWriter,
    kernels: Kernels,
    place: Place,
    stopping: threading.Event,
) -> None:
    def one(cell: Cell) -> CellResult | None:
        if stopping.is_set():
            return None
        directory = writer.cell_directory(cell.id)
        variant = experiment.variant(cell.variant)
        kernel = kernels[variant.patchset]
        if isinstance(kernel, BuildFailed):
            result = CellResult(cell, Outcome.BUILD_FAILED, str(kernel))
        else:
            with bench.events.step(f"cell {cell.id}", part=True):
                result = place.measure(cell, experiment, directory)
        if stopping.is_set() and result.outcome is not Outcome.OK:
            return None  # we ended it ourselves; a resumed run measures it
        write_evidence(result, directory)
        writer.record(row_of(result, variant.role), result.observations, result.samples)
        return result

    unbooted = 0
    accelerator = bench.accelerator.name
    kinds = {cell.id: kind_of_cell(cell, experiment, accelerator, place.slots) for cell in todo}
    with bench.events.step("measure") as step, ThreadPoolExecutor(place.slots, "cell") as pool:
        pending: set[Future[CellResult | None]] = {pool.submit(one, cell) for cell in todo}
        countdown = Countdown(step, bench.durations, list(kinds.values()), "cells", place.slots)
        try:
            while pending:
                # A bounded wait, for Ctrl-C is only noticed between waits.
                ended, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in ended:
                    result = future.result()
                    if result is not None:
                        typical_s = result.total_s if result.outcome is Outcome.OK else None
                        countdown.ended(kinds[result.cell.id], _told(result), typical_s)
                    unbooted = unbooted + 1 if result and result.outcome is Outcome.BOOT_FAILED else 0
                if unbooted >= _GIVE_UP_AFTER and len(todo) > 2 * _GIVE_UP_AFTER:
                    step.note(f"{unbooted} guests in a row did not come up; the remaining cells are left out")
                    break
        finally:
            for future in pending:
                future.cancel()
            if pending:  # the pool waits for its threads, and they for their guests
                stopping.set()
                place.abort()


def _told(result: CellResult) -> str:
    """How a cell ended, in a line: workload, variant, repetition, outcome, host seconds, the reason."""
    cell = result.cell
    name = f"{cell.workload} {cell.variant} #{cell.repetition}"
    return line_of(name, result.outcome, result.total_s, result.evidence)


def row_of(result: CellResult, role: Role) -> CellRow:
    """The end of a cell as it is stored."""
    return CellRow(
        cell=result.cell.id,
        variant=result.cell.variant,
        role=role.value,
        workload=result.cell.workload,
        repetition=result.cell.repetition,
        seed=result.cell.seed,
        outcome=result.outcome,
        evidence=result.evidence,
        boot_s=result.boot_s,
        run_s=result.run_s,
        total_s=result.total_s,
        started_utc=result.started_utc,
    )
