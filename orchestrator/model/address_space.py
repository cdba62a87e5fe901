# SPDX-License-Identifier: GPL-2.0-only
"""Address spaces: VMAs, how they are split and merged, and their page tables.

Follows mm/vma.c and mm/rmap.c of Linux 6.12. A 2 MiB range can only be huge if it
lies within a single VMA, so merging of VMAs matters. In this package, identifiers
call a range `block`, as the trace format does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from orchestrator.model.page import PAGES, Reservation, Table

NONE: Final = 0
READ: Final = 1
WRITE: Final = 2


class Attributes(NamedTuple):
    """The attributes that two VMAs must have in common to be merged.

    Attributes:
        hint: "huge", "nohuge" or "".
        protection: `NONE`, `READ` or `WRITE` (which includes reading).
        locked: VM_LOCKED.
        accounted: VM_ACCOUNT, which mprotect clears in a VMA that has never been written.
        node: node of an MPOL_BIND policy, or None.
    """

    hint: str = ""
    protection: int = WRITE
    locked: bool = False
    accounted: bool = True
    node: int | None = None


class AnonVma:
    """struct anon_vma, as far as merging and reuse depend on it."""

    __slots__ = ("active", "children", "links", "parent")

    def __init__(self, parent: AnonVma | None = None) -> None:
        self.parent = parent if parent is not None else self
        self.children = 0
        self.active = 0
        self.links = 0


class Vma:
    """A virtual memory area: pages `start` to `end` - 1 of the arena."""

    __slots__ = ("anon", "attributes", "chain", "end", "offset", "start")

    def __init__(self, start: int, end: int, attributes: Attributes, offset: int) -> None:
        self.start = start
        self.end = end
        self.attributes = attributes
        self.offset = offset  # vm_pgoff
        self.anon: AnonVma | None = None
        self.chain: list[AnonVma] = []  # oldest first

    def contains_block(self, block: int) -> bool:
        """thp_vma_suitable_order(): whether the VMA contains the whole 2 MiB range."""
        return self.start <= block * PAGES and (block + 1) * PAGES <= self.end

    def blocks(self) -> range:
        """The 2 MiB ranges that the VMA contains completely."""
        return range(-(-self.start // PAGES), self.end // PAGES)

    def at(self, page: int) -> int:
        """The vm_pgoff of a page, inside or outside of the VMA."""
        return self.offset + page - self.start

    # anon_vma chains: mm/rmap.c

    def _link(self, anon: AnonVma) -> None:
        anon.links += 1
        self.chain.append(anon)

    def clone_anon(self, source: Vma) -> None:
        """anon_vma_clone(): `self.anon` is already set, or may be set to an unused one."""
        for anon in source.chain:
            self._link(anon)
        if self.anon is None and source.anon is not None:
            # The kernel walks the chain from the oldest and uses the first.
            for anon in source.chain:
                if anon.children < 2 and not anon.active:
                    self.anon = anon
                    break
        if self.anon is not None:
            self.anon.active += 1

    def fork_anon(self, parent: Vma) -> None:
        """anon_vma_fork()."""
        if parent.anon is None:
            return
        self.clone_anon(parent)
        if self.anon is not None:
            return
        anon = AnonVma(parent.anon)
        anon.active = 1
        self.anon = anon
        self._link(anon)
        parent.anon.children += 1

    def unlink_anon(self) -> None:
        """unlink_anon_vmas()."""
        for anon in reversed(self.chain):
            anon.links -= 1
            if not anon.links:
                anon.parent.children -= 1
        self.chain = []
        if self.anon is not None:
            self.anon.active -= 1
            self.anon = None

    def duplicate_anon(self, source: Vma) -> None:
        """dup_anon_vma(): a merged VMA needs the anon_vma of either part."""
        if source.anon is not None and self.anon is None:
            self.anon = source.anon
            self.clone_anon(source)

    def new_anon(self) -> None:
        """The rest of __anon_vma_prepare(), if no anon_vma of a neighbour can be used."""
        anon = AnonVma()
        anon.children = 1
        self.use_anon(anon)

    def use_anon(self, anon: AnonVma) -> None:
        """Set the anon_vma of this VMA, which has none yet."""
        self.anon = anon
        anon.active += 1
        self._link(anon)


def _anon_mergeable(one: AnonVma | None, other: AnonVma | None, vma: Vma | None) -> bool:
    """is_mergeable_anon_vma()."""
    if (one is None or other is None) and (vma is None or len(vma.chain) == 1):
        return True
    return one is other


class AddressSpace:
    """The arena of one process.

    Attributes:
        vmas: sorted.
        tables: range -> table; without one, the PMD is none.
        reservations: range -> reservation.
        on_boundary: called with a page number when a VMA gets a border inside of a range.
    """

    def __init__(self, on_boundary: Callable[[AddressSpace, int], None]) -> None:
        self.vmas: list[Vma] = []
        self.tables: dict[int, Table] = {}
        self.reservations: dict[int, Reservation] = {}
        self._on_boundary = on_boundary
        self._last: Vma | None = None

    def find(self, page: int) -> Vma | None:
        """The VMA that contains a page."""
        vma = self._last
        if vma is not None and vma.start <= page < vma.end:
            return vma
        for vma in self.vmas:
            if page < vma.end:
                if vma.start > page:
                    return None
                self._last = vma
                return vma
        return None

    def first_from(self, page: int) -> Vma | None:
        """find_vma(): the first VMA that ends after a page."""
        for vma in self.vmas:
            if vma.end > page:
                return vma
        return None

    def overlapping(self, start: int, end: int) -> list[Vma]:
        """The VMAs that contain a page from `start` to `end` - 1."""
        return [vma for vma in self.vmas if vma.start < end and vma.end > start]

    def parts(self, start: int, end: int) -> Iterator[tuple[Vma, int, int]]:
        """Like overlapping(), with the pages in each VMA."""
        for vma in self.overlapping(start, end):
            yield vma, max(vma.start, start), min(vma.end, end)

    def is_gapless(self, start: int, end: int) -> bool:
        """Whether every page from `start` to `end` - 1 is in a VMA."""
        for vma in self.overlapping(start, end):
            if vma.start > start:
                return False
            start = vma.end
        return start >= end

    def neighbours(self, start: int, end: int) -> tuple[Vma | None, Vma | None]:
        """The VMAs that end at `start` and begin at `end`."""
        before = after = None
        for vma in self.vmas:
            if vma.end == start:
                before = vma
            elif vma.start == end:
                after = vma
        return before, after

    def insert(self, vma: Vma) -> None:
        """Add a VMA where no VMA is."""
        self._last = None
        self.vmas.append(vma)
        self.vmas.sort(key=lambda each: each.start)

    def remove(self, vma: Vma) -> None:
        """Remove a VMA and its anon_vma links."""
        self._last = None
        self.vmas.remove(vma)
        vma.unlink_anon()

    def _resize(self, vma: Vma, start: int, end: int) -> None:
        self._last = None
        vma.offset = vma.at(start)
        vma.start = start
        vma.end = end

    def prepare_anon(self, vma: Vma) -> None:
        """anon_vma_prepare(): share the anon_vma of a neighbour that may later be merged with `vma`."""
        before, after = self.neighbours(vma.start, vma.end)
        for neighbour, first, second in ((after, vma, after), (before, before, vma)):
            if (
                neighbour is not None
                and first is not None
                and second is not None
                and neighbour.anon is not None
                and len(neighbour.chain) == 1
                and second.offset == first.at(second.start)
                # Attributes that mprotect can change may differ.
                and first.attributes._replace(protection=NONE) == second.attributes._replace(protection=NONE)
            ):
                vma.use_anon(neighbour.anon)
                return
        vma.new_anon()

    def split(self, vma: Vma, page: int) -> tuple[Vma, Vma]:
        """Split a VMA; the second part begins at `page`."""
        self._last = None
        second = Vma(page, vma.end, vma.attributes, vma.at(page))
        second.anon = vma.anon
        second.clone_anon(vma)
        vma.end = page
        self.insert(second)
        self._on_boundary(self, page)
        return vma, second

    def modify(self, vma: Vma, start: int, end: int, attributes: Attributes) -> Vma:
        """vma_modify(): change the attributes of a part of a VMA, by merging or splitting.

        Returns:
            The VMA that now contains the part.
        """
        merged = self._merge_existing(vma, start, end, attributes)
        if merged is not None:
            return merged
        if vma.start < start:
            vma = self.split(vma, start)[1]
        if vma.end > end:
            vma = self.split(vma, end)[0]
        vma.attributes = attributes
        return vma

    def _mergeable(
        self, attributes: Attributes, offset: int, length: int, anon: AnonVma | None,
        before: Vma | None, after: Vma | None,
    ) -> tuple[bool, bool]:  # fmt: skip
        """can_vma_merge_left() and can_vma_merge_right()."""
        left = (
            before is not None
            and before.attributes == attributes
            and _anon_mergeable(anon, before.anon, before)
            and before.at(before.end) == offset
        )
        right = (
            after is not None
            and after.attributes == attributes
            and _anon_mergeable(anon, after.anon, after)
            and after.offset == offset + length
            and not (left and before is not None and not _anon_mergeable(before.anon, after.anon, None))
        )
        return left, right

    def _merge_existing(self, vma: Vma, start: int, end: int, attributes: Attributes) -> Vma | None:
        """vma_merge_existing_range()."""
        before, after = self.neighbours(start, end)
        if start != vma.start:
            before = None
        if end != vma.end:
            after = None
        left, right = self._mergeable(attributes, vma.at(start), end - start, vma.anon, before, after)
        if left and right and before is not None and after is not None:
            before.duplicate_anon(after if after.anon is not None else vma)
            last = after.end
            self.remove(vma)
            self.remove(after)
            self._resize(before, before.start, last)
            result = before
        elif left and before is not None:
            before.duplicate_anon(vma)
            self._resize(before, before.start, end)
            if end == vma.end:
                self.remove(vma)
            else:
                self._resize(vma, end, vma.end)
            result = before
        elif right and after is not None:
            after.duplicate_anon(vma)
            self._resize(after, start, after.end)
            if start == vma.start:
                self.remove(vma)
            else:
                self._resize(vma, vma.start, start)
            result = after
        else:
            return None
        for page in (start, end):
            if self.find(page) is not self.find(page - 1):
                self._on_boundary(self, page)
        return result

    def merge_new(
        self, start: int, end: int, attributes: Attributes, offset: int, anon: AnonVma | None
    ) -> Vma | None:
        """vma_merge_new_range(): merge new pages with one neighbour, or with both."""
        before, after = self.neighbours(start, end)
        left, right = self._mergeable(attributes, offset, end - start, anon, before, after)
        if left and before is not None:
            last = end
            if right and after is not None:
                before.duplicate_anon(after)
                last = after.end
                self.remove(after)
            self._resize(before, before.start, last)
            result = before
        elif right and after is not None:
            self._resize(after, start, after.end)
            result = after
        else:
            return None
        return result
