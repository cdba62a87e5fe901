# SPDX-License-Identifier: GPL-2.0-only
"""A cell: one variant x one workload x one repetition, the unit of work, of retry and of distribution."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One fresh boot with one workload in it.

    Args:
        variant, workload: their names.
        repetition: from 1.
        seed: what the workload draws from. It depends on workload and repetition only, so every variant is
            given the same touches, and variants differ in nothing but the kernel.
    """

    variant: str
    workload: str
    repetition: int
    seed: int

    @property
    def id(self) -> str:
        """Unique in its run, and a directory name: ``core-only@256.chunk.1``."""
        return f"{self.variant}.{self.workload}.{self.repetition}"


def cells_of(variants: Sequence[str], workloads: Sequence[str], repeat: int, seed: int) -> tuple[Cell, ...]:
    """Every cell in the order it is run: repetition by repetition, variants shuffled within each.

    Interleaving keeps a slow drift of the host out of the difference between variants, and an interrupted run
    has whole repetitions. The order depends on `seed` alone.
    """
    cells: list[Cell] = []
    for repetition in range(1, repeat + 1):
        for workload in workloads:
            drawn = zlib.crc32(f"{seed}/{workload}/{repetition}".encode())
            order = list(variants)
            random.Random(drawn).shuffle(order)
            cells += [Cell(variant, workload, repetition, drawn) for variant in order]
    return tuple(cells)
