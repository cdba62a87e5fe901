# SPDX-License-Identifier: GPL-2.0-only
"""A check as a run: compare traces with a kernel, shrink each divergence, keep it all in a run directory."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Step
from orchestrator.execution.bench import Bench
from orchestrator.execution.countdown import Countdown, line_of
from orchestrator.execution.differential import (
    Checked,
    Divergence,
    ModelFor,
    TraceGuest,
    check_traces,
)
from orchestrator.execution.ending import Ending, GuestEnded
from orchestrator.execution.provenance import begin, built, keep_build_log, variant_record
from orchestrator.execution.shrinking import shrink
from orchestrator.experiment.variant import Variant
from orchestrator.kernel.series import BASELINE, Series, Stage
from orchestrator.kernel.trait import WALKS_PAST_HUGE_PMDS, traits_of
from orchestrator.machine.topology import Topology
from orchestrator.model.memory import STAGES, Model
from orchestrator.model.point_release import WalksPastHugePmds
from orchestrator.model.trace import Operation, Trace, TraceError, format_trace, parse
from orchestrator.store.manifest import Manifest, PlannedCell, Role, RunKind, WorkloadRecord
from orchestrator.store.observation import Metric, Observation
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import CellRow, RunWriter

#: The workload's name in the tables of this kind of run.
WORKLOAD = "check"
_METRICS = (
    Metric("steps.total", "operations", None, help="Operations up to the first divergence, or all."),
    Metric("compared_fields.total", "fields", None, help="Answers that were compared."),
    Metric(
        "uncompared_fields.total",
        "fields",
        None,
        help="Counters that the kernel reported and the model does not have.",
    ),
)


@dataclass(frozen=True)
class Check:
    """What is asked for.

    Args:
        traces: by name, which is part of a cell's: the seed, or the file's name.
        shrink: make a short trace of what diverges.
        every_stage: find the first stage of the patchset whose kernel diverges.
    """

    patchset: str
    traces: Mapping[str, Trace]
    topology: Topology
    cmdline: tuple[str, ...] = ()
    shrink: bool = True
    every_stage: bool = False


@dataclass
class FoundDivergence:
    """A divergence, and the short trace that was made of it.

    Args:
        minimal: the shortest trace found; the whole one where it was not shrunk.
        file: where that lies, for ``--trace``.
        report: the kernel's own words, if it reported anything.
        stages: with ``every_stage`` what each stage's kernel does with it; None where it agrees.
    """

    name: str
    divergence: Divergence
    minimal: Trace
    file: Path
    shrunk: bool = False
    report: str = ""
    stages: dict[str, Divergence | None] = field(default_factory=dict)

    @property
    def first_stage(self) -> str | None:
        """The first of the stages that all diverge up to the last one; None if the last one does not."""
        first = None
        for stage, divergence in reversed(self.stages.items()):
            if divergence is None:
                break
            first = stage
        return first


@dataclass
class CheckSummary:
    """How a check went.

    Args:
        compared, uncompared: number of comparisons per kind of field.
        moved: the kinds of fields that were expected to have another value than their first one at some step.
        run_s: host seconds from the first trace on, shrinking left out.
        found: the traces that diverge.
        incomparable: name -> why that trace was not compared to its end.
    """

    traces: int = 0
    steps: int = 0
    run_s: float = 0.0
    compared: Counter[str] = field(default_factory=Counter)
    uncompared: Counter[str] = field(default_factory=Counter)
    moved: set[str] = field(default_factory=set)
    found: list[FoundDivergence] = field(default_factory=list)
    incomparable: dict[str, Ending] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """0 if all traces were compared and agree, 3 for a divergence or a guest that failed, 1 for a lost guest."""
        statuses = [3 for _ in self.found] + [ending.exit_status for ending in self.incomparable.values()]
        return max(statuses, default=0)

    @property
    def moved_share(self) -> float:
        """Share of the comparisons that were of a field which moved; 0 where nothing was compared."""
        total = sum(self.compared.values())
        return sum(self.compared[kind] for kind in self.moved) / total if total else 0.0

    def to_json(self) -> dict[str, object]:
        """For ``--json`` and ``check.json``."""
        return {
            "traces": self.traces,
            "steps": self.steps,
            "run_s": round(self.run_s, 3),
            "compared": dict(sorted(self.compared.items())),
            "uncompared": dict(sorted(self.uncompared.items())),
            "moved": sorted(self.moved),
            "moved_share": round(self.moved_share, 4),
            "incomparable": {
                name: {"outcome": ending.outcome.value, "evidence": ending.evidence}
                for name, ending in self.incomparable.items()
            },
            "divergences": [
                {
                    "name": each.name,
                    **each.divergence.to_json(),
                    "trace": str(each.file),
                    "operations": len(each.minimal.operations),
                    "shrunk": each.shrunk,
                    **(
                        {
                            "first_stage": each.first_stage,
                            "stages": {
                                stage: None if divergence is None else divergence.to_json()
                                for stage, divergence in each.stages.items()
                            },
                        }
                        if each.stages
                        else {}
                    ),
                }
                for each in self.found
            ],
        }


def load_trace(path: Path) -> Trace:
    """Read a trace file.

    Raises:
        UserError: it cannot be read, or says something wrong; the sentence names the line.
    """
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except TraceError as error:
        raise UserError(str(error)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read this trace ({error}).") from error


def known_stages(stages: Sequence[Stage]) -> list[str]:
    """Names of the stages that the model has; any other stage is expected to change nothing that is compared."""
    return [stage.name for stage in stages if stage.name in STAGES]


def memory_nodes(topology: Topology) -> int:
    """Number of NUMA nodes that memory can be bound to."""
    return sum(node.memory_mib > 0 for node in topology.nodes)


def model_of(patchset: str, series: Series, topology: Topology, traits: Set[str] = frozenset()) -> ModelFor:
    """Makes models of a patchset's kernel in guests of this topology.

    A knob that the kernel does not have yet is left out of the settings at the head of a trace, as the guest does.

    Args:
        traits: of the kernel's source, see :func:`orchestrator.kernel.trait.traits_of`.
    """
    stages = series.select(patchset)
    nodes = memory_nodes(topology)
    absent = {knob.name for knob in series.knobs} - {knob for stage in stages for knob in stage.knobs}
    names = known_stages(stages)
    kind = WalksPastHugePmds if WALKS_PAST_HUGE_PMDS in traits else Model

    def model(trace: Trace) -> Model:
        settings = {knob: value for knob, value in trace.settings.items() if knob not in absent}
        return kind(names, settings, trace.blocks, nodes)

    return model


def pinned(trace: Trace, model_for: ModelFor) -> Trace:
    """The same trace with every knob set to what this model's kernel starts from.

    So a default that differs on another stage's kernel is not mistaken for the divergence.
    """
    return replace(trace, settings=model_for(trace).settings)


def manifest_of(check: Check, bench: Bench, command: Sequence[str]) -> Manifest:
    """What ``run.json`` says before anything slow starts."""
    variant = Variant(check.patchset, _role(check.patchset), check.patchset, cmdline=tuple(check.cmdline))
    return begin(
        RunKind.CHECK,
        f"check-{check.patchset}",
        bench,
        check.topology,
        command,
        variants=[variant_record(variant, bench)],
        workloads={
            WORKLOAD: WorkloadRecord(
                title="Traces against the reference model",
                metrics={metric.name: metric for metric in _METRICS},
            )
        },
        cells=[_planned(check, number, trace) for number, trace in enumerate(check.traces.values(), 1)],
    )


def execute(check: Check, bench: Bench, writer: RunWriter) -> CheckSummary:
    """Run every trace, shrink what diverges, and keep it all.

    Raises:
        InfrastructureError: the host failed; what was found until then is kept.
    """
    summary = CheckSummary()
    try:
        accelerator = bench.accelerator
        kernel = bench.kernel(check.patchset)
        keep_build_log(writer.path, check.patchset, kernel)
        (variant,) = writer.manifest.variants
        writer.update_manifest(
            accelerator=accelerator.record,
            variants=(built(variant, kernel, bench),),
            image={WORKLOAD: bench.image.digest},
        )
        traits = traits_of(bench.tree(check.patchset))
        model_for = model_of(check.patchset, bench.series, check.topology, traits)
        logs = writer.path / "logs"
        with TraceGuest(bench, kernel, check.topology, logs, check.cmdline) as guest:
            diverged = _run(check, guest, model_for, bench, writer, summary)
            seen: set[tuple[str, str]] = set()
            for name, checked in diverged:
                divergence = checked.divergence
                assert divergence is not None
                # Shrink one trace per kind of divergence: the others most likely have the same cause.
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
        text = json.dumps(summary.to_json(), indent=2) + "\n"
        (writer.path / "check.json").write_text(text, encoding="utf-8")
        writer.finish()


def _run(
    check: Check,
    guest: TraceGuest,
    model_for: ModelFor,
    bench: Bench,
    writer: RunWriter,
    summary: CheckSummary,
) -> list[tuple[str, Checked]]:
    diverged: list[tuple[str, Checked]] = []
    names = list(check.traces)
    where = f"{bench.accelerator.name} {check.topology.text}"
    kinds = [f"trace {len(trace.operations)} {where}" for trace in check.traces.values()]
    with suppress(GuestEnded):  # that is then how every trace ends
        guest.up()  # a boot is no part of the first trace
    began = time.monotonic()
    with bench.events.step("check", check.patchset) as step:
        countdown = Countdown(step, bench.durations, kinds, "traces")

        def on_checked(checked: Checked) -> None:
            name, kind = names[summary.traces], kinds[summary.traces]
            summary.traces += 1
            summary.steps += checked.comparison.steps
            summary.compared.update(checked.comparison.compared)
            summary.uncompared.update(checked.comparison.uncompared)
            summary.moved |= checked.comparison.moved
            summary.run_s = time.monotonic() - began
            result, reason = "ok", ""
            if checked.incomparable:
                summary.incomparable[name] = checked.incomparable
                result, reason = checked.ending.outcome.value, checked.ending.evidence
            if checked.divergence is not None:
                diverged.append((name, checked))
                result, reason = "diverges", str(checked.divergence)
            _record(check, summary.traces, checked, writer)
            typical_s = None if checked.divergence or checked.incomparable else checked.seconds
            countdown.ended(kind, line_of(name, result, checked.seconds, reason), typical_s)

        check_traces(guest, list(check.traces.values()), model_for, on_checked)
    return diverged


def _record(check: Check, number: int, checked: Checked, writer: RunWriter) -> None:
    divergence, outcome, evidence = checked.divergence, checked.ending.outcome, checked.ending.evidence
    if divergence is not None:
        outcome = Outcome.WORKLOAD_FAILED if checked.ending.is_ok else outcome
        evidence = f"diverges at {divergence}\n{evidence}".strip()
    comparison = checked.comparison
    writer.record(
        CellRow(
            _planned(check, number, checked.trace),
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


def _keep(check: Check, name: str, checked: Checked, writer: RunWriter) -> FoundDivergence:
    """Write the trace up to where it diverges, and the guest's answers, before anything is made of it."""
    divergence = checked.divergence
    assert divergence is not None
    trace = replace(checked.trace, operations=checked.trace.operations[: divergence.step + 1])
    report = "\n".join(finding.text for finding in checked.ending.findings)
    found = FoundDivergence(name, divergence, trace, writer.path / f"{name}.trace", report=report)
    (writer.path / "logs" / f"{name}.answers.jsonl").write_text("\n".join(checked.answers.lines) + "\n")
    (writer.path / "logs" / f"{name}.whole.trace").write_text(format_trace(checked.trace), encoding="utf-8")
    _write(check, found)
    return found


