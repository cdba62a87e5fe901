# SPDX-License-Identifier: GPL-2.0-only
"""The trace language."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model import trace as tr
from orchestrator.model.trace import Trace, TraceError, format_trace, parse

EXAMPLE = """\
# an example
trace 1
seed 7
patchset core-only:5   # the first five stages
blocks 4
set promotion_threshold 256
set enabled madvise

p0 map 0:0 1024 huge
p0.t3 write 1:5 2 99
p0 read 517 1
p0 fork p1
p1 remap 0:0 512 2:0 512
p1 exit
set promotion_threshold 1
khugepaged
dump
"""


def test_a_trace_is_read() -> None:
    trace = parse(EXAMPLE)
    assert trace.comments == ("an example",)
    assert (trace.seed, trace.patchset, trace.blocks) == (7, "core-only:5", 4)
    assert trace.settings == {"promotion_threshold": "256", "enabled": "madvise"}
    assert trace.operations == (
        tr.Map("p0", 0, 1024, "huge"),
        tr.Write("p0", 517, 2, 99, thread=3),
        tr.Read("p0", 517, 1),
        tr.Fork("p0", "p1"),
        tr.Remap("p1", 0, 512, 1024, 512),
        tr.Exit("p1"),
        tr.Set("promotion_threshold", "1"),
        tr.Khugepaged(),
        tr.Dump(),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("p0 mapp 0:0 1", "the operation is `mapp`, but must be one of map, unmap"),
        ("p0", "the operation is missing at the end of `p0`"),
        ("q0 map 0:0 1", "`q0` is neither a process"),
        ("p16 map 0:0 1", "`p16` is neither a process"),
        ("p0.t4 read 0:0 1", "`p0.t4` is neither a process"),
        ("p0 map 0:512 1", "a block has pages 0 to 511"),
        ("p0 map 16:0 1", "outside of the 16 blocks"),
        ("p0 map 8192 1", "outside of the 16 blocks"),
        ("p0 map x 1", "BLOCK:PAGE"),
        ("p0 map 15:0 513", "513 pages from 15:0 go beyond the 16 blocks"),
        ("p0 map 0:0 0", "the count is 0, but must be from 1"),
        ("p0 map 0:0", "the count is missing"),
        ("p0 map 0:0 1 hugh", "the hint is `hugh`"),
        ("p0 read 0:0 1 5", "`5` is one word too many after `p0 read 0:0 1`"),
        ("p0 write 0:0 1 -5", "the seed is `-5`, but must be a number"),
        ("p0 protect 0:0 1 w", "the protection is `w`"),
        ("p0 advise 0:0 1 pageout", "the advice is `pageout`"),
        ("p0 bind 0:0 1 64", "the node is 64"),
        ("p1 read 0:0 1", "p1 does not exist yet"),
        ("p0 fork p0", "p0 is taken"),
        ("p0 fork p99", "processes are p0 to p15"),
        ("set promotion_threshold 513", "from 1 to 512"),
        ("set threshold 5", "the knob is `threshold`"),
        ("set enabled yes", "`enabled` is `yes`"),
        ("trace 1", "`trace` is given twice"),
        ("patchset a/b", "not the name of a patch set"),
        ("blocks 0", "the number of blocks is 0"),
    ],
)
def test_an_error_names_the_line_and_what_is_wrong(line: str, message: str) -> None:
    with pytest.raises(TraceError) as caught:
        parse(f"# comment\ntrace 1\n\n{line}\n", "my.trace")
    assert str(caught.value).startswith("my.trace:4: ")
    assert message in str(caught.value)


def test_the_dead_do_nothing() -> None:
    with pytest.raises(TraceError, match="trace:3: p0 has ended"):
        parse("trace 1\np0 exit\np0 read 0:0 1\n")


def test_a_header_comes_first() -> None:
    with pytest.raises(TraceError, match="must begin with the line `trace 1`"):
        parse("p0 map 0:0 1\n")
    with pytest.raises(TraceError, match="it is empty"):
        parse("# nothing\n")
    with pytest.raises(TraceError, match="`seed` belongs to the header"):
        parse("trace 1\nkhugepaged\nseed 4\n")
    with pytest.raises(TraceError, match="the version is 2"):
        parse("trace 2\n")


_THREADS = st.integers(0, tr.MAX_THREADS - 1)
_SEEDS = st.integers(0, tr.MAX_SEED)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    blocks = draw(st.integers(1, 32))
    pages = blocks * tr.PAGES_PER_BLOCK
    alive = ["p0"]
    operations: list[tr.Operation] = []

    def extent() -> tuple[int, int]:
        start = draw(st.integers(0, pages - 1))
        return start, draw(st.integers(1, pages - start))

    for _ in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from(get_args(tr.Operation)))
        if kind in (tr.Khugepaged, tr.Dump):
            operations.append(kind())
        elif kind is tr.Set:
            knob = draw(st.sampled_from(sorted(tr.KNOBS)))
            operations.append(tr.Set(knob, str(draw(st.sampled_from(tr.KNOBS[knob])))))
        elif alive:
            process, thread = draw(st.sampled_from(alive)), draw(_THREADS)
            if kind is tr.Fork:
                child = f"p{1 + sum(isinstance(operation, tr.Fork) for operation in operations)}"
                alive.append(child)
                operations.append(tr.Fork(process, child, thread))
            elif kind is tr.Exit:
                alive.remove(process)
                operations.append(tr.Exit(process, thread))
            else:
                extra = {
                    tr.Map: st.sampled_from([None, *tr.HINTS]),
                    tr.Write: _SEEDS,
                    tr.Protect: st.sampled_from(tr.PROTECTIONS),
                    tr.Advise: st.sampled_from(tr.ADVICE),
                    tr.Bind: st.integers(0, 63),
                }.get(kind)
                more = extent() if kind is tr.Remap else () if extra is None else (draw(extra),)
                operations.append(kind(process, *extent(), *more, thread=thread))
    settings = {}
    if operations and not isinstance(operations[0], tr.Set):
        settings = draw(st.dictionaries(st.just("max_ptes_none"), st.just("5")))
    return Trace(
        operations=tuple(operation for operation in operations if operation)
        if not operations or not isinstance(operations[0], tr.Set)
        else (tr.Khugepaged(), *operations),
        seed=draw(st.none() | _SEEDS),
        patchset=draw(st.sampled_from([None, "baseline", "core-only", "core-only:5", "stage-5"])),
        blocks=blocks,
        settings=settings,
        comments=tuple(draw(st.lists(st.text("ab c").map(str.strip), max_size=2))),
    )


@given(traces())
def test_what_is_written_is_read_as_the_same(trace: Trace) -> None:
    assert parse(format_trace(trace)) == trace


@given(st.text("p0123 map:ftrace#.\nwrite set", max_size=80))
def test_any_text_is_a_trace_or_an_error(text: str) -> None:
    try:
        parse(text)
    except TraceError as error:
        assert str(error).startswith("trace:")
