# SPDX-License-Identifier: GPL-2.0-only
"""The reference model, transition by transition.

Each trace is the transition with as little around it as possible. What is expected of
it comes from the kernel's sources and the design of the series, not from the model.
"""

from __future__ import annotations

import pytest

from orchestrator.model.memory import STAGES, Model, Prediction
from orchestrator.model.page import block_hash, page_word
from orchestrator.model.trace import parse

CORE = 9
THRESHOLD = {"promotion_threshold": "256"}


def run(text: str, stages: int = CORE, nodes: int = 1, **settings: str) -> tuple[Model, Prediction]:
    """Follow a trace on the kernel of the first stages."""
    return follow(text, stages, nodes, settings)


def follow(text: str, stages: int, nodes: int, settings: dict[str, str]) -> tuple[Model, Prediction]:
    """As run(), for knobs whose names are not Python's."""
    # Reservations are for memory that nobody has requested huge pages for.
    chosen = {"enabled": "always"} | (THRESHOLD if stages >= 3 else {}) | settings
    model = Model(STAGES[:stages], chosen, nodes=nodes)
    last = None
    for operation in parse("trace 1\n" + text).operations:
        last = model.step(operation)
        assert model.violations() == []
    assert last is not None
    return model, last


def counters(expected: Prediction) -> dict[str, int]:
    return {name: value for name, value in expected.vmstat.items() if value}


def blocks(model: Model, process: str = "p0") -> dict[int, tuple[bool, int, int]]:
    """By block: huge, present, zero."""
    views = {block: model.block(process, block) for block in model.process(process).tables}
    return {block: (view.huge, view.present, view.zero) for block, view in views.items()}


RESERVED = {"nr_thp_reserved": 511, "thp_res_alloc": 1, "thp_res_mapped": 1}
HUGE = {"nr_anon_transparent_hugepages": 1, "thp_fault_alloc": 1}


@pytest.mark.parametrize(
    ("stages", "settings", "expected"),
    [
        (0, {}, HUGE),
        (4, {}, HUGE),
        (5, {}, RESERVED),
        (9, {}, RESERVED),
        (9, {"promotion_threshold": "1"}, HUGE),
        (9, {"enabled": "never"}, {}),
    ],
)
def test_the_first_write_maps_a_huge_page_or_reserves_one(
    stages: int, settings: dict[str, str], expected: dict[str, int]
) -> None:
    model, last = follow("p0 map 0:0 512\np0 write 0:7 1 3", stages, 1, settings)
    assert counters(last) == expected
    assert model.block("p0", 0).huge == (expected == HUGE)
    words = [0] * 512
    words[7] = page_word(3, 7)
    assert model.block("p0", 0).hash == block_hash(words)


@pytest.mark.parametrize(
    "text", ["p0 map 0:1 511", "p0 map 0:0 511", "p0 map 0:0 511 huge", "p0 map 0:0 512 nohuge"]
)
def test_what_may_not_be_huge_is_not_reserved(text: str) -> None:
    model, last = run(text + "\np0 write 0:5 2 1")
    assert counters(last) == {}
    assert blocks(model) == {0: (False, 2, 0)}


def test_two_mappings_that_become_one_are_reserved_for() -> None:
    _, last = run("p0 map 0:0 256\np0 map 0:256 256\np0 write 0:5 1 1")
    assert last.vmstat["thp_res_alloc"] == 1


def test_mappings_that_differ_are_not() -> None:
    _, last = run("p0 map 0:0 256 huge\np0 map 0:256 256\np0 write 0:5 1 1\np0 write 0:300 1 1")
    assert last.vmstat["thp_res_alloc"] == 0


@pytest.mark.parametrize("stages", [0, 5, 9, len(STAGES)])
@pytest.mark.parametrize("settings", [{}, {"enabled": "madvise"}])
def test_who_asks_for_huge_pages_gets_them_at_the_first_write(stages: int, settings: dict[str, str]) -> None:
    model, last = follow("p0 map 0:0 512 huge\np0 write 0:7 1 3", stages, 1, settings)
    assert counters(last) == HUGE
    assert model.block("p0", 0).huge


