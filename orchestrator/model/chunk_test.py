# SPDX-License-Identifier: GPL-2.0-only
"""The chunk test by arithmetic: how many children fit, on machines that nobody has at hand.

Children are added until memory is full; each touches some pages of every 2 MiB range of its chunk. A range costs the
pages that were touched and a page table, or 512 pages once it is huge; unused pages of reservations cost nothing,
since they are given back when memory is short. `orchestrator.model.memory` says the same range by range, and slower.

Which of the ranges at the threshold khugepaged reaches in time is not predicted: that depends on its pace and on how
the free memory is fragmented. The two ends are: none of them, and all.
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

#: Kernel image, initramfs and what boot uses, for any size: of the guests that run the chunk test (MemTotal - MemFree,
#: and what MemTotal lacks of the memory installed beside struct page).
_BOOT_KIB: Final = 172_000
#: struct page: 64 bytes of 4096.
_MEMMAP_SHARE: Final = 64 / 4096
#: What a child costs beside its chunk: task, stack, page tables of the program. By how much more than chunk and page
#: tables MemAvailable falls from the first to the eleventh child of the reference run, while no node is full.
CHILD_KIB: Final = 220


@dataclass(frozen=True)
class ChunkTestMachine:
    """What there is to be filled.

    Args:
        memory_kib: installed.
        nodes: NUMA nodes, each with memory.
        available_kib: MemAvailable before the first child; None for an estimate.
    """

    memory_kib: int
    nodes: int = 1
    available_kib: int | None = None

    @property
    def min_kib(self) -> int:
        """The min watermarks: set_recommended_min_free_kbytes() of mm/khugepaged.c, 11 pageblocks a zone."""
        return 11 * RANGE_KIB * (self.nodes + 1)

    @property
    def high_kib(self) -> int:
        """The high watermarks: __setup_per_zone_wmarks() of mm/page_alloc.c."""
        return self.min_kib + 2 * max(self.min_kib // 4, self.memory_kib // 1000)

    @property
    def begin_kib(self) -> int:
        """MemAvailable before the first child."""
        if self.available_kib is not None:
            return self.available_kib
        return int(self.memory_kib * (1 - _MEMMAP_SHARE)) - _BOOT_KIB - self.high_kib


@dataclass(frozen=True)
class Policy:
    """What a kernel does with a range.

    Args:
        threshold: pages in use from which on a range may become huge. 1: it is huge at the first touch.
        promotes: whether every range at the threshold becomes huge before the next child comes; else none does.
    """

    threshold: int
    promotes: bool = False

    def cost_kib(self, touched: Counts) -> Counts:
        """Memory of ranges, by the number of pages touched in each."""
        huge = (
            touched >= self.threshold
            if self.promotes or self.threshold == 1
            else np.zeros(len(touched), bool)
        )
        # Of a huge page the page table is kept aside, for when it is split.
        return np.where(huge, RANGE_KIB, touched * PAGE_KIB) + PAGE_KIB


@dataclass(frozen=True)
class ChunkTestResult:
    """How the test ends.

    Args:
        survivors: children until less than a chunk is available, as a strict overcommit check would end it.
        survivors_oom: children that had touched everything when nothing was left.
        promotions: ranges of the survivors that are huge, or would be, though not at their first touch.
        used_kib: memory of the survivors.
    """

    survivors: int
    survivors_oom: int
    promotions: int
    used_kib: int


#: Draws the numbers of touched pages of a child's ranges: generator, ranges -> counts from 1 to 512.
Distribution = Callable[[np.random.Generator, int], Counts]


def distribution(pattern: str, pages: int = 256) -> Distribution:
    """How many pages of each range are touched.

    Args:
        pattern: ``one``; ``random``: 1 to `pages`, uniform; ``mixed``: one of the two by the toss of a coin, which is
            what the workload does unless told otherwise; ``fixed``: always `pages`; ``geometric``: with a mean of
            `pages`; ``dense``: all.

    Raises:
        ValueError: no such pattern, or pages outside of 1 to 512.
    """
    if not 1 <= pages <= RANGE_PAGES:
        raise ValueError(f"{pages} pages of a range: choose 1 to {RANGE_PAGES}.")

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
        raise ValueError(f"There is no pattern {pattern!r}; there are {', '.join(known)}.")
    return known[pattern]


#: Names that :func:`distribution` knows.
PATTERNS: Final = ("mixed", "one", "random", "fixed", "geometric", "dense")


def simulate(
    machine: ChunkTestMachine,
    chunk_kib: int,
    draw: Distribution,
    policies: Sequence[Policy],
    seed: int = 1,
    most_children: int = 30_000,
) -> list[ChunkTestResult]:
    """How the test ends for each policy; all of them are given the same touches.

    Args:
        chunk_kib: what each child maps, a multiple of 2 MiB.
        most_children: where it ends at the latest.

    Raises:
        ValueError: a chunk that is no positive multiple of 2 MiB, or that memory never gets full with.
    """
    if chunk_kib <= 0 or chunk_kib % RANGE_KIB:
        raise ValueError("The chunk is to be a positive multiple of 2 MiB.")
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
        # What does not fit any more ends the test by either rule.
        outcomes.append(ChunkTestResult(min(children, end), end, promotions, used_kib))
    return outcomes
