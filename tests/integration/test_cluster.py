# SPDX-License-Identifier: GPL-2.0-only
"""Cells on a real Dask cluster: a scheduler and a worker, each a process of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from distributed import LocalCluster

from orchestrator.kernel.build import KernelBuild


@pytest.mark.usefixtures("kernel", "baseline_kernel")
def test_cells_are_measured_by_workers_and_their_logs_come_back(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The worker has an empty cache of its own: all it needs is shipped.
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(tmp_path / "worker-cache"))
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None) as cluster:
        monkeypatch.delenv("ORCHESTRATE_CACHE")
        asked = [
            *command, "run", "-p", "core-only", "-t", "1x512M/1", "-a", "tcg", "-n", "1",
            "-w", "fault_latency:regions=16,pages_per_region=8",
            "--executor", cluster.scheduler_address.replace("tcp://", "dask://"),
        ]  # fmt: skip
        environment = {**os.environ, "ORCHESTRATE_RESULTS": str(tmp_path / "results")}
        done = subprocess.run(
            asked, env=environment, capture_output=True, text=True, check=False, timeout=400
        )
    assert done.returncode in (0, 3), done.stderr
    (path,) = (tmp_path / "results").iterdir()
    cells = pd.read_parquet(path / "cells.parquet")
    assert len(cells) == 4 and set(cells["outcome"]) == {"ok"}, cells[["cell", "evidence"]].to_string()
    for cell in cells["cell"]:
        assert "Linux version" in (path / "logs" / cell / "console.log").read_text(errors="replace")
    assert not (tmp_path / "worker-cache" / "kernel").exists()


def test_an_address_where_nobody_answers_is_the_hosts_fault(
    tmp_path: Path, command: list[str], kernel: KernelBuild
) -> None:
    environment = {**os.environ, "ORCHESTRATE_RESULTS": str(tmp_path / "results")}
    asked = [*command, "run", "-p", "core-only", "--executor", "dask://127.0.0.1:1"]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 1 and "no Dask scheduler responds" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "results").exists()


def test_a_malformed_address_is_the_requests_fault(command: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "ORCHESTRATE_RESULTS": str(tmp_path / "results")}
    asked = [*command, "run", "-p", "core-only", "--executor", "slurm://x"]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 2 and "dask://HOST:PORT" in done.stderr
