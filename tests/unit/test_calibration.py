# SPDX-License-Identifier: GPL-2.0-only
"""Instructions beside a processor: the arithmetic, what is kept, and hosts that cannot be calibrated."""

from __future__ import annotations

import json
import math
import platform
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from guest_data import FAULT_LATENCY, ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from records import manifest
from synthetic_run import Synthetic

from orchestrator.analysis.calibration import DENSITIES, Calibration, Costs, Spread, calibration_line
from orchestrator.analysis.comparison import compare, compare_runs
from orchestrator.analysis.plots.calibration import draw_calibration
from orchestrator.analysis.table import to_text
from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError
from orchestrator.events import Events
from orchestrator.execution import calibration
from orchestrator.execution.bench import Bench
from orchestrator.execution.calibration import calibrate, last_calibration
from orchestrator.execution.provenance import calibration_record
from orchestrator.guest.workload import load_workloads
from orchestrator.project import Project
from orchestrator.store.manifest import AcceleratorRecord, CalibrationRecord


def costs(unit: str, base: float, huge: float) -> Costs:
    """Each base fault costs the same, and so does each huge page; the 10th percentile is half the median."""
    return Costs(
        unit,
        {pages: Spread(base * pages / 2, base * pages) for pages in DENSITIES},
        {pages: Spread(huge / 2, huge) for pages in DENSITIES},
    )


CALIBRATION = Calibration(
    measured_utc="2026-01-02T03:04:05+00:00",
    cpu="Made-up CPU",
    load=(1.0, 2.0),
    rounds=3,
    processor=costs("ns", 800, 64_000),
    guest=costs("insns", 3000, 300_000),
    guest_cpu="max,-erms",
    qemu="7.2.22",
    kernel="6.12.117",
    host_kernel="6.1.0",
)


def test_the_ratios() -> None:
    assert CALIBRATION.processor.base_fault == Spread(400, 800)
    assert CALIBRATION.processor.faults_per_huge_fault == Spread(80, 80)
    assert CALIBRATION.guest.base_over_huge(512).p50 == pytest.approx(5.12)
    assert (
        "one huge fault costs 80 base faults on the host's processor (Made-up CPU) and 100 in"
        in CALIBRATION.sentence
    )


@given(st.floats(17, 511))
def test_the_break_even_lies_where_the_costs_are_equal(pages: float) -> None:
    assert costs("ns", 1, pages).break_even.p50 == pytest.approx(pages)


@pytest.mark.parametrize("huge", [0.5, 1000.0])
def test_where_one_side_is_always_cheaper_there_is_no_break_even(huge: float) -> None:
    assert math.isnan(costs("ns", 1, huge).break_even.p50)
    assert "at no number of touched pages" in replace(CALIBRATION, processor=costs("ns", 1, huge)).sentence


def test_it_survives_json() -> None:
    assert Calibration.of_json(CALIBRATION.to_json()) == CALIBRATION
    for broken in ("", "[]", "{}", '{"load": 1}'):
        with pytest.raises(ValueError):
            Calibration.of_json(broken)


def test_a_run_by_instructions_says_what_the_processor_says() -> None:
    calibrated = manifest(calibration=CalibrationRecord(sentence="calibrated", cpu="a CPU"))
    assert calibration_line(calibrated) == "calibrated"
    assert "orchestrate calibrate" in calibration_line(manifest())
    real_time = AcceleratorRecord(name="kvm", clock="ns", reason="")
    assert calibration_line(replace(calibrated, accelerator=real_time)) == ""


def test_the_table_says_what_the_processor_says(tmp_path: Path) -> None:
    small = Synthetic(repeat=2, workloads=("fault_latency",))
    record = CalibrationRecord(
        sentence=CALIBRATION.sentence, cpu=CALIBRATION.cpu, measured=asdict(CALIBRATION)
    )
    run = replace(small, changes={"calibration": record}).write(tmp_path, "calibrated")
    assert CALIBRATION.sentence in " ".join(to_text(compare(run)).split())
    assert "the host of the run was not calibrated" in to_text(
        compare(small.write(tmp_path, "not")), width=200
    )
    changes = {"calibration": replace(record, cpu="Another CPU")}
    other = replace(small, changes=changes).write(tmp_path, "other")
    caution, refusal = compare_runs(run, other).cautions
    assert "processors that the runs were calibrated on differ: Made-up CPU in" in caution
    assert "Another CPU in" in caution
    assert refusal.startswith("NO VERDICT")


