# SPDX-License-Identifier: GPL-2.0-only
"""A test for each row of the design's table of transitions (docs/model.md has it).

`ROWS` says which tests are about which row; those that `test_model.py` has are not made again.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import test_model
from test_model import CORE, MREMAP, RESERVED, blocks, counters, run

from orchestrator.model.page import HUGE as STATE_HUGE
from orchestrator.model.page import PTES, PageFrame, block_hash, page_word

ROWS = {
    "write, no page table": (
        "test_the_first_write_maps_a_huge_page_or_reserves_one",
        "test_what_may_not_be_huge_is_not_reserved",
        "test_the_first_page_is_of_the_block_at_its_place",
    ),
    "take": (
        "test_every_page_is_handed_out_once",
        "test_without_a_reservation_a_page_is_of_nobody",
    ),
    "write, no page, reservation": (
        "test_an_emptied_page_table_is_not_reserved_for_until_it_has_been_read",
        "test_a_page_that_is_lost_of_a_reservation_is_replaced_by_a_single_page",
    ),
    "write, no page, no reservation": (
        "test_a_write_into_a_page_table_never_reserves",
        "test_a_write_maps_the_largest_size_that_may_be",
    ),
    "write, zero page": (
        "test_the_first_write_after_a_read_reserves_from_stage_6_on",
        "test_a_write_over_the_zero_page_does_not_reserve_over_pages",
        "test_a_write_over_the_zero_page_takes_from_the_reservation",
    ),
    "read": (
        "test_a_read_maps_the_huge_zero_page_and_reserves_nothing",
        "test_a_read_beside_a_page_maps_the_zero_page",
    ),
    "fork": (
        "test_a_child_has_no_reservation_and_the_parent_keeps_its_own",
        "test_after_a_fork_nobody_may_write_to_what_is_shared",
    ),
    "write, shared page": (
        "test_a_page_that_is_not_shared_any_more_is_reused",
        "test_a_copy_leaves_its_slot_used_and_lost",
    ),
    "exit": (
        "test_nothing_is_left_of_processes_that_have_ended",
        "test_an_exit_releases_everything",
    ),
    "munmap, DONTNEED": (
        "test_what_gives_a_reservation_up",
        "test_any_page_of_a_range_that_goes_gives_it_up",
        "test_a_huge_page_that_goes_leaves_no_page_table",
    ),
    "a VMA is split": (
        "test_what_gives_a_reservation_up",
        "test_only_a_border_inside_of_a_range_gives_it_up",
    ),
    "NOHUGEPAGE, COLD, mbind": (
        "test_what_gives_a_reservation_up",
        "test_the_rest_of_the_mapping_keeps_its_reservations",
        "test_cold_memory_keeps_no_reservation",
    ),
    "HUGEPAGE": (
        "test_who_asks_for_huge_pages_gets_them_at_the_first_write",
        "test_a_reservation_goes_on_after_advice_and_is_promoted_from_the_first_page_on",
    ),
    "`enabled` other than `always`": ("test_all_reservations_go_unless_everybody_may_have_huge_pages",),
    "mremap": (
        "test_before_that_stage_reservations_do_not_move",
        "test_reservations_follow_whole_ranges_that_keep_their_alignment",
        "test_a_reservation_that_moved_is_handed_out_at_its_new_place",
    ),
    "mlock": (
        "test_mlock_populates_from_the_reservation",
        "test_locked_memory_is_promoted_by_copy",
    ),
    "khugepaged": (
        "test_khugepaged_respects_the_threshold",
        "test_khugepaged_promotes_at_the_threshold",
        "test_pages_shared_by_too_many_are_not_collapsed",
        "test_a_reservation_that_lost_a_slot_is_promoted_by_copy",
        "test_the_lower_of_two_limits_counts",
        "test_a_range_that_nobody_may_write_to_is_left_alone",
        "test_a_range_without_a_reservation_is_copied_at_the_threshold",
    ),
    "COLLAPSE": (
        "test_advice_to_collapse_ignores_the_threshold",
        "test_advice_to_collapse_ignores_the_limits",
    ),
    "promotion on return to user space": (
        "test_the_write_that_reaches_the_threshold_promotes_in_place",
        "test_nothing_is_copied_before_a_task_goes_on",
    ),
    "dump": (
        "test_a_dump_takes_what_is_unused_and_counts_reservations",
        "test_a_dump_takes_from_every_process",
        "test_after_a_dump_khugepaged_does_not_fill_up_again",
    ),
    "any new page": (
        "test_pages_are_on_the_node_that_the_mapping_is_bound_to",
        "test_a_copied_page_is_on_the_node_of_the_one_who_writes",
        "test_multi_size_pages_are_on_one_node",
    ),
}


def test_every_row_has_tests() -> None:
    known = {**vars(test_model), **globals()}
    assert [name for names in ROWS.values() for name in names if not callable(known.get(name))] == []
    here = {name for name, value in globals().items() if name.startswith("test_") and callable(value)}
    here -= {"test_every_row_has_tests", "test_the_table_in_the_documentation_has_these_rows"}
    assert here <= {name for names in ROWS.values() for name in names}


def test_the_table_in_the_documentation_has_these_rows() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "model.md"
    section = page.read_text(encoding="utf-8").partition("## Transitions\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+?) +\|", section, re.MULTILINE)[1:]
    assert [row for row in rows if row.strip("-")] == list(ROWS)


RANGE = "p0 map 0:0 512\n"


def frame_of(text: str, page: int, stages: int = CORE) -> PageFrame:
    """What is mapped at a page of p0's first block in the end."""
    frame = run(text, stages)[0].process("p0").tables[0].frames[page]
    assert frame is not None
    return frame


