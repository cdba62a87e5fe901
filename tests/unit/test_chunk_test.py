# SPDX-License-Identifier: GPL-2.0-only
"""The chunk test by arithmetic: against the step-by-step model, against what was measured, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from orchestrator.analysis.chunk_measured import measured_chunk
from orchestrator.cli.application import app
from orchestrator.model.chunk_test import (
    CHILD_KIB,
    PATTERNS,
    RANGE_KIB,
    ChunkTestMachine,
    Policy,
    distribution,
    simulate,
)
from orchestrator.model.memory import STAGES, Model
from orchestrator.model.trace import Khugepaged, Map, Write
from orchestrator.store.run import Run

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference-core-only"
MACHINE = ChunkTestMachine(8 << 20, 4, 7_907_273)
CHUNK_KIB = 512 << 10


def stepwise_kib(touched: list[int], threshold: int, stages: int, khugepaged: bool) -> tuple[int, int]:
    """Memory of ranges, and how many became huge, when a child touches them page by page."""
    settings = {"promotion_threshold": str(threshold), "enabled": "always"}
    model = Model(STAGES[:stages], settings, len(touched))
    model.step(Map("p0", 0, len(touched) * 512))
    for block, pages in enumerate(touched):
        # From the end of the range, so that it is not the order that counts.
        for page in range(512 - pages, 512):
            model.step(Write("p0", block * 512 + page, 1, 1))
    if khugepaged:
        model.step(Khugepaged())
    huge = sum(model.block("p0", block).huge for block in range(len(touched)))
    return (model.rss("p0") + len(model.process("p0").tables)) * 4, huge


@pytest.mark.parametrize("threshold", [2, 8, 256, 512])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_agrees_with_the_model_that_goes_step_by_step(pattern: str, threshold: int) -> None:
    touched = distribution(pattern, 200)(np.random.default_rng(7), 12)
    counts = touched.tolist()
    none, every = Policy(threshold), Policy(threshold, promotes=True)
    assert stepwise_kib(counts, threshold, 9, khugepaged=False)[0] == none.cost_kib(touched).sum()
    for stages, khugepaged in ((9, True), (len(STAGES), False)):
        used, huge = stepwise_kib(counts, threshold, stages, khugepaged)
        assert used == every.cost_kib(touched).sum()
        assert huge == (touched >= threshold).sum()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_huge_page_at_once_costs_the_same_whatever_is_touched(pattern: str) -> None:
    touched = distribution(pattern, 200)(np.random.default_rng(7), 12)
    assert stepwise_kib(touched.tolist(), 1, 9, khugepaged=False)[0] == Policy(1).cost_kib(touched).sum()
    assert set(Policy(1).cost_kib(touched)) == {2052}


def test_what_fits_is_what_memory_divided_by_a_child_is() -> None:
    machine = ChunkTestMachine(8 << 20, 4, 10 * (256 * 2052 + CHILD_KIB))
    (outcome,) = simulate(machine, CHUNK_KIB, distribution("dense"), [Policy(1)])
    assert outcome.survivors == outcome.survivors_oom == 10
    assert outcome.used_kib == machine.begin_kib
    assert outcome.promotions == 0


def test_promotions_are_the_ranges_at_the_threshold() -> None:
    draw = distribution("fixed", 300)
    below, at = simulate(MACHINE, CHUNK_KIB, draw, [Policy(301), Policy(300)])
    assert below.promotions == 0
    assert at.promotions == at.survivors * 256
    (promoted,) = simulate(MACHINE, CHUNK_KIB, draw, [Policy(300, promotes=True)])
    assert promoted.survivors == 15


def test_a_higher_threshold_never_fits_fewer() -> None:
    policies = [Policy(threshold, promotes=True) for threshold in (2, 32, 64, 128, 256, 384, 512)]
    outcomes = simulate(MACHINE, CHUNK_KIB, distribution("mixed"), policies)
    fits = [outcome.survivors for outcome in outcomes]
    assert fits == sorted(fits)


def test_all_policies_are_given_the_same_touches() -> None:
    alone = simulate(MACHINE, CHUNK_KIB, distribution("mixed"), [Policy(256)], seed=3)
    together = simulate(MACHINE, CHUNK_KIB, distribution("mixed"), [Policy(1), Policy(256)], seed=3)
    assert together[1] == alone[0]
    assert simulate(MACHINE, CHUNK_KIB, distribution("mixed"), [Policy(256)], seed=4) != alone


def test_it_predicts_the_reference_run_within_five_per_cent_or_a_child() -> None:
    measured = measured_chunk(Run.open(REFERENCE))
    assert (measured.chunk_kib, measured.machine.nodes) == (CHUNK_KIB // 2, 4)
    assert {point.threshold for point in measured.points} == {1, 256}
    for point in measured.points:
        (outcome,) = simulate(
            measured.machine, measured.chunk_kib, measured.draw, [Policy(point.threshold)], seed=1
        )
        # A child of the baseline is 7 % of this machine.
        assert outcome.survivors == pytest.approx(point.survivors, rel=0.05, abs=1)
        assert outcome.survivors_oom == pytest.approx(point.survivors_oom, rel=0.05, abs=1)


def test_an_estimate_of_what_is_available_is_near_what_a_guest_has() -> None:
    assert ChunkTestMachine(8 << 20, 4).begin_kib == pytest.approx(7_907_273, rel=0.005)


@pytest.mark.parametrize("pages", [0, 513])
def test_pages_lie_inside_a_range(pages: int) -> None:
    with pytest.raises(ValueError, match="choose 1 to 512"):
        distribution("mixed", pages)


@pytest.mark.parametrize("chunk_kib", [0, -RANGE_KIB, 1000])
def test_a_chunk_is_made_of_ranges(chunk_kib: int) -> None:
    with pytest.raises(ValueError, match="multiple of 2 MiB"):
        simulate(MACHINE, chunk_kib, distribution("one"), [Policy(1)])


def test_memory_that_never_gets_full_is_reported() -> None:
    with pytest.raises(ValueError, match="do not fill memory"):
        simulate(MACHINE, RANGE_KIB, distribution("one"), [Policy(512)], most_children=10)


def test_the_figures_of_2018_have_a_reading() -> None:
    """16 GB chunks on 256 GB: with huge pages the 17th child failed, with reservations the 118th."""
    result = CliRunner().invoke(
        app, ["simulate", "--chunk", "available/16", "--thresholds", "1,256", "--json"]
    )
    outcomes = json.loads(result.stdout)["outcomes"]
    always = next(each for each in outcomes if each["threshold"] == 1)
    reserved = next(each for each in outcomes if each["threshold"] == 256 and each["promoted"] == "none")
    assert always["survivors_oom"] + 1 == 17
    assert reserved["survivors"] + 1 == 118
