# SPDX-License-Identifier: GPL-2.0-only
"""Races in a fixed order: what the debugger does at a test's request, and the suite. gdb and the guest are made up."""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from guest_data import ROOT

from orchestrator.debugger import hold as hold_module
from orchestrator.debugger.gdb import Stop, StopTimeout
from orchestrator.debugger.race import RaceDirector
from orchestrator.errors import UserError
from orchestrator.execution.correctness.suite import SUITES, having, reservation_tests
from orchestrator.kernel.elf import Symbol

LOOP = 0x1100
RETURNS_TO = 0x7700


class GdbOfRace:
    """One CPU, on which khugepaged comes to the breakpoints, or not."""

    def __init__(self, comes: int = 9) -> None:
        self.comes = comes
        self.did: list[str] = []
        self.breaks: deque[str] = deque()
        self.rip = 0
        self.count = 0
        self.running = True
        self.memory = b"\xcc" * 4

    def interrupt(self) -> None:
        self.running = False

    def continue_(self) -> None:
        assert not self.running
        self.running = True

    def break_at(self, place: str, condition: str = "", *, first: bool = False) -> int:
        assert not self.running and "khugepaged_thread" in condition, "only khugepaged is held"
        if place == "nosuch":
            raise UserError("gdb cannot break at nosuch")
        self.did.append(f"break {place}")
        self.count += 1
        return self.count

    def delete(self, number: int) -> None:
        assert not self.running
        self.did.append(f"delete {number}")

    def wait_stop(self, timeout_s: float) -> Stop:
        if not self.comes:
            raise StopTimeout
        self.comes -= 1
        self.running = False
        self.rip = 0x5000 + self.count
        return Stop("f", {}, False, 1, self.rip, "", "", self.count)

    def select(self, thread: int) -> None:
        assert thread == 1

    def threads(self) -> int:
        return 1

    def number(self, expression: str) -> int:
        if expression == "$rip":
            return self.rip
        return RETURNS_TO if expression == "*(unsigned long *)$rsp" else 1

    def assign(self, register: str, value: int) -> None:
        assert register == "$rip" and not self.running
        self.rip = value
        self.did.append(f"rip {value:#x}")

    def read_memory(self, address: str, size: str) -> bytes:
        return self.memory

    def write_memory(self, address: int, content: bytes) -> None:
        assert address == LOOP
        self.memory = content


@pytest.fixture
def answers() -> list[str]:
    return []


def director(gdb: GdbOfRace, answers: list[str], monkeypatch: pytest.MonkeyPatch) -> RaceDirector:
    monkeypatch.setattr(hold_module, "_current_symbol", lambda vmlinux: "pcpu_hot")
    symbols = [Symbol("f", 0x1000, 0x100), Symbol("g", 0x1110, 1)]
    monkeypatch.setattr(hold_module, "text_symbols", lambda vmlinux: symbols)
    any_gdb: Any = gdb

    def answer(word: str) -> None:
        assert gdb.running or word == "armed", "the guest reads the answer"
        answers.append(word)

    return RaceDirector(any_gdb, Path("vmlinux"), answer)


def test_khugepaged_is_held_and_released(answers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    gdb = GdbOfRace()
    directing = director(gdb, answers, monkeypatch)
    for line in ("TAP version 13", "# race: hold thp_resv_collapse", "# the other task was blocked"):
        directing.heard(line)
    assert answers == ["armed", "held"] and gdb.rip == LOOP
    assert gdb.memory == bytes.fromhex("f390ebfc")
    directing.heard("# race: release")
    assert answers == ["armed", "held", "released"]
    assert gdb.did == ["break thp_resv_collapse", "delete 1", "rip 0x1100", "rip 0x5001"]
    assert gdb.memory == b"\xcc" * 4 and gdb.running


def test_it_is_held_where_a_function_returns(answers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    gdb = GdbOfRace()
    directing = director(gdb, answers, monkeypatch)
    directing.heard("# race: hold after __thp_resv_charge")
    assert gdb.did == [
        "break __thp_resv_charge",
        "delete 1",
        f"break *{RETURNS_TO:#x}",
        "delete 2",
        "rip 0x1100",
    ]
    assert answers == ["armed", "held"]


@pytest.mark.parametrize(("comes", "line"), [(0, "hold f"), (1, "hold after f"), (9, "hold nosuch")])
def test_a_point_that_is_missed_is_said(
    comes: int, line: str, answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gdb = GdbOfRace(comes)
    directing = director(gdb, answers, monkeypatch)
    directing.heard(f"# race: {line}")
    assert answers == ["armed", "missed"] and gdb.running
    directing.heard("# race: release")
    assert answers[-1] == "released" and not any(each.startswith("rip") for each in gdb.did)


def test_a_test_that_ends_without_a_release_holds_nobody(
    answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gdb = GdbOfRace()
    directing = director(gdb, answers, monkeypatch)
    directing.heard("# race: hold f")
    directing.release()
    assert gdb.rip == 0x5001 and gdb.running


def test_the_suite_has_the_races_and_no_other_test() -> None:
    ours = reservation_tests(ROOT / "vm_images" / "guest" / "tests")
    races = [name for name in ours if name.startswith("race_")]
    assert len(races) >= 10
    assert [suite.name for suite in having(tuple(SUITES.values()), ["race_fork"], [], ours)] == ["races"]
    assert "races" not in [suite.name for suite in having(tuple(SUITES.values()), ["fork_storm"], [], ours)]


def test_each_point_is_a_function_of_the_kernel() -> None:
    """They are what the series calls them, or Linux 6.12."""
    source = (ROOT / "vm_images" / "guest" / "tests" / "race.c").read_text()
    points = {name for _, name in re.findall(r'#define [A-Z]+ "(after )?(\w+)"', source)} - {"race"}
    patches = "".join(path.read_text() for path in (ROOT / "kernel_patches" / "6.12").glob("*.patch"))
    of_series = {name for name in points if "thp_resv" in name}
    assert of_series == {"__thp_resv_charge", "thp_resv_in_place", "thp_resv_collapse"}
    for name in of_series:
        assert re.search(rf"^\+.*\b{name}\(", patches, re.MULTILINE)
    assert points - of_series == {"tlb_remove_table_sync_one"}