def test_the_zero_page_is_not_reserved_over_for_who_asks_for_huge_pages() -> None:
    model, last = run("p0 map 0:0 512 huge\np0 read 0:0 1\np0 write 0:1 1 1")
    assert counters(last) == {"thp_split_pmd": 1}
    assert blocks(model) == {0: (False, 1, 511)}


def test_a_reservation_goes_on_after_advice_and_is_promoted_from_the_first_page_on() -> None:
    text = "p0 map 0:0 512\np0 write 0:7 1 3\np0 advise 0:0 512 huge\np0 write 0:9 1 3"
    assert counters(run(text)[1]) == RESERVED | {"thp_res_mapped": 2, "nr_thp_reserved": 510}
    assert counters(run(text + "\nkhugepaged")[1]) == {
        "nr_anon_transparent_hugepages": 1, "thp_res_alloc": 1, "thp_res_mapped": 2, "thp_res_filled": 510,
        "thp_res_collapse": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("pages", "left"), [("0:3 1", 511), ("0:0 1024", 0), ("0:511 2", 0)])
def test_cold_memory_keeps_no_reservation(pages: str, left: int) -> None:
    text = f"p0 map 0:0 1024\np0 write 0:7 1 3\np0 write 1:7 1 3\np0 advise {pages} cold"
    _, last = run(text)
    assert last.vmstat["nr_thp_reserved"] == left and not last.vmstat["thp_res_dump"]
    assert last.vmstat["thp_res_released"] == 1022 - left
    assert run("p0 map 0:0 512\np0 lock 0:0 512\np0 advise 0:0 1 cold")[1].errno == "EINVAL"


@pytest.mark.parametrize(("value", "given_up"), [("always", 0), ("madvise", 1), ("never", 1)])
def test_all_reservations_go_unless_everybody_may_have_huge_pages(value: str, given_up: int) -> None:
    text = f"p0 map 0:0 1024\np0 write 0:0 512 3\np0 write 1:7 1 3\nset enabled {value}"
    model, last = run(text)
    assert last.vmstat["thp_res_dump"] == given_up
    assert last.vmstat["thp_res_released"] == 511 * given_up
    # Like a dump, it leaves those alone that have no unused pages.
    assert 0 in model.process("p0").reservations
    assert not run(text, 6)[1].vmstat["thp_res_released"]


def test_every_page_is_handed_out_once() -> None:
    _, last = run("p0 map 0:0 512\np0 write 0:0 512 1\np0 write 0:0 512 2")
    assert counters(last) == {"thp_res_alloc": 1, "thp_res_mapped": 512}


def test_a_read_maps_the_huge_zero_page_and_reserves_nothing() -> None:
    model, last = run("p0 map 0:0 512\np0 read 0:0 1")
    assert counters(last) == {}
    assert blocks(model) == {0: (False, 0, 512)}
    model, last = run("p0 map 0:0 512\np0 read 0:0 2", use_zero_page="0")
    assert counters(last) == {}
    assert blocks(model) == {0: (False, 0, 2)}


def test_a_read_without_the_huge_zero_page_maps_a_huge_page_at_threshold_1() -> None:
    _, last = run("p0 map 0:0 512\np0 read 0:0 1", use_zero_page="0", promotion_threshold="1")
    assert counters(last) == HUGE


def test_the_first_write_after_a_read_reserves_from_stage_6_on() -> None:
    text = "p0 map 0:0 512\np0 read 0:0 1\np0 write 0:1 1 1"
    assert counters(run(text, 5)[1]) == {"thp_split_pmd": 1}
    model, last = run(text, 6)
    assert counters(last) == RESERVED | {"thp_split_pmd": 1}
    assert blocks(model) == {0: (False, 1, 511)}


def test_an_emptied_page_table_is_not_reserved_for_until_it_has_been_read() -> None:
    text = "p0 map 0:0 512\np0 write 0:0 1 1\np0 advise 0:0 512 dontneed\np0 write 0:0 1 2\n"
    assert counters(run(text)[1]) == {"thp_res_alloc": 1, "thp_res_mapped": 1, "thp_res_released": 511}
    text += "p0 advise 0:0 512 dontneed\np0 read 0:0 1\np0 write 0:0 1 1"
    assert run(text)[1].vmstat["thp_res_alloc"] == 2


