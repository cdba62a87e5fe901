# SPDX-License-Identifier: GPL-2.0-only
"""The chunk test of a run in the terms of the simulation: machine, chunk, touches, and measured points."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from orchestrator.errors import UserError
from orchestrator.model.chunk_test import RANGE_KIB, ChunkTestMachine, Distribution, distribution
from orchestrator.store.manifest import Role
from orchestrator.store.run import Run

WORKLOAD = "chunk"
#: Patterns of the workload that touch as many pages as a pattern of the simulation, which ignores positions.
_PATTERNS = {"sequential": "mixed"}


@dataclass(frozen=True)
class MeasuredPoint:
    """The chunk test of a variant.

    Args:
        variant: name of the variant.
        threshold: value of the series' knob; its neutral value, or 1, for a kernel that maps huge pages at the first
            touch.
        survivors, survivors_oom, promotions: medians over the boots.
    """

    variant: str
    threshold: int
    survivors: float
    survivors_oom: float
    promotions: float


@dataclass(frozen=True)
class MeasuredChunk:
    """The chunk test of a run."""

    machine: ChunkTestMachine
    chunk_kib: int
    pattern: str
    pages: int
    points: tuple[MeasuredPoint, ...]

    @property
    def draw(self) -> Distribution:
        """The touches of the workload."""
        return distribution(self.pattern, self.pages)


def measured_chunk(run: Run) -> MeasuredChunk:
    """Read a run's chunk test.

    Raises:
        UserError: it has none.
    """
    described = run.manifest.workloads.get(WORKLOAD)
    cells = run.ok_cells
    cells = cells[cells["workload"] == WORKLOAD]
    if described is None or cells.empty:
        raise UserError(
            f"{run.path.name} has no chunk test that ended ok; choose a run of the workload chunk."
        )
    parameters = described.parameters
    nodes = [node for node in run.manifest.topology.nodes if node.memory_mib]
    installed_kib = sum(node.memory_mib for node in nodes) * 1024
    ballast = int(parameters.get("ballast_percent", 0))
    samples = run.samples
    before = samples[
        samples["cell"].isin(cells["cell"])
        & (samples["phase"] == "before")
        & (samples["source"] == "meminfo")
        & samples["node"].isna()
        & (samples["counter"] == "MemAvailable")
    ]
    available_kib = int(before["value"].median()) - installed_kib * ballast // 100
    chunk_kib = int(parameters["chunk_mib"]) * 1024 or installed_kib // 100 * (100 - ballast) // 16
    chunk_kib = (chunk_kib + RANGE_KIB // 2) // RANGE_KIB * RANGE_KIB
    pattern = _PATTERNS.get(parameters["pattern"], parameters["pattern"])
    return MeasuredChunk(
        ChunkTestMachine(installed_kib, len(nodes), available_kib),
        chunk_kib,
        pattern,
        int(parameters["max_pages"]),
        tuple(_points(run)),
    )


def _points(run: Run) -> Iterator[MeasuredPoint]:
    # The simulation has one knob: the first one of the series with a neutral value.
    knob, neutral = next(iter(run.manifest.series.neutral.items()), ("", "1"))
    metrics = run.metrics
    metrics = metrics[metrics["workload"] == WORKLOAD]
    for variant in run.manifest.variants:
        knobs = variant.knobs
        if variant.role is Role.CONTROL or knobs.get("enabled", "always") != "always":
            continue
        own = metrics[metrics["variant"] == variant.name]
        medians = {str(name): float(np.median(part["value"])) for name, part in own.groupby("metric")}
        if "survivors.total" in medians:
            yield MeasuredPoint(
                variant.name,
                int(knobs.get(knob, neutral)),
                medians["survivors.total"],
                medians["survivors_oom.total"],
                medians.get("promotions.total", 0.0),
            )
