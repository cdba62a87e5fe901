# SPDX-License-Identifier: GPL-2.0-only
"""What a guest's kernel knows of its reservations: a snapshot of its structures, and of the pages that they describe.

The structures are those of ``mm/thp_reserve.c`` of the series, the page tables those of x86-64. Whatever there is much
of (``struct page``, page tables) is read as arrays, so that a guest of 2 GiB takes a fraction of a second.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.debugger.memory import GuestMemory
from orchestrator.errors import InfrastructureError, UserError

#: Base pages of a range, and of the block of a reservation (HPAGE_PMD_NR).
PAGES = 512
PAGE_BYTES = 4096
RANGE_BYTES = PAGES * PAGE_BYTES

#: State of a page of a range: not there, mapped from the reservation's block, held by the reservation, gone from the
#: block (reclaimed, migrated, merged, or never to be handed out), mapped without a reservation, part of a huge page.
EMPTY, MAPPED, RESERVED, LOST, PAGE, HUGE = ".mrlph"

#: What a page of memory is used for, in this order in :attr:`InspectedNode.blocks`.
USES = ("absent", "free", "kernel", "file", "anonymous", "huge", "mapped", "reserved")

# Bits of a page table entry (arch/x86/include/asm/pgtable_types.h).
_PRESENT = 1 << 0
_LEAF = 1 << 7
_PROT_NONE = 1 << 8
_FRAME = 0x000F_FFFF_FFFF_F000
#: Entries of a page table for addresses of user space.
_USER_ENTRIES = 256
#: Bits of page->mapping (PAGE_MAPPING_FLAGS in include/linux/page-flags.h).
_ANON = 1
_MOVABLE_OR_KSM = 2
#: Bytes of the array of struct page that are mapped together: those of a memory section of 128 MiB.
_CHUNK = 2 << 20
# include/linux/mmzone.h: bytes of a root of memory sections, and the flag of a section with an array of struct page.
_ROOT_BYTES = PAGE_BYTES
_HAS_MEM_MAP = 1 << 1
#: More reservations than any guest has: a list of this length has no end.
_ENDLESS = 1 << 22
_MEMBERS = ("mm", "page", "index", "lock", "nr_unused", "unused")


@dataclass(frozen=True)
class PageRun:
    """Consecutive pages of a block that are in the same state.

    Args:
        first: number of the first page in the block, from 0.
        count: number of pages.
        state: see :data:`EMPTY`.
        unused: whether the reservation's bit says that it holds them.
        refcount, mapcount: references to each, and page table entries that map it.
        flags: names of the flags in ``page->flags``, joined by ``|``.
        mapping, memcg: ``page->mapping`` and ``page->memcg_data``; 0 if the page is nobody's.
    """

    first: int
    count: int
    state: str
    unused: bool
    refcount: int
    mapcount: int
    flags: str
    mapping: int
    memcg: int


@dataclass(frozen=True)
class ReservedBlock:
    """A ``struct thp_resv``.

    Args:
        address: its address.
        tree_mm: the mm in whose tree it is; 0 if it is on a node's list only.
        tree_start: start of the range that the tree has it for.
        mm: the mm that it says it is for.
        start: start of the range that it says it is for.
        pfn: frame number of the first page of its block.
        node: NUMA node of the block; -1 if there is no such memory.
        memcg: address of its memcg; 0 for none.
        nr_unused: the number of pages that it says it holds.
        bits: the number of bits set for them.
        is_locked: whether a CPU had its lock.
        covered: whether anonymous VMAs cover the whole range.
        has_huge_page: whether a huge page is mapped in the range.
        runs: the pages of the block.
    """

    address: int
    tree_mm: int
    tree_start: int
    mm: int
    start: int
    pfn: int
    node: int
    memcg: int
    nr_unused: int
    bits: int
    is_locked: bool
    covered: bool
    has_huge_page: bool
    runs: tuple[PageRun, ...]

    def pages(self, state: str) -> int:
        """Number of its pages in a state."""
        return sum(run.count for run in self.runs if run.state == state)


@dataclass(frozen=True)
class Range:
    """2 MiB of anonymous memory of a process.

    Args:
        start: its address.
        states: the state of each page, as runs: a number and a state, e.g. ``3m509r``; see :data:`EMPTY`.
    """

    start: int
    states: str

    def expanded(self) -> str:
        """The state of each page, one character per page."""
        text, number = [], ""
        for letter in self.states:
            if letter.isdigit():
                number += letter
            else:
                text.append(letter * int(number))
                number = ""
        return "".join(text)


@dataclass(frozen=True)
class Process:
    """An address space.

    Args:
        pid: process ID; 0 if no task uses it any more.
        name: command of that process.
        mm: address of its ``struct mm_struct``.
        ranges: its ranges with anything in them, in order of their addresses.
    """

    pid: int
    name: str
    mm: int
    ranges: tuple[Range, ...]

    @property
    def title(self) -> str:
        """The process as people name it."""
        return f"{self.name} (pid {self.pid})" if self.pid else f"no process (mm {self.mm:#x})"


@dataclass(frozen=True)
class InspectedNode:
    """A NUMA node.

    Args:
        counter: its ``nr_thp_reserved``, in pages, with what CPUs have not added yet.
        listed: addresses of the reservations on its list, in order; None if the stage has no lists.
        list_nr: the length that the list says it has.
        list_error: why the list cannot be followed; empty if it can.
        first_pfn: first frame number of :attr:`blocks`.
        blocks: the uses of each 2 MiB of its memory: number of pages by :data:`USES`.
    """

    number: int
    counter: int
    listed: tuple[int, ...] | None
    list_nr: int
    list_error: str
    first_pfn: int
    blocks: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class MemoryCgroup:
    """A memory cgroup.

    Args:
        address: address of its ``struct mem_cgroup``.
        path: its path below the mount point of the cgroups.
        parent: address of its parent; 0 for the root.
        counters: its own ``thp_reserved`` by node, in pages, without those below it.
        held: pages in blocks that are counted against its limits; None for the root, and before they are limited.
    """

    address: int
    path: str
    parent: int
    counters: Mapping[int, int]
    held: int | None


@dataclass(frozen=True)
class Inspection:
    """The state of a guest at one moment.

    Args:
        release: kernel release.
        threshold: ``promotion_threshold``; None before the stage that adds it.
        mapped: page table entries that map pages which a reservation holds: frame number, mm and address.
    """

    release: str
    threshold: int | None
    nodes: tuple[InspectedNode, ...]
    processes: tuple[Process, ...]
    memcgs: tuple[MemoryCgroup, ...]
    reservations: tuple[ReservedBlock, ...]
    mapped: tuple[tuple[int, int, int], ...]

    def process_of(self, mm: int) -> Process | None:
        """The process with this address space."""
        return next((process for process in self.processes if process.mm == mm), None)

    def only(self, pid: int) -> Inspection:
        """The same with the reservations of one process.

        Raises:
            UserError: no process with this ID has reservations or huge pages.
        """
        own = tuple(process for process in self.processes if process.pid == pid)
        if not own:
            known = ", ".join(process.title for process in self.processes) or "none"
            raise UserError(
                f"--pid {pid}: no such process of the guest has reservations or huge pages; those that have: {known}."
            )
        mms = {process.mm for process in own}
        kept = tuple(each for each in self.reservations if (each.tree_mm or each.mm) in mms)
        return replace(self, processes=own, reservations=kept)


def inspect(memory: GuestMemory) -> Inspection:
    """Read the reservations of a guest that does not run meanwhile.

    Raises:
        UserError: its kernel has no reservations, or those of another version of the series.
        InfrastructureError: its structures cannot be followed.
    """
    import drgn

    try:
        return _StructureReader(memory).read()
    except drgn.FaultError as error:
        raise InfrastructureError(
            f"cannot read the guest's memory at {error.address:#x} ({error}); inspect it again, and if that fails too, "
            "a structure of its kernel is damaged."
        ) from error


@dataclass(frozen=True)
class _Raw:
    """A ``struct thp_resv`` as it is in memory."""

    address: int
    tree_mm: int
    tree_start: int
    mm: int
    start: int
    pfn: int
    memcg: int
    nr_unused: int
    unused: npt.NDArray[np.bool_]
    is_locked: bool


class _StructureReader:
    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._program = memory.program
        self._resv = self._type("struct thp_resv")
        self._check_version()
        self._offsets = {member.name: member.bit_offset // 8 for member in self._resv.members if member.name}
        self._vmemmap = self._start_of_pages()
        self._page_size = int(self._program.type("struct page").size)
        self._page = self._page_array_type()
        self._zero_pfn = int(self._program["zero_pfn"].value_())
        self._flag_names = self._names_of_flags()

    # --- types ---------------------------------------------------------------------------------------------------

    def _type(self, name: str) -> Any:
        try:
            return self._program.type(name)
        except LookupError:
            raise UserError(
                f"the guest's kernel has no {name}: it is the baseline, or a stage before the reservations; inspect a "
                "guest of a later stage."
            ) from None

    def _check_version(self) -> None:
        missing = [name for name in _MEMBERS if not self._resv.has_member(name)]
        if missing:
            raise UserError(
                f"struct thp_resv of the guest's kernel has no member {missing[0]}: this is another version of the "
                "series than the one that inspect knows; boot a kernel of this series."
            )

    def _start_of_pages(self) -> int:
        """The address that ``struct page`` of frame 0 has, or would have.

        Each memory section has it (sparse_encode_mem_map() in mm/sparse.c); only kernels that randomize their layout
        have it in a variable.
        """
        sections = self._program["mem_section"][0]
        for number in range(_ROOT_BYTES // int(sections[0].type_.size)):
            encoded = int(sections[number].section_mem_map.value_())
            if encoded & _HAS_MEM_MAP:
                return encoded & ~(PAGE_BYTES - 1)
        raise InfrastructureError("the guest's kernel has no memory sections that are in use.")

    def _page_array_type(self) -> np.dtype[Any]:
        from drgn import offsetof

        page = self._program.type("struct page")
        fields = {
            "flags": "<u8", "mapping": "<u8", "compound_head": "<u8", "_mapcount": "<i4", "_refcount": "<i4",
        }  # fmt: skip
        if page.has_member("memcg_data"):
            fields["memcg_data"] = "<u8"
        return np.dtype(
            {
                "names": list(fields),
                "formats": list(fields.values()),
                "offsets": [offsetof(page, name) for name in fields],
                "itemsize": self._page_size,
            }
        )

    def _names_of_flags(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for each in self._program.type("enum pageflags").enumerators:
            if each.name.startswith("__NR"):
                break
            names.setdefault(each.value, each.name.removeprefix("PG_"))
        exclusive = self._constant("PG_anon_exclusive")  # what its bit means where it is shown
        if exclusive is not None:
            names[exclusive] = "anon_exclusive"
        return names

    def _constant(self, name: str) -> int | None:
        try:
            return int(self._program.constant(name).value_())
        except LookupError:
            return None

    # --- the whole -----------------------------------------------------------------------------------------------

    def read(self) -> Inspection:
        program = self._program
        tasks = self._tasks()
        node_lists = {node: self._list_of(node) for node in self._node_numbers()}
        raw: dict[int, _Raw] = {}
        for mm in tasks:
            for start, address in self._tree_of(mm):
                raw[address] = self._resv_at(address, mm, start)
        for listed, _, _ in node_lists.values():
            for address in listed or ():
                if address not in raw:
                    raw[address] = self._resv_at(address, 0, 0)
                    mm = raw[address].mm
                    if mm and mm not in tasks:  # no task has it, but it is not gone
                        tasks[mm] = (0, "")
                        for start, other in self._tree_of(mm):
                            raw[other] = self._resv_at(other, mm, start)
        pages = {node: self._pages_of(node) for node in node_lists}
        held = _held_frames(raw.values())
        processes, reservations, mapped = [], [], []
        by_mm: dict[int, list[_Raw]] = {mm: [] for mm in tasks}
        for each in raw.values():
            by_mm.setdefault(each.tree_mm or each.mm, []).append(each)
        for mm, (pid, name) in tasks.items():
            leaves, tables = self._page_tables(mm)
            for start, table in tables.items():
                mapped += _mapped_of(mm, start, table, held)
            areas = self._areas(mm)
            ranges = self._ranges(areas, leaves, tables, by_mm[mm])
            if by_mm[mm] or any(HUGE in each.states for each in ranges):
                processes.append(Process(pid, name, mm, tuple(ranges)))
            for each in by_mm[mm]:
                reservations.append(self._reservation(each, areas, leaves, tables, pages))
        for mm in set(by_mm) - set(tasks):
            reservations += [self._reservation(each, [], {}, {}, pages) for each in by_mm[mm]]
        reservations.sort(key=lambda each: (each.mm, each.start))
        processes.sort(key=lambda each: (each.pid, each.mm))
        blocks = {node: _blocks_of(first, uses) for node, (first, uses) in self._uses(pages, raw).items()}
        item = int(program.constant("NR_THP_RESERVED").value_())
        nodes = tuple(
            InspectedNode(node, self._node_counter(node, item), listed, nr, error, *blocks[node])
            for node, (listed, nr, error) in node_lists.items()
        )
        threshold = self._variable("thp_promotion_threshold")
        release = program["init_uts_ns"].name.release.string_().decode(errors="replace")
        memcgs = tuple(self._memcgs(item, {each.memcg for each in raw.values()}))
        return Inspection(
            release, threshold, nodes, tuple(processes), memcgs, tuple(reservations), tuple(mapped)
        )

    def _variable(self, name: str) -> int | None:
        try:
            return int(self._program.variable(name).value_())
        except LookupError:
            return None

    # --- processes -----------------------------------------------------------------------------------------------

    def _tasks(self) -> dict[int, tuple[int, str]]:
        """Process ID and name by mm; of several processes with one mm, the first."""
        from drgn.helpers.linux.pid import for_each_task

        found: dict[int, tuple[int, str]] = {}
        for task in for_each_task(self._program):
            mm = int(task.mm.value_())
            if mm and mm not in found and not int(task.flags.value_()) & _PF_KTHREAD:
                found[mm] = (int(task.tgid.value_()), task.comm.string_().decode(errors="replace"))
        return found

    def _tree_of(self, mm: int) -> Iterator[tuple[int, int]]:
        """The start of each range with a reservation, and the address of that."""
        from drgn import Object
        from drgn.helpers.linux.xarray import xa_for_each

        tree = Object(self._program, "struct mm_struct", address=mm).thp_resv_tree
        if not tree.value_():
            return
        for index, entry in xa_for_each(tree.blocks.address_of_()):
            address = int(entry.value_())
            if address & 3 == 0:  # others are internal: an entry that xa_reserve() has set aside
                yield int(index) * RANGE_BYTES, address

    def _resv_at(self, address: int, tree_mm: int, tree_start: int) -> _Raw:
        content = self._memory.virtual(address, int(self._resv.size))

        def number(name: str, form: str) -> int:
            return int(struct.unpack_from(form, content, self._offsets[name])[0])

        at = self._offsets["unused"]
        unused = np.unpackbits(np.frombuffer(content, np.uint8, PAGES // 8, at), bitorder="little").astype(
            np.bool_
        )
        page = number("page", "<Q")
        return _Raw(
            address,
            tree_mm,
            tree_start,
            number("mm", "<Q"),
            number("index", "<Q") * RANGE_BYTES,
            (page - self._vmemmap) // self._page_size,
            number("memcg", "<Q") if "memcg" in self._offsets else 0,
            number("nr_unused", "<I"),
            unused,
            "lock" in self._offsets and number("lock", "<I") != 0,
        )

    def _page_tables(self, mm: int) -> tuple[dict[int, int], dict[int, npt.NDArray[np.uint64]]]:
        """The huge pages of a process by address, and its page tables by the address of their range."""
        from drgn import Object

        leaves: dict[int, int] = {}
        tables: dict[int, npt.NDArray[np.uint64]] = {}
        top = int(Object(self._program, "struct mm_struct", address=mm).pgd.value_())
        level = [(0, self._table(self._memory.virtual(top, PAGE_BYTES))[:_USER_ENTRIES])]
        for shift in (39, 30, 21):
            below = []
            for base, table in level:
                for entry in np.flatnonzero(table & np.uint64(_PRESENT | _PROT_NONE)):
                    value, start = int(table[entry]), base + (int(entry) << shift)
                    if value & _LEAF:
                        if shift == 21:
                            leaves[start] = value
                    elif value & _PRESENT:
                        below.append((start, self._table(self._memory.physical(value & _FRAME, PAGE_BYTES))))
            level = below
        tables.update(level)
        return leaves, tables

    @staticmethod
    def _table(content: bytes) -> npt.NDArray[np.uint64]:
        return np.frombuffer(content, np.dtype("<u8"))

    def _areas(self, mm: int) -> list[tuple[int, int]]:
        """The anonymous VMAs of a process: start and end."""
        from drgn import Object
        from drgn.helpers.linux.mm import for_each_vma

        areas = []
        for vma in for_each_vma(Object(self._program, "struct mm_struct", address=mm).address_of_()):
            if not vma.vm_ops.value_():
                areas.append((int(vma.vm_start.value_()), int(vma.vm_end.value_())))
        return areas

    def _ranges(
        self,
        areas: Sequence[tuple[int, int]],
        leaves: Mapping[int, int],
        tables: Mapping[int, npt.NDArray[np.uint64]],
        reservations: Iterable[_Raw],
    ) -> list[Range]:
        by_start = {each.tree_start or each.start: each for each in reservations}
        ranges = []
        for start in sorted(leaves.keys() | tables.keys() | by_start.keys()):
            if not any(begin < start + RANGE_BYTES and start < end for begin, end in areas):
                continue
            if start in leaves:
                ranges.append(Range(start, f"{PAGES}{HUGE}"))
                continue
            states = self._states(by_start.get(start), tables.get(start))
            if (states != ord(EMPTY)).any():
                ranges.append(Range(start, _as_runs(states)))
        return ranges

    def _states(self, resv: _Raw | None, table: npt.NDArray[np.uint64] | None) -> npt.NDArray[np.uint8]:
        """The state of each page of a range, as the code of its letter."""
        states = np.full(PAGES, ord(EMPTY), np.uint8)
        if table is None:
            table = np.zeros(PAGES, np.uint64)
        present, frames = _frames_of(table)
        own = present & (frames != self._zero_pfn)
        states[own] = ord(PAGE)
        if resv is None:
            return states
        from_block = own & (frames == resv.pfn + np.arange(PAGES))
        taken = own | ((table != 0) & ~present)  # or its content is in swap
        states[resv.unused] = ord(RESERVED)
        states[~resv.unused] = ord(LOST)
        states[resv.unused & taken] = ord(LOST)
        states[from_block] = ord(MAPPED)
        return states

    # --- reservations --------------------------------------------------------------------------------------------

    def _reservation(
        self,
        raw: _Raw,
        areas: Sequence[tuple[int, int]],
        leaves: Mapping[int, int],
        tables: Mapping[int, npt.NDArray[np.uint64]],
        pages: Mapping[int, tuple[int, npt.NDArray[Any]]],
    ) -> ReservedBlock:
        node, block = -1, None
        for number, (first, array) in pages.items():
            at = raw.pfn - first
            if at >= 0 and at + PAGES <= len(array):
                node, block = number, array[at : at + PAGES]
        if block is None:
            block = np.zeros(PAGES, self._page)
        states = self._states(raw, tables.get(raw.start))
        return ReservedBlock(
            raw.address, raw.tree_mm, raw.tree_start, raw.mm, raw.start, raw.pfn, node, raw.memcg, raw.nr_unused,
            int(raw.unused.sum()), raw.is_locked, _covers(areas, raw.start), raw.start in leaves,
            tuple(self._runs(states, raw.unused, block)),
        )  # fmt: skip

    def _runs(
        self, states: npt.NDArray[np.uint8], unused: npt.NDArray[np.bool_], block: npt.NDArray[Any]
    ) -> Iterator[PageRun]:
        known = np.uint64(sum(1 << bit for bit in self._flag_names))
        flags = block["flags"] & known
        memcg = block["memcg_data"] if "memcg_data" in (block.dtype.names or ()) else np.zeros(PAGES, "<u8")
        columns = (states, unused, block["_refcount"], block["_mapcount"], flags, block["mapping"], memcg)
        edges = np.zeros(PAGES, np.bool_)
        edges[0] = True
        for column in columns:
            edges[1:] |= column[1:] != column[:-1]
        starts = np.flatnonzero(edges)
        for first, end in zip(starts, [*starts[1:], PAGES], strict=True):
            state, bit, refcount, mapcount, bits, mapping, group = (column[first] for column in columns)
            yield PageRun(
                int(first), int(end - first), chr(state), bool(bit), int(refcount), int(mapcount) + 1,
                self._flags(int(bits)), int(mapping), int(group),
            )  # fmt: skip

    def _flags(self, bits: int) -> str:
        return "|".join(name for bit, name in self._flag_names.items() if bits >> bit & 1)

    # --- nodes ---------------------------------------------------------------------------------------------------

    def _node_numbers(self) -> list[int]:
        from drgn.helpers.linux.nodemask import for_each_online_node

        return [int(node) for node in for_each_online_node(self._program)]

    def _pgdat(self, node: int) -> Any:
        from drgn.helpers.linux.mmzone import NODE_DATA

        return NODE_DATA(self._program, node)

    def _list_of(self, node: int) -> tuple[tuple[int, ...] | None, int, str]:
        """The reservations on a node's list, the length that it says it has, and why it cannot be followed."""
        from drgn import FaultError

        pgdat = self._pgdat(node)
        if not pgdat.type_.type.has_member("thp_resv_list"):
            return None, 0, ""
        its = pgdat.thp_resv_list
        head = int(its.blocks.address_of_().value_())
        offset, found, error = self._offsets["list"], [], ""
        before, at = head, int(its.blocks.next.value_())
        while at != head:
            try:
                after, back = struct.unpack("<QQ", self._memory.virtual(at, 16))
            except FaultError:
                error = f"the entry after {before:#x} is {at:#x}, where there is no memory"
                break
            if back != before:
                error = f"the entry after {before:#x} is {at:#x}, whose predecessor is {back:#x}"
                break
            found.append(at - offset)
            if len(found) > _ENDLESS:
                error = "it has no end"
                break
            before, at = at, after
        return tuple(found), int(its.nr.value_()), error

    def _node_counter(self, node: int, item: int) -> int:
        from drgn.helpers.linux.cpumask import for_each_possible_cpu
        from drgn.helpers.linux.percpu import per_cpu_ptr

        pgdat = self._pgdat(node)
        total = int(pgdat.vm_stat[item].counter.value_())
        for cpu in for_each_possible_cpu(self._program):
            total += int(per_cpu_ptr(pgdat.per_cpu_nodestats, cpu).vm_node_stat_diff[item].value_())
        return total

    def _pages_of(self, node: int) -> tuple[int, npt.NDArray[Any]]:
        """The ``struct page`` of each page of a node, from a frame number that is the start of a block."""
        from drgn import FaultError

        pgdat = self._pgdat(node)
        start = int(pgdat.node_start_pfn.value_()) // PAGES * PAGES
        end = (
            -(-(int(pgdat.node_start_pfn.value_()) + int(pgdat.node_spanned_pages.value_())) // PAGES) * PAGES
        )
        content = bytearray((end - start) * self._page_size)
        first = self._vmemmap + start * self._page_size
        at, last = first, first + len(content)
        while at < last:
            size = min(_CHUNK - at % _CHUNK, last - at)
            with suppress(FaultError):  # in a hole of the node's memory there is no struct page
                content[at - first : at - first + size] = self._memory.virtual(at, size)
            at += size
        return start, np.frombuffer(content, self._page)

    def _uses(
        self, pages: Mapping[int, tuple[int, npt.NDArray[Any]]], raw: Mapping[int, _Raw]
    ) -> dict[int, tuple[int, npt.NDArray[np.uint8]]]:
        """The use of each page of a node, as an index into :data:`USES`."""
        held = np.sort(np.array([each.pfn for each in raw.values()], np.int64))
        masks = {each.pfn: each.unused for each in raw.values()}
        found = {}
        for node, (first, array) in pages.items():
            uses = self._use_of_pages(first, array)
            for pfn in held[(held >= first) & (held < first + len(array))]:
                at, unused = int(pfn) - first, masks[int(pfn)]
                block = uses[at : at + PAGES]
                block[(block == USES.index("anonymous")) & ~unused] = USES.index("mapped")
                block[unused] = USES.index("reserved")
            found[node] = (first, uses)
        return found

    def _use_of_pages(self, first: int, array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        flags, mapping, refcount = array["flags"], array["mapping"], array["_refcount"]
        head = array["compound_head"]
        tail = (head & np.uint64(1)) != 0
        uses = np.full(len(array), USES.index("kernel"), np.uint8)
        uses[(refcount == 0) & ~tail] = USES.index("free")
        reserved = next((bit for bit, name in self._flag_names.items() if name == "reserved"), 0)
        uses[((flags >> np.uint64(reserved)) & np.uint64(1)) != 0] = USES.index("kernel")
        used = (refcount != 0) & ~tail & (mapping > np.uint64(3))
        kind = mapping & np.uint64(_ANON | _MOVABLE_OR_KSM)
        uses[used & ((kind & np.uint64(_ANON)) != 0)] = USES.index("anonymous")
        uses[used & (kind == 0)] = USES.index("file")
        slab = array["_mapcount"] < -1
        uses[used & slab] = USES.index("kernel")
        # struct page of a hole is all zero, and no page that exists is in zone 0 of node 0 with nothing else set
        uses[(flags == 0) & (refcount == 0) & (mapping == 0) & (head == 0)] = USES.index("absent")
        owner = ((head[tail] - np.uint64(1) - np.uint64(self._vmemmap)) // np.uint64(self._page_size)).astype(
            np.int64
        ) - first
        inside = (owner >= 0) & (owner < len(array))
        owner = np.where(inside, owner, 0)
        sizes = np.bincount(owner[inside], minlength=len(array)) + 1
        is_huge = (sizes >= PAGES) & (uses == USES.index("anonymous"))
        uses[is_huge] = USES.index("huge")
        uses[tail] = np.where(inside, uses[owner], USES.index("kernel"))
        return uses

    # --- memory cgroups ------------------------------------------------------------------------------------------

    def _memcgs(self, item: int, named: Iterable[int]) -> Iterator[MemoryCgroup]:
        from drgn import Object
        from drgn.helpers.linux.cgroup import cgroup_path, css_for_each_descendant_pre

        root = self._variable("root_mem_cgroup")
        if not root or "memcg" not in self._offsets:
            return
        kind = self._program.type("struct mem_cgroup")
        at_css = kind.member("css").bit_offset // 8
        css = Object(self._program, kind, address=root).css.address_of_()
        found = {int(each.value_()) - at_css for each in css_for_each_descendant_pre(css)}
        found |= {each for each in named if each}
        index = int(self._program["mem_cgroup_stats_index"][item].value_())
        limited = kind.has_member("thp_resv_pages")
        for address in sorted(found, key=lambda each: (each != root, each)):
            memcg = Object(self._program, kind, address=address)
            parent = int(memcg.css.parent.value_())
            path = cgroup_path(memcg.css.cgroup).decode(errors="replace")
            yield MemoryCgroup(
                address,
                path,
                parent - at_css if parent else 0,
                {node: self._memcg_counter(memcg, node, index) for node in self._node_numbers()},
                int(memcg.thp_resv_pages.counter.value_()) if limited and parent else None,
            )

    def _memcg_counter(self, memcg: Any, node: int, index: int) -> int:
        """The counter of a memcg itself; what readers see is gathered from the CPUs only every now and then."""
        from drgn.helpers.linux.cpumask import for_each_possible_cpu
        from drgn.helpers.linux.percpu import per_cpu_ptr

        stats = memcg.nodeinfo[node].lruvec_stats_percpu
        return sum(
            int(per_cpu_ptr(stats, cpu).state[index].value_()) for cpu in for_each_possible_cpu(self._program)
        )


#: A thread of the kernel (include/linux/sched.h), which borrows the mm of a process at times.
_PF_KTHREAD = 0x00200000


def _frames_of(table: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Whether the entries of a page table map something, and the frames that they map.

    The frame number of an entry that no CPU may use is inverted (arch/x86/include/asm/pgtable-invert.h).
    """
    present = (table & np.uint64(_PRESENT | _PROT_NONE)) != 0
    inverted = present & ((table & np.uint64(_PRESENT)) == 0)
    values = np.where(inverted, ~table, table)
    return present, ((values & np.uint64(_FRAME)) >> np.uint64(12)).astype(np.int64)


def _held_frames(raw: Iterable[_Raw]) -> npt.NDArray[np.int64]:
    """The frames that reservations hold, sorted."""
    frames = [each.pfn + np.flatnonzero(each.unused) for each in raw]
    return np.sort(np.concatenate(frames)) if frames else np.array([], np.int64)


def _mapped_of(
    mm: int, start: int, table: npt.NDArray[np.uint64], held: npt.NDArray[np.int64]
) -> list[tuple[int, int, int]]:
    """The entries of a page table that map one of the frames: frame, mm and address."""
    if not len(held):
        return []
    present, frames = _frames_of(table)
    at = np.searchsorted(held, frames).clip(max=len(held) - 1)
    return [
        (int(frames[entry]), mm, start + int(entry) * PAGE_BYTES)
        for entry in np.flatnonzero(present & (held[at] == frames))
    ]


def _covers(areas: Iterable[tuple[int, int]], start: int) -> bool:
    """Whether areas in order of their addresses cover a range."""
    at = start
    for begin, end in areas:
        if begin <= at < end:
            at = end
    return at >= start + RANGE_BYTES


def _as_runs(states: npt.NDArray[np.uint8]) -> str:
    edges = [0, *(np.flatnonzero(states[1:] != states[:-1]) + 1).tolist(), len(states)]
    return "".join(f"{end - begin}{chr(states[begin])}" for begin, end in pairwise(edges))


def _blocks_of(first: int, uses: npt.NDArray[np.uint8]) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """The first frame number, and the number of pages by use of each block."""
    rows = uses.reshape(-1, PAGES)
    counts = np.stack([(rows == use).sum(axis=1) for use in range(len(USES))], axis=1)
    return first, tuple(tuple(int(count) for count in row) for row in counts)
