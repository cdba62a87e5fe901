# SPDX-License-Identifier: GPL-2.0-only
"""Comparing what a guest answered with what a model expects, with both of them made up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from guest_data import DIRECTORY, ROOT

from orchestrator.errors import InfrastructureError
from orchestrator.execution.bench import Booted
from orchestrator.execution.check.differential import (
    CHECK_STEPS,
    TraceGuest,
    batches,
    check_traces,
    compare,
    expected_views,
    parse_answers,
)
from orchestrator.guest.ssh import GuestLost
from orchestrator.machine.oops import Finding
from orchestrator.model.memory import RangeView
from orchestrator.model.trace import Operation, Trace, Write, parse
from orchestrator.store.outcome import Outcome

TRACE = parse("trace 1\nblocks 1\np0 map 0:0 512 huge\np0 write 0:3 1 7\nkhugepaged\n")
#: As the guest prints it: counters when they change, empty blocks by number.
ANSWERS = (DIRECTORY / "trace_answers.jsonl").read_text(encoding="utf-8")
END = '{"end": "ok"}\n'
HUGE = {"huge": True, "present": 512, "zero": 0, "swapped": 0, "nodes": [512], "hash": "00000000000000aa"}


@dataclass
class ExpectedState:
    vmstat: Mapping[str, int]
    blocks: Mapping[int, Mapping[str, Any]]
    errno: Literal[0] = 0


class ScriptedModel:
    """Expects these, one after another; and at the end what it expected last."""

    settings: Mapping[str, str] = {}
    alive: Sequence[str] = ("p0",)

    def __init__(self, *expected: ExpectedState) -> None:
        self.expected = list(expected)
        self.now = expected[0]

    def step(self, operation: Operation) -> ExpectedState:
        self.now = self.expected.pop(0) if len(self.expected) > 1 else self.expected[0]
        return self.now

    def block(self, name: str, block: int) -> RangeView:
        view = RangeView(None)
        for field, value in self.now.blocks.get(block, {}).items():
            setattr(view, field, value)
        return view

    def rss(self, name: str) -> int:
        return 512 * len(self.now.blocks)


def numbered(count: int) -> str:
    """The answers to the same trace several times in a row."""
    return "".join(ANSWERS.replace('"trace": 0', f'"trace": {number}') for number in range(count))


def right() -> ScriptedModel:
    mapped = ExpectedState({"thp_fault_alloc": 1}, {0: HUGE})
    return ScriptedModel(ExpectedState({"thp_fault_alloc": 0}, {}), mapped, mapped)


def test_equal_answers_are_compared_field_by_field() -> None:
    (answers,), wrong = parse_answers(ANSWERS + END)
    assert wrong is None
    comparison = compare(TRACE, answers, right())
    assert comparison.divergence is None and comparison.steps == 3
    assert comparison.compared["vmstat.thp_fault_alloc"] == 4
    assert comparison.compared["blocks.hash"] == 3 and comparison.compared["rss"] == 1
    # The model expects nothing of this counter, so nothing is said about it.
    assert comparison.uncompared == {"vmstat.thp_collapse_alloc": 4}


@pytest.mark.parametrize(
    ("old", "new", "step", "name", "kind"),
    [
        ('"errno": 0, "vmstat": {"thp', '"errno": "ENOMEM", "vmstat": {"thp', 1, "errno", "errno"),
        ('"thp_fault_alloc": 1', '"thp_fault_alloc": 2', 1, "vmstat.thp_fault_alloc", "vmstat.thp_fault_alloc"),
        ('"hash": "00000000000000aa"}}}', '"hash": "00000000000000ab"}}}', 1, "p0.blocks.0.hash", "blocks.hash"),
        ('"rss": 512', '"rss": 511', 2, "p0.rss", "rss"),
        (
            '"over": 0, "vmstat": {',
            '"over": 0, "vmstat": {"thp_fault_alloc": 3',
            3, "vmstat.thp_fault_alloc", "vmstat.thp_fault_alloc",
        ),
        ('{"step": 2, "errno": 0', '{"step": 2, "torn": [5], "errno": 0', 2, "torn", "torn"),
    ],
)  # fmt: skip
def test_the_first_difference_is_named(old: str, new: str, step: int, name: str, kind: str) -> None:
    assert old in ANSWERS
    (answers,), _ = parse_answers(ANSWERS.replace(old, new) + END)
    divergence = compare(TRACE, answers, right()).divergence
    assert divergence is not None
    assert (divergence.step, divergence.first.field, divergence.first.kind) == (step, name, kind)


LAST = '{"step": 2, "errno": 0, "vmstat": {}, '
BLOCK = '{"0": {"huge": true, "present": 512, "zero": 0, "swapped": 0, "nodes": [512], "hash": "00000000000000aa"}}'


@pytest.mark.parametrize(
    ("old", "new", "step", "name", "observed"),
    [
        # Counters: one that was never reported, those of a step, those at the end.
        ('"thp_fault_alloc": 0, ', "", 0, "vmstat.thp_fault_alloc", "missing"),
        (', "vmstat": {"thp_fault_alloc": 0, "thp_collapse_alloc": 0}}', "}", 0, "vmstat", "missing"),
        ('"vmstat": {"thp_fault_alloc": 1}, ', "", 1, "vmstat", "missing"),
        ('"vmstat": {"thp_fault_alloc": 1}, ', '"vmstat": [], ', 1, "vmstat", []),
        ('{"over": 0, "vmstat": {}}', '{"over": 0}', 3, "vmstat", "missing"),
        # Processes
        ('"processes": {"p0": {"blocks": {}, "empty": [0]}}', '"processes": {}', 0, "p0", "missing"),
        (', "processes": {"p0": {"blocks": {}, "empty": [0]}}', "", 0, "processes", "missing"),
        ('{"p0": {"blocks": {}, "empty": [0]}}', '{"p0": null}', 0, "p0", None),
        ('{"p0": {"blocks": {}, "empty": [0]}}', '{"p0": {"blocks": {}, "empty": [0]}, "p1": {}}', 0, "p1.alive", True),
        # Blocks
        (', "empty": [0]', "", 0, "p0.blocks.0", "missing"),
        ('"blocks": {}, "empty": [0]', '"empty": [0]', 0, "p0.blocks", "missing"),
        ('"empty": [0]', '"empty": 0', 0, "p0.empty", 0),
        ('"empty": [0]', '"empty": [0, 0]', 0, "p0.empty", [0, 0]),
        ('"blocks": {}', '"blocks": {"0": []}', 0, "p0.empty", [0]),
        (BLOCK, '{"0": null}', 1, "p0.blocks.0", None),
        (BLOCK, '{"zero": 0}', 1, "p0.blocks", {"zero": 0}),
        # Fields of a block
        ('"nodes": [512], ', "", 1, "p0.blocks.0.nodes", "missing"),
        ('"zero": 0, ', "", 1, "p0.blocks.0.zero", "missing"),
        ('"swapped": 0', '"swapped": false', 1, "p0.blocks.0.swapped", False),
        ('"present": 512', '"present": 512.0', 1, "p0.blocks.0.present", 512.0),
        ('"huge": true', '"huge": 1', 1, "p0.blocks.0.huge", 1),
        ('"nodes": [512]', '"nodes": [0, 512]', 1, "p0.blocks.0.nodes", [0, 512]),
        # The rest
        (', "rss": 512', "", 2, "p0.rss", "missing"),
        ('"rss": 512', '"rss": "512"', 2, "p0.rss", "512"),
        (LAST, '{"step": 2, "vmstat": {}, ', 2, "errno", "missing"),
        (LAST, '{"step": 2, "errno": false, "vmstat": {}, ', 2, "errno", False),
        (LAST, LAST.replace("0", '0, "torn": null', 1), 2, "torn", None),
        (LAST, LAST.replace("2", "3", 1), 2, "step", 3),
    ],
)  # fmt: skip
def test_what_is_missing_or_of_the_wrong_type_is_a_divergence(
    old: str, new: str, step: int, name: str, observed: object
) -> None:
    assert old in ANSWERS
    (answers,), _ = parse_answers(ANSWERS.replace(old, new) + END)
    divergence = compare(TRACE, answers, right()).divergence
    assert divergence is not None
    assert divergence.step == step
    first = next(each for each in divergence.differences if each.field == name)
    assert first.observed == observed and type(first.observed) is type(observed)


def test_a_step_that_is_missing_or_too_many_is_a_divergence() -> None:
    lines = ANSWERS.splitlines(keepends=True)
    (answers,), _ = parse_answers("".join([*lines[:2], *lines[3:]]) + END)
    divergence = compare(TRACE, answers, right()).divergence
    assert divergence is not None and divergence.first.field == "step"
    (answers,), _ = parse_answers("".join([*lines[:4], lines[3], lines[4]]) + END)
    assert str(compare(TRACE, answers, right()).divergence) == (
        "step 3 (end of all processes): steps is 4, expected 3"
    )


def test_counters_are_compared_at_the_end_though_every_process_has_exited() -> None:
    trace = parse("trace 1\nblocks 1\np0 exit\n")
    text = (
        '{"trace": 0, "vmstat": {"thp_fault_alloc": 0}}\n'
        '{"step": 0, "errno": 0, "vmstat": {}, "processes": {}}\n'
        '{"over": 0, "vmstat": {"thp_fault_alloc": 1}}\n'
    )
    (answers,), _ = parse_answers(text + END)
    model = ScriptedModel(ExpectedState({"thp_fault_alloc": 0}, {}))
    model.alive = ()
    assert str(compare(trace, answers, model).divergence) == (
        "step 1 (end of all processes): vmstat.thp_fault_alloc is 1, expected 0"
    )


@pytest.mark.parametrize(
    ("line", "views"),
    [
        ("p0 map 1:0 512", {"p0": [1]}),
        ("p0 write 1:511 2 1", {"p0": [1, 2]}),
        ("p0 remap 0:0 600 3:511 1", {"p0": [0, 1, 3]}),
        ("p0 fork p1", {"p0": [0, 1, 2, 3], "p1": [0, 1, 2, 3]}),
        ("p0 exit", {}),
        ("set enabled always", {}),
        ("khugepaged", {"p0": [0, 1, 2, 3]}),
        ("dump", {"p0": [0, 1, 2, 3]}),
    ],
)
def test_what_has_to_be_reported_after_an_operation(line: str, views: dict[str, list[int]]) -> None:
    trace = parse(
        f"trace 1\nblocks 4\nkhugepaged\n{line}\ndump\n".replace("p0 exit\n", "p0 fork p1\np0 exit\n")
    )
    step = len(trace.operations) - 2
    alive = ["p1"] if "exit" in line else [*{"p0": None, **views}]
    told, with_rss = expected_views(trace, step, alive)
    assert ({process: list(blocks) for process, blocks in told.items()}, with_rss) == (views, False)


def test_everything_has_to_be_reported_every_so_many_steps_and_at_the_end() -> None:
    trace = parse("trace 1\nblocks 2\n" + "p0 map 0:0 1\n" * 101)
    whole = [step for step in range(101) if expected_views(trace, step, ["p0"])[1]]
    assert whole == [49, 99, 100]
    assert expected_views(trace, 49, ["p0", "p1"])[0] == {"p0": range(2), "p1": range(2)}


def test_the_program_looks_at_everything_as_often_as_the_comparison_expects() -> None:
    source = (ROOT / "vm_images" / "guest" / "tools" / "trace-exec.c").read_text(encoding="utf-8")
    assert f"#define CHECK_STEPS {CHECK_STEPS}\n" in source


def test_which_fields_have_moved_is_known() -> None:
    (answers,), _ = parse_answers(ANSWERS + END)
    moved = compare(TRACE, answers, right()).moved
    assert moved == {
        "vmstat.thp_fault_alloc", "blocks.hash", "blocks.huge", "blocks.present", "blocks.nodes", "rss",
    }  # fmt: skip


def test_a_guest_that_answers_fewer_traces_than_it_was_given_has_failed(tmp_path: Path) -> None:
    for told in (1, 3):
        bench = ScriptedBench(numbered(told) + END)
        with guest_of(bench, tmp_path) as guest, pytest.raises(InfrastructureError, match="of 2 traces"):
            guest.run([TRACE] * 2)


def test_wrong_contents_are_named_before_counters() -> None:
    told = ANSWERS.replace('"thp_fault_alloc": 1', '"thp_fault_alloc": 9').replace("00aa", "00ab")
    (answers,), _ = parse_answers(told + END)
    divergence = compare(TRACE, answers, right()).divergence
    assert divergence is not None
    assert [each.field for each in divergence.differences] == ["p0.blocks.0.hash", "vmstat.thp_fault_alloc"]
    assert str(divergence) == (
        "step 1 (p0 write 0:3 1 7): p0.blocks.0.hash is 00000000000000ab, expected 00000000000000aa"
    )
    assert json.loads(json.dumps(divergence.to_json()))["differences"][1]["observed"] == 9


def test_a_process_that_dies_diverges_at_its_step() -> None:
    text = "\n".join(ANSWERS.splitlines()[:2]) + '\n{"abandoned": 0, "step": 1, "reason": "p0 died"}\n'
    (answers,), wrong = parse_answers(text + END)
    assert wrong is None
    divergence = compare(TRACE, answers, right()).divergence
    assert divergence is not None
    assert str(divergence) == "step 1 (p0 write 0:3 1 7): process is p0 died, expected alive"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (ANSWERS, "it stopped without reporting its end"),
        (ANSWERS + '{"st', "its output ends in the middle of a line"),
        (ANSWERS + '{"end": "error", "reason": "line 3 of the trace: no number"}', "line 3 of the trace: no number"),
        ("[]", "it printed [], which is not an object"),
        ("5", "it printed 5, which is not an object"),
        ('{"step": 0}', 'it begins with {"step": 0}'),
        (ANSWERS + ANSWERS, "trace 0 follows trace 0"),
        (ANSWERS + '{"step": 3}', 'it printed {"step": 3} after the end of a trace'),
        ('{"trace": 0}\n{"stp": 1}', 'it printed {"stp": 1}, which is not a result'),
        (ANSWERS + END + ANSWERS, "it printed more after its end"),
        ("", "it stopped without reporting its end"),
    ],
)  # fmt: skip
def test_output_that_is_not_whole_is_noticed(text: str, wrong: str) -> None:
    assert parse_answers(text)[1] == wrong


_CUT = '{"st'
#: What a guest has printed of a trace whose second step is under way.
LOST = ANSWERS[: ANSWERS.index('{"step": 1')] + _CUT


class ScriptedGuest:
    """Prints what it is told to, batch by batch; None is a guest that dies in the middle."""

    def __init__(self, outputs: Sequence[str | None], findings: list[Finding]) -> None:
        self.outputs = list(outputs)
        self.findings = findings
        self.ran: list[int] = []

    def run(self, argv: Sequence[str], *, stdin: str, stdout: Path, timeout_s: float) -> None:
        self.ran.append(stdin.count("trace 1\n"))
        output = self.outputs.pop(0)
        if output is not None and output.endswith(_CUT):
            stdout.write_text(output)
            raise GuestLost("QEMU was ended by signal 9")
        if output is None:
            stdout.write_text(ANSWERS[: ANSWERS.index('{"step": 1')])
            self.findings.append(Finding(Outcome.KERNEL_PANIC, "kernel BUG at mm/thp.c", "text", 1))
            raise GuestLost("the guest panicked")
        stdout.write_text(output)


class ScriptedBench:
    def __init__(self, *outputs: str | None) -> None:
        self.boots = 0
        self.findings: list[Finding] = []
        self.guest = ScriptedGuest(outputs, self.findings)

    def boot(self, *_: object, **__: object) -> ScriptedBench:
        self.boots += 1
        self.findings.clear()
        return self

    def __enter__(self) -> object:
        machine: Any = SimpleNamespace(
            findings=lambda: list(self.findings), failure=None, end_after_oops=lambda: None
        )
        return Booted(machine, self.guest, 1.0)  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        pass


def guest_of(bench: ScriptedBench, tmp_path: Path) -> TraceGuest:
    return TraceGuest(bench, None, None, tmp_path)  # type: ignore[arg-type]


def test_many_traces_are_one_call_of_the_guest(tmp_path: Path) -> None:
    bench = ScriptedBench(numbered(3) + END)
    with guest_of(bench, tmp_path) as guest:
        checked = check_traces(guest, [TRACE] * 3, lambda trace: right())
    assert [each.divergence for each in checked] == [None] * 3
    assert (bench.boots, bench.guest.ran) == (1, [3])


def test_a_panic_is_found_out_by_running_each_alone_in_a_new_guest(tmp_path: Path) -> None:
    bench = ScriptedBench(None, ANSWERS + END, None)
    with guest_of(bench, tmp_path) as guest:
        first, second = check_traces(guest, [TRACE] * 2, lambda trace: right())
    assert first.divergence is None
    assert second.divergence is not None
    assert (second.divergence.step, second.divergence.first.field) == (1, "console")
    assert second.divergence.first.observed == "kernel BUG at mm/thp.c"
    assert (bench.boots, bench.guest.ran) == (2, [2, 1, 1])


def test_a_trace_that_the_program_does_not_understand_is_not_a_divergence(tmp_path: Path) -> None:
    bench = ScriptedBench('{"end": "error", "reason": "line 3 of the trace: no number"}\n')
    with guest_of(bench, tmp_path) as guest:
        (checked,) = check_traces(guest, [TRACE], lambda trace: right())
    assert checked.divergence is None
    assert checked.incomparable is not None
    assert checked.incomparable.outcome is Outcome.WORKLOAD_FAILED
    assert "line 3 of the trace: no number" in checked.incomparable.evidence


def test_what_diverges_before_the_guest_is_lost_diverges(tmp_path: Path) -> None:
    bench = ScriptedBench(LOST)
    with guest_of(bench, tmp_path) as guest:
        (checked,) = check_traces(
            guest, [TRACE], lambda trace: ScriptedModel(ExpectedState({"thp_fault_alloc": 5}, {}))
        )
    assert checked.divergence is not None and checked.divergence.step == 0
    assert checked.incomparable is None


def test_only_the_trace_under_way_is_lost_with_its_guest(tmp_path: Path) -> None:
    bench = ScriptedBench(ANSWERS + LOST.replace('"trace": 0', '"trace": 1'), ANSWERS + END)
    with guest_of(bench, tmp_path) as guest:
        checked = check_traces(guest, [TRACE] * 3, lambda trace: right())
    assert [each.divergence for each in checked] == [None] * 3
    assert [each.ending.outcome for each in checked] == [Outcome.OK, Outcome.LOST, Outcome.OK]
    assert (bench.boots, bench.guest.ran) == (2, [3, 1])


def test_batches_are_as_large_as_they_may_be() -> None:
    traces = [Trace((Write("p0", 0, 1, 1),) * count) for count in (3, 3, 9, 1, 1)]
    assert [[len(t.operations) for t in batch] for batch in batches(traces, 6)] == [[3, 3], [9], [1, 1]]
