# SPDX-License-Identifier: GPL-2.0-only
"""How many guests may run in parallel on this host without disturbing each other's measurements."""

from __future__ import annotations

import os
from dataclasses import dataclass

from orchestrator.errors import UserError
from orchestrator.machine.accelerator import Accelerator
from orchestrator.machine.topology import OVERHEAD_MIB, Topology, available_mib

AUTO = "auto"


@dataclass(frozen=True)
class Admission:
    """The number of guests that run in parallel.

    Args:
        reason: one clause on why there are not more.
    """

    guests: int
    reason: str


def parse_jobs(text: str) -> int | None:
    """Parse ``--jobs``: a number, or None for ``auto``.

    Raises:
        UserError: the text is neither.
    """
    if text == AUTO:
        return None
    if text.isdecimal() and 0 < int(text) < 10_000:
        return int(text)
    raise UserError(f"--jobs {text}: write a number of guests (at least 1), or auto.")


def admit(
    jobs: int | None,
    topology: Topology,
    accelerator: Accelerator,
    cells: int,
    cpus: int | None = None,
    memory_mib: int | None = None,
) -> Admission:
    """Decide how many guests of `topology` run in parallel.

    Args:
        jobs: as :func:`parse_jobs` returns it.
        cells: number of cells to measure.
        cpus, memory_mib: CPUs and available memory (MiB) of the host; None to determine them.

    Raises:
        UserError: not even one guest fits in the host's memory, or fewer than requested.
    """
    memory = available_mib() if memory_mib is None else memory_mib
    if jobs is not None:
        topology.check_host(jobs, memory)
        return Admission(jobs, "as requested")
    topology.check_host(1, memory)
    cpus = cpus or os.cpu_count() or 1
    if accelerator.name == "icount":
        # One host thread executes all CPUs of a guest, and its clock does not depend on that of the host.
        by_cpu, why = cpus, f"one per CPU of {cpus}"
    elif accelerator.clock == "ns" and accelerator.name == "kvm":
        by_cpu, why = 1, "parallel guests would disturb each other's times"
    else:
        by_cpu = max(cpus // topology.cpus, 1)
        why = f"{topology.cpus} of {cpus} CPUs each"
    by_memory = memory // (topology.memory_mib + OVERHEAD_MIB)
    guests = min(by_cpu, by_memory, max(cells, 1))
    if guests == by_cpu:
        return Admission(guests, why)
    if guests == by_memory:
        return Admission(guests, f"{memory} MiB of memory are available")
    return Admission(guests, "there are no more cells")
