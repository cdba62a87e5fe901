# SPDX-License-Identifier: GPL-2.0-only
"""What a patchset adds to a kernel: bytes of code per function, and bytes of structures.

Functions are compared and shown as the kernel's scripts/bloat-o-meter does, because changelogs have that form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.kernel.elf import build_id, functions, section_sizes
from orchestrator.kernel.structure import Structure, structures

#: Structures that are always shown: there is one per page, per mapping, per process.
ALWAYS = ("page", "vm_area_struct", "mm_struct")
WIDTH = 75
_NAME_WIDTH = 40
#: Second names of system calls, which scripts/bloat-o-meter leaves out.
_ALIASES = ("__se_sys", "__se_compat_sys")
# scripts/bloat-o-meter: gcc numbers static variables and clones of functions.
_NUMBER = re.compile(r"\.[0-9]+")
_OPENS = re.compile(r"(?:typedef )?struct (\w+)[^;(]*\{")
_HUNK = re.compile(r"@@ -\S+ \+\S+ @@ ?(.*)")


@dataclass(frozen=True)
class KernelSizes:
    """The sizes of one kernel.

    Args:
        name: patchset, or name of the file.
        build_id: build ID of the vmlinux.
        sections: ``text``, ``rodata``, ``data`` and ``bss`` -> bytes.
        functions: name -> bytes; functions of the same name count together.
        addresses: name -> address of one of them.
        structures: name -> layout.
    """

    name: str
    build_id: str
    sections: Mapping[str, int]
    functions: Mapping[str, int]
    addresses: Mapping[str, int] = field(default_factory=dict)
    structures: Mapping[str, Structure] = field(default_factory=dict)


@dataclass(frozen=True)
class FunctionChange:
    """A function whose size differs.

    Args:
        old, new: bytes; 0 where it does not exist.
    """

    name: str
    old: int
    new: int

    @property
    def delta(self) -> int:
        """Bytes that it grew by."""
        return self.new - self.old


@dataclass(frozen=True)
class Growth:
    """One kernel against another.

    Args:
        changes: functions that differ, the largest growth first.
    """

    old: KernelSizes
    new: KernelSizes
    changes: tuple[FunctionChange, ...]

    @property
    def up(self) -> int:
        """Bytes by which functions grew, new functions included."""
        return sum(each.delta for each in self.changes if each.delta > 0)

    @property
    def down(self) -> int:
        """Bytes by which functions shrank, removed functions included; not positive."""
        return sum(each.delta for each in self.changes if each.delta < 0)

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        return {
            "old": {
                "name": self.old.name,
                "build_id": self.old.build_id,
                "sections": dict(self.old.sections),
            },
            "new": {
                "name": self.new.name,
                "build_id": self.new.build_id,
                "sections": dict(self.new.sections),
            },
            "functions": {
                "before": sum(self.old.functions.values()),
                "after": sum(self.new.functions.values()),
                "up": self.up,
                "down": self.down,
                "changes": [{**asdict(each), "delta": each.delta} for each in self.changes],
            },
            "structures": {
                name: {
                    "old": _structure_json(self.old.structures.get(name)),
                    "new": _structure_json(self.new.structures.get(name)),
                }
                for name in _names(self.old, self.new)
            },
        }


def sizes_of(name: str, vmlinux: Path) -> KernelSizes:
    """The sizes of a kernel, without structures.

    Raises:
        UserError: the file is not an ELF file, or has no build ID or symbols.
    """
    found: dict[str, int] = {}
    addresses: dict[str, int] = {}
    for symbol in functions(vmlinux):
        if symbol.name.startswith(_ALIASES):
            continue
        plain = _NUMBER.sub("", symbol.name)
        found[plain] = found.get(plain, 0) + symbol.size
        addresses.setdefault(plain, symbol.address)
    return KernelSizes(name, build_id(vmlinux), section_sizes(vmlinux), found, addresses)


def growth(old: KernelSizes, new: KernelSizes) -> Growth:
    """The differences between two kernels."""
    names = old.functions.keys() | new.functions.keys()
    changes = [FunctionChange(name, old.functions.get(name, 0), new.functions.get(name, 0)) for name in names]
    # The order of scripts/bloat-o-meter.
    changes = sorted(
        (each for each in changes if each.delta), key=lambda each: (each.delta, each.name), reverse=True
    )
    return Growth(old, new, tuple(changes))


def with_structures(
    kernel: KernelSizes, vmlinux: Path, names: Iterable[str], changes: Iterable[FunctionChange]
) -> KernelSizes:
    """The same kernel with the layouts of structures.

    Args:
        changes: changed functions; a structure may be defined in the source file of one of them.

    Raises:
        UserError: the file has no debugging information.
    """
    near = [kernel.addresses[each.name] for each in changes if each.name in kernel.addresses]
    return with_layouts(kernel, structures(vmlinux, names, near))


def with_layouts(kernel: KernelSizes, found: Mapping[str, Structure]) -> KernelSizes:
    """The same kernel with the layouts of structures."""
    return replace(kernel, structures=found)


def structures_in(patch: str) -> tuple[str, ...]:
    """Names of the structures that a patch adds or changes, as far as its hunks name them.

    Args:
        patch: text of a patch in unified format.
    """
    found: dict[str, None] = {}
    current = ""
    for line in patch.splitlines():
        hunk = _HUNK.match(line)
        if hunk:
            opens = _OPENS.match(hunk[1])
            current = opens[1] if opens else ""
            continue
        if line.startswith(("+++", "---", "diff ")):
            current = ""
            continue
        sign, code = line[:1], line[1:]
        if sign not in ("+", "-", " "):
            continue
        opens = _OPENS.match(code)
        if opens:
            current = opens[1]
        if current and sign != " " and code.strip():
            found[current] = None
        if code.startswith("}"):
            current = ""
    return tuple(found)


def check_is_of(vmlinux: Path, known: Mapping[str, str], whose: str) -> str:
    """The name of the kernel whose vmlinux a file is.

    Args:
        known: build ID -> name of a kernel.
        whose: what these kernels belong to, for the message, e.g. a run.

    Raises:
        UserError: it is none of them.
    """
    mine = build_id(vmlinux)
    if mine not in known:
        there = ", ".join(f"{name} {identity[:12]}" for identity, name in known.items()) or "none"
        raise UserError(
            f"{vmlinux} is not a kernel of {whose}: its build ID is {mine[:12]}, those of {whose} are {there}; "
            "name the vmlinux of one of them."
        )
    return known[mine]


# Text, at most 75 columns


def text_of(found: Growth, most: int) -> str:
    """The differences as text for a changelog.

    Args:
        most: number of functions to show; 0 for all.
    """
    parts = [
        f"{found.new.name} against {found.old.name}",
        "\n".join(_sections(found)),
        "\n".join(_functions(found, most)),
    ]
    if _names(found.old, found.new):
        parts.append("\n".join(_structures(found)))
    return "\n\n".join(parts)


def stages_text(kernels: Sequence[KernelSizes]) -> str:
    """Text and structures per stage: one line per kernel, the baseline first; deltas to the line before."""
    names = list(dict.fromkeys(name for kernel in kernels for name in kernel.structures))
    columns = [kernel.name for kernel in kernels]
    width = max(len("kernel"), *map(len, columns))
    lines = [
        f"{'kernel':<{width}} {'functions':>10} {'delta':>7}"
        + "".join(f" {_short(name):>12}" for name in names)
    ]
    before: KernelSizes | None = None
    for kernel in kernels:
        total = sum(kernel.functions.values())
        delta = f"{total - sum(before.functions.values()):+d}" if before else ""
        cells = []
        for name in names:
            own = kernel.structures.get(name)
            previous = before.structures.get(name) if before else None
            changed = (
                f" {own.size - previous.size:+d}" if own and previous and own.size != previous.size else ""
            )
            cells.append(f"{own.size}{changed}" if own else "-")
        lines.append(
            f"{kernel.name:<{width}} {total:>10} {delta:>7}" + "".join(f" {cell:>12}" for cell in cells)
        )
        before = kernel
    return "\n".join(line.rstrip() for line in lines)


def _short(name: str) -> str:
    return name if len(name) <= 12 else name.replace("_struct", "").replace("vm_area", "vma")[:12]


def _sections(found: Growth) -> list[str]:
    lines = [f"{'Section':<12} {'old':>12} {'new':>12} {'delta':>9}"]
    for name, new in found.new.sections.items():
        old = found.old.sections[name]
        lines.append(f"{name:<12} {old:>12} {new:>12} {new - old:>+9}")
    return lines


def _functions(found: Growth, most: int) -> list[str]:
    changes = found.changes
    added = sum(not each.old for each in changes)
    removed = sum(not each.new for each in changes)
    grown = sum(bool(each.old and each.new) and each.delta > 0 for each in changes)
    shrunk = sum(bool(each.old and each.new) and each.delta < 0 for each in changes)
    lines = [
        (
            f"add/remove: {added}/{removed} grow/shrink: {grown}/{shrunk} "
            f"up/down: {found.up}/{found.down} ({found.up + found.down})"
        )
    ]
    if changes:
        lines.append(f"{'Function':<{_NAME_WIDTH}} {'old':>7} {'new':>7} {'delta':>7}")
    shown = changes if not most else _most_changed(changes, most)
    for each in shown:
        figures = f"{each.old or '-':>7} {each.new or '-':>7} {each.delta:>+7}"
        if len(each.name) > _NAME_WIDTH:
            lines.append(each.name)
        lines.append(f"{each.name if len(each.name) <= _NAME_WIDTH else '':<{_NAME_WIDTH}} {figures}")
    if len(shown) < len(changes):
        rest = [each for each in changes if each not in shown]
        lines.append(
            f"{f'{len(rest)} more functions':<{_NAME_WIDTH}} {'':>7} {'':>7} {sum(e.delta for e in rest):>+7}"
        )
    before, after = sum(found.old.functions.values()), sum(found.new.functions.values())
    share = f"{100 * (after - before) / before:+.2f}%" if before else "-"
    lines.append(f"Total: Before={before}, After={after}, chg {share}")
    return lines


def _most_changed(changes: Sequence[FunctionChange], most: int) -> list[FunctionChange]:
    kept = sorted(changes, key=lambda each: (-abs(each.delta), each.name))[:most]
    return [each for each in changes if each in kept]


def _structures(found: Growth) -> list[str]:
    lines = [
        f"{'Structure':<23} {'old':>6} {'new':>6} {'delta':>6} {'lines':>6}  {'holes':<14} {'padding':>7}"
    ]
    for name in _names(found.old, found.new):
        old, new = found.old.structures.get(name), found.new.structures.get(name)
        now = new or old
        assert now is not None
        unused = sum(hole.size for hole in now.holes)
        holes = f"{len(now.holes)} ({unused} bytes)" if unused else "0"
        delta = (new.size if new else 0) - (old.size if old else 0)
        figures = (
            f"{old.size if old else '-':>6} {new.size if new else '-':>6} {f'{delta:+d}' if delta else 0:>6}"
        )
        lines.append(f"{name:<23} {figures} {now.cache_lines:>6}  {holes:<14} {now.padding:>7}")
        if old and new:
            lines += _members(old, new)
    return lines


def _members(old: Structure, new: Structure) -> list[str]:
    known, now = {each.name for each in old.members}, {each.name for each in new.members}
    lines = [
        f"  + {member.name}, {member.size} bytes at {member.offset}"
        for member in new.members
        if member.name and member.name not in known
    ]
    lines += [
        f"  - {member.name}, {member.size} bytes at {member.offset}"
        for member in old.members
        if member.name and member.name not in now
    ]
    return lines


def _names(old: KernelSizes, new: KernelSizes) -> list[str]:
    return list(dict.fromkeys([*old.structures, *new.structures]))


def _structure_json(structure: Structure | None) -> dict[str, Any] | None:
    if structure is None:
        return None
    return {
        "size": structure.size,
        "cache_lines": structure.cache_lines,
        "padding": structure.padding,
        "holes": [asdict(hole) for hole in structure.holes],
        "members": [asdict(member) for member in structure.members],
    }