def test_the_first_page_is_of_the_block_at_its_place() -> None:
    frame = frame_of(RANGE + "p0 write 0:77 1 1", 77)
    assert frame.block is not None
    assert frame.slot == 77
    model, _ = run(RANGE + "p0 write 0:77 1 1")
    assert model.process("p0").reservations[0].unused == (1 << 512) - 1 ^ 1 << 77


@pytest.mark.parametrize(
    "text",
    [
        "p0 map 0:0 511\np0 write 0:3 1 1",
        RANGE + "p0 write 0:0 1 1\ndump\np0 write 0:3 1 1",
        RANGE + "p0 write 0:3 1 1\np0 advise 0:3 1 dontneed\np0 write 0:3 1 1",
    ],
)
def test_without_a_reservation_a_page_is_of_nobody(text: str) -> None:
    assert frame_of(text, 3).block is None


def test_a_write_into_a_page_table_never_reserves() -> None:
    # The page table is there because of a neighbour that is gone.
    text = "p0 map 0:0 100\np0 write 0:0 1 1\np0 map 0:100 412\np0 advise 0:0 512 huge\np0 write 0:200 5 1"
    model, last = run(text)
    assert counters(last) == {}
    assert blocks(model) == {0: (False, 6, 0)}


def test_a_write_over_the_zero_page_does_not_reserve_over_pages() -> None:
    # "Read all, write one", where one page has been there before.
    text = RANGE + "p0 write 0:9 1 1\ndump\np0 read 0:0 512\np0 write 0:10 1 1"
    model, last = run(text)
    assert last.vmstat["thp_res_alloc"] == 1
    assert not model.process("p0").reservations
    assert blocks(model) == {0: (False, 2, 510)}


def test_a_write_over_the_zero_page_takes_from_the_reservation() -> None:
    model, last = run(RANGE + "p0 write 0:9 1 1\np0 read 0:10 1\np0 write 0:10 1 1")
    assert counters(last) == {"thp_res_alloc": 1, "thp_res_mapped": 2, "nr_thp_reserved": 510}
    assert blocks(model) == {0: (False, 2, 0)}


def test_a_read_beside_a_page_maps_the_zero_page() -> None:
    model, last = run(RANGE + "p0 write 0:9 1 1\np0 read 0:0 20")
    assert counters(last) == RESERVED
    assert blocks(model) == {0: (False, 1, 19)}


