# SPDX-License-Identifier: GPL-2.0-only
"""Execution of a measuring run: prepares what an experiment needs, measures its cells, and stores all results."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from orchestrator.debugger.probe import check_kernels
from orchestrator.events import Events
from orchestrator.execution.bench import Bench
from orchestrator.execution.countdown import Countdown, line_of
from orchestrator.execution.driver import Kernels, prepare
from orchestrator.execution.forecast import kind_of_cell
from orchestrator.execution.measure.request import planned_cell, row_of
from orchestrator.execution.measured_cell import CellResult, write_evidence
from orchestrator.execution.place import Place
from orchestrator.experiment.cell import Cell
from orchestrator.experiment.experiment import Experiment
from orchestrator.kernel.build import BuildFailed, KernelBuild
from orchestrator.store.manifest import Role
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import Run, RunWriter

#: Number of consecutive cells lost before their guest is up, after which the host is considered broken.
_GIVE_UP_AFTER = 4
_NOT_UP = (Outcome.BOOT_FAILED, Outcome.LOST)


@dataclass(frozen=True)
class RunSummary:
    """The number of cells per outcome.

    Args:
        outcomes: outcome -> number of cells, over the whole run, including earlier attempts of a resumed run.
    """

    outcomes: Mapping[Outcome, int]

    @property
    def exit_status(self) -> int:
        """0 if all ended ok, 1 if the rest were lost through the host, 3 if a kernel or workload failed."""
        bad = set(self.outcomes) - {Outcome.OK}
        return 3 if bad - {Outcome.LOST} else 1 if bad else 0


def execute(experiment: Experiment, bench: Bench, writer: RunWriter, place: Place) -> RunSummary:
    """Measure every cell of `experiment` that has not ended ok in this run yet.

    Args:
        place: where the guests run.

    Raises:
        InfrastructureError: the host failed; results so far are kept.
        KeyboardInterrupt: passed on; guests are ended and results so far are kept.
    """
    stopping = threading.Event()
    try:
        todo = _unfinished(experiment, writer)
        while todo or (todo := plan_after_look(experiment, writer, bench.events)):
            kernels = prepare(
                writer,
                bench,
                [experiment.variant(cell.variant).patchset for cell in todo],
                {name: bench.workloads[name].layers for name in experiment.workloads},
            )
            built = {name: kernel for name, kernel in kernels.items() if isinstance(kernel, KernelBuild)}
            check_kernels([kernel.vmlinux for kernel in built.values()], experiment.probes)
            place.ship(bench, built)
            _measure_all(todo, experiment, bench, writer, kernels, place, stopping)
            if sum(writer.outcomes().values()) < len(writer.manifest.cells):
                break  # the host failed; a resumed run continues
            todo = []
    except BaseException:
        stopping.set()
        place.abort()
        raise
    finally:
        writer.finish()
    outcomes = writer.outcomes()
    lost = len(writer.manifest.cells) - sum(outcomes.values())
    return RunSummary(outcomes | ({Outcome.LOST: outcomes.get(Outcome.LOST, 0) + lost} if lost else {}))


def _unfinished(experiment: Experiment, writer: RunWriter) -> list[Cell]:
    """The planned cells that have not ended ok."""
    done = writer.completed_cells()
    planned = {cell.cell for cell in writer.manifest.cells}
    return [cell for cell in experiment.possible_cells if cell.id in planned and cell.id not in done]


def plan_after_look(experiment: Experiment, writer: RunWriter, events: Events) -> list[Cell]:
    """Look at the results so far, and plan more boots for metrics that are not decided.

    A workload gets more boots of baseline and control as long as one of its variants does.

    Returns:
        The cells added to the plan; none if everything is decided, or no look is left.
    """
    if experiment.max_repeat is None:
        return []
    # Imported here, because they take a second and most runs do not need them.
    from orchestrator.analysis.comparison import compare
    from orchestrator.analysis.looks import looks
    from orchestrator.analysis.undecided import undecided

    reached = max(cell.repetition for cell in writer.manifest.cells)
    following = next(
        (look.repetitions for look in looks(experiment.max_repeat) if look.repetitions > reached), None
    )
    if following is None:
        return []
    with events.step(f"look at {reached} boots") as step:
        open_pairs = undecided(compare(Run.open(writer.path)))
        # Variants that stopped at an earlier look get no more boots.
        booted = {
            (cell.variant, cell.workload) for cell in writer.manifest.cells if cell.repetition == reached
        }
        open_pairs = {pair: metrics for pair, metrics in open_pairs.items() if pair in booted}
        for (variant, workload), metrics in open_pairs.items():
            step.note(f"not decided: {', '.join(metrics)} of {variant} in {workload}")
    open_workloads = {workload for _, workload in open_pairs}
    added = [
        cell
        for cell in experiment.possible_cells
        if reached < cell.repetition <= following
        and cell.workload in open_workloads
        and (
            (cell.variant, cell.workload) in open_pairs
            or experiment.variant(cell.variant).role is not Role.PATCHED
        )
    ]
    for cell in added:
        writer.plan(planned_cell(cell, experiment))
    return added


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
            return None  # we ended it; a resumed run measures it again
        write_evidence(result, directory)
        writer.record(row_of(result, experiment), result.observations, result.samples)
        return result

    unbooted = 0
    accelerator = bench.accelerator.name
    kinds = {cell.id: kind_of_cell(cell, experiment, accelerator, place.slots) for cell in todo}
    with bench.events.step("measure") as step, ThreadPoolExecutor(place.slots, "cell") as pool:
        pending: set[Future[CellResult | None]] = {pool.submit(one, cell) for cell in todo}
        countdown = Countdown(step, bench.durations, list(kinds.values()), "cells", place.slots)
        try:
            while pending:
                # Wait with a timeout, as Ctrl-C is only noticed between waits.
                ended, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in ended:
                    result = future.result()
                    if result is not None:
                        typical_s = result.total_s if result.outcome is Outcome.OK else None
                        countdown.ended(kinds[result.cell.id], _told(result), typical_s)
                    unbooted = unbooted + 1 if result and result.outcome in _NOT_UP else 0
                if unbooted >= _GIVE_UP_AFTER and len(todo) > 2 * _GIVE_UP_AFTER:
                    step.note(
                        f"{unbooted} guests in a row did not come up or were lost; the remaining cells are skipped"
                    )
                    break
        finally:
            for future in pending:
                future.cancel()
            if pending:  # the pool waits for its threads, and they for their guests
                stopping.set()
                place.abort()


def _told(result: CellResult) -> str:
    """One line on how a cell ended: workload, variant, repetition, outcome, host seconds, reason."""
    cell = result.cell
    name = f"{cell.workload} {cell.variant} #{cell.repetition}"
    return line_of(name, result.outcome, result.total_s, result.evidence)