@pytest.mark.parametrize(
    "operation",
    [
        "p0 unmap 0:511 1",
        "p0 unmap 0:0 512",
        "p0 advise 0:300 1 dontneed",
        "p0 protect 0:300 1 r",
        "p0 advise 0:0 1 nohuge",
        "p0 lock 0:300 1",
        "p0 remap 0:0 512 4:0 512",
        "p0 remap 0:100 1 4:0 1",
        "p0 remap 0:0 512 0:0 256",
        "p0 bind 0:0 512 0",
        "dump",
    ],
)
def test_what_gives_a_reservation_up(operation: str) -> None:
    model, last = run(f"p0 map 0:0 512\np0 write 0:7 1 3\n{operation}")
    assert last.errno == 0
    assert last.vmstat["thp_res_released"] == 511
    assert last.vmstat["nr_thp_reserved"] == 0
    assert not model.process("p0").reservations


@pytest.mark.parametrize(
    "operation",
    [
        "p0 protect 0:0 512 r",
        "p0 advise 0:0 512 huge",
        "p0 advise 0:0 512 free",
        "p0 unlock 0:0 512",
        "p0 read 0:0 512",
        "p0 fork p1",
        "p0 remap 0:0 512 0:0 600",
        "khugepaged",
    ],
)
def test_what_leaves_a_reservation_alone(operation: str) -> None:
    _, last = run(f"p0 map 0:0 512\np0 write 0:7 1 3\n{operation}")
    assert last.errno == 0
    assert last.vmstat["thp_res_released"] == 0
    assert last.vmstat["nr_thp_reserved"] == 511


def test_mlock_populates_from_the_reservation() -> None:
    model, last = run("p0 map 0:0 512\np0 write 0:7 1 3\np0 lock 0:0 512")
    assert counters(last) == {"thp_res_alloc": 1, "thp_res_mapped": 512}
    assert model.rss("p0") == 512


def test_a_dump_takes_what_is_unused_and_counts_reservations() -> None:
    _, last = run("p0 map 0:0 1024\np0 write 0:0 512 3\np0 write 1:0 2 3\ndump")
    assert counters(last) == {
        "thp_res_alloc": 2,
        "thp_res_mapped": 514,
        "thp_res_released": 510,
        "thp_res_dump": 1,
    }


def test_a_child_has_no_reservation_and_the_parent_keeps_its_own() -> None:
    text = "p0 map 0:0 512\np0 write 0:0 1 1\np0 fork p1\n"
    model, last = run(text + "p1 write 0:1 1 1")
    assert counters(last) == RESERVED
    model, last = run(text + "p1 write 0:1 1 1\np0 write 0:1 1 2\np1 exit")
    assert counters(last) == {"nr_thp_reserved": 510, "thp_res_alloc": 1, "thp_res_mapped": 2}
    words = [page_word(1, 0), page_word(2, 1)] + [0] * 510
    assert model.block("p0", 0).hash == block_hash(words)


def test_a_page_that_is_not_shared_any_more_is_reused() -> None:
    text = "p0 map 0:0 1 nohuge\np0 write 0:0 1 1\np0 fork p1\n"
    model, _ = run(text)
    frame = model.process("p0").tables[0].frames[0]
    model.run(parse("trace 1\np0 fork p1\np1 exit\np0 write 0:0 1 2").operations[1:])
    assert model.process("p0").tables[0].frames[0] is frame
    model, _ = run(text)
    frame = model.process("p0").tables[0].frames[0]
    model.run(parse("trace 1\np0 write 0:0 1 2").operations)
    assert model.process("p0").tables[0].frames[0] is not frame


def test_a_shared_huge_page_is_split_by_the_first_to_write() -> None:
    text = "p0 map 0:0 512\np0 write 0:0 512 1\np0 fork p1\np1 write 0:9 1 2\n"
    model, last = run(text, 0)
    assert counters(last) == HUGE | {"thp_split_pmd": 1}
    assert (blocks(model), blocks(model, "p1")) == ({0: (True, 512, 0)}, {0: (False, 512, 0)})
    # Then the parent's PMD is the last to map page 9, and the child's PTEs the rest.
    _, last = run(text + "p0 unmap 0:0 512", 0)
    assert counters(last) == {"thp_fault_alloc": 1, "thp_split_pmd": 1, "thp_deferred_split_page": 1}


