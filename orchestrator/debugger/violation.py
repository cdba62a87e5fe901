# SPDX-License-Identifier: GPL-2.0-only
"""What must hold of reservations whenever no CPU is changing one, and where it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from orchestrator.debugger.inspection import (
    PAGE_BYTES,
    PAGES,
    Inspection,
    PageRun,
    ReservedBlock,
)


@dataclass(frozen=True)
class BrokenRule:
    """Something that must not be.

    Args:
        rule: name of the rule.
        what: one sentence, with the addresses of what is wrong.
    """

    rule: str
    what: str


Rule = Callable[[Inspection], Iterator[str]]


def violations(inspection: Inspection) -> list[BrokenRule]:
    """Every violation, by rule: first what a wrong reservation says of itself, then what others say of it.

    A CPU that is stopped while it changes a reservation leaves it half changed: in a guest that runs, only what is
    still wrong some milliseconds later is wrong (see :func:`lasting`).
    """
    return [BrokenRule(name, what) for name, rule in RULES.items() for what in rule(inspection)]


def lasting(earlier: list[BrokenRule], later: list[BrokenRule]) -> list[BrokenRule]:
    """The violations that are in both."""
    known = set(earlier)
    return [each for each in later if each in known]


def _bits(inspection: Inspection) -> Iterator[str]:
    for resv in inspection.reservations:
        if resv.nr_unused != resv.bits:
            yield f"{_named(inspection, resv)} says that it holds {resv.nr_unused} pages, but has {resv.bits} bits set"


def _tree(inspection: Inspection) -> Iterator[str]:
    for resv in inspection.reservations:
        who = _named(inspection, resv)
        if not resv.tree_mm:
            yield f"{who} is on the list of node {resv.node}, but not in the tree of its mm"
        elif resv.mm != resv.tree_mm:
            yield f"{who} is in the tree of mm {resv.tree_mm:#x}, but says that its mm is {resv.mm:#x}"
        elif resv.start != resv.tree_start:
            yield f"{who} is in the tree for {resv.tree_start:#x}, but says that it is for {resv.start:#x}"
        elif not resv.covered:
            yield f"{who} is for a range that no anonymous VMA covers"
        elif resv.has_huge_page:
            yield f"{who} is for a range where a huge page is mapped"


def _block(inspection: Inspection) -> Iterator[str]:
    blocks: dict[int, ReservedBlock] = {}
    for resv in inspection.reservations:
        if not resv.nr_unused and not resv.bits:
            continue  # its pages may have been freed, and their memory removed
        who = _named(inspection, resv)
        if resv.pfn % PAGES:
            yield f"{who} has a block that is not aligned: pfn {resv.pfn:#x}"
        elif resv.node < 0:
            yield f"{who} has a block where there is no memory: pfn {resv.pfn:#x}"
        other = blocks.setdefault(resv.pfn, resv)
        if other is not resv:
            yield f"{who} has the block of the reservation at {other.address:#x}: pfn {resv.pfn:#x}"


def _unused_pages(inspection: Inspection) -> Iterator[str]:
    for resv in inspection.reservations:
        for run in resv.runs:
            wrong = _wrong_with(run)
            if run.unused and wrong:
                pages = "page" if run.count == 1 else f"{run.count} pages"
                pfn, address = resv.pfn + run.first, resv.start + run.first * PAGE_BYTES
                yield f"unused {pages} {wrong}: pfn {pfn:#x}, which {_named(inspection, resv)} holds for {address:#x}"


def _wrong_with(run: PageRun) -> str:
    if run.refcount != 1:
        return f"with {run.refcount} references instead of one"
    if run.mapcount:
        return f"with a map count of {run.mapcount}"
    if run.mapping:
        return f"with the mapping {run.mapping:#x}"
    return f"charged to memcg data {run.memcg:#x}" if run.memcg else ""


def _mapped(inspection: Inspection) -> Iterator[str]:
    for pfn, mm, address in inspection.mapped:
        process = inspection.process_of(mm)
        by = process.title if process else f"mm {mm:#x}"
        resv = next(each for each in inspection.reservations if each.pfn <= pfn < each.pfn + PAGES)
        yield (
            f"unused page mapped: pfn {pfn:#x} at address {address:#x} of {by}, which {_named(inspection, resv)} holds"
        )


def _list(inspection: Inspection) -> Iterator[str]:
    by_address = {resv.address: resv for resv in inspection.reservations}
    for node in inspection.nodes:
        if node.listed is None:
            continue
        of = f"the list of node {node.number}"
        if node.list_error:
            yield f"{of} is damaged: {node.list_error}"
            continue
        if len(node.listed) != node.list_nr:
            yield f"{of} says that it has {node.list_nr} reservations, but has {len(node.listed)}"
        for address, times in Counter(node.listed).items():
            if times > 1:
                yield f"{of} has the reservation at {address:#x} {times} times"
        listed = set(node.listed)
        for address in node.listed:
            resv = by_address[address]
            if not resv.nr_unused:
                yield f"{of} has {_named(inspection, resv)}, which holds no pages"
            elif resv.node != node.number:
                yield f"{of} has {_named(inspection, resv)}, whose block is on node {resv.node}"
        for resv in inspection.reservations:
            if resv.node == node.number and resv.nr_unused and resv.address not in listed:
                yield f"{of} lacks {_named(inspection, resv)}, which holds {resv.nr_unused} pages"


def _node_counter(inspection: Inspection) -> Iterator[str]:
    for node in inspection.nodes:
        total = sum(resv.bits for resv in inspection.reservations if resv.node == node.number)
        if node.counter != total:
            yield (
                f"nr_thp_reserved of node {node.number} is {node.counter}, but its reservations hold {total} pages"
            )


def _memcg_counter(inspection: Inspection) -> Iterator[str]:
    held: Counter[tuple[int, int]] = Counter()
    for resv in inspection.reservations:
        held[resv.memcg, resv.node] += resv.bits
    for memcg in inspection.memcgs:
        for node, counter in memcg.counters.items():
            total = held[memcg.address, node]
            if counter != total:
                yield (
                    f"thp_reserved of memcg {memcg.path} ({memcg.address:#x}) on node {node} is {counter}, but its "
                    f"reservations hold {total} pages"
                )


def _memcg_limit(inspection: Inspection) -> Iterator[str]:
    parents = {memcg.address: memcg.parent for memcg in inspection.memcgs}
    held: Counter[int] = Counter()
    for resv in inspection.reservations:
        memcg = resv.memcg if resv.nr_unused else 0
        while memcg:
            held[memcg] += PAGES
            memcg = parents.get(memcg, 0)
    for group in inspection.memcgs:
        if group.held is not None and group.held != held[group.address]:
            yield (
                f"thp_resv_pages of memcg {group.path} ({group.address:#x}) is {group.held}, but the blocks that are "
                f"counted against its limits have {held[group.address]} pages"
            )


#: Each rule by name: a function that yields a sentence for each violation.
RULES: Final[dict[str, Rule]] = {
    "the count of a reservation is the number of its bits": _bits,
    "a reservation is in the tree of its mm, for a range of anonymous memory without a huge page": _tree,
    "a block is aligned memory of one reservation": _block,
    "an unused page has the reservation's reference only, and belongs to nobody": _unused_pages,
    "no page table maps an unused page": _mapped,
    "the list of a node has the reservations that hold pages of it": _list,
    "the counter of a node is the sum of the unused pages": _node_counter,
    "the counter of a memcg is the sum of the unused pages": _memcg_counter,
    "the limit of a memcg counts the blocks that hold pages": _memcg_limit,
}


def _named(inspection: Inspection, resv: ReservedBlock) -> str:
    """A reservation with its process and addresses."""
    process = inspection.process_of(resv.tree_mm or resv.mm)
    of = process.title if process else f"mm {resv.tree_mm or resv.mm:#x}"
    return f"the reservation at {resv.address:#x} of {of} for {resv.start:#x}"
