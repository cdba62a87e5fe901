# SPDX-License-Identifier: GPL-2.0-only
"""Reports that tests/provoke/record.py recorded from a kernel that was made to fail.

``expected.json`` says what each log has. A log is named after the function that is at fault: ``NAME`` is
``provoke_NAME()`` of tests/provoke/provoke.c, ``lkdtm-NAME`` is ``lkdtm_NAME()`` of drivers/misc/lkdtm.
"""

from __future__ import annotations

import json
import re
from itertools import zip_longest
from pathlib import Path

import pytest

from orchestrator.machine.oops import Finding, parse_console

RECORDED = Path(__file__).parent / "data" / "console" / "recorded"
LOGS = {path.stem: path.read_text(encoding="utf-8") for path in sorted(RECORDED.glob("*.log"))}
EXPECTED: dict[str, list[str]] = json.loads((RECORDED / "expected.json").read_text(encoding="utf-8"))
WITH_REPORT = [name for name, found in EXPECTED.items() if found]


def found_in(text: str) -> list[str]:
    return [finding.fingerprint for finding in parse_console(text)]


def body_of(finding: Finding) -> list[str]:
    return [line.partition("] ")[2] for line in finding.text.splitlines()]


def test_there_are_logs_of_many_kinds() -> None:
    assert set(LOGS) == set(EXPECTED)
    assert len(WITH_REPORT) >= 40
    kinds = {fingerprint.partition(":")[0] for found in EXPECTED.values() for fingerprint in found}
    assert len(kinds) >= 12
    assert "kasan" in kinds


@pytest.mark.parametrize("name", EXPECTED)
def test_recorded(name: str) -> None:
    assert found_in(LOGS[name]) == EXPECTED[name]


def test_the_function_that_was_made_to_fail_is_named_where_it_is_on_the_stack() -> None:
    on_stack, named = [], []
    for name in WITH_REPORT:
        first = parse_console(LOGS[name])[0]
        prefix = "lkdtm_" if name.startswith("lkdtm-") else "provoke_"
        function = prefix + name.removeprefix("lkdtm-")
        # A function that ends with the faulty call is no longer there, and some kinds print no trace.
        if function in first.frames or f"RIP: 0010:{function}+" in first.text:
            on_stack.append(name)
            named += [name] if first.function == function else []
    assert len(on_stack) >= 35
    # It calls others that fail.
    assert sorted(set(on_stack) - set(named)) == ["kasan_three"]


@pytest.mark.parametrize("name", EXPECTED)
def test_shifted_lines_and_other_ids_change_no_fingerprint(name: str) -> None:
    text = re.sub(r"(\.[chS]:)(\d+)", lambda match: f"{match[1]}{int(match[2]) + 57}", LOGS[name])
    text = re.sub(
        r"\b(?:PID: |T)(\d+)\b", lambda match: match[0].replace(match[1], f"{int(match[1]) + 900}"), text
    )
    text = text.replace("provoke it", "another name")
    assert found_in(text) == EXPECTED[name]


def test_two_cpus_at_once_are_told_apart() -> None:
    """Each log with the next one, line by line in turn, as tasks of different PIDs."""
    cut_right, tried = 0, 0
    for one, other in zip(WITH_REPORT, WITH_REPORT[1:] + WITH_REPORT[:1], strict=True):
        left = re.sub(r"\[ +([TC])(\d+)\]", lambda match: f"[{match[1]}{int(match[2]) + 500}]", LOGS[one])
        right = re.sub(r"\[ +([TC])(\d+)\]", lambda match: f"[{match[1]}{int(match[2]) + 900}]", LOGS[other])
        lines = [
            line
            for pair in zip_longest(left.splitlines(), right.splitlines())
            for line in pair
            if line is not None
        ]
        alone = {f.fingerprint: body_of(f) for text in (right, left) for f in parse_console(text)}
        mixed = {f.fingerprint: body_of(f) for f in parse_console("\n".join(lines))}
        tried += 1
        cut_right += mixed == alone
    assert cut_right >= 0.95 * tried
