# SPDX-License-Identifier: GPL-2.0-only
"""One boot of one stage, and what it says: the narrow place where a bisection meets what it looks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.execution.bisect.bisection import Mark
from orchestrator.execution.bisect.question import BootJudgement, DivergenceQuestion, MetricQuestion, Question
from orchestrator.execution.measured_cell import CellResult
from orchestrator.experiment.cell import Cell
from orchestrator.kernel.build import KernelBuild
from orchestrator.store.outcome import Outcome

#: Measures one cell of a kernel with the workload of the search; blocks until it ended.
Measure = Callable[[Cell, KernelBuild, Path], CellResult]


@dataclass(frozen=True)
class Trial:
    """A boot and what it says.

    Args:
        result: how the cell ended, and what it measured: what the run directory keeps.
        judgement: what that means for the question.
    """

    result: CellResult
    judgement: BootJudgement


class StageTrial(Protocol):
    """Boots a stage once and says whether it is good or bad.

    Whatever can do this can be bisected: it is given a cell (which names variant, repetition and seed), the kernel
    of its stage, and an empty directory for its logs. It never raises for what a guest does wrong.
    """

    def __call__(self, cell: Cell, kernel: KernelBuild, log_directory: Path) -> Trial:
        """Try one stage once."""

    def judge(self, result: CellResult) -> BootJudgement:
        """What a cell that was booted before says."""


@dataclass
class WorkloadTrial:
    """Runs the workload, and judges by outcome or metric.

    Args:
        measure: boots and measures.
        reference: median of the metric in what the series is applied to, once it is known; judges need it where
            the question is relative.
    """

    measure: Measure
    question: Question
    reference: float | None = None

    def __call__(self, cell: Cell, kernel: KernelBuild, log_directory: Path) -> Trial:
        """Try one stage once."""
        result = self.measure(cell, kernel, log_directory)
        return Trial(result, self.judge(result))

    def judge(self, result: CellResult) -> BootJudgement:
        """What a cell says of the question."""
        assert not isinstance(self.question, DivergenceQuestion), "it has a trial of its own"
        if not isinstance(self.question, MetricQuestion):
            return self.question.judge(result.outcome, result.evidence)
        values = {each.metric: each.value for each in result.observations}
        if self.question.is_relative and self.reference is None:
            value = values.get(self.question.metric)
            if result.outcome is Outcome.OK and value is not None:
                return BootJudgement(Mark.GOOD, f"{self.question.metric} {value:g}, for reference", value)
            return self.question.judge(result.outcome, result.evidence, {}, 1.0)
        return self.question.judge(result.outcome, result.evidence, values, self.reference)
