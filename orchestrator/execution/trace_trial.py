# SPDX-License-Identifier: GPL-2.0-only
"""One boot of one stage for ``bisect --until diverges``: does its kernel agree with the reference model?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.analysis.bisection import Mark
from orchestrator.execution.bench import Bench
from orchestrator.execution.check_run import model_of, pinned
from orchestrator.execution.differential import TraceGuest, check_traces
from orchestrator.execution.measured_cell import CellResult
from orchestrator.execution.stage_trial import Trial
from orchestrator.experiment.cell import Cell
from orchestrator.experiment.experiment import Experiment
from orchestrator.experiment.question import Judgement
from orchestrator.guest.ssh import GuestLost
from orchestrator.kernel.build import KernelBuild
from orchestrator.kernel.trait import traits_of
from orchestrator.machine.qemu import MachineFailure
from orchestrator.model.trace import Trace
from orchestrator.store.observation import Observation
from orchestrator.store.outcome import Outcome

METRIC = "divergences.total"


@dataclass(frozen=True)
class TraceTrial:
    """Runs traces in a guest of a stage. Each stage has its own model.

    Args:
        traces: by name.
    """

    experiment: Experiment
    bench: Bench
    traces: Mapping[str, Trace]

    def __call__(self, cell: Cell, kernel: KernelBuild, log_directory: Path) -> Trial:
        """Try one stage once, up to the first trace that diverges."""
        series, topology = self.bench.series, self.experiment.topology
        variant = self.experiment.variant(cell.variant)
        traits = traits_of(self.bench.tree(variant.patchset))
        model_for = model_of(variant.patchset, series, topology, traits)
        whole = model_of(self.experiment.variants[-1].patchset, series, topology)
        result = CellResult(cell)
        began = time.monotonic()
        try:
            with TraceGuest(self.bench, kernel, topology, log_directory, variant.cmdline) as guest:
                evidence = ""
                for name, trace in self.traces.items():
                    (checked,) = check_traces(guest, [pinned(trace, whole)], model_for)
                    if checked.divergence is not None:
                        evidence = f"{name}: {checked.divergence}"
                        break
        except (MachineFailure, GuestLost) as error:
            result.outcome = error.outcome if isinstance(error, MachineFailure) else Outcome.LOST
            result.evidence = str(error)
        else:
            result.outcome, result.evidence = Outcome.OK, evidence
            result.observations = [Observation(METRIC, "traces", float(bool(evidence)))]
        result.total_s = time.monotonic() - began
        return Trial(result, self.judge(result))

    def judge(self, result: CellResult) -> Judgement:
        """The judgement of a cell; unclear if the guest did not come up."""
        first = result.evidence.splitlines()[0] if result.evidence else ""
        if result.outcome is not Outcome.OK:
            return Judgement(Mark.UNCLEAR, f"{result.outcome.value}: {first}")
        if first:
            return Judgement(Mark.BAD, first)
        return Judgement(Mark.GOOD, "agrees with its model")
