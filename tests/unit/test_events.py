# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import pytest

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
