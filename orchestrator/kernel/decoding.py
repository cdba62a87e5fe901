# SPDX-License-Identifier: GPL-2.0-only
"""Finds the source lines of the addresses in the kernel's reports, in a vmlinux with debugging information.

The kernel prints an address as ``function+0x1c4/0x310``: offset into, and size of, the function (``%pS`` in
Documentation/core-api/printk-formats.rst). addr2line(1) of binutils finds file, line and inlined functions; it needs
0.3 s for a kernel, where pyelftools needs minutes.
"""

from __future__ import annotations

import bisect
import mmap
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.kernel.elf import Symbol, build_id, has_dwarf, text_symbols
from orchestrator.kernel.repository import Repository
from orchestrator.process import run

#: A function that gives the lines of a source file; None if it is not known.
SourceText = Callable[[str], Sequence[str] | None]

_POINT = re.compile(
    r"(?P<unsure>\? )?\b(?P<name>[A-Za-z_][\w.]{0,200})\+0x(?P<offset>[0-9a-f]{1,8})/0x(?P<size>[0-9a-f]{1,8})"
    r"(?P<module> \[\w+\])?"
)
#: Lines with the address of the instruction itself. All others have return addresses, which are behind the call.
_EXACT = re.compile(r"RIP: |WARNING: ")
# dump_stack_print_info() of lib/dump_stack.c, with CONFIG_STACKTRACE_BUILD_ID.
_BUILD_ID = re.compile(r"CPU: \d+ .*\b(?P<build_id>[0-9a-f]{40})\b")
_RELEASE = re.compile(r"\] Linux version (?P<release>\S+)")
#: Symbols that are not functions: padding before functions, and what scripts/kallsyms.c leaves out.
_NO_FUNCTION = ("__pfx_", "__cfi_", ".L", "$")
_DISCRIMINATOR = re.compile(r" \(discriminator \d+\)$")


@dataclass(frozen=True)
class CodePoint:
    """An address in a report.

    Args:
        name: function, as the kernel names it.
        offset: offset of the address into it, in bytes.
        size: its size up to the next function, in bytes.
        exact: whether it is the address of the instruction, not a return address.
    """

    name: str
    offset: int
    size: int
    exact: bool


@dataclass(frozen=True)
class CodeLine:
    """A line of source code.

    Args:
        function: the function that has it; if inlined, not that of the symbol.
        file: path below the top of the source tree.
        line: line number, from 1.
        text: the line; empty if the source is not at hand.
    """

    function: str
    file: str
    line: int
    text: str = ""

    def __str__(self) -> str:
        return f"{self.function} at {self.file}:{self.line}"


def build_ids_of(log: str) -> frozenset[str]:
    """The build IDs that a log names; none without CONFIG_STACKTRACE_BUILD_ID."""
    return frozenset(match["build_id"] for match in _BUILD_ID.finditer(log))


def point_in(line: str) -> CodePoint | None:
    """The address in a line of a report; None without one, in a module, or if the unwinder was not sure of it."""
    match = _POINT.search(line)
    if match is None or match["module"] or match["unsure"]:
        return None
    exact = _EXACT.search(line) is not None
    return CodePoint(match["name"], int(match["offset"], 16), int(match["size"], 16), exact)


