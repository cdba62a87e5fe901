# SPDX-License-Identifier: GPL-2.0-only
"""A bisection over the stages of a series: builds and boots what the search requests, and stores all results.

Every boot is a cell of an ordinary run directory. The order of the boots is stored in ``run.json``, so that an
interrupted search can be replayed and continued.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from orchestrator.errors import InfrastructureError
from orchestrator.events import Step
from orchestrator.execution.bench import Bench
from orchestrator.execution.bisect.bisection import Bisection, Noise, flaky, noisy, repeatable
from orchestrator.execution.bisect.question import DivergenceQuestion, MetricQuestion
from orchestrator.execution.bisect.request import StagedSearch
from orchestrator.execution.bisect.stage_trial import StageTrial, WorkloadTrial
from orchestrator.execution.bisect.trace_trial import TraceTrial
from orchestrator.execution.bisect.verdict import BisectionResult, Boot, sentence, titled, variant_name
from orchestrator.execution.countdown import line_of
from orchestrator.execution.driver import build, record_accelerator, record_source
from orchestrator.execution.measure.request import planned_cell, row_of
from orchestrator.execution.measured_cell import CellResult, measure_cell, write_evidence
from orchestrator.experiment.cell import Cell
from orchestrator.kernel.build import BuildFailed, KernelBuild
from orchestrator.model.trace import Trace
from orchestrator.store.manifest import AnswerRecord, BisectionRecord, BootRecord
from orchestrator.store.observation import Observation
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import Run, RunWriter

#: Number of boots of the baseline to compute a relative limit from.
REFERENCE_BOOTS = 3
#: Cost of a boot if the kernel has to be built first, in boots.
_BUILD_COST = 4.0
LOG = "bisection.log"


def execute(
    search: StagedSearch, bench: Bench, writer: RunWriter, traces: Mapping[str, Trace]
) -> BisectionResult:
    """Search until there is an answer, or as many boots as are allowed.

    Args:
        traces: for a search for a divergence.

    Raises:
        UserError: a stage does not apply, or the source has changed since the run began.
        InfrastructureError: the host failed. What was booted until then is kept.
    """

    def measure(cell: Cell, kernel: KernelBuild, log_directory: Path) -> CellResult:
        return measure_cell(cell, search.experiment, bench, kernel, log_directory)

    trial: StageTrial
    if isinstance(search.question, DivergenceQuestion):
        trial = TraceTrial(search.experiment, bench, traces)
    else:
        trial = WorkloadTrial(measure, search.question)
    record_source(writer, bench)
    record_accelerator(writer, bench)
    return StagedBisection(search, bench, writer, trial).run()


class StagedBisection:
    """A search under way.

    Args:
        bench: what the cells share; builds kernels when they are needed.
        writer: of the run directory, new or opened again.
        trial: boots a stage once.
    """

    def __init__(
        self,
        search: StagedSearch,
        bench: Bench,
        writer: RunWriter,
        trial: StageTrial,
    ) -> None:
        self.search = search
        self._bench = bench
        self._writer = writer
        self._trial = trial
        question = search.question
        self._relative = isinstance(question, MetricQuestion) and question.is_relative
        self._bisection = Bisection(
            len(search.stages),
            self._noise(),
            search.confidence,
            start_is_good=self._relative,
        )
        self._kernels: dict[int, KernelBuild] = {}
        self._costs: dict[int, float] = {}
        self.verdict = BisectionResult(search, self._bisection.answer())

    def run(self) -> BisectionResult:
        """Search until there is a result, or up to the limit of boots.

        Raises:
            UserError: a stage does not apply.
            InfrastructureError: the host failed; boots so far are kept.
            KeyboardInterrupt: passed on; guests are ended and boots so far are kept.
        """
        try:
            self._write_log()
            self._replay()
            with self._bench.events.step("bisect") as shown:
                self._take_reference(shown)
                while len(self.verdict.boots) < self.search.max_boots:
                    step = self._bisection.next_step(self._cost)
                    if step is None:
                        break
                    kernel = self._kernel(step.stage)
                    # A kernel that does not build, or is identical to another, may change what to boot next.
                    if kernel is None or self._bisection.next_step(self._cost) != step:
                        continue
                    self._boot(step.stage, kernel, "verify" if step.verifies else "search", shown)
        except BaseException:
            self._bench.abort()
            raise
        finally:
            self._conclude()
            self._writer.finish()
        return self.verdict

    def _noise(self) -> Noise:
        if not isinstance(self.search.question, MetricQuestion):
            return flaky(self.search.rate)
        return repeatable() if self._bench.accelerator.clock == "insns" else noisy()

    # Kernels

    def _cost(self, stage: int) -> float:
        if stage not in self._costs:
            cached = self._bench.has_kernel(self._patchset(stage))
            self._costs[stage] = 1.0 if cached else 1.0 + _BUILD_COST
        return self._costs[stage]

    def _patchset(self, stage: int) -> str:
        return self.search.experiment.variants[stage].patchset

    def _kernel(self, stage: int) -> KernelBuild | None:
        """The kernel of a stage; None if it does not build, which is passed on to the search."""
        if stage in self._kernels:
            return self._kernels[stage]
        kernel = build(self._writer, self._bench, self._patchset(stage))
        if isinstance(kernel, BuildFailed):
            self.verdict.unbuilt[stage] = str(kernel)
            self._bisection.skip(stage)
            self._note(f"# skip: [{self._named(stage)}] {str(kernel).splitlines()[0]}")
            return None
        self._kernels[stage] = kernel
        self._costs[stage] = 1.0
        for other, known in sorted(self._kernels.items()):
            if other != stage and known.build_id == kernel.build_id:
                earlier, later = sorted((other, stage))
                self._bisection.equate(earlier, later)
                self.verdict.equal[later] = earlier
                self._note(f"# same kernel: [{self._named(later)}] as [{self._named(earlier)}]")
        return kernel

    # Boots

    def _take_reference(self, shown: Step) -> None:
        """Boot the baseline, to compute a relative limit."""
        if not self._relative:
            return
        while len(self._reference_values()) < REFERENCE_BOOTS:
            kernel = self._kernel(0)
            tried = sum(boot.why == "reference" for boot in self.verdict.boots)
            if kernel is None or tried >= 2 * REFERENCE_BOOTS:
                break
            self._boot(0, kernel, "reference", shown)
        self._set_reference()

    def _reference_values(self) -> list[float]:
        return [
            boot.judgement.value
            for boot in self.verdict.boots
            if boot.why == "reference" and boot.judgement.value is not None
        ]

    def _set_reference(self) -> None:
        values = self._reference_values()
        if len(values) < REFERENCE_BOOTS:
            # Without a reference every stage would be good.
            question = self.search.question
            assert isinstance(question, MetricQuestion)
            raise InfrastructureError(
                f"the limit is relative to {self._patchset(0)}, where {question.metric} has a value in "
                f"only {len(values)} of the {REFERENCE_BOOTS} boots needed: give an absolute limit, or see why its "
                f"cells failed in {self._writer.path}."
            )
        self.verdict.reference = statistics.median(values)
        if isinstance(self._trial, WorkloadTrial):
            self._trial.reference = self.verdict.reference

    def _boot(self, stage: int, kernel: KernelBuild, why: str, shown: Step) -> None:
        cell = self._next_cell(stage)
        self._writer.plan(planned_cell(cell, self.search.experiment))
        directory = self._writer.cell_directory(cell.id)
        name = titled(self.search, stage)
        with self._bench.events.step(f"boot {len(self.verdict.boots) + 1}: {name}", part=True):
            trial = self._trial(cell, kernel, directory)
        write_evidence(trial.result, directory)
        self._writer.record(
            row_of(trial.result, self.search.experiment), trial.result.observations, trial.result.samples
        )
        record = self._record
        boots = (*record.boots, BootRecord(stage=stage, cell=cell.id, why=why))
        self._writer.update_manifest(bisection=replace(record, boots=boots))
        self._learn(Boot(stage, cell.id, why, trial.judgement))
        # The number of boots depends on their results; only the maximum is known.
        done = len(self.verdict.boots)
        line = line_of(name, trial.judgement.mark, trial.result.total_s, trial.judgement.text)
        shown.item(done, None, "boots", f"{line}, at most {max(self.search.max_boots - done, 0)} more")

    def _next_cell(self, stage: int) -> Cell:
        boots = sum(boot.stage == stage for boot in self.verdict.boots)
        return self.search.cell(stage, boots + 1)

    def _learn(self, boot: Boot) -> None:
        self.verdict.boots.append(boot)
        if boot.why != "reference":
            self._bisection.observe(boot.stage, boot.judgement.mark)
        self._note(
            f"# {boot.judgement.mark}: [{self._named(boot.stage)}] {boot.judgement.text}\n"
            f"orchestrate bisect {boot.judgement.mark if boot.why != 'reference' else 'reference'} "
            f"{self._patchset(boot.stage)}"
        )

    def _replay(self) -> None:
        """Replay the boots of earlier attempts of this run."""
        earlier = self._record.boots
        if not earlier:
            return
        run = Run.open(self._writer.path)
        ends = {str(row["cell"]): row for row in run.cells.to_dict("records")}
        metrics: dict[str, list[Observation]] = {}
        for row in run.metrics.to_dict("records"):
            observation = Observation(str(row["metric"]), str(row["unit"]), float(row["value"]))
            metrics.setdefault(str(row["cell"]), []).append(observation)
        for entry in earlier:
            stage, cell, why = entry.stage, entry.cell, entry.why
            if why != "reference" and self._relative and self.verdict.reference is None:
                self._set_reference()
            if why != "reference":
                self._kernel(stage)  # from the cache; detects identical kernels at the same point as then
            end = ends[cell]
            result = CellResult(
                self._next_cell(stage),
                Outcome(str(end["outcome"])),
                str(end["evidence"] or ""),
                observations=metrics.get(cell, ()),
            )
            judgement = self._trial.judge(result)
            self._learn(Boot(stage, cell, why, judgement))

    # Log

    def _named(self, stage: int) -> str:
        variant = self.search.experiment.variants[stage]
        if stage == 0:
            return variant.name
        known = self.search.stages[stage - 1]
        return f"{variant.name}] {known.name} [{known.digest[:12]}"

    @property
    def _record(self) -> BisectionRecord:
        record = self._writer.manifest.bisection
        assert record is not None, "this run is a bisection"
        return record

    def _write_log(self) -> None:
        question = self.search.record
        asked = f"--until {question.until}" if question.until else f"--metric '{question.metric}'"
        variants = self.search.experiment.variants
        (self._writer.path / LOG).write_text(
            f"orchestrate bisect start '{variants[0].patchset}' '{variants[-1].patchset}' "
            f"--workload {self.search.workload} {asked}\n",
            encoding="utf-8",
        )

    def _note(self, text: str) -> None:
        with (self._writer.path / LOG).open("a", encoding="utf-8") as log:
            log.write(text + "\n")

    def _conclude(self) -> None:
        verdict = self.verdict
        verdict.answer = self._bisection.answer()
        verdict.skipped = frozenset(self._bisection.skipped)
        self._note(f"# {sentence(verdict)}")
        answer = verdict.answer
        self._writer.update_manifest(
            bisection=replace(
                self._record,
                answer=AnswerRecord(
                    conclusion=answer.conclusion.value,
                    stages=tuple(variant_name(self.search, stage) for stage in answer.candidates),
                    sure=answer.sure,
                    condition=answer.condition,
                    seen=tuple(answer.seen),
                    alarms=tuple(answer.alarms),
                    contradicted=answer.contradicted,
                    verified=answer.verified,
                    boots=len(verdict.boots),
                    reference=verdict.reference,
                    sentence=sentence(verdict),
                ),
            )
        )
