# SPDX-License-Identifier: GPL-2.0-only
"""The request of ``orchestrate bisect``: the stages, the machine, and what to search for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator import defaults
from orchestrator.errors import UserError
from orchestrator.execution.bench import Bench
from orchestrator.execution.bisect.question import (
    DIVERGES,
    MetricQuestion,
    OutcomeQuestion,
    Question,
    parse_metric,
    parse_until,
)
from orchestrator.execution.check.request import WORKLOAD as CHECK
from orchestrator.execution.check.request import TraceChoice
from orchestrator.execution.measure.request import described_experiment
from orchestrator.execution.measure.request import manifest_of as measured_manifest
from orchestrator.execution.measure.request import metrics_of as measured_metrics
from orchestrator.experiment.cell import Cell, cells_of
from orchestrator.experiment.experiment import Experiment
from orchestrator.experiment.knob import parse_settings, series_knob
from orchestrator.experiment.variant import Variant
from orchestrator.guest.workload import parse_workload_arguments
from orchestrator.kernel.series import Series, Stage
from orchestrator.machine.topology import Topology
from orchestrator.model.trace import Trace
from orchestrator.store.manifest import BisectionRecord, Manifest, Role, RunKind, WorkloadRecord
from orchestrator.store.observation import Metric


@dataclass(frozen=True)
class StagedSearch:
    """The request for a bisection.

    Args:
        experiment: one variant per stage, in order, and one workload. The first variant is the baseline that the
            stages are applied to.
        stages: the stages to search, one for each variant but the first.
        confidence: probability that the result is right.
        rate: lowest reproduction rate to assume: the share of a bad stage's boots that show the outcome.
        max_boots: number of boots after which the search ends without a result.
    """

    experiment: Experiment
    stages: tuple[Stage, ...]
    question: Question
    confidence: float = defaults.CONFIDENCE
    rate: float = defaults.RATE
    max_boots: int = defaults.MAX_BOOTS

    def __post_init__(self) -> None:
        if not 0.5 < self.confidence <= 0.999999:
            raise UserError(
                f"--confidence {self.confidence:g}: choose a probability above 0.5 and below 1, e.g. 0.99."
            )
        if not 0.05 <= self.rate <= 1:
            raise UserError(f"--rate {self.rate:g}: choose a share of boots from 0.05 to 1 (every boot).")
        if not 1 <= self.max_boots <= 1000:
            raise UserError(f"--max-boots {self.max_boots}: choose a number from 1 to 1000.")

    @property
    def workload(self) -> str:
        """Name of the only workload."""
        return next(iter(self.experiment.workloads))

    def cell(self, stage: int, repetition: int) -> Cell:
        """The cell of one boot.

        Args:
            stage: number of the variant, 0 for the baseline.
            repetition: number of the boot of this stage, from 1. It determines the seed, so that all stages get
                the same seeds.
        """
        name = self.experiment.variants[stage].name
        return cells_of((name,), (self.workload,), repetition, self.experiment.seed)[-1]

    @property
    def record(self) -> BisectionRecord:
        """The part of ``run.json`` that describes the search, besides the experiment."""
        question = self.question
        measured = isinstance(question, MetricQuestion)
        matching = question.matching if isinstance(question, OutcomeQuestion) else None
        return BisectionRecord(
            metric=question.text if measured else None,
            until=None if measured else question.text,
            matching=matching.pattern if matching else None,
            confidence=self.confidence,
            rate=self.rate,
            max_boots=self.max_boots,
        )


def stage_variants(
    patchset: str, against: str, settings: Mapping[str, Sequence[str]], cmdline: Sequence[str], series: Series
) -> tuple[tuple[Variant, ...], tuple[Stage, ...]]:
    """One variant for `against`, and one per stage from there to `patchset`.

    A knob that the series adds is set only on variants that have it.

    Args:
        settings: knob -> its only value.

    Returns:
        The variants, and the stages of all variants but the first.

    Raises:
        UserError: unknown patchset; no stage between the two; several values for a knob; a knob that no variant has.
    """
    for key, values in settings.items():
        if len(values) > 1:
            raise UserError(f"--set {key}: a bisection takes one value, not {','.join(values)}.")
    last, first = series.select(patchset), series.select(against)
    if len(last) <= len(first):
        raise UserError(
            f"{patchset} adds no stage to {against}; choose a --patchset with more stages, or another --against."
        )
    stages = last[len(first) :]
    names = [against, *(f"stage-{stage.number}" for stage in stages)]
    variants: list[Variant] = []
    for name in names:
        applied = {knob for stage in series.select(name) for knob in stage.knobs}
        knobs = {
            key: values[0]
            for key, values in settings.items()
            if series_knob(key, series) is None or key in applied
        }
        role = Role.PATCHED if variants else Role.BASELINE
        variants.append(Variant(name, role, name, knobs, tuple(cmdline)))
    for key in settings:
        if all(key not in variant.knobs for variant in variants):
            knob = series_knob(key, series)
            assert knob is not None
            raise UserError(
                f"--set {key}: no stage of {patchset} has this knob; stage {knob.stage} introduces it."
            )
    return tuple(variants), stages


@dataclass(frozen=True)
class BisectionRequest:
    """The request for a bisection on the command line.

    Args:
        patchset: search stages up to and including this one.
        against: patchset that the search starts from.
        workload: ``NAME`` or ``NAME:KEY=VALUE,...``; None for traces.
        metric, until, matching: condition of a bad boot, see :mod:`orchestrator.execution.bisect.question`.
        settings: ``KEY=VALUE``, one value per knob.
        topology: value of ``--topology``; None for the default.
        traces: for ``--until diverges``.
        timeout_s: timeout of the workload in host seconds; None for the one in its manifest.
    """

    patchset: str
    against: str
    workload: str | None
    metric: str | None
    until: str | None
    matching: str | None
    confidence: float
    rate: float
    max_boots: int
    settings: Sequence[str]
    cmdline: Sequence[str]
    topology: str | None
    accelerator: str
    seed: int
    flavour: str
    traces: TraceChoice
    timeout_s: float | None
    name: str | None

    @property
    def diverges(self) -> bool:
        """Whether traces are replayed."""
        return self.until == DIVERGES

    def search(self, bench: Bench) -> tuple[StagedSearch, dict[str, Trace]]:
        """The search, and the traces to replay, if any.

        Raises:
            UserError: the request is invalid; the message names the fault.
        """
        series = bench.series
        chosen: Mapping[str, Mapping[str, str]]
        traces: dict[str, Trace] = {}
        if self.diverges:
            if self.workload not in (None, CHECK):
                raise UserError(
                    f"--until diverges runs traces, not the workload {self.workload}; omit --workload."
                )
            topology = Topology.parse(self.topology or defaults.CHECK_TOPOLOGY)
            chosen = {CHECK: {}}
            # The same trace as that of `orchestrate check` with this seed; it depends on the number of nodes.
            traces = self.traces.traces(self.patchset, series, topology)
        else:
            if self.workload is None:
                raise UserError("give the stages and the workload, e.g. --patchset full --workload touch.")
            if self.traces.files:
                raise UserError("--trace needs --until diverges.")
            topology = Topology.parse(self.topology or defaults.BISECT_TOPOLOGY)
            chosen = parse_workload_arguments([self.workload], bench.workloads)
        variants, stages = stage_variants(
            self.patchset, self.against, parse_settings(self.settings, series), self.cmdline, series
        )
        question = question_of(self.metric, self.until, self.matching, metrics_of(bench, next(iter(chosen))))
        experiment = Experiment(
            name=self.name or f"bisect-{self.patchset}",
            variants=variants,
            workloads=chosen,
            topology=topology,
            accelerator=self.accelerator,
            seed=self.seed,
            flavour=self.flavour,
            timeout_s=self.timeout_s,
        )
        return StagedSearch(experiment, stages, question, self.confidence, self.rate, self.max_boots), traces


def manifest_of(search: StagedSearch, bench: Bench, command: Sequence[str]) -> Manifest:
    """The content of ``run.json`` before any slow work; the cells are planned during the search."""
    traces = search.workload == CHECK
    experiment = replace(search.experiment, workloads={}) if traces else search.experiment
    begun = measured_manifest(experiment, bench, command)
    if traces:
        begun = replace(begun, workloads={CHECK: WorkloadRecord(title="Traces")})
    return replace(begun, kind=RunKind.BISECT, cells=(), bisection=search.record)


def search_of_manifest(manifest: Manifest, bench: Bench) -> StagedSearch:
    """The bisection request of a run directory.

    Raises:
        UserError: the run is not a bisection.
    """
    asked = manifest.bisection
    if asked is None:
        raise UserError(f"{manifest.run} is not a bisection.")
    metrics = metrics_of(bench, next(iter(manifest.workloads)))
    question = question_of(asked.metric, asked.until, asked.matching, metrics)
    experiment = described_experiment(manifest)
    patchsets = [variant.patchset for variant in experiment.variants]
    series = bench.series
    stages = series.select(patchsets[-1])[len(series.select(patchsets[0])) :]
    return StagedSearch(experiment, stages, question, asked.confidence, asked.rate, asked.max_boots)


def question_of(
    metric: str | None, until: str | None, matching: str | None, metrics: Sequence[Metric]
) -> Question:
    """The condition of a bad boot.

    Args:
        metrics: metrics that a cell may have.

    Raises:
        UserError: neither a metric nor an outcome is given, or both are.
    """
    if (metric is None) == (until is None):
        raise UserError("give a condition: either --metric 'fault_insns.p50 > +2%' or --until kernel-bug.")
    if until is not None:
        return parse_until(until, matching)
    if matching is not None:
        raise UserError("--matching applies to the evidence of an outcome; it needs --until.")
    assert metric is not None
    return parse_metric(metric, metrics)


def metrics_of(bench: Bench, workload: str) -> Sequence[Metric]:
    """The metrics that a cell may have; traces have none."""
    if workload == CHECK:
        return ()
    return tuple(measured_metrics(bench.workloads[workload], bench.series))