def test_a_huge_page_unmapped_in_part_is_split_and_queued() -> None:
    model, last = run("p0 map 0:0 512\np0 write 0:0 512 1\np0 advise 0:5 1 dontneed", 0)
    assert counters(last) == {"thp_fault_alloc": 1, "thp_split_pmd": 1, "thp_deferred_split_page": 1}
    assert blocks(model) == {0: (False, 511, 0)}


def test_a_huge_page_freed_in_part_becomes_small_pages_and_its_zeros_the_zero_page() -> None:
    model, last = run("p0 map 0:0 512\np0 write 0:0 12 1\np0 advise 0:5 1 free", 0)
    assert counters(last) == {"thp_fault_alloc": 1, "thp_split_pmd": 1, "thp_split_page": 1}
    assert blocks(model) == {0: (False, 12, 500)}


def test_a_huge_page_moves_whole_or_is_split() -> None:
    text = "p0 map 0:0 512\np0 write 0:0 512 1\n"
    model, last = run(text + "p0 remap 0:0 512 3:0 512", 0)
    assert counters(last) == HUGE
    assert blocks(model) == {3: (True, 512, 0)}
    model, last = run(text + "p0 remap 0:0 512 3:1 512", 0)
    assert counters(last) == {"thp_fault_alloc": 1, "thp_split_pmd": 1}
    assert blocks(model) == {3: (False, 511, 0), 4: (False, 1, 0)}


def test_what_was_moved_keeps_its_contents() -> None:
    model, _ = run("p0 map 0:0 512\np0 write 0:3 1 1\np0 remap 0:0 512 3:1 512")
    words = [0] * 512
    words[4] = page_word(1, 3)
    assert model.block("p0", 3).hash == block_hash(words)


@pytest.mark.parametrize(("stages", "collapses"), [(2, True), (3, False), (9, False)])
def test_khugepaged_respects_the_threshold(stages: int, collapses: bool) -> None:
    _, last = run("p0 map 0:0 512\np0 read 0:0 1\np0 write 0:0 255 1\nkhugepaged", stages)
    assert (last.vmstat["nr_anon_transparent_hugepages"] == 1) == collapses
    assert last.vmstat["thp_scan_exceed_none_pte"] == (0 if collapses else 2)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (5, {"thp_collapse_alloc": 1, "nr_thp_reserved": 256}),
        (8, {"thp_collapse_alloc": 1, "thp_res_released": 256, "thp_res_copy": 1}),
        (9, {"thp_res_filled": 256, "thp_res_collapse": 1}),
    ],
)
def test_khugepaged_promotes_at_the_threshold(stages: int, expected: dict[str, int]) -> None:
    model, last = run("p0 map 0:0 512\np0 write 0:0 256 1\nkhugepaged", stages)
    common = {"nr_anon_transparent_hugepages": 1, "thp_res_alloc": 1, "thp_res_mapped": 256}
    assert counters(last) == common | expected
    assert blocks(model) == {0: (True, 512, 0)}
    assert model.block("p0", 0).hash == block_hash([page_word(1, page) for page in range(256)] + [0] * 256)


@pytest.mark.parametrize(
    "loss",
    [
        "p0 fork p1\np0 write 0:9 1 2\np1 exit",  # the slot's page was copied
        "p0 fork p1\np1 exit\np0 write 0:0 1 1",  # the other pages are not known to be exclusive
        "p0 fork p1\np0 write 0:0 300 2",
    ],
)
def test_a_reservation_that_lost_a_slot_is_promoted_by_copy(loss: str) -> None:
    _, last = run(f"p0 map 0:0 512\np0 write 0:0 300 1\n{loss}\nkhugepaged")
    assert last.vmstat["thp_res_collapse"] == 0
    assert last.vmstat["thp_res_copy"] == 1


def test_locked_memory_is_promoted_by_copy() -> None:
    _, last = run("p0 map 0:0 512\np0 write 0:0 300 1\np0 lock 0:0 512\nkhugepaged")
    assert (last.vmstat["thp_res_collapse"], last.vmstat["thp_res_copy"]) == (0, 1)


