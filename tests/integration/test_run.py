# SPDX-License-Identifier: GPL-2.0-only
"""The main job, small: real kernels, real guests, a run directory that holds what it should."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from orchestrator.kernel.build import KernelBuild

SMALL = ["--topology", "2x512M/1", "--accel", "icount", "--jobs", "2", "--workload"]
LATENCY = "fault_latency:regions=16,pages_per_region=8"


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "ORCHESTRATE_RESULTS": str(tmp_path / "results")}


def run_directory(tmp_path: Path) -> Path:
    (only,) = (tmp_path / "results").iterdir()
    return only


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, baseline_kernel: KernelBuild, kernel: KernelBuild
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One run of everything, shared by the tests that look at it."""
    import sys

    tmp_path = tmp_path_factory.mktemp("run")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "orchestrator",
            "run",
            "-p",
            "core-only",
            *SMALL,
            LATENCY,
            "--workload",
            "chunk",
            "-n",
            "2",
        ],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    return run_directory(tmp_path), done


def test_the_table_has_every_variant_and_the_directory_everything(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    path, done = finished
    assert done.returncode in (0, 3), done.stderr
    for name in ("baseline", "core-only@1", "core-only@256", str(path)):
        assert name in done.stdout
    for name in (
        "run.json", "cells.parquet", "metrics.parquet", "samples.parquet",
        "comparison.json", "comparison.txt", "changelog.txt", "report.html",
    ):  # fmt: skip
        assert (path / name).stat().st_size > 0, name
    assert {plot.suffix for plot in (path / "plots").iterdir()} == {".png", ".svg"}


def test_every_cell_ended_ok_with_console_and_command_line(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    path, _ = finished
    cells = pd.read_parquet(path / "cells.parquet")
    assert len(cells) == 4 * 2 * 2
    assert set(cells["outcome"]) == {"ok"}, cells[["cell", "outcome", "evidence"]].to_string()
    for cell in cells["cell"]:
        assert "Linux version" in (path / "logs" / cell / "console.log").read_text(errors="replace")
    for patchset in ("baseline", "core-only"):
        assert "bzImage is ready" in (path / "logs" / f"build-{patchset}.log").read_text()


def test_the_patched_kernel_reserves_only_above_threshold_1(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    metrics = pd.read_parquet(finished[0] / "metrics.parquet")
    reserved = metrics[metrics["metric"] == "reservations.total"].groupby("variant")["value"]
    assert set(reserved.groups) == {"core-only@1", "core-only@256"}  # stock has no such counter
    assert reserved.max()["core-only@1"] == 0
    assert reserved.min()["core-only@256"] >= 16


def test_the_counter_identity_holds_after_every_cell(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    samples = pd.read_parquet(finished[0] / "samples.parquet")
    after = samples[(samples["phase"] == "after") & (samples["source"] == "vmstat") & samples["node"].isna()]
    table = after.pivot_table(index="cell", columns="counter", values="value", aggfunc="last")
    patched = table[table.index.str.startswith("core-only")].fillna(0)
    places = ["nr_thp_reserved", "thp_res_mapped", "thp_res_released", "thp_res_filled"]
    sides = patched.reindex(columns=places, fill_value=0).sum(axis="columns")
    assert (512 * patched["thp_res_alloc"] == sides).all()
    assert (patched["nr_thp_reserved"] == 0).all()


def test_compare_prints_the_same_table_again(
    finished: tuple[Path, subprocess.CompletedProcess[str]], command: list[str]
) -> None:
    path, _ = finished
    again = subprocess.run([*command, "compare", str(path)], capture_output=True, text=True, check=False)
    assert again.returncode in (0, 3)
    assert again.stdout.strip() == (path / "comparison.txt").read_text().strip()


def test_an_interrupted_run_keeps_its_cells_and_is_finished_later(
    tmp_path: Path, command: list[str], kernel: KernelBuild, baseline_kernel: KernelBuild
) -> None:
    asked = [
        *command,
        "run",
        "-p",
        "core-only",
        "--topology",
        "1x512M/1",
        "--accel",
        "tcg",
        "-w",
        LATENCY,
        "-n",
        "3",
    ]
    process = subprocess.Popen(
        asked,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a script, SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and len(list(tmp_path.glob("results/*/parts/*/cell.json"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "--resume" in err and "Traceback" not in err
    path = run_directory(tmp_path)
    before = pd.read_parquet(path / "cells.parquet").set_index("cell")["started_utc"]
    kept = before[pd.read_parquet(path / "cells.parquet").set_index("cell")["outcome"] == "ok"]
    assert 2 <= len(kept) < 12

    resumed = subprocess.run(
        [*command, "run", "--resume", path.name],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert resumed.returncode in (0, 3), resumed.stderr
    cells = pd.read_parquet(path / "cells.parquet").set_index("cell")
    assert len(cells) == 12 and set(cells["outcome"]) == {"ok"}
    assert (cells.loc[kept.index, "started_utc"] == kept).all(), "a finished cell was measured again"


def test_a_panic_is_an_outcome_with_its_evidence(
    tmp_path: Path, command: list[str], kernel: KernelBuild, baseline_kernel: KernelBuild
) -> None:
    asked = [
        *command, "run", "-p", "core-only", "--topology", "1x512M/1", "--accel", "tcg", "-w", LATENCY, "-n", "1",
        "--cmdline", "rdinit=/nonexistent",
    ]  # fmt: skip
    done = subprocess.run(
        asked, env=environment(tmp_path), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 3
    cells = pd.read_parquet(run_directory(tmp_path) / "cells.parquet")
    assert set(cells["outcome"]) <= {"kernel-panic", "boot-failed"}
    assert cells["evidence"].str.contains("panic").all()
    assert "Traceback" not in done.stderr


def test_exec_returns_the_commands_own_status(command: list[str], baseline_kernel: KernelBuild) -> None:
    asked = [*command, "--quiet", "exec", "-p", "baseline", "--topology", "1x512M/1", "--accel", "tcg", "--"]
    done = subprocess.run(
        [*asked, "sh", "-c", "echo '$HOME; \"x\"'; exit 7"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 7
    assert done.stdout == '$HOME; "x"\n'


def test_dry_run_names_the_plan_and_leaves_nothing(
    tmp_path: Path, command: list[str], kernel: KernelBuild
) -> None:
    asked = [*command, "run", "-p", "core-only", "--dry-run", "--json"]
    done = subprocess.run(asked, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert [v["name"] for v in plan["variants"]] == [
        "baseline",
        "baseline-control",
        "core-only@1",
        "core-only@256",
    ]
    assert plan["variants"][3]["kernel_cached"] is True
    assert not (tmp_path / "results").exists()


def test_a_kernel_that_was_built_elsewhere_boots(
    command: list[str], baseline_kernel: KernelBuild, tmp_path: Path
) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(baseline_kernel.bzimage.read_bytes())
    asked = [*command, "--quiet", "exec", "--kernel", str(image), "--vmlinux", str(baseline_kernel.vmlinux)]
    done = subprocess.run(
        [*asked, "--topology", "1x512M/1", "--accel", "tcg", "--", "uname", "-r"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{baseline_kernel.release}\n"), done.stderr
