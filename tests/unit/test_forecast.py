# SPDX-License-Identifier: GPL-2.0-only
"""How long things take: remembered, guessed where nothing is remembered, and said where it comes from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.cache import Cache
from orchestrator.cli.progress import PlainProgress
from orchestrator.events import Events
from orchestrator.execution.countdown import Countdown, line_of
from orchestrator.execution.durations import Durations, in_words
from orchestrator.execution.forecast import Forecast, Remaining, kind_of_cell
from orchestrator.experiment.cell import Cell


@pytest.fixture
def durations(tmp_path: Path) -> Durations:
    return Durations(Cache(tmp_path))


CHUNK, TOUCH = "cell chunk icount 4x2G x1", "cell touch:size=quick icount 4x2G x1"


def test_the_duration_of_a_cell_depends_on_its_parameters_and_its_guest() -> None:
    experiment = SimpleNamespace(
        workloads={"chunk": {}, "touch": {"size": "quick"}}, topology=SimpleNamespace(text="4x2G")
    )
    for workload, kind in (("chunk", CHUNK), ("touch", TOUCH)):
        assert kind_of_cell(Cell("baseline", workload, 1, 1), cast(Any, experiment), "icount", 1) == kind


def test_the_median_of_earlier_durations_is_expected(durations: Durations, tmp_path: Path) -> None:
    assert durations.expected("source").basis == "a guess"
    for seconds in (100.0, 90.0, 500.0):
        durations.remember("source", seconds)
    again = Durations(Cache(tmp_path)).expected("source")
    assert (again.seconds, again.basis) == (100.0, "earlier runs on this host")


def test_a_step_that_ends_well_is_remembered_and_one_that_fails_is_not(durations: Durations) -> None:
    events = Events(durations.observe)
    with pytest.raises(ValueError, match="bad"), events.step("import", like="source"):
        raise ValueError("bad")
    assert durations.expected("source").basis == "a guess"
    with events.step("import", like="source"):
        pass
    assert durations.expected("source").basis == "earlier runs on this host"


def test_a_damaged_file_is_not_an_obstacle(durations: Durations, tmp_path: Path) -> None:
    durations.remember("image", 3)
    (file,) = (tmp_path / "durations").glob("*.json")
    file.write_text("{")
    assert durations.expected("image").basis == "a guess"
    durations.remember("image", 4)
    assert durations.expected("image").seconds == 4


def test_what_is_left_comes_from_this_run_where_it_can(durations: Durations) -> None:
    todo = [CHUNK, CHUNK, CHUNK, TOUCH, TOUCH]
    left = Remaining(durations, todo)
    assert left.expected.basis == "a guess"
    left.ended(CHUNK, 10.0)
    left.ended(TOUCH, 100.0)
    assert (left.expected.seconds, left.expected.basis) == (2 * 10 + 100, "this run")
    left.ended(CHUNK, None)  # it failed: one less, and nothing learnt
    assert left.expected.seconds == 10 + 100
    left.add(CHUNK)
    assert left.expected.seconds == 2 * 10 + 100
    later = Remaining(durations, todo)
    assert (later.expected.seconds, later.expected.basis) == (3 * 10 + 2 * 100, "earlier runs on this host")


def test_guests_side_by_side_take_less_but_not_less_than_one(durations: Durations) -> None:
    left = Remaining(durations, [CHUNK] * 4, slots=2)
    one = Remaining(durations, [CHUNK]).expected.seconds
    assert left.expected.seconds == 2 * one
    assert Remaining(durations, [CHUNK], slots=2).expected.seconds == one


def test_each_part_that_ended_is_one_line_with_what_the_others_take(
    durations: Durations, capsys: pytest.CaptureFixture[str]
) -> None:
    durations.remember("suite a", 100)
    durations.remember("suite b", 600)
    with Events(PlainProgress()).step("test") as step:
        countdown = Countdown(step, durations, ["suite a", "suite a", "suite b", "suite b"], "guests")
        countdown.ended("suite a", line_of("a baseline", "ok", 120, "3 passed\nand more"), 120)
        countdown.left_out("suite b")
        countdown.ended("suite b", line_of("b baseline", "lost", None), None)
        countdown.add("suite a")
        countdown.ended("suite a", line_of("a full", "ok", 180), 180)
        countdown.ended("suite a", line_of("a full", "ok", 180), 180)
    # On a busy host a line follows that says how long the step took.
    assert capsys.readouterr().err.splitlines()[:5] == [
        "test: 4 guests, about 23 min (from earlier runs on this host)",
        "[1/4] a baseline ok 2 min: 3 passed, about 22 min left",
        "[2/3] b baseline lost, about 2 min left",
        "[3/4] a full ok 3 min, about 2 min left",
        "[4/4] a full ok 3 min",
    ]
    assert Durations(durations._cache).expected("suite a").seconds == 150


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
def test_durations_are_worded_as_a_person_would(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