def test_advice_to_collapse_ignores_the_threshold() -> None:
    _, last = run("p0 map 0:0 512\np0 write 0:0 1 1\np0 advise 0:0 512 collapse")
    assert last.vmstat["thp_res_collapse"] == 1
    assert run("p0 map 0:0 512\np0 read 0:0 1\np0 advise 0:0 512 collapse")[1].errno == 0
    assert run("p0 map 0:0 512 nohuge\np0 write 0:0 1 1\np0 advise 0:0 512 collapse")[1].errno == "EINVAL"


def test_pages_shared_by_too_many_are_not_collapsed() -> None:
    text = "p0 map 0:0 512\np0 write 0:0 512 1\np0 fork p1\np1 write 0:0 {} 2\nkhugepaged"
    _, last = run(text.format(255))
    assert last.vmstat["thp_scan_exceed_share_pte"] == 4  # two processes, two scans
    _, last = run(text.format(256))
    assert last.vmstat["thp_scan_exceed_share_pte"] == 0


@pytest.mark.parametrize(
    ("operation", "errno"),
    [
        ("p0 map 0:511 2", "EEXIST"),
        ("p0 unmap 9:0 512", 0),
        ("p0 write 0:500 20 1", "SIGSEGV"),
        ("p0 read 3:0 1", "SIGSEGV"),
        ("p0 protect 0:500 20 r", "ENOMEM"),
        ("p0 advise 0:500 20 dontneed", "ENOMEM"),
        ("p0 advise 3:0 20 dontneed", "ENOMEM"),
        ("p0 advise 0:0 512 collapse", "EINVAL"),
        ("p0 advise 0:5 20 collapse", "EINVAL"),
        ("p0 remap 3:0 20 0:0 20", "EFAULT"),
        ("p0 remap 0:0 20 0:10 20", "EINVAL"),
        ("p0 remap 0:0 20 0:0 30", "ENOMEM"),
        ("p0 remap 0:0 513 4:0 513", "EFAULT"),
        ("p0 remap 0:0 512 0:0 600", 0),
        ("p0 bind 0:0 513 0", "EFAULT"),
        ("p0 bind 0:0 512 1", "EINVAL"),
        ("p0 lock 0:0 513", "ENOMEM"),
        ("p0 unlock 0:0 512", 0),
    ],
)
def test_errors(operation: str, errno: int | str) -> None:
    assert run(f"p0 map 0:0 512\n{operation}")[1].errno == errno


def test_access_ends_where_protection_does() -> None:
    model, last = run("p0 map 0:0 8\np0 protect 0:4 4 r\np0 write 0:0 8 1")
    assert last.errno == "SIGSEGV"
    assert model.rss("p0") == 4
    assert run("p0 map 0:0 8\np0 protect 0:4 4 none\np0 read 0:0 8")[1].errno == "SIGSEGV"


def test_locked_memory_is_not_discarded() -> None:
    assert run("p0 map 0:0 8\np0 lock 0:0 8\np0 advise 0:0 8 dontneed")[1].errno == "EINVAL"


def test_a_kernel_has_the_counters_of_its_stages_alone() -> None:
    operations = parse("trace 1\np0 exit").operations
    names = [set(Model(STAGES[:stages]).step(operations[0]).vmstat) for stages in range(len(STAGES) + 1)]
    assert not any(name.startswith("thp_res") for name in names[1])
    assert {"nr_thp_reserved", "thp_res_released"} <= names[2]
    assert ["thp_res_dump" in each for each in names].index(True) == 7
    assert ["thp_res_copy" in each for each in names].index(True) == 8
    assert ["thp_res_filled" in each for each in names].index(True) == 9


def test_stages_build_on_each_other() -> None:
    with pytest.raises(ValueError, match="must be the first ones of"):
        Model(["reserve"])
    with pytest.raises(ValueError, match="promotion_threshold"):
        Model((), THRESHOLD)


def test_nothing_is_left_of_processes_that_have_ended() -> None:
    _, last = run(
        "p0 map 0:0 2048\np0 write 0:5 700 1\np0 fork p1\np1 write 1:0 512 1\nkhugepaged\np0 exit\np1 exit"
    )
    assert last.vmstat["nr_thp_reserved"] == 0
    assert last.vmstat["nr_anon_transparent_hugepages"] == 0


