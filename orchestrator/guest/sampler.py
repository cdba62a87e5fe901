# SPDX-License-Identifier: GPL-2.0-only
"""Reads the counters of a guest before, during and after a workload, and measures the cost of that.

A program in the guest (vm_images/guest/tools/sampler.c) reads the files and sends the changes; this module restores
complete readings. It samples only while a workload runs; the workload tells it when it starts and ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.guest.counters import parse_file
from orchestrator.guest.ssh import CommandTimeout, Guest, GuestLost, Remote
from orchestrator.spelling import hint
from orchestrator.store.observation import Metric, Observation, Phase, Sample

_PROGRAM = "sampler"
#: FIFO that a workload keeps open while it runs (guest_workloads/common/workload.h).
_FIFO = "/run/workload"
_EDGE_TIMEOUT_S = 120.0
_READY_TIMEOUT_S = 60.0
_NS_PER_S = 1e9
_NS_PER_MS = 1e6
_NODES = "/sys/devices/system/node/node[0-9]*"
_THP = "/sys/kernel/mm/transparent_hugepage"

#: Files read while the workload runs: those that change and are cheap to read.
DURING = ("/proc/vmstat", "/proc/meminfo", f"{_NODES}/meminfo", f"{_NODES}/vmstat")
#: Files read before and after the workload.
EDGES = (
    *DURING,
    "/proc/buddyinfo",
    "/proc/zoneinfo",
    f"{_NODES}/numastat",
    f"{_THP}/*",
    f"{_THP}/*/*",
    f"{_THP}/*/*/*",
)

#: Names for ``--sample`` -> patterns.
MONITORS: Mapping[str, tuple[str, ...]] = {
    "psi": ("/proc/pressure/*",),
    "pagetypeinfo": ("/proc/pagetypeinfo",),
    "slabinfo": ("/proc/slabinfo",),
    "memcg": ("/sys/fs/cgroup/memory.*", "/sys/fs/cgroup/*/memory.*"),
}
#: The name for the memory use of each process of the workload (smaps_rollup).
PROCESSES = "processes"

#: The metrics of :meth:`Sampler.observations`, in the form of metrics in a manifest.
SAMPLER_METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "sampler_ms.sum",
            "ms",
            None,
            help="guest CPU time spent on reading the counters while the workload ran; "
            "with icount, a millisecond is a million instructions",
        ),
        Metric(
            "samples.total", "samples", None, help="number of readings of the counters while the workload ran"
        ),
    )
}


@dataclass(frozen=True)
class Cost:
    """The cost of sampling to the guest while the workload ran.

    Args:
        readings: number of readings.
        cpu_ms: CPU time of the sampling program in guest milliseconds, without the time that the kernel and the
            SSH server need to send a reading.
    """

    readings: int
    cpu_ms: float


@dataclass(frozen=True)
class Reading:
    """One reading of all files.

    Args:
        guest_s, host_s: see :class:`Sample`.
        files: path -> content.
        cpu_ms: CPU time of the reading in guest milliseconds.
    """

    guest_s: float
    host_s: float
    files: Mapping[str, str]
    cpu_ms: float


def check_monitor(name: str) -> str:
    """A value of ``--sample``: a name of :data:`MONITORS`, :data:`PROCESSES`, or a glob(7) of files.

    Raises:
        UserError: it is none of them.
    """
    if name != PROCESSES and name not in MONITORS and not name.startswith(("/proc/", "/sys/")):
        known = (*MONITORS, PROCESSES)
        raise UserError(f"--sample {name}: {hint(name, known, 'choose')} Or name files below /proc or /sys.")
    return name


class FormatError(InfrastructureError):
    """The output of the sampling program is invalid."""


@dataclass
class Decoder:
    """Turns the lines of the sampling program into readings.

    Args:
        on_reading: called with each complete reading.
        on_ready: called when the program is waiting for a workload.
    """

    on_reading: Callable[[Reading], None]
    on_ready: Callable[[], None] = lambda: None
    _paths: dict[str, str] = field(default_factory=dict)
    _contents: dict[str, list[str]] = field(default_factory=dict)
    _began_ns: int | None = None
    _cpu_ns: int = 0
    _index: str = ""
    _whole: bool = False
    _lines_left: int = 0

    def feed(self, line: str) -> None:
        """Process one line, without its newline.

        Raises:
            FormatError: the line is not valid here.
        """
        try:
            self._take(line)
        except (ValueError, KeyError, IndexError) as error:
            raise FormatError(f"the guest's sampler printed an invalid line: {line[:100]!r}.") from error

    def _take(self, line: str) -> None:
        if self._lines_left:
            self._lines_left -= 1
            content = self._contents[self._index]
            if self._whole:
                content.append(line)
            else:
                number, _, text = line.partition(" ")
                content[_natural(number)] = text
            return
        kind, _, rest = line.partition(" ")
        words = rest.split(" ")
        if kind == "r" and self._began_ns is None:
            self.on_ready()
        elif kind == "s" and self._began_ns is None:
            began, cpu = words
            self._began_ns, self._cpu_ns = _natural(began), _natural(cpu)
        elif self._began_ns is None:
            raise ValueError(line)
        elif kind == "p":
            index, _, path = rest.partition(" ")
            self._paths[index] = path
        elif kind in ("f", "d"):
            self._index, count = words
            self._whole, self._lines_left = kind == "f", _natural(count)
            if self._whole:
                self._contents[self._index] = []
            elif self._lines_left > len(self._contents[self._index]):
                raise ValueError(line)
        elif kind == "x":
            del self._contents[rest]
        elif kind == "e":
            self._end(_natural(rest))
        else:
            raise ValueError(line)

    def _end(self, cpu_ns: int) -> None:
        assert self._began_ns is not None
        files = {
            self._paths[index]: "".join(f"{line}\n" for line in lines)
            for index, lines in self._contents.items()
        }
        guest_s = self._began_ns / _NS_PER_S
        self._began_ns = None
        self.on_reading(Reading(guest_s, time.time(), files, (cpu_ns - self._cpu_ns) / _NS_PER_MS))


def read_files(guest: Guest, patterns: Sequence[str], refresh: bool = False) -> Reading:
    """Read several files of the guest at once.

    Args:
        patterns: glob(7) patterns; a pattern without a match is not an error.
        refresh: fold per-CPU counters first, with ``/proc/sys/vm/stat_refresh``.

    Raises:
        InfrastructureError: the program that reads them failed.
        GuestLost, CommandTimeout: the guest did not answer.
    """
    readings: list[Reading] = []
    decoder = Decoder(readings.append)
    argv = [_PROGRAM, "--once", *(["--refresh"] if refresh else []), *patterns]
    done = guest.run(argv, timeout_s=_EDGE_TIMEOUT_S, check=True)
    for line in done.stdout.splitlines():
        decoder.feed(line)
    if len(readings) != 1:
        raise FormatError(f"the guest's sampler printed {len(readings)} readings instead of one.")
    return readings[0]


class Sampler:
    """Reads all counters of a guest before, during and after a workload.

    For example::

        sampler = Sampler(guest, 250)
        sampler.before(); sampler.start(); run(); sampler.stop(); sampler.after()

    Args:
        interval_ms: guest milliseconds between two readings while a workload runs; 0 to read only before and after.
        extra: what else to read each time, see :func:`check_monitor`.
        processes: also read the memory use of each process of the workload. For that the kernel walks its page
            tables with mmap_lock held for reading.
    """

    def __init__(
        self, guest: Guest, interval_ms: int, extra: Sequence[str] = (), *, processes: bool = False
    ) -> None:
        self._guest = guest
        self._interval_ms = interval_ms
        self._asked = {name: MONITORS.get(name, (name,)) for name in extra if name != PROCESSES}
        self._extra = [pattern for patterns in self._asked.values() for pattern in patterns]
        self._options = ["--processes"] if processes or PROCESSES in extra else []
        self._readings: list[tuple[Phase, Reading]] = []
        self._remote: Remote | None = None
        self._end = ""
        self._ready = threading.Event()

    def before(self) -> None:
        """Read all counters. Call it right before the workload.

        Raises:
            UserError: the guest has none of the files that were asked for.
        """
        self._edge("before")
        read = self._readings[-1][1].files
        for name, patterns in self._asked.items():
            if not any(fnmatch(path, pattern) for path in read for pattern in patterns):
                raise UserError(
                    f"--sample {name}: the guest's kernel has no file {' '.join(patterns)}, or it cannot be read."
                )

    def after(self) -> None:
        """Read all counters. Call it right after the workload.

        Raises:
            InfrastructureError: sampling ended before it was stopped, so that peaks may be missing.
        """
        if self._end:
            raise InfrastructureError(f"the guest's sampler ended prematurely: {self._end}")
        self._edge("after")

    def start(self) -> None:
        """Start the sampling program, and return once it is waiting for a workload.

        Raises:
            InfrastructureError: the program did not start.
            GuestLost: the connection broke.
        """
        if not self._interval_ms:
            return
        decoder = Decoder(lambda reading: self._readings.append(("during", reading)), self._ready.set)
        self._remote = self._guest.spawn(
            [
                _PROGRAM, "--interval-ms", str(self._interval_ms), "--while", _FIFO,
                *self._options, *DURING, *self._extra,
            ],
            on_line=decoder.feed,
        )  # fmt: skip
        if not self._ready.wait(_READY_TIMEOUT_S):
            if not self._guest.alive:
                raise self._guest.lost()
            finished = self._remote.stop()
            raise InfrastructureError(f"the guest's sampler did not start: {finished.stderr.strip()}")

    def stop(self) -> None:
        """Stop sampling. Readings so far are kept, even if the guest is lost by now."""
        if self._remote is None:
            return
        remote, self._remote = self._remote, None
        # The next command to the guest raises the error; raising it here would hide how the workload ended.
        with suppress(GuestLost, CommandTimeout):
            finished = remote.stop()
            if finished.status != 0 and finished.signal != "SIGTERM":
                self._end = f"{finished.end}. {finished.stderr.strip()}"

    @property
    def samples(self) -> list[Sample]:
        """All samples so far, in order of time."""
        return [
            Sample(reading.guest_s, reading.host_s, phase, *value)
            for phase, reading in self._readings
            for path, text in reading.files.items()
            for value in parse_file(path, text)
        ]

    @property
    def cost(self) -> Cost:
        """The cost of sampling while the workload ran."""
        during = [reading.cpu_ms for phase, reading in self._readings if phase == "during"]
        return Cost(len(during), sum(during))

    def observations(self) -> list[Observation]:
        """The cost as observations of :data:`SAMPLER_METRICS`."""
        values = {"sampler_ms.sum": self.cost.cpu_ms, "samples.total": float(self.cost.readings)}
        return [Observation(name, SAMPLER_METRICS[name].unit, value) for name, value in values.items()]

    def _edge(self, phase: Phase) -> None:
        self._readings.append((phase, read_files(self._guest, (*EDGES, *self._extra), refresh=True)))


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)
