# SPDX-License-Identifier: GPL-2.0-only
"""Commands as workloads: any program of the guest or of the user, measured from outside.

``guest_workloads/command`` starts the program and reports time, memory and faults. What the program prints becomes
metrics by regular expressions. Its files are copied into the guest before the counters are read.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import re
import tarfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.guest.image import WORKLOADS, needed_libraries
from orchestrator.guest.ssh import Guest
from orchestrator.process import run
from orchestrator.store.observation import CLOCK, Metric

#: The program that starts the command (guest_workloads/command).
PROGRAM = "command"
#: Directory in the guest where the command runs, and where files go by default. It is the first in its PATH.
DIRECTORY = "/work"
_PATH = f"{DIRECTORY}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Directories that the guest's loader searches by itself (ld.so(8) of Debian).
_SEARCHED = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib", "/lib64", "/usr/lib64")
_COPY_TIMEOUT_S = 600.0
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_LIBRARY = re.compile(r"^\s+(?:(\S+) => )?(/\S+|not found)(?: \(0x[0-9a-f]+\))?$", re.MULTILINE)
_FIELD = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_ELF = b"\x7fELF"

#: The metrics of every command, in the form of metrics in a manifest.
COMMAND_METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            f"run_{CLOCK}.sum",
            CLOCK,
            "lower",
            primary=True,
            clock=True,
            help="time from the start of the program to its end",
        ),
        Metric(
            f"cpu_{CLOCK}.sum", CLOCK, "lower", clock=True, help="CPU time of the program and its children"
        ),
        Metric("rss_kib.max", "KiB", "lower", help="resident memory of its largest process"),
        Metric("faults.total", "faults", "lower", help="page faults of the program and its children"),
    )
}


@dataclass(frozen=True)
class GuestFile:
    """A file to be copied into the guest.

    Args:
        path: absolute path in the guest.
        mode: permission bits.
    """

    path: str
    mode: int
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class GuestCommand:
    """A program to run, and what goes with it.

    Args:
        argv: the command line; ``{NAME}`` stands for the value of a parameter, ``{seed}`` for the seed.
        files: files to copy into the guest.
        fetched: files of the guest to keep beside the logs of the cell.
        patterns: metric -> regular expression of a number in what the program prints.
    """

    argv: tuple[str, ...]
    files: tuple[GuestFile, ...] = ()
    fetched: tuple[str, ...] = ()
    patterns: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A digest of the files, so that a resumed run notices that one has changed."""
        total = hashlib.sha256()
        for each in self.files:
            total.update(f"{each.path}\0{each.mode}\0{len(each.content)}\0".encode())
            total.update(each.content)
        return total.hexdigest()[:16]

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the program: where it finds its files and libraries."""
        places = dict.fromkeys(
            posixpath.dirname(each.path) for each in self.files if ".so" in posixpath.basename(each.path)
        )
        foreign = [place for place in places if place not in _SEARCHED]
        return {"PATH": _PATH, **({"LD_LIBRARY_PATH": ":".join(foreign)} if foreign else {})}

    @property
    def fields(self) -> list[str]:
        """The parameters that :attr:`argv` names."""
        return [name for word in self.argv for name in _FIELD.findall(word)]

    def arguments(self, values: Mapping[str, str], clock: str) -> list[str]:
        """The command line for the guest.

        Args:
            values: parameter -> value, for ``{NAME}`` in :attr:`argv`.
            clock: ``insns`` or ``ns``.
        """
        words = [_FIELD.sub(lambda found: values.get(found[1], found[0]), word) for word in self.argv]
        return [f"{WORKLOADS}/{PROGRAM}", "--clock", clock, "--", *words]


def bring(guest: Guest, files: Sequence[GuestFile]) -> None:
    """Copy files into the guest, and make the directory that the command runs in.

    Raises:
        UserError: the guest has no room for them.
        GuestLost, CommandTimeout: the guest did not answer.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        directory = tarfile.TarInfo(DIRECTORY.lstrip("/"))
        directory.type, directory.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(directory)
        for each in files:
            member = tarfile.TarInfo(each.path.lstrip("/"))
            member.mode, member.size = each.mode, len(each.content)
            archive.addfile(member, io.BytesIO(each.content))
    done = guest.run(["tar", "x", "-C", "/"], stdin=packed.getvalue(), timeout_s=_COPY_TIMEOUT_S)
    if done.status != 0:
        mib = sum(len(each.content) for each in files) >> 20
        said = (done.stderr.strip().splitlines() or [done.end])[-1]
        raise UserError(f"cannot copy {len(files)} files ({mib} MiB) into the guest: {said}.")


