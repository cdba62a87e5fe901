# SPDX-License-Identifier: GPL-2.0-only
"""Text of a guest, made safe to print: control characters could change a terminal or forge lines of a report."""

from __future__ import annotations

import re

# C0 and C1 control characters but tab and newline; DEL; line separators; marks and overrides of the writing direction.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


def printable(text: str) -> str:
    r"""`text` with visible control characters; tab and newline stay, and a carriage return before a newline is dropped.

    >>> printable("a\x1b[2Jb\r\nc\td\x9b")
    'a\\x1b[2Jb\nc\td\\x9b'
    """
    return _UNSAFE.sub(lambda found: _visible(found[0]), text.replace("\r\n", "\n"))


def _visible(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
