# SPDX-License-Identifier: GPL-2.0-only
"""A mistyped value is refused at once: nothing slow has begun, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic_run import Synthetic

from orchestrator.analysis import comparison, plots
from orchestrator.cli.application import status_of
from orchestrator.execution.bench import Bench
from orchestrator.model import chunk_test
from orchestrator.spelling import meant

ROOT = Path(__file__).resolve().parents[2]


class SlowWorkError(Exception):
    """Something slow began before the command line was understood."""


def slow(*_: object, **__: object) -> None:
    raise SlowWorkError


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where runs go. Sources, kernels, images and guests are out of reach."""
    monkeypatch.setenv("ORCHESTRATE_ROOT", str(ROOT))
    monkeypatch.setenv("ORCHESTRATE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(tmp_path / "cache"))
    for name in ("tree", "kernel", "image_with", "boot"):
        monkeypatch.setattr(Bench, name, slow)
    return tmp_path / "results"


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert status_of(["--quiet", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("orchestrate: ")
    return lines[0]


def files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*"))


GUEST = ["-p", "core-only", "--topology", "2x512M"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--dry-run", "-p", "baseline", "--series", "a" * 300],
        ["run", "--dry-run", "-p", "baseline", "--workloads", "a" * 300],
        ["report", "a" * 300],
        ["compare", "a" * 300, "b"],
    ],
    ids=lambda arguments: arguments[0] + arguments[-2],
)
def test_a_name_that_is_too_long_for_a_file(
    arguments: list[str], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no file can have a name as long as this; give a shorter one: " in refused(arguments, capsys)
    assert files(results) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["test", "--only", "foo"], "--only foo: these suites have no such test; there are "),
        (["test", "--only", "vmstat_nmaes"], "did you mean vmstat_names?"),
        (["test", "--only", "cow", "--suite", "stress"], "--only cow: these suites have no such test"),
        (["test", "--only", "cow", "--only", "foo"], "--only foo: these suites have no such test"),
        (["test", "--suite", "stres"], "--suite stres: unknown suite; did you mean stress?"),
        (["test", "-p", "fulll"], "did you mean full?"),
        (["test", "--topology", "two"], "two"),
        (
            ["series", "verify", "--only", "sprase"],
            "--only sprase: unknown check; did you mean sparse?",
        ),
        (["series", "verify", "--stage", "99"], "--stage 99: unknown stage; the stages are 1 (structs)"),
        (["series", "verify", "--topology", "two"], "two"),
        (["check", "-p", "core-onyl"], "did you mean core-only?"),
        (["check", "-p", "core-only", "--profile", "mixd"], "did you mean mixed?"),
        (["check", "-p", "core-only", "--seeds", "5..1"], "--seeds 5..1"),
        (["check", "-p", "core-only", "--trace", "nosuch.trace"], "nosuch.trace"),
        (["check", "-p", "core-only", "--topology", "two"], "two"),
        (["bisect", "-p", "full", "-w", "tuch", "-u", "failure"], "did you mean touch"),
        (["bisect", "-p", "full", "-w", "touch", "-u", "kernel-bgu"], "did you mean kernel-bug?"),
        (["bisect", "-p", "full", "-w", "touch", "-u", "nonsense"], "choose "),
        (["bisect", "-p", "full", "-w", "fault_latency", "-m", "fault_insns.p51 > +2%"], "fault_insns.p50"),
        (["bisect", "-p", "full", "-w", "touch", "-u", "failure", "--confidence", "2"], "--confidence 2"),
        (["bisect", "-p", "full", "-w", "touch", "-u", "failure", "--rate", "0"], "--rate 0"),
        (["bisect", "-p", "full", "-w", "touch", "-u", "failure", "--max-boots", "0"], "--max-boots 0"),
        (["bisect", "-p", "full", "-w", "touch", "-u", "failure", "--matching", "("], "--matching ("),
        (["bisect", "-p", "full", "-w", "touch", "-u", "failure", "--timeout", "-5"], "timeout is -5 s"),
        (["bisect", "-p", "full", "-u", "diverges", "--profile", "mixd"], "did you mean mixed?"),
        (["bisect", "-p", "full", "-u", "diverges", "--trace", "nosuch.trace"], "nosuch.trace"),
        (["boot", *GUEST, "--set", "enabled=allways"], "always"),
        (["shell", *GUEST, "--set", "promotion_treshold=1"], "did you mean promotion_threshold?"),
        (["simulate", "--memory", "lots"], "--memory lots"),
        (["simulate", "--thresholds", "0"], "--thresholds 0"),
        (["simulate", "--run", "never-ran"], "no run"),
        (["series", "export", "OUT", "--notes", "nosuch.txt"], "--notes nosuch.txt: there is no such file"),
        (["series", "export", "OUT", "--run", "never-ran"], "no run"),
        (["series", "export", "OUT", "--base", "v6.12"], "--base v6.12"),
        *(
            ([*command, "--accel", "icuont"], "did you mean icount?")
            for command in (
                ["boot", *GUEST],
                ["shell", *GUEST],
                ["debug", *GUEST],
                ["check", "-p", "core-only"],
                ["test"],
                ["series", "verify"],
                ["bisect", "-p", "full", "-w", "touch", "-u", "failure"],
            )
        ),
        *(
            ([*command, "--config", "debug-mv"], "did you mean debug-vm?")
            for command in (
                ["build", "-p", "core-only"],
                ["boot", *GUEST],
                ["debug", *GUEST],
                ["check", "-p", "core-only"],
                ["test"],
                ["series", "verify"],
                ["bisect", "-p", "full", "-w", "touch", "-u", "failure"],
            )
        ),
    ],
)
def test_a_mistyped_value(
    arguments: list[str],
    sentence: str,
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GIT_AUTHOR_NAME", "A Developer")
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "dev@example.org")
    if "export" in arguments:
        arguments = [*arguments, "--from", "A Developer <dev@example.org>"]
        arguments = [str(tmp_path / "out") if word == "OUT" else word for word in arguments]
    assert sentence in refused(arguments, capsys)
    assert files(tmp_path) == []


