# SPDX-License-Identifier: GPL-2.0-only
"""A cell: one variant x one workload x one repetition. Cells are scheduled, retried and distributed one by one."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One fresh boot that runs one workload.

    Args:
        variant, workload: names of both.
        repetition: number of the repetition, from 1.
        seed: random seed of the workload. It depends on workload and repetition only, so the workload does the
            same on every variant.
    """

    variant: str
    workload: str
    repetition: int
    seed: int

    @property
    def id(self) -> str:
        """Unique within the run, and the name of the cell's directory: ``core-only@256.chunk.1``."""
        return f"{self.variant}.{self.workload}.{self.repetition}"


def cells_of(variants: Sequence[str], workloads: Sequence[str], repeat: int, seed: int) -> tuple[Cell, ...]:
    """All cells in the order they run: repetition by repetition, with the variants shuffled within each.

    Interleaving keeps slow drift of the host out of the difference between variants, and leaves an interrupted
    run with complete repetitions. The order depends on `seed` alone.
    """
    cells: list[Cell] = []
    for repetition in range(1, repeat + 1):
        for workload in workloads:
            drawn = zlib.crc32(f"{seed}/{workload}/{repetition}".encode())
            order = list(variants)
            random.Random(drawn).shuffle(order)
            cells += [Cell(variant, workload, repetition, drawn) for variant in order]
    return tuple(cells)
