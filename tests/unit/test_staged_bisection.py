# SPDX-License-Identifier: GPL-2.0-only
"""The bisection of a series as a person sees it: boots, skips, equal kernels, what is kept and taken up again."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from plant import AFTER, plant
from records import manifest

from orchestrator.cli.progress import PlainProgress
from orchestrator.errors import InfrastructureError
from orchestrator.events import Events
from orchestrator.execution.bench import Bench
from orchestrator.execution.bisect.bisection import Conclusion
from orchestrator.execution.bisect.question import parse_metric, parse_until
from orchestrator.execution.bisect.request import StagedSearch, stage_variants
from orchestrator.execution.bisect.run import LOG, StagedBisection
from orchestrator.execution.bisect.stage_trial import WorkloadTrial
from orchestrator.execution.bisect.verdict import BisectionResult, sentence, titled
from orchestrator.execution.measured_cell import CellResult
from orchestrator.experiment.cell import Cell
from orchestrator.experiment.experiment import Experiment
from orchestrator.kernel.build import BuildFailed, KernelBuild
from orchestrator.kernel.series import Series, load_series
from orchestrator.kernel.source import SourceTree
from orchestrator.kernel.tree import PatchedTree
from orchestrator.machine.topology import Topology
from orchestrator.store.manifest import AnswerRecord, RunKind, VariantRecord
from orchestrator.store.observation import Metric, Observation
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import Run, RunWriter

ROOT = Path(__file__).resolve().parents[2]


def answer_of(path: Path) -> AnswerRecord:
    record = Run.open(path).manifest.bisection
    assert record is not None and record.answer is not None
    return record.answer


METRICS = (Metric("fault_insns.p50", "insns", "lower"),)


@dataclass
class FakeBench:
    """Kernels that are named after their stage.

    Args:
        unbuilt: numbers of the stages that do not compile.
        same: stage -> an earlier one with the very same kernel.
    """

    series: Series
    clock: str = "insns"
    unbuilt: Collection[int] = ()
    same: Mapping[int, int] = field(default_factory=dict)
    built: list[int] = field(default_factory=list)
    events: Events = field(default_factory=Events)
    aborted: bool = False

    @property
    def accelerator(self) -> Any:
        return SimpleNamespace(clock=self.clock)

    def number(self, patchset: str) -> int:
        return len(self.series.select(patchset))

    def has_kernel(self, patchset: str) -> bool:
        return self.number(patchset) in self.built

    def kernel(self, patchset: str) -> KernelBuild:
        number = self.number(patchset)
        if number in self.unbuilt:
            raise BuildFailed(f"{patchset} does not compile.\nmm/memory.c:7: error", Path("build.log"))
        self.built.append(number)
        build_id = f"id-{self.same.get(number, number)}"
        return KernelBuild(Path(f"/{patchset}"), "6.12", build_id, "gcc", (), 1.0, False, f"digest-{number}")

    def tree(self, patchset: str) -> PatchedTree:
        source = SourceTree(Path("/source.git"), "base", "base", "6.12", "a source")
        stages = self.series.select(patchset)
        return PatchedTree(Path("/tree.git"), patchset, f"tree-{patchset}", source, stages)

    def configuration(self) -> Any:
        return SimpleNamespace(digest="config")

    def abort(self) -> None:
        self.aborted = True


Ends = Callable[[int, Cell], CellResult]


def crashes_from(first: int, share: float = 1.0, seed: int = 1) -> Ends:
    rng = random.Random(seed)

    def end(stage: int, cell: Cell) -> CellResult:
        if stage >= first and rng.random() < share:
            return CellResult(cell, Outcome.KERNEL_BUG, "kernel BUG at mm/madvise.c:853!")
        return CellResult(cell, Outcome.OK, "")

    return end


def slower_from(first: int, percent: float) -> Ends:
    def end(stage: int, cell: Cell) -> CellResult:
        value = 2000 * (1 + (percent / 100 if stage >= first else 0)) + cell.repetition % 3
        return CellResult(
            cell, Outcome.OK, "", observations=(Observation("fault_insns.p50", "insns", value),)
        )

    return end


@dataclass
class Searcher:
    """One bisection of the project's own series, in a directory that stays."""

    directory: Path
    ends: Ends
    bench: FakeBench
    search: StagedSearch
    booted: list[int] = field(default_factory=list)
    writer: RunWriter | None = None

    def __call__(self, *, fails_after: int | None = None) -> BisectionResult:
        def measure(cell: Cell, kernel: KernelBuild, log_directory: Path) -> CellResult:
            if fails_after is not None and len(self.booted) >= fails_after:
                raise InfrastructureError("the disk is full.")
            stage = self.bench.number(kernel.directory.name)
            self.booted.append(stage)
            return self.ends(stage, cell)

        if self.writer is None:
            begun = manifest(
                kind=RunKind.BISECT,
                variants=tuple(
                    VariantRecord(name=each.name, role=each.role, patchset=each.patchset)
                    for each in self.search.experiment.variants
                ),
                bisection=self.search.record,
            )
            writer = RunWriter.create(self.directory, "bisect", begun)
        else:
            writer = RunWriter.reopen(self.writer.path)
        self.writer = writer
        return StagedBisection(
            self.search, cast(Bench, self.bench), writer, WorkloadTrial(measure, self.search.question)
        ).run()

    @property
    def path(self) -> Path:
        assert self.writer is not None
        return self.writer.path


