# SPDX-License-Identifier: GPL-2.0-only
"""Reads a vmlinux: build ID, symbols, and parameters of functions."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import UserError

# elftools is imported only where a file is read; with a cached kernel no file is read.
if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

# Constants of elf(5).
_NT_GNU_BUILD_ID = 3
#: XEN_ELFNOTE_PHYS32_ENTRY of include/xen/interface/elfnote.h: where a hypervisor starts the kernel without a loader.
_PVH_ENTRY = 18
_SHN_UNDEF = 0
_STT_NOTYPE = 0
_STT_OBJECT = 1
_STT_SECTION = 3
_STT_FILE = 4
_SHF_WRITE = 0x1
_SHF_ALLOC = 0x2
_SHF_EXECINSTR = 0x4
_PADDING = ("__pfx_", "__cfi_")
#: Qualifiers at the start of a type name.
_QUALIFIERS = {"DW_TAG_const_type": "const", "DW_TAG_volatile_type": "volatile"}


@dataclass(frozen=True)
class Symbol:
    """A function or variable.

    Args:
        address: link address.
        size: size in bytes; 0 if the source does not set it, as in assembly.
    """

    name: str
    address: int
    size: int


@dataclass(frozen=True)
class FunctionParameter:
    """A parameter of a function, according to DWARF.

    Args:
        type: C type, as far as it has a name, e.g. ``struct vm_area_struct *``.
    """

    name: str
    type: str


@contextmanager
def opened(vmlinux: Path) -> Iterator[ELFFile]:
    """Open an ELF file.

    Raises:
        UserError: it cannot be read, or is no ELF file.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with vmlinux.open("rb") as stream:
            yield ELFFile(stream)
    except (OSError, ELFError) as error:
        raise UserError(f"{vmlinux} is not a readable ELF file: {error}.") from error


def build_id(vmlinux: Path) -> str:
    """The build ID written by the linker (ld(1) --build-id), in hexadecimal.

    Raises:
        UserError: the file is not an ELF file, or has no build ID.
    """
    with opened(vmlinux) as elf:
        # The kernel puts all notes into one section (include/asm-generic/vmlinux.lds.h, NOTES).
        for section in elf.iter_sections():
            if section["sh_type"] == "SHT_NOTE":
                found = _build_id_in(section.data())
                if found:
                    return found
    raise UserError(f"{vmlinux} has no build ID; link it with --build-id.")


def build_id_of_notes(notes: bytes) -> str:
    """The build ID in the content of a running kernel's ``/sys/kernel/notes``.

    Raises:
        UserError: there is no build ID.
    """
    found = _build_id_in(notes)
    if found is None:
        raise UserError("the notes of the running kernel contain no build ID.")
    return found


def has_pvh_entry(vmlinux: Path) -> bool:
    """Whether a hypervisor can start the file as it is (CONFIG_PVH).

    Raises:
        UserError: the file is not an ELF file.
    """
    with opened(vmlinux) as elf:
        sections = [section for section in elf.iter_sections() if section["sh_type"] == "SHT_NOTE"]
        return any(_note_in(section.data(), b"Xen\0", _PVH_ENTRY) for section in sections)


def _build_id_in(notes: bytes) -> str | None:
    found = _note_in(notes, b"GNU\0", _NT_GNU_BUILD_ID)
    return None if found is None else found.hex()


def _note_in(notes: bytes, owner: bytes, wanted: int) -> bytes | None:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name_at = at + 12
        at = name_at + (name_size + 3 & ~3)
        if kind == wanted and notes[name_at : name_at + name_size] == owner:
            return notes[at : at + size]
        at += size + 3 & ~3
    return None


def symbol(vmlinux: Path, name: str) -> Symbol:
    """Find a function or variable by name; a global symbol is preferred to a local one.

    Raises:
        UserError: there is no such symbol.
    """
    from elftools.elf.sections import SymbolTableSection

    with opened(vmlinux) as elf:
        table = elf.get_section_by_name(".symtab")
        if isinstance(table, SymbolTableSection):
            found = list(_symbols_of(table, name))
            if found:
                return max(found, key=lambda each: each[0])[1]
    raise UserError(f"{vmlinux} has no symbol {name}; it may be inlined, or added by a later stage.")


def variables(vmlinux: Path) -> dict[str, int]:
    """The address of each variable with a name; of variables with the same name, the global one's.

    Raises:
        UserError: the file is not an ELF file.
    """
    from elftools.elf.sections import SymbolTableSection

    found: dict[str, tuple[int, int]] = {}
    with opened(vmlinux) as elf:
        table = elf.get_section_by_name(".symtab")
        if not isinstance(table, SymbolTableSection):
            return {}
        strings = table.stringtable.data()
        for offset, info, _, section, value, _ in struct.iter_unpack("<IBBHQQ", table.data()):
            if offset and section != _SHN_UNDEF and info & 0xF in (_STT_NOTYPE, _STT_OBJECT):
                name = strings[offset : strings.index(b"\0", offset)].decode()
                found[name] = max(found.get(name, (-1, 0)), (info >> 4, value))
    return {name: address for name, (_, address) in found.items()}


def text_symbols(vmlinux: Path) -> Iterator[Symbol]:
    """All named symbols in the sections with code.

    Raises:
        UserError: the file is not an ELF file.
    """
    from elftools.elf.sections import SymbolTableSection

    with opened(vmlinux) as elf:
        code = {
            number
            for number, section in enumerate(elf.iter_sections())
            if section["sh_flags"] & _SHF_EXECINSTR and section["sh_flags"] & _SHF_ALLOC
        }
        table = elf.get_section_by_name(".symtab")
        if not isinstance(table, SymbolTableSection):
            return
        strings = table.stringtable.data()
        for offset, info, _, section, value, size in struct.iter_unpack("<IBBHQQ", table.data()):
            if section in code and offset and info & 0xF not in (_STT_SECTION, _STT_FILE):
                yield Symbol(strings[offset : strings.index(b"\0", offset)].decode(), value, size)


