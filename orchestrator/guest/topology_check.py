# SPDX-License-Identifier: GPL-2.0-only
"""Whether the guest's kernel sees the nodes that were asked for."""

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
#: Firmware keeps parts of the first MiB and of the end of low memory.
_TOLERANCE_MIB = 4


def verify(guest: Guest, topology: Topology) -> list[str]:
    """What differs between the guest and `topology`; nothing where it is as it should be.

    Args:
        topology: what was asked for.

    Returns:
        One clause a difference, with what the guest has and what was asked for.

    Raises:
        GuestLost, CommandTimeout: the guest did not answer.
    """
    return differences(read_files(guest, (*_FILES, _ZONEINFO)).files, topology)


def differences(files: Mapping[str, str], topology: Topology) -> list[str]:
    """The same from the files' content; pure.

    Args:
        files: path -> content, of the files below /sys/devices/system/node and of /proc/zoneinfo.
    """
    found: list[str] = []
    wanted = set(range(len(topology.nodes)))
    # A kernel without NUMA has no such directory, and one node.
    online = _ids(files.get(f"{_DIRECTORY}/online", "0"))
    if online != wanted:
        found.append(f"nodes {_text(online)} are online, asked for {_text(wanted)}")
    for name, asked in (
        ("has_cpu", {i for i, node in enumerate(topology.nodes) if node.cpus}),
        ("has_memory", {i for i, node in enumerate(topology.nodes) if node.memory_mib}),
    ):
        text = files.get(f"{_DIRECTORY}/{name}")
        if text is not None and _ids(text) != asked:
            found.append(f"{name} is {_text(_ids(text))}, asked for {_text(asked)}")
    present: dict[int, int] = {}
    for value in parse_zoneinfo(files.get(_ZONEINFO, "")):
        if value.node is not None and value.counter.endswith(".present"):
            present[value.node] = present.get(value.node, 0) + value.value
    for index, node in enumerate(topology.nodes):
        memory_mib = present.get(index, 0) / _PAGES_PER_MIB
        if abs(memory_mib - node.memory_mib) > _TOLERANCE_MIB:
            found.append(f"node {index} has {memory_mib:.0f} MiB, asked for {node.memory_mib}")
        cpus = files.get(f"{_DIRECTORY}/node{index}/cpulist")
        if cpus is not None and len(_ids(cpus)) != node.cpus:
            found.append(f"node {index} has {len(_ids(cpus))} CPUs, asked for {node.cpus}")
        row = files.get(f"{_DIRECTORY}/node{index}/distance")
        asked_row = tuple(topology.distances[index])
        if row is not None and tuple(map(int, row.split())) != asked_row:
            found.append(f"node {index} is at distances {row.strip()}, asked for {_row(asked_row)}")
    return found


def _ids(text: str) -> set[int]:
    """The numbers of a list such as ``0-2,5``; none of an empty one."""
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
