# SPDX-License-Identifier: GPL-2.0-only
"""Execution of a check: compares traces with a kernel, shrinks each divergence, and stores everything in a run."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from orchestrator.errors import InfrastructureError
from orchestrator.events import Step
from orchestrator.execution.bench import Bench
from orchestrator.execution.check.differential import (
    Checked,
    Divergence,
    ModelFor,
    TraceComparison,
    TraceGuest,
    check_traces,
)
from orchestrator.execution.check.reference import model_of, pinned
from orchestrator.execution.check.request import WORKLOAD, CheckRequest
from orchestrator.execution.check.shrinking import shrink
from orchestrator.execution.check.summary import CheckSummary, FoundDivergence
from orchestrator.execution.countdown import Countdown, line_of
from orchestrator.execution.driver import prepare
from orchestrator.execution.ending import GuestEnded
from orchestrator.kernel.build import BuildFailed
from orchestrator.kernel.series import BASELINE
from orchestrator.kernel.trait import traits_of
from orchestrator.model.trace import Operation, Trace, format_trace
from orchestrator.store.observation import Observation
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import CellRow, RunWriter

#: File in the log directory of a trace: how much of it was compared.
_COMPARISON = "comparison.json"


def execute(check: CheckRequest, bench: Bench, writer: RunWriter) -> CheckSummary:
    """Run all traces, shrink those that diverge, and store the results.

    Raises:
        InfrastructureError: the host failed; results so far are kept.
    """
    summary = CheckSummary()
    try:
        kernel = prepare(writer, bench, [check.patchset], {WORKLOAD: ()})[check.patchset]
        if isinstance(kernel, BuildFailed):
            raise kernel
        traits = traits_of(bench.tree(check.patchset))
        model_for = model_of(check.patchset, bench.series, check.topology, traits)
        logs = writer.path / "logs"
        with TraceGuest(bench, kernel, check.topology, logs, check.cmdline) as guest:
            diverged = _run(check, guest, model_for, bench, writer, summary)
            seen: set[tuple[str, str]] = set()
            for name, checked in diverged:
                divergence = checked.divergence
                assert divergence is not None
                # Shrink one trace per kind of divergence: others probably have the same cause.
                kind = (divergence.first.kind, type_of(divergence.operation))
                found = _keep(check, name, checked, writer)
                summary.found.append(found)
                if check.shrink and kind not in seen:
                    with bench.events.step(f"shrink {name}") as step:
                        _shrink(check, found, checked.trace, guest, model_for, step)
                seen.add(kind)
        if check.every_stage and summary.found:
            _find_stages(check, bench, summary, logs)
        return summary
    finally:
        writer.write_json("check.json", summary.to_json())
        writer.finish()


def _run(
    check: CheckRequest,
    guest: TraceGuest,
    model_for: ModelFor,
    bench: Bench,
    writer: RunWriter,
    summary: CheckSummary,
) -> list[tuple[str, Checked]]:
    diverged: list[tuple[str, Checked]] = []
    done = _restored(check, writer, summary)
    todo = {number: name for number, name in enumerate(check.traces, 1) if number not in done}
    if not todo:
        return diverged
    traces = [check.traces[name] for name in todo.values()]
    where = f"{bench.accelerator.name} {check.topology.text}"
    kinds = [f"trace {len(trace.operations)} {where}" for trace in traces]
    with suppress(GuestEnded):  # each trace then reports this
        guest.up()  # do not count the boot as part of the first trace
    began, earlier_s = time.monotonic(), summary.run_s
    with bench.events.step("check", check.patchset) as step:
        countdown = Countdown(step, bench.durations, kinds, "traces")
        due = iter(zip(todo.items(), kinds, strict=True))

        def on_checked(checked: Checked) -> None:
            (number, name), kind = next(due)
            summary.count(checked.comparison)
            summary.run_s = earlier_s + time.monotonic() - began
            result, reason = "ok", ""
            if checked.incomparable:
                summary.incomparable[name] = checked.incomparable
                result, reason = checked.ending.outcome.value, checked.ending.evidence
            if checked.divergence is not None:
                diverged.append((name, checked))
                result, reason = "diverges", str(checked.divergence)
            _record(check, number, checked, writer)
            typical_s = None if checked.divergence or checked.incomparable else checked.seconds
            countdown.ended(kind, line_of(name, result, checked.seconds, reason), typical_s)

        check_traces(guest, traces, model_for, on_checked)
    return diverged


def _record(check: CheckRequest, number: int, checked: Checked, writer: RunWriter) -> None:
    divergence, outcome, evidence = checked.divergence, checked.ending.outcome, checked.ending.evidence
    if divergence is not None:
        outcome = Outcome.WORKLOAD_FAILED if checked.ending.is_ok else outcome
        evidence = f"diverges at {divergence}\n{evidence}".strip()
    comparison = checked.comparison
    planned = check.cell(number, checked.trace)
    facts = {
        "steps": comparison.steps,
        "compared": dict(comparison.compared),
        "uncompared": dict(comparison.uncompared),
        "moved": sorted(comparison.moved),
        "seconds": checked.seconds,
    }
    kept = writer.cell_directory(planned.cell) / _COMPARISON
    kept.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    writer.record(
        CellRow(
            planned,
            outcome=outcome,
            evidence=evidence,
            run_s=checked.seconds,
            total_s=checked.seconds,
        ),
        [
            Observation("steps.total", "operations", comparison.steps),
            Observation("compared_fields.total", "fields", sum(comparison.compared.values())),
            Observation("uncompared_fields.total", "fields", sum(comparison.uncompared.values())),
        ],
    )


def _restored(check: CheckRequest, writer: RunWriter, summary: CheckSummary) -> set[int]:
    """Count the traces that agreed with the model in an earlier attempt; return their numbers."""
    completed = writer.completed_cells()
    done = set()
    for number, trace in enumerate(check.traces.values(), 1):
        cell = check.cell(number, trace).cell
        if cell not in completed:
            continue
        kept = writer.path / "logs" / cell / _COMPARISON
        if kept.is_file():
            facts = json.loads(kept.read_text(encoding="utf-8"))
            summary.count(
                TraceComparison(
                    None, facts["steps"], facts["compared"], facts["uncompared"], frozenset(facts["moved"])
                )
            )
            summary.run_s += facts["seconds"]
            done.add(number)
    return done


def _keep(check: CheckRequest, name: str, checked: Checked, writer: RunWriter) -> FoundDivergence:
    """Write the trace up to its divergence, and the guest's output, before shrinking."""
    divergence = checked.divergence
    assert divergence is not None
    trace = replace(checked.trace, operations=checked.trace.operations[: divergence.step + 1])
    report = "\n".join(finding.text for finding in checked.ending.findings)
    found = FoundDivergence(name, divergence, trace, writer.path / f"{name}.trace", report=report)
    (writer.path / "logs" / f"{name}.answers.jsonl").write_text("\n".join(checked.answers.lines) + "\n")
    (writer.path / "logs" / f"{name}.whole.trace").write_text(format_trace(checked.trace), encoding="utf-8")
    _write(check, found)
    return found


