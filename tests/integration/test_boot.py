# SPDX-License-Identifier: GPL-2.0-only
"""What a boot to SSH costs, and that the shortcuts reach the kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from orchestrator.cache import Cache
from orchestrator.events import Events
from orchestrator.execution.bench import Bench
from orchestrator.kernel.build import KernelBuild
from orchestrator.machine.topology import Topology
from orchestrator.project import Project

Record = Callable[[str, object], None]


@pytest.mark.parametrize(("accelerator", "limit_s"), [("icount", 5.0), ("tcg", 5.0)])
def test_a_boot_measures_nothing_that_is_known(
    project: Project,
    cache: Cache,
    baseline_kernel: KernelBuild,
    tmp_path: Path,
    accelerator: str,
    limit_s: float,
    record_testsuite_property: Record,
) -> None:
    bench = Bench(project, cache, Events(), accelerator_request=accelerator)
    with bench.boot(
        baseline_kernel, Topology.parse("2x512M"), log_directory=tmp_path, cmdline=["apic=verbose"]
    ) as booted:
        times = psutil.Process(booted.machine.pid).cpu_times()
        said = booted.machine.console.text()
        assert booted.findings() == []
    assert "lapic timer already calibrated 4000000" in said
    assert ("preset value" in said) == (accelerator == "icount"), "the TSC of tcg is that of the host"
    assert str(baseline_kernel.vmlinux) in booted.machine.argv, "it is not decompressed"
    # CPU time, as wall time depends on what else the host does. Two CPUs share the work with tcg.
    cpu_s = times.user + times.system
    record_testsuite_property(f"boot_cpu_s.{accelerator}", round(cpu_s, 2))
    assert cpu_s <= limit_s
