# SPDX-License-Identifier: GPL-2.0-only
"""A content-addressed cache of everything expensive: source trees, kernels, images, probe answers.

An artefact's key is all its inputs. It is built in a temporary directory and renamed into place, so an
interruption leaves nothing half-made, and several processes can share one cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

# A new SSH key would shut the door on guests that run; the others are small.
_KEPT = ("ssh-keys", "probe", "packages", "calibration")
#: Part of every key: raise it when the layout of what is stored changes.
GENERATION = 1


def digest(key: Mapping[str, Any]) -> str:
    """The first 20 hexadecimal digits of the SHA-256 of `key` as canonical JSON.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    text = json.dumps(key, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True, order=True)
class CacheEntry:
    """Something in the cache that can be made again.

    Args:
        used: time of last use, seconds since the epoch.
        path: its directory.
        lock: name of the lock that whoever makes or changes it holds.
    """

    used: float
    path: Path
    lock: str

    @property
    def name(self) -> str:
        """Its kind and its own name, for a person."""
        return f"{self.path.parent.name}/{self.path.name}"

    def size(self) -> int:
        """Bytes of its files on disk; a file that several entries share counts for each."""
        return sum(
            path.lstat().st_blocks * 512
            for path in self.path.rglob("*")
            if path.is_file() and not path.is_symlink()
        )


@dataclass(frozen=True)
class Cache:
    """A cache below one directory.

    Args:
        root: the directory; made when first needed.
    """

    root: Path

    @classmethod
    def default(cls) -> Cache:
        """The cache of this user: ``$ORCHESTRATE_CACHE``, else the XDG cache directory."""
        named = os.environ.get("ORCHESTRATE_CACHE")
        return cls(Path(named) if named else Path(platformdirs.user_cache_dir("orchestrate")))

    def path(self, kind: str, key: Mapping[str, Any]) -> Path:
        """Where the artefact of `kind` with `key` is, or would be."""
        return self.root / kind / digest({"generation": GENERATION, **key})

    def has(self, kind: str, key: Mapping[str, Any]) -> bool:
        """Whether the artefact is there, complete."""
        return (self.path(kind, key) / "key.json").is_file()

    def obtain(self, kind: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The directory of an artefact, made by `make` where it is not there yet.

        Args:
            kind: what it is, a directory name such as ``kernel``.
            key: all its inputs, as JSON values.
            make: fills the empty directory it is given; on an exception nothing is kept.
        """
        final = self.path(kind, key)
        if self.has(kind, key):
            self._touch(final)
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        with self.lock(f"{kind}-{final.name}"):
            if self.has(kind, key):  # another process made it while we waited
                return final
            working = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
            try:
                make(working)
                (working / "key.json").write_text(json.dumps(key, indent=2, sort_keys=True) + "\n")
                working.chmod(0o755)
                if final.exists():  # left by a version that was not atomic, or damaged by hand
                    shutil.rmtree(final)
                working.rename(final)
            except BaseException:
                shutil.rmtree(working, ignore_errors=True)
                raise
        return final

    def lock(self, name: str) -> FileLock:
        """A lock that processes sharing this cache agree on; released when the holder dies."""
        directory = self.root / "locks"
        directory.mkdir(parents=True, exist_ok=True)
        return FileLock(directory / f"{name}.lock")

    def workspace(self, name: str) -> Path:
        """A directory that is kept between uses and is not content-addressed, e.g. a build's objects."""
        directory = self.root / "workspace" / name
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def entries(self) -> Iterator[CacheEntry]:
        """What can be made again, at the price of time; neither keys nor answers that cost no space."""
        for key in self.root.glob("*/*/key.json"):
            kind = key.parent.parent.name
            if kind not in _KEPT:
                yield CacheEntry(key.stat().st_mtime, key.parent, f"{kind}-{key.parent.name}")
        for place in (self.root / "workspace").glob("build-*"):
            log = place / "build.log"
            if (place / "objects").is_dir():
                used = (log if log.is_file() else place).stat().st_mtime
                yield CacheEntry(used, place, place.name)
        for half_made in self.root.glob("*/.*-*"):  # its maker was killed
            yield CacheEntry(
                half_made.stat().st_mtime, half_made, f"{half_made.parent.name}-{half_made.name[1:21]}"
            )

    def remove(self, entry: CacheEntry) -> bool:
        """Remove an entry.

        Returns:
            False where it is in use: then it is left alone.
        """
        try:
            with self.lock(entry.lock).acquire(timeout=0):
                shutil.rmtree(entry.path)
        except Timeout:
            return False
        return True

    @staticmethod
    def _touch(directory: Path) -> None:
        # The time of last use decides what `orchestrate results gc` may take.
        os.utime(directory / "key.json")