def _write(check: CheckRequest, found: FoundDivergence) -> None:
    said = (f"{check.patchset} and the model differ at {found.divergence}",)
    trace = replace(found.minimal, patchset=check.patchset, comments=said)
    found.file.write_text(format_trace(trace), encoding="utf-8")


def _shrink(
    check: CheckRequest,
    found: FoundDivergence,
    whole: Trace,
    guest: TraceGuest,
    model_for: ModelFor,
    step: Step,
) -> None:
    kinds = {each.kind for each in found.divergence.differences}
    latest: dict[tuple[Operation, ...], Divergence] = {}

    def first_failing(traces: Sequence[Trace]) -> int | None:
        for number, checked in enumerate(check_traces(guest, traces, model_for)):
            if checked.incomparable and checked.ending.is_lost:
                raise GuestEnded(checked.ending)
            divergence = checked.divergence
            if divergence is not None and kinds & {each.kind for each in divergence.differences}:
                latest.clear()
                latest[checked.trace.operations] = divergence
                return number
        return None

    def adopt(trace: Trace) -> None:
        found.minimal, found.divergence, found.shrunk = trace, latest[trace.operations], True
        _write(check, found)
        step.progress(
            len(whole.operations) - len(trace.operations), len(whole.operations), "operations removed"
        )

    # A trace that diverges only after other traces cannot be shrunk.
    try:
        diverges_alone = first_failing([found.minimal]) is not None
        if diverges_alone:
            found.divergence = latest[found.minimal.operations]
            shrink(found.minimal, first_failing, adopt)
    except GuestEnded as error:
        step.note(f"not shrunk further, because the guest was lost: {error.ending.title}")
        return
    if diverges_alone:
        step.note(f"{len(found.minimal.operations)} operations: {found.divergence}")
    else:
        found.minimal = whole
        _write(check, found)
        step.note("it does not diverge when run alone; keeping the whole trace")


def _find_stages(check: CheckRequest, bench: Bench, summary: CheckSummary, logs: Path) -> None:
    stages = [BASELINE, *(f"stage-{each.number}" for each in bench.series.select(check.patchset))]
    whole = model_of(check.patchset, bench.series, check.topology)
    traces = [pinned(each.minimal, whole) for each in summary.found]
    with bench.events.step("stages") as step:
        for number, patchset in enumerate(stages, 1):
            began = time.monotonic()
            with (
                bench.events.step(f"stage {patchset}", part=True),
                TraceGuest(
                    bench, bench.kernel(patchset), check.topology, logs / patchset, check.cmdline
                ) as guest,
            ):
                results = check_traces(
                    guest,
                    traces,
                    model_of(patchset, bench.series, check.topology, traits_of(bench.tree(patchset))),
                )
            for found, checked in zip(summary.found, results, strict=True):
                if checked.incomparable:
                    raise InfrastructureError(f"{patchset} was not compared: {checked.ending.evidence}")
                found.stages[patchset] = checked.divergence
            result = "diverges" if any(checked.divergence for checked in results) else "ok"
            line = line_of(patchset, result, time.monotonic() - began)
            step.item(number, len(stages), "stages", line)


def type_of(operation: str) -> str:
    """The verb in the line of an operation: ``write`` in ``p0.t1 write 0:5 3 42``."""
    words = operation.split()
    return words[1] if len(words) > 1 else words[0]
