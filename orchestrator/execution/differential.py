# SPDX-License-Identifier: GPL-2.0-only
"""The same trace in a real kernel and in the reference model, compared answer by answer.

The guest's ``trace-exec`` does one operation at a time on one processor and says after each what became of the
memory; the model says what it expects of the same operation. What either of them does not have (a counter of a
later stage, a figure that the model cannot foretell) is counted as not compared, never guessed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from orchestrator.defaults import CHECK_TOPOLOGY
from orchestrator.errors import InfrastructureError
from orchestrator.execution.bench import Bench, Booted
from orchestrator.guest.ssh import CommandTimeout, GuestLost
from orchestrator.kernel.build import KernelBuild
from orchestrator.machine.oops import Finding
from orchestrator.machine.qemu import MachineFailure
from orchestrator.machine.topology import Topology
from orchestrator.model.trace import Exit, Operation, Trace, format_operation, format_trace

#: One processor a node, and two nodes, so that there is something to bind to.
DEFAULT_TOPOLOGY = CHECK_TOPOLOGY
PROGRAM = "trace-exec"
#: Host seconds for an operation: TCG on a loaded host takes some ten milliseconds.
_TIMEOUT_S = 120.0
_TIMEOUT_A_STEP_S = 0.5
#: Operations that are handed to the guest at once: progress is shown, and a panic loses, that many.
_BATCH_STEPS = 4000
_NUMBERS = re.compile(r"\bp?\d+\b\.?")


class Expectation(Protocol):
    """What a model expects of one operation."""

    @property
    def errno(self) -> str | Literal[0]:
        """Name of the error or signal; 0 where the operation succeeds."""

    @property
    def vmstat(self) -> Mapping[str, int]:
        """Counter -> its change since the trace began; those that the kernel has."""


class BlockView(Protocol):
    """What a model expects to be seen of a block."""

    def as_dict(self) -> Mapping[str, Any]:
        """The figures that ``trace-exec`` prints."""


class ReferenceModel(Protocol):
    """What is compared with: :class:`orchestrator.model.memory.Model`, or a test's own."""

    @property
    def settings(self) -> Mapping[str, str]:
        """Every knob's value now."""

    @property
    def alive(self) -> Sequence[str]:
        """Names of the processes there are."""

    def step(self, operation: Operation) -> Expectation:
        """Do one operation, and say what a kernel should answer."""

    def block(self, name: str, block: int) -> BlockView:
        """How a block of a process is now."""

    def rss(self, name: str) -> int:
        """Anonymous pages of a process's arena now."""


#: Makes the model of a kernel for one trace.
ModelFor = Callable[[Trace], ReferenceModel]


@dataclass(frozen=True)
class Difference:
    """A field in which kernel and model differ: ``vmstat.thp_res_alloc``, ``p0.blocks.3.present``."""

    field: str
    expected: object
    observed: object

    @property
    def kind(self) -> str:
        """The field without the process and the block: what stays the same while a trace shrinks."""
        return _NUMBERS.sub("", self.field)


@dataclass(frozen=True)
class Divergence:
    """The first step after which kernel and model differ.

    Args:
        step: from 0; the number of operations where it is the end of all processes that differs.
        operation: its line.
        differences: at least one, the most telling first.
    """

    step: int
    operation: str
    differences: tuple[Difference, ...]

    @property
    def first(self) -> Difference:
        """The field to name."""
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
    """What a guest answered to one trace.

    Args:
        steps: one a step that was finished, as printed.
        over: the counters once all processes are gone; None where it did not come to that.
        reason: why not, for a person.
        lines: everything of this trace as the guest printed it.
    """

    begin: Mapping[str, Any] = field(default_factory=dict)
    steps: list[Mapping[str, Any]] = field(default_factory=list)
    over: Mapping[str, Any] | None = None
    reason: str = "the guest did not come to it"
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """A trace compared.

    Args:
        compared: number of comparisons a kind of field.
        uncompared: fields that the kernel gave and the model did not expect anything of, or the other way round.
    """

    divergence: Divergence | None
    steps: int
    compared: Mapping[str, int]
    uncompared: Mapping[str, int]


def parse_answers(text: str) -> tuple[list[Answers], str | None]:
    """What ``trace-exec`` printed, trace by trace.

    Returns:
        The traces that were begun, and what is wrong as a whole; None where it ended well. The last line may be
        cut off, as it is when a guest dies.
    """
    traces: list[Answers] = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            return traces, "its output ends in the middle of a line"
        if "trace" in record:
            traces.append(Answers(record, reason="it ended in the middle of the trace"))
        elif "end" in record:
            return traces, None if record["end"] == "ok" else str(record.get("reason", "it failed"))
        if not traces:
            return traces, f"it begins with {line[:80]}"
        traces[-1].lines.append(line)
        if "step" in record and "errno" in record:
            traces[-1].steps.append(record)
        elif "abandoned" in record:
            traces[-1].reason = record["reason"]
        elif "over" in record:
            traces[-1].over = record
    return traces, "it stopped without saying how it ended"