SYNC = STAGES.index("sync-promotion") + 1
MREMAP = STAGES.index("mremap") + 1
FILLED = {
    "nr_anon_transparent_hugepages": 1,
    "thp_res_alloc": 1,
    "thp_res_mapped": 256,
    "thp_res_filled": 256,
    "thp_res_collapse": 1,
}


def test_the_write_that_reaches_the_threshold_promotes_in_place() -> None:
    text = "p0 map 0:0 512\np0 write 0:0 255 3\n"
    model, last = run(text, SYNC)
    assert not model.block("p0", 0).huge
    model, last = run(text + "p0 write 0:300 1 4", SYNC)
    assert model.block("p0", 0).huge
    assert counters(last) == FILLED
    assert model.process("p0").tables[0].contents()[299:302] == [0, page_word(4, 300), 0]
    assert not run(text + "p0 write 0:300 1 4", SYNC - 1)[0].block("p0", 0).huge


def test_a_write_goes_on_in_the_huge_page_that_it_has_led_to() -> None:
    model, last = run("p0 map 0:0 512\np0 write 0:0 400 3", SYNC)
    assert counters(last) == FILLED
    assert model.process("p0").tables[0].contents()[:400] == [page_word(3, page) for page in range(400)]


def test_nothing_is_copied_before_a_task_goes_on() -> None:
    text = "p0 map 0:0 512\np0 write 0:0 200 3\np0 fork p1\np0 write 0:0 100 4\np0 write 0:200 56 4\n"
    model, last = run(text, SYNC)
    assert not model.block("p0", 0).huge
    assert not last.vmstat["thp_res_copy"]
    assert run(text + "khugepaged", SYNC)[1].vmstat["thp_res_copy"] == 1


def test_locked_memory_is_not_promoted_before_a_task_goes_on() -> None:
    model, _ = run("p0 map 0:0 512\np0 lock 0:0 512", SYNC)
    assert blocks(model) == {0: (False, 512, 0)}


@pytest.mark.parametrize(
    ("remap", "moved", "released"),
    [
        ("0:0 512 3:0 512", {1: 511, 3: 511}, 0),
        ("0:0 1024 3:0 1024", {3: 511, 4: 511}, 0),
        ("0:0 512 3:1 512", {1: 511}, 511),
        ("0:256 768 3:256 768", {4: 511}, 511),
        ("0:0 768 3:0 768", {3: 511}, 511),
    ],
)
def test_reservations_follow_whole_ranges_that_keep_their_alignment(
    remap: str, moved: dict[int, int], released: int
) -> None:
    text = f"p0 map 0:0 1024\np0 write 0:0 1 3\np0 write 1:0 1 3\np0 remap {remap}"
    model, last = run(text, MREMAP)
    left = {block: resv.unused.bit_count() for block, resv in model.process("p0").reservations.items()}
    assert left == moved
    assert last.vmstat["thp_res_released"] == released


def test_before_that_stage_reservations_do_not_move() -> None:
    model, last = run("p0 map 0:0 512\np0 write 0:0 1 3\np0 remap 0:0 512 3:0 512", MREMAP - 1)
    assert not model.process("p0").reservations
    assert last.vmstat["thp_res_released"] == 511


def test_half_of_a_range_is_the_default_threshold_in_the_end() -> None:
    assert Model(STAGES).setting("promotion_threshold") == "256"
    assert Model(STAGES[:CORE]).setting("promotion_threshold") == "1"


def test_a_huge_page_mapped_by_ptes_looks_partially_mapped_while_it_is_split() -> None:
    text = "p0 map 0:0 512\np0 write 0:0 1 3\np0 protect 0:0 512 r\np0 protect 0:0 512 rw\n"
    by_pmd = run(text + "p0 advise 0:0 5 free", 0)[1]
    assert by_pmd.vmstat["thp_deferred_split_page"] == 0
    by_ptes = run(text + "p0 protect 0:3 1 r\np0 protect 0:3 1 rw\np0 advise 0:0 5 free", 0)[1]
    assert by_ptes.vmstat["thp_deferred_split_page"] == 1


