# SPDX-License-Identifier: GPL-2.0-only
"""Writes the cpio archive that the kernel unpacks as its initramfs.

It is not written by cpio(1), because it has device nodes without root, no owners or times of this host, and
identical bytes for identical content. Format: Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_ALIGNMENT = 4
_DIRECTORY_LINKS = 2


@dataclass(frozen=True)
class ArchiveEntry:
    """One file of an archive.

    Args:
        mode: file type and permission bits, as st_mode in inode(7).
        content: content of a regular file, or target of a symbolic link; else empty.
        device: major and minor number of a device node.
    """

    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)

    @classmethod
    def directory(cls) -> ArchiveEntry:
        """A directory with mode 0755."""
        return cls(stat.S_IFDIR | 0o755)

    @classmethod
    def file(cls, content: bytes, mode: int = 0o644) -> ArchiveEntry:
        """A regular file with permission bits `mode`."""
        return cls(stat.S_IFREG | mode, content)

    @classmethod
    def symlink(cls, target: str) -> ArchiveEntry:
        """A symbolic link to `target`."""
        return cls(stat.S_IFLNK | 0o777, target.encode())

    @classmethod
    def character_device(cls, major: int, minor: int, mode: int) -> ArchiveEntry:
        """A character device node."""
        return cls(stat.S_IFCHR | mode, device=(major, minor))


def archive(entries: Mapping[str, ArchiveEntry]) -> bytes:
    """A cpio archive in "newc" format, owned by root and without times.

    Args:
        entries: absolute path -> entry. Missing parent directories are added.

    Returns:
        The archive, padded to 4 bytes.

    >>> archive({"/etc/hostname": ArchiveEntry.file(b"guest")})[:6]
    b'070701'
    """
    complete = dict(entries)
    for path in entries:
        for parent in PurePosixPath(path).parents:
            if str(parent) != "/":
                complete.setdefault(str(parent), ArchiveEntry.directory())
    out = bytearray()
    # Parents sort before their contents, as the kernel requires.
    for number, (path, entry) in enumerate(sorted(complete.items()), 1):
        _append(out, number, path.lstrip("/"), entry)
    _append(out, 0, _TRAILER, ArchiveEntry(0))
    return bytes(out)


def _append(out: bytearray, number: int, name: str, entry: ArchiveEntry) -> None:
    encoded = name.encode() + b"\0"
    fields = (
        number,
        entry.mode,
        0,  # uid
        0,  # gid
        _DIRECTORY_LINKS if stat.S_ISDIR(entry.mode) else 1,
        0,  # mtime
        len(entry.content),
        0,  # device the archive was made on: major, minor
        0,
        *entry.device,
        len(encoded),
        0,  # checksum, unused by this format
    )
    out += _MAGIC + b"".join(b"%08X" % field for field in fields) + encoded
    _pad(out)
    out += entry.content
    _pad(out)


def _pad(out: bytearray) -> None:
    out += bytes(-len(out) % _ALIGNMENT)
