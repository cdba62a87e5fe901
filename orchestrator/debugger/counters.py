# SPDX-License-Identifier: GPL-2.0-only
"""Counters of /proc/vmstat, read from the memory of a guest that stands still (mm/vmstat.c, vmstat_start())."""

from __future__ import annotations

import struct
from typing import Final

from orchestrator.debugger.gdb import Gdb, GdbError
from orchestrator.errors import UserError
from orchestrator.store.observation import Sample

_NAME_BYTES: Final = 64
#: Ticks before the overflow of the 32-bit counter at which jiffies start (include/linux/jiffies.h, INITIAL_JIFFIES).
_START_S: Final = 300


def read_vmstat(gdb: Gdb, host_s: float) -> list[Sample]:
    """Read all counters of the zones, nodes and events, as /proc/vmstat has them.

    Like there, what a CPU has counted and not yet added to the sum of a zone or node is missing.

    Args:
        gdb: attached to a guest that is stopped; its kernel has debugging information.
        host_s: time of the reading, in seconds since the epoch.

    Raises:
        UserError: this kernel has no such counters.
    """
    try:
        zones, numa, nodes = (
            gdb.number(name) for name in ("NR_VM_ZONE_STAT_ITEMS", _numa_items(gdb), "NR_VM_NODE_STAT_ITEMS")
        )
        limits, events = gdb.number("NR_VM_STAT_ITEMS"), gdb.number("NR_VM_EVENT_ITEMS")
        values = [
            *_longs(gdb, "&vm_zone_stat", zones),
            *_longs(gdb, "&vm_numa_event", numa),
            *_longs(gdb, "&vm_node_stat", nodes),
            *[0] * limits,
            *_events(gdb, events),
        ]
        names = _names(gdb, len(values))
        guest_s = _uptime_s(gdb)
    except (GdbError, UserError) as error:
        raise UserError(f"the counters of this kernel cannot be read from its memory: {error}") from error
    limit_range = range(zones + numa + nodes, zones + numa + nodes + limits)
    return [
        Sample(guest_s, host_s, "during", "vmstat", None, name, value)
        for at, (name, value) in enumerate(zip(names, values, strict=True))
        if at not in limit_range
    ]


def _numa_items(gdb: Gdb) -> str:
    try:
        gdb.number("NR_VM_NUMA_EVENT_ITEMS")
    except UserError:
        return "0"
    return "NR_VM_NUMA_EVENT_ITEMS"


def _longs(gdb: Gdb, address: str, count: int) -> list[int]:
    if not count:
        return []
    # Counters of a zone or node can be below 0 for a moment; the kernel shows 0 then (global_node_page_state).
    return [max(value, 0) for value in struct.unpack(f"<{count}q", gdb.read_memory(address, str(8 * count)))]


def _events(gdb: Gdb, count: int) -> list[int]:
    total = [0] * count
    for cpu in range(gdb.threads()):
        address = f"(long)&vm_event_states + __per_cpu_offset[{cpu}]"
        for at, value in enumerate(struct.unpack(f"<{count}Q", gdb.read_memory(address, str(8 * count)))):
            total[at] += value
    return total


def _names(gdb: Gdb, count: int) -> list[str]:
    pointers = struct.unpack(f"<{count}Q", gdb.read_memory("&vmstat_text", str(8 * count)))
    # The linker puts the strings close to each other: one read has them all.
    low, high = min(pointers), max(pointers) + _NAME_BYTES
    if high - low > 1 << 20:
        return [_string(gdb.read_memory(f"{pointer:#x}", str(_NAME_BYTES)), 0) for pointer in pointers]
    text = gdb.read_memory(f"{low:#x}", str(high - low))
    return [_string(text, pointer - low) for pointer in pointers]


def _string(text: bytes, at: int) -> str:
    return text[at : text.index(b"\0", at)].decode("ascii", "replace")


def _uptime_s(gdb: Gdb) -> float:
    tick_s = gdb.number("*(unsigned long *)&tick_nsec") / 1e9
    start = (1 << 32) - round(_START_S / tick_s)
    return float((gdb.number("jiffies_64") - start) * tick_s)
