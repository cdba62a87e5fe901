# SPDX-License-Identifier: GPL-2.0-only
"""Shrinks a trace that shows a divergence.

Delta debugging (Zeller and Hildebrandt, Simplifying and isolating failure-inducing input, IEEE TSE 28(2), 2002) of the
operations, then of their arguments. Candidates are tried in batches: a running guest tries dozens of them in the time
of one boot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from orchestrator.model.trace import (
    Bind,
    Dump,
    Exit,
    Fork,
    Khugepaged,
    Operation,
    Remap,
    Set,
    Trace,
)

#: Returns the index of the first trace that still shows the divergence; None if none does.
FirstFailing = Callable[[Sequence[Trace]], int | None]
#: Operations per batch: enough to hide the round trip to the guest, but few enough to waste little work.
_BATCH_STEPS = 2000


def shrink(trace: Trace, first_failing: FirstFailing, on_progress: Callable[[Trace], None]) -> Trace:
    """The shortest trace found that still shows the divergence of `trace`.

    No single operation of the result can be removed, and none reduced to one page.

    Args:
        trace: a trace that diverges at its last operation.
        first_failing: runs traces in new processes.
        on_progress: called with each shorter trace.
    """

    def adopt(candidates: Iterator[Trace]) -> Trace | None:
        """The first candidate that still shows the divergence; they are tried in batches."""
        while batch := _batch(candidates):
            found = first_failing(batch)
            if found is not None:
                on_progress(batch[found])
                return batch[found]
        return None

    while True:
        before = trace
        trace = _drop_operations(trace, adopt)
        trace = _simplify(trace, adopt)
        if trace == before:
            return trace


Adopt = Callable[[Iterator[Trace]], Trace | None]


def _batch(candidates: Iterator[Trace]) -> list[Trace]:
    batch = list(islice(candidates, 1))
    while batch and sum(len(each.operations) for each in batch) + len(batch[0].operations) <= _BATCH_STEPS:
        more = next(candidates, None)
        if more is None:
            break
        batch.append(more)
    return batch


def _drop_operations(trace: Trace, adopt: Adopt) -> Trace:
    pieces = 2
    while trace.operations:
        size = max(len(trace.operations) // pieces, 1)
        found = adopt(_without_pieces(trace, size))
        if found is not None:
            # Continue with pieces of the same size: the next one may not be needed either.
            trace = found
            pieces = max(min(pieces - 1, len(trace.operations)), 2)
        elif size == 1:
            return trace
        else:
            pieces = min(2 * pieces, len(trace.operations))
    return trace


def _without_pieces(trace: Trace, size: int) -> Iterator[Trace]:
    # From the end: later operations depend on earlier ones, not the other way round.
    for start in reversed(range(0, len(trace.operations), size)):
        kept = trace.operations[:start] + trace.operations[start + size :]
        candidate = replace(trace, operations=valid(kept))
        if len(candidate.operations) < len(trace.operations):
            yield candidate


def _simplify(trace: Trace, adopt: Adopt) -> Trace:
    while (found := adopt(_simpler(trace))) is not None:
        trace = found
    return trace


def _simpler(trace: Trace) -> Iterator[Trace]:
    for knob in trace.settings:
        yield replace(trace, settings={key: v for key, v in trace.settings.items() if key != knob})
    for number, operation in enumerate(trace.operations):
        for simpler in _simpler_operations(operation):
            yield replace(
                trace,
                operations=(*trace.operations[:number], simpler, *trace.operations[number + 1 :]),
            )


def _simpler_operations(operation: Operation) -> Iterator[Operation]:
    if isinstance(operation, Khugepaged | Dump | Set):
        return
    if operation.thread:
        yield replace(operation, thread=0)
    if isinstance(operation, Fork | Exit | Bind | Remap):
        return
    for count in dict.fromkeys((1, operation.count // 2, operation.count - 1)):
        if 0 < count < operation.count:
            yield replace(operation, count=count)


def valid(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """`operations` without those of nonexistent processes."""
    alive = used = frozenset({"p0"})
    kept: list[Operation] = []
    for operation in operations:
        if not isinstance(operation, Khugepaged | Dump | Set):
            if operation.process not in alive:
                continue
            if isinstance(operation, Fork):
                if operation.child in used:
                    continue
                alive, used = alive | {operation.child}, used | {operation.child}
            elif isinstance(operation, Exit):
                alive -= {operation.process}
        kept.append(operation)
    return tuple(kept)