# NUMA nodes


def nodes(model: Model, process: str = "p0") -> dict[int, list[int]]:
    """By block: the number of present pages on each node."""
    return {block: model.block(process, block).nodes for block in sorted(model.process(process).tables)}


@pytest.mark.parametrize(
    ("settings", "text", "expected"),
    [
        ({}, "p0 write 0:5 3 1", [3]),
        # A reservation, and the pages from it, are on the node of the policy.
        ({}, "p0 bind 0:0 512 1\np0 write 0:5 3 1", [0, 3]),
        # One that was made before the policy is given up.
        ({}, "p0 write 0:5 3 1\np0 bind 0:0 512 1\np0 write 0:9 2 1", [3, 2]),
        ({"promotion_threshold": "1"}, "p0 bind 0:0 512 1\np0 write 0:5 3 1", [0, 512]),
        ({}, "p0 bind 0:0 512 1\np0 read 0:5 3", []),
        # Promotion in place keeps the node.
        ({}, "p0 bind 0:0 512 1\np0 write 0:0 256 1\nkhugepaged", [0, 512]),
        # Promotion by copy takes the node with the most pages, and of two alike the first.
        ({"promotion_threshold": "8"}, "p0 write 0:0 4 1\np0 bind 0:0 512 1\np0 write 0:9 5 1\nkhugepaged", [0, 512]),
        ({"promotion_threshold": "8"}, "p0 write 0:0 5 1\np0 bind 0:0 512 1\np0 write 0:9 5 1\nkhugepaged", [512]),
    ],
)  # fmt: skip
def test_pages_are_on_the_node_that_the_mapping_is_bound_to(
    settings: dict[str, str], text: str, expected: list[int]
) -> None:
    model, _ = follow("p0 map 0:0 512\n" + text, CORE, 2, settings)
    assert nodes(model) == {0: expected}


def test_a_copied_page_is_on_the_node_of_the_one_who_writes() -> None:
    model, _ = run(
        "p0 map 0:0 512\np0 write 0:0 4 1\np0 fork p1\np1 bind 0:0 512 1\np1 write 0:0 1 2", nodes=2
    )
    assert nodes(model, "p1") == {0: [3, 1]}
    assert nodes(model) == {0: [4]}


def test_pages_keep_their_node_when_a_huge_page_is_split_or_moved() -> None:
    text = "p0 map 0:0 512\np0 bind 0:0 512 1\np0 write 0:0 512 1\np0 unmap 0:511 1\np0 remap 0:0 2 3:4 2"
    model, _ = run(text, nodes=2, promotion_threshold="1")
    assert nodes(model) == {0: [0, 509], 3: [0, 2]}


# Multi-size THP


def sized(text: str, stages: int = CORE, **knobs: str) -> tuple[Model, Prediction]:
    """As run(), with knobs `hugepages_64kB="always"` for ``hugepages-64kB``."""
    return follow(text, stages, 1, {name.replace("hugepages_", "hugepages-"): knobs[name] for name in knobs})


BOTH = {"hugepages_64kB": "always", "hugepages_16kB": "always"}
RELEASED = "p0 map 0:0 512\np0 write 0:20 2 1\np0 advise 0:20 1 dontneed\n"


