# SPDX-License-Identifier: GPL-2.0-only
"""Counts the guest's instructions per kernel function, by a plugin of QEMU (``plugin/profile.c``).

The plugin counts each executed block of guest code, so that nothing is sampled, and the guest's own clock (icount)
does not notice. It is compiled on this host and kept in the cache.
"""

from __future__ import annotations

import mmap
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cache import Cache, file_digest
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Events
from orchestrator.kernel.elf import Symbol, symbol_address, text_symbols
from orchestrator.machine.accelerator import QEMU
from orchestrator.machine.qemu import Machine, Plugin
from orchestrator.process import require, run, version_of
from orchestrator.store.profile import OTHER, USER, Profile

_SOURCE = Path(__file__).with_name("plugin")
_KIND = "plugin"
_LIBRARY = "profile.so"
_FLAGS = ("-O2", "-Wall", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread")
#: Functions of QEMU that a plugin calls; and one that the second version of the interface has, and the first lacks.
_CALLED = b"qemu_plugin_register_vcpu_tb_exec_cb\0"
_OF_VERSION_2 = b"qemu_plugin_num_vcpus\0"
#: Symbols that are not functions: padding before functions, labels of the compiler.
_NO_FUNCTION = ("__pfx_", "__cfi_", ".L", "$")
#: Where tasks are switched and begin (arch/x86/entry/entry_64.S).
_SWITCH = "__switch_to_asm"
_FORK = "ret_from_fork_asm"
#: Host seconds that QEMU may take to answer; the plugin has a thread of its own.
_ANSWER_S = 60.0


@dataclass(frozen=True)
class Counts:
    """What the plugin has counted since the start of the guest.

    Args:
        nodes: number of a node -> number of its caller's node (0 for none), number of its function, instructions.
    """

    nodes: Mapping[int, tuple[int, int, int]]


def check_profile(accelerator: str) -> None:
    """Check that instructions can be counted.

    Raises:
        UserError: the accelerator does not count instructions.
    """
    if accelerator != "icount":
        raise UserError(
            f"--profile counts guest instructions, which {accelerator} does not; add --accel icount, or omit it."
        )


def interface_version(qemu: Path) -> int:
    """The version of the plugin interface to compile for: 1 up to QEMU 8.2, 2 from 9.0 on.

    QEMU refuses a plugin of another version (plugins/loader.c), and exports the functions of its own.

    Raises:
        InfrastructureError: this QEMU has no plugins.
    """
    with qemu.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(_CALLED) < 0:
            raise InfrastructureError(
                f"{qemu} was built without plugins, which --profile needs; install Debian's qemu-system-x86."
            )
        return 2 if content.find(_OF_VERSION_2) >= 0 else 1


def plugin_library(cache: Cache, events: Events, qemu: str = QEMU) -> Path:
    """The compiled plugin, from the cache or newly built.

    Args:
        qemu: the QEMU that is to load it, a name or an absolute path.

    Raises:
        InfrastructureError: QEMU has no plugins, or the compiler fails.
    """
    version = interface_version(Path(require(qemu)).resolve())
    key = {
        "sources": [file_digest(_SOURCE / name) for name in ("profile.c", "interface.h")],
        "interface": version,
        "flags": list(_FLAGS),
        "compiler": version_of("gcc"),
    }

    def make(directory: Path) -> None:
        with events.step("compile the profiler's plugin", part=True):
            run(
                [
                    *("gcc", *_FLAGS, f"-DINTERFACE_VERSION={version}"),
                    *("-o", str(directory / _LIBRARY), str(_SOURCE / "profile.c")),
                ],
                timeout_s=120,
            )

    return cache.obtain(_KIND, key, make) / _LIBRARY


class Profiler:
    """Profiles one guest.

    Args:
        vmlinux: the guest's kernel.
        library: see :func:`plugin_library`.
        directory: an existing directory; gets a file that the plugin reads when QEMU starts.

    Raises:
        UserError: there is no vmlinux, it is no ELF file, or it has no function that switches tasks.
    """

    def __init__(self, vmlinux: Path, library: Path, directory: Path) -> None:
        if not vmlinux.is_file():
            raise UserError("--profile needs the names of the functions; add --vmlinux FILE to --kernel.")
        functions = _functions(vmlinux)
        self._names = (USER, OTHER, *(each.name for each in functions))
        table = directory / "functions.txt"
        table.write_text(
            "".join(f"{each.address:x} {each.address + each.size:x}\n" for each in functions),
            encoding="ascii",
        )
        arguments = {
            "functions": str(table.absolute()),
            "switch": f"{symbol_address(vmlinux, _SWITCH):x}",
            "fork": f"{symbol_address(vmlinux, _FORK):x}",
        }
        self.plugin = Plugin(library, arguments)

    @staticmethod
    def read(machine: Machine) -> Counts:
        """What has been counted so far.

        Raises:
            InfrastructureError: QEMU does not answer, or its answer is not whole.
        """
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(_ANSWER_S)
                client.connect(str(machine.sockets.plugin))
                with client.makefile("rb") as file:
                    answer = file.read()
        except OSError as error:
            raise InfrastructureError(f"the profiler's plugin does not answer: {error}.") from error
        return parse_counts(answer)

    def between(self, before: Counts, after: Counts) -> Profile:
        """The instructions between two readings."""
        chains: dict[tuple[str, ...], int] = {}
        known: dict[int, tuple[str, ...]] = {0: ()}

        def chain_of(node: int) -> tuple[str, ...]:
            path = []
            while node not in known:
                path.append(node)
                node = after.nodes[node][0]
            chain = known[node]
            for each in reversed(path):
                chain = known[each] = (*chain, self._names[after.nodes[each][1]])
            return chain

        for node, (_, _, count) in after.nodes.items():
            counted = count - before.nodes.get(node, (0, 0, 0))[2]
            if counted:
                chain = chain_of(node)
                chains[chain] = chains.get(chain, 0) + counted
        return Profile(chains)


def parse_counts(answer: bytes) -> Counts:
    """Read an answer of the plugin.

    Raises:
        InfrastructureError: it is not whole.
    """
    lines = answer.splitlines()
    nodes: dict[int, tuple[int, int, int]] = {}
    try:
        end, total = lines.pop().split()
        for line in lines:
            node, caller, function, count = map(int, line.split())
            nodes[node] = caller, function, count
    except (IndexError, ValueError):
        end, total = b"", b"-1"
    if end != b"end" or sum(count for _, _, count in nodes.values()) != int(total):
        raise InfrastructureError("the answer of the profiler's plugin is not whole; QEMU may have ended.")
    return Counts(nodes)


def _functions(vmlinux: Path) -> Sequence[Symbol]:
    """All functions in the order of their addresses, without overlap; of several names at one address, one.

    Code in assembly has no type in the symbol table, so that all symbols with a size count.
    """
    by_address: dict[int, Symbol] = {}
    for each in text_symbols(vmlinux):
        if each.size and not each.name.startswith(_NO_FUNCTION):
            known = by_address.get(each.address)
            if known is None or (known.size, known.name) < (each.size, each.name):
                by_address[each.address] = each
    found: list[Symbol] = []
    for _, each in sorted(by_address.items()):
        if not found or each.address >= found[-1].address + found[-1].size:
            found.append(each)
    return found