def compare(trace: Trace, answers: Answers, model: ReferenceModel) -> Comparison:
    """Compare the answers of a guest with those of a fresh model, up to the first difference."""
    compared: Counter[str] = Counter()
    uncompared: Counter[str] = Counter()
    vmstat = dict(answers.begin.get("vmstat", {}))

    def ended(step: int, operation: str, differences: Sequence[Difference]) -> Comparison:
        divergence = Divergence(step, operation, tuple(differences))
        return Comparison(divergence, step, compared, uncompared)

    for number, operation in enumerate(trace.operations):
        line = format_operation(operation)
        if number == len(answers.steps):
            return ended(number, line, [Difference("process", "alive", answers.reason)])
        answer = answers.steps[number]
        vmstat |= answer["vmstat"]
        expectation = model.step(operation)
        differences = list(_differences(answer, vmstat, expectation, model, compared, uncompared))
        if differences:
            return ended(number, line, differences)
    end = len(trace.operations)
    if answers.over is None:
        return ended(end, "end of all processes", [Difference("process", "gone", answers.reason)])
    vmstat |= answers.over["vmstat"]
    last: Expectation | None = None
    for process in list(model.alive):
        last = model.step(Exit(process))
    if last is not None:
        differences = list(_counter_differences(vmstat, last.vmstat, compared, uncompared))
        if differences:
            return ended(end, "end of all processes", differences)
    return Comparison(None, end, compared, uncompared)


def _differences(
    answer: Mapping[str, Any],
    vmstat: Mapping[str, int],
    expectation: Expectation,
    model: ReferenceModel,
    compared: Counter[str],
    uncompared: Counter[str],
) -> Iterable[Difference]:
    """Everything in which one answer differs; what is wrong with contents first."""
    compared["errno"] += 1
    if answer["errno"] != expectation.errno:
        yield Difference("errno", expectation.errno, answer["errno"])
    compared["torn"] += 1
    if answer.get("torn"):
        yield Difference("torn", [], answer["torn"])
    alive = model.alive
    for process, told in answer["processes"].items():
        if process not in alive:
            yield Difference(f"{process}.alive", False, True)
            continue
        blocks = {int(number): block for number, block in told["blocks"].items()}
        for number in sorted({*blocks, *told.get("empty", ())}):
            block = blocks.get(number, _EMPTY)
            want = model.block(process, number).as_dict()
            for name in _BLOCK_FIELDS:
                compared[f"blocks.{name}"] += 1
                if block[name] != want[name]:
                    yield Difference(f"{process}.blocks.{number}.{name}", want[name], block[name])
        if "rss" in told:
            compared["rss"] += 1
            rss = model.rss(process)
            if told["rss"] != rss:
                yield Difference(f"{process}.rss", rss, told["rss"])
    yield from _counter_differences(vmstat, expectation.vmstat, compared, uncompared)


#: In the order of what says most: wrong contents outrank how they are mapped.
_BLOCK_FIELDS = ("hash", "huge", "present", "zero", "swapped")


def _empty_hash() -> str:
    value = 0xCBF29CE484222325
    for _ in range(512):
        value = value * 0x100000001B3 % 2**64
    return f"{value:016x}"


_EMPTY: Mapping[str, Any] = {"hash": _empty_hash(), "huge": False, "present": 0, "zero": 0, "swapped": 0}


def _counter_differences(
    observed: Mapping[str, int],
    expected: Mapping[str, int],
    compared: Counter[str],
    uncompared: Counter[str],
) -> Iterable[Difference]:
    for name in sorted({*observed, *expected}):
        if name not in observed or name not in expected:
            uncompared[f"vmstat.{name}"] += 1
            continue
        compared[f"vmstat.{name}"] += 1
        if observed[name] != expected[name]:
            yield Difference(f"vmstat.{name}", expected[name], observed[name])


