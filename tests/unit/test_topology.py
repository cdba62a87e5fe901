# SPDX-License-Identifier: GPL-2.0-only
"""Topologies: what is read, what is refused, what QEMU is told."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.document import read_document
from orchestrator.errors import UserError
from orchestrator.machine.topology import (
    MAXIMUM_CPUS,
    MAXIMUM_NODES,
    OVERHEAD_MIB,
    Node,
    Topology,
    TopologyTable,
)

ROOT = Path(__file__).resolve().parents[2]


def test_the_limits_are_those_of_the_kernels_configuration() -> None:
    lines = (ROOT / "vm_images" / "kernel" / "base.config").read_text().splitlines()
    assert f"CONFIG_NR_CPUS={MAXIMUM_CPUS}" in lines
    assert f"CONFIG_NODES_SHIFT={MAXIMUM_NODES.bit_length() - 1}" in lines


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("4x2G", [(2, 2048)] * 4),
        ("4x2G/1", [(1, 2048)] * 4),
        ("2x2G/2+1x0/1", [(2, 2048), (2, 2048), (1, 0)]),
        ("2x1G+1x0", [(2, 1024), (2, 1024), (2, 0)]),
        ("1x512M/1 + 1x1.5G/0", [(1, 512), (0, 1536)]),
        ("2G", [(2, 2048)]),
        ("1X256m", [(2, 256)]),
        ("2x2GiB/4", [(4, 2048)] * 2),
    ],
)
def test_parse(text: str, nodes: list[tuple[int, int]]) -> None:
    assert [(node.cpus, node.memory_mib) for node in Topology.parse(text).nodes] == nodes


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "cannot read ''"),
        ("four", "cannot read 'four'"),
        ("4x", "cannot read '4x'"),
        ("4x2", "has no unit; write 2M or 2G"),
        ("4x2G/", "cannot read"),
        ("-1x2G", "cannot read"),
        ("0x2G", "1 to 64 nodes, not 0"),
        ("200x2G", "1 to 64 nodes, not 200"),
        ("100x1G/1+100x1G/1", "1 to 64 nodes, not 100"),
        ("2x1G+1x0/0", "node 2 has neither CPUs nor memory"),
        ("2x1G/0", "the total number of CPUs must be 1 to 64, not 0"),
        ("4x1G/100", "the total number of CPUs must be 1 to 64, not 400"),
        ("2x16M", "32 MiB of memory in total is too little to boot"),
        ("1x1.0001G", "not a whole number of MiB"),
        ("2x1G+", "cannot read ''"),
    ],
)
def test_bad_text_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint.replace("(", r"\(")):
        Topology.parse(text)


nodes = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 64).map(lambda n: n * 128)).filter(any),
    min_size=1,
    max_size=8,
).filter(lambda rows: any(cpus for cpus, _ in rows) and any(memory for _, memory in rows))


@settings(deadline=None)  # a busy host is no failure
@given(nodes)
def test_text_reads_back(rows: list[tuple[int, int]]) -> None:
    topology = Topology(tuple(Node(*row) for row in rows))
    assert Topology.parse(topology.text) == topology


@settings(deadline=None)  # a busy host is no failure
@given(nodes)
def test_qemu_is_told_the_whole_topology(rows: list[tuple[int, int]]) -> None:
    topology = Topology(tuple(Node(*row) for row in rows))
    arguments = topology.qemu_arguments()
    numa = [value for option, value in itertools.pairwise(arguments) if option == "-numa"]
    assert sum(value.startswith("node,") for value in numa) == len(rows)
    assert sum(value.startswith("dist,") for value in numa) == len(rows) * (len(rows) - 1)
    assert sum("memory-backend-ram" in word for word in arguments) == sum(memory > 0 for _, memory in rows)
    shape = dict(word.split("=") for word in arguments[arguments.index("-smp") + 1].split(","))
    assert int(shape["cpus"]) == int(shape["sockets"]) * int(shape["cores"]) == topology.cpus
    # No socket spans two nodes: each node has a whole number of sockets, and begins at one.
    assert all(cpus % int(shape["cores"]) == 0 for cpus, _ in rows)


@settings(deadline=None)  # a busy host is no failure
@given(st.text(max_size=40))
def test_any_text_is_a_topology_or_a_user_error(text: str) -> None:
    try:
        Topology.parse(text)
    except UserError as error:
        assert str(error).startswith("topology")


def test_cpus_are_dealt_out_in_the_order_of_the_nodes() -> None:
    topology = Topology.parse("1x1G/1+1x1G/0+1x0/3")
    assert [list(topology.node_cpus(index)) for index in range(3)] == [[0], [], [1, 2, 3]]
    arguments = topology.qemu_arguments()
    assert "node,nodeid=0,cpus=0-0,memdev=memory0" in arguments
    assert "node,nodeid=1,memdev=memory1" in arguments
    assert "node,nodeid=2,cpus=1-3" in arguments


def test_the_shape_of_a_uniform_machine() -> None:
    arguments = Topology.parse("2x1G/2").qemu_arguments()
    assert arguments[:4] == ["-smp", "cpus=4,maxcpus=4,sockets=2,cores=2,threads=1", "-m", "2048M"]


def table(place: Path, text: str) -> Topology:
    path = place / "topology.toml"
    path.write_text(text)
    return Topology.from_table(read_document(path, TopologyTable, "this topology").content)


def test_a_table_with_its_own_distances(tmp_path: Path) -> None:
    topology = table(
        tmp_path,
        'nodes = [{cpus = 1, memory = "1G"}, {memory = "512M"}, {cpus = 1, memory = 0}]\n'
        "distances = [[10, 21, 31], [22, 10, 40], [31, 40, 10]]",
    )
    assert topology.nodes == (Node(1, 1024), Node(2, 512), Node(1, 0))
    assert "dist,src=0,dst=1,val=21" in topology.qemu_arguments()
    assert "dist,src=1,dst=0,val=22" in topology.qemu_arguments()
    assert topology.text == "1x1G/1+1x512M+1x0/1 distances 10,21,31/22,10,40/31,40,10"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "toml:1: nodes: this key is missing"),
        ("nodes = []", '"nodes" must have tables'),
        ("nodes = [3]", "nodes 1: must be a table, not 3"),
        ("nodes = [{cpus = 2}]", "nodes 1: memory: this key is missing"),
        ('nodes = [{cpus = "2", memory = "1G"}]', "cpus: must be a whole number, not '2'"),
        ("nodes = [{cpus = true, memory = 0}]", "cpus: must be a whole number, not true"),
        ('nodes = [{memory = "much"}]', "memory must be a size like"),
        ("nodes = [{memory = true}]", "memory: must be a string or a whole number, not true"),
        ("nodes = [{memory = 5}]", "5 has no unit"),
        ('nodes = [{memory = "1G", cpu = 2}]', "cpu: unknown key; did you mean cpus?"),
        ('node = [{memory = "1G"}]', "node: unknown key; did you mean nodes?"),
        ('nodes = [{memory = "1G", cpus = -1}]', "node 0 has a negative number"),
        ('nodes = [{memory = "1G"}]\ndistances = 10', "toml:2: distances: must be a list, not 10"),
        ('nodes = [{memory = "1G"}]\ndistances = [["10"]]', "must be a whole number, not '10'"),
        ('nodes = [{memory = "1G"}]\ndistances = [[10, 20]]', "1 rows of 1 numbers"),
        ('nodes = [{memory = "1G"}]\ndistances = [[11]]', "node 0's distance to itself must be 10, not 11"),
        (
            'nodes = [{memory = "1G"}, {memory = "1G"}]\ndistances = [[10, 10], [20, 10]]',
            "from node 0 to node 1 must be 11 to 254, not 10",
        ),
        (
            'nodes = [{memory = "1G"}, {memory = "1G"}]\ndistances = [[10, 20], [255, 10]]',
            "from node 1 to node 0 must be 11 to 254, not 255",
        ),
    ],
)
def test_bad_table_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        table(tmp_path, text)
    assert complaint in str(caught.value)


def test_the_host_must_hold_all_guests() -> None:
    topology = Topology.parse("2x1G")
    topology.check_host(2, memory_mib=2 * (2048 + OVERHEAD_MIB))
    with pytest.raises(UserError, match=r"3 guests of 2048 MiB .* run at most 2 at once"):
        topology.check_host(3, memory_mib=2 * (2048 + OVERHEAD_MIB))
    with pytest.raises(UserError, match=r"has 100 MiB available; give the nodes less memory"):
        topology.check_host(1, memory_mib=100)


def test_the_host_is_asked_for_its_memory() -> None:
    Topology.parse("1x128M").check_host()
    with pytest.raises(UserError, match="available"):
        Topology.parse("64x1T/1").check_host()