def test_after_a_fork_nobody_may_write_to_what_is_shared() -> None:
    model, _ = run(RANGE + "p0 write 0:0 3 1\np0 fork p1")
    ours, theirs = (model.process(name).tables[0] for name in ("p0", "p1"))
    assert ours.frames[:3] == theirs.frames[:3]
    assert (ours.writable, theirs.writable) == (0, 0)
    assert not any(frame.exclusive for frame in ours.frames[:3] if frame is not None)


@pytest.mark.parametrize("writer", ["p0", "p1"])
def test_a_copy_leaves_its_slot_used_and_lost(writer: str) -> None:
    text = RANGE + f"p0 write 0:0 1 1\np0 fork p1\n{writer} write 0:0 1 2\n"
    model, last = run(text)
    copied = model.process(writer).tables[0].frames[0]
    assert copied is not None
    assert copied.block is None
    assert counters(last) == RESERVED
    # Even when nobody maps the page any more it is not handed out again.
    _, last = run(text + ("p1 exit\n" if writer == "p0" else "") + "p0 write 0:0 2 3")
    assert last.vmstat["thp_res_mapped"] == 2


def test_an_exit_releases_everything() -> None:
    text = "p0 map 0:0 1536\np0 write 0:0 1 1\np0 write 1:0 200 1\np0 write 2:0 512 1\np0 exit"
    _, last = run(text)
    assert counters(last) == {"thp_res_alloc": 3, "thp_res_mapped": 713, "thp_res_released": 511 + 312}


@pytest.mark.parametrize("operation", ["unmap {} 1", "advise {} 1 dontneed"])
@pytest.mark.parametrize("page", ["0:0", "0:9", "0:10", "0:511"])
def test_any_page_of_a_range_that_goes_gives_it_up(operation: str, page: str) -> None:
    """Also of one that is not in use, and of a reservation that is all in use."""
    model, last = run(RANGE + f"p0 write 0:9 1 1\np0 {operation.format(page)}")
    assert last.vmstat["thp_res_released"] == 511
    model, last = run(RANGE + f"p0 write 0:0 512 1\np0 {operation.format(page)}")
    assert not model.process("p0").reservations
    assert last.vmstat["thp_res_released"] == 0


@pytest.mark.parametrize("operation", ["unmap 0:0 512", "advise 0:0 512 dontneed"])
def test_a_huge_page_that_goes_leaves_no_page_table(operation: str) -> None:
    model, last = run(RANGE + f"p0 write 0:0 1 1\np0 {operation}", promotion_threshold="1")
    assert counters(last) == {"thp_fault_alloc": 1}
    assert not model.process("p0").tables
    # Pages of a page table go, and leave it: after MADV_DONTNEED nothing is reserved there.
    model, _ = run(RANGE + f"p0 write 0:0 1 1\np0 {operation}")
    assert [table.state for table in model.process("p0").tables.values()] == (
        [PTES] if "dontneed" in operation else []
    )


@pytest.mark.parametrize(
    "operation", ["protect 0:{} 512 r", "lock 0:{} 512", "advise 0:{} 512 nohuge", "unmap 0:{} 512"]
)
def test_only_a_border_inside_of_a_range_gives_it_up(operation: str) -> None:
    text = "p0 map 0:0 1536\np0 write 0:0 1 1\np0 write 1:0 1 1\np0 write 2:0 1 1\np0 "
    inside = run(text + operation.format(256))[0].process("p0").reservations
    assert set(inside) == {2}
    at_the_border = run(text + operation.format(0))[0].process("p0").reservations
    kept = {0, 1, 2} if operation.startswith(("protect", "lock")) else {1, 2}
    assert set(at_the_border) == kept


@pytest.mark.parametrize("operation", ["advise 1:0 512 nohuge", "bind 1:0 512 0"])
def test_the_rest_of_the_mapping_keeps_its_reservations(operation: str) -> None:
    text = "p0 map 0:0 1536\np0 write 0:0 1 1\np0 write 1:0 1 1\np0 write 2:0 1 1\np0 "
    model, last = run(text + operation)
    assert set(model.process("p0").reservations) == {0, 2}
    assert last.vmstat["thp_res_released"] == 511


