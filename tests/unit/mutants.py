# SPDX-License-Identifier: GPL-2.0-only
"""Deliberate mistakes of a kernel, made in the reference model.

What the differential check asks is whether a kernel and its model are the same. Whether it would notice a mistake does
not depend on which of the two has it, so each mutant here is a model that does what a wrong kernel would do, to be
compared with what a right kernel answered.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from orchestrator.execution.check.differential import Answers, TraceComparison, compare, parse_answers
from orchestrator.execution.check.reference import model_of
from orchestrator.kernel.series import Series, load_series
from orchestrator.machine.topology import Topology
from orchestrator.model import trace
from orchestrator.model.address_space import AddressSpace, Vma
from orchestrator.model.memory import Model, Prediction
from orchestrator.model.page import PAGES, PTES, Folio, PageFrame, Reservation, Table
from orchestrator.model.trace import Operation, Trace, parse

ROOT: Final = Path(__file__).resolve().parents[2]
RECORDED: Final = ROOT / "tests" / "differential" / "recorded"
PATCHSETS: Final = ("baseline", "core-only", "full")

Errno = Any


@dataclass(frozen=True)
class Recording:
    """A trace, and what a guest answered to it.

    Args:
        lacks: fields of a block that the guest's program did not report yet.
    """

    patchset: str
    name: str
    trace: Trace
    answers: Answers
    lacks: frozenset[str] = frozenset()


@cache
def recordings() -> tuple[Recording, ...]:
    """All that were recorded; ``tests/differential/record.py`` makes them."""
    found = []
    for patchset in PATCHSETS:
        text = lzma.decompress((RECORDED / f"{patchset}.jsonl.xz").read_bytes()).decode()
        for line in text.splitlines():
            record = json.loads(line)
            (answers,), wrong = parse_answers("\n".join(map(json.dumps, record["answers"])))
            assert wrong == "it stopped without reporting its end"  # which is said after the last trace only
            lacks = frozenset(record.get("lacks", ()))
            found.append(Recording(patchset, record["name"], parse(record["trace"]), answers, lacks))
    return tuple(found)


@cache
def _series() -> Series:
    return load_series(ROOT / "kernel_patches")


def compared(recording: Recording, kind: type[Model] = Model) -> TraceComparison:
    """Compare a recording with a model of its kernel, or with a mutant of that."""
    right = model_of(recording.patchset, _series(), Topology.parse("2x512M/1"))(recording.trace)
    assert isinstance(right, Model)
    model = right
    if kind is not Model:
        absent = {"promotion_threshold"} if recording.patchset == "baseline" else set()
        settings = {knob: value for knob, value in recording.trace.settings.items() if knob not in absent}
        model = kind(right.stages, settings, right.blocks, right.nodes)
    return compare(recording.trace, recording.answers, _Without(model, recording.lacks))


class _Without:
    """A model that predicts fewer fields of a block: for what was recorded before a field was reported."""

    def __init__(self, model: Model, lacks: frozenset[str]) -> None:
        self._model = model
        self._lacks = lacks

    @property
    def settings(self) -> Mapping[str, str]:
        return self._model.settings

    @property
    def alive(self) -> Sequence[str]:
        return self._model.alive

    def step(self, operation: Operation) -> Prediction:
        return self._model.step(operation)

    def rss(self, name: str) -> int:
        return self._model.rss(name)

    def block(self, name: str, block: int) -> Any:
        view = self._model.block(name, block).as_dict()
        return SimpleNamespace(as_dict=lambda: {key: view[key] for key in view if key not in self._lacks})


_caught: dict[type[Model], tuple[Recording, TraceComparison] | None] = {}


def caught(kind: type[Model]) -> tuple[Recording, TraceComparison] | None:
    """The first recording that a mutant does not agree with, and how."""
    if kind not in _caught:
        _caught[kind] = _first_difference(kind)
    return _caught[kind]


def _first_difference(kind: type[Model]) -> tuple[Recording, TraceComparison] | None:
    for recording in sorted(recordings(), key=lambda each: PATCHSETS.index(each.patchset), reverse=True):
        comparison = compared(recording, kind)
        if comparison.divergence is not None:
            return recording, comparison
    return None


#: The stamp of stale contents: what a page that nobody zeroed may hold.
_STALE: Final = 0xA5A5A5A5A5A5A5A5


class SharedTree(Model):
    """fork(): the child has its parent's tree of reservations, as memcpy() of the mm leaves it."""

    def _inherit(self, parent: AddressSpace, child: AddressSpace) -> None:
        child.reservations = parent.reservations


