# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import Synthetic

from orchestrator.analysis.plots import plots_of
from orchestrator.analysis.tradeoff import pareto_front, tradeoff_of
from orchestrator.store.outcome import Outcome

ASKED = {
    "cost": "fault_latency/first_fault_{clock}.p50",
    "fit": "chunk/survivors.total",
    "promotions": "fault_latency/promotions.total",
}
RUN = Synthetic(repeat=3, changes={"tradeoff": ASKED}, samples=False, histograms=False)

VALUES = st.integers(0, 4)
POINTS = st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=12)


def dominates(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


@given(POINTS)
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int, int]]) -> None:
    # More is better on the last axis, so its sign is turned for the check.
    turned = [(a, b, -c) for a, b, c in points]
    expected = [not any(dominates(other, own) for other in turned) for own in turned]
    assert pareto_front(points, ["lower", "lower", "higher"]) == expected


@given(POINTS)
def test_there_is_always_a_front_and_it_beats_the_rest(points: list[tuple[int, int, int]]) -> None:
    front = pareto_front(points, ["lower"] * 3)
    assert any(front)
    best = [point for point, on in zip(points, front, strict=True) if on]
    for point, on in zip(points, front, strict=True):
        assert on or any(dominates(other, point) for other in best)


def test_a_point_whose_boots_overlap_with_a_better_ones_stays_on_the_front() -> None:
    points, low, high = [[10.0], [11.0], [14.0]], [[9.0], [10.0], [13.0]], [[11.5], [12.0], [15.0]]
    assert pareto_front(points, ["lower"], low, high) == [True, True, False]
    assert pareto_front(
        [[-x for x in each] for each in points],
        ["higher"],
        [[-11.5], [-12.0], [-15.0]],
        [[-9.0], [-10.0], [-13.0]],
    ) == [True, True, False]


def test_a_variant_that_wins_on_one_axis_is_on_the_front(tmp_path: Path) -> None:
    found = tradeoff_of(RUN.write(tmp_path))
    assert found is not None
    points = {point.variant: point for point in found.points}
    assert set(points) == {"baseline", "core-only@1", "core-only@256"}  # without the control
    assert [axis.metric for axis in found.axes] == [
        "first_fault_insns.p50",
        "survivors.total",
        "promotions.total",
    ]
    assert points["core-only@256"].middle[1:] == (107, 96)
    assert points["core-only@256"].on_front
    assert points["core-only@256"].boots == 3
    for point in found.points:
        for low, middle, high in zip(point.low, point.middle, point.high, strict=True):
            assert low <= middle <= high


def test_it_is_drawn_where_it_was_asked_for(tmp_path: Path) -> None:
    drawn = {plot.name: plot for plot in plots_of(RUN.write(tmp_path / "with"))}
    figure = drawn["tradeoff"].figure
    assert figure is not None
    axes = [text for axis in figure.axes for text in axis.texts]
    legends = [
        text
        for legend in (*figure.legends, *(a.get_legend() for a in figure.axes))
        if legend
        for text in legend.get_texts()
    ]
    written = " ".join(text.get_text() for text in (*axes, *figure.texts, *legends))
    assert "core-only@256" in written and "baseline-control" not in written
    without = replace(RUN, changes={}).write(tmp_path / "without")
    assert "tradeoff" not in {plot.name for plot in plots_of(without)}


def test_a_variant_that_lacks_an_axis_has_no_point(tmp_path: Path) -> None:
    cells = [f"core-only@256.chunk.{n}" for n in (1, 2, 3)]
    run = replace(RUN, failures=dict.fromkeys(cells, (Outcome.TIMEOUT, "too slow"))).write(tmp_path)
    found = tradeoff_of(run)
    assert found is not None
    assert {point.variant for point in found.points} == {"baseline", "core-only@1"}


def test_no_point_at_all_is_reported(tmp_path: Path) -> None:
    cells = [entry.cell for entry in RUN.manifest().cells]
    run = replace(RUN, failures=dict.fromkeys(cells, (Outcome.LOST, ""))).write(tmp_path)
    (plot,) = [plot for plot in plots_of(run) if plot.name == "tradeoff"]
    assert plot.figure is None and "all axes" in plot.reason
