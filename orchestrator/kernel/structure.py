# SPDX-License-Identifier: GPL-2.0-only
"""The layout of structures, from DWARF: size, members, and the holes between them.

Terms and figures are those of pahole(1). A hole is a gap that alignment leaves between two members. It may be inside
of an anonymous structure, which counts as a part of the one around it. The alternatives of a union are not looked
into, because one of them fills what another one leaves empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.kernel.elf import opened, type_name

#: Bytes of a line of the caches of x86 (L1_CACHE_BYTES).
CACHE_LINE = 64
#: Levels of anonymous structures within each other; the kernel has three.
_DEEPEST = 16


@dataclass(frozen=True)
class Member:
    """A member of a structure.

    Args:
        name: its name; empty for an anonymous union.
        type: C type, as far as it has a name.
        offset: offset in bytes; of a bit field, that of its first byte.
        size: size in bytes; 0 for a flexible array; of a bit field, the bytes that it touches.
    """

    name: str
    type: str
    offset: int
    size: int


@dataclass(frozen=True)
class Hole:
    """Unused bytes between two members.

    Args:
        offset: offset of the first unused byte.
        size: number of bytes.
        after: name of the member before it.
    """

    offset: int
    size: int
    after: str


@dataclass(frozen=True)
class Structure:
    """The layout of a structure.

    Args:
        size: size in bytes, with padding.
        members: in the order of the source, those of anonymous structures among them.
    """

    name: str
    size: int
    members: tuple[Member, ...]

    @property
    def holes(self) -> tuple[Hole, ...]:
        """The unused bytes between members, in the order of their offsets."""
        found = []
        end, before = 0, ""
        for member in sorted(self.members, key=lambda each: (each.offset, each.size)):
            if member.offset > end:
                found.append(Hole(end, member.offset - end, before))
            if member.offset + member.size >= end:
                end, before = member.offset + member.size, member.name
        return tuple(found)

    @property
    def padding(self) -> int:
        """Unused bytes at the end."""
        end = max((member.offset + member.size for member in self.members), default=0)
        # A flexible array begins where the structure ends, or in its padding.
        return max(0, self.size - end) if self.members and self.members[-1].size else 0

    @property
    def cache_lines(self) -> int:
        """Cache lines that it takes, if it begins with one."""
        return -(-self.size // CACHE_LINE)


def structures_of(files: Iterable[Path], names: Iterable[str]) -> Mapping[str, Structure]:
    """The layouts of some structures in the first of some objects that has them; see :func:`structures`."""
    wanted = set(names)
    found: dict[str, Structure] = {}
    for file in files:
        if wanted <= set(found):
            break
        found = {**structures(file, wanted - set(found)), **found}
    return found


def structures(vmlinux: Path, names: Iterable[str], near: Iterable[int] = ()) -> Mapping[str, Structure]:
    """The layouts of some structures; those that are not found are left out.

    The first compilation unit of a kernel is init/main.c, which includes most headers of mm/. Only that one and those
    of the given functions are read, as all of them take pyelftools half a minute.

    Args:
        vmlinux: ELF file or object with debugging information.
        near: addresses of functions, in whose source files a structure may be defined.

    Raises:
        UserError: the file is no ELF file, or has no debugging information.
    """
    wanted = set(names)
    found: dict[str, Structure] = {}
    with opened(vmlinux) as elf:
        if not elf.has_dwarf_info(strict=True):
            raise UserError(f"{vmlinux} has no debugging information; build it with --dwarf.")
        dwarf = elf.get_dwarf_info()
        for unit in _units(dwarf, near):
            if wanted <= set(found):
                break
            for entry in unit.get_top_DIE().iter_children():
                if entry.tag != "DW_TAG_structure_type" or "DW_AT_byte_size" not in entry.attributes:
                    continue
                name = _name_of(entry)
                if name in wanted and name not in found:
                    members = tuple(_members_of(entry, 0, _DEEPEST))
                    found[name] = Structure(name, entry.attributes["DW_AT_byte_size"].value, members)
    return found


def _units(dwarf: Any, near: Iterable[int]) -> Iterator[Any]:
    first = next(dwarf.iter_CUs(), None)
    if first is None:
        return
    yield first
    ranges = dwarf.get_aranges()
    seen = {first.cu_offset}
    for address in near if ranges else ():
        offset = ranges.cu_offset_at_addr(address)
        if offset is not None and offset not in seen:
            seen.add(offset)
            yield dwarf.get_CU_at(offset)


def _members_of(entry: Any, base: int, deepest: int) -> Iterator[Member]:
    for child in entry.iter_children():
        if child.tag != "DW_TAG_member":
            continue
        target = _target(child)
        name = _name_of(child)
        if "DW_AT_data_bit_offset" in child.attributes:  # a bit field, DWARF 5, section 5.7.6
            first = child.attributes["DW_AT_data_bit_offset"].value
            last = first + child.attributes["DW_AT_bit_size"].value - 1
            yield Member(name, type_name(child), base + first // 8, last // 8 - first // 8 + 1)
            continue
        location = child.attributes.get("DW_AT_data_member_location")
        offset = base + (location.value if location is not None else 0)
        if not name and target.tag == "DW_TAG_structure_type" and deepest:
            yield from _members_of(target, offset, deepest - 1)
            continue
        yield Member(name, type_name(child), offset, _size_of(target))


def _name_of(entry: Any) -> str:
    return entry.attributes["DW_AT_name"].value.decode() if "DW_AT_name" in entry.attributes else ""


def _target(entry: Any) -> Any:
    """The type of an entry, without names for it and qualifiers."""
    target = entry.get_DIE_from_attribute("DW_AT_type")
    while target.tag in ("DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type", "DW_TAG_atomic_type"):
        if "DW_AT_type" not in target.attributes:
            break
        target = target.get_DIE_from_attribute("DW_AT_type")
    return target


def _size_of(target: Any) -> int:
    if target.tag == "DW_TAG_array_type":
        count = 1
        for each in target.iter_children():
            if each.tag == "DW_TAG_subrange_type":
                count *= _count_of(each)
        return count * _size_of(_target(target)) if count else 0
    size = target.attributes.get("DW_AT_byte_size")
    if size is not None:
        return int(size.value)
    return 8 if target.tag == "DW_TAG_pointer_type" else 0


def _count_of(subrange: Any) -> int:
    for key, more in (("DW_AT_count", 0), ("DW_AT_upper_bound", 1)):
        bound = subrange.attributes.get(key)
        if bound is not None and isinstance(bound.value, int):
            return int(bound.value) + more
    return 0  # a flexible array
