# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate try``: what it compares, what it says, and its exit status. Guests are ``fake_guest.py``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from fake_guest import TOPOLOGY, World, install

from orchestrator.cli.application import status_of
from orchestrator.execution.ending import Ending
from orchestrator.execution.trial.run import Attempt, moved
from orchestrator.kernel.series import OtherKernel, load_series
from orchestrator.kernel.source import has_changes
from orchestrator.store.outcome import Outcome

ROOT = Path(__file__).resolve().parents[2]
PATCH = """\
From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: A Developer <a@example.org>
Date: Thu, 1 Jan 2026 00:00:00 +0000
Subject: [PATCH] mm: say something

---
 mm/memory.c | 1 +
 1 file changed, 1 insertion(+)

diff --git a/mm/memory.c b/mm/memory.c
index 0000000..1111111 100644
--- a/mm/memory.c
+++ b/mm/memory.c
@@ -1 +1,2 @@
 a
+b
"""


@pytest.mark.parametrize(
    ("ends", "status"), [("well", 0), ("panic", 3), ("workload failed", 3), ("QEMU killed by a signal", 1)]
)
def test_the_exit_status(
    ends: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = World(ends, tmp_path)
    install(world, monkeypatch)
    assert status_of(["try", "-p", "core-only", "-t", TOPOLOGY, "--json"]) == status
    told = json.loads(capsys.readouterr().out)
    assert [side["name"] for side in told["sides"]] == ["baseline", "core-only"]
    assert world.boots == 2, "one guest per kernel"
    assert all((side["outcome"] == "ok") == (ends == "well") for side in told["sides"])


def test_the_text_has_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(World("well", tmp_path), monkeypatch)
    assert status_of(["try", "-p", "core-only", "-t", TOPOLOGY]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["workload", "touch:size=quick", "baseline", "core-only"]
    assert lines[1].split() == ["outcome", "ok", "ok"]
    assert any(line.startswith("rss_kib.max [KiB]") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "baseline"], "there is nothing to try: baseline would be compared with itself"),
        (["-p", "core-only", "--patch", "none.patch"], "--patch none.patch: there is no such file"),
        (["-p", "core-only", "--set", "vm.swappiness=1,2"], "a guest takes one value, not 1,2"),
        (["-p", "core-only", "-w", "none"], "none"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(World("well", tmp_path), monkeypatch)
    assert status_of(["try", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_a_patch_comes_on_top_of_a_patchset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(World("well", tmp_path), monkeypatch)
    patch = tmp_path / "say.patch"
    patch.write_text(PATCH)
    arguments = ["try", "-p", "core-only:2", "--patch", str(patch), "-t", TOPOLOGY, "--json"]
    assert status_of(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert [side["name"] for side in told["sides"]] == ["core-only:2", "core-only:2 with say.patch"]


def test_stages_on_top_are_numbered_on(tmp_path: Path) -> None:
    series = load_series(ROOT / "kernel_patches")
    more = series.with_others(
        {"more": OtherKernel(patchset="core-only:2", on_top=str(ROOT / "kernel_patches"))}
    ).select("more")
    assert [stage.number for stage in more] == list(range(1, 3 + len(series.stages)))
    assert [stage.name for stage in more[2:]] == [stage.name for stage in series.stages]


def test_uncommitted_changes_are_seen(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=A", "-c", "user.email=a@b", "-C", str(tmp_path), *arguments],
            check=True,
            capture_output=True,
        )

    git("init", "-q")
    (tmp_path / "file").write_text("a")
    git("add", ".")
    git("commit", "-qm", "first")
    assert not has_changes(str(tmp_path)) and not has_changes(str(tmp_path / "none"))
    (tmp_path / "file").write_text("changed")
    assert has_changes(str(tmp_path)) and not has_changes(f"{tmp_path}#HEAD")


def test_counters_that_moved() -> None:
    ok = Ending(Outcome.OK)
    before = Attempt("a", ok, growth={"pgfault": 1000, "thp_fault_alloc": 4, "pswpin": 0, "kept": 100})
    after = Attempt(
        "b", ok, growth={"pgfault": 1040, "thp_fault_alloc": 40, "pswpin": 3, "kept": 100, "new": 9}
    )
    assert moved(before, after) == [("new", 0, 9), ("thp_fault_alloc", 4, 40)]
