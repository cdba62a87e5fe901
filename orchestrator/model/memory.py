# SPDX-License-Identifier: GPL-2.0-only
"""The model: what a kernel does with anonymous memory, as seen from user space.

It models a machine with ample free memory, so that allocations succeed and only
`Dump` reclaims; one CPU, on node 0; no swap. Under these conditions, counters are
exact. It follows mm/memory.c, huge_memory.c, khugepaged.c, mremap.c, mprotect.c,
madvise.c, mlock.c, mempolicy.c, rmap.c and vma.c of Linux 6.12, and the patches of
the series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

from orchestrator.model import trace
from orchestrator.model.address_space import NONE, READ, WRITE, AddressSpace, Attributes, Vma
from orchestrator.model.page import (
    ALL,
    HUGE,
    HUGE_ZERO,
    PAGES,
    PTES,
    Folio,
    PageFrame,
    Reservation,
    Table,
    bits,
    stamp_of,
    stamps_hash,
)

#: Stages of the series, by their names in series.toml.
STAGES: Final = (
    "structs",
    "counters",
    "threshold-knob",
    "release",
    "reserve",
    "zero-page",
    "pressure",
    "copy",
    "in-place",
    "memcg-stat",
    "memcg-limit",
    "fragmentation",
    "shrinker",
    "mremap",
    "sync-promotion",
    "docs",
    "threshold",
    "debugfs",
    "tracepoints",
)

#: /proc/vmstat counters of every kernel. Those that the model never changes stay 0 while memory is ample.
_STOCK: Final = (
    "nr_anon_transparent_hugepages",
    "thp_fault_alloc",
    "thp_fault_fallback",
    "thp_fault_fallback_charge",
    "thp_collapse_alloc",
    "thp_collapse_alloc_failed",
    "thp_split_page",
    "thp_split_page_failed",
    "thp_deferred_split_page",
    "thp_underused_split_page",
    "thp_split_pmd",
    "thp_scan_exceed_none_pte",
    "thp_scan_exceed_swap_pte",
    "thp_scan_exceed_share_pte",
    "thp_zero_page_alloc",
    "thp_zero_page_alloc_failed",
    "thp_swpout",
    "thp_swpout_fallback",
)

#: Counters of the series, by the stage that adds them.
_SERIES: Final[Mapping[str, tuple[str, ...]]] = {
    "counters": (
        "nr_thp_reserved",
        "thp_res_alloc",
        "thp_res_alloc_failed",
        "thp_res_mapped",
        "thp_res_released",
    ),
    "pressure": ("thp_res_dump",),
    "copy": ("thp_res_copy",),
    "in-place": ("thp_res_filled", "thp_res_collapse"),
}

_DEFAULTS: Final[Mapping[str, str]] = {
    "promotion_threshold": "1",
    "enabled": "madvise",
    "use_zero_page": "1",
    "max_ptes_none": "511",
    "max_ptes_shared": "256",
    "max_ptes_swap": "64",
    "defrag": "madvise",
    **dict.fromkeys(trace.SIZES, "never"),
}

#: The default of promotion_threshold from stage "threshold" on.
_RAISED_THRESHOLD: Final = "256"

_PROTECTIONS: Final = {"none": NONE, "r": READ, "rw": WRITE}

Errno = str | Literal[0]


class RangeView:
    """The observable state of one range of one process.

    Attributes:
        huge: whether a huge page is mapped, other than the huge zero page.
        present: number of pages mapped that are not the zero page.
        zero: number of pages where the zero page is mapped.
        swapped: number of pages in swap; always 0 here.
        nodes: number of present pages on each NUMA node, up to the last node that has any.
        hash: hash of the contents; see `block_hash()`.
    """

    __slots__ = ("hash", "huge", "nodes", "present", "swapped", "zero")

    def __init__(self, table: Table | None) -> None:
        state = table.state if table is not None else PTES
        self.huge = state == HUGE
        self.present = PAGES if state == HUGE else table.present.bit_count() if table is not None else 0
        self.zero = PAGES if state == HUGE_ZERO else table.zero.bit_count() if table is not None else 0
        self.swapped = 0
        self.nodes = _pages_by_node(table) if table is not None else []
        self.hash = stamps_hash(tuple(table.stamps()) if table is not None else (0,) * PAGES)

    def as_dict(self) -> dict[str, Any]:
        """In the form that the guest program prints."""
        return {name: getattr(self, name) for name in ("huge", "present", "zero", "swapped", "nodes", "hash")}


class Prediction:
    """The predicted result of a step.

    Attributes:
        errno: 0, or the name of the system call's error, or of the signal that ended the access.
    """

    __slots__ = ("_counters", "_model", "errno")

    def __init__(self, model: Model, errno: Errno, counters: list[int]) -> None:
        self.errno: Errno = errno
        self._model = model
        self._counters = counters

    @property
    def vmstat(self) -> dict[str, int]:
        """Counters after the step, relative to the start; only those that the kernel has."""
        names = self._model.counter_names
        return {name: self._counters[index] for name, index in names.items()}

    def processes(self) -> dict[str, dict[str, Any]]:
        """All processes with all ranges that are not empty, in the *current* state: call it before the next step."""
        return {
            name: {
                "rss": self._model.rss(name),
                "blocks": {
                    str(block): self._model.block(name, block).as_dict()
                    for block in sorted(self._model.process(name).tables)
                },
            }
            for name in self._model.alive
        }


class Model:
    """The state of a machine, changed by one operation at a time.

    Args:
        stages: names of the stages of the series that the kernel has, in any order.
        settings: knobs that differ from the kernel's defaults, as in the header of a trace.
        blocks: size of the arena in 2 MiB ranges.
        nodes: number of NUMA nodes with memory.

    Raises:
        ValueError: unknown stage or setting, or a stage without all earlier ones.
    """

    def __init__(
        self,
        stages: Iterable[str] = (),
        settings: Mapping[str, str] | None = None,
        blocks: int = trace.DEFAULT_BLOCKS,
        nodes: int = 1,
    ) -> None:
        chosen = frozenset(stages)
        if chosen != frozenset(STAGES[: len(chosen)]):
            raise ValueError(f"the stages must be the first ones of: {', '.join(STAGES)}.")
        self.stages = chosen
        self.blocks = blocks
        self.nodes = nodes
        self._has_threshold = "threshold-knob" in chosen
        self._has_reserve = "reserve" in chosen
        self._has_zero_page = "zero-page" in chosen
        self._has_dump = "pressure" in chosen
        self._has_copy = "copy" in chosen
        self._has_in_place = "in-place" in chosen
        self._has_mremap = "mremap" in chosen
        self._has_sync = "sync-promotion" in chosen

        names = [*_STOCK, *(name for names in _SERIES.values() for name in names)]
        missing = {name for stage, names in _SERIES.items() if stage not in chosen for name in names}
        self._index = {name: index for index, name in enumerate(names)}
        self.counter_names = {name: index for name, index in self._index.items() if name not in missing}
        self._counters = [0] * len(names)
        index = self._index
        self._reserved = index["nr_thp_reserved"]
        self._res_mapped = index["thp_res_mapped"]

        self._processes: dict[str, AddressSpace] = {}
        self._settings = dict(_DEFAULTS)
        if "threshold" in chosen:
            self._settings["promotion_threshold"] = _RAISED_THRESHOLD
        for knob, value in (settings or {}).items():
            if self._set(trace.Set(knob, value)):
                raise ValueError(f"this kernel has no knob {knob}.")
        self._read_settings()

        # khugepaged scans all processes, in the order of their creation: they inherit this from the program that forks
        # the first one, which has a VMA with MADV_HUGEPAGE.
        self._processes["p0"] = self._new_process()
        self._due: list[tuple[AddressSpace, int]] = []  # ranges to promote before the return to user space
        self._steps: dict[type, Callable[[Any], Errno]] = {
            trace.Map: self._map,
            trace.Unmap: self._unmap,
            trace.Write: self._write,
            trace.Read: self._read,
            trace.Protect: self._protect,
            trace.Advise: self._advise,
            trace.Remap: self._remap,
            trace.Bind: self._bind,
            trace.Lock: self._lock,
            trace.Unlock: self._unlock,
            trace.Fork: self._fork,
            trace.Exit: self._exit,
            trace.Khugepaged: self._khugepaged,
            trace.Dump: self._dump,
            trace.Set: self._set,
        }

    # Observable state

    @property
    def alive(self) -> list[str]:
        """Names of the existing processes."""
        return list(self._processes)

    def process(self, name: str) -> AddressSpace:
        """The address space of an existing process."""
        return self._processes[name]

    def rss(self, name: str) -> int:
        """Number of anonymous pages in the arena of a process, counted like `Anonymous` in smaps."""
        tables = self._processes[name].tables.values()
        return sum(PAGES if table.state == HUGE else table.present.bit_count() for table in tables)

    def block(self, name: str, block: int) -> RangeView:
        """The observable state of one range of a process."""
        return RangeView(self._processes[name].tables.get(block))

    def counter(self, name: str) -> int:
        """The value of a counter, whether or not this kernel has it."""
        return self._counters[self._index[name]]

    def setting(self, knob: str) -> str:
        """The value of a knob."""
        return self._settings[knob]

    def step(self, operation: trace.Operation) -> Prediction:
        """Apply one operation.

        Raises:
            KeyError: unknown process; this cannot happen in a trace that was parsed.
        """
        errno = self._steps[type(operation)](operation)
        if self._due:
            self._return_to_user()
        return Prediction(self, errno, self._counters.copy())

    def run(self, operations: Iterable[trace.Operation]) -> Prediction | None:
        """Apply several operations; return the prediction for the last one."""
        expected = None
        for operation in operations:
            expected = self.step(operation)
        return expected

    # Settings

    @property
    def settings(self) -> Mapping[str, str]:
        """Current values of all knobs, in the form of a trace."""
        return dict(self._settings)

    def _set(self, operation: trace.Set) -> Errno:
        values = trace.KNOBS.get(operation.knob)
        if values is None or (operation.knob == "promotion_threshold" and not self._has_threshold):
            return "ENOENT"
        if operation.value not in (map(str, values) if isinstance(values, range) else values):
            return "EINVAL"
        self._settings[operation.knob] = operation.value
        self._read_settings()
        if operation.knob == "enabled" and self._enabled != "always":
            self._dump_all()  # thp_resv_recheck()
        return 0

    def _read_settings(self) -> None:
        settings = self._settings
        self._enabled = settings["enabled"]
        self._use_zero_page = settings["use_zero_page"] == "1"
        self._max_ptes_none = int(settings["max_ptes_none"])
        self._max_ptes_shared = int(settings["max_ptes_shared"])
        self._threshold = int(settings["promotion_threshold"])
        # thp_vma_allowable_orders(): the sizes for all VMAs, and those for VMAs with MADV_HUGEPAGE; largest first.
        inherited = {"always": "always", "madvise": "madvise"}.get(self._enabled, "never")
        values = {
            pages: inherited if settings[knob] == "inherit" else settings[knob]
            for knob, pages in sorted(trace.SIZES.items(), key=lambda item: -item[1])
        }
        self._any_sizes = tuple(pages for pages, value in values.items() if value == "always")
        self._huge_sizes = tuple(pages for pages, value in values.items() if value != "never")

    def _count(self, name: str, amount: int = 1) -> None:
        self._counters[self._index[name]] += amount

    # Reservations: mm/thp_reserve.c

    def _threshold_of(self, vma: Vma) -> int:
        """thp_vma_threshold(): where huge pages have been requested, one page is enough."""
        return 1 if vma.attributes.hint == "huge" else self._threshold

    def _may_reserve(self, vma: Vma) -> bool:
        """thp_resv_enabled()."""
        return self._has_reserve and self._threshold_of(vma) > 1

    def _create(self, mm: AddressSpace, vma: Vma, block: int) -> None:
        """thp_resv_create(): reserve a block for a range. Memory is ample, so this succeeds."""
        if block in mm.reservations:
            return
        mm.reservations[block] = Reservation(_node_for(vma))
        self._count("thp_res_alloc")
        self._counters[self._reserved] += PAGES

    def _take(self, mm: AddressSpace, vma: Vma, block: int, first: int, last: int) -> list[PageFrame]:
        """New pages for unmapped addresses: from the reservation if it still has them, else ordinary pages.

        Returns:
            At least one page, starting with `first`. There are fewer if one of them triggers a promotion, since that
            may map the rest.
        """
        reservation = mm.reservations.get(block)
        node = _node_for(vma)
        if reservation is None:
            return [PageFrame(node=node) for _page in range(first, last)]
        unused = reservation.unused
        taken = unused & bits(first, last)
        if self._has_sync:
            missing = unused.bit_count() - self._none_limit(vma)
            if 0 < missing <= taken.bit_count():
                while (excess := taken.bit_count() - missing) > 0:
                    taken &= bits(first, last := last - excess)
                last = taken.bit_length()
                self._due.append((mm, block))
        count = taken.bit_count()
        reservation.unused = unused ^ taken
        self._counters[self._reserved] -= count
        self._counters[self._res_mapped] += count
        held = reservation.node
        if count == last - first:
            return [PageFrame(0, reservation, page, held) for page in range(first, last)]
        return [
            PageFrame(0, reservation, page, held) if taken >> page & 1 else PageFrame(node=node)
            for page in range(first, last)
        ]

    def _return_to_user(self) -> None:
        """khugepaged_promote(): promote the ranges in which a fault has reached the threshold."""
        due, self._due = self._due, []
        for mm, block in due:
            vma = mm.find(block * PAGES)
            # A reservation lies within one VMA.
            if vma is not None and not vma.attributes.locked and self._allowed(vma):
                self._scan(mm, vma, block, by_advice=False, in_place_only=True)

    def _give_up(self, mm: AddressSpace, block: int) -> Reservation | None:
        """Release the reservation of one range, if it has one."""
        reservation = mm.reservations.pop(block, None)
        if reservation is not None:
            unused = reservation.unused.bit_count()
            self._count("thp_res_released", unused)
            self._counters[self._reserved] -= unused
        return reservation

    def _release(self, mm: AddressSpace, start: int, end: int) -> None:
        """thp_resv_release(): release the reservations of all ranges with a page from `start` to `end` - 1."""
        if not mm.reservations:
            return
        for block in range(start // PAGES, (end - 1) // PAGES + 1):
            self._give_up(mm, block)

    def _dump(self, _operation: trace.Dump) -> Errno:
        self._dump_all()
        return 0

    def _dump_all(self) -> None:
        """thp_resv_dump() of all memory."""
        if not self._has_dump:
            return
        for mm in self._processes.values():
            # A reservation whose pages are all in use is not on the list: releasing it would gain nothing.
            for block in [block for block, resv in mm.reservations.items() if resv.unused]:
                self._give_up(mm, block)
                self._count("thp_res_dump")

    # Whether huge pages are allowed: __thp_vma_allowable_orders()

    def _allowed(self, vma: Vma) -> bool:
        hint = vma.attributes.hint
        if hint == "nohuge" or self._enabled == "never":
            return False
        return self._enabled == "always" or hint == "huge"

    def _may_be_large(self, mm: AddressSpace, block: int) -> bool:
        """Whether a fault may map multi-size THP: never in a range whose reservation has unused pages."""
        return bool(self._huge_sizes) and block not in mm.reservations

    def _large_extent(self, vma: Vma, block: int, table: Table, page: int) -> range | None:
        """The first half of alloc_anon_folio(): the pages of a range where a large folio can be mapped.

        Returns:
            The pages for the largest enabled size that fits in the VMA and where nothing is mapped; None if only a
            base page is possible.
        """
        hint = vma.attributes.hint
        sizes = () if hint == "nohuge" else self._huge_sizes if hint == "huge" else self._any_sizes
        base = block * PAGES
        for size in sizes:
            first = page - page % size
            if (
                vma.start <= base + first
                and base + first + size <= vma.end
                and not (table.present | table.zero) & bits(first, first + size)
            ):
                return range(first, first + size)
        return None

    # Huge pages: mm/huge_memory.c and the counts of mm/rmap.c

    def _map_huge(self, mm: AddressSpace, vma: Vma, block: int, stamps: list[int], node: int) -> Folio:
        """Map a new huge page, exclusive to this process."""
        table = Table(HUGE, Folio(stamps, node))
        table.writable = ALL if vma.attributes.protection == WRITE else 0
        mm.tables[block] = table
        self._count("nr_anon_transparent_hugepages")
        assert table.folio is not None
        return table.folio

    def _on_partial(self, folio: Folio) -> None:
        """deferred_split_folio(): a part of a large folio was unmapped; /proc/vmstat counts huge pages only."""
        if not folio.partially and folio.size == PAGES:
            folio.partially = True
            self._count("thp_deferred_split_page")

    def _unmap_pmd(self, folio: Folio) -> None:
        """folio_remove_rmap_pmd()."""
        folio.maps -= 1
        folio.entire -= 1
        if not folio.entire:
            self._count("nr_anon_transparent_hugepages", -1)
            if 0 < folio.mapped < PAGES:
                self._on_partial(folio)

    def _unmap_ptes(self, frames: list[PageFrame]) -> None:
        """folio_remove_rmap_ptes() for one page, or for consecutive pages of a huge page."""
        last = 0
        for frame in frames:
            frame.maps -= 1
            if not frame.maps:
                last += 1
        folio = frames[0].folio
        if folio is None:
            return
        folio.maps -= len(frames)
        folio.mapped -= last
        if last and not folio.entire and folio.mapped:
            self._on_partial(folio)

    def _split_pmd(self, mm: AddressSpace, block: int) -> Table:
        """__split_huge_pmd(): replace the mapping by a PMD with PTEs."""
        table = mm.tables[block]
        self._count("thp_split_pmd")
        folio = table.folio
        table.frames = [None] * PAGES
        table.state = PTES
        if folio is None:
            table.zero = ALL
            return table
        table.folio = None
        table.present = ALL
        frames = folio.into_frames()
        table.frames[:] = frames
        folio.maps += PAGES
        folio.mapped = PAGES
        for frame in frames:
            frame.maps += 1
            if folio.exclusive:
                frame.exclusive = True
        self._unmap_pmd(folio)
        return table

    def _on_boundary(self, mm: AddressSpace, page: int) -> None:
        """vma_adjust_trans_huge(): a VMA now begins or ends at this page."""
        block, offset = divmod(page, PAGES)
        if not offset:
            return
        self._release(mm, page, page + 1)
        table = mm.tables.get(block)
        if table is not None and table.state != PTES:
            self._split_pmd(mm, block)

    def _zap_ptes(self, table: Table, first: int, last: int) -> None:
        """zap_pte_range(): consecutive pages of a huge page are unmapped in one batch."""
        mask = bits(first, last)
        if table.present & mask:
            run: list[PageFrame] = []
            for frame in table.frames[first:last]:
                if frame is not None and frame.folio is None:
                    frame.maps -= 1
                if run and (
                    frame is None or frame.folio is not run[0].folio or frame.slot != run[-1].slot + 1
                ):
                    self._unmap_ptes(run)
                    run = []
                if frame is not None and frame.folio is not None:
                    run.append(frame)
            if run:
                self._unmap_ptes(run)
            table.frames[first:last] = [None] * (last - first)
        table.present &= ~mask
        table.zero &= ~mask
        table.writable &= ~mask

    def _zap(self, mm: AddressSpace, start: int, end: int) -> None:
        """unmap_page_range(): unmap a part of a VMA."""
        self._release(mm, start, end)
        for block, first, last in _pieces(start, end):
            table = mm.tables.get(block)
            if table is None:
                continue
            if table.state != PTES:
                if last - first == PAGES:
                    if table.folio is not None:
                        self._unmap_pmd(table.folio)
                    del mm.tables[block]
                    continue
                self._split_pmd(mm, block)
            self._zap_ptes(table, first, last)

    # Page faults: mm/memory.c

    def _prepare_anon(self, mm: AddressSpace, vma: Vma) -> None:
        if vma.anon is None:
            mm.prepare_anon(vma)

    def _fault_none(self, mm: AddressSpace, vma: Vma, block: int, write: bool) -> Table:
        """A fault on a PMD that is none: create_huge_pmd(), else a page table."""
        if self._allowed(vma) and vma.contains_block(block):
            self._prepare_anon(mm, vma)
            if not write and self._use_zero_page:
                mm.tables[block] = Table(HUGE_ZERO)
                return mm.tables[block]
            if self._may_reserve(vma):
                if write:
                    self._create(mm, vma, block)
            else:
                self._map_huge(mm, vma, block, [0] * PAGES, _node_for(vma))
                self._count("thp_fault_alloc")
                return mm.tables[block]
        table = mm.tables[block] = Table()
        return table

    def _cow_zero(self, mm: AddressSpace, vma: Vma, block: int, table: Table, page: int) -> PageFrame:
        """wp_page_copy() for the zero page."""
        self._prepare_anon(mm, vma)
        if not self._has_zero_page:
            return PageFrame(node=_node_for(vma))
        # The first write to a range that has only been read.
        if (
            self._may_reserve(vma)
            and not table.present
            and block not in mm.reservations
            and self._allowed(vma)
            and vma.contains_block(block)
        ):
            self._create(mm, vma, block)
        return self._take(mm, vma, block, page, page + 1)[0]

    def _may_reuse(self, frame: PageFrame) -> bool:
        """Whether a write to a page that is mapped read-only can reuse it without a copy."""
        return frame.exclusive or (frame.folio is None and frame.maps == 1)

    def _fault_write(
        self, mm: AddressSpace, vma: Vma, block: int, first: int, last: int, from_user: bool = False
    ) -> Table:
        """Fault in pages of a range for writing, in a writable VMA.

        Args:
            from_user: the faults come from user space, so that the kernel returns there after each fault.
        """
        table = mm.tables.get(block)
        if table is None:
            table = self._fault_none(mm, vma, block, write=True)
        mask = bits(first, last)
        if table.writable & mask == mask:
            return table
        if table.state != PTES:
            folio = table.folio
            # do_huge_pmd_wp_page()
            if folio is not None and (folio.exclusive or folio.maps == 1):
                folio.exclusive = True
                table.writable = ALL
                return table
            self._split_pmd(mm, block)
        frames = table.frames
        page = first
        while page < last:
            bit = 1 << page
            if table.writable & bit:
                page += 1
                continue
            if table.present & bit:
                frame = frames[page]
                assert frame is not None
                if self._may_reuse(frame):
                    frame.exclusive = True
                else:
                    frames[page] = PageFrame(frame.stamp, node=_node_for(vma))
                    self._unmap_ptes([frame])
            elif table.zero & bit:
                frames[page] = self._cow_zero(mm, vma, block, table, page)
                table.zero ^= bit
            else:
                self._prepare_anon(mm, vma)
                large = self._may_be_large(mm, block)
                extent = self._large_extent(vma, block, table, page) if large else None
                if extent is not None:
                    folio = Folio.mapped_by_ptes(len(extent), _node_for(vma))
                    frames[extent.start : extent.stop] = folio.frames
                    bit = bits(extent.start, extent.stop)
                    page = extent.stop - 1
                else:
                    there = (table.present | table.zero) >> page
                    free = 1 if large else (there & -there).bit_length() - 1 if there else PAGES
                    taken = self._take(mm, vma, block, page, min(page + free, last))
                    frames[page : page + len(taken)] = taken
                    bit = bits(page, page + len(taken))
                    page += len(taken) - 1
            table.present |= bit
            table.writable |= bit
            page += 1
            if self._due and from_user:
                self._return_to_user()
                table = mm.tables[block]
                if table.state != PTES:
                    break
        return table

    def _fault_read(self, mm: AddressSpace, vma: Vma, block: int, first: int, last: int) -> None:
        """Fault in pages of a range for reading."""
        table = mm.tables.get(block)
        if table is None:
            table = self._fault_none(mm, vma, block, write=False)
        if table.state == PTES:
            table.zero |= bits(first, last) & ~table.present

    def _touch(self, mm: AddressSpace, vma: Vma, start: int, end: int, write: bool) -> None:
        for block, first, last in _pieces(start, end):
            if write:
                self._fault_write(mm, vma, block, first, last)
            else:
                self._fault_read(mm, vma, block, first, last)

    def _write(self, operation: trace.Write) -> Errno:
        mm = self._processes[operation.process]
        page = operation.start
        end = page + operation.count
        seed = operation.seed
        while page < end:
            vma = mm.find(page)
            if vma is None or vma.attributes.protection != WRITE:
                return "SIGSEGV"
            block, first = divmod(page, PAGES)
            last = min(end, vma.end) - block * PAGES
            if last > PAGES:
                last = PAGES
            table = self._fault_write(mm, vma, block, first, last, from_user=True)
            stamps = range(stamp_of(seed, page), stamp_of(seed, page) + last - first)
            folio = table.folio
            if folio is not None and folio.stamps is not None:
                folio.stamps[first:last] = stamps
            else:
                frames = table.frames if folio is None else folio.frames
                for frame, stamp in zip(frames[first:last], stamps, strict=True):
                    frame.stamp = stamp  # type: ignore[union-attr]
            page += last - first
        return 0

    def _read(self, operation: trace.Read) -> Errno:
        mm = self._processes[operation.process]
        page = operation.start
        end = page + operation.count
        while page < end:
            vma = mm.find(page)
            if vma is None or vma.attributes.protection == NONE:
                return "SIGSEGV"
            stop = min(end, vma.end)
            self._touch(mm, vma, page, stop, write=False)
            page = stop
        return 0

    # Mappings: mm/mmap.c, mprotect.c, madvise.c, mlock.c, mempolicy.c

    def _new_process(self) -> AddressSpace:
        return AddressSpace(self._on_boundary)

    def _map(self, operation: trace.Map) -> Errno:
        mm = self._processes[operation.process]
        start, end = operation.start, operation.start + operation.count
        if mm.overlapping(start, end):
            return "EEXIST"
        if mm.merge_new(start, end, Attributes(), start, None) is None:
            mm.insert(Vma(start, end, Attributes(), start))
        if operation.hint is not None:
            return self._hint(mm, start, end, operation.hint)
        return 0

    def _unmap(self, operation: trace.Unmap) -> Errno:
        mm = self._processes[operation.process]
        self._unmap_range(mm, operation.start, operation.start + operation.count)
        return 0

    def _unmap_range(self, mm: AddressSpace, start: int, end: int) -> None:
        """do_munmap()."""
        for vma in mm.overlapping(start, end):
            inner = vma
            if inner.start < start:
                inner = mm.split(inner, start)[1]
            if inner.end > end:
                inner = mm.split(inner, end)[0]
        gone = mm.overlapping(start, end)
        for vma in gone:
            self._zap(mm, vma.start, vma.end)
        for vma in gone:
            mm.remove(vma)
        # free_pgtables(): for ranges that no VMA needs any more
        for block in range(start // PAGES, (end - 1) // PAGES + 1):
            if block in mm.tables and not mm.overlapping(block * PAGES, (block + 1) * PAGES):
                del mm.tables[block]

    def _protect(self, operation: trace.Protect) -> Errno:
        mm = self._processes[operation.process]
        start, end = operation.start, operation.start + operation.count
        protection = _PROTECTIONS[operation.protection]
        at = start
        for _vma, first, last in list(mm.parts(start, end)):
            if first > at:
                return "ENOMEM"
            at = last
            current = mm.find(first)  # it may have been merged with the previous one
            assert current is not None
            self._protect_part(mm, current, first, last, protection)
        return 0 if at >= end else "ENOMEM"

    def _protect_part(self, mm: AddressSpace, vma: Vma, start: int, end: int, protection: int) -> None:
        """mprotect_fixup()."""
        old = vma.attributes
        if old.protection == protection:
            return
        accounted = old.accounted
        if protection == WRITE:
            accounted = True
        elif vma.anon is None:
            accounted = False
        vma = mm.modify(vma, start, end, old._replace(protection=protection, accounted=accounted))
        for block, first, last in _pieces(start, end):
            table = mm.tables.get(block)
            if table is None:
                continue
            if table.state != PTES:
                if last - first == PAGES:
                    # can_change_pmd_writable()
                    exclusive = table.folio is not None and table.folio.exclusive
                    table.writable = ALL if protection == WRITE and exclusive else 0
                    continue
                self._split_pmd(mm, block)
            self._change_ptes(table, first, last, protection)
        if protection == WRITE and old.locked:
            self._touch(mm, vma, start, end, write=True)

    def _change_ptes(self, table: Table, first: int, last: int, protection: int) -> None:
        """change_pte_range()."""
        mask = bits(first, last)
        table.writable &= ~mask
        if protection == WRITE and table.present & mask:
            for page in range(first, last):
                frame = table.frames[page]
                if frame is not None and frame.exclusive:
                    table.writable |= 1 << page

    def _advise(self, operation: trace.Advise) -> Errno:
        mm = self._processes[operation.process]
        start, end = operation.start, operation.start + operation.count
        advice = operation.advice
        if advice == "huge" or advice == "nohuge":
            return self._hint(mm, start, end, advice)
        visit = {
            "dontneed": self._dont_need,
            "free": self._free,
            "cold": self._cold,
            "collapse": self._collapse_range,
        }[advice]
        gapless = mm.is_gapless(start, end)
        for vma, first, last in mm.parts(start, end):
            errno = visit(mm, vma, first, last)
            if errno:
                return errno
        return 0 if gapless else "ENOMEM"

    def _hint(self, mm: AddressSpace, start: int, end: int, hint: trace.Hint) -> Errno:
        """MADV_HUGEPAGE and MADV_NOHUGEPAGE."""
        gapless = mm.is_gapless(start, end)
        at = start
        while at < end:
            vma = mm.first_from(at)
            if vma is None or vma.start >= end:
                break
            first, last = max(at, vma.start), min(end, vma.end)
            if vma.attributes.hint != hint:
                vma = mm.modify(vma, first, last, vma.attributes._replace(hint=hint))
            if hint == "nohuge":
                self._release(mm, first, last)
            at = max(last, vma.end)
        return 0 if gapless else "ENOMEM"

    def _dont_need(self, mm: AddressSpace, vma: Vma, start: int, end: int) -> Errno:
        if vma.attributes.locked:
            return "EINVAL"
        self._zap(mm, start, end)
        return 0

    def _cold(self, mm: AddressSpace, vma: Vma, start: int, end: int) -> Errno:
        """MADV_COLD: splits huge pages like MADV_FREE; what is cold is not going to be filled up."""
        if vma.attributes.locked:
            return "EINVAL"
        self._release(mm, start, end)
        return self._free(mm, vma, start, end)

    def _free(self, mm: AddressSpace, vma: Vma, start: int, end: int) -> Errno:
        """MADV_FREE: pages stay while memory is ample, but a partially freed huge page is split."""
        if vma.attributes.locked:
            return "EINVAL"
        for block, first, last in _pieces(start, end):
            table = mm.tables.get(block)
            if table is None or table.state == HUGE_ZERO:
                continue
            if table.folio is not None:
                if last - first < PAGES and not table.folio.likely_shared():
                    self._split_pmd(mm, block)
                    self._split_folio(_frames_of(table)[0].folio)
                continue
            page = first
            while page < last:
                frame = table.frames[page]
                if frame is None or frame.folio is None:
                    page += 1
                    continue
                folio = frame.folio
                length = _run_length(table, page, last)
                if length == folio.size or folio.likely_shared() or not self._split_mapped(folio):
                    page += length
        return 0

    def _split_mapped(self, folio: Folio) -> bool:
        """split_folio() for a large folio that is mapped by PTEs; return whether it succeeded."""
        unreached = self._unreached(folio)
        # unmap_folio() removes the PTEs one by one, which counts as a partial unmapping.
        if any(frame.maps and id(frame) not in unreached for frame in folio.frames):
            self._on_partial(folio)
        if unreached:
            if folio.size == PAGES:
                self._count("thp_split_page_failed")
            return False
        self._split_folio(folio)
        return True

    def _unreached(self, folio: Folio) -> set[int]:
        """The pages of a huge page, by id(), with a mapping that page_vma_mapped_walk() does not find.

        The walk starts at the address of the first page and stops at a PMD that maps another huge page. This matters
        if a huge page was moved across a border between two ranges, and the first of these was collapsed. It is so in
        6.12.117; in 6.12.118 the walk continues after that PMD.
        """
        unreached: set[int] = set()
        for mm in self._processes.values():
            for block, table in mm.tables.items():
                for page, frame in enumerate(table.frames):
                    if frame is None or frame.folio is not folio:
                        continue
                    address = block * PAGES + page
                    vma = mm.find(address)
                    assert vma is not None
                    first = max(address - frame.slot, vma.start) // PAGES
                    if first != block and first in mm.tables and mm.tables[first].state != PTES:
                        unreached.add(id(frame))
        return unreached

    def _split_folio(self, folio: Folio | None) -> None:
        """split_folio(): its pages become base pages; pages of zeros are replaced with the zero page."""
        assert folio is not None
        if folio.size == PAGES:
            self._count("thp_split_page")
        zeros = {id(frame) for frame in folio.frames if not frame.stamp}
        for frame in folio.frames:
            frame.folio = None
        if not zeros:
            return
        places: list[tuple[int, AddressSpace, Vma, int, int]] = []
        for mm in self._processes.values():
            for block, table in mm.tables.items():
                for page, mapped in enumerate(table.frames):
                    if mapped is not None and id(mapped) in zeros:
                        vma = mm.find(block * PAGES + page)
                        assert vma is not None
                        places.append((vma.offset, mm, vma, block, page))
        # Pages are mapped again in the order of the anon_vma's tree. A locked VMA sets PG_mlocked for good.
        kept: set[int] = set()
        for _pgoff, mm, vma, block, page in sorted(places, key=lambda place: place[0]):
            table = mm.tables[block]
            mapped = table.frames[page]
            assert mapped is not None
            if vma.attributes.locked:
                kept.add(id(mapped))
            if id(mapped) in kept:
                continue
            mapped.maps -= 1
            table.frames[page] = None
            table.present ^= 1 << page
            table.writable &= ~(1 << page)
            table.zero |= 1 << page

    def _bind(self, operation: trace.Bind) -> Errno:
        mm = self._processes[operation.process]
        start, end = operation.start, operation.start + operation.count
        if operation.node >= self.nodes:
            return "EINVAL"
        if not mm.is_gapless(start, end):
            return "EFAULT"
        at = start
        while at < end:
            vma = mm.first_from(at)
            assert vma is not None
            last = min(end, vma.end)
            if vma.attributes.node != operation.node:
                vma = mm.modify(vma, at, last, vma.attributes._replace(node=operation.node))
                self._release(mm, at, last)
            at = max(last, vma.end)
        return 0

    def _set_locked(self, mm: AddressSpace, start: int, end: int, locked: bool) -> Errno:
        """apply_vma_lock_flags()."""
        at = start
        while at < end:
            vma = mm.first_from(at)
            if vma is None or vma.start > at:
                return "ENOMEM"
            last = min(end, vma.end)
            if vma.attributes.locked != locked:
                vma = mm.modify(vma, at, last, vma.attributes._replace(locked=locked))
            at = max(last, vma.end)
        return 0

    def _populate(self, mm: AddressSpace, start: int, end: int) -> Errno:
        """__mm_populate()."""
        for vma, first, last in list(mm.parts(start, end)):
            if vma.attributes.protection == NONE:
                return "ENOMEM"
            self._touch(mm, vma, first, last, write=vma.attributes.protection == WRITE)
        return 0

    def _lock(self, operation: trace.Lock) -> Errno:
        mm = self._processes[operation.process]
        start, end = operation.start, operation.start + operation.count
        return self._set_locked(mm, start, end, True) or self._populate(mm, start, end)

    def _unlock(self, operation: trace.Unlock) -> Errno:
        mm = self._processes[operation.process]
        return self._set_locked(mm, operation.start, operation.start + operation.count, False)

    # mm/mremap.c

    def _remap(self, operation: trace.Remap) -> Errno:
        mm = self._processes[operation.process]
        start, count = operation.start, operation.count
        new_start, new_count = operation.new_start, operation.new_count
        if mm.find(start) is None:
            return "EFAULT"
        if start == new_start:
            if new_count <= count:
                if new_count < count:
                    self._unmap_range(mm, start + new_count, start + count)
                return 0
            return self._grow(mm, start, count, new_count)
        if start + count > new_start and new_start + new_count > start:
            return "EINVAL"
        self._unmap_range(mm, new_start, new_start + new_count)
        if count > new_count:
            self._unmap_range(mm, start + new_count, start + count)
            count = new_count
        vma = mm.find(start)
        if vma is None or start + count > vma.end:
            return "EFAULT"
        self._move(mm, vma, start, count, new_start, new_count)
        return 0

    def _grow(self, mm: AddressSpace, start: int, count: int, new_count: int) -> Errno:
        vma = mm.find(start)
        if vma is None or start + count > vma.end:
            return "EFAULT"
        end = vma.end
        new_end = start + new_count
        if start + count != end or mm.overlapping(end, new_end):
            return "ENOMEM"
        mm.merge_new(end, new_end, vma.attributes, vma.at(end), vma.anon)
        if vma.attributes.locked:
            self._populate(mm, end, new_end)
        return 0

    def _move(
        self, mm: AddressSpace, vma: Vma, start: int, count: int, new_start: int, new_count: int
    ) -> None:
        """move_vma()."""
        attributes = vma.attributes
        if not self._has_mremap:
            self._release(mm, start, start + count)
        offset = vma.at(start) if vma.anon is not None else new_start
        if mm.merge_new(new_start, new_start + new_count, attributes, offset, vma.anon) is None:
            new = Vma(new_start, new_start + new_count, attributes, offset)
            new.anon = vma.anon
            new.clone_anon(vma)
            mm.insert(new)
        self._move_tables(mm, start, start + count, new_start)
        if self._has_mremap:
            self._move_reservations(mm, start, start + count, new_start)
        self._unmap_range(mm, start, start + count)
        if attributes.locked:
            self._populate(mm, new_start + count, new_start + new_count)

    def _move_reservations(self, mm: AddressSpace, start: int, end: int, new_start: int) -> None:
        """thp_resv_move(): move reservations of whole ranges that keep their alignment; release all others."""
        for block in range(start // PAGES, (end - 1) // PAGES + 1):
            whole = start <= block * PAGES and (block + 1) * PAGES <= end
            if not whole or (start - new_start) % PAGES:
                self._give_up(mm, block)
            elif block in mm.reservations:
                mm.reservations[block + (new_start - start) // PAGES] = mm.reservations.pop(block)

    def _move_tables(self, mm: AddressSpace, start: int, end: int, new_start: int) -> None:
        """move_page_tables()."""
        while start < end:
            extent = min(PAGES - start % PAGES, end - start, PAGES - new_start % PAGES)
            block, first = divmod(start, PAGES)
            new_block, new_first = divmod(new_start, PAGES)
            start += extent
            new_start += extent
            table = mm.tables.get(block)
            if table is None:
                continue
            if extent == PAGES:
                mm.tables[new_block] = mm.tables.pop(block)
                continue
            if table.state != PTES:
                self._split_pmd(mm, block)
            target = mm.tables.get(new_block)
            if target is None:
                target = mm.tables[new_block] = Table()
            _move_ptes(table, first, target, new_first, extent)

    # kernel/fork.c

    def _fork(self, operation: trace.Fork) -> Errno:
        parent = self._processes[operation.process]
        child = self._new_process()
        self._processes[operation.child] = child
        for vma in parent.vmas:
            copy = Vma(vma.start, vma.end, vma.attributes._replace(locked=False), vma.offset)
            copy.fork_anon(vma)
            child.insert(copy)
            # vma_needs_copy(): a VMA without an anon_vma maps only the zero page
            if vma.anon is not None:
                self._copy_range(parent, child, vma.start, vma.end)
        self._inherit(parent, child)
        return 0

    def _inherit(self, parent: AddressSpace, child: AddressSpace) -> None:
        """The parent keeps its reservations; the child starts without any."""

    def _copy_range(self, parent: AddressSpace, child: AddressSpace, start: int, end: int) -> None:
        """copy_page_range()."""
        for block, first, last in _pieces(start, end):
            table = parent.tables.get(block)
            if table is None:
                continue
            if table.state != PTES:
                table.writable = 0
                child.tables[block] = Table(table.state, table.folio)
                if table.folio is not None:
                    table.folio.entire += 1
                    table.folio.maps += 1
                    table.folio.exclusive = False
                continue
            copy = child.tables.get(block)
            if copy is None:
                copy = child.tables[block] = Table()
            mask = bits(first, last)
            copy.frames[first:last] = table.frames[first:last]
            copy.zero |= table.zero & mask
            copy.present |= table.present & mask
            table.writable &= ~mask
            if table.present & mask:
                for frame in table.frames[first:last]:
                    if frame is not None:
                        frame.maps += 1
                        frame.exclusive = False
                        if frame.folio is not None:
                            frame.folio.maps += 1

    def _exit(self, operation: trace.Exit) -> Errno:
        mm = self._processes.pop(operation.process)
        for vma in mm.vmas:
            self._zap(mm, vma.start, vma.end)
        for vma in mm.vmas:
            vma.unlink_anon()
        mm.tables.clear()
        return 0

    # mm/khugepaged.c

    def _khugepaged(self, _operation: trace.Khugepaged) -> Errno:
        for _scan in range(2):
            for mm in self._processes.values():
                for vma in list(mm.vmas):
                    if vma.anon is None or not self._allowed(vma):
                        continue
                    for block in vma.blocks():
                        self._scan(mm, vma, block, by_advice=False)
        return 0

    def _collapse_range(self, mm: AddressSpace, vma: Vma, start: int, end: int) -> Errno:
        """madvise_collapse()."""
        if vma.attributes.hint == "nohuge" or vma.anon is None or not vma.blocks():
            return "EINVAL"
        first, last = -(-start // PAGES), end // PAGES
        done = 0
        for block in range(first, last):
            result = self._scan(mm, vma, block, by_advice=True)
            if result in ("succeed", "mapped"):
                done += 1
            elif result == "none":
                break
        return 0 if done == last - first else "EINVAL"

    def _none_limit(self, vma: Vma) -> int:
        """thp_max_ptes_none()."""
        if self._has_threshold:
            return min(self._max_ptes_none, PAGES - self._threshold_of(vma))
        return self._max_ptes_none

    def _scan(
        self, mm: AddressSpace, vma: Vma, block: int, by_advice: bool, in_place_only: bool = False
    ) -> str:
        """hpage_collapse_scan_pmd(), and the collapse if it succeeds."""
        table = mm.tables.get(block)
        if table is None:
            return "none"
        if table.state != PTES:
            return "mapped"
        if not by_advice:
            exceeded = self._exceeded(vma, table)
            if exceeded is not None:
                self._count(exceeded)
                return "exceeded"
        # Every page has been accessed: the guest program reads back what it writes.
        if not table.writable:
            return "read-only"
        return "succeed" if self._collapse(mm, vma, block, table, in_place_only) else "no-page"

    def _exceeded(self, vma: Vma, table: Table) -> str | None:
        """The first limit of khugepaged that a range exceeds, in the order of its pages."""
        none_left, shared_left = self._none_limit(vma), self._max_ptes_shared
        if PAGES - table.present.bit_count() <= none_left:
            none_left = PAGES
        for frame in table.frames:
            if frame is None:
                none_left -= 1
                if none_left < 0:
                    return "thp_scan_exceed_none_pte"
            elif frame.folio.likely_shared() if frame.folio is not None else frame.maps > 1:
                shared_left -= 1
                if shared_left < 0:
                    return "thp_scan_exceed_share_pte"
        return None

    def _is_complete(self, reservation: Reservation, vma: Vma, table: Table) -> bool:
        """thp_resv_complete(): whether every page of a range is from the block of its reservation, or still in it."""
        if vma.attributes.locked:
            return False
        for page, frame in enumerate(table.frames):
            if frame is None:
                if not reservation.unused >> page & 1:
                    return False
            elif (
                frame.block is not reservation
                or frame.slot != page
                or frame.folio is not None
                or not frame.exclusive
            ):
                return False
        return True

    def _collapse(
        self, mm: AddressSpace, vma: Vma, block: int, table: Table, in_place_only: bool = False
    ) -> bool:
        """collapse_huge_page(); return whether it succeeded."""
        stamps = table.stamps()
        reservation = mm.reservations.get(block)
        if self._has_in_place and reservation is not None and self._is_complete(reservation, vma, table):
            node = reservation.node
            self._fill(mm, block, reservation)
        elif in_place_only:
            return False
        else:
            self._count("thp_collapse_alloc")
            node = self._target_node(table)
            for frame in table.frames:
                if frame is not None:
                    self._unmap_ptes([frame])
            if self._has_copy and self._give_up(mm, block) is not None:
                self._count("thp_res_copy")
        self._map_huge(mm, vma, block, stamps, node)
        return True

    def _target_node(self, table: Table) -> int:
        """hpage_collapse_find_target_node(): the node with the most pages; the first one if there are several."""
        counts = _pages_by_node(table)
        return counts.index(max(counts))

    def _fill(self, mm: AddressSpace, block: int, reservation: Reservation) -> None:
        """thp_resv_collapse(): the unused pages become part of the huge page."""
        unused = reservation.unused.bit_count()
        self._counters[self._reserved] -= unused
        self._count("thp_res_filled", unused)
        self._count("thp_res_collapse")
        del mm.reservations[block]

    # Invariants

    def violations(self) -> list[str]:
        """Violated invariants of the design; empty unless the model has a bug."""
        wrong: list[str] = []
        maps: dict[int, int] = {}
        frames: dict[int, PageFrame] = {}
        folios: dict[int, Folio] = {}
        entire: dict[int, int] = {}
        unused = 0
        for name, mm in self._processes.items():
            for one, other in zip(mm.vmas, mm.vmas[1:], strict=False):
                if one.end > other.start:
                    wrong.append(f"{name}: VMAs overlap at {other.start}")
            for block, reservation in mm.reservations.items():
                unused += reservation.unused.bit_count()
                vma = mm.find(block * PAGES)
                if vma is None or not vma.contains_block(block):
                    wrong.append(f"{name}: the reservation of block {block} crosses the border of a VMA")
                table = mm.tables.get(block)
                if (
                    table is not None
                    and self._has_zero_page
                    and self._has_copy
                    and (table.state == HUGE or table.present & reservation.unused)
                ):
                    wrong.append(f"{name}: a page of block {block} is both mapped and reserved")
            for block, table in mm.tables.items():
                if table.state != PTES:
                    vma = mm.find(block * PAGES)
                    if vma is None or not vma.contains_block(block):
                        wrong.append(f"{name}: the huge page of block {block} crosses the border of a VMA")
                    if table.folio is not None:
                        folios[id(table.folio)] = table.folio
                        entire[id(table.folio)] = entire.get(id(table.folio), 0) + 1
                    continue
                if table.present & table.zero:
                    wrong.append(f"{name}: a page of block {block} is both its own and the zero page")
                if table.writable & ~table.present:
                    wrong.append(f"{name}: a page of block {block} is writable but not present")
                for page, frame in enumerate(table.frames):
                    if (frame is not None) != bool(table.present >> page & 1):
                        wrong.append(f"{name}: page {page} of block {block} does not match its table")
                    if frame is None:
                        continue
                    if table.writable >> page & 1 and not frame.exclusive:
                        wrong.append(f"{name}: page {page} of block {block} is shared and writable")
                    if mm.find(block * PAGES + page) is None:
                        wrong.append(f"{name}: page {page} of block {block} is mapped outside of a VMA")
                    frames[id(frame)] = frame
                    maps[id(frame)] = maps.get(id(frame), 0) + 1
                    if frame.folio is not None:
                        folios[id(frame.folio)] = frame.folio
        for key, frame in frames.items():
            if frame.maps != maps[key]:
                wrong.append(f"a page that is mapped {maps[key]} times has a map count of {frame.maps}")
            if frame.exclusive and maps[key] > 1:
                wrong.append("an exclusive page is mapped twice")
        for key, folio in folios.items():
            counted = [maps.get(id(frame), 0) for frame in folio.frames]
            if folio.entire != entire.get(key, 0) or folio.maps != folio.entire + sum(counted):
                wrong.append("the number of a huge page's mappings is wrong")
            if folio.mapped != sum(1 for count in counted if count):
                wrong.append("the number of a huge page's mapped pages is wrong")
        owners = [(id(frame.block), frame.slot) for frame in frames.values() if frame.block is not None]
        if len(owners) != len(set(owners)):
            wrong.append("a page of a reservation was handed out twice")
        huge = sum(1 for folio in folios.values() if folio.entire)
        if self.counter("nr_anon_transparent_hugepages") != huge:
            wrong.append(f"{huge} huge pages are mapped")
        if self.counter("nr_thp_reserved") != unused:
            wrong.append(f"{unused} pages are reserved, not {self.counter('nr_thp_reserved')}")
        left = PAGES * self.counter("thp_res_alloc")
        right = sum(
            self.counter(name)
            for name in ("nr_thp_reserved", "thp_res_mapped", "thp_res_released", "thp_res_filled")
        )
        if left != right:
            wrong.append(f"{left} pages were allocated for reservations, but {right} are accounted for")
        return wrong


def _node_for(vma: Vma) -> int:
    """The NUMA node of a new page: the node that the VMA is bound to, else the node of the CPU."""
    node = vma.attributes.node
    return 0 if node is None else node


def _pages_by_node(table: Table) -> list[int]:
    """Number of pages on each node, up to the last node that has any; without the zero page."""
    if table.folio is not None:
        return [0] * table.folio.node + [PAGES]
    counts: list[int] = []
    if table.present:
        for frame in table.frames:
            if frame is not None:
                while len(counts) <= frame.node:
                    counts.append(0)
                counts[frame.node] += 1
    return counts


def _pieces(start: int, end: int) -> Iterable[tuple[int, int, int]]:
    """Split pages by range: number of the range, first page and last page + 1 in it."""
    block, first = divmod(start, PAGES)
    if end <= (block + 1) * PAGES:
        return ((block, first, end - block * PAGES),) if end > start else ()
    pieces = []
    while start < end:
        block, first = divmod(start, PAGES)
        last = min(end - block * PAGES, PAGES)
        pieces.append((block, first, last))
        start = block * PAGES + last
    return pieces


def _frames_of(table: Table) -> list[PageFrame]:
    return [frame for frame in table.frames if frame is not None]


def _run_length(table: Table, page: int, last: int) -> int:
    """folio_pte_batch(): the number of consecutive pages of a large folio that are mapped, starting with `page`."""
    first = table.frames[page]
    assert first is not None
    assert first.folio is not None
    frames = first.folio.frames
    index = first.slot
    length = 0
    while (
        page + length < last and index + length < first.folio.size
        and table.frames[page + length] is frames[index + length]
    ):  # fmt: skip
        length += 1
    return length


def _move_ptes(source: Table, first: int, target: Table, new_first: int, count: int) -> None:
    """move_ptes()."""
    mask = bits(first, first + count)
    shift = new_first - first
    for name in ("present", "zero", "writable"):
        moved = getattr(source, name) & mask
        setattr(source, name, getattr(source, name) & ~mask)
        setattr(target, name, getattr(target, name) | (moved << shift if shift > 0 else moved >> -shift))
    target.frames[new_first : new_first + count] = source.frames[first : first + count]
    source.frames[first : first + count] = [None] * count
