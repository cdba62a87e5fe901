# SPDX-License-Identifier: GPL-2.0-only
"""A host that lacks something: what looks at runs works all the same, and doctor says how to get the rest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from synthetic_run import Synthetic

from orchestrator.cli.application import status_of
from orchestrator.execution.host import REQUIRED
from orchestrator.process import PACKAGES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def bare_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A host whose programs are those that a test puts into a directory."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("ORCHESTRATE_ROOT", str(ROOT))
    monkeypatch.setenv("ORCHESTRATE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(tmp_path / "cache"))
    return programs


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["results", "list"], ["results", "show", "latest"],
                  ["compare", "latest"], ["changelog", "latest"], ["series", "list"]],
)  # fmt: skip
def test_what_looks_at_runs_needs_no_program(arguments: list[str], tmp_path: Path) -> None:
    Synthetic(repeat=1, histograms=False).write(tmp_path / "results", "synthetic")
    assert status_of(arguments) in (0, 3)


@pytest.mark.parametrize(
    "arguments", [["build", "-p", "baseline"], ["boot", "-p", "baseline"], ["run", "-p", "core-only"]]
)
def test_a_command_that_needs_a_program_says_which_package_has_it(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(["--quiet", *arguments]) in (1, 2)
    said = capsys.readouterr().err
    assert said.count("orchestrate: ") == len(said.splitlines()) == 1
    assert "Debian package" in said or "--source" in said
    assert not (tmp_path / "results").exists()


def test_doctor_names_every_program_and_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["--quiet", "doctor"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    for program in REQUIRED:
        assert f"LACK {program}" in said and PACKAGES[program] in said
    assert "this host has no apt: with --source" in said
    assert "apt-get install" not in said


def test_doctor_says_how_to_get_what_is_missing(bare_host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("apt-get", "apt-cache", "dpkg-query", "dpkg-deb", "true"):
        (bare_host / name).symlink_to(shutil.which("true", path="/usr/bin:/bin") or "")
    assert status_of(["--quiet", "doctor"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "to install them" in line]
    assert "as root: apt-get install" in line and " flex " in line and " qemu-system-x86 " in line


def test_a_list_of_no_runs_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["results", "list"]) == 0
    assert "there is no run in" in capsys.readouterr().out
    assert status_of(["results", "list", "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"