def functions(vmlinux: Path) -> Iterator[Symbol]:
    """All functions with a size, those that are static or written in assembly included.

    The padding before a function (``__pfx_NAME``, tools/objtool) is none.

    Raises:
        UserError: the file is not an ELF file, or has no symbols.
    """
    found = False
    for each in text_symbols(vmlinux):
        found = True
        if each.size and not each.name.startswith(_PADDING):
            yield each
    if not found:
        raise UserError(f"{vmlinux} has no symbols; name the vmlinux as it was linked, not a stripped one.")


def section_sizes(vmlinux: Path) -> dict[str, int]:
    """Bytes of code, constants, data and zeroed data in memory, as ``text``, ``rodata``, ``data`` and ``bss``.

    Raises:
        UserError: the file is not an ELF file.
    """
    sizes = dict.fromkeys(("text", "rodata", "data", "bss"), 0)
    with opened(vmlinux) as elf:
        for section in elf.iter_sections():
            flags = section["sh_flags"]
            if not flags & _SHF_ALLOC:
                continue
            kind = "rodata"
            if section["sh_type"] == "SHT_NOBITS":
                kind = "bss"
            elif flags & _SHF_EXECINSTR:
                kind = "text"
            elif flags & _SHF_WRITE:
                kind = "data"
            sizes[kind] += section["sh_size"]
    return sizes


def _symbols_of(table: SymbolTableSection, name: str) -> Iterator[tuple[int, Symbol]]:
    # Read the records in bulk: one object per symbol takes seconds for the 35,000 symbols of a kernel.
    strings = table.stringtable.data()
    wanted = name.encode() + b"\0"
    offsets: set[int] = set()
    at = strings.find(wanted)
    while at >= 0:  # a linker may share the end of `bar_foo` as `foo`, so any occurrence may be a name
        offsets.add(at)
        at = strings.find(wanted, at + 1)
    # Elf64_Sym of elf(5).
    for offset, info, _, section, value, size in struct.iter_unpack("<IBBHQQ", table.data()):
        if offset in offsets and section != _SHN_UNDEF and info & 0xF != _STT_FILE:
            yield info >> 4, Symbol(name, value, size)


def symbol_address(vmlinux: Path, name: str) -> int:
    """The link address of a function or variable; for a per-CPU variable an offset.

    Raises:
        UserError: there is no such symbol.
    """
    return symbol(vmlinux, name).address


def has_dwarf(vmlinux: Path) -> bool:
    """Whether the file has DWARF for types and parameters; unwind tables alone do not count."""
    with opened(vmlinux) as elf:
        return bool(elf.has_dwarf_info(strict=True))


def parameters(vmlinux: Path, function: str) -> tuple[FunctionParameter, ...]:
    """The parameters of a function.

    Raises:
        UserError: the file has no debugging information, or none for this function.
    """
    address = symbol_address(vmlinux, function)
    with opened(vmlinux) as elf:
        if not elf.has_dwarf_info(strict=True):
            raise UserError(f"{vmlinux} has no debugging information; build it with --dwarf.")
        dwarf = elf.get_dwarf_info()
        ranges = dwarf.get_aranges()
        offset = ranges.cu_offset_at_addr(address) if ranges else None
        if offset is not None:
            unit = dwarf.get_CU_at(offset)
            for entry in unit.get_top_DIE().iter_children():
                low = entry.attributes.get("DW_AT_low_pc")
                if entry.tag == "DW_TAG_subprogram" and low is not None and low.value == address:
                    return tuple(_parameters_of(entry))
    raise UserError(f"the debugging information of {vmlinux} does not describe {function}.")


def _parameters_of(entry: object) -> Iterator[FunctionParameter]:
    for child in entry.iter_children():  # type: ignore[attr-defined]
        if child.tag == "DW_TAG_formal_parameter":
            named = child
            if "DW_AT_abstract_origin" in child.attributes:
                named = child.get_DIE_from_attribute("DW_AT_abstract_origin")
            name = named.attributes["DW_AT_name"].value.decode()
            yield FunctionParameter(name, type_name(named))


def type_name(entry: object) -> str:
    """The C type of a DWARF entry, as far as it has a name."""
    if "DW_AT_type" not in entry.attributes:  # type: ignore[attr-defined]
        return "void"
    target = entry.get_DIE_from_attribute("DW_AT_type")  # type: ignore[attr-defined]
    name = target.attributes["DW_AT_name"].value.decode() if "DW_AT_name" in target.attributes else ""
    match target.tag:
        case "DW_TAG_pointer_type":
            pointed = type_name(target)
            return f"{pointed}*" if pointed.endswith("*") else f"{pointed} *"
        case "DW_TAG_const_type" | "DW_TAG_volatile_type":
            return f"{_QUALIFIERS[target.tag]} {type_name(target)}"
        case "DW_TAG_structure_type" | "DW_TAG_union_type" | "DW_TAG_enumeration_type":
            word = {"structure": "struct", "union": "union", "enumeration": "enum"}
            return f"{word[target.tag.split('_')[2]]} {name or '(anonymous)'}"
        case "DW_TAG_subroutine_type":
            return "function"
        case "DW_TAG_array_type":
            return f"{type_name(target)}[]"
    return name or "?"
