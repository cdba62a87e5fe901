# SPDX-License-Identifier: GPL-2.0-only
"""The chunk test, calculated: how many children fit on machines of any size.

Children are added until memory is full; each touches some pages of every 2 MiB range of its chunk. A range costs the
pages that were touched and a page table, or 512 pages once it is huge. Unused pages of reservations cost nothing,
since they are released when memory is short. `orchestrator.model.memory` gives the same result per range, but slower.

How many of the ranges at the threshold khugepaged promotes in time is not predicted: that depends on its speed and on
fragmentation. The result is calculated for both extremes: none of them, and all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

PAGE_KIB: Final = 4
RANGE_KIB: Final = 2048
RANGE_PAGES: Final = 512

#: Memory of kernel image, initramfs and boot, for any size. Measured in guests of the chunk test: MemTotal - MemFree,
#: plus the installed memory that is neither in MemTotal nor used by struct page.
_BOOT_KIB: Final = 172_000
#: struct page: 64 bytes per 4096 bytes.
_MEMMAP_SHARE: Final = 64 / 4096
#: Memory of a child besides its chunk: task, stack, page tables of the program. Measured in the reference run: the
#: decrease of MemAvailable from the first to the eleventh child, minus chunks and page tables, while no node is full.
CHILD_KIB: Final = 220


@dataclass(frozen=True)
class ChunkTestMachine:
    """The machine whose memory the test fills.

    Args:
        memory_kib: installed memory in KiB.
        nodes: number of NUMA nodes, each with memory.
        available_kib: MemAvailable in KiB before the first child; None for an estimate.
    """

    memory_kib: int
    nodes: int = 1
    available_kib: int | None = None

    @property
    def min_kib(self) -> int:
        """The min watermarks: set_recommended_min_free_kbytes() in mm/khugepaged.c, 11 pageblocks per zone."""
        return 11 * RANGE_KIB * (self.nodes + 1)

    @property
    def high_kib(self) -> int:
        """The high watermarks: __setup_per_zone_wmarks() in mm/page_alloc.c."""
        return self.min_kib + 2 * max(self.min_kib // 4, self.memory_kib // 1000)

    @property
    def begin_kib(self) -> int:
        """MemAvailable before the first child."""
        if self.available_kib is not None:
            return self.available_kib
        return int(self.memory_kib * (1 - _MEMMAP_SHARE)) - _BOOT_KIB - self.high_kib


@dataclass(frozen=True)
class Policy:
    """How a kernel treats a range.

    Args:
        threshold: number of pages in use at which a range may become huge. 1: huge at the first touch.
        promotes: whether all ranges at the threshold become huge before the next child starts; else none does.
    """

    threshold: int
    promotes: bool = False

    def cost_kib(self, touched: Counts) -> Counts:
        """Memory of each range in KiB, by the number of its touched pages."""
        huge = (
            touched >= self.threshold
            if self.promotes or self.threshold == 1
            else np.zeros(len(touched), bool)
        )
        # A huge page keeps a deposited page table for a later split.
        return np.where(huge, RANGE_KIB, touched * PAGE_KIB) + PAGE_KIB


@dataclass(frozen=True)
class ChunkTestResult:
    """The result of the test.

    Args:
        survivors: number of children until less than a chunk is available, as with strict overcommit.
        survivors_oom: number of children that had touched all their pages when memory was full.
        promotions: number of ranges of the survivors that became huge after their first touch.
        used_kib: memory of the survivors in KiB.
    """

    survivors: int
    survivors_oom: int
    promotions: int
    used_kib: int


#: Draws the number of touched pages per range of a child: generator, number of ranges -> counts from 1 to 512.
Distribution = Callable[[np.random.Generator, int], Counts]


def distribution(pattern: str, pages: int = 256) -> Distribution:
    """How many pages of each range are touched.

    Args:
        pattern: ``one``; ``random``: uniform from 1 to `pages`; ``mixed``: one of these two at random, the default of
            the workload; ``fixed``: always `pages`; ``geometric``: with a mean of `pages`; ``dense``: all.

    Raises:
        ValueError: unknown pattern, or pages outside of 1 to 512.
    """
    if not 1 <= pages <= RANGE_PAGES:
        raise ValueError(f"{pages} pages per range: choose 1 to {RANGE_PAGES}.")

    def one(chance: np.random.Generator, ranges: int) -> Counts:
        return np.ones(ranges, np.int64)

    def random(chance: np.random.Generator, ranges: int) -> Counts:
        return chance.integers(1, pages, ranges, endpoint=True)

    def mixed(chance: np.random.Generator, ranges: int) -> Counts:
        return np.where(chance.integers(0, 2, ranges) == 1, random(chance, ranges), 1)

    def fixed(chance: np.random.Generator, ranges: int) -> Counts:
        return np.full(ranges, pages, np.int64)

    def geometric(chance: np.random.Generator, ranges: int) -> Counts:
        return np.minimum(chance.geometric(1 / pages, ranges), RANGE_PAGES)

    def dense(chance: np.random.Generator, ranges: int) -> Counts:
        return np.full(ranges, RANGE_PAGES, np.int64)

    known = {each.__name__: each for each in (mixed, one, random, fixed, geometric, dense)}
    if pattern not in known:
        raise ValueError(f"unknown pattern {pattern!r}; the patterns are {', '.join(known)}.")
    return known[pattern]


#: Patterns that :func:`distribution` accepts.
PATTERNS: Final = ("mixed", "one", "random", "fixed", "geometric", "dense")


def simulate(
    machine: ChunkTestMachine,
    chunk_kib: int,
    draw: Distribution,
    policies: Sequence[Policy],
    seed: int = 1,
    most_children: int = 30_000,
) -> list[ChunkTestResult]:
    """The result of the test for each policy; the touches are the same for all.

    Args:
        chunk_kib: memory that each child maps in KiB, a multiple of 2 MiB.
        most_children: upper limit of the number of children.

    Raises:
        ValueError: the chunk is not a positive multiple of 2 MiB, or too small to fill memory.
    """
    if chunk_kib <= 0 or chunk_kib % RANGE_KIB:
        raise ValueError("the chunk must be a positive multiple of 2 MiB.")
    chance = np.random.default_rng(seed)
    used = np.zeros(len(policies), np.int64)
    promoted = np.zeros(len(policies), np.int64)
    at_stop: list[tuple[int, int, int] | None] = [None] * len(policies)
    ends: list[int | None] = [None] * len(policies)
    begin, oom = machine.begin_kib, machine.begin_kib + machine.high_kib - machine.min_kib
    for child in range(most_children + 1):
        for index in range(len(policies)):
            if at_stop[index] is None and begin - used[index] < chunk_kib:
                at_stop[index] = (child, int(promoted[index]), int(used[index]))
        if all(end is not None for end in ends):
            break
        touched = draw(chance, chunk_kib // RANGE_KIB)
        for index, policy in enumerate(policies):
            cost = int(policy.cost_kib(touched).sum()) + CHILD_KIB
            if ends[index] is None and used[index] + cost > oom:
                ends[index] = child
            used[index] += cost
            if policy.threshold > 1:
                promoted[index] += int((touched >= policy.threshold).sum())
    outcomes = []
    for stop, end in zip(at_stop, ends, strict=True):
        if stop is None or end is None:
            raise ValueError(f"{most_children} children do not fill memory; choose a larger chunk.")
        children, promotions, used_kib = stop
        # A child that does not fit ends the test by either rule.
        outcomes.append(ChunkTestResult(min(children, end), end, promotions, used_kib))
    return outcomes
