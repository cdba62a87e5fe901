# SPDX-License-Identifier: GPL-2.0-only
"""A guest's memory, read from outside with the types and variables of its kernel.

drgn (https://drgn.readthedocs.io) reads the memory of a running guest through QEMU's control socket and from the QEMU
process, and that of an ended one from a file that QEMU's ``dump-guest-memory`` wrote. It learns where a kernel is from
the VMCOREINFO note (Documentation/admin-guide/kdump/vmcoreinfo.rst). Our kernels have none, as they are built without
kexec, but they are not relocated, so their vmlinux says the same.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.kernel.elf import build_id, build_id_of_notes, has_dwarf, variables
from orchestrator.machine.description import MachineDescription
from orchestrator.machine.qmp import Qmp, QmpError

#: Where x86-64 maps the kernel's text (arch/x86/include/asm/page_64_types.h, __START_KERNEL_map).
_KERNEL_MAP = 0xFFFFFFFF80000000
#: The page table of the kernel, which x86-64 defines swapper_pg_dir to be.
_TOP = "init_top_pgt"
#: Bytes from the start of the notes in which the build ID is.
_NOTES_BYTES = 4096
#: Host seconds in which QEMU writes the memory of a large guest.
_SAVE_TIMEOUT_S = 600.0
_RELEASE = re.compile(rb"Linux version (?P<release>[^\s%]+) ")


@dataclass(frozen=True)
class KernelFiles:
    """The kernel of a guest.

    Args:
        vmlinux: the kernel that the guest runs.
        types: a vmlinux with debugging information: the same file, or that of a build of the same source and
            configuration with debugging information, whose addresses may differ, but not its types.
    """

    vmlinux: Path
    types: Path

    @classmethod
    def of(cls, vmlinux: Path, types: Path | None = None) -> KernelFiles:
        """The kernel in `vmlinux`, with the types of another file if it has no debugging information of its own.

        Raises:
            UserError: neither file has debugging information, or one is no ELF file.
        """
        if has_dwarf(vmlinux):
            return cls(vmlinux, vmlinux)
        if types is None or not has_dwarf(types):
            raise UserError(
                f"{types or vmlinux} has no debugging information; name a vmlinux that was built with --dwarf."
            )
        return cls(vmlinux, types)


@dataclass(frozen=True)
class RunningGuest:
    """A running guest, as the ``machine.json`` in its log directory describes it.

    Args:
        control: QMP socket for commands.
        memory: QMP socket for drgn: a socket serves one client at a time.
        vmlinux: the kernel that it runs.
    """

    control: Path
    memory: Path
    vmlinux: Path

    @classmethod
    def in_directory(cls, directory: Path) -> RunningGuest:
        """The guest whose logs are in `directory`.

        Raises:
            UserError: there was no guest, it has ended, or it was started without these sockets.
        """
        machine = MachineDescription.read(directory)
        if machine is None:
            raise UserError(
                f"{directory} has no machine.json; name the log directory of a guest: that of boot --logs, or "
                "logs/CELL of a run."
            )
        if machine.memory is None or not machine.runs_with(machine.control):
            raise UserError(
                f"the guest of {directory} does not run any more; inspect it while it runs, or save its memory with "
                "--save first."
            )
        assert machine.control is not None
        argv = machine.argv
        bzimage = next((argv[at + 1] for at, word in enumerate(argv[:-1]) if word == "-kernel"), "")
        return cls(machine.control, machine.memory, Path(bzimage).with_name("vmlinux"))


class GuestMemory:
    """The memory of a guest; :attr:`program` has the types and variables of its kernel.

    Args:
        program: a drgn.Program with memory and debugging information.
    """

    def __init__(self, program: Any) -> None:
        self.program = program

    def physical(self, address: int, size: int) -> bytes:
        """`size` bytes at a physical address."""
        content: bytes = self.program.read(address, size, physical=True)
        return content

    def virtual(self, address: int, size: int) -> bytes:
        """`size` bytes at an address of the kernel."""
        content: bytes = self.program.read(address, size)
        return content


def memory_of_socket(socket: Path, kernel: KernelFiles) -> GuestMemory:
    """The memory of a running guest.

    Args:
        socket: QMP socket that nobody else uses.

    Raises:
        UserError: the guest runs another kernel.
        InfrastructureError: QEMU does not serve its memory.
    """
    return _opened(kernel, lambda program: program.set_qemu_qmp(str(socket)), "the guest")


def memory_of_dump(dump: Path, kernel: KernelFiles) -> GuestMemory:
    """The memory in a file written by QEMU's ``dump-guest-memory``.

    Raises:
        UserError: it is no such file, or that of a guest with another kernel.
    """
    if not dump.is_file():
        raise UserError(f"{dump}: there is no such file; name a file that dump-guest-memory wrote.")
    return _opened(kernel, lambda program: program.set_core_dump(str(dump)), str(dump))


class Attached:
    """A running guest: its memory, and a connection with which it is stopped.

    Args:
        qmp: control socket of its QEMU.
        memory: its memory.
    """

    def __init__(self, qmp: Qmp, memory: GuestMemory) -> None:
        self._qmp = qmp
        self.memory = memory

    @contextmanager
    def stopped(self) -> Iterator[GuestMemory]:
        """Keep the guest from running in this block, so that its memory does not change; its clocks stop as well.

        Raises:
            InfrastructureError: QEMU does not answer.
        """
        try:
            running = self._qmp.execute("query-status")["status"] == "running"
            if running:
                self._qmp.execute("stop")
            try:
                yield self.memory
            finally:
                if running:
                    self._qmp.execute("cont")
        except QmpError as error:
            raise InfrastructureError(f"cannot stop the guest: {error}.") from error

    def save(self, path: Path) -> None:
        """Write the memory to `path`, as an ELF core file, while the guest is stopped.

        Raises:
            InfrastructureError: QEMU cannot write it.
        """
        arguments = {"paging": False, "protocol": f"file:{path.absolute()}"}
        try:
            self._qmp.execute("dump-guest-memory", arguments, timeout_s=_SAVE_TIMEOUT_S)
        except QmpError as error:
            raise InfrastructureError(f"QEMU cannot write the memory to {path}: {error}.") from error


@contextmanager
def attached(guest: RunningGuest, kernel: KernelFiles) -> Iterator[Attached]:
    """Connect to a guest that another process runs.

    Raises:
        UserError: it runs another kernel.
        InfrastructureError: its QEMU does not answer, or is asked by somebody else.
    """
    try:
        qmp = Qmp(guest.control, listen=False)
    except QmpError as error:
        raise InfrastructureError(
            f"the guest's QEMU does not answer ({error}); it has ended, or another inspect is connected to it."
        ) from error
    try:
        yield Attached(qmp, memory_of_socket(guest.memory, kernel))
    finally:
        qmp.close()


def _opened(kernel: KernelFiles, attach: Callable[[Any], object], of: str) -> GuestMemory:
    import drgn

    own = variables(kernel.vmlinux)
    for name in ("__start_notes", _TOP):
        if name not in own:
            raise UserError(f"{kernel.vmlinux} is not a Linux kernel: it has no symbol {name}.")
    platform = drgn.Platform(drgn.Architecture.X86_64)
    note = _vmcoreinfo(kernel, own)
    program = drgn.Program(platform, vmcoreinfo=note)
    try:
        attach(program)
        notes = program.read(own["__start_notes"] - _KERNEL_MAP, _NOTES_BYTES, physical=True)
    except drgn.FaultError:
        notes = b""
    except (ValueError, OSError) as error:
        raise UserError(f"cannot read the memory of {of}: {_reason(error)}.") from error
    _check_build_id(kernel.vmlinux, notes, of)
    if not program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL:
        program.set_linux_kernel_custom(note, is_live=True)
    try:
        program.load_debug_info([str(kernel.types)])
    except drgn.MissingDebugInfoError as error:
        raise UserError(
            f"cannot read the debugging information of {kernel.types}: {_reason(error)}."
        ) from error
    if kernel.types != kernel.vmlinux:
        _place_variables(program, own)
    return GuestMemory(program)


def _check_build_id(vmlinux: Path, notes: bytes, of: str) -> None:
    """Refuse a kernel that is not where its vmlinux says."""
    running = None
    with suppress(UserError):
        running = build_id_of_notes(notes)
    own = build_id(vmlinux)
    if running == own:
        return
    has = f"has {running}" if running else "has no build ID where that kernel has it"
    raise UserError(
        f"{vmlinux} has build ID {own}, but {of} {has}; name the vmlinux of the kernel that was booted, and boot with "
        "nokaslr a kernel that randomizes its address."
    )


def _vmcoreinfo(kernel: KernelFiles, own: Mapping[str, int]) -> str:
    """The VMCOREINFO note that this kernel would have."""
    return "".join(
        f"{line}\n"
        for line in (
            f"OSRELEASE={_release(kernel.vmlinux)}",
            # drgn compares it with that of the file with the types.
            f"BUILD-ID={build_id(kernel.types)}",
            "PAGESIZE=4096",
            f"SYMBOL(swapper_pg_dir)={own[_TOP]:x}",
            f"SYMBOL(_stext)={own.get('_stext', 0):x}",
            "NUMBER(phys_base)=0",
            "NUMBER(pgtable_l5_enabled)=0",
            "KERNELOFFSET=0",
        )
    )


def _release(vmlinux: Path) -> str:
    with vmlinux.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        match = _RELEASE.search(content)
        if match is None:
            raise UserError(f"{vmlinux} is not a Linux kernel: it has no release.")
        return match["release"].decode("ascii", errors="replace")


def _place_variables(program: Any, own: Mapping[str, int]) -> None:
    """Have drgn use these addresses of variables, and only the types of its debugging information."""
    import drgn

    inside = False

    def find(asked: Any, name: str, flags: Any, filename: str | None) -> Any:
        nonlocal inside
        if inside or not flags & drgn.FindObjectFlags.VARIABLE:
            return None
        inside = True
        try:
            found = asked.object(name, drgn.FindObjectFlags.VARIABLE, filename)
        except LookupError:
            return None
        finally:
            inside = False
        # Without an address it is absent: the one of the debugging information would be wrong.
        place = {"address": own[name]} if name in own else {}
        return drgn.Object(asked, found.type_, **place)

    program.register_object_finder("guest", find, enable_index=0)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
