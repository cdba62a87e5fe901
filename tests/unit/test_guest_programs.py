# SPDX-License-Identifier: GPL-2.0-only
"""The guest's programs on this host: they take what their manifests say, and report what those declare."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from guest_data import ROOT

from orchestrator.guest.workload import Workload, load_workloads, observations_of, parse_output

WORKLOADS = {
    name: workload
    for name, workload in load_workloads(ROOT / "guest_workloads").items()
    if workload.command is None
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    directory = tmp_path_factory.mktemp("programs")
    common = ROOT / "guest_workloads" / "common"
    compiler = ["gcc", "-std=gnu11", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror", f"-I{common}"]
    # Their common part is compiled once, not once per program.
    subprocess.run([*compiler, "-c", *map(str, common.glob("*.c"))], cwd=directory, check=True)
    objects = [str(path) for path in directory.glob("*.o")]
    compiled = {}
    for name in WORKLOADS:
        sources = [str(path) for path in (ROOT / "guest_workloads" / name).glob("*.c")]
        compiled[name] = directory / name
        subprocess.run([*compiler, *sources, *objects, "-lm", "-o", str(compiled[name])], check=True)
    return compiled


def arguments(workload: Workload, clock: str = "ns", **given: str) -> list[str]:
    values = {name: p.default for name, p in workload.parameters.items()} | given
    options = {"seed": "1", "clock": clock, **values}
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def run(program: Path, argv: list[str]) -> tuple[list[dict[str, object]], str | None, int]:
    done = subprocess.run([program, *argv], capture_output=True, text=True, check=False, timeout=60)
    return *parse_output(done.stdout), done.returncode


FAULT_LATENCY = WORKLOADS["fault_latency"]
SMALL = {"regions": "8", "pages_per_region": "16", "sweep_regions": "2", "dense_regions": "2"}
#: Left out where the clock is time.
INSTRUCTIONS_ONLY = {"touch_without_zeroing_insns.mean"}
#: What depends on the kernel: whether it has reservations, and whether anything became huge or khugepaged did it.
OF_THE_KERNEL = {
    "reserved_kib.max",
    "huge_in_place.percent",
    "huge_after_ns.p50",
    "promotion_ns.mean",
    "reserved_pages.total",
}


@pytest.fixture
def khugepaged_barrier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest's program that waits for khugepaged: on a host nobody waits."""
    barrier = tmp_path / "khugepaged-barrier"
    barrier.write_text("#!/bin/sh\necho 2\n")
    barrier.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.usefixtures("khugepaged_barrier")
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"order": "sequential"},
        {"threads": "3"},
        {"threads": "3", "share": "region"},
        {"pages_per_region": "1"},
    ],
)
def test_fault_latency_reports_every_metric_it_declares(
    programs: Mapping[str, Path], given: dict[str, str]
) -> None:
    records, fault, status = run(
        programs["fault_latency"], arguments(FAULT_LATENCY, advice="nohugepage", **{**SMALL, **given})
    )
    assert (fault, status) == (None, 0)
    observed = {o.metric: o.value for o in observations_of(records, FAULT_LATENCY, "ns")}
    declared = {name.replace("{clock}", "ns") for name in FAULT_LATENCY.metrics}
    assert set(observed) | OF_THE_KERNEL == (declared - INSTRUCTIONS_ONLY) | OF_THE_KERNEL
    touches = 8 * int(given.get("pages_per_region", "16"))
    assert observed["touched_kib.sum"] == 4 * touches
    # Without huge pages each touch of a page is a fault.
    assert observed["faults.total"] >= touches
    assert 0 < observed["fault_ns.p50"] <= observed["fault_ns.p90"] <= observed["fault_ns.max"]
    # Each fault zeroes a page. More where another process of this host faults in huge pages meanwhile.
    assert observed["zeroed_kib.sum"] >= 4 * touches
    assert 0 < observed["region_1_ns.p10"] < observed["region_64_ns.p10"] < observed["region_512_ns.p10"]


def test_the_sweep_and_the_dense_regions_can_be_left_out(programs: Mapping[str, Path]) -> None:
    given = {**SMALL, "sweep_regions": "0", "dense_regions": "0"}
    records, fault, status = run(programs["fault_latency"], arguments(FAULT_LATENCY, **given))
    assert (fault, status) == (None, 0)
    assert not [
        record for record in records if str(record.get("metric", "")).startswith(("region_", "huge_"))
    ]


