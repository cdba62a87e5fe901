# SPDX-License-Identifier: GPL-2.0-only
"""What make says while it builds a kernel: what is compiled, warnings, errors, and whose fault those are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from orchestrator.errors import InfrastructureError

_COMPILED = re.compile(r"^  (?:CC|AS|HOSTCC) +(?:\[M\] +)?(\S+)$")
_STEP = re.compile(r"^  [A-Z][A-Z0-9]* ")
_WARNING = re.compile(r"^(?:[^\s:]+:\d+(?::\d+)?|[^\s:]+\.o): warning: ")
_ERROR = re.compile(r"(?:^|\s)(?:fatal )?[Ee]rror: |^ld: |undefined reference|\*\*\* |syntax error")
#: What only a source can be blamed for; anything else may come from a damaged object directory.
_BLAMES_SOURCE = re.compile(
    r"^\S+?:\d+(?::\d+)?: (?:(?:fatal )?[Ee]rror: |syntax error)|undefined reference to|multiple definition of"
)
#: What a linker says of an object that was cut short, before it goes on to find mistakes in it.
_DAMAGED = re.compile(r"file format not recognized|file not recognized|file truncated|malformed archive")
#: Object that messages are booked on which belong to no single one.
_LINKED = "vmlinux"


def compiled(line: str) -> str | None:
    """The object that a line says is compiled, relative to the object directory.

    >>> compiled("  CC      mm/memory.o")
    'mm/memory.o'
    """
    match = _COMPILED.match(line)
    return match[1] if match else None


def warnings_by_object(log: Iterable[str]) -> dict[str, list[str]]:
    """The warnings of compiler and objtool, for each object that was compiled.

    Args:
        log: lines of ``make --output-sync=target``, which keeps messages behind the line that names the object.

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
    """The first error, with the line before it and those that follow; the log's end where none is found.

    Args:
        context: lines from the error on.
    """
    for number, line in enumerate(log):
        if _ERROR.search(line):
            return list(log[max(0, number - 1) : number + context])
    return list(log[-context:])


def blames_source(log: Iterable[str]) -> bool:
    """Whether make failed because of what is compiled, not because of where."""
    lines = list(log)
    return any(map(_BLAMES_SOURCE.search, lines)) and not any(map(_DAMAGED.search, lines))


def host_trouble(log: Iterable[str]) -> InfrastructureError | None:
    """What is wrong with the host, where make failed because of that."""
    for line in log:
        if "No space left on device" in line:
            return InfrastructureError(
                "the disk is full; make room with `orchestrate results gc`, or set ORCHESTRATE_CACHE elsewhere."
            )
        if "Killed signal terminated program" in line or "internal compiler error: Killed" in line:
            return InfrastructureError(
                "the compiler was killed, most likely for lack of memory; use fewer build jobs."
            )
        if re.search(r"fatal error: openssl/\S+: No such file", line):
            return InfrastructureError(
                "the headers of OpenSSL are missing on this host; install the Debian package libssl-dev."
            )
    return None