class CopiedReservations(Model):
    """fork(): the child is given reservations of the same blocks."""

    def _inherit(self, parent: AddressSpace, child: AddressSpace) -> None:
        child.reservations = dict(parent.reservations)


class ParentLoses(Model):
    """fork(): the parent gives its reservations up."""

    def _inherit(self, parent: AddressSpace, child: AddressSpace) -> None:
        for block in list(parent.reservations):
            self._give_up(parent, block)


class ReleaseForgetsTail(Model):
    """A release forgets the last range if only a part of it goes away."""

    def _release(self, mm: AddressSpace, start: int, end: int) -> None:
        super()._release(mm, start, end if end % PAGES == 0 else max(start + 1, end // PAGES * PAGES))


class ReleaseForgetsParts(Model):
    """munmap() and MADV_DONTNEED give up nothing of a range that goes away in part."""

    def _release(self, mm: AddressSpace, start: int, end: int) -> None:
        first, last = -(-start // PAGES), end // PAGES
        if first < last:
            super()._release(mm, first * PAGES, last * PAGES)


class DontneedKeeps(Model):
    """MADV_DONTNEED has no release hook."""

    def _dont_need(self, mm: AddressSpace, vma: Vma, start: int, end: int) -> Errno:
        kept = mm.reservations
        if vma.attributes.locked:
            return "EINVAL"
        mm.reservations = {}
        self._zap(mm, start, end)
        mm.reservations = kept
        return 0


class SplitKeeps(Model):
    """A VMA that is split inside of a range leaves the reservation."""

    def _on_boundary(self, mm: AddressSpace, page: int) -> None:
        kept, mm.reservations = mm.reservations, {}
        super()._on_boundary(mm, page)
        mm.reservations = kept


class BindKeeps(Model):
    """mbind() leaves reservations on the old node."""

    def _bind(self, operation: trace.Bind) -> Errno:
        mm = self._processes[operation.process]
        kept, mm.reservations = mm.reservations, {}
        errno = super()._bind(operation)
        mm.reservations = kept
        return errno


class NohugeKeeps(Model):
    """MADV_NOHUGEPAGE leaves reservations."""

    def _hint(self, mm: AddressSpace, start: int, end: int, hint: trace.Hint) -> Errno:
        if hint != "nohuge":
            return super()._hint(mm, start, end, hint)
        whole = {block: r for block, r in mm.reservations.items() if start <= block * PAGES < end}
        for block in whole:
            del mm.reservations[block]
        errno = super()._hint(mm, start, end, hint)
        mm.reservations |= whole
        return errno


class ExitLeaks(Model):
    """exit() frees no reservation."""

    def _exit(self, operation: trace.Exit) -> Errno:
        self._processes[operation.process].reservations = {}
        return super()._exit(operation)


class ReleasedCountsBlocks(Model):
    """thp_res_released counts the pages of the block, not those that were unused."""

    def _give_up(self, mm: AddressSpace, block: int) -> Reservation | None:
        reservation = super()._give_up(mm, block)
        if reservation is not None:
            self._count("thp_res_released", PAGES - reservation.unused.bit_count())
        return reservation


class ReleasedForgotten(Model):
    """thp_res_released is not counted when memory is short."""

    def _dump(self, operation: trace.Dump) -> Errno:
        before = self.counter("thp_res_released")
        errno = super()._dump(operation)
        self._count("thp_res_released", before - self.counter("thp_res_released"))
        return errno


class ReservedDrifts(Model):
    """nr_thp_reserved loses no page when a reservation with one page in use is given up (the planted `drift`)."""

    def _give_up(self, mm: AddressSpace, block: int) -> Reservation | None:
        reservation = super()._give_up(mm, block)
        if reservation is not None and reservation.unused.bit_count() == PAGES - 1:
            self._count("nr_thp_reserved")
        return reservation


class MappedTwice(Model):
    """thp_res_mapped counts the first page of a reservation twice."""

    def _create(self, mm: AddressSpace, vma: Vma, block: int) -> None:
        before = len(mm.reservations)
        super()._create(mm, vma, block)
        self._count("thp_res_mapped", len(mm.reservations) - before)


class HandedOutTwice(Model):
    """The bit of a page that is handed out stays set."""

    def _take(self, mm: AddressSpace, vma: Vma, block: int, first: int, last: int) -> list[PageFrame]:
        frames = super()._take(mm, vma, block, first, last)
        for frame in frames:
            if frame.block is not None:
                frame.block.unused |= 1 << frame.slot
        return frames


class NotZeroed(Model):
    """A page out of a reservation is handed out as it is (the planted `unzeroed`)."""

    def _take(self, mm: AddressSpace, vma: Vma, block: int, first: int, last: int) -> list[PageFrame]:
        frames = super()._take(mm, vma, block, first, last)
        for frame in frames:
            if frame.block is not None:
                frame.stamp = _STALE
        return frames


class ReadReserves(Model):
    """A read reserves, too."""

    def _fault_none(self, mm: AddressSpace, vma: Vma, block: int, write: bool) -> Table:
        table = super()._fault_none(mm, vma, block, write)
        if not write and self._may_reserve(vma) and self._allowed(vma) and vma.contains_block(block):
            self._create(mm, vma, block)
        return table


class NothingAfterRead(Model):
    """The first write to a range that was read before reserves nothing."""

    def _cow_zero(self, mm: AddressSpace, vma: Vma, block: int, table: Table, page: int) -> PageFrame:
        self._prepare_anon(mm, vma)
        return self._take(mm, vma, block, page, page + 1)[0]


class ReservesOverPages(Model):
    """A write over the zero page reserves although the range has pages that are not the block's."""

    def _cow_zero(self, mm: AddressSpace, vma: Vma, block: int, table: Table, page: int) -> PageFrame:
        present, table.present = table.present, 0
        frame = super()._cow_zero(mm, vma, block, table, page)
        table.present = present
        return frame


class IgnoresAdvice(Model):
    """A range without MADV_HUGEPAGE is reserved although "enabled" is "madvise"."""

    def _fault_none(self, mm: AddressSpace, vma: Vma, block: int, write: bool) -> Table:
        table = super()._fault_none(mm, vma, block, write)
        if write and self._may_reserve(vma) and vma.contains_block(block):
            self._create(mm, vma, block)
        return table


class CrossesVmas(Model):
    """A range is reserved that is only partly inside the VMA."""

    def _fault_none(self, mm: AddressSpace, vma: Vma, block: int, write: bool) -> Table:
        table = super()._fault_none(mm, vma, block, write)
        if write and self._may_reserve(vma) and self._allowed(vma):
            self._create(mm, vma, block)
        return table


class RequestReserves(Model):
    """MADV_HUGEPAGE reserves instead of mapping a huge page."""

    def _may_reserve(self, vma: Vma) -> bool:
        return self._has_reserve and self._threshold > 1


class RequestHasThreshold(Model):
    """khugepaged requires the threshold also where MADV_HUGEPAGE has requested huge pages."""

    def _none_limit(self, vma: Vma) -> int:
        return (
            min(super()._none_limit(vma), PAGES - self._threshold)
            if self._has_threshold
            else super()._none_limit(vma)
        )


class RequestGivesUp(Model):
    """MADV_HUGEPAGE gives up reservations made before."""

    def _hint(self, mm: AddressSpace, start: int, end: int, hint: trace.Hint) -> Errno:
        errno = super()._hint(mm, start, end, hint)
        if hint == "huge":
            self._release(mm, start, end)
        return errno


class ColdKeeps(Model):
    """MADV_COLD leaves reservations."""

    def _cold(self, mm: AddressSpace, vma: Vma, start: int, end: int) -> Errno:
        return self._free(mm, vma, start, end)


class ColdIsDump(Model):
    """MADV_COLD counts as memory being short."""

    def _cold(self, mm: AddressSpace, vma: Vma, start: int, end: int) -> Errno:
        before = len(mm.reservations)
        errno = super()._cold(mm, vma, start, end)
        self._count("thp_res_dump", before - len(mm.reservations))
        return errno


class DisabledKeeps(Model):
    """Reservations stay when "enabled" is no longer "always"."""

    def _set(self, operation: trace.Set) -> Errno:
        kept = {name: mm.reservations for name, mm in self._processes.items()}
        for mm in self._processes.values():
            mm.reservations = {}
        errno = super()._set(operation)
        for name, reservations in kept.items():
            self._processes[name].reservations = reservations
        return errno


class AlwaysGivesUp(Model):
    """Any value written to "enabled" gives up all reservations."""

    def _set(self, operation: trace.Set) -> Errno:
        errno = super()._set(operation)
        if operation.knob == "enabled":
            self._dump_all()
        return errno


class OneReserves(Model):
    """A threshold of 1 reserves instead of mapping a huge page."""

    def _may_reserve(self, vma: Vma) -> bool:
        return self._has_reserve


class DefaultNotRaised(Model):
    """The default threshold stays at 1."""

    def __init__(self, *arguments: Any) -> None:
        stages, settings, *others = arguments
        super().__init__(
            stages, {"promotion_threshold": "1", **settings} if "threshold" in stages else settings, *others
        )


class OneBelowThreshold(Model):
    """khugepaged promotes with one page less than the threshold."""

    def _none_limit(self, vma: Vma) -> int:
        return min(self._max_ptes_none, super()._none_limit(vma) + 1)


class OneAboveThreshold(Model):
    """khugepaged promotes only above the threshold."""

    def _none_limit(self, vma: Vma) -> int:
        return max(super()._none_limit(vma) - (self._has_threshold and self._threshold > 1), 0)


class ThresholdForgotten(Model):
    """khugepaged looks at max_ptes_none alone, and fills up what lost its reservation."""

    def _none_limit(self, vma: Vma) -> int:
        return self._max_ptes_none


class SharedLimitOff(Model):
    """khugepaged takes as many shared pages as there are."""

    def _read_settings(self) -> None:
        super()._read_settings()
        self._max_ptes_shared = PAGES


class DumpMisses(Model):
    """A dump misses the reservations of processes other than the first."""

    def _dump(self, operation: trace.Dump) -> Errno:
        others = list(self._processes.items())[1:]
        for name, _ in others:
            del self._processes[name]
        errno = super()._dump(operation)
        self._processes.update(others)
        return errno


class DumpTakesUsed(Model):
    """A dump gives up reservations which have no unused page, and counts them."""

    def _dump(self, operation: trace.Dump) -> Errno:
        if self._has_dump:
            for mm in self._processes.values():
                for block in [block for block, each in mm.reservations.items() if not each.unused]:
                    self._give_up(mm, block)
                    self._count("thp_res_dump")
        return super()._dump(operation)


class DumpNotCounted(Model):
    """thp_res_dump counts dumps, not reservations."""

    def _dump(self, operation: trace.Dump) -> Errno:
        before = self.counter("thp_res_dump")
        errno = super()._dump(operation)
        dumped = self.counter("thp_res_dump") - before
        self._count("thp_res_dump", min(dumped, 1) - dumped)
        return errno


class CopyKeeps(Model):
    """A range that was promoted by copying keeps its reservation."""

    def _collapse(
        self, mm: AddressSpace, vma: Vma, block: int, table: Table, in_place_only: bool = False
    ) -> bool:
        kept = mm.reservations.get(block)
        copied = self.counter("thp_res_copy")
        done = super()._collapse(mm, vma, block, table, in_place_only)
        if kept is not None and self.counter("thp_res_copy") > copied:
            mm.reservations[block] = kept
            self._count("thp_res_released", -kept.unused.bit_count())
            self._count("nr_thp_reserved", kept.unused.bit_count())
        return done


class CopyCountedInPlace(Model):
    """A promotion by copying is counted as one in place."""

    def _collapse(
        self, mm: AddressSpace, vma: Vma, block: int, table: Table, in_place_only: bool = False
    ) -> bool:
        before = self.counter("thp_res_copy")
        done = super()._collapse(mm, vma, block, table, in_place_only)
        copied = self.counter("thp_res_copy") - before
        self._count("thp_res_copy", -copied)
        self._count("thp_res_collapse", copied)
        return done


class InPlaceOfShared(Model):
    """Promotion in place takes pages that a child shares, which it then may write to."""

    def _is_complete(self, reservation: Reservation, vma: Vma, table: Table) -> bool:
        frames = [frame for frame in table.frames if frame is not None and not frame.exclusive]
        for frame in frames:
            frame.exclusive = True
        complete = super()._is_complete(reservation, vma, table)
        for frame in frames:
            frame.exclusive = False
        return complete


class InPlaceOfForeign(Model):
    """Promotion in place does not look whether a page is from its block."""

    def _is_complete(self, reservation: Reservation, vma: Vma, table: Table) -> bool:
        return not vma.attributes.locked


class InPlaceOfLocked(Model):
    """Promotion in place takes mlocked pages."""

    def _is_complete(self, reservation: Reservation, vma: Vma, table: Table) -> bool:
        free = Vma(vma.start, vma.end, vma.attributes._replace(locked=False), vma.offset)
        return super()._is_complete(reservation, free, table)


class NeverInPlace(Model):
    """Promotion in place never finds a block whole, and copies."""

    def _is_complete(self, reservation: Reservation, vma: Vma, table: Table) -> bool:
        return False


class HolesNotZeroed(Model):
    """Promotion in place leaves the contents of pages that were never used (the planted `holes`)."""

    def _map_huge(self, mm: AddressSpace, vma: Vma, block: int, stamps: list[int], node: int) -> Folio:
        return super()._map_huge(mm, vma, block, [stamp or _STALE for stamp in stamps], node)


class FilledIsReleased(Model):
    """Promotion in place counts its unused pages in thp_res_released."""

    def _fill(self, mm: AddressSpace, block: int, reservation: Reservation) -> None:
        before = self.counter("thp_res_filled")
        super()._fill(mm, block, reservation)
        filled = self.counter("thp_res_filled") - before
        self._count("thp_res_filled", -filled)
        self._count("thp_res_released", filled)


class ShiftedByOne(Model):
    """Promotion in place puts each page at its neighbour's place."""

    def _collapse(
        self, mm: AddressSpace, vma: Vma, block: int, table: Table, in_place_only: bool = False
    ) -> bool:
        before = self.counter("thp_res_collapse")
        done = super()._collapse(mm, vma, block, table, in_place_only)
        folio = mm.tables[block].folio
        if self.counter("thp_res_collapse") > before and folio is not None and folio.stamps is not None:
            folio.stamps = [*folio.stamps[1:], folio.stamps[0]]
        return done


class RemapKeepsKey(Model):
    """mremap() moves the pages of a range, and not the key of its reservation."""

    def _move_reservations(self, mm: AddressSpace, start: int, end: int, new_start: int) -> None:
        pass


class RemapMovesUnaligned(Model):
    """mremap() keeps reservations although source and target are aligned differently."""

    def _move_reservations(self, mm: AddressSpace, start: int, end: int, new_start: int) -> None:
        super()._move_reservations(mm, start, end, new_start // PAGES * PAGES + start % PAGES)


class RemapGivesUp(Model):
    """mremap() gives up reservations that it could move."""

    def _move_reservations(self, mm: AddressSpace, start: int, end: int, new_start: int) -> None:
        self._release(mm, start, end)


class SyncCopies(Model):
    """The promotion before the return to user space copies where it cannot promote in place."""

    def _collapse(
        self, mm: AddressSpace, vma: Vma, block: int, table: Table, in_place_only: bool = False
    ) -> bool:
        return super()._collapse(mm, vma, block, table)


class SyncNever(Model):
    """The promotion before the return to user space is not made."""

    def _return_to_user(self) -> None:
        self._due.clear()


class ForkLeavesWritable(Model):
    """fork() write-protects the child's page table and not the parent's."""

    def _copy_range(self, parent: AddressSpace, child: AddressSpace, start: int, end: int) -> None:
        before = {block: table.writable for block, table in parent.tables.items()}
        super()._copy_range(parent, child, start, end)
        for block, table in parent.tables.items():
            if table.state == PTES:
                table.writable = before[block] & table.present


class ReusesShared(Model):
    """A write to a page that a child shares is not copied."""

    def _may_reuse(self, frame: PageFrame) -> bool:
        return True


class LargeOverReservation(Model):
    """A larger folio (mTHP) is mapped over the pages that are left of a reservation."""

    def _may_be_large(self, mm: AddressSpace, block: int) -> bool:
        return bool(self._huge_sizes)


class LargeOverZeroPage(Model):
    """A larger folio (mTHP) is mapped where some of its pages are the zero page."""

    def _large_extent(self, vma: Vma, block: int, table: Table, page: int) -> range | None:
        zero, table.zero = table.zero, 0
        extent = super()._large_extent(vma, block, table, page)
        table.zero = zero & ~sum(1 << each for each in extent or ())
        return extent


class LargeWithoutAdvice(Model):
    """A size that is enabled for MADV_HUGEPAGE is mapped in any range."""

    def _read_settings(self) -> None:
        super()._read_settings()
        self._any_sizes = self._huge_sizes


class ReservesOnOwnNode(Model):
    """A reservation is made on the node of the CPU, whatever the memory policy says."""

    def _create(self, mm: AddressSpace, vma: Vma, block: int) -> None:
        super()._create(mm, vma, block)
        mm.reservations[block].node = 0


class CopiesToFirstNode(Model):
    """khugepaged copies to the first node that any of the pages is on."""

    def _target_node(self, table: Table) -> int:
        return next(frame.node for frame in table.frames if frame is not None)


class CopiesOnOldNode(Model):
    """A page that is copied by a write stays on the node of the original."""

    def _fault_write(
        self, mm: AddressSpace, vma: Vma, block: int, first: int, last: int, from_user: bool = False
    ) -> Table:
        before = mm.tables.get(block)
        nodes = [frame.node if frame is not None else None for frame in before.frames] if before else []
        table = super()._fault_write(mm, vma, block, first, last, from_user)
        for frame, node in zip(table.frames, nodes, strict=False):
            if frame is not None and node is not None:
                frame.node = node
        return table


MUTANTS: Final[tuple[type[Model], ...]] = tuple(
    kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Model) and kind is not Model
)


def row(kind: type[Model]) -> str:
    """The row of a mutant in docs/differential.md: the mistake, the trace that shows it, and where."""
    found = caught(kind)
    assert kind.__doc__ is not None
    if found is None:
        return f"| {kind.__doc__} | nothing | |"
    recording, comparison = found
    divergence = comparison.divergence
    assert divergence is not None
    return (
        f"| {kind.__doc__} | {recording.patchset}: {recording.name}, step {divergence.step} "
        f"| `{divergence.first.field}` |"
    )
