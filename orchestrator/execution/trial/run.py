# SPDX-License-Identifier: GPL-2.0-only
"""A trial: one guest of a kernel, a clone if possible, runs a workload once; what is said of it needs no repetition.

It shows whether the kernel works and its counters are consistent, and which counters moved. It is no measurement: for
that the boots of ``orchestrate run`` are needed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.analysis.identity import parse_identity
from orchestrator.analysis.invariants import inconsistencies
from orchestrator.execution.bench import Bench
from orchestrator.execution.ending import Ending, GuestEnded
from orchestrator.guest.command import bring
from orchestrator.guest.sampler import Sampler
from orchestrator.guest.workload import run_workload
from orchestrator.kernel.build import KernelBuild
from orchestrator.kernel.series import Series
from orchestrator.machine.topology import Topology
from orchestrator.store.observation import Sample
from orchestrator.store.outcome import Outcome

_VMSTAT = "vmstat"
#: A counter has moved if it grew by this share more or less than on the other side, and by :data:`_MOVED_BY`.
_MOVED_SHARE = 0.05
_MOVED_BY = 8


@dataclass
class Attempt:
    """The result of an attempt.

    Args:
        name: name of the kernel, for display.
        ending: how the guest ended.
        is_clone: whether it was a clone of a saved boot.
        start_s, run_s: host seconds until the guest was up, and of the workload.
        metrics: metric -> value and unit, as the workload printed them.
        growth: counter of /proc/vmstat -> growth over the workload.
        inconsistent: what is wrong with the counters of the series, as sentences.
    """

    name: str
    ending: Ending = field(default_factory=lambda: Ending(Outcome.LOST, "the end was not recorded"))
    is_clone: bool = False
    start_s: float = 0.0
    run_s: float = 0.0
    metrics: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    growth: Mapping[str, int] = field(default_factory=dict)
    inconsistent: Sequence[str] = ()

    @property
    def is_good(self) -> bool:
        """Whether the guest ended well and its counters are consistent."""
        return self.ending.is_ok and not self.inconsistent


def attempt(
    name: str,
    kernel: KernelBuild,
    bench: Bench,
    topology: Topology,
    workload: str,
    parameters: Mapping[str, str],
    knobs: Mapping[str, str],
    cmdline: Sequence[str],
    log_directory: Path,
    *,
    clone: bool = True,
) -> Attempt:
    """Run a workload once in a guest of a kernel.

    Args:
        name: name of the kernel, for display.
        log_directory: directory for the logs of the guest.
        clone: start a clone of a saved boot where that is possible.

    Raises:
        InfrastructureError: no guest could be started.
    """
    trial = Attempt(name)
    program = bench.workloads[workload]
    began = time.monotonic()
    log_directory.mkdir(parents=True, exist_ok=True)
    try:
        with bench.boot(
            kernel,
            topology,
            log_directory=log_directory,
            knobs=knobs,
            cmdline=cmdline,
            layers=program.layers,
            clone=clone,
        ) as booted:
            trial.is_clone, trial.start_s = booted.is_clone, time.monotonic() - began
            booted.machine.end_after_oops()
            if program.command is not None:
                bring(booted.guest, program.command.files)
            sampler = Sampler(booted.guest, 0)
            sampler.before()
            began = time.monotonic()
            done = run_workload(
                booted.guest,
                program,
                parameters,
                1,
                bench.accelerator.clock,
                log_directory,
                program.timeout_s,
            )
            trial.run_s = time.monotonic() - began
            sampler.after()
            trial.metrics = {each.metric: (each.value, each.unit) for each in done.observations}
            _judge(trial, sampler.samples, bench.series)
            trial.ending = booted.ending()
    except GuestEnded as error:
        trial.ending = error.ending
    return trial


def _judge(trial: Attempt, samples: Sequence[Sample], series: Series) -> None:
    before, after = (
        {
            each.counter: each.value
            for each in samples
            if each.source == _VMSTAT and each.node is None and each.phase == phase
        }
        for phase in ("before", "after")
    )
    least = {name: min(before.get(name, 0), after.get(name, 0)) for name in series.levels}
    # nr_* are levels, which drift by themselves; those of the series are what a change is about.
    trial.growth = {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if not name.startswith("nr_") or name in series.levels
    }
    identities = [parse_identity(text) for text in series.identities]
    trial.inconsistent = inconsistencies(before, after, least, identities, series.levels)


def moved(before: Attempt, after: Attempt) -> list[tuple[str, int, int]]:
    """Counters whose growth differs between two trials: name and growth in both, the greatest difference first.

    A counter that only one of the kernels has counts as 0 in the other.
    """
    found = []
    for name in {**before.growth, **after.growth}:
        old, new = before.growth.get(name, 0), after.growth.get(name, 0)
        if abs(new - old) > max(_MOVED_BY, _MOVED_SHARE * max(abs(old), abs(new))):
            found.append((name, old, new))
    return sorted(found, key=lambda each: (-_ratio(*each[1:]), each[0]))


def _ratio(old: int, new: int) -> float:
    """How far apart two growths are, from 0 to 1."""
    return abs(new - old) / max(abs(old), abs(new), 1)
