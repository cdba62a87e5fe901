# SPDX-License-Identifier: GPL-2.0-only
"""A run.json of a run that never ran, to be changed where a test needs it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.store.manifest import (
    AcceleratorRecord,
    Code,
    HostRecord,
    Manifest,
    NodeRecord,
    PlannedCell,
    Role,
    RunKind,
    SeriesRecord,
    SourceRecord,
    TopologyRecord,
)

MANIFEST = Manifest(
    kind=RunKind.RUN,
    name="synthetic",
    command=("orchestrate", "run", "--patchset", "core-only"),
    code=Code(version="0.0", checkout="synthetic"),
    source=SourceRecord(
        description="linux-source-6.12 6.12.117-1",
        requested="linux-source-6.12",
        version="6.12.117",
        commit="0" * 40,
    ),
    series=SeriesRecord(
        name="thp-reservations",
        title="THP reservations (synthetic)",
        base="6.12",
        neutral={"promotion_threshold": "1"},
        identities=(
            "512 * thp_res_alloc == nr_thp_reserved + thp_res_mapped + thp_res_released + thp_res_filled",
        ),
        levels=("nr_thp_reserved",),
    ),
    flavour="measure",
    topology=TopologyRecord(
        text="4x2G",
        nodes=(NodeRecord(cpus=2, memory_mib=2048),) * 4,
        distances=tuple(tuple(10 if a == b else 20 for a in range(4)) for b in range(4)),
    ),
    accelerator=AcceleratorRecord(
        name="icount",
        clock="insns",
        reason="KVM was not probed: synthetic run",
        cpu="max",
        qemu="7.2.22",
        qemu_digest="0" * 64,
    ),
    host=HostRecord(cpu="Synthetic CPU", cpus=2, memory_mib=24000, kernel="6.1.0"),
    tools={"qemu": "QEMU emulator version 0 (synthetic)"},
    variants=(),
    workloads={},
    cells=(),
)


def manifest(**changes: Any) -> Manifest:
    """The record with some fields replaced."""
    return replace(MANIFEST, **changes)


def planned(
    variant: str, workload: str = "chunk", repetition: int = 1, *, role: Role = Role.PATCHED, seed: int = 7
) -> PlannedCell:
    """A cell of the plan."""
    return PlannedCell(
        cell=f"{variant}.{workload}.{repetition}",
        variant=variant,
        role=role,
        workload=workload,
        repetition=repetition,
        seed=seed,
    )
