# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import pytest
from guest_data import FILES
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.guest.counters import (
    Value,
    parse_buddyinfo,
    parse_file,
    parse_meminfo,
    parse_pairs,
    parse_setting,
    parse_smaps_rollup,
    parse_vmstat,
    parse_zoneinfo,
)

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_()]{0,30}", fullmatch=True)
INT64 = st.integers(-(2**63), 2**63 - 1)
THP = "/sys/kernel/mm/transparent_hugepage/"


def named(values: list[Value]) -> dict[tuple[int | None, str], int]:
    return {(value.node, value.counter): value.value for value in values}


@given(st.dictionaries(NAMES, INT64))
def test_every_counter_of_a_vmstat_comes_out_whatever_its_name(counters: dict[str, int]) -> None:
    text = "".join(f"{name} {value}\n" for name, value in counters.items())
    assert {v.counter: v.value for v in parse_vmstat(text)} == counters


@given(st.dictionaries(NAMES, st.integers(0, 2**63 - 1)), st.integers(0, 63))
def test_every_field_of_a_node_meminfo_comes_out(counters: dict[str, int], node: int) -> None:
    text = "".join(f"Node {node} {name}:   {value} kB\n" for name, value in counters.items())
    assert named(parse_meminfo(text, node)) == {(node, name): value for name, value in counters.items()}


@given(st.text())
def test_no_text_makes_a_parser_fail(text: str) -> None:
    for path in (
        "/proc/vmstat", "/proc/meminfo", "/proc/buddyinfo", "/proc/zoneinfo", f"{THP}enabled",
        "/sys/devices/system/node/node3/meminfo", "/proc/7/smaps_rollup", "/sys/fs/cgroup/a/memory.stat", "/x",
    ):  # fmt: skip
        for value in parse_file(path, text):
            assert -(2**63) <= value.value < 2**63


def test_recorded_vmstat_is_complete() -> None:
    values = parse_vmstat(FILES["/proc/vmstat"])
    assert len(values) == len(FILES["/proc/vmstat"].splitlines())
    assert {"thp_fault_alloc", "pgfault", "oom_kill"} <= {value.counter for value in values}


def test_recorded_meminfo_has_kib_and_counts() -> None:
    values = named(parse_meminfo(FILES["/proc/meminfo"]))
    assert 8_000_000 < values[None, "MemTotal"] < 8 << 20
    assert (None, "HugePages_Total") in values and (None, "Active(anon)") in values


def test_the_same_counter_of_machine_and_node_has_the_same_source() -> None:
    (of_machine,) = {v.source for v in parse_file("/proc/vmstat", FILES["/proc/vmstat"])}
    path = "/sys/devices/system/node/node2/vmstat"
    of_node = parse_file(path, FILES[path])
    assert {(v.source, v.node) for v in of_node} == {(of_machine, 2)}


def test_recorded_buddyinfo_sums_to_the_free_memory_of_zoneinfo() -> None:
    free: dict[tuple[int | None, str], int] = {}
    for value in parse_buddyinfo(FILES["/proc/buddyinfo"]):
        zone, _, order = value.counter.rpartition(".order")
        key = (value.node, f"{zone}.nr_free_pages")
        free[key] = free.get(key, 0) + (value.value << int(order))
    zones = named(parse_zoneinfo(FILES["/proc/zoneinfo"]))
    assert free and all(abs(zones[key] - pages) <= 512 for key, pages in free.items())


def test_recorded_zoneinfo_names_are_unique_and_told_apart_by_node_and_zone() -> None:
    values = parse_zoneinfo(FILES["/proc/zoneinfo"])
    assert len(named(values)) == len(values)
    found = named(values)
    assert {node for node, _ in found} == {0, 1, 2, 3}
    assert found[0, "DMA.managed"] == 3840
    assert (1, "nr_anon_pages") in found and (1, "Normal.cpu7.count") in found
    assert (1, "Normal.cpu7.vm stats threshold") in found and (0, "DMA.protection.1") in found
    assert (1, "Normal.start_pfn") in found


