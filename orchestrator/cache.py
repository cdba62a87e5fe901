# SPDX-License-Identifier: GPL-2.0-only
"""A content-addressed cache of everything expensive: source trees, kernels, images, probe results.

The key of an artefact is the hash of all its inputs. An artefact is built in a temporary directory and renamed
into place, so an interruption leaves nothing half-made, and several processes can share one cache.
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
from typing import Any, Generic, TypeVar

import platformdirs
from filelock import FileLock, Timeout

# Removing an SSH key would lock us out of running guests, and a run is resumed with the series that it began with;
# the other kinds are small.
_KEPT = ("ssh-keys", "probe", "packages", "calibration", "series")
#: Part of every key. Increase it when the layout of stored artefacts changes.
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
    """A cache entry that can be rebuilt.

    Args:
        used: time of last use, in seconds since the epoch.
        path: directory of the entry.
        lock: name of the lock to hold while creating or changing the entry.
    """

    used: float
    path: Path
    lock: str

    @property
    def name(self) -> str:
        """Kind and name of the entry, for display."""
        return f"{self.path.parent.name}/{self.path.name}"

    def size(self) -> int:
        """Disk space of the entry in bytes; a hard-linked file counts once per entry."""
        return sum(
            path.lstat().st_blocks * 512
            for path in self.path.rglob("*")
            if path.is_file() and not path.is_symlink()
        )


@dataclass(frozen=True)
class Cache:
    """A cache below one directory.

    Args:
        root: the directory; created when first needed.
    """

    root: Path

    @classmethod
    def default(cls) -> Cache:
        """The cache of this user: ``$ORCHESTRATE_CACHE``, else the XDG cache directory."""
        named = os.environ.get("ORCHESTRATE_CACHE")
        # Absolute: programs that are given its paths run in other directories.
        return cls(
            Path(named).expanduser().absolute() if named else Path(platformdirs.user_cache_dir("orchestrate"))
        )

    @property
    def unfit_to_build(self) -> str | None:
        """Why no kernel can be built in this cache, and what to do; None if one can.

        The kernel's Makefile ("source directory cannot contain spaces or colons") refuses such paths.
        """
        if not any(character in str(self.root) for character in " :"):
            return None
        return (
            f"the path of the cache, {self.root}, has a space or a colon, and no kernel can be built there; set "
            "ORCHESTRATE_CACHE to another directory"
        )

    def path(self, kind: str, key: Mapping[str, Any]) -> Path:
        """The directory of the artefact of `kind` with `key`, whether or not it exists."""
        return self.root / kind / digest({"generation": GENERATION, **key})

    def has(self, kind: str, key: Mapping[str, Any]) -> bool:
        """Whether the artefact exists and is complete."""
        return (self.path(kind, key) / "key.json").is_file()

    def obtain(self, kind: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """Return the directory of an artefact; call `make` if it does not exist yet.

        Args:
            kind: kind of artefact, used as a directory name, e.g. ``kernel``.
            key: all inputs of the artefact, as JSON values.
            make: fills the empty directory that it is passed; if it raises, nothing is kept.
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
        """An inter-process lock of this cache; released when its holder dies."""
        directory = self.root / "locks"
        directory.mkdir(parents=True, exist_ok=True)
        return FileLock(directory / f"{name}.lock")

    def workspace(self, name: str) -> Path:
        """A directory that persists between uses and is not content-addressed, e.g. object files of a build."""
        directory = self.root / "workspace" / name
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def entries(self) -> Iterator[CacheEntry]:
        """All entries that can be rebuilt; SSH keys and small entries such as probe results are left out."""
        for key in self.root.glob("*/*/key.json"):
            kind = key.parent.parent.name
            if kind not in _KEPT:
                yield CacheEntry(key.stat().st_mtime, key.parent, f"{kind}-{key.parent.name}")
        for place in (self.root / "workspace").glob("build-*"):
            log = place / "build.log"
            if (place / "objects").is_dir():
                used = (log if log.is_file() else place).stat().st_mtime
                yield CacheEntry(used, place, place.name)
        for half_made in self.root.glob("*/.*-*"):  # the process that made it was killed
            yield CacheEntry(
                half_made.stat().st_mtime, half_made, f"{half_made.parent.name}-{half_made.name[1:21]}"
            )

    def remove(self, entry: CacheEntry) -> bool:
        """Remove an entry.

        Returns:
            False if the entry is in use and was therefore not removed.
        """
        try:
            with self.lock(entry.lock).acquire(timeout=0):
                shutil.rmtree(entry.path)
        except Timeout:
            return False
        return True

    @staticmethod
    def _touch(directory: Path) -> None:
        # `orchestrate results gc` removes entries by their time of last use.
        os.utime(directory / "key.json")


T = TypeVar("T")


@dataclass(frozen=True)
class Artefact(Generic[T]):
    """Something expensive: what it is made from, how it is made, and how it is read.

    One description serves to make it and to ask whether it is there.

    Args:
        kind: what it is, a directory name such as ``kernel``.
        key: all its inputs, as JSON values; None while one of them is not made yet.
        make: fills the empty directory it is given; on an exception nothing is kept.
        load: reads the directory.
        prepare: makes the inputs.
    """

    cache: Cache
    kind: str
    key: Callable[[], Mapping[str, Any] | None]
    make: Callable[[Path], None]
    load: Callable[[Path], T]
    prepare: Callable[[], object] = lambda: None

    @property
    def is_made(self) -> bool:
        """Whether it is in the cache. Makes nothing."""
        key = self.key()
        return key is not None and self.cache.has(self.kind, key)

    def existing(self) -> T | None:
        """It, if it is in the cache. Makes nothing."""
        return self.obtain() if self.is_made else None

    def obtain(self) -> T:
        """The artefact, from the cache or newly made.

        Raises:
            Exception: whatever `prepare`, `make` and `load` raise.
        """
        self.prepare()
        key = self.key()
        assert key is not None, f"{self.kind}: prepare() has not made all inputs"
        return self.load(self.cache.obtain(self.kind, key, self.make))
