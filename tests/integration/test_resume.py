# SPDX-License-Identifier: GPL-2.0-only
"""A run of each kind that Ctrl-C ends between two real guests, and that --resume finishes with another QEMU.

tests/unit/test_resume.py shows with fake guests what a resumed run keeps and prints. Here real guests show that what
was recorded stays, that only what is missing boots, and that the exchange of QEMU in between is named.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cache import Cache
from orchestrator.cli.application import status_of
from orchestrator.execution.bench import Bench
from orchestrator.kernel.build import KernelBuild
from orchestrator.machine.accelerator import QEMU
from orchestrator.store.manifest import read_manifest
from orchestrator.store.run import Run, RunWriter

_SMALL = ["-t", "1x512M/1", "-a", "tcg"]
#: Kind -> the words of its command and of its --resume, and the smallest number of results.
COMMANDS: dict[str, tuple[list[str], list[str], int]] = {
    "run": (["run", "-p", "stage-1", "-w", "touch", "-n", "2", "-j", "1", *_SMALL], ["run", "-j", "1"], 4),
    "check": (["check", "-p", "baseline", "--no-shrink", "--seeds", "1..2", "--ops", "20", *_SMALL], ["check"], 2),
    "test": (
        ["test", "-p", "core-only", "--config", "measure", "--suite", "reservations", "--suite",
         "reservations-classic", "--only", "same_page_threads", "--no-baseline", *_SMALL],
        ["test"],
        2,
    ),
    "bisect": (
        ["bisect", "-p", "stage-1", "-w", "touch", "--until", "failure", "--rate", "0.9", "--confidence", "0.9",
         *_SMALL],
        ["bisect"],
        2,
    ),
    "verify": (
        ["series", "verify", "--stage", "1", "--stage", "9", "--only", "smoke", *_SMALL],
        ["series", "verify"],
        2,
    ),
}  # fmt: skip


@pytest.fixture
def small_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, baseline_kernel: KernelBuild, kernel: KernelBuild
) -> None:
    """Results in a directory of the test, two kernels for all stages, and no plots."""
    monkeypatch.setenv("ORCHESTRATE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(
        Bench,
        "kernel",
        lambda _, patchset, dwarf=False: kernel if patchset in ("core-only", "stage-9") else baseline_kernel,
    )
    # `series verify` boots no guest for a stage whose inventory is in the cache.
    has = Cache.has
    monkeypatch.setattr(Cache, "has", lambda cache, kind, key: kind != "inventory" and has(cache, kind, key))
    monkeypatch.setattr("orchestrator.analysis.plots.plot_run", lambda run, directory: [])
    monkeypatch.setattr("orchestrator.analysis.report.write_report", lambda *_: None)


@pytest.fixture
def replace_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """From now on PATH leads to another binary of QEMU, as after an upgrade: the same one with a byte more."""

    def replaced() -> None:
        program = tmp_path / "usr" / "bin" / QEMU
        program.parent.mkdir(parents=True)
        shutil.copy(str(shutil.which(QEMU)), program)
        with program.open("ab") as file:
            file.write(b"\0")
        # QEMU looks for its firmware and modules relative to its own place.
        for each in ("lib", "share"):
            (tmp_path / "usr" / each).symlink_to(f"/usr/{each}")
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return replaced


def ends_of(run: Path) -> dict[str, bytes]:
    """The recorded end of each cell, as it is stored."""
    return {path.parent.name: path.read_bytes() for path in (run / "parts").glob("*/cell.json")}


@pytest.mark.usefixtures("small_runs")
@pytest.mark.parametrize("kind", COMMANDS)
def test_an_interrupted_run_is_finished_with_another_qemu(
    kind: str,
    replace_qemu: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command, resume, least = COMMANDS[kind]
    record, recorded = RunWriter.record, []

    def record_and_interrupt(writer: RunWriter, *arguments: Any) -> None:
        recorded.append(writer)
        if len(recorded) == 1:
            record(writer, *arguments)
        else:  # as if the second guest had not ended yet
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as interrupting:
        interrupting.setattr(RunWriter, "record", record_and_interrupt)
        assert status_of(command) == 130
    (path,) = (tmp_path / "results").iterdir()
    _, printed = capfd.readouterr()
    assert f"orchestrate {' '.join(resume[: 2 if kind == 'verify' else 1])} --resume {path.name}" in printed
    begun = ends_of(path)
    before = read_manifest(path).accelerator
    assert begun

    replace_qemu()
    status = status_of([*resume, "--resume", path.name])
    printed = "".join(capfd.readouterr())
    assert status == 0, printed
    ended = ends_of(path)
    assert len(ended) >= max(least, len(begun) + 1) and begun.items() <= ended.items()
    assert set(Run.open(path).cells["outcome"]) == {"ok"}
    manifest = read_manifest(path)
    assert manifest.earlier_accelerators == (before,)
    assert manifest.accelerator.qemu_digest != before.qemu_digest
    assert status_of(["results", "show", path.name]) == 0
    for text in (printed, capfd.readouterr().out):
        assert "the QEMU binaries differ" in text
        assert "they changed before the run was resumed" in " ".join(text.split())
