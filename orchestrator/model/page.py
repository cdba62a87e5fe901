# SPDX-License-Identifier: GPL-2.0-only
"""Pages, huge pages and reservations, with their owners and contents.

The content of a page is one 64-bit word, which the guest program repeats over the
whole page; 0 is a page of zeros. A page has a stamp, which identifies the write
that filled it; the word is computed from the stamp when it is needed.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, Self

PAGES: Final = 512
ALL: Final = (1 << PAGES) - 1
_MASK: Final = 2**64 - 1
#: Bits of a stamp that hold the page number; the arena has fewer pages than that.
_STAMP_BITS: Final = 20


def stamp_of(seed: int, page: int) -> int:
    """The stamp of a page that is written with `seed`. Stamps of consecutive pages are consecutive, and none is 0.

    Args:
        seed: seed of the write.
        page: number of the page in the arena at the time of the write.
    """
    return seed + 1 << _STAMP_BITS | page


@lru_cache(maxsize=1 << 16)
def word_of(stamp: int) -> int:
    """The content of a page with this stamp."""
    return page_word((stamp >> _STAMP_BITS) - 1, stamp & (1 << _STAMP_BITS) - 1) if stamp else 0


def page_word(seed: int, page: int) -> int:
    """The word that a write with `seed` fills a page with: splitmix64, never 0.

    Args:
        seed: seed of the write.
        page: number of the page in the arena at the time of the write.
    """
    word = (seed * 0x9E3779B97F4A7C15 + page) & _MASK
    word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ word >> 27) * 0x94D049BB133111EB) & _MASK
    return (word ^ word >> 31) | 1


def block_hash(words: Iterable[int]) -> str:
    """FNV-1a over the words of a range's pages, as 16 hexadecimal digits."""
    digest = 0xCBF29CE484222325
    for word in words:
        digest = ((digest ^ word) * 0x100000001B3) & _MASK
    return f"{digest:016x}"


@lru_cache(maxsize=1024)
def stamps_hash(stamps: tuple[int, ...]) -> str:
    """Like `block_hash()`, for stamps; cached, since most ranges are read several times before they change."""
    return block_hash(map(word_of, stamps))


def bits(first: int, last: int) -> int:
    """A bitmap of the pages from `first` to the one before `last`."""
    return (1 << last) - (1 << first)


class Reservation:
    """A block held for one range (struct thp_resv).

    Attributes:
        unused: bitmap of the pages that have not been handed out.
        node: the NUMA node that all of its pages are on.
    """

    __slots__ = ("node", "unused")

    def __init__(self, node: int = 0) -> None:
        self.unused = ALL
        self.node = node


class PageFrame:
    """A base page in use, on its own or as part of a large folio.

    Attributes:
        stamp: stamp of its content; 0 for zeros.
        maps: number of PTEs that map it.
        exclusive: PageAnonExclusive: not shared, so that a write may reuse it.
        folio: the large folio that it is part of, or None.
        block: the reservation that it came from, or None.
        slot: its index in that block, or in the large folio.
        node: its NUMA node.
    """

    __slots__ = ("block", "exclusive", "folio", "maps", "node", "slot", "stamp")

    def __init__(
        self, stamp: int = 0, block: Reservation | None = None, slot: int = 0, node: int = 0
    ) -> None:
        self.stamp = stamp
        self.maps = 1
        self.exclusive = True
        self.folio: Folio | None = None
        self.block = block
        self.slot = slot
        self.node = node


class Folio:
    """A large folio: a huge page (order 9), or a smaller one (multi-size THP), which is only mapped by PTEs.

    Attributes:
        size: number of its pages.
        node: the NUMA node that all of them are on.
        stamps: stamps of its pages until PTEs map it for the first time; after that they are in `frames`.
        frames: its pages, once a PMD that maps it has been split.
        exclusive: PageAnonExclusive of the head page, which is used while a PMD maps it.
        entire: number of PMDs that map it (_entire_mapcount + 1).
        maps: number of all mappings, by PMDs and by PTEs (_large_mapcount + 1), and thus of references.
        mapped: number of its pages that are mapped by PTEs (_nr_pages_mapped).
        partially: whether it is on the deferred split queue (PG_partially_mapped).
    """

    __slots__ = ("entire", "exclusive", "frames", "mapped", "maps", "node", "partially", "size", "stamps")

    def __init__(self, stamps: list[int], node: int = 0) -> None:
        self.size = len(stamps)
        self.node = node
        self.stamps: list[int] | None = stamps
        self.frames: list[PageFrame] = []
        self.exclusive = True
        self.entire = 1
        self.maps = 1
        self.mapped = 0
        self.partially = False

    @classmethod
    def mapped_by_ptes(cls, size: int, node: int) -> Self:
        """A new folio of zeros, with each page mapped by one PTE and exclusive."""
        folio = cls([0] * size, node)
        for frame in folio.into_frames():
            frame.maps = 1
            frame.exclusive = True
        folio.entire = 0
        folio.maps = folio.mapped = size
        return folio

    def likely_shared(self) -> bool:
        """folio_likely_mapped_shared(), an estimate from the first page."""
        if self.maps <= 1:
            return False
        if self.entire or self.maps > self.size:
            return True
        return self.frames[0].maps > 1

    def all_stamps(self) -> list[int]:
        """The stamps of all pages."""
        return self.stamps if self.stamps is not None else [frame.stamp for frame in self.frames]

    def into_frames(self) -> list[PageFrame]:
        """Its pages; on the first call they are created, not mapped by any PTE."""
        if self.stamps is not None:
            self.frames = [PageFrame(stamp, None, page, self.node) for page, stamp in enumerate(self.stamps)]
            for frame in self.frames:
                frame.maps = 0
                frame.exclusive = False
                frame.folio = self
            self.stamps = None
        return self.frames


PTES: Final = 1
HUGE: Final = 2
HUGE_ZERO: Final = 3


class Table:
    """The target of a PMD that is not none: a page table, a huge page, or the huge zero page.

    Attributes:
        state: `PTES`, `HUGE` or `HUGE_ZERO`.
        frames: for `PTES`: the page of each PTE.
        present, zero, writable: bitmaps of PTEs that map a page, map the zero page, or are writable. A writable PMD
            has all bits of `writable` set.
        folio: for `HUGE`: the huge page.
    """

    __slots__ = ("folio", "frames", "present", "state", "writable", "zero")

    def __init__(self, state: int = PTES, folio: Folio | None = None) -> None:
        self.state = state
        self.folio = folio
        self.present = 0
        self.zero = 0
        self.writable = 0
        self.frames: list[PageFrame | None] = [None] * PAGES if state == PTES else []

    def stamps(self) -> list[int]:
        """The stamps of all pages; 0 for pages that are not present."""
        if self.folio is not None:
            return self.folio.all_stamps()
        if not self.present:
            return [0] * PAGES
        return [frame.stamp if frame is not None else 0 for frame in self.frames]

    def contents(self) -> list[int]:
        """The content of each page."""
        return [word_of(stamp) if stamp else 0 for stamp in self.stamps()]
