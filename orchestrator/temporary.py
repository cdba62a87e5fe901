# SPDX-License-Identifier: GPL-2.0-only
"""Temporary directories that do not outlive their process for long.

A process that is killed with SIGKILL cannot remove what it made. So each directory has the PID of its owner in its
name and is locked (flock(2)) while the owner lives, and every command that works removes those whose owner is gone.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME = re.compile(r"orchestrate-[a-z]+-(?P<pid>\d+)-\w+")
#: Open descriptors of the directories of this process: they hold the locks.
_held: dict[Path, int] = {}
_lock = threading.Lock()


def make_temporary(purpose: str, parent: Path | None = None) -> Path:
    """Make a directory with mode 0700 that belongs to this process; remove it with :func:`remove_temporary`.

    Args:
        purpose: one word, for its name.
        parent: where; default: ``$TMPDIR``, else /tmp.
    """
    place = parent or Path(tempfile.gettempdir())
    directory = Path(tempfile.mkdtemp(prefix=f"orchestrate-{purpose}-{os.getpid()}-", dir=place))
    with suppress(OSError):  # without a lock the PID alone protects it
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with _lock:
            _held[directory] = descriptor
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return directory


def remove_temporary(directory: Path) -> None:
    """Remove a directory of :func:`make_temporary`; it is no error if it is gone."""
    shutil.rmtree(directory, ignore_errors=True)
    with _lock:
        descriptor = _held.pop(directory, None)
    if descriptor is not None:
        os.close(descriptor)


@contextmanager
def temporary_directory(purpose: str) -> Iterator[Path]:
    """A temporary directory for the duration of the block; see :func:`make_temporary`."""
    directory = make_temporary(purpose)
    try:
        yield directory
    finally:
        remove_temporary(directory)


def sweep_temporary() -> None:
    """Remove the temporary directories of this user whose process was killed."""
    for place in {os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"} - {None, ""}:
        with suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                found = _NAME.fullmatch(entry.name)
                if found and entry.is_dir(follow_symlinks=False):
                    _sweep(Path(entry.path), int(found["pid"]))


def _sweep(directory: Path, owner: int) -> None:
    # The PID protects a directory before it is locked, the lock one of a process in another PID namespace.
    if Path(f"/proc/{owner}").exists():
        return
    with suppress(OSError):
        if directory.stat().st_uid != os.getuid():
            return
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(descriptor)
