# SPDX-License-Identifier: GPL-2.0-only
"""What always holds in the model, whatever is done in whatever order.

The machine keeps an account of its own beside the model: of each page of each process whether it is mapped, how it is
protected, and what was written to it. It knows nothing of huge pages and reservations, since nobody who uses memory
should notice them.
"""

from __future__ import annotations

from typing import Any, Self, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from mutants import (
    CopiedReservations,
    CrossesVmas,
    ExitLeaks,
    HandedOutTwice,
    HolesNotZeroed,
    ReleasedForgotten,
    ReusesShared,
    SharedTree,
    ShiftedByOne,
    SplitKeeps,
)

from orchestrator.model import trace
from orchestrator.model.address_space import NONE, READ, WRITE
from orchestrator.model.memory import STAGES, Model
from orchestrator.model.page import HUGE, PAGES, PTES, page_word

BLOCKS = 4
#: Where ranges begin and end: at the borders of blocks, beside them, and half-way.
EDGES = [block * PAGES + offset for block in range(BLOCKS) for offset in (0, 1, 255, 256, 511)] + [
    BLOCKS * PAGES
]

#: The last stage of each kernel that is tried; the baseline has none.
KERNELS = (
    None,
    "threshold-knob",
    "reserve",
    "zero-page",
    "pressure",
    "copy",
    "in-place",
    "mremap",
    "sync-promotion",
    "tracepoints",
)

NOTHING = [0] * PAGES
PROTECTIONS = {NONE: "none", READ: "r", WRITE: "rw"}


class Memory:
    """What a program knows of its memory, by page.

    Attributes:
        words: what was written there, and is to be read again.
        protection: as mprotect() was told; None where nothing is mapped.
        locked: by mlock().
    """

    def __init__(self, words: list[int], protection: list[str | None], locked: list[bool]) -> None:
        self.words = words
        self.protection = protection
        self.locked = locked

    @classmethod
    def empty(cls) -> Self:
        pages = BLOCKS * PAGES
        return cls([0] * pages, [None] * pages, [False] * pages)

    def copied(self) -> Memory:
        """What a child knows of it: it locks nothing."""
        return Memory(self.words.copy(), self.protection.copy(), [False] * len(self.locked))

    def fill(self, start: int, count: int, protection: str | None, locked: bool = False) -> None:
        """Have zeros there, or nothing at all; no pages for a negative count."""
        count = max(count, 0)
        self.words[start : start + count] = [0] * count
        self.protection[start : start + count] = [protection] * count
        self.locked[start : start + count] = [locked] * count

    def taken_out(self, start: int, count: int) -> Memory:
        """What is there, which is not any more."""
        end = start + count
        taken = Memory(self.words[start:end], self.protection[start:end], self.locked[start:end])
        self.fill(start, count, None)
        return taken

    def put(self, start: int, taken: Memory) -> None:
        end = start + len(taken.words)
        self.words[start:end] = taken.words
        self.protection[start:end] = taken.protection
        self.locked[start:end] = taken.locked


def ranges() -> st.SearchStrategy[tuple[int, int]]:
    """First page and number of pages."""
    return st.lists(st.sampled_from(EDGES), min_size=2, max_size=2, unique=True).map(
        lambda edges: (min(edges), max(edges) - min(edges))
    )


