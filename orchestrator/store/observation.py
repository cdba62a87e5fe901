# SPDX-License-Identifier: GPL-2.0-only
"""What a cell measures: metrics, their values, and readings of the guest's counters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.store.record import Record

Better = Literal["lower", "higher"] | None
Phase = Literal["before", "during", "after"]

#: What stands for the unit of time in names and units: insns under icount, else ns.
CLOCK = "{clock}"
CLOCKS = ("insns", "ns")


@dataclass(frozen=True)
class Metric(Record):
    """What is measured.

    Args:
        name: ``noun_unit.statistic``; may hold ``{clock}``.
        unit: of its values; may be ``{clock}``.
        better: the direction that is an improvement; None where neither is.
        primary: whether a comparison is judged by it.
        clock: whether the name holds ``{clock}``.
        help: one sentence that says exactly what it counts.
    """

    name: str
    unit: str
    better: Better
    primary: bool = False
    clock: bool = False
    help: str = ""

    def by(self, clock: str) -> Metric:
        """The metric with `clock` (``insns`` or ``ns``) in its name and unit."""
        return replace(
            self, name=self.name.replace(CLOCK, clock), unit=self.unit.replace(CLOCK, clock), clock=False
        )


@dataclass(frozen=True)
class Observation:
    """One measured value.

    Args:
        metric: its name, with the clock put in.
        unit: of `value`.
    """

    metric: str
    unit: str
    value: float


@dataclass(frozen=True)
class Sample:
    """One reading of one counter.

    Args:
        guest_s: the guest's CLOCK_MONOTONIC when the reading began.
        host_s: this host's time since the epoch when it arrived.
        phase: before, during or after the workload.
        source: the file that holds the counter: ``vmstat``, ``meminfo``, …
        node: NUMA node; None where the counter is the whole machine's.
        value: in the unit of the source.
    """

    guest_s: float
    host_s: float
    phase: Phase
    source: str
    node: int | None
    counter: str
    value: int
