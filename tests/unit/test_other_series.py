# SPDX-License-Identifier: GPL-2.0-only
"""A second series brings its own knobs, counter identities and metrics; none of them stands in the code."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from guest_data import ROOT
from records import manifest
from synthetic_run import Synthetic

from orchestrator.analysis.comparison import compare
from orchestrator.analysis.identity import parse_identity
from orchestrator.analysis.invariants import check_counters
from orchestrator.errors import UserError
from orchestrator.execution.derived import DERIVED_METRICS, derived_metrics, observations_from_counters
from orchestrator.experiment.variant import variants_of
from orchestrator.guest.workload import load_workloads
from orchestrator.kernel.series import Series, load_series
from orchestrator.store.manifest import SeriesRecord
from orchestrator.store.observation import Sample

DIRECTORY = Path(__file__).parent / "data" / "series"
EQUATION = "colour_alloc - colour_free == nr_coloured"


@pytest.fixture
def series() -> Series:
    return load_series(DIRECTORY)


def test_patched_kernels_run_at_the_sweep_of_each_knob_that_has_one(series: Series) -> None:
    variants = variants_of(["core"], "baseline", {}, (), series)
    assert [(each.name, dict(each.knobs)) for each in variants] == [
        ("baseline", {}),
        ("baseline-control", {}),
        ("core@colours=0", {"colours": "0"}),
        ("core@colours=4", {"colours": "4"}),
        ("core@colours=16", {"colours": "16"}),
    ]


def test_a_labelled_knob_is_always_in_the_name_and_another_where_variants_differ(series: Series) -> None:
    def names(**settings: tuple[str, ...]) -> list[str]:
        return [each.name for each in variants_of(["core"], "baseline", settings, (), series)[2:]]

    assert names(colours=("4",)) == ["core@colours=4"]
    assert names(colours=("4",), seed=("1",)) == ["core@colours=4"]
    assert names(colours=("4",), seed=("1", "2")) == ["core@colours=4,seed=1", "core@colours=4,seed=2"]


def samples(phase: str, at: float, **counters: int) -> list[Sample]:
    return [Sample(at, at, phase, "vmstat", None, name, value) for name, value in counters.items()]  # type: ignore[arg-type]


def test_metrics_come_from_its_counters(series: Series) -> None:
    read = [
        *samples("before", 0, nr_coloured=2, colour_alloc=10, colour_free=8, thp_collapse_alloc=1),
        *samples("during", 1, nr_coloured=30, colour_alloc=40, colour_free=10, thp_collapse_alloc=1),
        *samples("after", 2, nr_coloured=5, colour_alloc=50, colour_free=45, thp_collapse_alloc=4),
    ]
    observed = {
        each.metric: (each.value, each.unit) for each in observations_from_counters(read, series.metrics)
    }
    assert observed == {
        "promotions.total": (43, "ranges"),
        "collapses_by_copy.total": (3, "ranges"),
        "coloured_kib.max": (120, "KiB"),
        "colourings.total": (77, "pages"),
        "coloured_pages.left": (3, "pages"),
    }
    without = observations_from_counters(
        samples("before", 0, pgfault=1) + samples("after", 2, pgfault=2), series.metrics
    )
    assert without == [], "a kernel without the counters has none of these metrics"


def test_metrics_are_described_like_all_others(series: Series) -> None:
    metrics = derived_metrics(series)
    assert (metrics["colourings.total"].better, metrics["colourings.total"].primary) == ("higher", True)
    assert metrics["promotions.total"].help == "ranges made huge, coloured ones included"
    assert list(metrics)[: len(DERIVED_METRICS)] == list(DERIVED_METRICS)


def test_its_identities_are_checked(tmp_path: Path, series: Series) -> None:
    record = SeriesRecord(
        name=series.name, title=series.title, base="1.0", identities=series.identities, levels=series.levels
    )
    right = {"colour_alloc": 9, "colour_free": 9, "nr_coloured": 0}
    cells = ("core-only@1.chunk.1", "core-only@1.chunk.2")
    quiet = Synthetic(repeat=2, workloads=("chunk",), counters=dict.fromkeys(cells, right))
    assert (
        check_counters(replace(quiet, changes={"series": record}).write(tmp_path, "right")).violations == ()
    )
    wrong = {"colour_alloc": 9, "colour_free": 2, "nr_coloured": 5}
    broken = replace(quiet, changes={"series": record}, counters={"core-only@1.chunk.1": wrong})
    found = check_counters(broken.write(tmp_path, "wrong")).violations
    assert [each.text for each in found] == [
        "counter identity broken: colour_alloc (9) - colour_free (2) = 7, but nr_coloured (5) = 5",
        "something outlived the workload's processes: nr_coloured is 5 after the workload, 0 before it",
    ]


def test_a_variant_at_the_neutral_value_has_to_show_equivalence(tmp_path: Path) -> None:
    for value in ("1", "256"):
        own = manifest().series
        assert own is not None
        record = replace(own, neutral={"promotion_threshold": value})
        small = Synthetic(repeat=1, workloads=("chunk",), samples=False, changes={"series": record})
        compared = compare(small.write(tmp_path, f"at-{value}")).compared
        assert [each.name for each in compared if each.neutral] == [f"core-only@{value}"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("neutral = 0", "neutral = 17", "knob 1: neutral: 17 is not between minimum and maximum of colours"),
        ("sweep = [0, 4, 16]", "sweep = [0, 40]", "knob 1: sweep: 40 is not between"),
        ("sweep = [0, 4, 16]", "sweep = [4, 4]", "knob 1: sweep: a value occurs twice"),
        ('label = "colours="', 'label = "a/b"', "knob 1: label: 'a/b' may only have"),
        (EQUATION, "colour_alloc == coloured", "identity 1: expression: no stage adds the counter coloured"),
        (EQUATION, "colour_alloc > 1", "is not an equation such as"),
        (EQUATION, "colour_alloc == open(1)", "may only have counters, whole numbers"),
        (EQUATION, "colour_alloc ==", "is not an equation"),
        (EQUATION, "1 == 1", "has no counter"),
        (
            'levels = ["nr_coloured"]',
            'levels = ["nr_coloring"]',
            "levels 1: no stage adds the counter nr_coloring",
        ),
        ('peak = "nr_coloured"\n', "", "metric 1: give exactly one of growth, peak and left"),
        ('peak = "nr_coloured"\n', 'peak = "a"\nleft = "b"\n', "metric 1: give exactly one of"),
        (
            'name = "colourings.total"',
            'name = "colourings"',
            "metric 2: name: 'colourings' must have the form",
        ),
        (
            'name = "colourings.total"',
            'name = "coloured_kib.max"',
            "metric 2: name: two .*metric.*s have the name",
        ),
    ],
)
def test_a_fault_names_its_line(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    shutil.copytree(DIRECTORY, tmp_path / "series")
    path = tmp_path / "series" / "series.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=rf"series\.toml:\d+: .*{sentence}"):
        load_series(path.parent)


def test_an_equation_shows_both_sides() -> None:
    identity = parse_identity("2 * (a + b) == c - 1")
    assert identity.counters == {"a", "b", "c"}
    assert identity.broken({"a": 1, "b": 2, "c": 7}) is None
    assert identity.broken({"a": 1, "c": 7}) == "2 * (a (1) + b (0)) = 2, but c (7) - 1 = 6"


def test_the_projects_own_series_has_what_stood_in_the_code() -> None:
    own = load_series(ROOT / "kernel_patches")
    assert [(knob.name, knob.neutral, knob.sweep, knob.label) for knob in own.knobs] == [
        ("promotion_threshold", 1, (1, 256), "")
    ]
    assert own.identities and own.levels == ("nr_thp_reserved",)
    metrics = set(derived_metrics(own))
    assert metrics >= {"promotions.total", "reservations.total", "reserved_kib.max", "dumps.total"}
    assert load_workloads(ROOT / "guest_workloads")
