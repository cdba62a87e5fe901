# SPDX-License-Identifier: GPL-2.0-only
"""The topology of a guest: its NUMA nodes, their CPUs and memory, and the distances between them.

A topology is written as compact text (``4x2G``) or as a TOML table, and translated to QEMU's ``-smp``,
``-m``, ``-object memory-backend-ram`` and ``-numa`` arguments (qemu(1)).
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.document import Shape
from orchestrator.errors import UserError

#: Default number of CPUs per node.
DEFAULT_CPUS = 2
#: Distance of a node to itself, and default distance to other nodes (ACPI 6.5, table SLIT).
LOCAL_DISTANCE = 10
REMOTE_DISTANCE = 20
#: 255 means "unreachable" in the SLIT; Linux then rejects the table.
MAXIMUM_DISTANCE = 254
#: Limits by CONFIG_NODES_SHIFT and CONFIG_NR_CPUS in vm_images/kernel/base.config; QEMU supports more.
MAXIMUM_NODES = 64
MAXIMUM_CPUS = 64
#: Least memory with which kernel and initramfs boot.
MINIMUM_MEMORY_MIB = 128
#: Host memory that a guest needs in addition to its own: QEMU, and code translated by TCG.
OVERHEAD_MIB = 320

_GROUP = re.compile(
    r"(?:(?P<count>\d{1,9})\s*[xX*]\s*)?(?P<size>\d{1,9}(?:\.\d{1,9})?)\s*(?P<unit>[KMGT]?)(?:i?B)?"
    r"\s*(?:/\s*(?P<cpus>\d{1,9}))?",
    re.IGNORECASE,
)
_SIZE = re.compile(r"(?P<size>\d{1,9}(?:\.\d{1,9})?)\s*(?P<unit>[KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNIT_MIB = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0 * 1024}
_EXAMPLES = (
    "examples: 4x2G (4 nodes of 2 GiB with 2 CPUs each), 2x2G/4 (4 CPUs per node), "
    "2x2G+1x0/1 (a third node without memory)"
)


@dataclass(frozen=True)
class Node:
    """One NUMA node.

    Args:
        cpus: number of CPUs; 0 for a node that has only memory.
        memory_mib: memory in MiB; 0 for a memoryless node.
    """

    cpus: int
    memory_mib: int

    @property
    def text(self) -> str:
        """The node in the syntax of :meth:`Topology.parse`, without a count."""
        memory = f"{self.memory_mib // 1024}G" if self.memory_mib and self.memory_mib % 1024 == 0 else None
        memory = memory or (f"{self.memory_mib}M" if self.memory_mib else "0")
        return memory if self.cpus == DEFAULT_CPUS else f"{memory}/{self.cpus}"


@dataclass(frozen=True)
class NodeTable(Shape):
    """A node in a TOML file, e.g. ``{cpus = 2, memory = "2G"}``; memory has a unit, or is 0."""

    memory: str | int
    cpus: int = DEFAULT_CPUS


@dataclass(frozen=True)
class TopologyTable(Shape):
    """``[topology]`` of a TOML file; see :class:`Topology`."""

    nodes: tuple[NodeTable, ...]
    distances: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class NodeMemory:
    """Files for the memory of a guest, one per node.

    Args:
        directory: their directory.
        shared: whether the guest's writes go to the files; else they stay with the guest.
    """

    directory: Path
    shared: bool

    def backend(self, size: str, node: int) -> str:
        """The ``-object`` of one node.

        Args:
            size: its id and size.
        """
        path = str(self.directory / f"memory{node}").replace(",", ",,")
        return f"memory-backend-file,{size},mem-path={path},share={'on' if self.shared else 'off'}"


@dataclass(frozen=True)
class Topology:
    """A guest's nodes and the distances between them.

    Args:
        nodes: node 0 first.
        distances: one row per node: ``distances[i][j]`` is the distance from node *i* to node *j*; 10 on the
            diagonal, 11 to 254 elsewhere. It may be asymmetric. Default: 20 between different nodes.

    Raises:
        UserError: no kernel could boot on it; the message names the node.
    """

    nodes: tuple[Node, ...]
    distances: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.distances:
            object.__setattr__(self, "distances", _default_distances(len(self.nodes)))
        self._check_nodes()
        self._check_distances()

    @classmethod
    def parse(cls, text: str) -> Topology:
        """Parse ``[COUNTx]MEMORY[/CPUS]``, with groups joined by ``+``; the default is 2 CPUs per node.

        >>> Topology.parse("2x2G+1x0/1").nodes
        (Node(cpus=2, memory_mib=2048), Node(cpus=2, memory_mib=2048), Node(cpus=1, memory_mib=0))

        Raises:
            UserError: the syntax is wrong, or no kernel could boot on the machine.
        """
        nodes: list[Node] = []
        for group in text.split("+"):
            match = _GROUP.fullmatch(group.strip())
            if match is None:
                raise UserError(f"topology {text!r}: cannot read {group.strip()!r}; {_EXAMPLES}.")
            count = int(match["count"] or 1)
            if not 1 <= count <= MAXIMUM_NODES:
                raise UserError(
                    f"topology {text!r}: a group must have 1 to {MAXIMUM_NODES} nodes, not {count}."
                )
            memory = _mib(match["size"], match["unit"], f"topology {text!r}")
            cpus = DEFAULT_CPUS if match["cpus"] is None else int(match["cpus"])
            nodes += [Node(cpus, memory)] * count
        return cls(tuple(nodes))

    @classmethod
    def from_table(cls, table: TopologyTable) -> Topology:
        """The machine that a TOML table describes.

        Raises:
            UserError: a size is invalid, or no kernel could boot on the machine.
        """
        if not table.nodes:
            raise UserError('topology: "nodes" must have tables like {cpus = 2, memory = "2G"}.')
        return cls(tuple(_node(index, row) for index, row in enumerate(table.nodes)), table.distances)

    @property
    def memory_mib(self) -> int:
        """Total memory of all nodes in MiB."""
        return sum(node.memory_mib for node in self.nodes)

    @property
    def cpus(self) -> int:
        """Total number of CPUs."""
        return sum(node.cpus for node in self.nodes)

    @property
    def text(self) -> str:
        """The compact text; followed by the distances, for display, if they are not the default."""
        groups = []
        for node_text, members in itertools.groupby(self.nodes, key=lambda node: node.text):
            groups.append(f"{len(list(members))}x{node_text}")
        nodes = "+".join(groups)
        if self.distances == _default_distances(len(self.nodes)):
            return nodes
        return f"{nodes} distances " + "/".join(",".join(map(str, row)) for row in self.distances)

    def node_cpus(self, index: int) -> range:
        """The CPU numbers of node `index`; CPUs are numbered in the order of the nodes."""
        first = sum(node.cpus for node in self.nodes[:index])
        return range(first, first + self.nodes[index].cpus)

    def qemu_arguments(self, memory: NodeMemory | None = None) -> list[str]:
        """The arguments of qemu-system-x86_64 for this topology.

        Args:
            memory: files for the memory of the nodes; None for memory without files.
        """
        # Linux warns about a last-level cache that spans nodes (topology_sane() in arch/x86/kernel/smpboot.c), and
        # QEMU gives each socket such a cache, so no socket may span nodes.
        sockets = self._sockets()
        shape = f"sockets={sockets},cores={self.cpus // sockets},threads=1"
        arguments = ["-smp", f"cpus={self.cpus},maxcpus={self.cpus},{shape}", "-m", f"{self.memory_mib}M"]
        for index, node in enumerate(self.nodes):
            words = ["node", f"nodeid={index}"]
            if node.cpus:
                cpus = self.node_cpus(index)
                words.append(f"cpus={cpus[0]}-{cpus[-1]}")
            if node.memory_mib:
                backend = f"memory{index}"
                size = f"id={backend},size={node.memory_mib}M"
                arguments += [
                    "-object",
                    memory.backend(size, index) if memory else f"memory-backend-ram,{size}",
                ]
                words.append(f"memdev={backend}")
            arguments += ["-numa", ",".join(words)]
        for source, row in enumerate(self.distances):
            for target, value in enumerate(row):
                if source != target:
                    arguments += ["-numa", f"dist,src={source},dst={target},val={value}"]
        return arguments

    def check_host(self, jobs: int = 1, memory_mib: int | None = None) -> None:
        """Check that guests with this topology fit in the host's memory; a host that swaps cannot measure.

        Args:
            jobs: number of guests that run at once.
            memory_mib: available host memory in MiB; None to determine it.

        Raises:
            UserError: they do not fit; the message has the numbers.
        """
        available = memory_mib if memory_mib is not None else available_mib()
        needed = jobs * (self.memory_mib + OVERHEAD_MIB)
        if needed <= available:
            return
        fitting = available // (self.memory_mib + OVERHEAD_MIB)
        advice = f"run at most {fitting} at once" if fitting else "give the nodes less memory"
        raise UserError(
            f"{jobs} guest{'s' if jobs > 1 else ''} of {self.memory_mib} MiB (topology {self.text}) need "
            f"{needed} MiB with {OVERHEAD_MIB} MiB each for QEMU itself, but this host has {available} MiB "
            f"available; {advice}."
        )

    def _sockets(self) -> int:
        populated = {node.cpus for node in self.nodes if node.cpus}
        if len(populated) == 1:
            return self.cpus // populated.pop()
        return self.cpus

    def _check_nodes(self) -> None:
        if not 1 <= len(self.nodes) <= MAXIMUM_NODES:
            raise UserError(
                f"topology: the number of nodes must be 1 to {MAXIMUM_NODES}, not {len(self.nodes)}."
            )
        for index, node in enumerate(self.nodes):
            if node.cpus < 0 or node.memory_mib < 0:
                raise UserError(f"topology: node {index} has a negative number of CPUs or amount of memory.")
            if not node.cpus and not node.memory_mib:
                raise UserError(
                    f"topology: node {index} has neither CPUs nor memory; give it at least one of them."
                )
        if not 1 <= self.cpus <= MAXIMUM_CPUS:
            raise UserError(
                f"topology: the total number of CPUs must be 1 to {MAXIMUM_CPUS}, not {self.cpus}."
            )
        if self.memory_mib < MINIMUM_MEMORY_MIB:
            raise UserError(
                f"topology: {self.memory_mib} MiB of memory in total is too little to boot; "
                f"use at least {MINIMUM_MEMORY_MIB} MiB."
            )

    def _check_distances(self) -> None:
        count = len(self.nodes)
        if len(self.distances) != count or any(len(row) != count for row in self.distances):
            raise UserError(
                f"topology: distances must be {count} rows of {count} numbers, one for each node."
            )
        for source, target in itertools.product(range(count), repeat=2):
            value = self.distances[source][target]
            if source == target and value != LOCAL_DISTANCE:
                raise UserError(f"topology: node {source}'s distance to itself must be 10, not {value}.")
            if source != target and not LOCAL_DISTANCE < value <= MAXIMUM_DISTANCE:
                raise UserError(
                    f"topology: the distance from node {source} to node {target} must be "
                    f"{LOCAL_DISTANCE + 1} to {MAXIMUM_DISTANCE}, not {value}."
                )


def _default_distances(count: int) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(LOCAL_DISTANCE if row == column else REMOTE_DISTANCE for column in range(count))
        for row in range(count)
    )


def _mib(size: str, unit: str, where: str) -> int:
    if not unit:
        if float(size) == 0:
            return 0
        raise UserError(f"{where}: {size} has no unit; write {size}M or {size}G.")
    mib = float(size) * _UNIT_MIB[unit.upper()]
    if mib != int(mib):
        raise UserError(f"{where}: {size}{unit} is not a whole number of MiB.")
    return int(mib)


def _node(index: int, row: NodeTable) -> Node:
    where = f"topology: node {index}"
    match = _SIZE.fullmatch(str(row.memory).strip())
    if match is None:
        raise UserError(f'{where}: memory must be a size like "2G", or 0, not {row.memory!r}.')
    return Node(row.cpus, _mib(match["size"], match["unit"], where))


def available_mib() -> int:
    """Memory in MiB that this host has available without swapping."""
    import psutil

    return int(psutil.virtual_memory().available) // (1024 * 1024)