def _write(check: Check, found: FoundDivergence) -> None:
    said = (f"{check.patchset} and the model differ at {found.divergence}",)
    trace = replace(found.minimal, patchset=check.patchset, comments=said)
    found.file.write_text(format_trace(trace), encoding="utf-8")


def _shrink(
    check: Check,
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
        step.progress(len(whole.operations) - len(trace.operations), len(whole.operations), "operations gone")

    # A trace that diverges only after others have run is kept as it is.
    try:
        diverges_alone = first_failing([found.minimal]) is not None
        if diverges_alone:
            found.divergence = latest[found.minimal.operations]
            shrink(found.minimal, first_failing, adopt)
    except GuestEnded as error:
        step.note(f"not reduced further, the guest was lost: {error.ending.title}")
        return
    if diverges_alone:
        step.note(f"{len(found.minimal.operations)} operations: {found.divergence}")
    else:
        found.minimal = whole
        _write(check, found)
        step.note("it does not diverge when it is run again alone; the whole trace is kept")


def _find_stages(check: Check, bench: Bench, summary: CheckSummary, logs: Path) -> None:
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
    """The verb of an operation's line: ``write`` of ``p0.t1 write 0:5 3 42``."""
    words = operation.split()
    return words[1] if len(words) > 1 else words[0]


def _role(patchset: str) -> Role:
    return Role.BASELINE if patchset == BASELINE else Role.PATCHED


def _planned(check: Check, number: int, trace: Trace) -> PlannedCell:
    return PlannedCell(
        cell=f"{check.patchset}.{WORKLOAD}.{number}",
        variant=check.patchset,
        role=_role(check.patchset),
        workload=WORKLOAD,
        repetition=number,
        seed=trace.seed or 0,
    )
