# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from guest_data import ROOT

from orchestrator.execution.derived import derived_metrics, observations_from_counters
from orchestrator.kernel.series import load_series
from orchestrator.store.observation import Sample

SERIES = load_series(ROOT / "kernel_patches")


def sample(
    phase: str, source: str, counter: str, value: int, at: float = 0.0, node: int | None = None
) -> Sample:
    return Sample(at, at, phase, source, node, counter, value)  # type: ignore[arg-type]


def values(samples: list[Sample]) -> dict[str, float]:
    return {each.metric: each.value for each in observations_from_counters(samples, SERIES.metrics)}


def test_an_event_counter_becomes_its_growth() -> None:
    got = values(
        [
            sample("before", "vmstat", "thp_collapse_alloc", 10),
            sample("before", "vmstat", "thp_res_collapse", 1),
            sample("after", "vmstat", "thp_collapse_alloc", 14),
            sample("after", "vmstat", "thp_res_collapse", 4),
        ]
    )
    assert got["promotions.total"] == 7
    assert (got["collapses_by_copy.total"], got["collapses_in_place.total"]) == (4, 3)


def test_a_counter_the_kernel_lacks_is_not_a_metric() -> None:
    got = values([sample("before", "vmstat", "pgfault", 1), sample("after", "vmstat", "pgfault", 2)])
    assert "reservations.total" not in got and "promotions.total" not in got


def test_pages_of_middle_sizes_are_counted_by_their_size_and_never_as_huge() -> None:
    stats = "hugepages-{}kB/stats/anon_fault_alloc"
    got = values(
        [
            sample(phase, "thp", stats.format(kib), faults)
            for phase, counts in (("before", {16: 1, 64: 2, 2048: 5}), ("after", {16: 4, 64: 12, 2048: 9}))
            for kib, faults in counts.items()
        ]
    )
    assert (got["multi_size_faults.total"], got["multi_size_kib.sum"]) == (3 + 10, 3 * 16 + 10 * 64)


def test_neither_way_is_better_for_what_only_becomes_huge_later() -> None:
    for name in ("promotions.total", "collapses_in_place.total"):
        metric = derived_metrics(SERIES)[name]
        assert metric.better is None and not metric.primary


def test_memory_is_its_peak_over_the_start() -> None:
    got = values(
        [
            sample("before", "meminfo", "MemTotal", 1000), sample("before", "meminfo", "MemAvailable", 900),
            sample("during", "meminfo", "MemTotal", 1000, 1), sample("during", "meminfo", "MemAvailable", 300, 1),
            # A reading that was cut short says nothing, and shifts nothing.
            sample("during", "meminfo", "MemAvailable", 100, 2),
            sample("after", "meminfo", "MemTotal", 1000, 3), sample("after", "meminfo", "MemAvailable", 850, 3),
        ]
    )  # fmt: skip
    assert got["memory_kib.max"] == 600


def test_reserved_pages_become_kib_and_nodes_are_not_added() -> None:
    got = values(
        [
            sample("during", "vmstat", "nr_thp_reserved", 512),
            sample("during", "vmstat", "nr_thp_reserved", 300, node=0),
            sample("during", "vmstat", "nr_thp_reserved", 212, node=1),
        ]
    )
    assert got["reserved_kib.max"] == 2048


def test_the_memory_of_processes_is_added_up_at_each_time() -> None:
    got = values(
        [
            sample("during", "process/redis-server.71", "Pss", 1000, 1.0),
            sample("during", "process/redis-server.71", "Pss", 600, 2.0),
            sample("during", "process/redis-server.72", "Pss", 500, 2.0),
            sample("during", "process/redis-server.72", "Rss", 9000, 2.0),
        ]
    )
    assert got["processes_kib.max"] == 1100


def test_reserved_pages_that_are_left_are_reported() -> None:
    got = values(
        [sample("before", "vmstat", "nr_thp_reserved", 3), sample("after", "vmstat", "nr_thp_reserved", 10)]
    )
    assert got["reserved_pages.left"] == 7


def test_readings_before_and_after_hold_no_peak() -> None:
    got = values(
        [
            sample("before", "meminfo", "MemTotal", 1000), sample("before", "meminfo", "MemAvailable", 900),
            sample("after", "meminfo", "MemTotal", 1000), sample("after", "meminfo", "MemAvailable", 850),
            sample("after", "vmstat", "nr_thp_reserved", 0),
        ]
    )  # fmt: skip
    assert got == {}