@pytest.mark.parametrize("processor", [CALIBRATION.processor, costs("ns", 1, 1e6), costs("ns", 1e6, 1)])
def test_the_plot_holds_whatever_is_measured(processor: Costs, tmp_path: Path) -> None:
    png, svg = draw_calibration(replace(CALIBRATION, processor=processor), tmp_path / "plot")
    assert Image.open(png).size[0] >= 800 and svg.stat().st_size


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench whose guest answers at once, and a host with huge pages."""
    enabled = tmp_path / "enabled"
    enabled.write_text("always [madvise] never\n")
    monkeypatch.setattr(calibration, "_THP", enabled)
    monkeypatch.setattr(calibration, "_in_guest", lambda bench: CALIBRATION.guest)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    stub = SimpleNamespace(
        cache=Cache(tmp_path / "cache"),
        events=Events(),
        project=Project(ROOT),
        workloads=load_workloads(ROOT / "guest_workloads"),
        accelerator=SimpleNamespace(cpu="max,-erms", qemu="7.2.22"),
        source_tree=SimpleNamespace(version="6.12.117"),
    )
    return cast("Bench", stub)


class Native:
    """The native program, played: its output is a guest's, by another clock."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, huge_kib: int = 8192, end: str = '{"end": "ok"}'
    ) -> None:
        self.advice: list[str] = []
        self.huge_kib, self.end = huge_kib, end
        monkeypatch.setattr(calibration, "run", self.run)
        monkeypatch.setattr(calibration, "compile_workload", lambda *_: None)

    def run(self, argv: list[str], **_: Any) -> SimpleNamespace:
        self.advice.append(argv[argv.index("--advice") + 1])
        lines = []
        for line in FAULT_LATENCY.replace("insns", "ns").splitlines()[:-1]:
            record = json.loads(line)
            if record.get("metric") == "anon_huge_kib.max":
                record["value"] = self.huge_kib
            if record.get("metric") != "touch_without_zeroing_ns.mean":
                lines.append(json.dumps(record))
            if str(record.get("metric")).startswith("region_"):
                tenth = {"metric": record["metric"].replace("p50", "p10"), "value": record["value"] * 0.5}
                lines.append(json.dumps({**record, **tenth}))
        return SimpleNamespace(stdout="\n".join([*lines, self.end]) + "\n", returncode=0)


def test_base_and_huge_pages_are_measured_in_turn_and_the_first_round_does_not_count(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = Native(monkeypatch)
    found, _ = calibrate(bench, rounds=2)
    assert native.advice == ["nohugepage", "hugepage"] * 3
    assert found.rounds == 2 and found.processor.unit == "ns"
    recorded = {r["metric"]: r["value"] for r in map(json.loads, FAULT_LATENCY.splitlines()) if "metric" in r}
    median = recorded["region_64_insns.p50"]
    assert found.processor.base[64] == Spread(median * 0.5, median)


def test_the_answer_is_kept_until_it_is_asked_for_again_or_qemu_is_another(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = Native(monkeypatch)
    assert last_calibration(bench.cache) is None and calibration_record(bench.cache) is None
    first, directory = calibrate(bench, rounds=1)
    assert last_calibration(bench.cache) == first
    facts = calibration_record(bench.cache)
    assert facts is not None and facts.sentence == first.sentence
    assert calibrate(bench, rounds=1) == (first, directory) and len(native.advice) == 4
    calibrate(bench, rounds=2, again=True)
    assert len(native.advice) == 10
    kept = last_calibration(bench.cache)
    assert kept is not None and kept.rounds == 2
    bench.accelerator.qemu = "10.0.1"  # type: ignore[misc]
    calibrate(bench, rounds=1)
    kept = last_calibration(bench.cache)
    assert kept is not None and kept.qemu == "10.0.1"


def test_a_damaged_answer_is_measured_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    Native(monkeypatch)
    first, directory = calibrate(bench, rounds=1)
    (directory / "answer.json").write_text('{"load": [')
    assert last_calibration(bench.cache) is None
    assert calibrate(bench, rounds=1)[0].processor == first.processor


@pytest.mark.parametrize(
    ("enabled", "said"),
    [(None, "has no transparent huge pages"), ("always madvise [never]\n", "echo madvise > ")],
)
def test_a_host_without_huge_pages_says_so_in_one_sentence(
    bench: Bench, enabled: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = Native(monkeypatch)
    if enabled is None:
        calibration._THP.unlink()
    else:
        calibration._THP.write_text(enabled)
    with pytest.raises(InfrastructureError, match=said) as caught:
        calibrate(bench)
    assert "\n" not in str(caught.value) and not native.advice


def test_other_hosts_that_cannot_be_calibrated(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    Native(monkeypatch, huge_kib=0)
    with pytest.raises(InfrastructureError, match="this host mapped only 0 of 8192 KiB with huge pages"):
        calibrate(bench)
    Native(monkeypatch, end='{"end": "error", "reason": "cannot map 16 regions"}')
    with pytest.raises(InfrastructureError, match="fault_latency on this host: cannot map 16 regions"):
        calibrate(bench)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=7 << 20))
    with pytest.raises(InfrastructureError, match="has 7 MiB of memory available"):
        calibrate(bench)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(InfrastructureError, match="this host is aarch64"):
        calibrate(bench)
    assert last_calibration(bench.cache) is None
