# SPDX-License-Identifier: GPL-2.0-only
"""One name for one thing: no two classes have the same name."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_CLASS = re.compile(r"^ *class (\w+)\b", re.MULTILINE)
#: Directories with Python code.
_PLACES = ("orchestrator", "tests")
#: Names that several classes may have, with the reason.
JUDGED: dict[str, str] = {}


def twice(sources: dict[str, str]) -> dict[str, list[str]]:
    """The names that several classes have, with their files."""
    found: dict[str, list[str]] = {}
    for path, text in sources.items():
        for name in _CLASS.findall(text):
            found.setdefault(name, []).append(path)
    return {name: paths for name, paths in found.items() if len(paths) > 1 and name not in JUDGED}


def test_no_two_classes_have_the_same_name() -> None:
    paths = [path for place in _PLACES for path in sorted((ROOT / place).rglob("*.py"))]
    assert len(paths) > 100
    # Classes of tests only group them.
    found = twice({str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths})
    assert {name: places for name, places in found.items() if not name.startswith("Test")} == {}


def test_a_name_used_twice_is_found_with_both_places() -> None:
    sources = {
        "a.py": "class Look:\n    pass\nclass Other(Look):\n",
        "b.py": "if x:\n    class Look(Base): ...\n",
    }
    assert twice(sources) == {"Look": ["a.py", "b.py"]}


def test_each_thorough_test_exists() -> None:
    """A test that is renamed would be back in the gate `unit` without a word."""
    conftest = (ROOT / "tests" / "unit" / "conftest.py").read_text(encoding="utf-8")
    listed = set(re.findall(r'^        "(test_\w+)",$', conftest, re.MULTILINE))
    there = {
        name
        for path in (ROOT / "tests" / "unit").glob("test_*.py")
        for name in re.findall(r"^ *def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(listed) > 20 and listed - there == set()
