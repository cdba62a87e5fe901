# SPDX-License-Identifier: GPL-2.0-only
"""Shrinking, with a predicate in place of a guest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.execution.check.shrinking import shrink, valid
from orchestrator.model.trace import (
    Dump,
    Exit,
    Fork,
    Khugepaged,
    Operation,
    Trace,
    Write,
    format_trace,
    parse,
)


def first_of(shows: Callable[[Trace], bool]) -> Callable[[Sequence[Trace]], int | None]:
    return lambda traces: next((n for n, trace in enumerate(traces) if shows(trace)), None)


def shrunk(trace: Trace, shows: Callable[[Trace], bool]) -> Trace:
    assert shows(trace)
    return shrink(trace, first_of(shows), lambda _: None)


@given(st.sets(st.integers(0, 199), min_size=1, max_size=5))
def test_what_is_needed_is_what_is_left(needed: set[int]) -> None:
    trace = Trace(tuple(Write("p0", page, 1, page) for page in range(200)))
    left = shrunk(trace, lambda t: needed <= {op.seed for op in t.operations if isinstance(op, Write)})
    assert {op.seed for op in left.operations if isinstance(op, Write)} == needed


def test_a_fork_goes_with_what_its_child_does() -> None:
    operations: tuple[Operation, ...] = (
        Fork("p0", "p1"),
        *(Write("p1", page, 8, 1) for page in range(40)),
        Exit("p1"),
        Khugepaged(),
        Dump(),
    )
    tried: list[Trace] = []

    def shows(trace: Trace) -> bool:
        tried.append(trace)
        return Khugepaged() in trace.operations

    assert shrunk(Trace(operations), shows).operations == (Khugepaged(),)
    # Every candidate is a trace that can be replayed.
    assert all(parse(format_trace(trace)).operations == trace.operations for trace in tried)


def test_ranges_threads_and_settings_get_simpler() -> None:
    trace = Trace((Write("p0", 3, 400, 7, thread=2),), settings={"use_zero_page": "0", "enabled": "always"})
    left = shrunk(
        trace,
        lambda t: (
            any(isinstance(op, Write) and op.count >= 37 for op in t.operations) and "enabled" in t.settings
        ),
    )
    assert left == Trace((Write("p0", 3, 37, 7),), settings={"enabled": "always"})


def test_operations_of_processes_that_are_gone_are_left_out() -> None:
    operations = parse("trace 1\np0 fork p1\np1 fork p2\np2 exit\np1 exit\np0 write 0:0 1 1\n").operations
    assert valid(operations[1:]) == (operations[4],)
    assert valid(operations) == operations
