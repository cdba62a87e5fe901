# SPDX-License-Identifier: GPL-2.0-only
"""Counters of a guest before, while and after a workload runs, and what reading them cost.

A program in the guest (vm_images/guest/tools/sampler.c) reads the files and sends what changed; here that
becomes whole readings again. It samples only while a workload runs: the workload tells it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from orchestrator.errors import InfrastructureError
from orchestrator.guest.counters import parse_file
from orchestrator.guest.ssh import CommandTimeout, Guest, GuestLost, Remote
from orchestrator.store.observation import Metric, Observation, Phase, Sample

_PROGRAM = "sampler"
#: Opened by each workload for as long as it runs (guest_workloads/common/workload.h).
_FIFO = "/run/workload"
_EDGE_TIMEOUT_S = 120.0
_READY_TIMEOUT_S = 60.0
_NS_PER_S = 1e9
_NS_PER_MS = 1e6
_NODES = "/sys/devices/system/node/node[0-9]*"
_THP = "/sys/kernel/mm/transparent_hugepage"

#: Read while the workload runs: what moves, and is cheap to read.
DURING = ("/proc/vmstat", "/proc/meminfo", f"{_NODES}/meminfo", f"{_NODES}/vmstat")
#: Read before and after.
EDGES = (
    *DURING,
    "/proc/buddyinfo",
    "/proc/zoneinfo",
    f"{_NODES}/numastat",
    f"{_THP}/*",
    f"{_THP}/*/*",
    f"{_THP}/*/*/*",
)

#: What :meth:`Sampler.observations` measures, in the form of a manifest's metrics.
SAMPLER_METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "sampler_ms.sum",
            "ms",
            None,
            help="guest CPU time that reading the counters took while the workload ran; "
            "under icount a millisecond is a million instructions",
        ),
        Metric("samples.total", "samples", None, help="readings of the counters while the workload ran"),
    )
}


@dataclass(frozen=True)
class Cost:
    """What reading the counters while the workload ran cost the guest.

    Args:
        readings: how many.
        cpu_ms: CPU time of the sampling program, in ms of the guest's time; what the kernel and the SSH
            server take to send a reading comes on top.
    """

    readings: int
    cpu_ms: float


@dataclass(frozen=True)
class Reading:
    """All files at one time.

    Args:
        guest_s, host_s: as in :class:`Sample`.
        files: path -> content.
        cpu_ms: the guest's CPU time it took, in ms.
    """

    guest_s: float
    host_s: float
    files: Mapping[str, str]
    cpu_ms: float


class FormatError(InfrastructureError):
    """The sampling program printed something else than it should."""


@dataclass
class Decoder:
    """Turns the lines of the sampling program into readings.

    Args:
        on_reading: called with each complete one.
        on_ready: called when the program waits for a workload.
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
        """Take one line, without its newline.

        Raises:
            FormatError: it is not what may come now.
        """
        try:
            self._take(line)
        except (ValueError, KeyError, IndexError) as error:
            raise FormatError(f"the guest's sampler printed {line[:100]!r}, which makes no sense.") from error

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
    """Read files of the guest, all in one go.

    Args:
        patterns: glob(7) patterns; one that matches nothing is no error.
        refresh: fold per-CPU counters first, by ``/proc/sys/vm/stat_refresh``.

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
        raise FormatError(f"the guest's sampler printed {len(readings)} readings where one was due.")
    return readings[0]


class Sampler:
    """Reads all counters of a guest around and during a workload.

    For example::

        sampler = Sampler(guest, 250)
        sampler.before(); sampler.start(); run(); sampler.stop(); sampler.after()

    Args:
        interval_ms: guest time between two readings while a workload runs; 0 reads only before and after.
        extra: further files, e.g. of a control group, as glob(7) patterns; read each time.
        processes: read the memory of each process of the workload as well; the kernel walks its page tables for
            that, with its address space locked for reading.
    """

    def __init__(
        self, guest: Guest, interval_ms: int, extra: Sequence[str] = (), *, processes: bool = False
    ) -> None:
        self._guest = guest
        self._interval_ms = interval_ms
        self._extra = tuple(extra)
        self._options = ["--processes"] if processes else []
        self._readings: list[tuple[Phase, Reading]] = []
        self._remote: Remote | None = None
        self._end = ""
        self._ready = threading.Event()

    def before(self) -> None:
        """Read all counters; the last thing before the workload."""
        self._edge("before")

    def after(self) -> None:
        """Read all counters; the first thing after the workload.

        Raises:
            InfrastructureError: sampling had ended before it was stopped, so that a peak may be missing.
        """
        if self._end:
            raise InfrastructureError(f"the guest's sampler ended by itself: {self._end}")
        self._edge("after")

    def start(self) -> None:
        """Begin to sample as soon as a workload runs; returns when that is watched for.

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
        """End sampling. What was read until then is kept, also where the guest is gone by now."""
        if self._remote is None:
            return
        remote, self._remote = self._remote, None
        # Whoever talks to the guest next is told; here it would hide how the workload ended.
        with suppress(GuestLost, CommandTimeout):
            finished = remote.stop()
            if finished.status != 0 and finished.signal != "SIGTERM":
                self._end = f"{finished.end}. {finished.stderr.strip()}"

    @property
    def samples(self) -> list[Sample]:
        """Everything read until now, in the order of time."""
        return [
            Sample(reading.guest_s, reading.host_s, phase, *value)
            for phase, reading in self._readings
            for path, text in reading.files.items()
            for value in parse_file(path, text)
        ]

    @property
    def cost(self) -> Cost:
        """What sampling cost while the workload ran."""
        during = [reading.cpu_ms for phase, reading in self._readings if phase == "during"]
        return Cost(len(during), sum(during))

    def observations(self) -> list[Observation]:
        """The cost as observations, see :data:`SAMPLER_METRICS`."""
        values = {"sampler_ms.sum": self.cost.cpu_ms, "samples.total": float(self.cost.readings)}
        return [Observation(name, SAMPLER_METRICS[name].unit, value) for name, value in values.items()]

    def _edge(self, phase: Phase) -> None:
        self._readings.append((phase, read_files(self._guest, (*EDGES, *self._extra), refresh=True)))


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)
