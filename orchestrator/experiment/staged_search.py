# SPDX-License-Identifier: GPL-2.0-only
"""The request of ``orchestrate bisect``: the stages, the machine, and what to search for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator import defaults
from orchestrator.errors import UserError
from orchestrator.experiment.cell import Cell, cells_of
from orchestrator.experiment.experiment import Experiment
from orchestrator.experiment.knob import series_knob
from orchestrator.experiment.manifest import described_experiment
from orchestrator.experiment.question import MetricQuestion, OutcomeQuestion, Question
from orchestrator.experiment.variant import Variant
from orchestrator.kernel.series import Series, Stage
from orchestrator.store.manifest import BisectionRecord, Manifest, Role


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


def search_of_manifest(manifest: Manifest, question: Question, series: Series) -> StagedSearch:
    """The bisection request of a run directory.

    Args:
        question: what ``run.json`` says the search is for.

    Raises:
        UserError: the run is not a bisection.
    """
    asked = manifest.bisection
    if asked is None:
        raise UserError(f"{manifest.run} is not a bisection.")
    experiment = described_experiment(manifest)
    patchsets = [variant.patchset for variant in experiment.variants]
    stages = series.select(patchsets[-1])[len(series.select(patchsets[0])) :]
    return StagedSearch(experiment, stages, question, asked.confidence, asked.rate, asked.max_boots)
