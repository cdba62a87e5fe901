# SPDX-License-Identifier: GPL-2.0-only
"""Checks that the guest's kernel sees the requested NUMA nodes."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.guest.counters import parse_zoneinfo
from orchestrator.guest.sampler import read_files
from orchestrator.guest.ssh import Guest
from orchestrator.machine.topology import Topology

_DIRECTORY = "/sys/devices/system/node"
_FILES = (f"{_DIRECTORY}/*", f"{_DIRECTORY}/node[0-9]*/cpulist", f"{_DIRECTORY}/node[0-9]*/distance")
_ZONEINFO = "/proc/zoneinfo"
_PAGES_PER_MIB = 256
#: Firmware reserves parts of the first MiB and of the end of low memory.
_TOLERANCE_MIB = 4


def verify(guest: Guest, topology: Topology) -> list[str]:
    """The differences between the guest and `topology`.

    Args:
        topology: the requested topology.

    Returns:
        One clause per difference, with the actual and the requested value; empty if there is none.

    Raises:
        GuestLost, CommandTimeout: the guest did not answer.
    """
    return differences(read_files(guest, (*_FILES, _ZONEINFO)).files, topology)


def differences(files: Mapping[str, str], topology: Topology) -> list[str]:
    """Like :func:`verify`, but a pure function of the files' contents.

    Args:
        files: path -> content, for the files below /sys/devices/system/node and /proc/zoneinfo.
    """
    found: list[str] = []
    wanted = set(range(len(topology.nodes)))
    # A kernel without NUMA has no such directory and one node.
    online = _ids(files.get(f"{_DIRECTORY}/online", "0"))
    if online != wanted:
        found.append(f"nodes {_text(online)} are online, requested {_text(wanted)}")
    for name, asked in (
        ("has_cpu", {i for i, node in enumerate(topology.nodes) if node.cpus}),
        ("has_memory", {i for i, node in enumerate(topology.nodes) if node.memory_mib}),
    ):
        text = files.get(f"{_DIRECTORY}/{name}")
        if text is not None and _ids(text) != asked:
            found.append(f"{name} is {_text(_ids(text))}, requested {_text(asked)}")
    present: dict[int, int] = {}
    for value in parse_zoneinfo(files.get(_ZONEINFO, "")):
        if value.node is not None and value.counter.endswith(".present"):
            present[value.node] = present.get(value.node, 0) + value.value
    for index, node in enumerate(topology.nodes):
        memory_mib = present.get(index, 0) / _PAGES_PER_MIB
        if abs(memory_mib - node.memory_mib) > _TOLERANCE_MIB:
            found.append(f"node {index} has {memory_mib:.0f} MiB, requested {node.memory_mib}")
        cpus = files.get(f"{_DIRECTORY}/node{index}/cpulist")
        if cpus is not None and len(_ids(cpus)) != node.cpus:
            found.append(f"node {index} has {len(_ids(cpus))} CPUs, requested {node.cpus}")
        row = files.get(f"{_DIRECTORY}/node{index}/distance")
        asked_row = tuple(topology.distances[index])
        if row is not None and tuple(map(int, row.split())) != asked_row:
            found.append(f"node {index} has distances {row.strip()}, requested {_row(asked_row)}")
    return found


def _ids(text: str) -> set[int]:
    """The numbers in a list such as ``0-2,5``; the list may be empty."""
    ids: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            ids |= set(range(int(first), int(last or first) + 1))
    return ids


def _text(ids: set[int]) -> str:
    return ",".join(map(str, sorted(ids))) or "none"


def _row(distances: tuple[int, ...]) -> str:
    return " ".join(map(str, distances))
