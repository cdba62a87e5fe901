# SPDX-License-Identifier: GPL-2.0-only
"""What ``orchestrate bisect`` is asked: which stages, on what machine, and what to look for."""

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


#: Boots of a bad stage that show it, at least, where nobody says otherwise.
@dataclass(frozen=True)
class StagedSearch:
    """A bisection as it was asked for.

    Args:
        experiment: one variant a stage, in their order; the first, with the role of the baseline, is what they
            are applied to. One workload.
        stages: the stages that are searched: of every variant but the first.
        confidence: probability that the answer is right.
        rate: share of the boots of a bad stage that show an outcome, at least.
        max_boots: after which it ends undecided.
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
            raise UserError(
                f"--rate {self.rate:g}: choose a share of boots from 0.05 to 1, where 1 stands for every boot."
            )
        if not 1 <= self.max_boots <= 1000:
            raise UserError(f"--max-boots {self.max_boots}: choose 1 to 1000.")

    @property
    def workload(self) -> str:
        """The one workload."""
        return next(iter(self.experiment.workloads))

    def cell(self, stage: int, repetition: int) -> Cell:
        """The cell of a boot.

        Args:
            stage: number of the variant, 0 for the first.
            repetition: from 1. It decides the seed, so that all stages are given the same ones.
        """
        name = self.experiment.variants[stage].name
        return cells_of((name,), (self.workload,), repetition, self.experiment.seed)[-1]

    @property
    def record(self) -> BisectionRecord:
        """What ``run.json`` says of it beside its experiment."""
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
    """One variant for each stage from `against`, which is the first, to `patchset`.

    A knob that the series introduces is set from the stage on that has it.

    Args:
        settings: knob -> its one value.

    Returns:
        The variants, and the stages of all but the first.

    Raises:
        UserError: no such patchset; no stage lies between them; a knob with several values, or that none has.
    """
    for key, values in settings.items():
        if len(values) > 1:
            raise UserError(f"--set {key}: a bisection takes one value, not {','.join(values)}.")
    last, first = series.select(patchset), series.select(against)
    if len(last) <= len(first):
        raise UserError(
            f"{patchset} adds no stage to {against}; name a --patchset with more stages, or another --against."
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
    """The bisection that a run directory was made for.

    Args:
        question: what it says it looks for.

    Raises:
        UserError: it is no bisection's.
    """
    asked = manifest.bisection
    if asked is None:
        raise UserError(f"{manifest.run} is not a bisection.")
    experiment = described_experiment(manifest)
    patchsets = [variant.patchset for variant in experiment.variants]
    stages = series.select(patchsets[-1])[len(series.select(patchsets[0])) :]
    return StagedSearch(experiment, stages, question, asked.confidence, asked.rate, asked.max_boots)