def searcher(
    tmp_path: Path,
    ends: Ends,
    *,
    until: str = "kernel-bug",
    metric: str | None = None,
    bench: Mapping[str, Any] | None = None,
    **asked: Any,
) -> Searcher:
    series = load_series(ROOT / "kernel_patches")
    variants, stages = stage_variants("full", "baseline", {}, (), series)
    question = parse_metric(metric, METRICS) if metric else parse_until(until)
    experiment = Experiment("bisect", variants, {"churn": {}}, Topology.parse("2x512M"), accelerator="icount")
    search = StagedSearch(experiment, stages, question, **asked)
    return Searcher(tmp_path, ends, FakeBench(series, **(bench or {})), search)


def test_a_crash_is_found_in_a_logarithm_of_the_stages_and_verified(tmp_path: Path) -> None:
    search = searcher(tmp_path, crashes_from(7), rate=1)
    verdict = search()
    assert verdict.answer.conclusion is Conclusion.FOUND
    assert verdict.answer.candidates == (7,)
    assert verdict.answer.verified
    assert [boot.stage for boot in verdict.boots if boot.why == "verify"] != []
    assert len(set(search.booted)) <= 7, "19 stages take five or so kernels"
    assert {6, 7} <= set(search.booted)
    assert "the first bad stage is stage 7 (pressure" in sentence(verdict)
    assert "99." in sentence(verdict)


def test_each_boot_is_one_line_with_the_most_that_may_follow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bisect = searcher(tmp_path, crashes_from(9), max_boots=30, bench={"events": Events(PlainProgress())})
    verdict = bisect()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert len(lines) == len(verdict.boots)
    for number, (line, boot) in enumerate(zip(lines, verdict.boots, strict=True), 1):
        named = titled(bisect.search, boot.stage)
        assert line.startswith(f"[{number}] {named} {boot.judgement.mark}")
        assert line.endswith(f", at most {30 - number} more") and "left" not in line


def test_a_fault_of_three_boots_in_ten_is_found(tmp_path: Path) -> None:
    verdict = searcher(tmp_path, crashes_from(11, 0.3), rate=0.3)()
    assert verdict.answer.candidates == (11,)
    assert verdict.counts(11)[1] >= 1
    assert sum(verdict.counts(10)) > 10, "a stage that looks good needs many boots before it is believed"


def test_without_a_measured_baseline_a_relative_limit_has_no_answer(tmp_path: Path) -> None:
    slower = slower_from(9, 50)

    def end(stage: int, cell: Cell) -> CellResult:
        return slower(stage, cell) if stage else CellResult(cell, Outcome.TIMEOUT, "no end after 60 s")

    search = searcher(tmp_path, end, metric="fault_insns.p50 > +2%")
    for _resumed in range(2):
        with pytest.raises(InfrastructureError, match=r"relative to baseline.*only 0 of the 3 boots needed"):
            search()
    assert set(search.booted) == {0}, "nothing is judged without what it is to be compared with"
    answer = answer_of(search.path)
    assert answer.conclusion == Conclusion.UNDECIDED


def test_a_slower_stage_is_found_against_the_median_of_the_baseline(tmp_path: Path) -> None:
    verdict = searcher(tmp_path, slower_from(9, 3), metric="fault_insns.p50 > +2%")()
    assert verdict.answer.candidates == (9,)
    assert verdict.reference == pytest.approx(2001, abs=1)
    assert [boot.why for boot in verdict.boots[:3]] == ["reference"] * 3
    assert verdict.boots[-1].judgement.value == pytest.approx(2000, rel=0.04)


def test_what_no_stage_does_is_reported(tmp_path: Path) -> None:
    verdict = searcher(tmp_path, slower_from(9, 1), metric="fault_insns.p50 > +2%")()
    assert verdict.answer.conclusion is Conclusion.NONE
    assert sentence(verdict).startswith("no stage up to stage-19 shows 'fault_insns.p50 > +2%'")


def test_what_the_baseline_does_itself_is_reported(tmp_path: Path) -> None:
    verdict = searcher(tmp_path, crashes_from(0), rate=1)()
    assert verdict.answer.conclusion is Conclusion.ALREADY
    assert sentence(verdict).startswith(
        "baseline, which the stages are applied to, already shows 'kernel-bug'"
    )