@pytest.fixture
def run(results: Path, tmp_path: Path) -> Path:
    return Synthetic(repeat=1, histograms=False).write(results).path


Command = Callable[[Path], list[str]]


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (lambda run: ["compare", "latest", "latest"], "latest and latest are the same run"),
        (lambda run: ["compare", "latest", str(run)], "are the same run"),
        (lambda run: ["compare", "latest", "--margin", "5"], "--margin 5"),
        (lambda run: ["compare", "latest", "--margin", "nan"], "--margin nan"),
        (
            lambda run: ["changelog", "latest", "--stage", "99"],
            "--stage 99: no variant of this run ends at it",
        ),
        (lambda run: ["changelog", "latest", "-w", "churn"], "did not measure it; it measured chunk, "),
        (lambda run: ["changelog", "latest", "-m", "survivors.totl"], "did you mean survivors.total?"),
        (lambda run: ["report", "latest", "-o", str(run / "none" / "x.html")], "there is no directory"),
        (lambda run: ["report", "latest", "-o", str(run)], "this is a directory; name a file"),
        (lambda run: ["report", "latest", "-f", "junit", "-o", str(run)], "this is a directory; name a file"),
        (lambda run: ["plot", "latest", "-o", str(run / "run.json")], "this is a file; name a directory"),
        (lambda run: ["simulate", "--plot", str(run / "none" / "x")], "there is no directory"),
    ],
)
def test_a_mistyped_value_for_a_run_that_is_there(
    command: Command,
    sentence: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = files(run.parent)
    for module, name in (
        (comparison, "compare"),
        (comparison, "compare_runs"),
        (plots, "plot_run"),
        (chunk_test, "simulate"),
    ):
        monkeypatch.setattr(module, name, slow)
    assert sentence in refused(command(run), capsys)
    assert files(run.parent) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["exec", *GUEST, "--timeout", "-1", "--", "true"],
        ["results", "gc", "--keep-gib", "-1"],
        ["check", "-p", "core-only", "--ops", "0"],
        ["build", "-p", "core-only", "--build-jobs", "0"],
        ["simulate", "--nodes", "0"],
        ["report", "latest", "--format", "pdf"],
    ],
)
def test_a_value_out_of_range(
    arguments: list[str], results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(["--quiet", *arguments]) == 2
    assert "Invalid value" in capsys.readouterr().err
    assert files(tmp_path) == []


KNOWN = [
    "baseline",
    "core-only",
    "memcg",
    "shrinker",
    "mremap",
    "sync-promotion",
    "docs",
    "threshold",
    "debug",
    "full",
]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("core-onyl", "core-only"),
        ("Baseline", "baseline"),
        ("promotion", "sync-promotion"),
        ("memcgs", "memcg"),
    ],
)
def test_a_near_name_is_suggested(typed: str, expected: str) -> None:
    assert meant(typed, KNOWN) == expected


@pytest.mark.parametrize("typed", ["foo", "nonsense", "ful1y", "stage", "kernel", "bus", "", "core", "e"])
def test_no_name_is_suggested_that_is_not_near(typed: str) -> None:
    expected = "core-only" if typed == "core" else None
    assert meant(typed, KNOWN) == expected
