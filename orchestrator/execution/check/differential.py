# SPDX-License-Identifier: GPL-2.0-only
"""Compares a trace in a real kernel with the reference model, step by step.

The guest's ``trace-exec`` executes one operation at a time on one CPU, and prints the state of memory after each. The
model predicts this state. Everything that the model predicts must be in the output: a missing counter, process, block
or field is a divergence, and so is a value of the wrong type. Counters that only the guest has are not compared, but
counted by name.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from orchestrator.defaults import CHECK_TOPOLOGY
from orchestrator.errors import InfrastructureError
from orchestrator.execution.bench import Bench, Booted
from orchestrator.execution.ending import Ending, GuestEnded
from orchestrator.guest.ssh import CommandTimeout, GuestLost
from orchestrator.guest.workload import WorkloadFailed
from orchestrator.kernel.build import KernelBuild
from orchestrator.machine.topology import Topology
from orchestrator.model.trace import (
    PAGES_PER_BLOCK,
    Dump,
    Exit,
    Fork,
    Khugepaged,
    Operation,
    Remap,
    Set,
    Trace,
    format_operation,
    format_trace,
)
from orchestrator.store.outcome import Outcome

#: One CPU per node, and two nodes, so that memory can be bound to a node.
DEFAULT_TOPOLOGY = CHECK_TOPOLOGY
PROGRAM = "trace-exec"
#: Timeout per operation in host seconds; TCG on a loaded host takes about ten milliseconds.
_TIMEOUT_S = 120.0
_TIMEOUT_A_STEP_S = 0.5
#: Number of operations per batch: progress is shown per batch, and a panic loses at most one batch.
_BATCH_STEPS = 4000
#: `trace-exec` examines all blocks of all processes after this many steps (CHECK_STEPS there).
CHECK_STEPS = 50
#: Outcomes of a guest that do not tell whether its kernel agrees with the model.
_INCOMPARABLE = frozenset({Outcome.LOST, Outcome.WORKLOAD_FAILED})
#: The observed value of something that is missing in the output.
MISSING = "missing"
_NUMBERS = re.compile(r"\bp?\d+\b\.?")


class Expectation(Protocol):
    """The prediction of a model for one operation."""

    @property
    def errno(self) -> str | Literal[0]:
        """Name of the error or signal; 0 if the operation succeeds."""

    @property
    def vmstat(self) -> Mapping[str, int]:
        """Counter -> its change since the start of the trace, for counters that the kernel has."""


class BlockView(Protocol):
    """The predicted state of a block."""

    def as_dict(self) -> Mapping[str, Any]:
        """The fields that ``trace-exec`` prints."""


class ReferenceModel(Protocol):
    """The model to compare with: :class:`orchestrator.model.memory.Model`, or a fake in tests."""

    @property
    def settings(self) -> Mapping[str, str]:
        """Current values of all knobs."""

    @property
    def alive(self) -> Sequence[str]:
        """Names of the existing processes."""

    def step(self, operation: Operation) -> Expectation:
        """Apply one operation, and return the prediction."""

    def block(self, name: str, block: int) -> BlockView:
        """The current state of a block of a process."""

    def rss(self, name: str) -> int:
        """Current number of anonymous pages in the arena of a process."""


#: Creates the model of a kernel for a trace.
ModelFor = Callable[[Trace], ReferenceModel]


@dataclass(frozen=True)
class Difference:
    """A field in which kernel and model differ: ``vmstat.thp_res_alloc``, ``p0.blocks.3.present``."""

    field: str
    expected: object
    observed: object

    @property
    def kind(self) -> str:
        """The field without process and block: it stays the same while a trace is shrunk."""
        return _NUMBERS.sub("", self.field)


@dataclass(frozen=True)
class Divergence:
    """The first step after which kernel and model differ.

    Args:
        step: number of the step, from 0; the number of operations if the difference is after the end of all processes.
        operation: line of the operation.
        differences: at least one difference, the most significant first.
    """

    step: int
    operation: str
    differences: tuple[Difference, ...]

    @property
    def first(self) -> Difference:
        """The most significant difference."""
        return self.differences[0]

    def __str__(self) -> str:
        first = self.first
        return f"step {self.step} ({self.operation}): {first.field} is {first.observed}, expected {first.expected}"

    def to_json(self) -> dict[str, object]:
        """For ``--json`` and the run directory."""
        return {
            "step": self.step,
            "operation": self.operation,
            "differences": [
                {"field": each.field, "expected": each.expected, "observed": each.observed}
                for each in self.differences
            ],
        }


@dataclass
class Answers:
    """The output of a guest for one trace.

    Args:
        steps: one object per finished step, as printed.
        over: the counters after all processes have exited; None if the trace did not finish.
        reason: why it did not finish.
        lines: output lines of this trace.
    """

    begin: Mapping[str, Any] = field(default_factory=dict)
    steps: list[Mapping[str, Any]] = field(default_factory=list)
    over: Mapping[str, Any] | None = None
    reason: str = "the guest did not run it"
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TraceComparison:
    """The result of comparing one trace.

    Args:
        compared: number of comparisons per kind of field.
        uncompared: fields that only the guest has, by kind.
        moved: kinds of fields whose predicted value differs from the first one at some step. For all others the
            comparison only shows that they did not change.
    """

    divergence: Divergence | None
    steps: int
    compared: Mapping[str, int]
    uncompared: Mapping[str, int]
    moved: frozenset[str] = frozenset()


def parse_answers(text: str) -> tuple[list[Answers], str | None]:
    """Parse the output of ``trace-exec``, trace by trace.

    Returns:
        The traces that were started, and a fault of the output as a whole, or None. The last line may be truncated, as
        it is if the guest dies.
    """
    traces: list[Answers] = []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        try:
            record = json.loads(line)
        except ValueError:
            return traces, "its output ends in the middle of a line"
        if not isinstance(record, dict):
            return traces, f"it printed {line[:80]}, which is not an object"
        if "trace" in record:
            if traces and not _same(traces[-1].begin["trace"] + 1, record["trace"]):
                return traces, f"trace {record['trace']} follows trace {traces[-1].begin['trace']}"
            if type(record["trace"]) is not int:
                return traces, f"a trace's number is {record['trace']}"
            traces.append(Answers(record, reason="it ended in the middle of the trace"))
        elif "end" in record:
            if number + 1 < len(lines):
                return traces, "it printed more after its end"
            return traces, None if record["end"] == "ok" else str(record.get("reason", "it failed"))
        if not traces:
            return traces, f"it begins with {line[:80]}"
        last = traces[-1]
        last.lines.append(line)
        if "trace" in record:
            continue
        if last.over is not None:
            return traces, f"it printed {line[:80]} after the end of a trace"
        if "abandoned" in record:
            last.reason = str(record.get("reason", "no reason given"))
        elif "over" in record:
            last.over = record
        elif "step" in record:
            last.steps.append(record)
        else:
            return traces, f"it printed {line[:80]}, which is not a result"
    return traces, "it stopped without reporting its end"


def compare(trace: Trace, answers: Answers, model: ReferenceModel) -> TraceComparison:
    """Compare the output of a guest with the predictions of a new model, up to the first difference."""
    return _Comparing(trace, answers, model).run()


def expected_views(trace: Trace, step: int, alive: Sequence[str]) -> tuple[Mapping[str, Sequence[int]], bool]:
    """What ``trace-exec`` must report after a step.

    Args:
        alive: the processes after that step.

    Returns:
        The blocks by process, and whether the anonymous memory of each process is reported as well.
    """
    operation = trace.operations[step]
    everything = range(trace.blocks)
    thorough = (step + 1) % CHECK_STEPS == 0 or step + 1 == len(trace.operations)
    if thorough or isinstance(operation, Khugepaged | Dump):
        return dict.fromkeys(alive, everything), thorough
    if isinstance(operation, Set | Exit):
        return {}, False
    if isinstance(operation, Fork):
        return {operation.process: everything, operation.child: everything}, False
    touched = _blocks_of(operation.start, operation.count)
    if isinstance(operation, Remap):
        touched |= _blocks_of(operation.new_start, operation.new_count)
    return {operation.process: sorted(touched)}, False


def _blocks_of(start: int, count: int) -> set[int]:
    return set(range(start // PAGES_PER_BLOCK, (start + count - 1) // PAGES_PER_BLOCK + 1))


def _same(expected: object, observed: object) -> bool:
    """Whether both are equal and of the same type: in JSON, `false` is not 0, and 1.0 is not a number of pages."""
    if isinstance(expected, list):
        return (
            isinstance(observed, list)
            and len(expected) == len(observed)
            and all(map(_same, expected, observed))
        )
    return type(expected) is type(observed) and expected == observed


def _empty_hash() -> str:
    value = 0xCBF29CE484222325
    for _ in range(PAGES_PER_BLOCK):
        value = value * 0x100000001B3 % 2**64
    return f"{value:016x}"


#: Fields in order of significance: wrong contents are more significant than how pages are mapped.
_EMPTY: Mapping[str, Any] = {
    "hash": _empty_hash(),
    "huge": False,
    "present": 0,
    "zero": 0,
    "swapped": 0,
    "nodes": [],
}


class _Comparing:
    """The comparison of one trace."""

    def __init__(self, trace: Trace, answers: Answers, model: ReferenceModel) -> None:
        self._trace = trace
        self._answers = answers
        self._model = model
        self._compared: Counter[str] = Counter()
        self._uncompared: Counter[str] = Counter()
        self._moved: set[str] = set()
        self._vmstat: dict[str, object] = {}

    def run(self) -> TraceComparison:
        """Compare step by step, up to the first difference."""
        answers, model = self._answers, self._model
        differences = list(self._update_counters(answers.begin))
        last: Expectation | None = None
        for number, operation in enumerate(self._trace.operations):
            if number == len(answers.steps):
                differences.append(Difference("process", "alive", answers.reason))
            if differences:
                return self._ended(number, differences)
            last = model.step(operation)
            differences += self._step(number, answers.steps[number], last)
            if differences:
                return self._ended(number, differences)
        end = len(self._trace.operations)
        if len(answers.steps) > end:
            differences.append(Difference("steps", end, len(answers.steps)))
        if answers.over is None:
            differences.append(Difference("process", "gone", answers.reason))
        else:
            differences += self._update_counters(answers.over)
        for process in list(model.alive):
            last = model.step(Exit(process))
        if last is not None and not differences:
            differences += self._counters(last.vmstat)
        return self._ended(end, differences)

    def _ended(self, step: int, differences: Sequence[Difference]) -> TraceComparison:
        operations = self._trace.operations
        divergence = None
        if differences:
            line = format_operation(operations[step]) if step < len(operations) else "end of all processes"
            divergence = Divergence(step, line, tuple(differences))
        return TraceComparison(divergence, step, self._compared, self._uncompared, frozenset(self._moved))

    def _check(
        self, kind: str, field: str, first: object, expected: object, observed: object
    ) -> Iterator[Difference]:
        """Compare one field; `first` is its value at the start of a trace."""
        self._compared[kind] += 1
        if expected != first:
            self._moved.add(kind)
        if not _same(expected, observed):
            yield Difference(field, expected, observed)

    def _step(self, number: int, answer: Mapping[str, Any], expectation: Expectation) -> Iterator[Difference]:
        """All differences in one step; those of contents first."""
        if not _same(number, answer["step"]):
            yield Difference("step", number, answer["step"])
        yield from self._check("errno", "errno", 0, expectation.errno, answer.get("errno", MISSING))
        # Not printed if there are none; the hashes then show that there are no such pages.
        yield from self._check("torn", "torn", [], [], answer.get("torn", []))
        views, with_rss = expected_views(self._trace, number, self._model.alive)
        processes = answer.get("processes", MISSING)
        if not isinstance(processes, dict):
            yield Difference("processes", "an object", processes)
            processes = {}
        for process in [*views, *(each for each in processes if each not in views)]:
            if process not in self._model.alive:
                yield Difference(f"{process}.alive", False, True)
            elif not isinstance(processes.get(process, MISSING), dict):
                yield Difference(process, "an answer", processes.get(process, MISSING))
            else:
                yield from self._process(process, processes[process], views.get(process, ()), with_rss)
        yield from self._update_counters(answer)
        yield from self._counters(expectation.vmstat)

    def _process(
        self, process: str, told: Mapping[str, Any], numbers: Sequence[int], with_rss: bool
    ) -> Iterator[Difference]:
        used, empty = told.get("blocks", MISSING), told.get("empty", [])
        if not isinstance(used, dict) or not all(each.isdecimal() for each in used):
            yield Difference(f"{process}.blocks", "an object of blocks by number", used)
            return
        if not isinstance(empty, list) or not all(type(each) is int for each in empty):
            yield Difference(f"{process}.empty", "a list of blocks", empty)
            return
        blocks = {**{int(number): block for number, block in used.items()}, **dict.fromkeys(empty, _EMPTY)}
        if len(blocks) < len(used) + len(empty):
            yield Difference(f"{process}.empty", "each block once", empty)
        for number in sorted({*blocks, *numbers}):
            field = f"{process}.blocks.{number}"
            block = blocks.get(number, MISSING)
            if not isinstance(block, Mapping):
                yield Difference(field, "an answer", block)
                continue
            want = self._model.block(process, number).as_dict()
            for name in sorted({*want, *block}, key=_rank):
                if name not in want:
                    self._uncompared[f"blocks.{name}"] += 1
                    continue
                observed = block.get(name, MISSING)
                yield from self._check(
                    f"blocks.{name}", f"{field}.{name}", _EMPTY.get(name), want[name], observed
                )
        if with_rss or "rss" in told:
            expected = self._model.rss(process)
            yield from self._check("rss", f"{process}.rss", 0, expected, told.get("rss", MISSING))

    def _update_counters(self, answer: Mapping[str, Any]) -> Iterator[Difference]:
        """Update the counters from a step, which reports those that have changed."""
        told = answer.get("vmstat", MISSING)
        if isinstance(told, dict):
            self._vmstat |= told
        else:
            yield Difference("vmstat", "an object", told)

    def _counters(self, expected: Mapping[str, int]) -> Iterator[Difference]:
        for name in sorted({*self._vmstat, *expected}):
            kind = f"vmstat.{name}"
            if name in expected:
                observed = self._vmstat.get(name, MISSING)
                yield from self._check(kind, kind, 0, expected[name], observed)
            else:
                self._uncompared[kind] += 1


def _rank(name: str) -> int:
    return list(_EMPTY).index(name) if name in _EMPTY else len(_EMPTY)


class TraceGuest:
    """Guests of one kernel for running traces: one boot for many traces, and a new one if a guest is lost.

    Args:
        log_directory: directory for ``boot-N/`` with the logs of the machine, and ``answers-N.jsonl``.
        booted: a running guest to use; then no other is booted, and its loss is an error.
    """

    def __init__(
        self,
        bench: Bench,
        kernel: KernelBuild,
        topology: Topology,
        log_directory: Path,
        cmdline: Sequence[str] = (),
        booted: Booted | None = None,
    ) -> None:
        self._bench = bench
        self._kernel = kernel
        self._topology = topology
        self._logs = log_directory
        self._cmdline = cmdline
        self._given = booted
        self._booted = booted
        self._stack = ExitStack()
        self._boots = 0
        self._batches = 0
        self._refused: GuestEnded | None = None
        self._findings_seen = len(booted.machine.findings()) if booted else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def boots(self) -> int:
        """Number of guests booted so far."""
        return self._boots

    def run(self, traces: Sequence[Trace]) -> list[tuple[Answers | None, Ending]]:
        """Run traces one after another, each in new processes.

        Returns:
            Per trace, its output (None if no guest came up to run it), and the state of the guest at its end. After a
            report of the kernel the next trace gets a new boot; if several traces ran together, each is run again
            alone, to find the one that causes the report. If the guest is lost, so is the current trace, and later
            ones get a new boot.
        """
        results: list[tuple[Answers | None, Ending]] = []
        while rest := traces[len(results) :]:
            try:
                self.up()
            except GuestEnded as error:
                return [*results, *((None, error.ending) for _ in rest)]
            answers, ending = self._run_once(rest)
            if ending.is_ok and len(answers) == len(rest) and all(each.over for each in answers):
                return [*results, *((each, ending) for each in answers)]
            if ending.is_lost:
                whole = [each for each in answers if each.over][: len(rest) - 1]
                results += [(each, Ending(Outcome.OK)) for each in whole]
                results.append((next(iter(answers[len(whole) :]), Answers()), ending))
            elif len(rest) == 1:
                results.append((answers[0] if answers else Answers(), ending))
            else:
                results += [pair for trace in rest for pair in self.run([trace])]
        return results

    def _run_once(self, traces: Sequence[Trace]) -> tuple[list[Answers], Ending]:
        booted = self.up()
        self._logs.mkdir(parents=True, exist_ok=True)
        output = self._logs / f"answers-{self._batches}.jsonl"
        self._batches += 1
        text = "".join(format_trace(trace) for trace in traces)
        timeout_s = _TIMEOUT_S + _TIMEOUT_A_STEP_S * sum(len(trace.operations) for trace in traces)
        stopped: Exception | None = None
        try:
            booted.guest.run([PROGRAM], stdin=text, stdout=output, timeout_s=timeout_s)
        except (GuestLost, CommandTimeout) as error:
            stopped = error
        printed = output.read_text(encoding="utf-8") if output.exists() else ""
        output.unlink(missing_ok=True)
        answers, wrong = parse_answers(printed)
        if stopped is None and wrong is not None:
            stopped = WorkloadFailed(f"{PROGRAM} in the guest: {wrong}")
        ending = booted.ending(stopped, since=self._findings_seen)
        self._findings_seen += len(ending.findings)
        if ending.is_ok and len(answers) != len(traces):  # although it reported success
            raise InfrastructureError(
                f"{PROGRAM} in the guest answered {len(answers)} of {len(traces)} traces."
            )
        if not ending.is_ok:
            if answers and answers[-1].over is None:
                answers[-1].reason = ending.title
            self._down()
        return answers, ending

    def up(self) -> Booted:
        """The guest for the next traces; booted if there is none.

        Raises:
            GuestEnded: it did not come up, now or in an earlier attempt.
            InfrastructureError: the guest that was passed in is lost.
        """
        if self._refused is not None:
            raise self._refused
        if self._booted is None:
            if self._given is not None:
                raise InfrastructureError("the guest that runs the traces is lost.")
            logs = self._logs / f"boot-{self._boots}"
            logs.mkdir(parents=True, exist_ok=True)
            self._boots += 1
            self._findings_seen = 0
            try:
                self._booted = self._stack.enter_context(
                    self._bench.boot(self._kernel, self._topology, log_directory=logs, cmdline=self._cmdline)
                )
            except GuestEnded as error:
                self._refused = error
                raise
            self._booted.machine.end_after_oops()
        return self._booted

    def _down(self) -> None:
        self._booted = None
        self._stack.close()


@dataclass(frozen=True)
class Checked:
    """A trace that was run and compared.

    Args:
        seconds: host seconds; time of traces that ran together is divided by the number of operations.
        ending: the state of the guest at the end of the trace.
    """

    trace: Trace
    answers: Answers
    comparison: TraceComparison
    seconds: float = 0.0
    ending: Ending = Ending(Outcome.OK)  # noqa: RUF009 - it is frozen

    @property
    def divergence(self) -> Divergence | None:
        """The first difference; None if there is none."""
        return self.comparison.divergence

    @property
    def incomparable(self) -> Ending | None:
        """Why the trace was not compared to its end; None if it was, or diverges before."""
        return None if self.ending.is_ok or self.divergence else self.ending


def check_traces(
    guest: TraceGuest,
    traces: Sequence[Trace],
    model_for: ModelFor,
    on_checked: Callable[[Checked], None] = lambda checked: None,
) -> list[Checked]:
    """Run traces in a guest, and compare each with a new model.

    Args:
        on_checked: called for each trace as soon as its result is known.

    A guest that does not come up, or is lost, is a result: see :attr:`Checked.ending`.
    """
    results: list[Checked] = []
    for batch in batches(traces):
        began = time.monotonic()
        ran = guest.run(batch)
        run_s = time.monotonic() - began
        operations = sum(len(trace.operations) for trace in batch)
        for trace, (answers, ending) in zip(batch, ran, strict=True):
            began = time.monotonic()
            if answers is None:
                results.append(Checked(trace, Answers(), TraceComparison(None, 0, {}, {}), 0.0, ending))
                on_checked(results[-1])
                continue
            comparison = compare(trace, answers, model_for(trace))
            if ending.findings and (comparison.divergence is None or answers.over is None):
                told = Difference("console", "nothing", ending.findings[0].title)
                comparison = _stopped(trace, answers, told, comparison)
            elif ending.outcome in _INCOMPARABLE:
                # The output ends early, so the next step is missing; this is not the kernel's fault.
                if _differs_before(comparison, answers):
                    ending = Ending(Outcome.OK)
                else:
                    comparison = replace(comparison, divergence=None)
            elif not ending.is_ok and answers.over is None and not _differs_before(comparison, answers):
                told = Difference("process", "alive", ending.title)
                comparison = _stopped(trace, answers, told, comparison)
            share = len(trace.operations) / operations if operations else 1 / len(batch)
            seconds = run_s * share + time.monotonic() - began
            results.append(Checked(trace, answers, comparison, seconds, ending))
            on_checked(results[-1])
    return results


def _differs_before(comparison: TraceComparison, answers: Answers) -> bool:
    """Whether a step in the output differs, as opposed to output that ends early."""
    return comparison.divergence is not None and comparison.divergence.step < len(answers.steps)


def _stopped(
    trace: Trace, answers: Answers, told: Difference, comparison: TraceComparison
) -> TraceComparison:
    """A kernel that reports a bug or hangs diverges in any case, since no model predicts that."""
    step = len(answers.steps)
    operation = format_operation(trace.operations[step]) if step < len(trace.operations) else "some step"
    return TraceComparison(
        Divergence(step, operation, (told,)),
        comparison.steps,
        comparison.compared,
        comparison.uncompared,
        comparison.moved,
    )


def batches(traces: Sequence[Trace], steps: int = _BATCH_STEPS) -> Iterable[Sequence[Trace]]:
    """Group `traces` in order, so that each group has at most `steps` operations, or only one trace."""
    batch: list[Trace] = []
    for trace in traces:
        if batch and sum(len(each.operations) for each in (*batch, trace)) > steps:
            yield batch
            batch = []
        batch.append(trace)
    if batch:
        yield batch
