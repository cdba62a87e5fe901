# SPDX-License-Identifier: GPL-2.0-only
"""How many guests run side by side: what the accelerator, the CPUs and the memory allow."""

from __future__ import annotations

import pytest

from orchestrator.errors import UserError
from orchestrator.execution.admission import admit, parse_jobs
from orchestrator.machine.accelerator import Accelerator, Name
from orchestrator.machine.topology import Topology

PLENTY = 1 << 20


@pytest.mark.parametrize(
    ("accelerator", "cpus", "memory_mib", "cells", "guests", "reason"),
    [
        ("icount", 8, PLENTY, 40, 8, "one per CPU of 8"),
        ("icount", 8, 6000, 40, 2, "6000 MiB of memory are available"),
        ("icount", 8, PLENTY, 3, 3, "no more cells"),
        ("tcg", 8, PLENTY, 40, 2, "4 of 8 CPUs each"),
        ("tcg", 2, PLENTY, 40, 1, "4 of 2 CPUs each"),
        ("kvm", 64, PLENTY, 40, 1, "would disturb each other's times"),
    ],
)
def test_auto_takes_what_disturbs_no_measurement(
    accelerator: Name, cpus: int, memory_mib: int, cells: int, guests: int, reason: str
) -> None:
    found = admit(None, Topology.parse("2x1G/2"), Accelerator.named(accelerator, ""), cells, cpus, memory_mib)
    assert found.guests == guests and reason in found.reason


def test_a_number_is_taken_as_it_is() -> None:
    found = admit(5, Topology.parse("2x1G/2"), Accelerator.named("kvm", ""), 40, 2, PLENTY)
    assert found.guests == 5


@pytest.mark.parametrize("jobs", [None, 1])
def test_what_does_not_fit_into_memory_is_refused(jobs: int | None) -> None:
    with pytest.raises(UserError, match="this host has 100 MiB"):
        admit(jobs, Topology.parse("2x1G/2"), Accelerator.named("icount", ""), 4, 2, 100)


def test_jobs_is_a_number_or_auto() -> None:
    assert parse_jobs("auto") is None and parse_jobs("3") == 3
    for wrong in ("0", "-1", "many", "1.5", ""):
        with pytest.raises(UserError, match="or auto"):
            parse_jobs(wrong)
