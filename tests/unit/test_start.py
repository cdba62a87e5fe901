# SPDX-License-Identifier: GPL-2.0-only
"""How much a command does before it does what it is for: what it imports, and what it asks of the host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from furnished_cache import counted, dry_run

from orchestrator import process
from orchestrator.cli import option
from orchestrator.cli.application import _Commands, status_of
from orchestrator.execution.correctness.suite import SUITES
from orchestrator.execution.verify.answer import CHECKS, OPTIONAL
from orchestrator.kernel import target
from orchestrator.model.chunk_test import PATTERNS
from orchestrator.model.generator import PROFILES

ROOT = Path(__file__).resolve().parents[2]
HEAVY = frozenset(
    (
        "pandas",
        "numpy",
        "scipy",
        "matplotlib",
        "pyarrow",
        "paramiko",
        "qemu.qmp",
        "rich",
        "jinja2",
        "distributed",
    )
)
COMMANDS = [
    *_Commands.listed,
    "series list", "series show", "series verify", "series export",
    "results list", "results show", "results gc",
]  # fmt: skip


def imported_by(*lines: str) -> set[str]:
    """The modules that command lines import, all of them in one process."""
    script = (
        "import sys; from orchestrator.cli.application import status_of;"
        "statuses = [status_of(line.split()) for line in sys.argv[1:]];"
        "print(*sys.modules, file=sys.stderr); sys.exit(any(statuses))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *lines], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


def test_help_imports_nothing_that_takes_long() -> None:
    assert not imported_by(*(f"{command} --help" for command in ("", *COMMANDS))) & HEAVY


def test_the_version_imports_no_command() -> None:
    assert {name for name in imported_by("--version") if name.startswith("orchestrator.")} <= {
        "orchestrator.cli", "orchestrator.cli.application", "orchestrator.cli.help", "orchestrator.cli.terminal",
        "orchestrator.errors", "orchestrator.events", "orchestrator.spelling", "orchestrator.analysis",
        "orchestrator.analysis.layout", "orchestrator.cli.interruption", "orchestrator.printable",
    }  # fmt: skip


def test_lists_compute_nothing() -> None:
    assert not imported_by("results list", "series list") & (HEAVY - {"numpy", "pyarrow"})


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ORCHESTRATE_ROOT", str(ROOT))
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ORCHESTRATE_RESULTS", str(tmp_path / "results"))
    return tmp_path


def test_a_dry_run_asks_each_question_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = dry_run(place)
    process._version_line.cache_clear()
    target._versions.cache_clear()
    with counted() as started:
        assert status_of(["--quiet", *arguments]) == 0
    assert "to be built" not in capsys.readouterr().out.partition("{")[0].rpartition("}")[2]
    assert len(started) == len({tuple(argv) for argv in started}), started
    # gcc, ld and QEMU say their versions; gcc where its C library is.
    assert len(started) <= 4, started


def test_a_dry_run_imports_neither_tables_nor_ssh(place: Path) -> None:
    assert not imported_by(" ".join(["--quiet", *dry_run(place)])) & HEAVY


@pytest.mark.parametrize(
    ("named", "known"),
    [
        (option.PROFILES, PROFILES),
        (option.PATTERNS, PATTERNS),
        (option.SUITES, SUITES),
        (option.CHECKS, CHECKS),
        (option.MORE_CHECKS, OPTIONAL),
    ],
)
def test_what_help_enumerates_is_what_there_is(named: str, known: tuple[str, ...]) -> None:
    assert named.split(", ") == list(known)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_plain_and_whole(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of([*command.split(), "--help"]) == 0
    said = capsys.readouterr().out
    for word in (
        "<int",
        "<str",
        "<path",
        "<list",
        "int range",
        "list[",
        "TEXT",
        "INTEGER",
        "FLOAT",
        "…",
        "None",
    ):
        assert word not in said, word
    assert not [line for line in said.splitlines()[1:] if line.endswith("...")]
    assert command == "series" or command == "results" or f"  Example: orchestrate {command}" in said


def test_help_groups_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["--help"]) == 0
    said = capsys.readouterr().out
    titles = [line for line in said.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Options:", "Run:", "Inspect runs:", "The series:", "One guest:", "The host:"]


def test_every_listed_command_is_there_and_says_the_same_name() -> None:
    group = _Commands(name="orchestrate")
    for name in _Commands.listed:
        assert group.get_command(None, name).name == name


@pytest.mark.parametrize(
    ("arguments", "said", "not_said"),
    [
        (["rnu"], "did you mean run?", ""),
        (["xyzzy"], "orchestrate --help lists them", "mean"),
        (["run", "--reapeat", "3"], "--repeat", ""),
        (["run", "--frobnicate"], "--frobnicate", "Possible"),
        (["series", "lst"], "did you mean list?", ""),
        (
            ["exec", "-p", "baseline", "ls", "-la"],
            "after --, e.g. orchestrate exec -p baseline -- ls -la",
            "Possible",
        ),
        (["exec", "ls", "--color"], "after --", "Possible"),
    ],
)
def test_a_hint_is_given_where_it_is_near(
    arguments: list[str], said: str, not_said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(arguments) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
    assert not not_said or not_said not in error
