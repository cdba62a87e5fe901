# SPDX-License-Identifier: GPL-2.0-only
"""Measurements of a cell: metrics, their values, and samples of the guest's counters."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.store.record import Record

Better = Literal["lower", "higher"] | None
Phase = Literal["before", "during", "after"]

#: Placeholder for the unit of time in names and units: guest instructions (insns) with icount, else guest ns.
CLOCK = "{clock}"
CLOCKS = ("insns", "ns")
#: ``noun_unit.statistic``, e.g. ``fault_ns.p50``.
METRIC_NAME = re.compile(r"[a-z][a-z0-9_]*(\{clock\})?\.[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Metric(Record):
    """A metric of a workload.

    Args:
        name: ``noun_unit.statistic``; may contain ``{clock}``.
        unit: unit of its values; may be ``{clock}``.
        better: the direction that is an improvement; None if neither is.
        primary: whether the comparison is based on it.
        clock: whether the name contains ``{clock}``.
        help: one sentence on what exactly it measures.
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
        metric: name of the metric, with the clock filled in.
        unit: unit of `value`.
    """

    metric: str
    unit: str
    value: float


@dataclass(frozen=True)
class Sample:
    """One reading of one counter.

    Args:
        guest_s: time of the start of the reading, by the guest's CLOCK_MONOTONIC, in seconds.
        host_s: time of its arrival, by the host's clock, in seconds since the epoch.
        phase: before, during or after the workload.
        source: the file with the counter: ``vmstat``, ``meminfo``, …
        node: NUMA node; None for the whole machine.
        value: value in the unit of the source.
    """

    guest_s: float
    host_s: float
    phase: Phase
    source: str
    node: int | None
    counter: str
    value: int