def test_a_stage_that_does_not_build_is_skipped_and_named_as_possible(tmp_path: Path) -> None:
    verdict = searcher(tmp_path, crashes_from(10), rate=1, bench={"unbuilt": {9, 10}})()
    assert verdict.answer.conclusion is Conclusion.FOUND
    assert verdict.answer.candidates == (9, 10, 11)
    assert verdict.unbuilt[10].startswith("stage-10 does not compile")
    assert "one of stage 9" in sentence(verdict)


def test_stages_with_the_same_kernel_are_booted_as_one(tmp_path: Path) -> None:
    search = searcher(tmp_path, crashes_from(17), rate=1, bench={"same": dict.fromkeys(range(10, 17), 9)})
    verdict = search()
    assert verdict.answer.candidates == (17,)
    assert verdict.equal, "two of those were built"
    assert all(9 <= earlier < later <= 16 for later, earlier in verdict.equal.items())
    assert "same kernel" in (search.path / LOG).read_text()


def test_it_gives_up_where_it_was_told_to(tmp_path: Path) -> None:
    verdict = searcher(tmp_path, crashes_from(11, 0.3), rate=0.3, max_boots=4)()
    assert verdict.answer.conclusion is Conclusion.UNDECIDED
    assert len(verdict.boots) == 4
    assert "allow more with --max-boots" in sentence(verdict)


def test_another_failure_is_not_a_verdict(tmp_path: Path) -> None:
    def end(stage: int, cell: Cell) -> CellResult:
        outcome = Outcome.BOOT_FAILED if stage >= 5 else Outcome.OK
        return CellResult(cell, outcome, "no init found")

    verdict = searcher(tmp_path, end, until="kernel-bug", rate=1)()
    assert verdict.answer.conclusion is not Conclusion.FOUND
    assert not any(verdict.counts(stage)[1] for stage in range(20))


def test_an_interrupted_search_goes_on_from_what_was_booted(tmp_path: Path) -> None:
    whole = searcher(tmp_path / "whole", crashes_from(7), rate=1)
    expected = whole()
    broken = searcher(tmp_path / "broken", crashes_from(7), rate=1)
    with pytest.raises(InfrastructureError):
        broken(fails_after=3)
    assert broken.bench.aborted
    assert answer_of(broken.path).conclusion == "undecided"
    resumed = broken()
    assert broken.booted == whole.booted, "nothing was booted twice"
    assert [boot.stage for boot in resumed.boots] == [boot.stage for boot in expected.boots]
    assert resumed.answer == expected.answer


def test_references_are_kept_too(tmp_path: Path) -> None:
    broken = searcher(tmp_path, slower_from(9, 3), metric="fault_insns.p50 > +2%")
    with pytest.raises(InfrastructureError):
        broken(fails_after=5)
    verdict = broken()
    assert verdict.answer.candidates == (9,)
    assert sum(boot.why == "reference" for boot in verdict.boots) == 3


def test_the_log_reads_like_gits(tmp_path: Path) -> None:
    search = searcher(tmp_path, crashes_from(7), rate=1)
    search()
    lines = (search.path / LOG).read_text().splitlines()
    assert lines[0] == "orchestrate bisect start 'baseline' 'stage-19' --workload churn --until kernel-bug"
    marks = [line for line in lines[1:] if not line.startswith("#")]
    assert len(marks) == len(search.booted)
    assert "orchestrate bisect bad stage-7" in marks
    assert "orchestrate bisect good stage-6" in marks
    assert any(line.startswith("# bad: [stage-7] pressure [") for line in lines)
    assert lines[-1].startswith("# the first bad stage is stage 7")


def test_every_boot_is_a_cell_of_the_run(tmp_path: Path) -> None:
    search = searcher(tmp_path, crashes_from(7), rate=1)
    verdict = search()
    run = Run.open(search.path)
    assert sorted(run.cells["cell"]) == sorted(boot.cell for boot in verdict.boots)
    assert set(run.cells.loc[run.cells["variant"] == "stage-7", "outcome"]) == {"kernel-bug"}


@pytest.mark.parametrize("fault", list(AFTER))
def test_a_fault_is_planted_as_a_stage_of_a_copy(tmp_path: Path, fault: str) -> None:
    number = plant(fault, tmp_path / fault)
    series = load_series(tmp_path / fault)
    stage = series.stages[number - 1]
    assert stage.name == fault
    assert stage.patch.read_text().count("The mistake:") == 1
    own = [each.digest for each in load_series(ROOT / "kernel_patches").stages]
    assert [each.digest for each in series.stages if each is not stage] == own
    assert series.select(stage.group)[-1].number >= number
