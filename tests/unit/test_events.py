# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import time

import pytest

from orchestrator.cli import progress as progress_module
from orchestrator.cli.progress import PlainProgress
from orchestrator.events import Event, Events


def test_a_step_has_a_start_and_an_end() -> None:
    seen: list[Event] = []
    with Events(seen.append).step("build core-only", "compile") as step:
        step.progress(3, 10, "files")
    assert [event.kind for event in seen] == ["start", "progress", "end"]
    assert seen[1].done == 3 and seen[1].total == 10 and seen[1].unit == "files"


def test_a_step_that_is_left_by_an_exception_failed() -> None:
    seen: list[Event] = []
    with pytest.raises(ValueError, match="bad"), Events(seen.append).step("boot"):
        raise ValueError("bad")
    assert seen[-1].kind == "failed" and seen[-1].text == "bad"


def test_plain_progress_says_little_and_keeps_failures(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress()
    progress(Event("start", ("build",)))
    progress(Event("progress", ("build",), done=5, total=10, unit="files", seconds=10))
    progress(Event("progress", ("build",), done=9, total=10, unit="files", seconds=40))
    progress(Event("failed", ("build",), "no such file\nmore", seconds=41))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "build: 9 of 10 files after 40 s",
        "build: failed after 41.0 s: no such file",
    ]


def test_a_part_of_a_step_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    events = Events(PlainProgress())
    with events.step("measure") as step:
        for done in (1, 2):
            with events.step(f"cell {done}", part=True) as cell, events.step("boot", part=True):
                cell.note("up")
            step.item(done, 40, "cells", f"chunk baseline #{done} ok 41 s", (40 - done) * 17.4)
    assert capsys.readouterr().err.splitlines() == [
        "[1/40] chunk baseline #1 ok 41 s, about 11 min left",
        "[2/40] chunk baseline #2 ok 41 s, about 11 min left",
    ]


def test_progress_says_what_is_left_by_the_rate_until_now(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Event] = []
    step = Events(seen.append).step("build")
    with step as building:
        building.began -= 60
        building.progress(500, 2000, "files")
        building.progress(1, 2000, "files")  # too early for a rate, and nobody knows how long such steps take
    assert seen[1].left_s == pytest.approx(180, abs=1) and seen[2].left_s is None
    PlainProgress()(seen[1])
    assert capsys.readouterr().err == "build: 500 of 2,000 files after 60 s, about 3 min left\n"


def test_a_step_without_a_rate_takes_what_such_steps_took() -> None:
    seen: list[Event] = []
    events = Events(seen.append)
    events.expected = {"source": 150.0}.get
    with events.step("import", like="source") as step:
        step.began -= 60
        step.progress(500, None, "files")
    assert seen[0].left_s == 150 and seen[1].left_s == pytest.approx(90, abs=1)


def heard(capsys: pytest.CaptureFixture[str], lines: int) -> list[str]:
    """What was said, once it is that many lines; the host may be busy."""
    said = ""
    deadline = time.monotonic() + 60
    while said.count("\n") < lines and time.monotonic() < deadline:
        time.sleep(0.05)
        said += capsys.readouterr().err
    return said.splitlines()


def test_a_step_that_says_nothing_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert progress_module._SILENT_S + progress_module._LOOK_EVERY_S < 2
    monkeypatch.setattr(progress_module, "_SILENT_S", 0.2)
    with PlainProgress() as progress, Events(progress).step("plot"):
        assert heard(capsys, 1) == ["plot ..."]


def test_silence_is_filled_with_what_is_known_now(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "_SILENT_S", 0.2)
    with PlainProgress() as progress, Events(progress).step("measure") as step:
        step.progress(0, 6, "cells", left_s=4000)
        step.item(4, 6, "cells", "chunk baseline #1 ok 41 s", 3000)
        assert heard(capsys, 2) == [
            "[4/6] chunk baseline #1 ok 41 s, about 50 min left",
            "measure: 4 of 6 cells ..., about 50 min left",
        ]
