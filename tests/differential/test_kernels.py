# SPDX-License-Identifier: GPL-2.0-only
"""Real kernels against the reference model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.execution.bench import Bench
from orchestrator.execution.check.differential import Checked, TraceGuest, check_traces
from orchestrator.execution.check.reference import model_of
from orchestrator.execution.check.request import load_trace
from orchestrator.kernel.build import KernelBuild
from orchestrator.kernel.trait import traits_of
from orchestrator.machine.topology import Topology
from orchestrator.model.generator import PROFILES, generate
from orchestrator.model.trace import Trace, parse

REGRESSIONS = sorted(Path(__file__).parent.glob("*.trace"))


def check(
    bench: Bench, kernel: KernelBuild, patchset: str, traces: Sequence[Trace], logs: Path
) -> list[Checked]:
    topology = Topology.parse("2x512M/1")
    with TraceGuest(bench, kernel, topology, logs) as guest:
        return check_traces(
            guest, traces, model_of(patchset, bench.series, topology, traits_of(bench.tree(patchset)))
        )


@pytest.mark.parametrize("patchset", ["baseline", "core-only", "full"])
def test_a_kernel_is_as_its_model(bench: Bench, patchset: str, tmp_path: Path) -> None:
    names = [stage.name for stage in bench.series.select(patchset)]
    traces = [generate(1, 200, profile, names, nodes=2) for profile in PROFILES]
    regressions = [load_trace(path) for path in REGRESSIONS]
    checked = check(bench, bench.kernel(patchset), patchset, [*traces, *regressions], tmp_path)
    assert [str(each.divergence) for each in checked if each.divergence] == []
    assert {each.comparison.steps for each in checked[: len(traces)]} == {200}


def test_a_kernel_differs_from_the_model_of_another(
    bench: Bench, baseline_kernel: KernelBuild, tmp_path: Path
) -> None:
    trace = parse(
        "trace 1\nset promotion_threshold 256\nset enabled always\np0 map 0:0 512\np0 write 0:7 1 1\n"
    )
    # Without the series there are no counters of it, at the first step already.
    (checked,) = check(bench, baseline_kernel, "core-only", [trace], tmp_path / "without")
    assert checked.divergence is not None
    assert checked.divergence.step == 0
    assert "vmstat.nr_thp_reserved" in {each.field for each in checked.divergence.differences}
    # With it, the first write reserves instead of mapping a huge page.
    (checked,) = check(bench, bench.kernel("core-only"), "baseline", [trace], tmp_path / "with")
    assert checked.divergence is not None
    assert checked.divergence.step == 1
    assert {"p0.blocks.0.huge", "p0.blocks.0.present"} <= {
        each.field for each in checked.divergence.differences
    }
    (checked,) = check(bench, baseline_kernel, "baseline", [trace], tmp_path / "its-own")
    assert checked.divergence is None


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_a_regression_says_what_it_is_for(path: Path) -> None:
    trace = load_trace(path)
    assert trace.comments and trace.operations
