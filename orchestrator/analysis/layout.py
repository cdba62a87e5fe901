# SPDX-License-Identifier: GPL-2.0-only
"""Plain text in a given width, without breaking words or numbers.

Only a single word that is longer than the line, such as a path, exceeds the width, so that it can be copied.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final

#: Columns of stored files, and of output that is not on a terminal.
WIDTH: Final = 100
#: Limits of a terminal's columns for tables; a narrower or wider terminal is treated like the nearest of these.
NARROWEST: Final = 60
WIDEST: Final = 200
#: A space without a line break.
NO_BREAK: Final = "\N{NO-BREAK SPACE}"
_GAP: Final = "  "
#: Fewest columns for prose, unless it needs less.
_PROSE: Final = 24
#: Cells with at most this many characters, including the title, share a line.
_SHORT: Final = 32
#: Where a long name may be wrapped: between the knobs of a variant.
_JOINTS: Final = re.compile(r"(?<=[@,])")


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """The words of `text` on as few lines as hold them.

    Args:
        width: columns, including the indent.
        indent: indent of all lines but the first.

    >>> wrapped("no word is broken", 9, "  ")
    ['no word', '  is', '  broken']
    """
    lines = [""]
    for word in re.split(r"[ \t\n]+", text.strip()):
        room = width - len(indent)
        for number, piece in enumerate([word] if len(word) <= room else _JOINTS.split(word)):
            gap = " " if lines[-1].strip() and number == 0 else ""
            if lines[-1].strip() and len(lines[-1]) + len(gap) + len(piece) > width:
                lines.append(indent)
                gap = ""
            lines[-1] += gap + piece
    return [line.replace(NO_BREAK, " ") for line in lines]


def listing(
    rows: Sequence[Sequence[str]], width: int, titles: Sequence[str] = (), right: Collection[int] = ()
) -> list[list[str]]:
    """A table with one line per row, or if that does not fit, one short paragraph per row.

    The last column is prose: it takes the remaining width, and its cells are wrapped.

    Args:
        width: columns.
        titles: titles of the columns; empty for none.
        right: numbers of the right-justified columns.

    Returns:
        The lines of each row, after those of the titles, if there are any.
    """
    table = [list(row) for row in rows]
    if not table:
        return []
    columns = range(len(table[0]))
    cells = [max(len(row[column]) for row in table) for column in columns]
    longest = max(_longest(row[-1]) for row in ([*table, titles] if titles else table))
    for titles_wrap, gap in ((False, _GAP), (True, _GAP), (True, " ")):
        widths = list(cells)
        if titles:
            least = map(_longest if titles_wrap else len, titles)
            widths = [max(cell, title) for cell, title in zip(cells, least, strict=True)]
        before = sum(widths[:-1]) + len(gap) * (len(widths) - 1)
        if before + min(max(longest, _PROSE), widths[-1]) <= width:
            break
    else:
        return _records(rows, width, titles)
    widths[-1] = min(widths[-1], width - before)
    return [_block(row, widths, right, gap) for row in ([titles, *table] if titles else table)]


def _block(row: Sequence[str], widths: Sequence[int], right: Collection[int], gap: str) -> list[str]:
    """The cells of a row next to each other, each wrapped as needed."""
    cells = [
        wrapped(cell, size) if len(cell) > size else [cell] for cell, size in zip(row, widths, strict=True)
    ]
    lines = []
    for number in range(max(map(len, cells))):
        parts = [cell[number] if number < len(cell) else "" for cell in cells]
        line = gap.join(
            part.rjust(size) if column in right else part.ljust(size)
            for column, (part, size) in enumerate(zip(parts, widths, strict=True))
        )
        lines.append(line.rstrip())
    return lines


def _longest(text: str) -> int:
    return max(map(len, text.split()), default=0)


def _records(rows: Sequence[Sequence[str]], width: int, titles: Sequence[str]) -> list[list[str]]:
    """For each row the first cell on a separate line, then the other cells, each after its title."""
    names = [f"{title.strip()} " for title in titles] or [""] * len(rows[0])
    blocks = []
    for row in rows:
        lines = wrapped(names[0] + row[0].strip(), width)
        said = [(name + cell).rstrip() for name, cell in zip(names[1:], row[1:], strict=True) if cell.strip()]
        figures = [each.replace(" ", NO_BREAK) for each in said if len(each) <= _SHORT]
        if figures:
            lines += wrapped_below(_GAP, ", ".join(figures), width, _GAP)
        for prose in (
            f"{name.rstrip()}: {cell}" if titles else cell
            for name, cell in zip(names[1:], row[1:], strict=True)
            if len(name + cell) > _SHORT
        ):
            lines += wrapped_below(_GAP, prose, width, 2 * _GAP)
        blocks.append(lines)
    return blocks


def wrapped_below(head: str, text: str, width: int, indent: str) -> list[str]:
    """`text` after `head`, wrapped with `indent`."""
    lines = wrapped(text, width - len(indent))
    return [(head if number == 0 else indent) + line for number, line in enumerate(lines)]


def fitted(text: str, width: int) -> str:
    """`text` with lines longer than `width` wrapped and indented by two more columns.

    >>> fitted("short\\n  one two three", 12).splitlines()
    ['short', '  one two', '    three']
    """
    lines = []
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        lines += [line] if len(line) <= width else wrapped_below(indent, line, width, indent + _GAP)
    return "\n".join(lines)


def first_lines(text: str, most: int, indent: str) -> list[str]:
    """The first lines of a text, indented, and how many more there are.

    >>> first_lines("a\\nb\\nc", 2, "  ")
    ['  a', '  b', '  and 1 more lines']
    """
    lines = text.splitlines()
    more = [f"{indent}and {len(lines) - most} more lines"] if len(lines) > most else []
    return [*(indent + line for line in lines[:most]), *more]


def text_of(blocks: Sequence[Sequence[str]]) -> str:
    """The lines of a :func:`listing` as one text."""
    return "\n".join(line for block in blocks for line in block)
