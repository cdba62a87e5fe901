# SPDX-License-Identifier: GPL-2.0-only
"""A content-addressed cache of everything expensive: source trees, kernels, images, probe results.

The key of an artefact is the hash of all its inputs. An artefact is built in a temporary directory, written to the disk
and renamed into place, so an interruption leaves nothing half-made, and several processes can share one cache.

An entry has a seal, ``seal.json``: size, mtime and SHA-256 of each file. Each use compares sizes and mtimes, and the
first use after a boot of the host the content too. A damaged entry counts as missing, so it is made again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import platformdirs
from filelock import FileLock, Timeout

from orchestrator.errors import UserError
from orchestrator.output import replace_file

log = logging.getLogger(__name__)

# Removing an SSH key would lock us out of running guests, and a run is resumed with the series that it began with;
# the other kinds are small.
_KEPT = ("ssh-keys", "probe", "packages", "calibration", "series")
#: Part of every key. Increase it when the layout of stored artefacts changes.
GENERATION = 1
#: Kinds of entries after which the limit of the cache is checked; to measure its size takes a moment.
_LARGE = ("image", "kernel", "source", "boot")
_KEY = "key.json"
_SEAL = "seal.json"
#: Entries that this process uses, with the open file that holds the lock. Released when the process ends.
_held: dict[Path, int] = {}
_held_lock = threading.Lock()
#: Entries whose content this process has compared; a read-only cache cannot record that.
_compared: set[Path] = set()


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
class Collected:
    """An entry that was to be removed from the cache.

    Args:
        size: its size in bytes.
        is_gone: whether it was removed; False if a process uses it.
    """

    entry: CacheEntry
    size: int
    is_gone: bool


@dataclass(frozen=True)
class Cache:
    """A cache below one directory.

    Args:
        root: the directory; created when first needed.
        limit_bytes: size that it is reduced to after something large was added to it; None for no limit.
    """

    root: Path
    limit_bytes: float | None = None

    @classmethod
    def default(cls) -> Cache:
        """The cache of this user: ``$ORCHESTRATE_CACHE``, else the XDG cache directory.

        ``$ORCHESTRATE_CACHE_GIB`` limits its size.

        Raises:
            UserError: the limit is not a positive number.
        """
        named = os.environ.get("ORCHESTRATE_CACHE")
        limit = os.environ.get("ORCHESTRATE_CACHE_GIB")
        limit_bytes = None
        if limit:
            try:
                limit_bytes = float(limit) * 2**30
            except ValueError:
                limit_bytes = 0.0
            if not 0 < limit_bytes < float("inf"):
                raise UserError(f"ORCHESTRATE_CACHE_GIB={limit}: write a number of GiB above 0, e.g. 50.")
        # Absolute: programs that are given its paths run in other directories.
        root = (
            Path(named).expanduser().absolute() if named else Path(platformdirs.user_cache_dir("orchestrate"))
        )
        return cls(root, limit_bytes)

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
        """Whether the artefact exists and is undamaged."""
        return self._fault(self.path(kind, key), key) is None

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
            for left in final.parent.glob(f".{final.name}-*"):  # its maker was killed: we have the lock now
                shutil.rmtree(left, ignore_errors=True)
            if final.exists():
                what = self._fault(final, key)
                log.warning("%s/%s in the cache is damaged: %s; making it again", kind, final.name, what)
            working = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
            try:
                make(working)
                (working / _KEY).write_text(json.dumps(key, indent=2, sort_keys=True) + "\n")
                seal(working)
                working.chmod(0o755)
                _write_to_disk(working)
                if final.exists():
                    shutil.rmtree(final)
                working.rename(final)
                _sync(final.parent)
            except BaseException:
                shutil.rmtree(working, ignore_errors=True)
                raise
        if self.limit_bytes is not None and kind in _LARGE:
            self.hold(final)
            for each in self.collect(limit_bytes=self.limit_bytes):
                log.info(
                    "the cache is too large: %s %s", "removed" if each.is_gone else "kept", each.entry.name
                )
        return final

    def hold(self, directory: Path) -> bool:
        """Keep an entry from being removed by :meth:`remove` for as long as this process lives.

        Returns:
            False if the entry was removed in the meantime. True if it is protected, or cannot be: on a file system
            without locks, or without a free file descriptor.
        """
        with _held_lock:
            if directory in _held and _is_open_file(directory / _KEY, _held[directory]):
                return True
            try:
                descriptor = os.open(directory / _KEY, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
            except OSError:
                return True
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            if not _is_open_file(directory / _KEY, descriptor):
                os.close(descriptor)
                return False
            previous = _held.pop(directory, None)
            if previous is not None:  # the entry was made again
                os.close(previous)
            _held[directory] = descriptor
            return True

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
        for key in self.root.glob(f"*/*/{_KEY}"):
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
                try:
                    descriptor = os.open(entry.path / _KEY, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:  # half-made, or an object directory, which its user has locked
                    shutil.rmtree(entry.path)
                    return True
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # A use that begins now does not find the entry, and makes it again.
                    shutil.rmtree(entry.path)
                finally:
                    os.close(descriptor)
        except (Timeout, BlockingIOError):
            return False
        return True

    @staticmethod
    def _fault(directory: Path, key: Mapping[str, Any]) -> str | None:
        """Why the entry of `key` in `directory` cannot be used; None if it can."""
        try:
            stored = json.loads((directory / _KEY).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return f"{_KEY} is missing"
        except (OSError, ValueError, RecursionError):
            return f"{_KEY} cannot be read"
        # A key may have tuples, which JSON stores as lists.
        return damage(directory) if stored == json.loads(json.dumps(key)) else f"{_KEY} is of another key"

    def collect(
        self,
        max_age_s: float | None = None,
        limit_bytes: float | None = None,
        *,
        dry_run: bool = False,
        kind: str | None = None,
    ) -> Iterator[Collected]:
        """Remove entries, the least recently used first; those that a process uses are kept.

        Args:
            max_age_s: remove entries that were not used for this long; None: age does not matter.
            limit_bytes: also remove entries until the rest has at most this size; None: size does not matter.
            dry_run: remove nothing.
            kind: only entries of this kind; None for all.

        Returns:
            All entries that are to be removed, with their sizes.
        """
        entries = [
            (entry, entry.size())
            for entry in sorted(self.entries())
            if kind is None or entry.path.parent.name == kind
        ]
        total = sum(size for _, size in entries)
        for entry, size in entries:
            is_old = max_age_s is not None and time.time() - entry.used > max_age_s
            if not is_old and (limit_bytes is None or total <= limit_bytes):
                continue
            is_gone = dry_run or self.remove(entry)
            total -= size if is_gone else 0
            yield Collected(entry, size, is_gone)

    @staticmethod
    def _touch(directory: Path) -> None:
        # `orchestrate results gc` removes entries by their time of last use. The cache may be read-only.
        with suppress(OSError):
            os.utime(directory / _KEY)


def seal(directory: Path) -> None:
    """Write the seal of an entry: size, mtime and SHA-256 of each of its files as they are."""
    files = {}
    for name, path in _sealed_files(directory).items():
        status = path.stat()
        files[name] = [status.st_size, _mtime(name, status), _content_digest(path)]
    _write_seal(directory, files)


def damage(directory: Path) -> str | None:
    """What is wrong with an entry; None if it is as it was made.

    Content is compared on the first use after a boot of the host, and for files whose mtime has changed. An entry
    without a seal is from an earlier version of this program, and gets one.
    """
    try:
        text = (directory / _SEAL).read_text(encoding="utf-8")
    except FileNotFoundError:
        if directory not in _compared:
            with suppress(OSError):  # a read-only cache
                seal(directory)
            _compared.add(directory)
        return None
    except (OSError, UnicodeDecodeError) as error:
        return f"{_SEAL} cannot be read: {error}"
    try:
        content = json.loads(text)
        is_first_use = content["boot_id"] != _boot_id() and directory not in _compared
        files = {
            name: (int(size), mtime, str(digest)) for name, (size, mtime, digest) in content["files"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{_SEAL} is not valid"
    has_changed = False
    for name, (size, mtime, expected) in files.items():
        path = directory / name
        try:
            status = path.stat()
            if status.st_size != size:
                return f"{name} has {status.st_size} bytes instead of {size}"
            if is_first_use or _mtime(name, status) != mtime:
                if _content_digest(path) != expected:
                    return f"the content of {name} has changed"
                has_changed = True
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    if is_first_use or has_changed:
        with suppress(OSError):  # a read-only cache
            _write_seal(
                directory,
                {
                    name: [size, _mtime(name, (directory / name).stat()), expected]
                    for name, (size, _, expected) in files.items()
                },
            )
    _compared.add(directory)
    return None


def _content_digest(path: Path) -> str:
    """The SHA-256 of a file for its seal; of a sparse file that of its data and their places, as holes take long.

    A file that was copied with other holes has another digest, and its entry is made again.
    """
    status = path.stat()
    if status.st_blocks * 512 >= status.st_size:
        return file_digest(path)
    whole = hashlib.sha256()
    with path.open("rb") as stream:
        at = 0
        while True:
            try:
                begin = os.lseek(stream.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # there is no data after `at` (lseek(2))
                    raise
                return whole.hexdigest()
            at = os.lseek(stream.fileno(), begin, os.SEEK_HOLE)
            whole.update(f"{begin}-{at}:".encode())
            os.lseek(stream.fileno(), begin, os.SEEK_SET)
            left = at - begin
            while left > 0 and (chunk := os.read(stream.fileno(), min(left, 1 << 20))):
                whole.update(chunk)
                left -= len(chunk)


def _sealed_files(directory: Path) -> dict[str, Path]:
    """The files of an entry that never change: of a git repository only the objects, as git writes the others."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        is_of_git, _, inner = name.partition(".git/")
        if path.is_symlink() or not path.is_file() or name in (_KEY, _SEAL):
            continue
        if inner and is_of_git and not inner.startswith("objects/"):
            continue
        found[name] = path
    return found


def _mtime(name: str, status: os.stat_result) -> int | None:
    """The mtime in ns; None for an object of git, whose mtime git changes when it would write the object again."""
    return None if ".git/objects/" in name else status.st_mtime_ns


def _write_seal(directory: Path, files: Mapping[str, list[int | str | None]]) -> None:
    content = {"boot_id": _boot_id(), "files": files}
    replace_file(directory / _SEAL, (json.dumps(content, indent=1) + "\n").encode())


@lru_cache(maxsize=1)
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _write_to_disk(directory: Path) -> None:
    """Write files and directories to the disk, so that the rename that follows cannot survive a crash without them."""
    for path in directory.rglob("*"):
        if not path.is_symlink() and (path.is_file() or path.is_dir()):
            _sync(path)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_open_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


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
        directory = self.cache.obtain(self.kind, key, self.make)
        while not self.cache.hold(directory):  # `orchestrate results gc` removed it just now
            directory = self.cache.obtain(self.kind, key, self.make)
        return self.load(directory)