class RandomOperations(RuleBasedStateMachine):
    """Operations at random; what is expected of memory follows from them alone."""

    processes: Bundle[str] = Bundle("processes")

    def __init__(self, last_stage: str | None, kind: type[Model] = Model) -> None:
        super().__init__()
        self.stages = STAGES[: STAGES.index(last_stage) + 1] if last_stage else ()
        self.model = kind(self.stages, {}, BLOCKS, 2)
        self.memory = {"p0": Memory.empty()}
        self.names = 1
        self.before: dict[str, int] = {}

    def do(self, operation: trace.Operation) -> Any:
        self.before = {name: self.model.counter(name) for name in self.model.counter_names}
        return self.model.step(operation).errno

    @initialize(
        target=processes, threshold=st.sampled_from((2, 256, 256, 512, 1)), blocks=st.integers(2, BLOCKS)
    )
    def begin(self, threshold: int, blocks: int) -> str:
        if "threshold-knob" in self.stages:
            self.do(trace.Set("promotion_threshold", str(threshold)))
        self.do(trace.Set("enabled", "always"))
        self.map("p0", (0, blocks * PAGES), None)
        return "p0"

    # What programs do

    @rule(process=processes, where=ranges(), hint=st.sampled_from(("huge", "nohuge", None, None)))
    def map(self, process: str, where: tuple[int, int], hint: trace.Hint | None) -> None:
        memory = self.memory[process]
        taken = any(memory.protection[where[0] : sum(where)])
        assert self.do(trace.Map(process, *where, hint)) == ("EEXIST" if taken else 0)
        if not taken:
            memory.fill(*where, "rw")

    @rule(process=processes, where=ranges())
    def unmap(self, process: str, where: tuple[int, int]) -> None:
        assert self.do(trace.Unmap(process, *where)) == 0
        self.memory[process].fill(*where, None)

    @rule(process=processes, where=ranges(), seed=st.integers(1, 99))
    def write(self, process: str, where: tuple[int, int], seed: int) -> None:
        errno = self.do(trace.Write(process, *where, seed))
        memory = self.memory[process]
        for page in range(where[0], sum(where)):
            if memory.protection[page] != "rw":
                assert errno == "SIGSEGV"
                return
            memory.words[page] = page_word(seed, page)
        assert errno == 0

    @rule(process=processes, block=st.integers(0, BLOCKS - 1), count=st.sampled_from((1, 2, 255, 256, 257)))
    def write_some(self, process: str, block: int, count: int) -> None:
        self.write(process, (block * PAGES, count), 7)

    @rule(process=processes, where=ranges())
    def read(self, process: str, where: tuple[int, int]) -> None:
        works = not {None, "none"} & set(self.memory[process].protection[where[0] : sum(where)])
        assert self.do(trace.Read(process, *where)) == (0 if works else "SIGSEGV")

    def _before_hole(self, process: str, where: tuple[int, int]) -> tuple[slice, int]:
        """Pages that a system call does which ends where nothing is mapped, and how many it leaves."""
        protection = self.memory[process].protection[where[0] : sum(where)]
        done = protection.index(None) if None in protection else len(protection)
        return slice(where[0], where[0] + done), len(protection) - done

    @rule(process=processes, where=ranges(), protection=st.sampled_from(("none", "r", "rw", "rw")))
    def protect(self, process: str, where: tuple[int, int], protection: trace.Protection) -> None:
        done, left = self._before_hole(process, where)
        assert self.do(trace.Protect(process, *where, protection)) == ("ENOMEM" if left else 0)
        self.memory[process].protection[done] = [protection] * (done.stop - done.start)

    @rule(process=processes, where=ranges(), locked=st.booleans())
    def lock(self, process: str, where: tuple[int, int], locked: bool) -> None:
        done, left = self._before_hole(process, where)
        memory = self.memory[process]
        # What may not be read is locked as well, but cannot be populated.
        fails = left or (locked and "none" in memory.protection[done])
        assert self.do((trace.Lock if locked else trace.Unlock)(process, *where)) == (
            "ENOMEM" if fails else 0
        )
        memory.locked[done] = [locked] * (done.stop - done.start)

    @rule(process=processes, where=ranges())
    def dontneed(self, process: str, where: tuple[int, int]) -> None:
        errno = self.do(trace.Advise(process, *where, "dontneed"))
        memory = self.memory[process]
        for page in range(where[0], sum(where)):
            if memory.locked[page]:
                assert errno == "EINVAL"
                return
            memory.words[page] = 0
        assert errno == ("ENOMEM" if None in memory.protection[where[0] : sum(where)] else 0)

    @rule(
        process=processes,
        where=ranges(),
        advice=st.sampled_from(("free", "cold", "huge", "nohuge", "collapse", "collapse")),
    )
    def advise(self, process: str, where: tuple[int, int], advice: trace.Advice) -> None:
        self.do(trace.Advise(process, *where, advice))

    @rule(process=processes, where=ranges(), node=st.integers(0, 1))
    def bind(self, process: str, where: tuple[int, int], node: int) -> None:
        self.do(trace.Bind(process, *where, node))

    @rule(
        process=processes,
        where=ranges(),
        new_start=st.sampled_from(EDGES[:-1]),
        larger=st.sampled_from((0, 0, -1, 1)),
    )
    def remap(self, process: str, where: tuple[int, int], new_start: int, larger: int) -> None:
        start, count = where
        new_count = min(max(count + larger, 1), BLOCKS * PAGES - new_start)
        self._remap(process, start, count, new_start, new_count)

    @rule(process=processes, block=st.integers(0, BLOCKS - 1), new_block=st.integers(0, BLOCKS - 1))
    def remap_whole(self, process: str, block: int, new_block: int) -> None:
        self._remap(process, block * PAGES, PAGES, new_block * PAGES, PAGES)

    def _remap(self, process: str, start: int, count: int, new_start: int, new_count: int) -> None:
        memory = self.memory[process]
        errno = self.do(trace.Remap(process, start, count, new_start, new_count))
        protection, locked = memory.protection[start], memory.locked[start]
        if protection is None:
            assert errno == "EFAULT"
        elif start == new_start:
            memory.fill(start + new_count, count - new_count, None)
            if errno == 0:
                assert not any(memory.protection[start + count : start + new_count])
                memory.fill(start + count, new_count - count, protection, locked)
        elif start < new_start + new_count and new_start < start + count:
            assert errno == "EINVAL"
        else:
            # What is there goes first, whether the rest succeeds or not.
            memory.fill(new_start, new_count, None)
            memory.fill(start + new_count, count - new_count, None)
            if errno == 0:
                taken = memory.taken_out(start, min(count, new_count))
                memory.fill(new_start, new_count, protection, locked)
                memory.put(new_start, taken)

    @precondition(lambda self: len(self.memory) < 4)
    @rule(target=processes, parent=processes)
    def fork(self, parent: str) -> str:
        child = f"p{self.names}"
        self.names += 1
        kept = set(self.model.process(parent).reservations)
        assert self.do(trace.Fork(parent, child)) == 0
        self.memory[child] = self.memory[parent].copied()
        assert not self.model.process(child).reservations
        assert set(self.model.process(parent).reservations) == kept
        return child

    @precondition(lambda self: len(self.memory) > 1)
    @rule(process=consumes(processes))
    def exit(self, process: str) -> None:
        assert self.do(trace.Exit(process)) == 0
        del self.memory[process]

    # What happens to them

    @rule()
    def khugepaged(self) -> None:
        self.do(trace.Khugepaged())

    @rule()
    def dump(self) -> None:
        self.do(trace.Dump())
        if "pressure" in self.stages:
            held = [each for name in self.memory for each in self.model.process(name).reservations.values()]
            assert not any(each.unused for each in held)

    @precondition(lambda self: "threshold-knob" in self.stages)
    @rule(threshold=st.sampled_from((1, 2, 256, 511, 512)))
    def set_threshold(self, threshold: int) -> None:
        self.do(trace.Set("promotion_threshold", str(threshold)))

    @rule(value=st.sampled_from(("always", "always", "madvise", "never")))
    def set_enabled(self, value: str) -> None:
        self.do(trace.Set("enabled", value))
        if value != "always" and "pressure" in self.stages:
            held = [each for name in self.memory for each in self.model.process(name).reservations.values()]
            assert not any(each.unused for each in held)

    @rule(
        knob=st.sampled_from(("use_zero_page", "max_ptes_none", "max_ptes_shared")),
        value=st.sampled_from("01"),
    )
    def set_knob(self, knob: str, value: str) -> None:
        self.do(trace.Set(knob, value))

    # What always holds

    @invariant()
    def contents_are_what_was_written(self) -> None:
        """Nothing that the kernel does of itself changes them, and no process sees another's."""
        for process, memory in self.memory.items():
            tables = self.model.process(process).tables
            for block in range(BLOCKS):
                contents = tables[block].contents() if block in tables else NOTHING
                assert contents == memory.words[block * PAGES : (block + 1) * PAGES]

    @invariant()
    def what_is_mapped_is_known(self) -> None:
        for process, memory in self.memory.items():
            mapped: list[str | None] = [None] * (BLOCKS * PAGES)
            for vma in self.model.process(process).vmas:
                mapped[vma.start : vma.end] = [PROTECTIONS[vma.attributes.protection]] * (vma.end - vma.start)
            assert mapped == memory.protection

    @invariant()
    def the_counter_identity_holds(self) -> None:
        count = self.model.counter
        assert PAGES * count("thp_res_alloc") == count("nr_thp_reserved") + sum(
            count(f"thp_res_{name}") for name in ("mapped", "released", "filled")
        )

    @invariant()
    def what_is_reserved_is_unused(self) -> None:
        held = [each for name in self.memory for each in self.model.process(name).reservations.values()]
        assert len({id(each) for each in held}) == len(held)
        assert self.model.counter("nr_thp_reserved") == sum(each.unused.bit_count() for each in held)

    @invariant()
    def reservations_lie_inside_of_one_eligible_vma(self) -> None:
        for process in self.memory:
            mm = self.model.process(process)
            for block in mm.reservations:
                vma = mm.find(block * PAGES)
                assert vma is not None
                assert vma.contains_block(block)
                assert vma.attributes.hint != "nohuge"

    @invariant()
    def a_page_is_in_one_place(self) -> None:
        """Either reserved, or mapped; by several processes only as a page that nobody may write to."""
        owners: set[tuple[int, int]] = set()
        users: dict[int, int] = {}
        for process in self.memory:
            mm = self.model.process(process)
            for block, table in mm.tables.items():
                unused = mm.reservations[block].unused if block in mm.reservations else 0
                # Before "copy" and "zero-page" a promotion and a write over the zero page leave the reservation behind.
                if "copy" in self.stages:
                    assert table.state != HUGE or not unused
                    assert not table.present & unused
                if table.state != PTES or not table.present:
                    continue
                for page, frame in enumerate(table.frames):
                    if frame is None:
                        continue
                    users[id(frame)] = users.get(id(frame), 0) + 1
                    if frame.block is not None:
                        assert not frame.block.unused >> frame.slot & 1
                        if users[id(frame)] == 1:
                            assert (id(frame.block), frame.slot) not in owners
                            owners.add((id(frame.block), frame.slot))
                    if table.writable >> page & 1:
                        assert frame.exclusive
                        assert frame.maps == 1

    @invariant()
    def anonymous_memory_is_what_is_mapped(self) -> None:
        for process in self.memory:
            views = [self.model.process(process).tables.get(block) for block in range(BLOCKS)]
            pages = sum(PAGES if view.state == HUGE else view.present.bit_count() for view in views if view)
            assert self.model.rss(process) == pages

    @invariant()
    def events_are_only_ever_added(self) -> None:
        for name, before in self.before.items():
            if not name.startswith("nr_"):
                assert self.model.counter(name) >= before, name

    @invariant()
    def a_kernel_does_what_its_stages_do(self) -> None:
        count, stages = self.model.counter, self.stages
        for stage, name in (
            ("reserve", "alloc"),
            ("pressure", "dump"),
            ("copy", "copy"),
            ("in-place", "collapse"),
            ("in-place", "filled"),
        ):
            assert stage in stages or not count(f"thp_res_{name}")
        assert not count("thp_res_alloc_failed")  # memory is ample

    @invariant()
    def the_models_own_account_is_right(self) -> None:
        assert self.model.violations() == []

    def teardown(self) -> None:
        for process in list(self.model.alive):
            self.model.step(trace.Exit(process))
        assert self.model.counter("nr_thp_reserved") == 0
        assert self.model.counter("nr_anon_transparent_hugepages") == 0


def explore(last_stage: str | None, examples: int, kind: type[Model] = Model) -> None:
    # The library takes any callable that gives a machine, but declares a class.
    run_state_machine_as_test(
        cast("type[RuleBasedStateMachine]", lambda: RandomOperations(last_stage, kind)),
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate] if kind is not Model else [Phase.generate, Phase.shrink],
        ),
    )


@pytest.mark.parametrize("last_stage", KERNELS)
def test_what_always_holds(last_stage: str | None) -> None:
    explore(last_stage, 30)


@pytest.mark.parametrize(
    "mutant",
    [
        CopiedReservations,
        CrossesVmas,
        ExitLeaks,
        HandedOutTwice,
        HolesNotZeroed,
        ReleasedForgotten,
        ReusesShared,
        SharedTree,
        ShiftedByOne,
        SplitKeeps,
    ],
)
def test_a_mistake_breaks_what_always_holds(mutant: type[Model]) -> None:
    """The invariants can fail: they do for kernels that are wrong."""
    with pytest.raises(AssertionError):
        explore("in-place", 500, mutant)
