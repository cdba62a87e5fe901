# SPDX-License-Identifier: GPL-2.0-only
"""Cells on a Dask cluster whose workers die or are stopped. No guest is booted."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster

from orchestrator.execution import cluster
from orchestrator.execution.cluster import Cluster, Returned, aborted_when_asked
from orchestrator.execution.measured_cell import CellResult
from orchestrator.experiment.cell import Cell
from orchestrator.store.outcome import Outcome

pytestmark = pytest.mark.thorough


def until_aborted(cell: Cell, experiment: Any, shipment: Any, stop: str) -> Returned:
    """Stands for a cell that runs until its guest is ended."""
    aborted = threading.Event()
    with aborted_when_asked(stop, aborted.set):
        outcome = Outcome.LOST if aborted.wait(60) else Outcome.TIMEOUT
    return Returned(CellResult(cell, outcome, "aborted"), {})


def dies(cell: Cell, experiment: Any, shipment: Any, stop: str) -> Returned:
    """Stands for a cell whose worker is killed."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(cluster, "_WORKER_TIMEOUT_S", 2)
    start: Any = LocalCluster
    with start(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None) as local:
        place = Cluster(local.scheduler_address.replace("tcp://", "dask://"))
        client: Any = place._client
        place._shipment = client.scatter(None, broadcast=True, hash=False)
        yield place
        client.close()


def test_a_worker_is_told_to_end_its_guests(
    workers: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "measure_shipped", until_aborted)
    results: list[CellResult] = []
    thread = threading.Thread(
        target=lambda: results.append(workers.measure(Cell("baseline", "chunk", 1, 7), None, tmp_path))  # type: ignore[arg-type]
    )
    thread.start()
    workers.abort()
    thread.join(50)
    assert [(each.outcome, each.evidence) for each in results] == [(Outcome.LOST, "aborted")]


def test_a_cell_whose_worker_is_killed_is_lost(
    workers: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "measure_shipped", dies)
    result = workers.measure(Cell("baseline", "chunk", 1, 7), None, tmp_path)  # type: ignore[arg-type]
    assert result.outcome is Outcome.LOST
    assert result.evidence.startswith("the worker that measured it died: ")
