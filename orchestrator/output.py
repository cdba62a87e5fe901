# SPDX-License-Identifier: GPL-2.0-only
"""A file that the user named on the command line: written whole, and never put in the place of something else.

A regular file is replaced by rename(2), so that a reader sees the old content or the new. A FIFO, a device or the
standard output of this process is written to: replacing ``/dev/full`` by a file would break the host.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path

from orchestrator.errors import InfrastructureError, UserError

#: What the user writes for standard output, as for cat(1).
STDOUT = Path("-")


def check_output(option: str, path: Path) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold.

    Args:
        option: as the user wrote it, for the message, e.g. ``--output``.

    Raises:
        UserError: it is a directory, or its directory does not exist.
    """
    if path == STDOUT:
        return
    if path.is_dir():
        raise UserError(f"{option} {path}: this is a directory; name a file.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{option} {path}: there is no directory {path.parent}; make it first.")


def is_stream(path: Path) -> bool:
    """Whether `path` is not a regular file, or is where standard output goes: it is written to, not replaced."""
    return _is_stdout(path) or (path.exists() and not path.is_file())


def write_output(path: Path, content: str | bytes) -> None:
    """Write `content` to the file that the user named; ``-`` is standard output.

    A symbolic link stays, and the file that it leads to is written.

    Raises:
        InfrastructureError: it cannot be written. A regular file then keeps its old content.
        BrokenPipeError: the reader of a FIFO or of standard output has gone.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if _is_stdout(path):
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif is_stream(path):
            with path.open("wb") as stream:
                stream.write(data)
        else:
            replace_file(path.resolve(), data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InfrastructureError(f"{path} cannot be written: {error.strerror or error}.") from error


def _is_stdout(path: Path) -> bool:
    if path == STDOUT:
        return True
    try:
        # /dev/stdout, or the file that the shell redirected it to: a new file there would be lost on its reader.
        return os.path.samestat(path.stat(), os.fstat(1))
    except OSError:  # there is no such file, or standard output is closed
        return False


def replace_file(path: Path, data: bytes) -> None:
    """Write a file in place of another, so that a reader sees the old content or the new.

    A new file gets mode 0644, another keeps its mode.
    """
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        Path(name).chmod(mode)  # mkstemp makes it private
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a write does not know its file
            error.filename = str(path)
        raise