class TraceGuest:
    """Guests of one kernel that traces are run in: one boot for many, a fresh one after one is lost.

    Args:
        log_directory: gets ``boot-N/`` with what the machine leaves, and ``answers-N.jsonl``.
        booted: a guest that is up already; then none is booted, and its loss is an error.
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
        self._findings_seen = len(booted.machine.findings()) if booted else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def boots(self) -> int:
        """How many guests it took until now."""
        return self._boots

    def run(self, traces: Sequence[Trace]) -> list[tuple[Answers, list[Finding]]]:
        """Run traces one after another, each from nothing.

        Returns:
            For each its answers and what the kernel said of itself meanwhile. A kernel that complains is booted
            anew, and where several traces were run, each is run alone: it then is known whose complaint it is.
        """
        answers, findings = self._run_once(traces)
        if not findings and len(answers) == len(traces) and all(each.over for each in answers):
            return [(each, []) for each in answers]
        if len(traces) == 1:
            return [(answers[0] if answers else Answers(), findings)]
        return [pair for trace in traces for pair in self.run([trace])]

    def _run_once(self, traces: Sequence[Trace]) -> tuple[list[Answers], list[Finding]]:
        booted = self._up()
        self._logs.mkdir(parents=True, exist_ok=True)
        output = self._logs / f"answers-{self._batches}.jsonl"
        self._batches += 1
        text = "".join(format_trace(trace) for trace in traces)
        timeout_s = _TIMEOUT_S + _TIMEOUT_A_STEP_S * sum(len(trace.operations) for trace in traces)
        lost: Exception | None = None
        try:
            booted.guest.run([PROGRAM], stdin=text, stdout=output, timeout_s=timeout_s)
        except (GuestLost, MachineFailure, CommandTimeout) as error:
            lost = error
        printed = output.read_text(encoding="utf-8") if output.exists() else ""
        output.unlink(missing_ok=True)
        answers, wrong = parse_answers(printed)
        findings = booted.machine.findings()[self._findings_seen :]
        self._findings_seen += len(findings)
        if lost is not None and answers and answers[-1].over is None:
            answers[-1].reason = str(lost)
        if wrong is not None and lost is None and not findings:
            raise InfrastructureError(f"{PROGRAM} in the guest: {wrong}.")
        if lost is not None or findings:
            self._down()
        return answers, findings

    def _up(self) -> Booted:
        if self._booted is None:
            if self._given is not None:
                raise InfrastructureError("the guest that traces were to be run in is lost.")
            logs = self._logs / f"boot-{self._boots}"
            logs.mkdir(parents=True, exist_ok=True)
            self._boots += 1
            self._findings_seen = 0
            self._booted = self._stack.enter_context(
                self._bench.boot(self._kernel, self._topology, log_directory=logs, cmdline=self._cmdline)
            )
        return self._booted

    def _down(self) -> None:
        self._booted = None
        with suppress(GuestLost, MachineFailure):  # it is lost, which is why it goes
            self._stack.close()


@dataclass(frozen=True)
class Checked:
    """A trace that was run and compared."""

    trace: Trace
    answers: Answers
    comparison: Comparison

    @property
    def divergence(self) -> Divergence | None:
        """The first difference; None where there is none."""
        return self.comparison.divergence


def check_traces(
    guest: TraceGuest,
    traces: Sequence[Trace],
    model_for: ModelFor,
    on_checked: Callable[[Checked], None] = lambda checked: None,
) -> list[Checked]:
    """Run traces in a guest, and compare each with a fresh model.

    Args:
        on_checked: called for each as soon as it is known.

    Raises:
        MachineFailure: a guest did not come up.
    """
    results: list[Checked] = []
    for batch in batches(traces):
        for trace, (answers, findings) in zip(batch, guest.run(batch), strict=True):
            comparison = compare(trace, answers, model_for(trace))
            if findings and (comparison.divergence is None or answers.over is None):
                comparison = _complained(trace, answers, findings, comparison)
            results.append(Checked(trace, answers, comparison))
            on_checked(results[-1])
    return results


def _complained(
    trace: Trace, answers: Answers, findings: Sequence[Finding], comparison: Comparison
) -> Comparison:
    """A kernel that complains diverges, whatever its memory looks like: no model expects a BUG."""
    step = len(answers.steps)
    operation = format_operation(trace.operations[step]) if step < len(trace.operations) else "some step"
    told = Difference("console", "nothing", findings[0].title)
    return Comparison(
        Divergence(step, operation, (told,)), comparison.steps, comparison.compared, comparison.uncompared
    )


def batches(traces: Sequence[Trace], steps: int = _BATCH_STEPS) -> Iterable[Sequence[Trace]]:
    """`traces` in order, as few groups as have at most `steps` operations each, or one trace."""
    batch: list[Trace] = []
    for trace in traces:
        if batch and sum(len(each.operations) for each in (*batch, trace)) > steps:
            yield batch
            batch = []
        batch.append(trace)
    if batch:
        yield batch
