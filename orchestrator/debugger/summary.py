# SPDX-License-Identifier: GPL-2.0-only
"""An inspection as text and as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from orchestrator.analysis.layout import listing, wrapped
from orchestrator.debugger.inspection import (
    HUGE,
    LOST,
    MAPPED,
    PAGE,
    RESERVED,
    USES,
    Inspection,
    Process,
    ReservedBlock,
)
from orchestrator.debugger.violation import RULES, BrokenRule

#: Keys whose values are addresses or frame numbers, which people look up in hexadecimal.
_HEXADECIMAL: Final = frozenset(
    {
        "address",
        "tree_mm",
        "tree_start",
        "mm",
        "start",
        "pfn",
        "memcg",
        "mapping",
        "parent",
        "listed",
        "mapped",
    }
)


def to_json(inspection: Inspection, found: Sequence[BrokenRule]) -> dict[str, Any]:
    """Everything that was read, for machines; addresses and frame numbers are strings with ``0x``."""
    facts: dict[str, Any] = _plain("", dataclasses.asdict(inspection))
    facts["violations"] = [dataclasses.asdict(each) for each in found]
    facts["uses"] = list(USES)
    return facts


def _plain(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(str(name), each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(key, each) for each in value]
    return f"{value:#x}" if key in _HEXADECIMAL and isinstance(value, int) else value


def to_text(
    inspection: Inspection,
    found: Sequence[BrokenRule],
    width: int,
    *,
    blocks: bool = False,
    pid: int | None = None,
) -> str:
    """Tables of nodes, memory cgroups and processes, and what is wrong.

    Args:
        width: columns.
        blocks: add a table with each reservation.
        pid: list this process and its reservations only.

    Raises:
        UserError: no process with this ID has reservations or huge pages.
    """
    total = sum(resv.bits for resv in inspection.reservations)
    threshold = "" if inspection.threshold is None else f", promotion_threshold {inspection.threshold}"
    number = counted(len(inspection.reservations), "reservation")
    mib = total * 4 / 1024
    lines = [
        f"Linux {inspection.release}{threshold}: {number}, {counted(total, 'unused page')} ({mib:.1f} MiB)"
    ]
    shown = inspection if pid is None else inspection.only(pid)
    tables = [_nodes(inspection, width), _memcgs(inspection, width), _processes(shown, width)]
    for table in [*tables, *([_reservations(shown, width)] if blocks else [])]:
        lines += ["", *table] if table else []
    return "\n".join([*lines, "", *verdict(found, width)])


def to_line(inspection: Inspection, found: Sequence[BrokenRule]) -> str:
    """An inspection in one line."""
    states = Counter[str]()
    for resv in inspection.reservations:
        for run in resv.runs:
            states[run.state] += run.count
    huge = sum(each.states.endswith(HUGE) for process in inspection.processes for each in process.ranges)
    wrong = f"{counted(len(found), 'violation')}: {found[0].what}" if found else "no violation"
    return (
        f"{counted(len(inspection.reservations), 'reservation')}, {states[MAPPED]} pages mapped, {states[RESERVED]} "
        f"reserved, {states[LOST]} lost, {counted(huge, 'huge page')}; {wrong}"
    )


def verdict(found: Sequence[BrokenRule], width: int) -> list[str]:
    """What is wrong: the first violation, and the number of the others."""
    if not found:
        return [f"No violation of {len(RULES)} rules."]
    first, *others = found
    lines = wrapped(f"VIOLATION: {first.rule}.", width, "  ") + wrapped(first.what, width, "  ")
    if others:
        lines.append(f"and {counted(len(others), 'other violation')}; --json lists all.")
    return lines


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _nodes(inspection: Inspection, width: int) -> list[str]:
    rows = []
    for node in inspection.nodes:
        own = [resv for resv in inspection.reservations if resv.node == node.number]
        uses = Counter[str]()
        for block in node.blocks:
            uses.update(dict(zip(USES, block, strict=True)))
        listed = "-" if node.listed is None else str(len(node.listed))
        numbers = (len(own), sum(resv.bits for resv in own), node.counter, listed, uses["free"])
        rows.append([str(node.number), *map(str, numbers), str(uses["huge"] // 512)])
    titles = [
        "node",
        "reservations",
        "unused pages",
        "nr_thp_reserved",
        "on its list",
        "free pages",
        "huge pages",
    ]
    return _table(rows, width, titles, range(len(titles)))


def _memcgs(inspection: Inspection, width: int) -> list[str]:
    rows = []
    for memcg in inspection.memcgs:
        own = [resv for resv in inspection.reservations if resv.memcg == memcg.address]
        if not own and not any(memcg.counters.values()) and not memcg.held:
            continue
        held = "-" if memcg.held is None else str(memcg.held)
        total = sum(memcg.counters.values())
        rows.append([str(len(own)), str(sum(resv.bits for resv in own)), str(total), held, memcg.path])
    titles = ["reservations", "unused pages", "thp_reserved", "held in blocks", "memory cgroup"]
    return _table(rows, width, titles, range(4))


def _processes(inspection: Inspection, width: int) -> list[str]:
    rows = []
    for process in inspection.processes:
        own = [resv for resv in inspection.reservations if (resv.tree_mm or resv.mm) == process.mm]
        counts = (len(own), *(sum(resv.pages(state) for resv in own) for state in (MAPPED, RESERVED, LOST)))
        states = Counter("".join(each.expanded() for each in process.ranges))
        rows.append([*map(str, counts), str(states[HUGE] // 512), str(states[PAGE]), process.title])
    titles = ["reservations", "mapped", "reserved", "lost", "huge pages", "other pages", "process"]
    return _table(rows, width, titles, range(6))


def _reservations(inspection: Inspection, width: int) -> list[str]:
    paths = {memcg.address: memcg.path for memcg in inspection.memcgs}
    rows = []
    for resv in inspection.reservations:
        process = inspection.process_of(resv.tree_mm or resv.mm)
        rows.append(
            [
                f"{resv.address:#x}", f"{resv.start:#x}", f"{resv.pfn:#x}", str(resv.node), str(resv.nr_unused),
                str(resv.pages(MAPPED)), str(resv.pages(LOST)), _references(resv), _contents(resv, process),
                paths.get(resv.memcg, ""),
            ]
        )  # fmt: skip
    titles = [
        "reservation", "range", "pfn", "node", "unused", "mapped", "lost", "references", "contents", "memory cgroup",
    ]  # fmt: skip
    return _table(rows, width, titles, range(3, 7))


def _references(resv: ReservedBlock) -> str:
    """The numbers of references to unused pages, and to mapped ones."""

    def of(state: str) -> str:
        known = sorted({run.refcount for run in resv.runs if run.state == state})
        return "/".join(map(str, known)) or "-"

    return f"{of(RESERVED)} unused, {of(MAPPED)} mapped"


def _contents(resv: ReservedBlock, process: Process | None) -> str:
    """Whose pages are in the block, and all flags that they have."""
    flags = {flag for run in resv.runs if run.state == MAPPED for flag in run.flags.split("|") if flag}
    owner = process.title if process else f"mm {resv.tree_mm or resv.mm:#x}"
    return f"{owner}: {'|'.join(sorted(flags))}" if resv.pages(MAPPED) else owner


def _table(rows: list[list[str]], width: int, titles: list[str], right: range) -> list[str]:
    return [line for lines in listing(rows, width, titles, right=tuple(right)) for line in lines]
