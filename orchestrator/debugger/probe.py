# SPDX-License-Identifier: GPL-2.0-only
"""Probes of a cell: gdb stops the guest at points of the kernel, does what they say, and lets it go on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.debugger.batch import stop_event
from orchestrator.debugger.counters import read_vmstat
from orchestrator.debugger.gdb import Gdb, Stop, StopTimeout
from orchestrator.debugger.hold import Held, Holder
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.kernel.elf import has_dwarf, symbol_address
from orchestrator.store.observation import Observation, Sample
from orchestrator.store.probe import Probe, field_metrics, hits_metric

#: File in a cell's log directory: one line of JSON per hit at which a probe did something.
EVENTS = "probes.jsonl"
#: Host seconds in which gdb attaches, for which a task is held without its partner, and in which the session ends.
ATTACH_S = 300.0
HOLD_S = 20.0
_END_S = 60.0
_LOOK_S = 0.2
#: For gdb: stops at no further hit, but counts them.
_NEVER = 1 << 30


def probes_of(vmlinux: Path, probes: Sequence[Probe]) -> tuple[Probe, ...]:
    """The probes whose functions a kernel has; a baseline lacks those of a series.

    Raises:
        UserError: one of them needs debugging information, which this kernel does not have.
    """
    there = tuple(probe for probe in probes if _has(vmlinux, probe.at))
    wanting = next((probe for probe in there if probe.needs_dwarf), None)
    if wanting is not None and not has_dwarf(vmlinux):
        raise UserError(
            f"probe at {wanting.at}: arguments, fields and counters need a kernel with debugging information."
        )
    return there


def check_kernels(kernels: Collection[Path], probes: Sequence[Probe]) -> None:
    """Check that each probe is in one of the kernels of a run.

    Args:
        kernels: the vmlinux of each.

    Raises:
        UserError: no kernel has a function.
    """
    for probe in probes:
        if kernels and not any(_has(vmlinux, probe.at) for vmlinux in kernels):
            raise UserError(
                f"probe at {probe.at}: no kernel of this run has this function; it may be inlined, or misspelled."
            )


def _has(vmlinux: Path, function: str) -> bool:
    try:
        symbol_address(vmlinux, function)
    except UserError:
        return False
    return True


@dataclass
class Probed:
    """What the probes of a cell found.

    Args:
        troubles: what went wrong, one sentence each.
    """

    observations: list[Observation] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)


class ProbeSession:
    """gdb with the probes of one cell, on a thread of its own; a guest that stands still answers nobody.

    Args:
        socket: where QEMU serves gdb.
        vmlinux: the guest's kernel.
        log_directory: directory for :data:`EVENTS` and gdb's transcript.
        attach: makes the gdb, for tests.
    """

    def __init__(
        self,
        socket: Path,
        vmlinux: Path,
        probes: Sequence[Probe],
        log_directory: Path,
        attach: Callable[[Path, Path, bytes | None, Path], Gdb] = Gdb.attach,
    ) -> None:
        self._arguments = (socket, vmlinux, None, log_directory / "gdb.log")
        self._attach = attach
        self._vmlinux = vmlinux
        self._probes = tuple(probes)
        self._events = log_directory / EVENTS
        self._found = Probed()
        self._error: BaseException | None = None
        self._is_up = threading.Event()
        self._done = threading.Event()
        self._numbers: dict[int, Probe] = {}
        self._hits: dict[str, int] = {}
        self._stops: dict[str, int] = {}
        self._values: dict[str, float] = {}
        self._held: dict[str, tuple[Probe, Held, float]] = {}
        self._holder: Holder | None = None
        self._thread = threading.Thread(target=self._run, name="probes", daemon=True)

    def start(self) -> None:
        """Attach, set the probes and let the guest go on.

        Raises:
            UserError: a probe does not fit this kernel.
            InfrastructureError: gdb cannot attach, or not in time.
        """
        self._probes = probes_of(self._vmlinux, self._probes)
        if not self._probes:
            return
        self._thread.start()
        if not self._is_up.wait(ATTACH_S):
            raise InfrastructureError(f"gdb did not attach to the guest within {ATTACH_S:g} s.")
        if self._error is not None:
            raise self._error

    def stop(self) -> Probed:
        """Remove the probes and detach; the guest goes on.

        Raises:
            InfrastructureError: gdb ended, or does not respond.
        """
        self._done.set()
        if not self._probes:
            return self._found
        self._thread.join(_END_S)
        if self._thread.is_alive():
            raise InfrastructureError(f"gdb did not detach from the guest within {_END_S:g} s.")
        if self._error is not None:
            raise self._error
        return self._found

    def _run(self) -> None:
        try:
            with self._attach(*self._arguments) as gdb:
                for probe in self._probes:
                    number = gdb.break_at(probe.at, condition=probe.when, first=True)
                    self._numbers[number] = probe
                    if probe.only_counts:
                        gdb.ignore(number, _NEVER)
                    elif probe.hit:
                        gdb.ignore(number, probe.hit - 1)
                if any(probe.hold for probe in self._probes):
                    self._holder = Holder(gdb, self._vmlinux)
                gdb.continue_()
                self._is_up.set()
                self._watch(gdb)
                self._finish(gdb)
        except BaseException as error:
            self._error = error
        finally:
            self._is_up.set()

    def _watch(self, gdb: Gdb) -> None:
        while not self._done.is_set():
            try:
                stop = gdb.wait_stop(_LOOK_S)
            except StopTimeout:
                late = [
                    name for name, (_, _, since) in self._held.items() if time.monotonic() - since > HOLD_S
                ]
                if not late:
                    continue
                gdb.interrupt()
                for name in late:
                    probe, _, _ = self._held[name]
                    self._release(name)
                    self._end_hold(gdb, name)
                    self._trouble(
                        f"hold {name}: nobody came to the other point within {HOLD_S:g} s of {probe.at}."
                    )
            else:
                self._at(gdb, stop)
            while self._holder is not None and self._holder.pending is not None:
                pending, self._holder.pending = self._holder.pending, None
                self._at(gdb, pending)
            gdb.continue_()

    def _at(self, gdb: Gdb, stop: Stop) -> None:
        probe = self._numbers.get(stop.breakpoint)
        if probe is None:
            return
        self._stops[probe.at] = stops = self._stops.get(probe.at, 0) + 1
        event = {**stop_event(stop, []), "event": "probe", "at": probe.at, "hit": probe.hit or stops}
        if probe.does("capture"):
            self._capture(gdb, probe, event)
        else:
            del event["args"], event["backtrace"]
        if probe.does("sample"):
            samples = read_vmstat(gdb, time.time())
            self._found.samples += samples
            event["sample"] = {sample.counter: sample.value for sample in samples}
        if probe.value is not None:
            gdb.select(stop.thread)
            gdb.return_from(probe.value)
            event["returned"] = probe.value
        if probe.hold:
            event["hold"] = self._meet(gdb, probe, stop)
        with self._events.open("a", encoding="utf-8") as log:
            log.write(json.dumps(event) + "\n")
        if probe.hit or stops >= probe.limit:
            gdb.ignore(stop.breakpoint, _NEVER)

    def _capture(self, gdb: Gdb, probe: Probe, event: dict[str, Any]) -> None:
        event["backtrace"] = [frame.function or f"{frame.pc:#x}" for frame in gdb.backtrace()]
        event["fields"] = {}
        for expression in probe.fields:
            try:
                value = gdb.evaluate(expression)
            except UserError as error:  # e.g. a null pointer at this hit
                event["fields"][expression] = str(error)
                continue
            event["fields"][expression] = value
            if isinstance(value, int):
                first, last = field_metrics(probe, expression)
                self._values.setdefault(first, value)
                self._values[last] = value

    def _meet(self, gdb: Gdb, probe: Probe, stop: Stop) -> str:
        """Hold this task, or release the one that waits for it."""
        assert self._holder is not None
        waiting = self._held.get(probe.hold)
        if waiting is None:
            self._held[probe.hold] = (probe, self._holder.hold(stop), time.monotonic())
            return "waits"
        if waiting[0] is probe:
            return "goes on: another task waits here already"
        self._release(probe.hold)
        self._end_hold(gdb, probe.hold)
        return f"meets {waiting[0].at}"

    def _end_hold(self, gdb: Gdb, name: str) -> None:
        """The probes of a hold have done their work, and only count from now on."""
        for number, probe in self._numbers.items():
            if probe.hold == name:
                gdb.ignore(number, _NEVER)

    def _release(self, name: str) -> None:
        assert self._holder is not None
        _, held, _ = self._held.pop(name)
        self._holder.release(held)

    def _trouble(self, what: str) -> None:
        self._found.troubles.append(what)
        with self._events.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"event": "trouble", "what": what}) + "\n")

    def _finish(self, gdb: Gdb) -> None:
        gdb.interrupt()
        for name in list(self._held):
            self._release(name)
        if self._holder is not None:
            self._holder.restore()
        for number, probe in self._numbers.items():
            hits = gdb.hits(number)
            self._found.observations.append(Observation(hits_metric(probe), "hits", float(hits)))
        self._found.observations += [
            Observation(name, "value", float(value)) for name, value in self._values.items()
        ]
