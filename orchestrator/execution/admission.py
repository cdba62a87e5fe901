# SPDX-License-Identifier: GPL-2.0-only
"""How many guests may run side by side on this host without disturbing what they measure."""

from __future__ import annotations

import os
from dataclasses import dataclass

from orchestrator.errors import UserError
from orchestrator.machine.accelerator import Accelerator
from orchestrator.machine.topology import OVERHEAD_MIB, Topology, available_mib

AUTO = "auto"


@dataclass(frozen=True)
class Admission:
    """How many guests run at once.

    Args:
        reason: one clause that says why not more.
    """

    guests: int
    reason: str


def parse_jobs(text: str) -> int | None:
    """The number that ``--jobs`` gives; None for ``auto``.

    Raises:
        UserError: it is neither.
    """
    if text == AUTO:
        return None
    if text.isdecimal() and 0 < int(text) < 10_000:
        return int(text)
    raise UserError(f"--jobs {text}: write a number of guests from 1 on, or auto.")


def admit(
    jobs: int | None,
    topology: Topology,
    accelerator: Accelerator,
    cells: int,
    cpus: int | None = None,
    memory_mib: int | None = None,
) -> Admission:
    """Decide how many guests of `topology` run at once.

    Args:
        jobs: as :func:`parse_jobs` returns it.
        cells: how many there are to be measured.
        cpus, memory_mib: of the host, in CPUs and MiB available; asked of it where None.

    Raises:
        UserError: not even one fits into the host's memory, or not as many as were asked for.
    """
    memory = available_mib() if memory_mib is None else memory_mib
    if jobs is not None:
        topology.check_host(jobs, memory)
        return Admission(jobs, "as asked for")
    topology.check_host(1, memory)
    cpus = cpus or os.cpu_count() or 1
    if accelerator.name == "icount":
        # One host thread executes all processors of a guest, and its clock does not depend on the host's.
        by_cpu, why = cpus, f"one per CPU of {cpus}"
    elif accelerator.clock == "ns" and accelerator.name == "kvm":
        by_cpu, why = 1, "guests side by side would disturb each other's times"
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
