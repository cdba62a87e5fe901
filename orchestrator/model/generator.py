# SPDX-License-Identifier: GPL-2.0-only
"""Random traces that reach many different states.

The generator runs the model along with the trace: it writes to ranges that have a
reservation, up to the threshold and past it, and unmaps or moves pages that are
mapped. Uniformly random traces would mostly fault on empty addresses.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from orchestrator.model import trace
from orchestrator.model.address_space import WRITE, AddressSpace, Vma
from orchestrator.model.memory import STAGES, Model
from orchestrator.model.page import PAGES, PTES
from orchestrator.model.trace import Operation, Trace

_BASE: Final[Mapping[str, int]] = {
    "map": 8,
    "unmap": 4,
    "write": 34,
    "read": 8,
    "protect": 4,
    "dontneed": 5,
    "free": 2,
    "cold": 1,
    "huge": 2,
    "nohuge": 1,
    "collapse": 4,
    "remap": 6,
    "bind": 2,
    "lock": 2,
    "unlock": 3,
    "fork": 4,
    "exit": 3,
    "khugepaged": 7,
    "dump": 2,
    "set": 2,
}

#: Operations that a profile does more or less often than `mixed`.
PROFILES: Final[Mapping[str, Mapping[str, int]]] = {
    "mixed": {},
    "fork": {"fork": 14, "exit": 8, "write": 40, "bind": 0, "lock": 1, "unlock": 1},
    "mremap": {"remap": 28, "unmap": 8, "protect": 6, "bind": 0, "khugepaged": 18},
    "pressure": {"dump": 14, "fork": 5, "khugepaged": 6},
    "zero-page": {"read": 26, "dontneed": 12, "unmap": 6, "bind": 0},
    "khugepaged": {"khugepaged": 14, "collapse": 8, "fork": 6, "lock": 4, "unlock": 4, "set": 3},
}

_THRESHOLDS: Final = (2, 3, 8, 64, 256, 409, 511, 512)
_MAX_ALIVE: Final = 4
#: Sizes of multi-size THP to use: the smallest, the largest, and two that are common on real machines.
_SIZES: Final = ("hugepages-16kB", "hugepages-64kB", "hugepages-128kB", "hugepages-1024kB")


class _Generator:
    """Draws operations and applies them to a model."""

    def __init__(self, chance: random.Random, model: Model, profile: str) -> None:
        self._chance = chance
        self._model = model
        self._pages = model.blocks * PAGES
        self._named = len(model.alive)
        self._next_up: list[Operation] = []
        weights = {**_BASE, **PROFILES[profile]}
        if "pressure" not in model.stages:
            weights["dump"] = 0
        self._verbs: tuple[str, ...] = tuple(verb for verb, weight in weights.items() if weight)
        self._weights = tuple(weights[verb] for verb in self._verbs)
        self._draw: Mapping[str, Callable[[str, AddressSpace], Operation | None]] = {
            "map": self._map,
            "write": self._write,
            "read": self._read,
            "remap": self._remap,
            "fork": self._fork,
            "exit": self._exit,
        }

    def __iter__(self) -> Iterator[Operation]:
        """An endless stream of operations; each has been applied to the model when it is returned."""
        while True:
            operation = self._next_up.pop(0) if self._next_up else self._next()
            if operation is not None:
                self._model.step(operation)
                yield operation

    def _odds(self, percent: int) -> bool:
        return self._chance.randrange(100) < percent

    def _next(self) -> Operation | None:
        chance, model = self._chance, self._model
        process = chance.choice(model.alive)
        mm = model.process(process)
        if not mm.vmas:
            return self._map(process, mm)
        if not self._fresh(mm) and self._odds(40):
            return self._renew(process, mm)
        verb = chance.choices(self._verbs, self._weights)[0]
        draw = self._draw.get(verb)
        if draw is not None:
            return draw(process, mm)
        if verb == "khugepaged":
            return trace.Khugepaged()
        if verb == "dump":
            return trace.Dump()
        if verb == "set":
            return self._set()
        start, count = self._extent(mm)
        thread = chance.randrange(1, trace.MAX_THREADS) if self._odds(20) else 0
        match verb:
            case "unmap":
                return trace.Unmap(process, start, count, thread)
            case "protect":
                protection = chance.choice(("none", "r", "r", "r", "rw", "rw", "rw", "rw", "rw"))
                if protection == "rw" and self._odds(50):
                    vma = chance.choice(mm.vmas)
                    start, count = vma.start, vma.end - vma.start
                return trace.Protect(process, start, count, protection, thread)  # type: ignore[arg-type]
            case "bind":
                return trace.Bind(process, start, count, chance.randrange(model.nodes), thread)
            case "lock":
                return trace.Lock(process, start, count, thread)
            case "unlock":
                if self._odds(50):
                    start, count = mm.vmas[0].start, mm.vmas[-1].end - mm.vmas[0].start
                return trace.Unlock(process, start, count, thread)
        if verb == "collapse" and self._odds(70):
            start -= start % PAGES
            count = PAGES
        return trace.Advise(process, start, count, verb, thread)  # type: ignore[arg-type]

    # Where

    def _block(self, mm: AddressSpace) -> int:
        """A range within a VMA; usually one with a reservation or a page table."""
        chance = self._chance
        pick = chance.randrange(10)
        if pick < 4 and mm.reservations:
            return chance.choice(sorted(mm.reservations))
        if pick < 7 and mm.tables:
            return chance.choice(sorted(mm.tables))
        vma = chance.choice(mm.vmas)
        return chance.randrange(vma.start, vma.end) // PAGES

    def _fresh(self, mm: AddressSpace) -> list[int]:
        """Ranges in which the first write would map or reserve a huge page."""
        hints = ("huge", "") if self._model.setting("enabled") == "always" else ("huge",)
        return [
            block
            for vma in mm.vmas
            if vma.attributes.hint in hints and vma.attributes.protection == WRITE
            for block in vma.blocks()
            if block not in mm.tables
        ]

    def _renew(self, process: str, mm: AddressSpace) -> Operation | None:
        """Make room for huge pages when all VMAs have become too small for one."""
        chance = self._chance
        count = chance.choice((1, 2, 3, 4)) * PAGES
        gap = self._gap(mm, count, 0)
        if gap is not None and self._odds(70):
            # Reservations are made where "enabled" is "always" and nobody has asked for huge pages.
            return trace.Map(
                process, gap, count, None if self._model.setting("enabled") == "always" else "huge"
            )
        start = chance.randrange(self._model.blocks) * PAGES
        return trace.Unmap(process, *self._clip(start, start + count))

    def _clip(self, start: int, end: int) -> tuple[int, int]:
        start = min(max(start, 0), self._pages - 1)
        return start, max(min(end, self._pages) - start, 1)

    def _extent(self, mm: AddressSpace) -> tuple[int, int]:
        """Pages for an operation: part of a range, whole ranges, or pages across a border."""
        chance = self._chance
        origin = self._block(mm) * PAGES
        shape = chance.randrange(10)
        if shape < 4:
            start = origin + chance.randrange(PAGES)
            return self._clip(start, min(start + chance.choice((1, 1, 2, 7, 64)), origin + PAGES))
        if shape < 6:
            return self._clip(origin, origin + PAGES)
        if shape == 6:
            cut = chance.randrange(1, PAGES)
            low, high = (origin, origin + cut) if self._odds(50) else (origin + cut, origin + PAGES)
            return self._clip(low, high)
        if shape == 7:
            return self._clip(origin, origin + chance.randrange(1, 4) * PAGES)
        if shape == 8:
            start = origin + chance.randrange(-20, 20)
            return self._clip(start, start + chance.choice((20, PAGES, PAGES + 30)))
        vma = chance.choice(mm.vmas)
        return self._clip(vma.start, vma.end)

    def _gap(self, mm: AddressSpace, count: int, align: int) -> int | None:
        """The start of `count` unmapped pages, `align` pages after the start of a range; None if there are none."""
        chance = self._chance
        first = chance.randrange(self._model.blocks)
        for step in range(self._model.blocks):
            start = (first + step) % self._model.blocks * PAGES + align
            if start + count <= self._pages and not mm.overlapping(start, start + count):
                return start
        return None

    # What

    def _map(self, process: str, mm: AddressSpace) -> Operation | None:
        chance = self._chance
        hint = chance.choices(("huge", "nohuge", None), (15, 5, 80))[0]
        if mm.vmas and self._odds(25):
            # Next to a VMA, so that the two may be merged.
            vma = chance.choice(mm.vmas)
            count = chance.choice((1, 100, PAGES - vma.end % PAGES, PAGES))
            start = vma.end if self._odds(60) else max(vma.start - count, 0)
        else:
            count = chance.choice((1, 100, PAGES, PAGES, 2 * PAGES, 2 * PAGES, 3 * PAGES, 2 * PAGES + 100))
            gap = self._gap(mm, count, chance.choice((0, 0, 0, 17, 256)))
            if gap is None:
                return None
            start = gap
        if start >= self._pages:
            return None
        start, count = self._clip(start, start + count)
        if mm.overlapping(start, start + count) and self._odds(90):
            return None
        return trace.Map(process, start, count, hint)  # type: ignore[arg-type]

    def _writable(self, mm: AddressSpace) -> Vma | None:
        vmas = [vma for vma in mm.vmas if vma.attributes.protection == WRITE]
        return self._chance.choice(vmas) if vmas else None

    def _write(self, process: str, mm: AddressSpace) -> Operation | None:
        chance = self._chance
        fresh = self._fresh(mm)
        block = chance.choice(fresh) if fresh and self._odds(30) else self._block(mm)
        vma = mm.find(block * PAGES + chance.randrange(PAGES))
        if (vma is None or vma.attributes.protection != WRITE) and self._odds(95):
            vma = self._writable(mm)
            if vma is None:
                return None
            block = chance.randrange(vma.start, vma.end) // PAGES
        if vma is None:
            start, count = self._extent(mm)
        else:
            low = max(vma.start, block * PAGES)
            high = min(vma.end, (block + 1) * PAGES)
            start = chance.randrange(low, high)
            count = min(self._write_count(mm, block), high - low)
            if start + count > high:
                start = high - count
            if self._odds(8):
                start, count = low, min(vma.end, low + 3 * PAGES) - low
        seed = chance.randrange(1, 2**32)
        thread = chance.randrange(1, trace.MAX_THREADS) if self._odds(20) else 0
        return trace.Write(process, start, count, seed, thread)

    def _write_count(self, mm: AddressSpace, block: int) -> int:
        """One page, a few, or the number needed for a promotion by khugepaged: exactly, one less or one more."""
        chance = self._chance
        pick = chance.randrange(10)
        if pick < 3:
            return 1
        if pick < 6:
            return chance.randrange(2, 20)
        threshold = int(self._model.setting("promotion_threshold"))
        table = mm.tables.get(block)
        if pick < 9 and table is not None and table.state == PTES:
            return max(threshold - table.present.bit_count() + chance.randrange(-1, 2), 1)
        return chance.choice((max(threshold - 1, 1), threshold, PAGES))

    def _read(self, process: str, mm: AddressSpace) -> Operation | None:
        chance = self._chance
        vma = chance.choice(mm.vmas)
        if self._odds(40):
            start, count = self._extent(mm)
        else:
            start = chance.randrange(vma.start, vma.end)
            count = min(chance.choice((1, 1, 3, PAGES)), vma.end - start)
        return trace.Read(process, start, count, chance.randrange(2) if self._odds(20) else 0)

    def _remap(self, process: str, mm: AddressSpace) -> Operation | None:
        chance = self._chance
        block = self._block(mm)
        vma = mm.find(block * PAGES) or chance.choice(mm.vmas)
        pick = chance.randrange(10)
        if pick < 2:  # grow or shrink in place
            start = max(vma.start, vma.end - chance.choice((1, 200, PAGES)))
            count = vma.end - start
            new_count = max(1, count + chance.choice((-200, -1, 1, 100, PAGES)))
            new_count = min(new_count, self._pages - start)
            return trace.Remap(process, start, count, start, new_count)
        if pick < 6:  # whole blocks, or the whole of a VMA
            start = max(vma.start, block * PAGES) if vma.start <= block * PAGES < vma.end else vma.start
            end = min(vma.end, start + chance.choice((1, 1, 2)) * PAGES) if self._odds(70) else vma.end
        else:
            start = chance.randrange(vma.start, vma.end)
            end = min(vma.end, start + chance.choice((1, 10, 300, PAGES)))
        count = end - start
        new_count = count
        if self._odds(25):
            new_count = max(1, count + chance.choice((-100, -1, 1, 100)))
        align = start % PAGES if self._odds(60) else chance.randrange(PAGES)
        target = self._gap(mm, new_count, align)
        if target is None or self._odds(15):
            target = min(chance.randrange(self._model.blocks) * PAGES + align, self._pages - 1)
        new_count = min(new_count, self._pages - target)
        if target == start:
            return None
        return trace.Remap(process, start, count, target, new_count)

    def _fork(self, process: str, mm: AddressSpace) -> Operation | None:
        if self._named >= trace.MAX_PROCESSES or len(self._model.alive) >= _MAX_ALIVE:
            return None
        self._named += 1
        if self._odds(60):
            self._next_up = self._lose_slots(process, mm)
        return trace.Fork(process, f"p{self._named - 1}")

    def _lose_slots(self, process: str, mm: AddressSpace) -> list[Operation]:
        """Writes after a fork that cause copies, so that used slots of a reservation are lost."""
        chance = self._chance
        used = [block for block in sorted(mm.reservations) if block in mm.tables and mm.tables[block].present]
        if not used:
            return []
        block = chance.choice(used)
        page = mm.tables[block].present.bit_length() - 1
        vma = mm.find(block * PAGES)
        if vma is None or vma.attributes.protection != WRITE:
            return []
        count = min(self._write_count(mm, block), PAGES - 1)
        start = block * PAGES + max(min(page, PAGES - count), 0)
        follow_up: list[Operation] = [trace.Write(process, start, count, chance.randrange(1, 2**32))]
        if self._odds(60):
            follow_up.append(trace.Khugepaged())
        return follow_up

    def _exit(self, process: str, _mm: AddressSpace) -> Operation | None:
        if len(self._model.alive) == 1:
            return None
        return trace.Exit(process)

    def _set(self) -> Operation | None:
        chance = self._chance
        knobs: dict[str, Iterable[int | str]] = {
            "use_zero_page": (0, 1),
            "max_ptes_none": (0, 255, 511),
            "max_ptes_shared": (0, 10, 256, 511),
            "max_ptes_swap": (0, 64, 511),
            "enabled": ("always", "always", "always", "madvise"),
            "defrag": trace.DEFRAG,
            chance.choice(_SIZES): trace.SIZE_ENABLED,
        }
        if "threshold-knob" in self._model.stages:
            knobs["promotion_threshold"] = (1, *_THRESHOLDS)
        knob = chance.choice(sorted(knobs))
        return trace.Set(knob, str(chance.choice(list(knobs[knob]))))


def follow(chance: random.Random, model: Model, profile: str = "mixed") -> Iterator[Operation]:
    """An endless stream of random operations; each has been applied to `model` when it is returned.

    Args:
        chance: source of random choices; Hypothesis passes its own, which can shrink.
        model: the model, in any state.
        profile: one of `PROFILES`.
    """
    return iter(_Generator(chance, model, profile))


def first_settings(chance: random.Random, stages: Iterable[str]) -> dict[str, str]:
    """Settings for the header of a trace, usually with a threshold above 1.

    Most traces start with "enabled" at "always", since there are no reservations otherwise, and a third with some sizes
    of multi-size THP.
    """
    settings = {}
    if "threshold-knob" in stages:
        threshold = 1 if chance.randrange(100) < 20 else chance.choice(_THRESHOLDS)
        settings["promotion_threshold"] = str(threshold)
    if chance.randrange(8):
        settings["enabled"] = "always"
    if chance.randrange(4) == 0:
        settings["defrag"] = chance.choice(trace.DEFRAG)
    if chance.randrange(4) == 0:
        settings["max_ptes_swap"] = str(chance.choice((0, 64, 511)))
    if chance.randrange(3) == 0:
        for size in chance.sample(_SIZES, chance.choice((1, 1, 2))):
            settings[size] = chance.choice(trace.SIZE_ENABLED)
    return settings


def generate(
    seed: int,
    length: int,
    profile: str = "mixed",
    stages: Iterable[str] = STAGES,
    settings: Mapping[str, str] | None = None,
    blocks: int = trace.DEFAULT_BLOCKS,
    nodes: int = 1,
    patchset: str | None = None,
) -> Trace:
    """A random trace; equal arguments give equal traces.

    Args:
        seed: seed for all random choices; recorded in the trace.
        length: number of operations.
        profile: one of `PROFILES`.
        stages: names of the series' stages that the kernel has.
        settings: settings for the header of the trace; None for random ones.
        blocks: size of the arena in 2 MiB ranges.
        nodes: number of NUMA nodes with memory.
        patchset: recorded in the trace.

    Raises:
        ValueError: unknown profile or stages.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown profile `{profile}`; the profiles are {', '.join(PROFILES)}.")
    chance = random.Random(f"{seed}/{profile}")
    chosen = tuple(stages)
    first = first_settings(chance, chosen) if settings is None else dict(settings)
    model = Model(chosen, first, blocks, nodes)
    operations = follow(chance, model, profile)
    return Trace(
        operations=tuple(next(operations) for _ in range(length)),
        seed=seed,
        patchset=patchset,
        blocks=blocks,
        settings=first,
        comments=(f"profile {profile}",),
    )