class AddressDecoder:
    """Source lines of the addresses in reports of one kernel.

    Args:
        vmlinux: ELF file with debugging information.
        source: the source files.

    Raises:
        UserError: the file is no ELF file, or has no debugging information.
    """

    def __init__(self, vmlinux: Path, source: SourceText = lambda file: None) -> None:
        if not has_dwarf(vmlinux):
            raise UserError(
                f"{vmlinux} has no debugging information; name a vmlinux that was built with --dwarf."
            )
        self.vmlinux = vmlinux
        self._source = source
        self._known: dict[int, tuple[CodeLine, ...]] = {}

    def check(self, log: str, build_ids: Iterable[str] = ()) -> None:
        """Refuse a log of another kernel.

        The build ID decides, if the log has one. If not, the release and the sizes of the functions are compared.

        Args:
            build_ids: of other builds with the same code, as that of the same tree without debugging information.

        Raises:
            UserError: the vmlinux is not that of the kernel that printed the log.
        """
        mine = build_id(self.vmlinux)
        said = build_ids_of(log)
        if said:
            if not said & {mine, *build_ids}:
                raise UserError(
                    f"{self.vmlinux} is not the kernel of this log: its build ID is {mine}, that of the log is "
                    f"{min(said)}; name the kernel that printed the log."
                )
            return
        release = _RELEASE.search(log)
        if release is not None and not self._has_release(release["release"]):
            raise UserError(
                f"{self.vmlinux} is not the kernel of this log: the log is of Linux {release['release']}; name the "
                "kernel that printed the log."
            )
        points = {point for line in log.splitlines() if (point := point_in(line))}
        strange = sorted(point.name for point in points if self.address_of(point) is None)
        if points and len(strange) * 20 > len(points):
            raise UserError(
                f"{self.vmlinux} is not the kernel of this log: {len(strange)} of {len(points)} functions in the log, "
                f"e.g. {strange[0]}, have another size or are missing; name the kernel that printed the log."
            )

    def _has_release(self, release: str) -> bool:
        with (
            self.vmlinux.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return content.find(f"Linux version {release} ".encode()) >= 0

    @cached_property
    def _symbols(self) -> tuple[Mapping[str, Sequence[Symbol]], Sequence[int]]:
        named: dict[str, list[Symbol]] = {}
        addresses = set()
        for symbol in text_symbols(self.vmlinux):
            if not symbol.name.startswith(_NO_FUNCTION):
                addresses.add(symbol.address)
            named.setdefault(symbol.name, []).append(symbol)
        return named, sorted(addresses)

    def address_of(self, point: CodePoint) -> int | None:
        """The link address of a point; None if there is no such function with this size."""
        named, addresses = self._symbols
        for symbol in named.get(point.name, ()):
            after = bisect.bisect_right(addresses, symbol.address)
            # The kernel counts the padding up to the next symbol that it knows as part of the function.
            room = addresses[after] - symbol.address if after < len(addresses) else symbol.size
            if symbol.size <= point.size <= max(room, symbol.size) and point.offset <= point.size:
                return symbol.address + point.offset
        return None

    def lines_of(self, points: Iterable[CodePoint]) -> Mapping[CodePoint, tuple[CodeLine, ...]]:
        """Per point the source lines: the innermost inlined function first, the function itself last.

        Raises:
            InfrastructureError: addr2line is not installed, or failed.
        """
        wanted: dict[CodePoint, int] = {}
        for point in points:
            address = self.address_of(point)
            if address is not None:
                wanted[point] = address if point.exact or point.offset == 0 else address - 1
        known = self._known
        missing = sorted(set(wanted.values()) - set(known))
        if missing:  # threads share a decoder: one that loses another's answers asks again
            self._known = known = {**known, **self._ask(missing)}
        return {point: known.get(address, ()) for point, address in wanted.items()}

    def _ask(self, addresses: Sequence[int]) -> dict[int, tuple[CodeLine, ...]]:
        # Addresses are echoed (-a), so that each begins a new answer; -i adds the callers of inlined functions.
        said = run(
            ["addr2line", "-a", "-i", "-f", "-e", str(self.vmlinux)],
            input_text="".join(f"{address:#x}\n" for address in addresses),
        ).stdout
        answers: dict[int, list[CodeLine]] = {}
        lines = iter(said.splitlines())
        current: list[CodeLine] = []
        for line in lines:
            if line.startswith("0x"):
                current = answers.setdefault(int(line, 16), [])
                continue
            file, _, number = _DISCRIMINATOR.sub("", next(lines, "")).rpartition(":")
            if number.isdecimal():
                file = posixpath.normpath(file)
                current.append(CodeLine(line, file, int(number), self._text(file, int(number))))
        return {address: tuple(found) for address, found in answers.items()}

    def _text(self, file: str, number: int) -> str:
        lines = self._source(file)
        return lines[number - 1].strip() if lines is not None and 0 < number <= len(lines) else ""

    def decoded(self, report: str) -> str:
        """A report, with the source lines below each line that has an address. They have no timestamp."""
        by_line = [(line, point_in(line)) for line in report.splitlines()]
        found = self.lines_of({point for _, point in by_line if point is not None})
        text = []
        for line, point in by_line:
            text.append(line)
            for code in found.get(point, ()) if point is not None else ():
                text.append(f"        {code}" + (f":  {code.text}" if code.text else ""))
        return "\n".join(text)


def source_of_tree(repository: Path, tree: str) -> SourceText:
    """The files of a tree in a git repository."""

    @lru_cache(maxsize=256)
    def lines(file: str) -> Sequence[str] | None:
        shown = Repository(repository).git("cat-file", "blob", f"{tree}:{file}", check=False)
        return shown.stdout.split("\n") if shown.returncode == 0 else None

    return lines


def source_of_directory(directory: Path) -> SourceText:
    """The files below a directory; a longer path is that of another host, and is tried from its end."""

    @lru_cache(maxsize=256)
    def lines(file: str) -> Sequence[str] | None:
        parts = Path(file).parts
        for first in range(len(parts)):
            path = directory.joinpath(*parts[first:]) if not parts[first].startswith("/") else Path(file)
            try:
                return path.read_text(encoding="utf-8", errors="replace").split("\n")
            except OSError:
                continue
        return None

    return lines
