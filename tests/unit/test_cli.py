# SPDX-License-Identifier: GPL-2.0-only
"""Bad input: one clear sentence, exit status 2, nothing left behind; no kernel, no QEMU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fake_tree import write_series
from synthetic_run import Synthetic

from orchestrator.cli.application import status_of
from orchestrator.kernel.series import load_series
from orchestrator.store.manifest import FILE, RunKind, read_manifest

ROOT = Path(__file__).resolve().parents[2]
STAGES = str(ROOT / "experiments" / "stages.toml")


@pytest.fixture(autouse=True)
def own_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ORCHESTRATE_ROOT", str(ROOT))
    monkeypatch.setenv("ORCHESTRATE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "results"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run"], "--patchset core-only"),
        (["run", "-p", "core-onyl"], "core-only"),
        (["run", "-p", "core-only:99"], "99"),
        (["run", "-p", "core-only", "-w", "chnuk"], "chunk"),
        (["run", "-p", "core-only", "-w", "chunk:paterns=one"], "paterns"),
        (["run", "-p", "core-only", "-w", "chunk:pattern=some"], "pattern"),
        (["run", "-p", "core-only", "--set", "promotion_treshold=3"], "promotion_threshold"),
        (["run", "-p", "core-only", "--set", "promotion_threshold=0"], "from 1 to 512"),
        (["run", "-p", "core-only", "--topology", "four"], "four"),
        (["run", "-p", "core-only", "--topology", "32x64G"], "memory"),
        (["run", "-p", "core-only", "--accel", "xen"], "xen"),
        (["run", "-p", "core-only", "--repeat", "0"], "repeat"),
        (["run", "-p", "core-only", "--margin", "5"], "margin"),
        (["run", "-p", "core-only", "--config", "fast"], "measure"),
        (["run", "-p", "core-only", "--source", "/nonexistent"], "/nonexistent"),
        (["run", "--resume", "never-ran"], "no run"),
        (["calibrate", "--plot", "/no/such/place/plot"], "there is no directory /no/such/place"),
        (["run", "nosuch.toml"], "nosuch.toml"),
        (
            ["run", "--resume", "latest", "--repeat", "5"],
            "continues a run with its own settings; omit --repeat",
        ),
        (["run", "--resume", "latest", "--dry-run"], "omit --dry-run"),
        (["run", STAGES, "--resume", "latest"], "omit experiment"),
        (["bisect", "--resume", "latest", "-m", "x > 1"], "omit --metric"),
        (
            ["bisect", "-p", "full", "-u", "diverges", "--timeout", "5"],
            "takes knobs from the trace and has no timeout; omit --timeout",
        ),
        (
            ["run", STAGES, "--set", "promotion_threshold=1"],
            "the experiment file defines the variants; omit --set",
        ),
        (["run", STAGES, "-w", "chunk"], "stages has no workload chunk"),
        (["run", STAGES, "--topology", "32x64G"], "memory"),
        (["run", STAGES, "--repeat", "0"], "repeat"),
        (["run", "-p", "core-only", "--variant", "baseline"], "--variant"),
        (["compare", "never-ran"], "no run"),
        (["plot", "never-ran"], "no run"),
        (["series", "show", "99"], "99"),
        (["exec", "-p", "core-only", "--set", "promotion_threshold=1,2", "--", "true"], "one value"),
        (["results", "gc", "--older-than", "soon"], "30d"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    arguments: list[str], sentence: str, own_results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(["--quiet", *arguments]) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("orchestrate: ") and sentence in lines[0]
    assert "Traceback" not in said.err
    assert not own_results.exists() or not list(own_results.iterdir())


def test_a_source_that_is_not_a_kernel_tree(
    tmp_path: Path, own_results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README").write_text("not a kernel\n")
    assert status_of(["--quiet", "run", "-p", "core-only", "--source", str(tmp_path / "notes")]) == 2
    assert "kernel" in capsys.readouterr().err
    assert not own_results.exists() or not list(own_results.iterdir())


def test_an_unknown_option_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["run", "--frobnicate"]) == 2
    assert "--frobnicate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "name a guest: --patchset NAME to boot one, --run RUN for a running one, or --core FILE."),
        (["-p", "full", "--run", "latest"], "name a guest"),
        (["-p", "full", "--cell", "chunk.full.1"], "--cell names a cell of --run"),
        (["-p", "full", "--vmlinux", "vmlinux"], "--vmlinux goes with --kernel"),
        (["--core", "core"], "name the kernel that wrote it"),
        (["--core", "core", "--vmlinux", "v", "-b", "main"], "a dump does not run; omit --break"),
        (["--core", "core", "--vmlinux", "v", "-t", "1x1G"], "no guest is booted; omit --topology"),
        (["-p", "full", "--dump", "/nosuch/core"], "name a new file in a directory that exists"),
        (["-p", "full", "--script", "x.sh"], "ends in .gdb"),
        (["-p", "full", "--timeout", "0"], "--timeout"),
    ],
)
def test_a_wrong_session_of_gdb_is_status_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(["debug", *arguments]) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--rounds", "ten"], ["now"]])
def test_a_wrong_calibration_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["calibrate", *arguments]) == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_traceback_is_there_when_asked_for() -> None:
    with pytest.raises(Exception, match="core-only"):
        status_of(["--debug", "run", "-p", "core-onyl"])


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "build",
        "boot",
        "shell",
        "exec",
        "compare",
        "plot",
        "changelog",
        "report",
        "debug",
        "doctor",
        "calibrate",
    ],
)
def test_every_command_explains_itself_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of([command, "--help"]) == 0
    assert f"Example: orchestrate {command}" in " ".join(capsys.readouterr().out.split())


def test_the_series_is_listed_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["series", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["groups"][0] == "core-only"
    assert [stage["number"] for stage in listed["stages"]] == list(range(1, len(listed["stages"]) + 1))


def test_another_series_is_listed_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_series(tmp_path / "patches")
    assert status_of(["series", "list", "--series", str(other)]) == 0
    listed = capsys.readouterr().out
    assert status_of(["series", "show", "1", "--series", str(other)]) == 0
    stage = load_series(other).stages[0]
    assert stage.title in listed and stage.patch.read_text(encoding="utf-8") in capsys.readouterr().out


def test_a_series_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["series", "list", "--series", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_runs_are_listed_by_age_and_shown_as_they_were_printed(
    own_results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Synthetic(repeat=1, histograms=False)
    compared = small.write(own_results, "compared").path
    tested = replace(small, changes={"kind": RunKind.TEST}).write(own_results, "tested").path
    # A stored run keeps its name, which begins with no date.
    compared = compared.rename(own_results / "reference")
    begun = replace(read_manifest(compared), created_utc="2026-01-01T00:00:00+00:00")
    (compared / FILE).write_text(begun.to_json())
    (tested / "correctness.txt").write_text("kernel  suite\nfull    stress\n")
    assert status_of(["results", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["reference", tested.name]
    assert status_of(["results", "show", tested.name]) == 0
    assert capsys.readouterr().out == f"kernel  suite\nfull    stress\nrun      {tested}\n"
    assert status_of(["results", "show", "reference"]) == 0
    assert "survivors.total" in capsys.readouterr().out


def test_a_table_that_is_current_is_shown_as_it_was_written(
    own_results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Synthetic(repeat=1, histograms=False).write(own_results, "compared").path
    manifest = read_manifest(path)
    (path / "comparison.txt").write_text("the table\n")
    for ended, said in (
        ("2026-01-01T00:00:00+00:00", "the table"),
        ("2999-01-01T00:00:00+00:00", "survivors"),
    ):
        (path / FILE).write_text(replace(manifest, ended_utc=ended).to_json())
        assert status_of(["--quiet", "results", "show", path.name]) == 0
        assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "core-only"], "to run a patchset of the series, write: orchestrate run -p core-only"),
        (["run", "-p", "core-only", "--jobs", "many"], "a number of guests (at least 1), or auto"),
        (["run", "-p", "core-only", "--jobs", "0"], "a number of guests (at least 1), or auto"),
        (["run", "-p", "core-only", "--jobs", "9999"], "run at most"),
    ],
)
def test_a_mistake_says_what_to_write(
    arguments: list[str], sentence: str, own_results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(["--quiet", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1
    assert not own_results.exists()