def test_a_choice_becomes_one_counter_an_alternative() -> None:
    values = {v.counter: v.value for v in parse_file(f"{THP}enabled", "always [madvise] never\n")}
    assert values == {"enabled.always": 0, "enabled.madvise": 1, "enabled.never": 0}


def test_a_sysfs_file_keeps_its_path_below_the_thp_directory() -> None:
    path = f"{THP}khugepaged/full_scans"
    assert parse_file(path, "12\n") == [Value("thp", None, "khugepaged/full_scans", 12)]
    mthp = f"{THP}hugepages-64kB/stats/anon_fault_alloc"
    assert parse_file(mthp, FILES[mthp])[0].counter == "hugepages-64kB/stats/anon_fault_alloc"


@pytest.mark.parametrize("text", ["", "always madvise never", "[a] [b]", "some words"])
def test_what_is_neither_number_nor_choice_has_no_value(text: str) -> None:
    assert parse_setting(text, "enabled") == []


def test_a_counter_below_zero_shows_as_negative() -> None:
    assert parse_pairs(f"nr_thp_reserved {2**64 - 895}\n") == {"nr_thp_reserved": -895}


def test_smaps_rollup_drops_its_heading_only() -> None:
    text = FILES["/proc/self/smaps_rollup"]
    values = {v.counter for v in parse_smaps_rollup(text)}
    assert len(values) == len(text.splitlines()) - 1
    assert {"Rss", "AnonHugePages"} <= values


def test_the_memory_of_a_process_is_reported_by_its_name_and_number() -> None:
    values = parse_file("/proc/71/smaps_rollup redis-server", FILES["/proc/self/smaps_rollup"])
    assert {value.source for value in values} == {"process/redis-server.71"}
    assert "Pss" in {value.counter for value in values}


def test_a_file_of_a_control_group() -> None:
    (value,) = parse_file("/sys/fs/cgroup/job/memory.current", "4096\n")
    assert value == Value("memcg", None, "job/memory.current", 4096)
    (value,) = parse_file("/sys/fs/cgroup/job/memory.stat", "thp_reserved 8192\n")
    assert value == Value("memcg", None, "job/memory.stat.thp_reserved", 8192)


def test_slabinfo_counts_objects_and_slabs_of_each_cache() -> None:
    text = (
        "slabinfo - version: 2.1\n"
        "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> "
        "<batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>\n"
        "bio-96                31     32    128   32    1 : tunables    0    0    0 : slabdata      1      2      0\n"
    )
    assert parse_file("/proc/slabinfo", text) == [
        Value("slabinfo", None, "bio-96.active_objs", 31),
        Value("slabinfo", None, "bio-96.num_objs", 32),
        Value("slabinfo", None, "bio-96.num_slabs", 2),
    ]


def test_pagetypeinfo_counts_free_blocks_and_page_blocks() -> None:
    text = (
        "Page block order: 9\nPages per block:  512\n\n"
        "Free pages count per migrate type at order       0      1 \n"
        "Node    1, zone      DMA, type    Unmovable      0 >100000 \n\n"
        "Number of blocks type     Unmovable      Movable \n"
        "Node 1, zone      DMA            1            7 \n"
    )
    assert parse_file("/proc/pagetypeinfo", text) == [
        Value("pagetypeinfo", 1, "DMA.Unmovable.0", 0),
        Value("pagetypeinfo", 1, "DMA.Unmovable.1", 100000),
        Value("pagetypeinfo", 1, "DMA.blocks.Unmovable", 1),
        Value("pagetypeinfo", 1, "DMA.blocks.Movable", 7),
    ]


def test_pressure_is_the_total_stall_time() -> None:
    text = (
        "some avg10=0.12 avg60=0.00 avg300=0.00 total=345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=6\n"
    )
    assert parse_file("/proc/pressure/memory", text) == [
        Value("psi", None, "memory.some.total", 345),
        Value("psi", None, "memory.full.total", 6),
    ]
    of_group = parse_file("/sys/fs/cgroup/a/memory.pressure", text)
    assert of_group[0] == Value("memcg", None, "a/memory.pressure.some.total", 345)
