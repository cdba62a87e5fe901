# SPDX-License-Identifier: GPL-2.0-only
"""Metrics derived from counters, the same for every workload.

A counter of events in /proc/vmstat becomes its growth over the workload; a level becomes its maximum. The counters
that a patch series adds become the metrics that its ``series.toml`` describes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from orchestrator.kernel.series import CounterMetric, Series
from orchestrator.store.observation import Metric, Observation, Sample

_VMSTAT = "vmstat"
_MEMINFO = "meminfo"

#: Events in /proc/vmstat (mm/vmstat.c) that matter for a THP series, by the name of their metric.
EVENTS: Mapping[str, tuple[str, ...]] = {
    # A promotion is an existing range made huge; the baseline does it by copy only.
    "promotions.total": ("thp_collapse_alloc",),
    "collapses_by_copy.total": ("thp_collapse_alloc",),
    "huge_faults.total": ("thp_fault_alloc",),
    "pmd_splits.total": ("thp_split_pmd",),
    "oom_kills.total": ("oom_kill",),
}

#: The derived metrics, in the form of metrics in a workload's manifest.
DERIVED_METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "memory_kib.max",
            "KiB",
            "lower",
            primary=True,
            help="peak of MemTotal - MemAvailable, minus its value at the start",
        ),
        Metric(
            "held_kib.max",
            "KiB",
            "lower",
            help="peak of MemTotal - MemFree, with reservations, minus the start",
        ),
        Metric(
            "processes_kib.max",
            "KiB",
            "lower",
            help="peak memory use of the workload's processes, with shared pages split among them (Pss)",
        ),
        Metric(
            "promotions.total",
            "ranges",
            None,
            help="ranges that became huge after their first fault, and not by it",
        ),
        Metric(
            "collapses_by_copy.total",
            "ranges",
            "lower",
            help="huge pages allocated for promotions by copying",
        ),
        Metric("huge_faults.total", "faults", None, help="faults that mapped a huge page"),
        Metric(
            "multi_size_faults.total",
            "faults",
            None,
            help="faults that mapped a folio larger than a base page and smaller than a huge page",
        ),
        Metric("multi_size_kib.sum", "KiB", None, help="memory mapped by those faults"),
        Metric("pmd_splits.total", "splits", None, help="split PMD mappings of huge pages"),
        Metric("oom_kills.total", "kills", None, help="processes killed by the OOM killer"),
    )
}

_HUGE_KIB = 2048
_THP = "thp"
_FAULTS_OF_SIZE = re.compile(r"hugepages-(\d+)kB/stats/anon_fault_alloc")


def derived_metrics(series: Series) -> dict[str, Metric]:
    """The metrics that come from counters, by name: the general ones and those of the series."""
    return {**DERIVED_METRICS, **{each.metric.name: each.metric for each in series.metrics}}


def observations_from_counters(
    samples: Sequence[Sample], of_series: Sequence[CounterMetric] = ()
) -> list[Observation]:
    """The derived metrics that can be computed from these samples.

    There is no metric for a counter that the kernel does not have, and no peak without readings while the workload
    ran.

    Args:
        of_series: the metrics that the series describes; one with the name of a general metric replaces it.
    """
    found: dict[str, Observation] = {}

    def observe(name: str, value: float) -> None:
        found[name] = Observation(name, DERIVED_METRICS[name].unit, value)

    before = _edge(samples, "before")
    after = _edge(samples, "after")
    for name, counters in EVENTS.items():
        growth = [after[c] - before[c] for c in counters if c in before and c in after]
        if growth:
            observe(name, sum(growth))
    sizes = _multi_size_faults(samples)
    if sizes:
        observe("multi_size_faults.total", sum(sizes.values()))
        observe("multi_size_kib.sum", sum(kib * faults for kib, faults in sizes.items()))
    for each in of_series:
        value = _of_series(each, samples, before, after)
        if value is not None:
            found[each.metric.name] = Observation(each.metric.name, each.metric.unit, value * each.scale)
    if all(s.phase != "during" for s in samples):
        return list(found.values())
    for name, total, left in (
        ("memory_kib.max", "MemTotal", "MemAvailable"),
        ("held_kib.max", "MemTotal", "MemFree"),
    ):
        series = _used(samples, total, left)
        if series:
            observe(name, max(series) - series[0])
    processes: dict[float, int] = {}
    for s in samples:
        if s.source.startswith("process/") and s.counter == "Pss":
            processes[s.guest_s] = processes.get(s.guest_s, 0) + s.value
    if processes:
        observe("processes_kib.max", max(processes.values()))
    return list(found.values())


def _of_series(
    metric: CounterMetric, samples: Sequence[Sample], before: Mapping[str, int], after: Mapping[str, int]
) -> int | None:
    """The value of a series' metric, not scaled; None if the samples do not allow it."""
    if metric.growth:
        growth = [after[name] - before[name] for name in metric.growth if name in before and name in after]
        return sum(growth) if growth else None
    if metric.left is not None:
        name = metric.left
        return after[name] - before[name] if name in before and name in after else None
    if all(s.phase != "during" for s in samples):
        return None
    levels = [s.value for s in samples if s.source == _VMSTAT and s.node is None and s.counter == metric.peak]
    return max(levels, default=None)


def _edge(samples: Sequence[Sample], phase: str) -> dict[str, int]:
    return {
        s.counter: s.value for s in samples if s.phase == phase and s.source == _VMSTAT and s.node is None
    }


def _multi_size_faults(samples: Sequence[Sample]) -> dict[int, int]:
    """Size in KiB of folios between base page and huge page -> number of faults that mapped one.

    The kernel counts the faults of each size in ``hugepages-<size>kB/stats/anon_fault_alloc``
    (Documentation/admin-guide/mm/transhuge.rst), huge pages included.
    """
    growth: dict[int, int] = {}
    for s in samples:
        found = _FAULTS_OF_SIZE.fullmatch(s.counter) if s.source == _THP else None
        if found and s.phase != "during" and int(found[1]) < _HUGE_KIB:
            growth[int(found[1])] = growth.get(int(found[1]), 0) + s.value * (1 if s.phase == "after" else -1)
    return growth


def _used(samples: Sequence[Sample], total: str, left: str) -> list[int]:
    """`total` - `left` in KiB for each reading of both, in order of time."""
    totals, lefts = (
        {
            s.guest_s: s.value
            for s in samples
            if s.source == _MEMINFO and s.node is None and s.counter == counter
        }
        for counter in (total, left)
    )
    return [totals[when] - lefts[when] for when in sorted(totals.keys() & lefts.keys())]
