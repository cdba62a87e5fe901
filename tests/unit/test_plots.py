# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from synthetic_run import METRICS, VARIANTS, Synthetic

from orchestrator.analysis.plots import plot_run, plots_of
from orchestrator.store.outcome import Outcome

SMALL = Synthetic(repeat=2)
EXPECTED = [
    "survivors",
    "memory",
    "fault-latency",
    "counters-chunk",
    "counters-fault_latency",
    "reserved-pages",
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    results = tmp_path_factory.mktemp("results")
    return plot_run(SMALL.write(results), results / "plots")


def test_every_plot_is_there_as_png_and_svg(drawn: list[Path]) -> None:
    assert [path.name for path in drawn] == [
        f"{name}.{ending}" for name in EXPECTED for ending in ("png", "svg")
    ]
    assert not (drawn[0].parent / "absent.txt").exists()


def test_pngs_are_wide_enough_and_not_empty(drawn: list[Path]) -> None:
    for path in drawn:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width == 1500
                shades = sum(count > 0 for count in image.convert("L").histogram())
            assert shades > 20


def test_svgs_are_well_formed_and_named(drawn: list[Path]) -> None:
    for path in drawn:
        if path.suffix == ".svg":
            root = ElementTree.parse(path).getroot()
            assert root.tag.endswith("svg")
            titles = [element.text for element in root.iter() if element.tag.endswith("title")]
            assert titles
            assert titles[0]


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    variants = {"baseline": "baseline", "core-only@256": "patched"}
    run = replace(SMALL, repeat=1, workloads=("fault_latency",), variants=variants).write(tmp_path)
    first = plot_run(run, tmp_path / "first")
    second = plot_run(run, tmp_path / "second")
    assert first
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_an_empty_run_says_why_there_are_no_plots(tmp_path: Path) -> None:
    cells = [entry.cell for entry in SMALL.manifest().cells]
    run = replace(SMALL, failures=dict.fromkeys(cells, (Outcome.LOST, ""))).write(tmp_path)
    assert plot_run(run, tmp_path / "plots") == []
    absent = (tmp_path / "plots" / "absent.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in absent] == [
        "survivors",
        "memory",
        "fault-latency",
        "counters",
        "reserved-pages",
    ]
    assert all(len(line.partition(": ")[2]) > 10 for line in absent)


def test_a_plot_of_before_is_removed_when_its_data_is_gone(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "survivors.png").write_bytes(b"old")
    run = replace(SMALL, repeat=1, workloads=("fault_latency",), samples=False, histograms=False).write(
        tmp_path
    )
    assert plot_run(run, tmp_path / "plots") == []
    assert not (tmp_path / "plots" / "survivors.png").exists()


def test_reservations_are_not_drawn_for_a_kernel_without_them(tmp_path: Path) -> None:
    variants = {"baseline": "baseline", "baseline-control": "control"}
    run = replace(SMALL, repeat=1, variants=variants, histograms=False).write(tmp_path)
    names = {path.stem for path in plot_run(run, tmp_path / "plots")}
    assert "survivors" in names
    assert "reserved-pages" not in names
    assert "thp_res_" in (tmp_path / "plots" / "absent.txt").read_text()


def test_lines_that_are_no_histogram_are_passed_over(tmp_path: Path) -> None:
    run = replace(SMALL, repeat=1, workloads=("fault_latency",), samples=False, histograms=False).write(
        tmp_path
    )
    log = run.log_directory("baseline.fault_latency.1")
    log.mkdir(parents=True)
    good = {"histogram": "first", "unit": "insns", "buckets": [[0, 100, 1], [200, 400, 3]]}
    lines = [
        "",
        "[1]",
        '{"metric": "x"}',
        '{"histogram": "half',
        json.dumps({"histogram": "h"}),
        json.dumps(good),
    ]
    (log / "workload.jsonl").write_text("\n".join(lines))
    assert [path.name for path in plot_run(run, tmp_path / "plots")] == [
        "fault-latency.png",
        "fault-latency.svg",
    ]


def test_many_variants_are_spread_over_several_figures(tmp_path: Path) -> None:
    variants = {**VARIANTS, **{f"core-only@{2**power}": "patched" for power in range(1, 8)}}
    run = replace(SMALL, repeat=1, variants=variants, workloads=("chunk",), histograms=False).write(tmp_path)
    names = {plot.name for plot in plots_of(run) if plot.figure is not None}
    assert {"memory", "memory-2", "memory-3"} <= names


def test_a_counter_that_two_files_print_is_drawn_once(tmp_path: Path) -> None:
    plain = replace(SMALL, repeat=1, workloads=("chunk",), histograms=False)
    heights = []
    for synthetic in (plain, replace(plain, zoneinfo=True)):
        plot = next(plot for plot in plots_of(synthetic.write(tmp_path)) if plot.name == "memory")
        assert plot.figure is not None
        machine = next(axis for axis in plot.figure.axes if axis.get_title(loc="left") == "core-only@256")
        line = next(line for line in machine.get_lines() if line.get_label() == "reserved")
        heights.append(float(np.max(np.asarray(line.get_ydata(), dtype=float))))
    assert heights[0] > 1000
    assert heights[0] == heights[1]


def test_counters_that_contradict_each_other_are_drawn_as_such(tmp_path: Path) -> None:
    counters = {"core-only@256.chunk.1": {"thp_res_mapped": 1}}
    run = replace(SMALL, repeat=1, workloads=("chunk",), counters=counters, histograms=False).write(tmp_path)
    plot = next(plot for plot in plots_of(run) if plot.name == "reserved-pages")
    assert plot.figure is not None
    assert "counters broken" in plot.figure.axes[0].get_title(loc="left")


def test_a_sweep_is_a_panel_for_each_primary_metric(tmp_path: Path) -> None:
    variants = {"baseline": "baseline", **{f"core-only@{value}": "patched" for value in (512, 1, 64)}}
    run = replace(SMALL, repeat=3, variants=variants, samples=False, histograms=False).write(tmp_path)
    (plot,) = [plot for plot in plots_of(run) if plot.name.startswith("sweep")]
    assert plot.name == "sweep-core-only-promotion_threshold"
    assert plot.figure is not None
    shown = [axis for axis in plot.figure.axes if axis.get_visible()]
    # One that is zero everywhere has no panel.
    primary = sum(facts[2] and facts[3] != 0 for metrics in METRICS.values() for facts in metrics.values())
    assert len(shown) == primary
    assert [label.get_text() for label in shown[0].get_xticklabels()] == ["1", "64", "512"]


def test_two_values_are_no_sweep(tmp_path: Path) -> None:
    run = replace(SMALL, samples=False, histograms=False).write(tmp_path)
    assert not [plot for plot in plots_of(run) if plot.name.startswith("sweep")]


def test_what_happened_is_marked_in_memory_over_time(tmp_path: Path) -> None:
    run = replace(SMALL, repeat=1, workloads=("chunk",), histograms=False).write(tmp_path)
    cell = "core-only@256.chunk.1"
    times = run.samples_of(cells=[cell], phases=("during",))["guest_s"]
    middle = (float(times.min()) + float(times.max())) / 2
    log = run.log_directory(cell)
    log.mkdir(parents=True, exist_ok=True)
    often = [{"event": "child", "monotonic_ns": middle * 1e9}] * 9
    rare = [{"event": "out_of_memory", "monotonic_ns": middle * 1e9}, {"event": "old", "monotonic_ns": 0}]
    (log / "workload.jsonl").write_text("\n".join(json.dumps(each) for each in [*often, *rare]))
    (plot,) = [plot for plot in plots_of(run) if plot.name == "memory"]
    assert plot.figure is not None
    written = [text.get_text() for axis in plot.figure.axes for text in axis.texts]
    assert "out of memory" in written and "child" not in written and "old" not in written
