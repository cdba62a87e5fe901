# SPDX-License-Identifier: GPL-2.0-only
"""Parser for the output of a kernel build: compiled objects, warnings, errors and their cause."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from orchestrator.errors import InfrastructureError

_COMPILED = re.compile(r"^  (?:CC|AS|HOSTCC) +(?:\[M\] +)?(\S+)$")
_STEP = re.compile(r"^  [A-Z][A-Z0-9]* ")
_WARNING = re.compile(r"^(?:[^\s:]+:\d+(?::\d+)?|[^\s:]+\.o): warning: ")
_ERROR = re.compile(r"(?:^|\s)(?:fatal )?[Ee]rror: |^ld: |undefined reference|\*\*\* |syntax error")
#: Errors that only the source can cause; all others may come from a damaged object directory.
_BLAMES_SOURCE = re.compile(
    r"^\S+?:\d+(?::\d+)?: (?:(?:fatal )?[Ee]rror: |syntax error)|undefined reference to|multiple definition of"
)
#: Messages of the linker about a truncated object file; further errors about that object then mean nothing.
_DAMAGED = re.compile(r"file format not recognized|file not recognized|file truncated|malformed archive")
#: Pseudo object for messages that belong to no single object.
_LINKED = "vmlinux"


def compiled(line: str) -> str | None:
    """The object that a line of make's output names, relative to the object directory; None for other lines.

    >>> compiled("  CC      mm/memory.o")
    'mm/memory.o'
    """
    match = _COMPILED.match(line)
    return match[1] if match else None


def warnings_by_object(log: Iterable[str]) -> dict[str, list[str]]:
    """The warnings of compiler and objtool per compiled object.

    Args:
        log: output of ``make --output-sync=target``, which prints messages right after the line with the object.

    >>> warnings_by_object(["  CC      mm/memory.o", "mm/memory.c:12:3: warning: unused", "  CC      mm/gup.o"])
    {'mm/memory.o': ['mm/memory.c:12:3: warning: unused'], 'mm/gup.o': []}
    """
    found: dict[str, list[str]] = {}
    current = _LINKED
    for line in log:
        name = compiled(line)
        if name is not None:
            current = name
            found[current] = []
        elif _STEP.match(line):
            current = _LINKED
        elif _WARNING.match(line):
            found.setdefault(current, []).append(line)
    return found


def error_of(log: Sequence[str], context: int = 6) -> list[str]:
    """The first error with the line before it and the lines after it; the end of the log if there is no error.

    Args:
        context: number of lines to return, starting at the error.
    """
    for number, line in enumerate(log):
        if _ERROR.search(line):
            return list(log[max(0, number - 1) : number + context])
    return list(log[-context:])


def blames_source(log: Iterable[str]) -> bool:
    """Whether make failed because of the source, not because of the host or the object directory."""
    lines = list(log)
    return any(map(_BLAMES_SOURCE.search, lines)) and not any(map(_DAMAGED.search, lines))


_OUT_OF_MEMORY = (
    "Killed signal terminated program",
    "internal compiler error: Killed",
    "virtual memory exhausted",
    "Cannot allocate memory",
    "out of memory allocating",
)
_DISK_FAILED = ("Read-only file system", "Input/output error", "Too many open files")


def host_trouble(log: Iterable[str]) -> InfrastructureError | None:
    """The error to raise if make failed because of the host; None if it did not."""
    for line in log:
        if "No space left on device" in line or "Disk quota exceeded" in line:
            return InfrastructureError(
                "the disk is full; free space with `orchestrate results gc`, or set ORCHESTRATE_CACHE to another disk."
            )
        if any(said in line for said in _OUT_OF_MEMORY):
            return InfrastructureError(
                "the compiler was killed, most likely because the host ran out of memory; use fewer build jobs."
            )
        if line.startswith("ccache: error:") or any(said in line for said in _DISK_FAILED):
            return InfrastructureError(
                f"the compiler failed because of this host: {line.strip().rstrip('.')}."
            )
        if re.search(r"fatal error: openssl/\S+: No such file", line):
            return InfrastructureError(
                "the headers of OpenSSL are missing on this host; install the Debian package libssl-dev."
            )
    return None
