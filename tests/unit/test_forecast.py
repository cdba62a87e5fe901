# SPDX-License-Identifier: GPL-2.0-only
"""How long things take: remembered, guessed where nothing is remembered, and said where it comes from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.cache import Cache
from orchestrator.events import Events
from orchestrator.execution.durations import Durations, in_words
from orchestrator.execution.forecast import Forecast, Remaining
from orchestrator.experiment.cell import Cell


@pytest.fixture
def durations(tmp_path: Path) -> Durations:
    return Durations(Cache(tmp_path))


def remaining(durations: Durations, cells: list[Cell], slots: int = 1) -> Remaining:
    bench = SimpleNamespace(durations=durations, accelerator=SimpleNamespace(name="icount"))
    experiment = SimpleNamespace(
        workloads={"chunk": {}, "touch": {"size": "quick"}}, topology=SimpleNamespace(text="4x2G")
    )
    return Remaining(cast(Any, experiment), cast(Any, bench), cells, slots)


def cells(workload: str, count: int) -> list[Cell]:
    return [Cell("baseline", workload, repetition, 1) for repetition in range(count)]


def test_the_median_of_earlier_durations_is_expected(durations: Durations, tmp_path: Path) -> None:
    assert durations.expected("source").basis == "a guess"
    for seconds in (100.0, 90.0, 500.0):
        durations.remember("source", seconds)
    again = Durations(Cache(tmp_path)).expected("source")
    assert (again.seconds, again.basis) == (100.0, "earlier runs on this host")


def test_a_step_that_ends_well_is_remembered_and_one_that_fails_is_not(durations: Durations) -> None:
    events = Events(durations.heard)
    with pytest.raises(ValueError, match="bad"), events.step("import", like="source"):
        raise ValueError("bad")
    assert durations.expected("source").basis == "a guess"
    with events.step("import", like="source"):
        pass
    assert durations.expected("source").basis == "earlier runs on this host"


def test_a_damaged_file_is_no_obstacle(durations: Durations, tmp_path: Path) -> None:
    durations.remember("image", 3)
    (file,) = (tmp_path / "durations").glob("*.json")
    file.write_text("{")
    assert durations.expected("image").basis == "a guess"
    durations.remember("image", 4)
    assert durations.expected("image").seconds == 4


def test_what_is_left_comes_from_this_run_where_it_can(durations: Durations) -> None:
    todo = [*cells("chunk", 3), *cells("touch", 2)]
    left = remaining(durations, todo)
    assert left.expected.basis == "a guess"
    left.ended(todo[0], 10.0)
    left.ended(todo[3], 100.0)
    assert (left.expected.seconds, left.expected.basis) == (2 * 10 + 100, "this run")
    left.ended(todo[1], None)  # it failed: one less, and nothing learnt
    assert left.expected.seconds == 10 + 100
    later = remaining(durations, todo)
    assert (later.expected.seconds, later.expected.basis) == (3 * 10 + 2 * 100, "earlier runs on this host")


def test_guests_side_by_side_take_less_but_not_less_than_one(durations: Durations) -> None:
    left = remaining(durations, cells("chunk", 4), slots=2)
    one = remaining(durations, cells("chunk", 1)).expected.seconds
    assert left.expected.seconds == 2 * one
    assert remaining(durations, cells("chunk", 1), slots=2).expected.seconds == one


def test_a_guess_is_called_one(durations: Durations) -> None:
    durations.remember("image", 9)
    guess, known = durations.expected("source"), durations.expected("image")
    assert Forecast([], known, known, 0).basis == "from earlier runs on this host"
    assert Forecast([], guess, known, 0).basis.startswith("a guess")
    mixed = Forecast([("import of the source", guess)], known, known, 0)
    assert mixed.basis == "from earlier runs on this host; a guess for import of the source"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5940, "99 min"), (7260, "2 h 1 min")]
)
def test_durations_are_said_as_a_person_would(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
