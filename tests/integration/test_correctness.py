# SPDX-License-Identifier: GPL-2.0-only
"""The short form of the tests of correctness, on the kernel that figures are taken with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from plant import AFTER, plant

from orchestrator.execution.bench import Bench
from orchestrator.execution.correctness.suite import RESERVATIONS
from orchestrator.guest.ktap import Status, parse_ktap
from orchestrator.kernel.build import KernelBuild
from orchestrator.machine.topology import Topology


@pytest.mark.parametrize("fault", AFTER)
def test_a_planted_fault_fits_the_series(bench: Bench, fault: str, tmp_path: Path) -> None:
    """A series that has moved on leaves faults behind, and with them whatever they show of the tests."""
    number = plant(fault, tmp_path / "series")
    planted = replace(bench, series_directory=tmp_path / "series")
    assert planted.tree("full").stages[number - 1].name == fault


def test_no_quick_test_of_reservations_fails(bench: Bench, full_kernel: KernelBuild, tmp_path: Path) -> None:
    stages = ",".join(stage.name for stage in bench.series.select("full"))
    with bench.boot(
        full_kernel,
        Topology.parse("2x512M"),
        log_directory=tmp_path / "logs",
        cmdline=["transparent_hugepage=madvise"],
        layers=["correctness"],
    ) as booted:
        done = booted.guest.run(
            [RESERVATIONS, "--quick", "--prefill", "--stages", stages, "--timeout", "60"], timeout_s=200
        )
        findings = booted.machine.findings()
    results, fault = parse_ktap(done.stdout.splitlines())
    assert [result for result in results if result.status is Status.FAILED] == []
    assert (fault, done.status, findings) == ("", 0, [])
    passed = {result.name for result in results if result.status is Status.PASSED}
    assert {"zeroed_pages", "same_page_threads", "unmap_remap", "promote_random", "memcg_fold"} <= passed
    assert len(passed) >= 25