@pytest.mark.parametrize(
    ("stages", "knobs", "text", "present"),
    [
        # A range without reservation, for which the size is enabled
        (0, {"hugepages_64kB": "always"}, "p0 map 0:0 100\np0 write 0:20 1 1", 16),
        (9, {"hugepages_64kB": "always"}, "p0 map 0:0 100\np0 write 0:20 1 1", 16),
        (9, {"hugepages_64kB": "madvise"}, "p0 map 0:0 100\np0 write 0:20 1 1", 1),
        (9, {"hugepages_64kB": "madvise"}, "p0 map 0:0 100 huge\np0 write 0:20 1 1", 16),
        (9, {"hugepages_64kB": "always"}, "p0 map 0:0 100 nohuge\np0 write 0:20 1 1", 1),
        (9, {"hugepages_64kB": "inherit"}, "p0 map 0:0 100 huge\np0 write 0:20 1 1", 16),
        (9, {"hugepages_64kB": "inherit", "enabled": "madvise"}, "p0 map 0:0 100\np0 write 0:20 1 1", 1),
        (9, {"hugepages_64kB": "inherit", "enabled": "always"}, "p0 map 0:0 100\np0 write 0:20 1 1", 16),
        (9, {"hugepages_64kB": "inherit", "enabled": "never"}, "p0 map 0:0 100 huge\np0 write 0:20 1 1", 1),
        (9, {"hugepages_64kB": "always", "enabled": "never"}, "p0 map 0:0 100\np0 write 0:20 1 1", 16),
        # The largest that fits the mapping and has nothing mapped
        (9, BOTH, "p0 map 0:0 100\np0 write 0:20 1 1", 16),
        (9, BOTH, "p0 map 0:0 22\np0 write 0:17 1 1", 4),
        (9, BOTH, "p0 map 0:0 22\np0 write 0:21 1 1", 1),
        (9, BOTH, "p0 map 0:0 100\np0 read 0:31 1\np0 write 0:17 1 1", 4),
        (9, {"hugepages_64kB": "always"}, "p0 map 0:0 100\np0 read 0:20 1\np0 write 0:20 1 1", 1),
        (9, {"hugepages_64kB": "always"}, "p0 map 0:0 100\np0 write 0:15 2 1", 32),
        (9, {"hugepages_1024kB": "always", "enabled": "madvise"}, "p0 map 0:0 512\np0 write 0:0 300 1", 512),
        # A reservation comes first, and what is left of it is not covered
        (9, {"hugepages_64kB": "always"}, "p0 map 0:0 512\np0 write 0:20 1 1", 1),
        (9, {"hugepages_64kB": "always"}, RELEASED + "p0 write 0:40 1 1", 17),
        (4, {"hugepages_64kB": "always", "promotion_threshold": "1"}, "p0 map 0:0 100 huge\np0 write 0:20 1 1", 16),
    ],
)  # fmt: skip
def test_a_write_maps_the_largest_size_that_may_be(
    stages: int, knobs: dict[str, str], text: str, present: int
) -> None:
    model, last = sized(text, stages, **knobs)
    assert model.block("p0", 0).present == present == model.rss("p0")
    assert not last.vmstat["thp_fault_alloc"] and not last.vmstat["nr_anon_transparent_hugepages"]


def test_a_page_that_is_lost_of_a_reservation_is_replaced_by_a_single_page() -> None:
    # The child's exit leaves the slot used; nothing larger may cover the neighbours' pages.
    text = "p0 map 0:0 512\np0 write 0:20 1 1\np0 fork p1\np0 write 0:20 1 2\np0 write 0:21 1 2"
    model, last = sized(text, hugepages_64kB="always")
    assert model.block("p0", 0).present == 2
    assert last.vmstat["thp_res_mapped"] == 2


def test_multi_size_pages_are_promoted_by_copy() -> None:
    text = "p0 map 0:0 512\np0 write 0:0 260 1\np0 advise 0:0 512 huge\nkhugepaged"
    model, last = sized(text, hugepages_64kB="always", enabled="madvise")
    assert blocks(model) == {0: (True, 512, 0)}
    assert counters(last) == {"nr_anon_transparent_hugepages": 1, "thp_collapse_alloc": 1}


def test_multi_size_pages_that_are_freed_in_part_are_split() -> None:
    # Of 16 pages one is written; the 15 of zeros become the zero page. /proc/vmstat counts huge pages only.
    model, last = sized("p0 map 0:0 100\np0 write 0:3 1 1\np0 advise 0:0 1 free", hugepages_64kB="always")
    assert blocks(model) == {0: (False, 1, 15)}
    assert counters(last) == {}
    model, last = sized("p0 map 0:0 100\np0 write 0:3 1 1\np0 advise 0:0 16 free", hugepages_64kB="always")
    assert blocks(model) == {0: (False, 16, 0)}


def test_multi_size_pages_are_on_one_node() -> None:
    text = "p0 map 0:0 100\np0 bind 0:0 100 1\np0 write 0:3 1 1"
    model, _ = follow(text, CORE, 2, {"hugepages-64kB": "always"})
    assert nodes(model) == {0: [0, 16]}
