# SPDX-License-Identifier: GPL-2.0-only
"""What an inspection of a guest's memory says, and what it finds wrong.

``data/inspection.json`` is what ``orchestrate inspect --json`` said of a guest of two nodes in which one process held
ranges with a few pages, and another one huge pages, lost pages and a memory cgroup.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from orchestrator.cli.application import status_of
from orchestrator.debugger import inspection as module
from orchestrator.debugger.inspection import (
    EMPTY,
    HUGE,
    LOST,
    MAPPED,
    PAGES,
    RANGE_BYTES,
    RESERVED,
    USES,
    InspectedNode,
    Inspection,
    MemoryCgroup,
    PageRun,
    Process,
    Range,
    ReservedBlock,
)
from orchestrator.debugger.memory_map import _STATES, _USES, draw
from orchestrator.debugger.summary import to_json, to_line, to_text
from orchestrator.debugger.violation import RULES, BrokenRule, lasting, violations
from orchestrator.errors import UserError

FIXTURE = Path(__file__).parent / "data" / "inspection.json"

MM, ROOT, GROUP = 0xFFFF888001000000, 0xFFFF888002000000, 0xFFFF888002001000
START = 0x7F0000200000


def run(state: str, first: int, count: int, **changes: Any) -> PageRun:
    """Pages as they should be."""
    own = state == RESERVED
    whole = PageRun(
        first,
        count,
        state,
        own,
        1,
        0 if own else 1,
        "" if own else "lru|swapbacked",
        0 if own else 0xFFFF8881,
        0,
    )
    return dataclasses.replace(whole, **changes)


def reservation(number: int, node: int = 0, mapped: int = 3, **changes: Any) -> ReservedBlock:
    start = START + number * RANGE_BYTES
    runs = tuple(
        each for each in (run(MAPPED, 0, mapped), run(RESERVED, mapped, PAGES - mapped)) if each.count
    )
    whole = ReservedBlock(
        0xFFFF888003000000 + 256 * number, MM, start, MM, start, (1 + number + 100 * node) * PAGES, node, GROUP,
        PAGES - mapped, PAGES - mapped, False, True, False, runs,
    )  # fmt: skip
    return dataclasses.replace(whole, **changes)


def sound() -> Inspection:
    """Two nodes, four reservations of one process, one of them without unused pages."""
    all_ = (reservation(0), reservation(1), reservation(2, node=1), reservation(3, node=1, mapped=PAGES))
    nodes = tuple(
        InspectedNode(
            number,
            sum(each.bits for each in all_ if each.node == number),
            tuple(each.address for each in all_ if each.node == number and each.bits),
            sum(1 for each in all_ if each.node == number and each.bits),
            "",
            100 * number * PAGES,
            tuple((0, PAGES, 0, 0, 0, 0, 0, 0) for _ in range(8)),
        )
        for number in (0, 1)
    )
    counters = {node.number: node.counter for node in nodes}
    memcgs = (
        MemoryCgroup(ROOT, "/", 0, {0: 0, 1: 0}, None),
        MemoryCgroup(GROUP, "/job", ROOT, counters, 3 * PAGES),
    )
    ranges = tuple(
        Range(each.start, f"{each.pages(MAPPED)}m" + (f"{each.bits}r" if each.bits else "")) for each in all_
    )
    process = Process(71, "hold", MM, (*ranges, Range(START + 9 * RANGE_BYTES, f"{PAGES}{HUGE}")))
    return Inspection("6.12.118", 256, nodes, (process,), memcgs, all_, ())


def with_reservation(inspection: Inspection, number: int, **changes: Any) -> Inspection:
    all_ = list(inspection.reservations)
    all_[number] = dataclasses.replace(all_[number], **changes)
    return dataclasses.replace(inspection, reservations=tuple(all_))


def with_node(inspection: Inspection, number: int, **changes: Any) -> Inspection:
    nodes = list(inspection.nodes)
    nodes[number] = dataclasses.replace(nodes[number], **changes)
    return dataclasses.replace(inspection, nodes=tuple(nodes))


def with_list(inspection: Inspection, node: int, *addresses: int) -> Inspection:
    return with_node(inspection, node, listed=addresses, list_nr=len(addresses))


def with_memcg(inspection: Inspection, **changes: Any) -> Inspection:
    root, group = inspection.memcgs
    return dataclasses.replace(inspection, memcgs=(root, dataclasses.replace(group, **changes)))


def with_page(number: int, page: PageRun) -> Callable[[Inspection], Inspection]:
    """Plant a page into a reservation, in the place of its first unused pages."""

    def plant(inspection: Inspection) -> Inspection:
        mapped, unused = inspection.reservations[number].runs
        rest = dataclasses.replace(unused, first=page.first + page.count, count=unused.count - page.count)
        return with_reservation(inspection, number, runs=(mapped, page, rest))

    return plant


NUMBERS = [reservation(number).address for number in range(4)]
ADDRESS = f"{reservation(1).address:#x}"
FAULTS: list[tuple[str, Callable[[Inspection], Inspection], str]] = [
    (
        "the count of",
        lambda x: with_reservation(x, 1, nr_unused=508),
        f"{ADDRESS} of hold .* holds 508 .* 509",
    ),
    (
        "in the tree",
        lambda x: with_reservation(x, 1, tree_mm=0),
        f"{ADDRESS} .* list of node 0, but not in the tree",
    ),
    (
        "in the tree",
        lambda x: with_reservation(x, 1, mm=0xBAD),
        f"{ADDRESS} .* tree of mm {MM:#x}, .* mm is 0xbad",
    ),
    (
        "in the tree",
        lambda x: with_reservation(x, 1, start=0x200000),
        f"{START + RANGE_BYTES:#x}, .* 0x200000",
    ),
    ("in the tree", lambda x: with_reservation(x, 1, covered=False), f"{ADDRESS} .* no anonymous VMA covers"),
    (
        "in the tree",
        lambda x: with_reservation(x, 1, has_huge_page=True),
        f"{ADDRESS} .* huge page is mapped",
    ),
    ("a block is", lambda x: with_reservation(x, 1, pfn=0x401), f"{ADDRESS} .* not aligned: pfn 0x401"),
    ("a block is", lambda x: with_reservation(x, 1, node=-1), f"{ADDRESS} .* no memory"),
    ("a block is", lambda x: with_reservation(x, 1, pfn=PAGES), f"{ADDRESS} .* the block of .* pfn 0x200"),
    (
        "an unused page",
        with_page(1, run(RESERVED, 3, 1, refcount=2)),
        f"unused page with 2 references .* pfn 0x403, .* {ADDRESS} .* holds for {START + RANGE_BYTES + 0x3000:#x}",
    ),
    ("an unused page", with_page(1, run(RESERVED, 3, 2, refcount=0)), "unused 2 pages with 0 references"),
    ("an unused page", with_page(1, run(RESERVED, 3, 1, mapcount=1)), "map count of 1: pfn 0x403"),
    ("an unused page", with_page(1, run(RESERVED, 3, 1, mapping=0xABC1)), "mapping 0xabc1: pfn 0x403"),
    ("an unused page", with_page(1, run(RESERVED, 3, 1, memcg=0xABC)), "memcg data 0xabc: pfn 0x403"),
    (
        "no page table",
        lambda x: dataclasses.replace(x, mapped=((0x403, MM, 0x7000),)),
        f"pfn 0x403 at address 0x7000 of hold .* {ADDRESS}",
    ),
    (
        "the list of",
        lambda x: with_node(x, 0, list_error="its entry"),
        "list of node 0 is damaged: its entry",
    ),
    ("the list of", lambda x: with_node(x, 0, list_nr=3), "list of node 0 says that it has 3 .* has 2"),
    ("the list of", lambda x: with_list(x, 0, NUMBERS[0]), f"0 lacks .* {ADDRESS}"),
    ("the list of", lambda x: with_list(x, 0, *NUMBERS[:2], NUMBERS[1]), f"{ADDRESS} 2 times"),
    ("the list of", lambda x: with_list(x, 1, *NUMBERS[2:]), f"{NUMBERS[3]:#x} .* which holds no pages"),
    (
        "the list of",
        lambda x: with_list(x, 1, NUMBERS[2], NUMBERS[1]),
        f"list of node 1 has .* {ADDRESS} .* block is on node 0",
    ),
    ("the counter of a node", lambda x: with_node(x, 1, counter=1), "of node 1 is 1, but .* hold 509 pages"),
    (
        "the counter of a memcg",
        lambda x: with_memcg(x, counters={0: 1018, 1: 7}),
        f"/job .{GROUP:#x}. on node 1 is 7",
    ),
    ("the limit of", lambda x: with_memcg(x, held=0), f"/job .{GROUP:#x}. is 0, .* 1536 pages"),
]


def test_nothing_is_wrong_with_what_is_sound() -> None:
    assert violations(sound()) == []


@pytest.mark.parametrize(("rule", "plant", "message"), FAULTS)
def test_a_planted_fault_is_found_with_its_addresses(
    rule: str, plant: Callable[[Inspection], Inspection], message: str
) -> None:
    found = violations(plant(sound()))
    first = [each for each in found if each.rule.startswith(rule) or rule in each.rule]
    assert first and re.search(message, first[0].what), found


def test_each_rule_has_a_fault_that_it_alone_finds() -> None:
    alone = set()
    for _, plant, _ in FAULTS:
        rules = {each.rule for each in violations(plant(sound()))}
        if len(rules) == 1:
            alone |= rules
    assert alone == set(RULES)


def test_a_stage_without_lists_and_cgroups_has_nothing_wrong() -> None:
    plain = dataclasses.replace(
        sound(),
        memcgs=(),
        nodes=tuple(dataclasses.replace(node, listed=None, list_nr=0) for node in sound().nodes),
    )
    assert violations(plain) == []
    assert "-" in to_text(plain, [], 120).splitlines()[3]


def test_only_what_lasts_is_wrong() -> None:
    one, two, three = (BrokenRule("rule", name) for name in "abc")
    assert lasting([one, two], [three, two]) == [two]


def frames(*entries: int) -> tuple[list[bool], list[int]]:
    present, numbers = module._frames_of(np.array(entries, np.uint64))
    return present.tolist(), numbers.tolist()


def test_the_frame_of_a_page_table_entry() -> None:
    nx, dirty = 1 << 63, 0x67
    assert frames(0, (0x1234 << 12) | nx | dirty) == ([False, True], [0, 0x1234])
    # PROT_NONE: not present for the CPU, its frame inverted (pgtable-invert.h)
    inverted = ~(0x1234 << 12) & 0x000F_FFFF_FFFF_F000 | 1 << 8
    assert frames(inverted) == ([True], [0x1234])
    # a swap entry maps nothing
    assert frames(0x1234 << 40 | 0x2)[0] == [False]


def test_which_entries_map_a_frame_that_is_held() -> None:
    table = np.zeros(PAGES, np.uint64)
    table[5], table[6] = (0x700 << 12) | 0x67, (0x701 << 12) | 0x67
    held = np.array([0x100, 0x701, 0x900])
    assert module._mapped_of(MM, START, table, held) == [(0x701, MM, START + 6 * 4096)]
    assert module._mapped_of(MM, START, table, np.array([], np.int64)) == []


@given(st.text("".join((EMPTY, MAPPED, RESERVED, LOST, HUGE)), min_size=1, max_size=60))
def test_states_as_runs_and_back(text: str) -> None:
    states = np.frombuffer(text.encode(), np.uint8)
    assert Range(0, module._as_runs(states)).expanded() == text


def test_whether_vmas_cover_a_range() -> None:
    end = START + RANGE_BYTES
    assert module._covers([(START - 4096, START + 4096), (START + 4096, end + 1)], START)
    assert not module._covers([(START, START + 4096), (START + 8192, end)], START)
    assert not module._covers([(START + 4096, end)], START) and not module._covers([], START)


def test_the_tables() -> None:
    text = to_text(sound(), [], 140, blocks=True)
    lines = text.splitlines()
    assert lines[0] == "Linux 6.12.118, promotion_threshold 256: 4 reservations, 1527 unused pages (6.0 MiB)"
    assert ["0", "2", "1018", "1018", "2", "4096", "0"] in [line.split() for line in lines]
    assert ["4", "1527", "1527", "1536", "/job"] in [line.split() for line in lines]
    assert ["4", "521", "1527", "0", "1", "0", "hold", "(pid", "71)"] in [line.split() for line in lines]
    block = next(line for line in lines if line.startswith(ADDRESS))
    assert "1 unused, 1 mapped  hold (pid 71): lru|swapbacked" in block and "/job" in block
    assert lines[-1] == f"No violation of {len(RULES)} rules."
    assert ADDRESS not in to_text(sound(), [], 140)


def test_the_first_violation_is_shown_and_the_others_are_counted() -> None:
    wrong = with_reservation(sound(), 1, nr_unused=508, covered=False)
    found = violations(wrong)
    text = to_text(wrong, found, 100)
    assert len(found) == 2 and "VIOLATION: the count of a reservation" in text and ADDRESS in text
    assert text.endswith("and 1 other violation; --json lists all.")
    assert to_line(wrong, found).startswith(
        "4 reservations, 521 pages mapped, 1527 reserved, 0 lost, 1 huge page; 2 "
    )


def test_one_process_of_many() -> None:
    other = Process(72, "other", MM + 1, ())
    both = dataclasses.replace(sound(), processes=(*sound().processes, other))
    assert [each.pid for each in both.only(72).processes] == [72] and not both.only(72).reservations
    assert "other (pid 72)" not in to_text(both, [], 100, pid=71)
    with pytest.raises(UserError, match=r"--pid 5: .* those that have: hold \(pid 71\), other \(pid 72\)"):
        both.only(5)


def test_addresses_are_hexadecimal_in_json_and_numbers_are_not() -> None:
    facts = json.loads(json.dumps(to_json(sound(), [])))
    first = facts["reservations"][0]
    assert first["address"] == f"{reservation(0).address:#x}" and first["nr_unused"] == 509
    assert facts["violations"] == [] and facts["uses"] == list(USES)


# --- what a real guest said ----------------------------------------------------------------------------------------


def recorded() -> Inspection:
    facts = json.loads(FIXTURE.read_text(encoding="utf-8"))
    del facts["violations"], facts["uses"]

    def numbers(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: numbers(each) for key, each in value.items()}
        if isinstance(value, list):
            return [numbers(each) for each in value]
        return int(value, 16) if isinstance(value, str) and value.startswith("0x") else value

    inspection: Inspection = TypeAdapter(Inspection).validate_python(numbers(facts))
    return inspection


def test_a_real_guest_is_read_back_from_json_and_is_sound() -> None:
    inspection = recorded()
    again = json.loads(json.dumps(to_json(inspection, violations(inspection))))
    assert again == json.loads(FIXTURE.read_text(encoding="utf-8"))
    assert violations(inspection) == []
    states = {run.state for each in inspection.reservations for run in each.runs}
    assert states == {MAPPED, RESERVED, LOST}
    assert any(HUGE in each.states for process in inspection.processes for each in process.ranges)
    assert {node.number for node in inspection.nodes} == {0, 1}


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture_of_a_real_guest(tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{number}{suffix}" for number in (1, 2)]
    for file in files:
        draw(recorded(), file)
    assert files[0].read_bytes() == files[1].read_bytes() and files[0].stat().st_size > 10_000


def test_shades_can_be_told_apart_in_grey() -> None:
    from matplotlib.colors import to_rgb

    for colours in ([colour for _, _, colour in _STATES], [colour for _, _, colour in _USES[2:]]):
        greys = sorted(
            0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue in map(to_rgb, colours)
        )
        assert min(np.diff(greys)) > 0.07, greys


@pytest.mark.thorough
def test_a_picture_of_a_guest_without_reservations(tmp_path: Path) -> None:
    nothing = Inspection("6.12", None, sound().nodes, (), (), (), ())
    draw(nothing, tmp_path / "map.png")
    from PIL import Image

    assert Image.open(io.BytesIO((tmp_path / "map.png").read_bytes())).width == 1500


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A guest that says one inspection after the other; returns what QEMU was asked."""
    from orchestrator.cli import inspect as command
    from orchestrator.debugger import memory

    def prepare(*inspections: Inspection) -> list[str]:
        left, asked = list(inspections), list[str]()

        class MadeUpGuest:
            def execute(self, name: str, arguments: object = None, timeout_s: float = 10.0) -> Any:
                asked.append(name)
                return {"status": "running"}

        @contextmanager
        def attach(guest: object, kernel: object) -> Iterator[memory.Attached]:
            yield memory.Attached(MadeUpGuest(), memory.GuestMemory(None))  # type: ignore[arg-type]

        monkeypatch.setattr(memory, "attached", attach)
        monkeypatch.setattr(
            memory.RunningGuest, "in_directory", lambda _: memory.RunningGuest(*3 * (Path("x"),))
        )
        monkeypatch.setattr(command._Kernels, "of_guest", lambda *_: None)
        monkeypatch.setattr(module, "inspect", lambda _: left.pop(0))
        monkeypatch.setattr(command, "_AGAIN_S", 0.0)
        return asked

    return prepare


