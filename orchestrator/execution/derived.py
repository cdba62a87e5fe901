# SPDX-License-Identifier: GPL-2.0-only
"""Metrics that come from counters, the same for every workload.

A counter of events in /proc/vmstat becomes its growth over the workload; a level becomes its maximum.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from orchestrator.store.observation import Metric, Observation, Sample

_VMSTAT = "vmstat"
_MEMINFO = "meminfo"
_RESERVED = "nr_thp_reserved"

#: Events of /proc/vmstat (mm/vmstat.c) that a reviewer of a THP series looks at, by the metric they become.
EVENTS: Mapping[str, tuple[str, ...]] = {
    # A promotion is an existing range made huge: by copy (thp_collapse_alloc) or in place (thp_res_collapse).
    "promotions.total": ("thp_collapse_alloc", "thp_res_collapse"),
    "collapses_by_copy.total": ("thp_collapse_alloc",),
    "collapses_in_place.total": ("thp_res_collapse",),
    "huge_faults.total": ("thp_fault_alloc",),
    "reservations.total": ("thp_res_alloc",),
    "reservation_failures.total": ("thp_res_alloc_failed",),
    "dumps.total": ("thp_res_dump",),
    "pmd_splits.total": ("thp_split_pmd",),
    "oom_kills.total": ("oom_kill",),
}

#: What each derived metric means, in the form a workload's manifest gives its own.
DERIVED_METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "memory_kib.max",
            "KiB",
            "lower",
            primary=True,
            help="peak of MemTotal - MemAvailable, over the start",
        ),
        Metric(
            "held_kib.max",
            "KiB",
            "lower",
            help="peak of MemTotal - MemFree, reservations included, over the start",
        ),
        Metric(
            "processes_kib.max",
            "KiB",
            "lower",
            help="peak of what the workload's processes have in memory, shared pages split among them (Pss)",
        ),
        Metric("reserved_kib.max", "KiB", None, help="peak of unused pages that reservations hold"),
        Metric(
            "promotions.total",
            "ranges",
            None,
            help="ranges made huge after their first fault: more where fewer are huge from the start",
        ),
        Metric(
            "collapses_by_copy.total",
            "ranges",
            "lower",
            help="huge pages allocated for promotions by copying",
        ),
        Metric("collapses_in_place.total", "ranges", None, help="reservations that became huge pages"),
        Metric("huge_faults.total", "faults", None, help="faults that mapped a huge page"),
        Metric(
            "multi_size_faults.total",
            "faults",
            None,
            help="faults that mapped a page larger than a base page and smaller than a huge one",
        ),
        Metric(
            "multi_size_kib.sum", "KiB", None, help="what those faults mapped, each by the size of its page"
        ),
        Metric(
            "reserved_pages.left",
            "pages",
            None,
            help="unused pages that reservations hold when all processes of the workload are gone, over the start",
        ),
        Metric("reservations.total", "blocks", None, help="reservations made"),
        Metric("reservation_failures.total", "faults", "lower", help="reservations that found no free block"),
        Metric("dumps.total", "reservations", None, help="reservations given up under memory pressure"),
        Metric("pmd_splits.total", "splits", None, help="huge mappings split"),
        Metric("oom_kills.total", "kills", None, help="processes that the OOM killer ended"),
    )
}

_PAGE_KIB = 4
_HUGE_KIB = 2048
_THP = "thp"
_FAULTS_OF_SIZE = re.compile(r"hugepages-(\d+)kB/stats/anon_fault_alloc")


def observations_from_counters(samples: Sequence[Sample]) -> list[Observation]:
    """The derived metrics that these samples allow.

    A counter the kernel lacks yields no metric, and neither does a peak where nobody looked between before and
    after: those two readings hold none.
    """
    observations: list[Observation] = []

    def observe(name: str, value: float) -> None:
        observations.append(Observation(name, DERIVED_METRICS[name].unit, value))

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
    if _RESERVED in before and _RESERVED in after:
        observe("reserved_pages.left", after[_RESERVED] - before[_RESERVED])
    if all(s.phase != "during" for s in samples):
        return observations
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
    reserved = [s.value for s in samples if s.source == _VMSTAT and s.node is None and s.counter == _RESERVED]
    if reserved:
        observe("reserved_kib.max", max(reserved) * _PAGE_KIB)
    return observations


def _edge(samples: Sequence[Sample], phase: str) -> dict[str, int]:
    return {
        s.counter: s.value for s in samples if s.phase == phase and s.source == _VMSTAT and s.node is None
    }


def _multi_size_faults(samples: Sequence[Sample]) -> dict[int, int]:
    """KiB of a page larger than a base page and smaller than a huge one -> faults that mapped one.

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
    """`total` - `left` in KiB at each reading of both, in the order of time."""
    totals, lefts = (
        {
            s.guest_s: s.value
            for s in samples
            if s.source == _MEMINFO and s.node is None and s.counter == counter
        }
        for counter in (total, left)
    )
    return [totals[when] - lefts[when] for when in sorted(totals.keys() & lefts.keys())]
