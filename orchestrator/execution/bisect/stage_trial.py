# SPDX-License-Identifier: GPL-2.0-only
"""One boot of one stage and its judgement: the interface between a bisection and what it searches for."""

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

#: Measures one cell of a kernel with the workload of the search; blocks until it ends.
Measure = Callable[[Cell, KernelBuild, Path], CellResult]


@dataclass(frozen=True)
class Trial:
    """A boot and its judgement.

    Args:
        result: result of the cell, as stored in the run directory.
        judgement: whether the boot is good, bad or unclear.
    """

    result: CellResult
    judgement: BootJudgement


class StageTrial(Protocol):
    """Boots a stage once and judges it.

    Anything with this interface can be bisected. It is passed a cell (with variant, repetition and seed), the kernel of
    its stage, and an empty directory for logs. Failures of the guest never raise an exception.
    """

    def __call__(self, cell: Cell, kernel: KernelBuild, log_directory: Path) -> Trial:
        """Boot a stage once."""

    def judge(self, result: CellResult) -> BootJudgement:
        """Judge a cell that was booted before."""


@dataclass
class WorkloadTrial:
    """Runs the workload, and judges by outcome or metric.

    Args:
        measure: function that boots and measures.
        reference: median of the metric on the kernel that the search starts from, once it is known; needed for a
            relative limit.
    """

    measure: Measure
    question: Question
    reference: float | None = None

    def __call__(self, cell: Cell, kernel: KernelBuild, log_directory: Path) -> Trial:
        """Boot a stage once."""
        result = self.measure(cell, kernel, log_directory)
        return Trial(result, self.judge(result))

    def judge(self, result: CellResult) -> BootJudgement:
        """Judge a cell."""
        assert not isinstance(self.question, DivergenceQuestion), "a divergence has its own trial"
        if not isinstance(self.question, MetricQuestion):
            return self.question.judge(result.outcome, result.evidence)
        values = {each.metric: each.value for each in result.observations}
        if self.question.is_relative and self.reference is None:
            value = values.get(self.question.metric)
            if result.outcome is Outcome.OK and value is not None:
                return BootJudgement(Mark.GOOD, f"{self.question.metric} {value:g}, for reference", value)
            return self.question.judge(result.outcome, result.evidence, {}, 1.0)
        return self.question.judge(result.outcome, result.evidence, values, self.reference)