def test_the_command_ends_with_3_if_something_is_wrong(
    live: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = with_reservation(sound(), 1, nr_unused=508)
    asked = live(wrong, wrong, wrong)
    assert status_of(["inspect", str(tmp_path), "--blocks"]) == 3
    assert "VIOLATION" in capsys.readouterr().out
    assert asked == ["query-status", "stop", "cont"] * 3


def test_a_change_that_was_under_way_is_no_violation(
    live: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live(with_reservation(sound(), 1, nr_unused=508), sound())
    assert status_of(["inspect", str(tmp_path)]) == 0
    # Another one in each inspection: the kernel is busy, not wrong.
    live(*(with_reservation(sound(), number, nr_unused=508) for number in range(3)))
    assert status_of(["inspect", str(tmp_path)]) == 0
    assert "VIOLATION" not in capsys.readouterr().out


def test_json_has_everything(
    live: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live(sound())
    assert status_of(["inspect", str(tmp_path), "--json", "--plot", str(tmp_path / "map")]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(to_json(sound(), [])))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.png", "map.svg"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/no/such/place"], "/no/such/place does not exist; name the log directory"),
        (["."], "has no machine.json"),
        ([".", "-p", "full", "--vmlinux", "v"], "either --patchset NAME or --vmlinux FILE"),
        ([".", "--config", "debug-vm"], "omit --config"),
        ([str(FIXTURE)], "name the kernel in the dump"),
        ([str(FIXTURE), "--every", "1"], "omit --every"),
        ([".", "--plot", "/no/such/map"], "--plot /no/such/map: there is no directory"),
    ],
)
def test_bad_requests(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["inspect", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
