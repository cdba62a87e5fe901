# SPDX-License-Identifier: GPL-2.0-only
"""One boot of one stage for ``bisect --until diverges``: does its kernel agree with the reference model?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.execution.bench import Bench
from orchestrator.execution.bisect.bisection import Mark
from orchestrator.execution.bisect.question import BootJudgement
from orchestrator.execution.bisect.stage_trial import Trial
from orchestrator.execution.check.differential import TraceGuest, check_traces
from orchestrator.execution.check.reference import model_of, pinned
from orchestrator.execution.measured_cell import CellResult
from orchestrator.experiment.cell import Cell
from orchestrator.experiment.experiment import Experiment
from orchestrator.kernel.build import KernelBuild
from orchestrator.kernel.trait import traits_of
from orchestrator.model.trace import Trace
from orchestrator.store.observation import Observation
from orchestrator.store.outcome import Outcome

METRIC = "divergences.total"


@dataclass(frozen=True)
class TraceTrial:
    """Runs traces in a guest of a stage, and compares them with the model of that stage.

    Args:
        traces: traces by name.
    """

    experiment: Experiment
    bench: Bench
    traces: Mapping[str, Trace]

    def __call__(self, cell: Cell, kernel: KernelBuild, log_directory: Path) -> Trial:
        """Boot a stage once, and run traces up to the first that diverges."""
        series, topology = self.bench.series, self.experiment.topology
        variant = self.experiment.variant(cell.variant)
        traits = traits_of(self.bench.tree(variant.patchset))
        model_for = model_of(variant.patchset, series, topology, traits)
        whole = model_of(self.experiment.variants[-1].patchset, series, topology)
        result = CellResult(cell, Outcome.OK, "")
        began = time.monotonic()
        diverges = False
        with TraceGuest(self.bench, kernel, topology, log_directory, variant.cmdline) as guest:
            for name, trace in self.traces.items():
                (checked,) = check_traces(guest, [pinned(trace, whole)], model_for)
                diverges = checked.divergence is not None
                if diverges or checked.incomparable:
                    said = f"{name}: {checked.divergence}\n" if diverges else ""
                    result.outcome = checked.ending.outcome
                    result.evidence = f"{said}{checked.ending.evidence}".strip()
                    break
        if diverges or result.outcome is Outcome.OK:
            result.observations = [Observation(METRIC, "traces", float(diverges))]
        result.total_s = time.monotonic() - began
        return Trial(result, self.judge(result))

    def judge(self, result: CellResult) -> BootJudgement:
        """Judge a cell; it is unclear if its traces were not compared, e.g. because the guest was lost."""
        first = result.evidence.partition("\n")[0]
        diverges = next((each.value for each in result.observations if each.metric == METRIC), None)
        if diverges is None:
            return BootJudgement(Mark.UNCLEAR, f"{result.outcome.value}: {first}")
        return (
            BootJudgement(Mark.BAD, first) if diverges else BootJudgement(Mark.GOOD, "agrees with its model")
        )
