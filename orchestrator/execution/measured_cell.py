# SPDX-License-Identifier: GPL-2.0-only
"""One cell: boots a guest, runs the workload between two readings of all counters, and returns the result."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.debugger.probe import Probed, ProbeSession
from orchestrator.debugger.profiler import Profiler, plugin_library
from orchestrator.execution.bench import Bench, Booted
from orchestrator.execution.derived import observations_from_counters
from orchestrator.execution.ending import GuestEnded
from orchestrator.experiment.cell import Cell
from orchestrator.experiment.experiment import Experiment
from orchestrator.guest.command import bring
from orchestrator.guest.sampler import Sampler
from orchestrator.guest.workload import run_workload
from orchestrator.kernel.build import KernelBuild
from orchestrator.store.observation import Observation, Sample
from orchestrator.store.outcome import Outcome
from orchestrator.store.profile import FILE as PROFILE
from orchestrator.store.profile import write_profile


@dataclass
class CellResult:
    """The result of a cell. The initial outcome is lost, until an end is observed.

    Args:
        evidence: output of the console or the workload that shows what happened; empty if the outcome is ok.
        boot_s, run_s, total_s: duration of the boot, the workload and the whole cell in host seconds.
    """

    cell: Cell
    outcome: Outcome = Outcome.LOST
    evidence: str = "the end was not recorded"
    boot_s: float = 0.0
    run_s: float = 0.0
    total_s: float = 0.0
    started_utc: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    observations: Sequence[Observation] = ()
    samples: Sequence[Sample] = ()


def measure_cell(
    cell: Cell, experiment: Experiment, bench: Bench, kernel: KernelBuild, log_directory: Path
) -> CellResult:
    """Run one cell. Failures of the guest are results, never exceptions.

    Args:
        log_directory: ``logs/<cell>/`` in the run directory.

    Raises:
        InfrastructureError: no guest could be started, e.g. because QEMU is not installed.
    """
    result = CellResult(cell)
    variant = experiment.variant(cell.variant)
    began = time.monotonic()
    log_directory.mkdir(parents=True, exist_ok=True)
    try:
        profiler = None
        if experiment.profile:
            library = plugin_library(bench.cache, bench.events, bench.accelerator.program)
            profiler = Profiler(kernel.vmlinux, library, log_directory)
        with bench.boot(
            kernel,
            experiment.topology,
            log_directory=log_directory,
            knobs=variant.knobs,
            cmdline=variant.cmdline,
            layers=bench.workloads[cell.workload].layers,
            plugin=None if profiler is None else profiler.plugin,
            gdb=bool(experiment.probes),
        ) as booted:
            result.boot_s = booted.boot_s
            booted.machine.end_after_oops()
            _measure(result, experiment, bench, booted, kernel, log_directory, profiler)
            ending = booted.ending()
    except GuestEnded as error:
        ending = error.ending
    finally:
        result.total_s = time.monotonic() - began
    result.outcome, result.evidence = ending.outcome, ending.evidence
    return result


def _measure(
    result: CellResult,
    experiment: Experiment,
    bench: Bench,
    booted: Booted,
    kernel: KernelBuild,
    log_directory: Path,
    profiler: Profiler | None,
) -> None:
    cell = result.cell
    workload = bench.workloads[cell.workload]
    if workload.command is not None:
        bring(booted.guest, workload.command.files)
    sampler = Sampler(
        booted.guest,
        workload.sample_interval_ms,
        experiment.sample,
        processes=workload.sample_processes,
    )
    samples: list[Sample] = []
    probes: ProbeSession | None = None
    probed = Probed()
    if experiment.probes:
        assert booted.machine.gdb_socket is not None
        probes = ProbeSession(booted.machine.gdb_socket, kernel.vmlinux, experiment.probes, log_directory)
    began = time.monotonic()
    try:
        sampler.before()
        sampler.start()
        counted_before = profiler.read(booted.machine) if profiler is not None else None
        if probes is not None:
            probes.start()
        try:
            done = run_workload(
                booted.guest,
                workload,
                experiment.workloads[cell.workload],
                cell.seed,
                bench.accelerator.clock,
                log_directory,
                experiment.timeout_s or workload.timeout_s,
            )
            if profiler is not None and counted_before is not None:
                profile = profiler.between(counted_before, profiler.read(booted.machine))
                write_profile(log_directory / PROFILE, profile)
        finally:
            result.run_s = time.monotonic() - began
            if probes is not None:
                probed = probes.stop()
            sampler.stop()
        sampler.after()
    finally:
        samples = [*sampler.samples, *probed.samples]
        result.samples = samples
    counted = observations_from_counters(samples, bench.series.metrics)
    result.observations = [*done.observations, *counted, *sampler.observations(), *probed.observations]


def write_evidence(result: CellResult, log_directory: Path) -> None:
    """Write the result of the cell to a small file next to its logs."""
    facts = {
        "cell": result.cell.id,
        "outcome": result.outcome.value,
        "evidence": result.evidence,
        "boot_s": round(result.boot_s, 3),
        "run_s": round(result.run_s, 3),
        "total_s": round(result.total_s, 3),
    }
    (log_directory / "end.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