def test_touch_reports_and_checks(programs: Mapping[str, Path]) -> None:
    workload = WORKLOADS["touch"]
    records, fault, status = run(programs["touch"], arguments(workload, memory=str(8 << 20)))
    assert (fault, status) == (None, 0)
    observed = {o.metric: o.value for o in observations_of(records, workload, "ns")}
    assert observed["touched_kib.sum"] == 4 * 64 * 4
    assert observed["rss_kib.max"] >= 4 * 64 * 4


#: What has no fault of its own on a host: the rest needs a guest's devices or all of its memory.
HOST_WORKLOADS = ("churn", "fork_load", "mremap_storm", "promote", "sparse", "threads", "touch", "usemem")


@pytest.mark.usefixtures("khugepaged_barrier")
@pytest.mark.parametrize("name", HOST_WORKLOADS)
def test_a_quick_workload_reports_what_it_declares(programs: Mapping[str, Path], name: str) -> None:
    workload = WORKLOADS[name]
    records, fault, status = run(programs[name], arguments(workload, **workload.quick))
    assert (fault, status) == (None, 0), records[-1]
    observed = {o.metric: o.value for o in observations_of(records, workload, "ns")}
    declared = {m.replace("{clock}", "ns") for m in workload.metrics}
    assert set(observed) | OF_THE_KERNEL == declared | OF_THE_KERNEL
    timed = [value for metric, value in observed.items() if "_ns." in metric]
    assert all(value > 0 for value in timed)


@pytest.mark.usefixtures("khugepaged_barrier")
@pytest.mark.parametrize("name", ["promote", "fault_latency"])
def test_ranges_that_are_huge_by_the_end_are_followed_over_the_cost(
    programs: Mapping[str, Path], name: str
) -> None:
    workload = WORKLOADS[name]
    records, fault, _ = run(programs[name], arguments(workload, advice="hugepage", **workload.quick))
    assert fault is None
    steps = [record for record in records if record.get("event") == "huge_ranges"]
    counts, costs = ([float(str(step[key])) for step in steps] for key in ("huge", "ns"))
    assert counts[0] == costs[0] == 0
    assert counts == sorted(counts) and costs == sorted(costs)
    for step in steps:
        assert step["huge"] == sum(int(str(step[way])) for way in ("at_fault", "in_place", "by_copy"))


def test_a_workload_says_that_khugepaged_did_not_get_round(
    programs: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    workload = WORKLOADS["promote"]
    records, fault, status = run(programs["promote"], arguments(workload, **workload.quick))
    assert (fault, status) == (None, 1)
    assert records[-1]["reason"] == "khugepaged did not finish its scans, or does not run"


def test_fault_ranges_in_fragmented_memory(programs: Mapping[str, Path]) -> None:
    workload = WORKLOADS["thpscale"]
    given = {**workload.quick, "fragment_percent": "0"}  # not on a host that others use
    records, fault, status = run(programs["thpscale"], arguments(workload, **given))
    assert (fault, status) == (None, 0), records[-1]
    observed = {o.metric: o.value for o in observations_of(records, workload, "ns")}
    either = {"huge_fault_ns.mean", "base_fault_ns.mean"}
    declared = {m.replace("{clock}", "ns") for m in workload.metrics}
    assert set(observed) | either == declared and set(observed) & either
    assert 0 < observed["first_ns.p50"] <= observed["first_ns.p95"] <= observed["first_ns.max"]
    assert observed["fill_ns.mean"] > observed["first_ns.p50"]


def test_every_workload_has_a_quick_size() -> None:
    assert [name for name, workload in WORKLOADS.items() if not workload.quick] == []


def test_the_clock_of_instructions_is_refused_where_the_processor_does_not_count_them(
    programs: Mapping[str, Path],
) -> None:
    records, fault, status = run(programs["fault_latency"], arguments(FAULT_LATENCY, "insns", **SMALL))
    assert fault is None and status == 1
    assert records[-1]["end"] == "error" and "icount" in str(records[-1]["reason"])


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("extra", [["--surprise", "1"], ["surprise"], ["--seed"]])
def test_an_option_nobody_declared_is_an_error(
    programs: Mapping[str, Path], name: str, extra: list[str]
) -> None:
    records, fault, status = run(programs[name], [*arguments(WORKLOADS[name]), *extra])
    assert fault is None and status == 1 and records[-1]["end"] == "error"


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_parameter_that_is_missing_is_an_error(programs: Mapping[str, Path], name: str) -> None:
    for parameter in WORKLOADS[name].parameters:
        argv = arguments(WORKLOADS[name])
        at = argv.index(f"--{parameter}")
        records, fault, status = run(programs[name], argv[:at] + argv[at + 2 :])
        assert fault is None and status == 1
        assert records[-1]["reason"] == f"the option --{parameter} is missing"