def test_a_reservation_that_moved_is_handed_out_at_its_new_place() -> None:
    text = RANGE + "p0 write 0:5 1 1\np0 remap 0:0 512 3:0 512\np0 write 3:6 1 2"
    model, last = run(text, MREMAP)
    assert counters(last) == {"thp_res_alloc": 1, "thp_res_mapped": 2, "nr_thp_reserved": 510}
    ours, moved = (model.process("p0").tables[3].frames[page] for page in (6, 5))
    assert ours is not None
    assert moved is not None
    assert ours.block is moved.block is model.process("p0").reservations[3]
    words = [0] * 512
    words[5], words[6] = page_word(1, 5), page_word(2, 3 * 512 + 6)
    assert model.block("p0", 3).hash == block_hash(words)


@pytest.mark.parametrize(
    ("threshold", "max_ptes_none", "promoted_from"),
    [("256", "511", 256), ("256", "100", 412), ("2", "511", 2)],
)
def test_the_lower_of_two_limits_counts(threshold: str, max_ptes_none: str, promoted_from: int) -> None:
    for pages in (promoted_from - 1, promoted_from):
        model, _ = run(
            RANGE + f"p0 write 0:0 {pages} 1\nkhugepaged",
            promotion_threshold=threshold,
            max_ptes_none=max_ptes_none,
        )
        assert model.block("p0", 0).huge == (pages == promoted_from)


def test_a_range_that_nobody_may_write_to_is_left_alone() -> None:
    model, last = run(RANGE + "p0 write 0:0 300 1\np0 protect 0:0 512 r\nkhugepaged")
    assert not model.block("p0", 0).huge
    assert last.vmstat["nr_thp_reserved"] == 212


@pytest.mark.parametrize("pages", [255, 256])
def test_a_range_without_a_reservation_is_copied_at_the_threshold(pages: int) -> None:
    """The limit is for every range, reserved or not."""
    text = f"p0 map 0:0 512\np0 write 0:0 {pages} 1\nset enabled always\nkhugepaged"
    model, last = run(text, enabled="madvise")
    assert model.block("p0", 0).huge == (pages == 256)
    assert last.vmstat["thp_collapse_alloc"] == (pages == 256)
    assert (last.vmstat["thp_res_copy"], last.vmstat["thp_res_collapse"]) == (0, 0)


def test_advice_to_collapse_ignores_the_limits() -> None:
    text = RANGE + "p0 write 0:0 512 1\np0 fork p1\np0 write 0:0 1 2\np0 advise 0:0 512 collapse"
    model, last = run(text, max_ptes_none="0", max_ptes_shared="0")
    assert last.errno == 0
    assert model.process("p0").tables[0].state == STATE_HUGE
    assert last.vmstat["thp_res_copy"] == 1
    assert last.vmstat["thp_scan_exceed_share_pte"] == 0


def test_a_dump_takes_from_every_process() -> None:
    text = "p0 map 0:0 1024\np0 write 0:0 1 1\np0 fork p1\np1 write 1:0 2 1\ndump"
    model, last = run(text)
    assert not model.process("p0").reservations
    assert not model.process("p1").reservations
    assert counters(last) == {
        "thp_res_alloc": 2,
        "thp_res_mapped": 3,
        "thp_res_released": 511 + 510,
        "thp_res_dump": 2,
    }


def test_after_a_dump_khugepaged_does_not_fill_up_again() -> None:
    model, _ = run(RANGE + "p0 write 0:0 255 1\ndump\nkhugepaged")
    assert blocks(model) == {0: (False, 255, 0)}
    model, last = run(RANGE + "p0 write 0:0 256 1\ndump\nkhugepaged")
    assert blocks(model) == {0: (True, 512, 0)}
    assert last.vmstat["thp_res_copy"] == 0  # there was no reservation any more
    assert last.vmstat["thp_collapse_alloc"] == 1
