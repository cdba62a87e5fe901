# SPDX-License-Identifier: GPL-2.0-only
"""A profile: guest instructions per chain of kernel functions, in the log directory of a cell.

The file has the folded format of Brendan Gregg's FlameGraph, which many tools read: per line the functions from the
outermost to the innermost, separated by semicolons, and a number.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from orchestrator.errors import UserError

FILE = "profile.folded.gz"
#: All of user space.
USER = "[user]"
#: Code of the kernel that belongs to no function.
OTHER = "[other]"
#: Functions of the idle task. With icount, how long a guest is idle depends on the host.
IDLE = frozenset({"do_idle", "cpu_startup_entry"})
#: What a kernel thread begins with (arch/x86/kernel/process.c, kernel/kthread.c); its own function comes next.
_OF_THREADS = ("ret_from_fork_asm", "ret_from_fork", "kthread")
#: Bytes of an unpacked file; a real one has some megabytes.
_MOST_BYTES = 1 << 29

#: Functions, the outermost first.
Chain = tuple[str, ...]


@dataclass(frozen=True)
class Profile:
    """Guest instructions by chain of functions.

    Args:
        chains: chain -> instructions in its last function, without those of the functions that it calls.
    """

    chains: Mapping[Chain, int]

    @cached_property
    def busy(self) -> Mapping[Chain, int]:
        """Without the idle task."""
        return {chain: count for chain, count in self.chains.items() if IDLE.isdisjoint(chain)}

    @cached_property
    def processes(self) -> Mapping[Chain, int]:
        """What began in user space: processes, their system calls and faults, and interrupts meanwhile."""
        return {chain: count for chain, count in self.busy.items() if chain[0] == USER}

    @property
    def total(self) -> int:
        """All instructions of processes."""
        return sum(self.processes.values())

    @cached_property
    def own(self) -> Mapping[str, int]:
        """Function -> its instructions for processes, without those of the functions that it calls."""
        found: dict[str, int] = {}
        for chain, count in self.processes.items():
            found[chain[-1]] = found.get(chain[-1], 0) + count
        return found

    @cached_property
    def threads(self) -> Mapping[str, int]:
        """Function of a kernel thread, e.g. ``khugepaged`` -> all its instructions."""
        found: dict[str, int] = {}
        for chain, count in self.busy.items():
            if chain[0] != USER:
                known = len(chain) > len(_OF_THREADS) and chain[: len(_OF_THREADS)] == _OF_THREADS
                name = chain[len(_OF_THREADS)] if known else OTHER
                found[name] = found.get(name, 0) + count
        return found

    @cached_property
    def with_callees(self) -> Mapping[str, int]:
        """Function -> instructions for processes in it and in all that it calls."""
        found: dict[str, int] = {}
        for chain, count in self.processes.items():
            for name in set(chain):
                found[name] = found.get(name, 0) + count
        return found


def write_profile(path: Path, profile: Profile) -> None:
    """Write a profile in the folded format, compressed; the same profile gives the same bytes."""
    lines = sorted(f"{';'.join(chain)} {count}\n" for chain, count in profile.chains.items())
    path.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def read_profile(path: Path) -> Profile:
    """Read a file of :func:`write_profile`.

    Raises:
        UserError: it cannot be read, or is damaged; the message names it.
    """
    chains: dict[Chain, int] = {}
    try:
        with gzip.open(path) as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError("it is too large")
        for line in content.decode().splitlines():
            names, _, count = line.rpartition(" ")
            chain = tuple(names.split(";"))
            chains[chain] = chains.get(chain, 0) + int(count)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is not a profile, or damaged ({error}); measure the cell again.") from error
    return Profile(chains)
