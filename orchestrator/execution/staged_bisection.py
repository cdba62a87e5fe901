# SPDX-License-Identifier: GPL-2.0-only
"""A bisection over the stages of a series: builds and boots what the search asks for, and keeps all of it.

Every boot is a cell of an ordinary run directory. The order of the boots is kept in ``run.json``, so that a search that
was interrupted is made again from what is there, and goes on.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from orchestrator.analysis.bisection import (
    Answer,
    Bisection,
    Conclusion,
    Mark,
    Noise,
    flaky,
    noisy,
    repeatable,
)
from orchestrator.errors import InfrastructureError
from orchestrator.events import Step
from orchestrator.execution.bench import Bench
from orchestrator.execution.countdown import line_of
from orchestrator.execution.experiment_run import planned_cell, row_of
from orchestrator.execution.measured_cell import CellResult, write_evidence
from orchestrator.execution.provenance import built, keep_build_log
from orchestrator.execution.stage_trial import StageTrial, WorkloadTrial
from orchestrator.experiment.cell import Cell
from orchestrator.experiment.question import BootJudgement, MetricQuestion
from orchestrator.experiment.staged_search import StagedSearch
from orchestrator.kernel.build import BuildFailed, KernelBuild
from orchestrator.store.manifest import AnswerRecord, BisectionRecord, BootRecord
from orchestrator.store.observation import Observation
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import Run, RunWriter

#: Boots of what the series is applied to that a relative limit is taken from.
REFERENCE_BOOTS = 3
#: What a boot costs where the kernel has to be built first, in boots.
_BUILD_COST = 4.0
LOG = "bisection.log"


@dataclass(frozen=True)
class Boot:
    """One boot of the search.

    Args:
        stage: position, 0 for what the series is applied to.
        why: ``reference``, ``search`` or ``verify``.
    """

    stage: int
    cell: str
    why: str
    judgement: BootJudgement


@dataclass
class Verdict:
    """What the search came to, and how.

    Args:
        answer: of the search.
        boots: in their order.
        unbuilt: position -> why its kernel does not build.
        equal: position -> an earlier one with the very same kernel.
    """

    search: StagedSearch
    answer: Answer
    boots: list[Boot] = field(default_factory=list)
    unbuilt: dict[int, str] = field(default_factory=dict)
    equal: dict[int, int] = field(default_factory=dict)
    skipped: frozenset[int] = frozenset()
    reference: float | None = None

    def counts(self, stage: int) -> tuple[int, int]:
        """Boots of a stage that were good, and that were bad; those for reference are neither."""
        marks = [
            boot.judgement.mark for boot in self.boots if boot.stage == stage and boot.why != "reference"
        ]
        return marks.count(Mark.GOOD), marks.count(Mark.BAD)


class StagedBisection:
    """A search under way.

    Args:
        bench: what the cells share; builds kernels when they are needed.
        writer: of the run directory, new or opened again.
        trial: boots a stage once.
        on_boot: told of each boot, those of an earlier attempt included.
    """

    def __init__(
        self,
        search: StagedSearch,
        bench: Bench,
        writer: RunWriter,
        trial: StageTrial,
        on_boot: Callable[[Boot, bool], None] = lambda boot, replayed: None,
    ) -> None:
        self.search = search
        self._bench = bench
        self._writer = writer
        self._trial = trial
        self._on_boot = on_boot
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
        self.verdict = Verdict(search, self._bisection.answer())

    def run(self) -> Verdict:
        """Search until there is an answer, or as many boots as are allowed.

        Raises:
            UserError: a stage does not apply.
            InfrastructureError: the host failed. What was booted until then is kept.
            KeyboardInterrupt: as it came; guests are ended, what was booted is kept.
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
                    # A kernel that does not build, or is another stage's, may change what to boot next.
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
        """The kernel of a stage; None where it does not build, which the search is told."""
        if stage in self._kernels:
            return self._kernels[stage]
        try:
            kernel = self._bench.kernel(self._patchset(stage))
        except BuildFailed as error:
            keep_build_log(self._writer.path, self._patchset(stage), error)
            self.verdict.unbuilt[stage] = str(error)
            self._bisection.skip(stage)
            self._note(f"# skip: [{self._named(stage)}] {str(error).splitlines()[0]}")
            return None
        self._kernels[stage] = kernel
        self._costs[stage] = 1.0
        for other, known in sorted(self._kernels.items()):
            if other != stage and known.build_id == kernel.build_id:
                earlier, later = sorted((other, stage))
                self._bisection.equate(earlier, later)
                self.verdict.equal[later] = earlier
                self._note(f"# same kernel: [{self._named(later)}] as [{self._named(earlier)}]")
        variants = list(self._writer.manifest.variants)
        variants[stage] = built(variants[stage], kernel, self._bench)
        self._writer.update_manifest(variants=tuple(variants))
        return kernel

    # Boots

    def _take_reference(self, shown: Step) -> None:
        """Boot what the series is applied to, for limits that are relative to it."""
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
            # Without it every stage would look good.
            question = self.search.question
            assert isinstance(question, MetricQuestion)
            raise InfrastructureError(
                f"the limit is relative to {self._patchset(0)}, where {question.metric} has a value in "
                f"{len(values)} boots and {REFERENCE_BOOTS} are needed: give an absolute limit, or see what ended "
                f"its cells in {self._writer.path}."
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
        self._learn(Boot(stage, cell.id, why, trial.judgement), replayed=False)
        # How many boots it takes depends on what they show; only the most is known.
        done = len(self.verdict.boots)
        line = line_of(name, trial.judgement.mark, trial.result.total_s, trial.judgement.text)
        shown.item(done, None, "boots", f"{line}, at most {max(self.search.max_boots - done, 0)} more")

    def _next_cell(self, stage: int) -> Cell:
        boots = sum(boot.stage == stage for boot in self.verdict.boots)
        return self.search.cell(stage, boots + 1)

    def _learn(self, boot: Boot, *, replayed: bool) -> None:
        self.verdict.boots.append(boot)
        if boot.why != "reference":
            self._bisection.observe(boot.stage, boot.judgement.mark)
        self._note(
            f"# {boot.judgement.mark}: [{self._named(boot.stage)}] {boot.judgement.text}\n"
            f"orchestrate bisect {boot.judgement.mark if boot.why != 'reference' else 'reference'} "
            f"{self._patchset(boot.stage)}"
        )
        self._on_boot(boot, replayed)

    def _replay(self) -> None:
        """Learn again what earlier attempts of this run have booted."""
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
                self._kernel(stage)  # from the cache; the search learns of equal kernels when it did then
            end = ends[cell]
            result = CellResult(
                self._next_cell(stage),
                Outcome(str(end["outcome"])),
                str(end["evidence"] or ""),
                observations=metrics.get(cell, ()),
            )
            judgement = self._trial.judge(result)
            self._learn(Boot(stage, cell, why, judgement), replayed=True)

    # What is left for a reader

    def _named(self, stage: int) -> str:
        variant = self.search.experiment.variants[stage]
        if stage == 0:
            return variant.name
        known = self.search.stages[stage - 1]
        return f"{variant.name}] {known.name} [{known.digest[:12]}"

    @property
    def _record(self) -> BisectionRecord:
        record = self._writer.manifest.bisection
        assert record is not None, "this run is a bisection's"
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


def variant_name(search: StagedSearch, stage: int) -> str:
    """Name of the variant at a position."""
    return search.experiment.variants[stage].name


def titled(search: StagedSearch, stage: int) -> str:
    """A position as a person names it: the variant, and the name of the stage."""
    name = variant_name(search, stage)
    return f"{name} {search.stages[stage - 1].name}" if stage else name


def sentence(verdict: Verdict) -> str:
    """What the search came to, as one sentence that says how sure it is."""
    search, answer = verdict.search, verdict.answer
    count = len(verdict.boots)
    boots = f"{count} boot{'s' if count != 1 else ''}"
    sure = f"{100 * _floored(answer.sure):.1f}% sure {answer.condition}".rstrip()
    observed = f"seen in {_share(answer.seen, 'bad')} and in {_share(answer.alarms, 'good')}"
    asked = search.question.text
    first, last = search.experiment.variants[0].name, search.experiment.variants[-1].name
    if answer.conclusion is Conclusion.FOUND:
        stages = [search.stages[number - 1] for number in answer.candidates]
        named = " or ".join(f"stage {stage.number} ({stage.name}: {stage.title})" for stage in stages)
        which = "the first bad stage is" if len(stages) == 1 else "the first bad stage is one of"
        return f"{which} {named}; {sure}; {observed}; {boots}, verified on it and its parent."
    if answer.conclusion is Conclusion.NONE:
        return f"no stage up to {last} shows '{asked}'; {sure}; seen in {_share(answer.alarms)}."
    if answer.conclusion is Conclusion.ALREADY:
        return (
            f"{first}, which the stages are applied to, shows '{asked}' itself; {sure}; "
            f"seen in {_share(answer.seen)}."
        )
    likely = ", ".join(variant_name(search, stage) for stage in answer.candidates) or "none of them"
    if answer.contradicted and answer.verified:
        return (
            f"undecided after {boots}: most likely {likely}, but the boots contradict what was reckoned with "
            f"({answer.condition}): {observed}; give a lower --rate, or another limit."
        )
    return f"undecided after {boots}: most likely {likely}, {sure}; allow more with --max-boots, or --resume."


def _share(share: tuple[int, int], of: str = "") -> str:
    """How many boots showed it, of how many."""
    bad, all_of_them = share
    kind = f" of {of} stages" if of else ""
    per_cent = f" ({bad / all_of_them:.0%})" if all_of_them else ""
    return f"{bad} of {all_of_them} boots{kind}{per_cent}"


def _floored(share: float) -> float:
    """Down to a thousandth: 0.9999 is not certainty."""
    return min(int(share * 1000) / 1000, 0.999)
