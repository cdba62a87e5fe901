# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import pytest
from guest_data import FILES

from orchestrator.guest.topology_check import differences
from orchestrator.machine.topology import Topology

NODE = "/sys/devices/system/node"


def test_the_recorded_guest_is_what_it_was_asked_to_be() -> None:
    assert differences(FILES, Topology.parse("4x2G")) == []


@pytest.mark.parametrize(
    ("asked", "clause"),
    [
        ("3x2G", "nodes 0,1,2,3 are online, requested 0,1,2"),
        ("3x2G+1x1G", "node 3 has 2048 MiB, requested 1024"),
        ("4x2G/1", "node 2 has 2 CPUs, requested 1"),
        ("3x2G+1x0", "has_memory is 0,1,2,3, requested 0,1,2"),
    ],
)
def test_another_topology_is_noticed(asked: str, clause: str) -> None:
    assert clause in differences(FILES, Topology.parse(asked))


def test_other_distances_are_noticed() -> None:
    rows = [[10 if i == j else 20 for j in range(4)] for i in range(4)]
    rows[1][2] = 35
    asked = Topology(Topology.parse("4x2G").nodes, tuple(map(tuple, rows)))
    assert differences(FILES, asked) == ["node 1 has distances 20 10 20 20, requested 20 10 35 20"]


def test_a_node_without_memory_is_accepted_where_it_was_asked_for() -> None:
    files = dict(FILES)
    files[f"{NODE}/has_memory"] = "0-2\n"
    zones = files["/proc/zoneinfo"]
    files["/proc/zoneinfo"] = zones[: zones.index("Node 3,")]
    assert differences(files, Topology.parse("3x2G+1x0")) == []


def test_a_kernel_without_numa_has_one_node() -> None:
    zones = FILES["/proc/zoneinfo"]
    files = {"/proc/zoneinfo": zones[: zones.index("Node 1,")]}
    assert differences(files, Topology.parse("2G")) == []
    assert differences(files, Topology.parse("2x2G")) != []
