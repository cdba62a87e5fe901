# SPDX-License-Identifier: GPL-2.0-only
"""A run until it is decided: the error of its looks together, the boots it saves, and how it goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from records import manifest, planned
from simulated_boots import ICOUNT_SPREAD, NOISE, Simulation
from synthetic_run import Synthetic

from orchestrator.analysis.comparison import compare
from orchestrator.analysis.conclusion import conclusion
from orchestrator.analysis.looks import look_at, looks
from orchestrator.analysis.rule import rule_lines
from orchestrator.analysis.statistics import ALPHA, Verdict, sign_interval, smallest_p
from orchestrator.analysis.undecided import undecided
from orchestrator.cache import Cache
from orchestrator.errors import UserError
from orchestrator.events import Events
from orchestrator.execution.bench import Bench
from orchestrator.execution.durations import Durations
from orchestrator.execution.measure import run as experiment_run
from orchestrator.execution.measure.request import experiment_of_manifest, planned_cell
from orchestrator.execution.measure.run import execute
from orchestrator.execution.measured_cell import CellResult
from orchestrator.experiment.cell import Cell
from orchestrator.experiment.experiment import Experiment
from orchestrator.experiment.variant import Variant
from orchestrator.machine.topology import Topology
from orchestrator.store.manifest import Role, VariantRecord, WorkloadRecord
from orchestrator.store.observation import Metric, Observation
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import Run, RunWriter

MOST = 12


@pytest.mark.parametrize("most", [1, 5, 6, 7, 12, 20, 100])
def test_the_looks_end_at_the_most_and_spend_the_error_once(most: int) -> None:
    planned = looks(most)
    places = [look.repetitions for look in planned]
    assert places == sorted(set(places)) and places[-1] == most
    assert sum(look.alpha for look in planned) == pytest.approx(ALPHA)
    assert sum(look.alpha_equivalence for look in planned) == pytest.approx(ALPHA if most >= 6 else 0.0)


def test_every_look_could_claim_what_it_spends_error_for() -> None:
    for look in looks(20):
        assert 3 * smallest_p(look.repetitions, look.repetitions) <= look.alpha
        if look.alpha_equivalence:
            wanted = max(0.95, 1 - 2 * look.alpha_equivalence)
            assert sign_interval(look.repetitions, wanted)[1] >= wanted


def test_between_two_looks_the_earlier_one_counts_and_before_the_first_none() -> None:
    assert look_at(7, 20) == look_at(6, 20) != look_at(5, 20)
    assert (look_at(4, 20).alpha, look_at(4, 20).alpha_equivalence) == (0.0, 0.0)


def most_errors(runs: int, rate: float = ALPHA) -> int:
    """More wrong runs than this happen by chance in one of 10,000 tests, where the rate is as stated."""
    from scipy import stats

    return int(stats.binom.ppf(0.9999, runs, rate))


@pytest.mark.parametrize("kind", [*NOISE, "counts"])
def test_equal_kernels_differ_no_more_often_than_stated(kind: str) -> None:
    # By the test alone, and with next to no margin: the rule's margin and noise floor only make it rarer.
    simulation = Simulation(kind, MOST, 300, metrics=3)
    _, different, _ = simulation.until_decided(1, 1e-9, known_floor=False)
    assert different.sum() <= most_errors(simulation.runs)


@pytest.mark.parametrize("kind", ["normal", "lognormal", "t2", "outlier"])
def test_a_change_as_large_as_the_margin_is_seldom_equivalent(kind: str) -> None:
    simulation = Simulation(kind, MOST, 300, metrics=1, shift=0.005)
    _, _, equivalent = simulation.until_decided(2, 0.005)
    assert equivalent.sum() <= most_errors(simulation.runs)


def test_a_third_of_the_boots_is_saved_where_the_clock_is_steady_and_no_decision_is_lost() -> None:
    saved = []
    for shift in (0.0, 0.002, 0.01, 0.03):
        simulation = Simulation("normal", 20, 60, spread=ICOUNT_SPREAD, shift=shift, metrics=3)
        boots, different, equivalent = simulation.until_decided(3, 0.005)
        fixed = simulation.judged(3, 0.005)
        decided = np.all([each.different | each.equivalent for each in fixed], axis=0)
        assert (different | equivalent).mean() >= decided.mean() - 0.02
        saved.append(1 - boots.mean() / simulation.n)
    assert min(saved) > 1 / 3


def test_nothing_is_saved_or_claimed_where_nothing_can_be_decided() -> None:
    simulation = Simulation("normal", 12, 60, spread=0.05, metrics=3)
    boots, different, equivalent = simulation.until_decided(4, 0.005)
    assert boots.mean() > 11.5 and not different.any() and not equivalent.any()


def test_a_comparison_judges_at_the_level_of_the_look_that_a_variant_stopped_at(tmp_path: Path) -> None:
    fixed = Synthetic(repeat=5, samples=False, histograms=False)
    open_run = replace(fixed, changes={"max_repeat": 20})
    verdicts = [
        {(row.variant, row.metric): row.verdict for row in compare(each.write(tmp_path)).rows if row.primary}
        for each in (fixed, open_run)
    ]
    key = ("core-only@1", "first_fault_insns.p50")
    # Five boots may show equivalence to a run of five; a first look of many spends nothing on it.
    assert verdicts[0][key] is Verdict.EQUIVALENT
    assert verdicts[1][key] is Verdict.INCONCLUSIVE
    assert verdicts[1][("core-only@256", "survivors.total")] is Verdict.IMPROVED


def test_what_is_open_is_named_with_the_boots_that_would_not_do(tmp_path: Path) -> None:
    run = replace(Synthetic(repeat=5, samples=False, histograms=False), changes={"max_repeat": 5}).write(
        tmp_path
    )
    comparison = compare(run)
    left = undecided(comparison)
    assert "first_fault_insns.p50" in left["core-only@1", "fault_latency"]
    told = dict(rule_lines(comparison))["looks"]
    assert "planned after 5 (0.05) boots" in told
    assert "more than 5 boots would be needed for " in told
    assert "promotions.total of core-only@256 in chunk" not in told  # 0 in every boot


EXPERIMENT = Experiment(
    name="looks",
    variants=tuple(
        Variant(name, role, "baseline")
        for name, role in (
            ("baseline", Role.BASELINE),
            ("baseline-control", Role.CONTROL),
            ("much-faster", Role.PATCHED),
            ("noisy", Role.PATCHED),
        )
    ),
    workloads={"touch": {}},
    topology=Topology.parse("1x1G"),
    repeat=looks(8)[0].repetitions,
    max_repeat=8,
)


class Played:
    """A place where every cell ends ok, with a value that follows from variant and repetition."""

    slots = 1

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.interrupt_at = interrupt_at

    def ship(self, *_: object) -> None: ...

    def abort(self) -> None: ...

    def measure(self, cell: Cell, *_: object) -> CellResult:
        if cell.repetition == self.interrupt_at:
            raise KeyboardInterrupt
        draw = np.random.default_rng([len(cell.variant), cell.repetition])
        spread = 0.2 if cell.variant == "noisy" else 0.0001
        level = 0.5 if cell.variant == "much-faster" else 1.0
        value = 1000 * level * (1 + spread * draw.standard_normal())
        return CellResult(
            cell, Outcome.OK, "", observations=[Observation("touch_insns.mean", "insns", value)]
        )


def begun(results: Path) -> RunWriter:
    metric = Metric("touch_insns.mean", "insns", "lower", primary=True)
    return RunWriter.create(
        results,
        "looks",
        manifest(
            repeat=EXPERIMENT.repeat,
            max_repeat=EXPERIMENT.max_repeat,
            variants=tuple(
                VariantRecord(name=each.name, role=each.role, patchset=each.patchset)
                for each in EXPERIMENT.variants
            ),
            workloads={"touch": WorkloadRecord(title="Touch", metrics={metric.name: metric})},
            cells=tuple(planned_cell(cell, EXPERIMENT) for cell in EXPERIMENT.cells),
        ),
    )


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(experiment_run, "prepare", lambda *_: {"baseline": object()})
    stub = SimpleNamespace(
        events=Events(),
        accelerator=SimpleNamespace(name="icount"),
        durations=Durations(Cache(tmp_path / "cache")),
        workloads={name: SimpleNamespace(layers=()) for name in EXPERIMENT.workloads},
    )
    return cast("Bench", stub)


def boots_of(run: Run) -> dict[str, int]:
    return {str(name): int(number) for name, number in run.cells["variant"].value_counts().items()}


def test_a_variant_is_booted_until_it_is_decided_and_the_baseline_as_long_as_any(
    tmp_path: Path, bench: Bench
) -> None:
    writer = begun(tmp_path)
    execute(EXPERIMENT, bench, writer, Played())
    run = Run.open(writer.path)
    assert boots_of(run) == {"baseline": 8, "baseline-control": 8, "noisy": 8, "much-faster": 5}
    verdicts = {row.variant: row.verdict for row in compare(run).rows}
    assert verdicts == {"much-faster": Verdict.IMPROVED, "noisy": Verdict.INCONCLUSIVE}
    assert "not decided, needs more than 8 boots: touch_insns.mean" in conclusion(compare(run), "noisy")


@pytest.mark.parametrize("repetition", [2, 6, 8])
def test_a_run_that_was_interrupted_anywhere_is_resumed_to_the_same_end(
    tmp_path: Path, bench: Bench, repetition: int
) -> None:
    writer = begun(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        execute(EXPERIMENT, bench, writer, Played(interrupt_at=repetition))
    again = RunWriter.reopen(writer.path)
    execute(experiment_of_manifest(again.manifest), bench, again, Played())
    whole = begun(tmp_path)
    execute(EXPERIMENT, bench, whole, Played())
    one, other = Run.open(writer.path), Run.open(whole.path)
    assert [cell.cell for cell in one.manifest.cells] == [cell.cell for cell in other.manifest.cells]
    assert sorted(one.metrics["value"]) == sorted(other.metrics["value"])


def test_cells_that_are_not_of_the_experiment_are_refused(tmp_path: Path) -> None:
    writer = begun(tmp_path)
    writer.plan(planned("noisy", "touch", 9))
    with pytest.raises(UserError, match="do not match its experiment"):
        experiment_of_manifest(writer.manifest)
