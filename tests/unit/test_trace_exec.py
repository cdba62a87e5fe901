# SPDX-License-Identifier: GPL-2.0-only
"""The guest's trace-exec on this host: what it answers is what was done, whatever this kernel's huge pages do."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from guest_data import ROOT

SOURCE = ROOT / "vm_images" / "guest" / "tools" / "trace-exec.c"
MASK = (1 << 64) - 1


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "trace-exec"
    subprocess.run(
        ["gcc", "-std=gnu11", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror", str(SOURCE), "-o", str(path)],
        check=True,
    )
    return path


def run(program: Path, *lines: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [program, "--no-settings"],
        input="\n".join(("trace 1", "blocks 4", *lines)) + "\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if any(answer.get("errno") == "PAGEMAP_SCAN" for answer in answers):
        pytest.skip("this host's kernel cannot scan page maps")
    return answers


def word(seed: int, page: int) -> int:
    z = (seed * 0x9E3779B97F4A7C15 + page) & MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
    return (z ^ z >> 31) | 1


def digest(words: dict[int, int]) -> str:
    value = 0xCBF29CE484222325
    for page in range(512):
        value = ((value ^ words.get(page, 0)) * 0x100000001B3) & MASK
    return f"{value:016x}"


def block(answer: dict[str, Any], process: str, number: int) -> dict[str, Any]:
    found: dict[str, Any] = answer["processes"][process]["blocks"][str(number)]
    return found


def test_contents_follow_writes_forks_and_moves(program: Path) -> None:
    answers = run(
        program,
        "p0 map 0:8 1000 nohuge",
        "p0 write 0:8 4 7   # four pages",
        "p0 fork p1",
        "p1.t2 write 0:9 1 8",
        "p0 remap 0:8 4 3:0 4",
        "p0 advise 3:0 1 dontneed",
    )
    steps = [answer for answer in answers if "step" in answer]
    assert [answer["errno"] for answer in steps] == [0] * 6
    assert [answer["step"] for answer in steps] == [0, 1, 2, 3, 4, 5]
    written = {page: word(7, page) for page in range(8, 12)}
    assert steps[0]["processes"]["p0"] == {"blocks": {}, "empty": [0, 1]}
    assert sum(block(steps[1], "p0", 0)["nodes"]) == 4
    assert {**block(steps[1], "p0", 0), "nodes": [4]} == {
        "huge": False, "present": 4, "zero": 0, "swapped": 0, "nodes": [4], "hash": digest(written),
    }  # fmt: skip
    assert block(steps[2], "p1", 0) == block(steps[2], "p0", 0) == block(steps[1], "p0", 0)
    assert block(steps[3], "p1", 0)["hash"] == digest({**written, 9: word(8, 9)})
    assert steps[4]["processes"]["p0"]["empty"] == [0]
    moved = {page - 8: value for page, value in written.items()}
    assert block(steps[4], "p0", 3)["hash"] == digest(moved)
    # The last step looks at everything: the parent never saw what its child wrote.
    del moved[0]
    assert block(steps[5], "p0", 3)["hash"] == digest(moved)
    assert (steps[5]["processes"]["p0"]["rss"], steps[5]["processes"]["p1"]["rss"]) == (3, 4)
    assert answers[-1] == {"end": "ok"} and "over" in answers[-2]


def test_zero_pages_and_what_may_not_be_touched_are_reported(program: Path) -> None:
    answers = run(
        program,
        "p0 map 1:0 8 nohuge",
        "p0 read 1:0 3",
        "p0 write 1:2 1 5",
        "p0 protect 1:2 1 none",
        "p0 write 1:1 2 6",
        "p0 read 0:0 1",
        "p0 map 1:4 1",
        "p0 unmap 1:0 1",
        "p1 read 1:0 1",
    )
    steps = [answer for answer in answers if "step" in answer]
    assert [answer["errno"] for answer in steps] == [0, 0, 0, 0, "SIGSEGV", "SIGSEGV", "EEXIST", 0, "ESRCH"]
    assert block(steps[1], "p0", 1) == {
        "huge": False, "present": 0, "zero": 3, "swapped": 0, "nodes": [], "hash": digest({}),
    }  # fmt: skip
    # The first page of the refused write was done, and the one that may not be read is looked at.
    assert block(steps[4], "p0", 1)["hash"] == digest({513 - 512: word(6, 513), 2: word(5, 514)})
    assert block(steps[7], "p0", 1)["zero"] == 0


def test_traces_in_a_row_begin_from_nothing(program: Path) -> None:
    answers = run(program, "p0 map 0:0 1", "p0 exit", "trace 1", "p0 map 0:0 1")
    assert [answer["trace"] for answer in answers if "trace" in answer] == [0, 1]
    assert [answer["errno"] for answer in answers if "step" in answer] == [0, 0, 0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("p0 mop 0:0 1", "unknown word"),
        ("p0 map 0:512 1", "BLOCK:PAGE is expected"),
        ("p0 map 0:0", "something is missing"),
        ("p0 map 0:0 1 huge more", "too many words for this operation"),
        ("khugepaged 3", "too many words for this operation"),
        ("map 0:0 1", "this operation needs a process, or must not have one"),
        ("p0.t9 map 0:0 1", "a thread is expected"),
    ],
)
def test_a_wrong_line_ends_it_with_its_number(program: Path, line: str, reason: str) -> None:
    assert run(program, line)[-1] == {"end": "error", "reason": f"line 3 of the trace: {reason}"}