def files_of(host: Path, place: str) -> list[GuestFile]:
    """A file of this host, or all files below a directory, with the shared libraries that they need.

    Args:
        place: path in the guest; below :data:`DIRECTORY` if it is not absolute.

    Raises:
        UserError: it cannot be read, or one of its libraries is not on this host.
    """
    target = posixpath.normpath(posixpath.join(DIRECTORY, place))
    try:
        if host.is_dir():
            sources = {
                f"{target}/{each.relative_to(host).as_posix()}": each
                for each in sorted(host.rglob("*"))
                if each.is_file()
            }
        else:
            sources = {target: host}
        found = {}
        for path, source in sources.items():
            runs = source.stat().st_mode & 0o111 != 0
            found[path] = GuestFile(path, 0o755 if runs else 0o644, source.read_bytes())
    except OSError as error:
        raise UserError(
            f"{error.filename or host}: cannot be copied into the guest ({error.strerror})."
        ) from error
    for path, source in sources.items():
        if found[path].content.startswith(_ELF):
            for library in libraries_of(source):
                found.setdefault(str(library), GuestFile(str(library), 0o755, library.read_bytes()))
    return list(found.values())


def libraries_of(program: Path) -> list[Path]:
    """The loader and all shared libraries of a program of this host, where ldd(1) finds them.

    Raises:
        UserError: one of them is missing.
    """
    interpreter, needed = needed_libraries(program)
    if interpreter is None and not needed:
        return []  # static
    printed = run(["ldd", str(program.absolute())], check=False).stdout
    libraries = []
    for found in _LIBRARY.finditer(printed):
        if found[2] == "not found":
            raise UserError(f"{program} needs the shared library {found[1]}, which is not on this host.")
        libraries.append(Path(found[2]))
    return libraries


def values_in(text: str, patterns: Mapping[str, str]) -> dict[str, float]:
    """The number that each pattern finds: its first group, or the whole match; of several matches the last.

    Raises:
        UserError: a pattern finds nothing, or no number.
    """
    values = {}
    for name, pattern in patterns.items():
        found = next(iter(deque(re.finditer(pattern, text, re.MULTILINE), maxlen=1)), None)
        if found is None:
            raise UserError(f"its output has nothing for the metric {name}: {pattern}")
        number = found[1] if found.re.groups else found[0]
        if number is None or not _NUMBER.fullmatch(number.strip()):
            raise UserError(f"its output has no number for the metric {name}, but {number!r}: {pattern}")
        values[name] = float(number)
    return values


def check_pattern(pattern: str) -> str:
    """A regular expression of a metric, if it is valid.

    Raises:
        UserError: it is not a regular expression of Python.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{pattern!r} is not a regular expression of Python: {error}.") from error
    return pattern


def records_of(values: Mapping[str, float], metrics: Iterable[Metric], clock: str) -> list[dict[str, Any]]:
    """Records of values as a workload would print them.

    Args:
        clock: ``insns`` or ``ns``, for names with ``{clock}``.
    """
    units = {metric.name: metric.by(clock) for metric in metrics}
    return [
        {"metric": units[name].name, "unit": units[name].unit, "value": value}
        for name, value in values.items()
    ]
