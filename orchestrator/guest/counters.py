# SPDX-License-Identifier: GPL-2.0-only
"""Parsers for text files with kernel counters. They are pure functions of the text.

Nothing is filtered: counters unknown to this module are returned like all others. Lines without an integer, such as
headings, are ignored; so are numbers with more digits than 64 bits have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

_THP = "/sys/kernel/mm/transparent_hugepage/"
_CGROUP = "/sys/fs/cgroup/"
_NODE_FILE = re.compile(r"/sys/devices/system/node/node(\d{1,9})/(\w+)", re.ASCII)
_PROCESS_FILE = re.compile(r"/proc/(\d{1,9})/smaps_rollup (.+)", re.ASCII)
_NODE_LINE = re.compile(r"Node (\d{1,9}), zone\s+(\S+)(.*)", re.ASCII)
_NODE_ZONE = re.compile(r"Node\s+(\d{1,9}), zone\s+(\w+)(?:, type\s+(\w+))?", re.ASCII)
_PRESSURE = "/proc/pressure/"
_NODE_PREFIX = re.compile(r"Node \d{1,9} ", re.ASCII)
_PAIR = re.compile(r"\s*(.+?):?\s+(-?\d{1,20})(?:\s+[A-Za-z]+)?\s*", re.ASCII)
_CHOICE = re.compile(r"(\[)?([\w,+-]+)\]?")
#: The only line about a CPU that zoneinfo does not indent like the others.
_LAST_OF_CPU = "vm stats threshold"
_SIGN = 1 << 63
_WRAP = 1 << 64


class Value(NamedTuple):
    """One counter.

    Args:
        source: name of its file, e.g. ``vmstat``; the same for the whole machine and for a node.
        node: NUMA node; None for the whole machine.
        counter: name in the file.
        value: value in the unit of the file (KiB where the file says kB).
    """

    source: str
    node: int | None
    counter: str
    value: int


def parse_pairs(text: str) -> dict[str, int]:
    """Parse lines of a name and a number, with or without a colon and a unit.

    If several lines have the same name, the first one counts.

    >>> parse_pairs("nr_free_pages 5\\nMemFree:  12 kB\\n")
    {'nr_free_pages': 5, 'MemFree': 12}
    """
    pairs: dict[str, int] = {}
    for line in text.splitlines():
        found = _PAIR.fullmatch(line)
        if found:
            pairs.setdefault(found[1], _signed(found[2]))
    return pairs


def parse_vmstat(text: str, node: int | None = None, source: str = "vmstat") -> list[Value]:
    """``/proc/vmstat`` and ``node*/vmstat`` (mm/vmstat.c), and other files of pairs."""
    return [Value(source, node, name, value) for name, value in parse_pairs(text).items()]


def parse_meminfo(text: str, node: int | None = None) -> list[Value]:
    """``/proc/meminfo`` (fs/proc/meminfo.c) and ``node*/meminfo`` (drivers/base/node.c), in KiB."""
    plain = "\n".join(_NODE_PREFIX.sub("", line, count=1) for line in text.splitlines())
    return parse_vmstat(plain, node, "meminfo")


def parse_buddyinfo(text: str) -> list[Value]:
    """``/proc/buddyinfo``: number of free blocks per order, as counters ``<zone>.order<n>``."""
    values = []
    for line in text.splitlines():
        found = _NODE_LINE.fullmatch(line)
        if found:
            counts = [part for part in found[3].split() if _is_integer(part)]
            values += [
                Value("buddyinfo", int(found[1]), f"{found[2]}.order{order}", _signed(count))
                for order, count in enumerate(counts)
            ]
    return values


def parse_zoneinfo(text: str) -> list[Value]:
    """``/proc/zoneinfo`` (mm/vmstat.c, zoneinfo_show_print()), as counters ``<zone>.<name>``.

    Counters under "per-node stats" have no zone in their name. Numbers in per-CPU lists become
    ``<zone>.cpu<n>.<name>``, and numbers in parentheses ``<zone>.<name>.<position>``.
    """
    values: list[Value] = []
    node: int | None = None
    zone = prefix = ""
    for line in text.splitlines():
        heading = _NODE_LINE.fullmatch(line)
        if heading:
            node, zone = int(heading[1]), f"{heading[2]}."
            prefix = zone
            continue
        if node is None:
            continue
        words = line.split()
        if line.strip() == "per-node stats":
            prefix = ""
        elif words[:1] == ["pages"] and len(words) == 3:
            prefix = zone
            line = " ".join(words[1:])
        elif words[:1] == ["cpu:"] and len(words) == 2 and _is_integer(words[1]):
            prefix = f"{zone}cpu{words[1]}."
            continue
        elif line.strip() == "pagesets" or (_PAIR.fullmatch(line) is None and "(" not in line):
            continue
        elif not line.startswith("    ") and not line.strip().startswith(_LAST_OF_CPU):
            prefix = zone  # end of the per-CPU lists
        name, parenthesis, row = line.partition("(")
        if parenthesis:
            numbers = [part for part in re.split(r"[,\s)]+", row) if _is_integer(part)]
            values += [
                Value("zoneinfo", node, f"{prefix}{name.strip().rstrip(':')}.{position}", _signed(number))
                for position, number in enumerate(numbers)
            ]
            continue
        values += [
            Value("zoneinfo", node, prefix + counter, value) for counter, value in parse_pairs(line).items()
        ]
    return values


def parse_pressure(text: str, source: str, prefix: str) -> list[Value]:
    """``/proc/pressure/*`` and ``*.pressure`` of a control group (kernel/sched/psi.c): total stall times in us.

    The averages are left out: they follow from the totals of two readings.

    >>> parse_pressure("some avg10=0.12 avg60=0.00 avg300=0.00 total=345\\n", "psi", "memory")[0][2:]
    ('memory.some.total', 345)
    """
    return [
        Value(source, None, f"{prefix}.{found[1]}.total", int(found[2]))
        for found in re.finditer(r"^(some|full) .*\btotal=(\d+)$", text, re.MULTILINE | re.ASCII)
    ]


def parse_slabinfo(text: str) -> list[Value]:
    """``/proc/slabinfo`` (mm/slab_common.c): objects in use and in all, and slabs, of each cache."""
    values = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 16 or not all(map(_is_integer, [*words[1:3], words[14]])):
            continue
        for counter, word in (("active_objs", words[1]), ("num_objs", words[2]), ("num_slabs", words[14])):
            values.append(Value("slabinfo", None, f"{words[0]}.{counter}", int(word)))
    return values


def parse_pagetypeinfo(text: str) -> list[Value]:
    """``/proc/pagetypeinfo`` (mm/vmstat.c): free blocks by zone, migrate type and order; page blocks by zone and type.

    The kernel stops counting at 100000 and prints ">100000", which becomes 100000.
    """
    values = []
    types: list[str] = []
    for line in text.splitlines():
        if line.startswith("Number of blocks type"):
            types = line.split()[4:]
            continue
        found = _NODE_ZONE.match(line)
        if not found:
            continue
        node, zone, kind = int(found[1]), found[2], found[3]
        numbers = [word.lstrip(">") for word in line[found.end() :].split()]
        if not all(map(_is_integer, numbers)):
            continue
        names = (
            [f"{kind}.{order}" for order in range(len(numbers))]
            if kind
            else [f"blocks.{each}" for each in types]
        )
        values += [
            Value("pagetypeinfo", node, f"{zone}.{name}", int(number))
            for name, number in zip(names, numbers, strict=False)
        ]
    return values


def parse_setting(text: str, counter: str, source: str = "thp") -> list[Value]:
    """A file with one number, or with a choice such as ``always [madvise] never``.

    A choice becomes one counter per alternative: 1 for the selected one, else 0.

    >>> [(v.counter, v.value) for v in parse_setting("always [never]", "enabled")]
    [('enabled.always', 0), ('enabled.never', 1)]
    """
    stripped = text.strip()
    if _is_integer(stripped):
        return [Value(source, None, counter, _signed(stripped))]
    words = stripped.split()
    chosen = [_CHOICE.fullmatch(word) for word in words]
    if sum(word.startswith("[") and word.endswith("]") for word in words) != 1 or not all(chosen):
        return []
    return [Value(source, None, f"{counter}.{each[2]}", int(bool(each[1]))) for each in chosen if each]


def parse_smaps_rollup(text: str, source: str = "smaps_rollup") -> list[Value]:
    """``/proc/PID/smaps_rollup`` (fs/proc/task_mmu.c), in KiB; the heading is ignored."""
    body = "\n".join(line for line in text.splitlines() if "[rollup]" not in line)
    return parse_vmstat(body, None, source)


_PARSERS: Mapping[str, Callable[[str], list[Value]]] = {
    "/proc/vmstat": parse_vmstat,
    "/proc/meminfo": parse_meminfo,
    "/proc/buddyinfo": parse_buddyinfo,
    "/proc/zoneinfo": parse_zoneinfo,
    "/proc/slabinfo": parse_slabinfo,
    "/proc/pagetypeinfo": parse_pagetypeinfo,
}


def parse_file(path: str, text: str) -> list[Value]:
    """The counters in any file of the guest.

    Args:
        path: absolute path in the guest, which determines the format. Unknown files are parsed as pairs, with the
            path as source. The path of a process's file is followed by a space and the name of the process; the
            source is then ``process/NAME.PID``.
        text: content of the file.
    """
    if path in _PARSERS:
        return _PARSERS[path](text)
    of_node = _NODE_FILE.fullmatch(path)
    if of_node:
        node, name = int(of_node[1]), of_node[2]
        return parse_meminfo(text, node) if name == "meminfo" else parse_vmstat(text, node, name)
    if path.startswith(_THP):
        return parse_setting(text, path.removeprefix(_THP))
    of_process = _PROCESS_FILE.fullmatch(path)
    if of_process:
        return parse_smaps_rollup(text, f"process/{of_process[2]}.{of_process[1]}")
    name = PurePosixPath(path).name
    if name == "smaps_rollup":
        return parse_smaps_rollup(text)
    if path.startswith(_PRESSURE):
        return parse_pressure(text, "psi", name)
    if path.startswith(_CGROUP):
        group = path.removeprefix(_CGROUP)
        if name.endswith(".pressure"):
            return parse_pressure(text, "memcg", group)
        single = parse_setting(text, group, "memcg")
        return single or [
            Value("memcg", None, f"{group}.{counter}", value) for counter, value in parse_pairs(text).items()
        ]
    return parse_vmstat(text, None, path)


def _is_integer(text: str) -> bool:
    return re.fullmatch(r"-?\d{1,20}", text, re.ASCII) is not None


def _signed(text: str) -> int:
    """Convert to a signed 64-bit number: an unsigned counter that underflowed is printed as nearly 2**64."""
    return (int(text) + _SIGN) % _WRAP - _SIGN
