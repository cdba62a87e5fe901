# SPDX-License-Identifier: GPL-2.0-only
"""Comparison of a run's variants with its baseline: supported claims per metric, and failures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from orchestrator.analysis.calibration import calibration_line
from orchestrator.analysis.condition import differences, notes_on_bases
from orchestrator.analysis.invariants import check_counters
from orchestrator.analysis.looks import Look, look_at
from orchestrator.analysis.statistics import (
    ALPHA,
    DIFFERENT,
    REPETITIONS_FOR_INTERVAL,
    Boots,
    Floor,
    Interval,
    Judgement,
    Values,
    Verdict,
    judge,
    median,
    noise_floor,
    repetitions_needed,
    variation,
)
from orchestrator.errors import UserError
from orchestrator.store.manifest import Manifest, Role, RunKind, VariantRecord
from orchestrator.store.observation import Metric
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import Run

#: Both sides are compared unpaired if a smaller share of their boots than this has a partner.
_LEAST_PAIRED: Final = 0.75

_NO_VERDICT: Final = (
    "NO VERDICT is given, because the figures of the two runs are by two clocks; `orchestrate compare --anyway` judges "
    "them as if they were by one."
)


@dataclass(frozen=True)
class Side:
    """The repetitions of one variant.

    Args:
        median: median of the values; None without a value.
        n: number of repetitions with a value; failed ones have none.
        values: values in the order of the repetitions.
        variation: coefficient of variation of the values; None for one value or a mean near zero.
    """

    median: float | None
    n: int
    values: tuple[float, ...]
    variation: float | None


@dataclass(frozen=True)
class Row:
    """One metric of one variant against the baseline.

    Args:
        unit: unit of medians, `difference` and `floor`.
        better: ``lower``, ``higher`` or None.
        difference: median over the repetitions of variant - baseline; with the clock ``insns`` and the unit insns this
            is in guest instructions.
        relative: median over the repetitions of variant / baseline - 1; if a baseline value is not positive,
            `difference` divided by the median of the baseline, or None if that is zero.
        interval: confidence interval of `relative` or `difference`, see `interval_of`, with its coverage.
        pairs: number of repetitions with a value on both sides; 0 if the sides were compared unpaired.
        agreeing: number of pairs whose difference has the sign of `difference`; None if unpaired.
        p, p_equivalence: p values of the permutation tests of primary metrics (without a control, and thus without a
            noise floor, of all metrics); ``*_adjusted`` are adjusted by Holm over `tests` metrics: the primary ones of
            this workload and variant are a family.
        floor: noise floor from the A/A control; None without a control.
        claimable: the smallest effect that can be claimed: the larger of margin and floor.
        testable: whether this number of repetitions can support the claim of a difference.
        reason: one sentence on the verdict.
    """

    workload: str
    metric: str
    unit: str
    better: str | None
    primary: bool
    help: str
    variant: str
    baseline: Side
    compared: Side
    difference: float | None
    relative: float | None
    interval: Interval | None
    interval_of: Literal["relative", "difference"] | None
    pairs: int
    agreeing: int | None
    p: float | None
    p_adjusted: float | None
    p_equivalence: float | None
    p_equivalence_adjusted: float | None
    tests: int
    floor: float | None
    claimable: float
    testable: bool
    verdict: Verdict
    reason: str

    @property
    def claimed(self) -> bool:
        """Whether a difference is claimed."""
        return self.verdict in DIFFERENT

    @property
    def always_zero(self) -> bool:
        """Whether all values on both sides are 0."""
        return not any(self.baseline.values) and not any(self.compared.values)


@dataclass(frozen=True)
class Failure:
    """A cell that did not end ok."""

    cell: str
    variant: str
    workload: str
    repetition: int
    outcome: Outcome
    evidence: str


@dataclass(frozen=True)
class ComparisonFinding:
    """A finding that sets the exit status: a failed cell, inconsistent counters, or a regression.

    Args:
        kind: ``failed-cell``, ``counters`` or ``regression``.
        where: the cell, or variant and metric.
        text: one sentence.
    """

    kind: Literal["failed-cell", "counters", "regression"]
    where: str
    text: str


@dataclass(frozen=True)
class ComparedVariant:
    """A variant in the comparison.

    Args:
        neutral: it should change nothing, so equivalence has to be shown.
        stages: numbers of the applied stages.
    """

    name: str
    role: str
    patchset: str
    knobs: Mapping[str, str]
    cmdline: tuple[str, ...]
    stages: tuple[int, ...]
    neutral: bool
    release: str | None


@dataclass(frozen=True)
class Conditions:
    """The common conditions of all variants.

    Args:
        clock: ``insns`` (guest instructions), ``ns`` (guest nanoseconds) or None before anything was measured.
        repeat: planned fresh boots per variant and workload.
        max_repeat: maximum number of these in a run with ``--until-decided``; None for other runs.
        calibration: line on the calibration; empty if the clock is not instructions.
    """

    clock: str | None
    accelerator: str
    accelerator_reason: str
    topology: str
    flavour: str
    kernel: str
    repeat: int
    max_repeat: int | None = None
    calibration: str = ""


@dataclass(frozen=True)
class Comparison:
    """The comparison of a run, or of two runs.

    Args:
        runs: names of the run directories.
        margin: largest relative difference that counts as unchanged.
        control: rows of the A/A control, compared with the baseline that it is a copy of.
        planned: variant -> workload -> number of planned cells.
        counters_checked: number of cells whose reservation counters were checked.
        notes: sentences that readers of the figures should know.
        cautions: sentences to show before the figures: why a difference may not come from the kernel.
        unjudged: why there is no verdict on any metric, as a clause; empty if there are verdicts.
    """

    runs: tuple[str, ...]
    baseline: str
    conditions: Conditions
    margin: float
    alpha: float
    variants: tuple[ComparedVariant, ...]
    workloads: Mapping[str, str]
    rows: tuple[Row, ...]
    control: tuple[Row, ...]
    planned: Mapping[str, Mapping[str, int]]
    failures: tuple[Failure, ...]
    findings: tuple[ComparisonFinding, ...]
    counters_checked: int
    notes: tuple[str, ...]
    cautions: tuple[str, ...] = ()
    unjudged: str = ""

    @property
    def found_something(self) -> bool:
        """Whether the exit status is 3: a failed cell, inconsistent counters, or a metric (primary or not) that
        regressed beyond margin and noise floor."""
        return bool(self.findings)

    @property
    def compared(self) -> tuple[ComparedVariant, ...]:
        """The variants that are compared with the baseline."""
        return tuple(v for v in self.variants if v.name != self.baseline and v.role != "control")

    @property
    def control_variant(self) -> str | None:
        """The name of the A/A control."""
        return next((v.name for v in self.variants if v.role == "control"), None)

    @property
    def testable(self) -> tuple[int, int]:
        """Number of rows with enough repetitions for a claim, and number of rows with a difference."""
        rows = [row for row in self.rows if row.difference is not None and not row.always_zero]
        return sum(row.testable for row in rows), len(rows)

    def variant(self, name: str) -> ComparedVariant:
        """The variant with this name."""
        return next(each for each in self.variants if each.name == name)

    def rows_of(self, *, variant: str | None = None, workload: str | None = None) -> tuple[Row, ...]:
        """The rows of a variant, of a workload, or of both."""
        return tuple(
            row
            for row in self.rows
            if (variant is None or row.variant == variant) and (workload is None or row.workload == workload)
        )

    def to_json(self) -> str:
        """The comparison as JSON; it depends only on the run."""
        content = {"schema": 2, "found_something": self.found_something, **asdict(self)}
        return json.dumps(_plain(content), indent=2, sort_keys=True, allow_nan=False) + "\n"


def compare(run: Run, against: str | None = None, margin: float | None = None) -> Comparison:
    """Compare every variant of a run with its baseline.

    Args:
        against: variant to use as the baseline.
        margin: equivalence margin to use instead of the run's, e.g. 0.01 for 1 %.

    Raises:
        UserError: unknown variant, or a margin that is not a fraction.
    """
    variants = [_Variant(run, entry) for entry in run.manifest.variants]
    if against is None and run.manifest.kind is not RunKind.RUN:
        # Other kinds of runs, e.g. a check, are not comparisons, and may have only one variant.
        against = next((v.name for v in variants if v.role == Role.BASELINE), variants[0].name)
    baseline = _chosen(variants, against)
    control = next((v for v in variants if v.role == "control"), None)
    return _compare([run], variants, baseline, control, margin)


def compare_runs(
    first: Run,
    second: Run,
    against: str | None = None,
    margin: float | None = None,
    *,
    anyway: bool = False,
) -> Comparison:
    """Compare the variants of one run with the baseline of another.

    If the second run has the same baseline, that is the A/A control, which also shows differences between the runs.
    If their clocks count differently, e.g. with two versions of QEMU, the figures are shown without verdicts.

    Args:
        anyway: judge although the clocks count differently.

    Raises:
        UserError: the runs differ in something that makes their figures incomparable; the message names it.
    """
    _refuse_incomparable(first, second)
    baseline = _chosen([_Variant(first, entry) for entry in first.manifest.variants], against)
    variants = [baseline]
    control: _Variant | None = None
    for entry in second.manifest.variants:
        variant = _Variant(second, entry, label=f"{entry.name} ({second.name})")
        if variant.role == "control":
            continue
        if control is None and variant.same_kernel_as(baseline):
            variant.role = "control"
            control = variant
        variants.append(variant)
    notes = []
    if control is None:
        notes.append(
            "the second run has no copy of the baseline, so differences between the two runs are unknown."
        )
    if first.manifest.seed != second.manifest.seed:
        notes.append("the two runs have different seeds: their workloads touched different pages.")
    if first.manifest.image != second.manifest.image:
        notes.append("the two runs have different guest images.")
    return _compare([first, second], variants, baseline, control, margin, notes, anyway=anyway)


class _Variant:
    """A variant of one run, with its measured values."""

    def __init__(self, run: Run, entry: VariantRecord, label: str | None = None) -> None:
        self.run = run
        self.entry = entry
        self.own_name = entry.name
        self.name = label or self.own_name
        self.role = str(entry.role)
        cells = run.cells
        self.cells: pd.DataFrame = cells[cells["variant"] == self.own_name]
        ok = self.cells.loc[self.cells["outcome"] == Outcome.OK.value, "cell"]
        metrics = run.metrics
        finite = np.isfinite(metrics["value"])
        self.metrics: pd.DataFrame = metrics[metrics["cell"].isin(ok) & finite]
        self._seeds = self.cells.set_index("cell")["seed"]
        self.not_finite = int((metrics["cell"].isin(ok) & ~finite).sum())

    def values(self, workload: str, metric: str) -> pd.Series:
        """One value per boot (the unit of replication), by repetition and seed."""
        return self._values.get((workload, metric), self._no_values)

    @cached_property
    def _no_values(self) -> pd.Series:
        return self._medians(self.metrics.iloc[:0])

    @cached_property
    def _values(self) -> dict[tuple[str, str], pd.Series]:
        # Asked for several times per row, and pandas takes its time to select and group.
        return {
            (str(key[0]), str(key[1])): self._medians(own)
            for key, own in self.metrics.groupby(["workload", "metric"])
        }

    def _medians(self, own: pd.DataFrame) -> pd.Series:
        keys = [own["repetition"], own["cell"].map(self._seeds).rename("seed")]
        return own.groupby(keys)["value"].median()

    def planned(self, workload: str) -> int:
        return int((self.cells["workload"] == workload).sum())

    def same_kernel_as(self, other: _Variant) -> bool:
        def facts(entry: VariantRecord) -> tuple[Any, ...]:
            return entry.tree, [stage.digest for stage in entry.stages], entry.knobs, entry.cmdline

        return facts(self.entry) == facts(other.entry)

    def described(self) -> ComparedVariant:
        entry = self.entry
        at = self.run.manifest.series.neutral
        neutral = any(entry.knobs.get(key) == value for key, value in at.items())
        return ComparedVariant(
            name=self.name,
            role=self.role,
            patchset=entry.patchset,
            knobs=entry.knobs,
            cmdline=entry.cmdline,
            stages=tuple(stage.number for stage in entry.stages),
            neutral=neutral and self.role == Role.PATCHED,
            release=entry.kernel.release if entry.kernel else None,
        )

    def failures(self) -> list[Failure]:
        failed = self.cells[self.cells["outcome"] != Outcome.OK.value]
        suffix = self.name.removeprefix(self.own_name)  # name of the run, if there are two
        return [
            Failure(
                cell=str(row.cell) + suffix,
                variant=self.name,
                workload=str(row.workload),
                repetition=int(str(row.repetition)),
                outcome=Outcome(str(row.outcome)),
                evidence=str(row.evidence),
            )
            for row in failed.itertuples()
        ]


def _chosen(variants: Sequence[_Variant], against: str | None) -> _Variant:
    if against is None:
        for variant in variants:
            if variant.role == "baseline":
                return variant
        raise UserError("this run has no baseline; choose one with --against.")
    for variant in variants:
        if variant.name == against:
            return variant
    raise UserError(f"this run has no variant {against}; it has {', '.join(v.name for v in variants)}.")


def _refuse_incomparable(first: Run, second: Run) -> None:
    """Report all differences at once."""
    found = []
    one, two = first.manifest, second.manifest
    for what, left, right in (
        ("clock", one.accelerator.clock, two.accelerator.clock),
        ("accelerator", one.accelerator.name, two.accelerator.name),
        ("topology", one.topology.text, two.topology.text),
        ("NUMA distances", _rows_of(one.topology.distances), _rows_of(two.topology.distances)),
        ("kernel configuration", one.flavour, two.flavour),
    ):
        if left != right:
            found.append(f"{what} ({left} and {right})")
    configurations = [
        {variant.kernel.configuration for variant in manifest.variants if variant.kernel}
        for manifest in (one, two)
    ]
    if all(configurations) and configurations[0] != configurations[1]:
        found.append("options of the kernel configuration")
    shared = [name for name in one.workloads if name in two.workloads]
    if not shared:
        found.append("workloads: they have none in common")
    for name in shared:
        mine, theirs = one.workloads[name].parameters, two.workloads[name].parameters
        for key in sorted({*mine, *theirs}):
            if mine.get(key) != theirs.get(key):
                found.append(f"parameter {key} of workload {name} ({mine.get(key)} and {theirs.get(key)})")
    if found:
        raise UserError(
            f"{first.name} and {second.name} cannot be compared: they differ in {'; '.join(found)}."
        )


def _rows_of(distances: Sequence[Sequence[int]]) -> str:
    return " / ".join(" ".join(map(str, row)) for row in distances)


@dataclass(frozen=True)
class _PresentMetric:
    workload: str
    name: str
    unit: str
    better: str | None
    primary: bool
    help: str


def _metrics_of(variants: Sequence[_Variant], workload: str) -> list[_PresentMetric]:
    """Metrics with at least one value: primary ones first, then declared ones, then undeclared ones."""
    seen: dict[str, str] = {}
    for variant in variants:
        own = variant.metrics[variant.metrics["workload"] == workload]
        for metric, unit in zip(own["metric"], own["unit"], strict=True):
            seen.setdefault(str(metric), str(unit))
    declared = variants[0].run.manifest.workloads[workload].metrics
    names = [name for name in declared if name in seen] + sorted(
        name for name in seen if name not in declared
    )
    metrics = []
    for name in names:
        facts = declared.get(name) or Metric(name, seen[name], None)
        metrics.append(
            _PresentMetric(
                workload=workload,
                name=name,
                unit=facts.unit or seen[name],
                better=facts.better,
                primary=facts.primary,
                help=facts.help,
            )
        )
    return sorted(metrics, key=lambda metric: not metric.primary)


def _compare(
    runs: Sequence[Run],
    variants: Sequence[_Variant],
    baseline: _Variant,
    control: _Variant | None,
    margin: float | None,
    notes: Sequence[str] = (),
    *,
    anyway: bool = False,
) -> Comparison:
    manifest = runs[0].manifest
    chosen_margin = manifest.margin if margin is None else margin
    if not 0 < chosen_margin < 1:
        raise UserError(f"margin is {chosen_margin:g}; give a fraction, e.g. 0.005 for 0.5 %.")
    workloads = {
        name: workload.title or name
        for name, workload in manifest.workloads.items()
        if all(name in run.manifest.workloads for run in runs)
    }
    # The A/A pair is the baseline and its copy, even if another variant is used as the baseline.
    pair = next((v for v in variants if v.role == "baseline"), baseline)
    rows: list[Row] = []
    control_rows: list[Row] = []
    for workload in workloads:
        metrics = _metrics_of(variants, workload)
        floors: dict[str, Floor] = {}
        if control is not None:
            control_rows += _control_rows(metrics, pair, control, chosen_margin)
            for metric in metrics:
                boots = _boots(metric, pair, control, None)
                if boots is not None:
                    floors[metric.name] = noise_floor(boots)
        # The control is only valid for the kernel that it is a copy of.
        copy = control if baseline is pair else None
        for variant in variants:
            if variant is not baseline and variant is not control:
                level = _level(runs, workload, variant)
                rows += _rows(metrics, baseline, variant, copy, floors, chosen_margin, level)

    different = differences(runs)
    unjudged = ""
    if different.clocks and not anyway:
        unjudged = f"the {' and the '.join(different.clocks)} differ, so the figures are by two clocks"
        rows = [_unjudged(row, unjudged) for row in rows]
        control_rows = [_unjudged(row, unjudged) for row in control_rows]

    failures = tuple(failure for variant in variants for failure in variant.failures())
    checks = [check_counters(run) for run in runs]
    findings = [
        *(
            ComparisonFinding("failed-cell", f.cell, f"{f.outcome}: {first_line(f.evidence)}")
            for f in failures
        ),
        *(ComparisonFinding("counters", v.cell, v.text) for check in checks for v in check.violations),
        *(
            ComparisonFinding("regression", f"{row.variant}: {row.workload} {row.metric}", row.reason)
            for row in rows
            if row.verdict is Verdict.REGRESSED
        ),
    ]
    return Comparison(
        runs=tuple(run.name for run in runs),
        baseline=baseline.name,
        conditions=_conditions(manifest),
        margin=chosen_margin,
        alpha=ALPHA,
        variants=tuple(variant.described() for variant in variants),
        workloads=workloads,
        rows=tuple(rows),
        control=tuple(control_rows),
        planned={v.name: {workload: v.planned(workload) for workload in workloads} for v in variants},
        failures=failures,
        findings=tuple(findings),
        counters_checked=sum(check.cells for check in checks),
        notes=(
            *different.notes,
            *notes_on_bases(runs),
            *notes,
            *_notes(variants, control, control_rows, [] if unjudged else rows),
        ),
        cautions=(*different.cautions, *([_NO_VERDICT] if unjudged else [])),
        unjudged=unjudged,
    )


def _unjudged(row: Row, why: str) -> Row:
    """The row with its figures, but without a claim."""
    return replace(
        row,
        p=None,
        p_adjusted=None,
        p_equivalence=None,
        p_equivalence_adjusted=None,
        testable=False,
        verdict=Verdict.NO_TEST,
        reason=f"not judged: {why}",
    )


def _level(runs: Sequence[Run], workload: str, variant: _Variant) -> Look:
    """The allowed error for a variant's primary metrics: that of the look at which it stopped, if there are looks."""
    most = runs[0].manifest.max_repeat
    if len(runs) > 1 or most is None:
        return Look(variant.planned(workload), ALPHA, ALPHA)
    return look_at(variant.planned(workload), most)


def _conditions(manifest: Manifest) -> Conditions:
    return Conditions(
        clock=manifest.accelerator.clock,
        accelerator=manifest.accelerator.name,
        accelerator_reason=manifest.accelerator.reason,
        topology=manifest.topology.text,
        flavour=manifest.flavour,
        kernel=manifest.source.description,
        repeat=manifest.repeat,
        max_repeat=manifest.max_repeat,
        calibration=calibration_line(manifest),
    )


def _notes(
    variants: Sequence[_Variant], control: _Variant | None, control_rows: Sequence[Row], rows: Sequence[Row]
) -> list[str]:
    notes = []
    strange = sum(variant.not_finite for variant in variants)
    if strange:
        notes.append(f"{strange} values are not finite and were omitted.")
    if control is None:
        notes.append("there is no A/A control, so the noise floor is unknown.")
    for row in control_rows:
        if row.claimed:
            notes.append(
                f"the A/A control differs from the baseline in {row.workload} {row.metric}: this metric is not "
                "reliable."
            )
    unpaired = dict.fromkeys(
        f"{row.variant} in {row.workload}"
        for row in (*control_rows, *rows)
        if row.difference is not None and not row.pairs
    )
    if unpaired:
        notes.append(
            f"unpaired: {', '.join(unpaired)}. Too few boots have a partner of the same repetition and seed, so the "
            "two sides are compared as independent boots."
        )
    few = [
        row for row in rows if row.verdict is Verdict.NO_TEST and row.primary and row.difference is not None
    ]
    few = [row for row in few if not row.always_zero]
    if few:
        least = min(few, key=lambda row: min(row.baseline.n, row.compared.n))
        notes.append(
            f"too few repetitions for a test in {', '.join(dict.fromkeys(row.workload for row in few))} "
            f"({least.baseline.n} against {least.compared.n}); differences are shown without a claim; "
            f"{max(_needed(row) for row in few)} repetitions are needed."
        )
    return notes


def _boots(
    metric: _PresentMetric, baseline: _Variant, variant: _Variant, control: _Variant | None
) -> Boots | None:
    """The values of a metric, paired by repetition if enough boots have a partner; None if a side has no value."""
    ours, theirs = (side.values(metric.workload, metric.name) for side in (baseline, variant))
    if ours.empty or theirs.empty:
        return None
    shared = ours.index.intersection(theirs.index).sort_values()
    if len(shared) < _LEAST_PAIRED * min(len(ours), len(theirs)):
        return Boots(_array(ours), _array(theirs), paired=False)
    copies = None
    if control is not None:
        copies = control.values(metric.workload, metric.name).reindex(shared)
    return Boots(
        _array(ours[shared]),
        _array(theirs[shared]),
        None if copies is None or copies.isna().all() else _array(copies),
    )


def _array(series: pd.Series) -> Values:
    return series.to_numpy(dtype=np.float64)


def _control_rows(
    metrics: Sequence[_PresentMetric], baseline: _Variant, control: _Variant, margin: float
) -> list[Row]:
    """The rows of the A/A control, as a warning of unreliable metrics; they are judged by intervals alone."""
    still = Floor(np.asarray(0.0), np.asarray(0.0), 1.0)
    rows = []
    for metric in metrics:
        boots = _boots(metric, baseline, control, None)
        judgement = None if boots is None else judge([boots], [still], margin, primary=False)[0]
        rows.append(_row(metric, baseline, control, boots, judgement, None, margin, control=False))
    return rows


def _rows(
    metrics: Sequence[_PresentMetric],
    baseline: _Variant,
    variant: _Variant,
    control: _Variant | None,
    floors: Mapping[str, Floor],
    margin: float,
    level: Look,
) -> list[Row]:
    rows: list[Row] = []
    for primary in (True, False):
        family = [metric for metric in metrics if metric.primary is primary]
        boots = {metric: _boots(metric, baseline, variant, control) for metric in family}
        measured = {metric: own for metric, own in boots.items() if own is not None}
        judged = judge(
            list(measured.values()),
            [floors.get(metric.name) for metric in measured],
            margin,
            primary=primary,
            # The error is not divided for other metrics: their claims rest on interval and noise floor.
            alpha=level.alpha if primary else ALPHA,
            alpha_equivalence=level.alpha_equivalence if primary else ALPHA,
        )
        judgements = dict(zip(measured, judged, strict=True))
        rows += [
            _row(
                metric,
                baseline,
                variant,
                boots[metric],
                judgements.get(metric),
                floors.get(metric.name),
                margin,
                control=control is not None,
            )
            for metric in family
        ]
    return rows


def _row(
    metric: _PresentMetric,
    baseline: _Variant,
    variant: _Variant,
    boots: Boots | None,
    judgement: Judgement | None,
    floor: Floor | None,
    margin: float,
    *,
    control: bool,
) -> Row:
    sides = [_side(_array(side.values(metric.workload, metric.name))) for side in (baseline, variant)]
    row = Row(
        workload=metric.workload,
        metric=metric.name,
        unit=metric.unit,
        better=metric.better,
        primary=metric.primary,
        help=metric.help,
        variant=variant.name,
        baseline=sides[0],
        compared=sides[1],
        difference=None,
        relative=None,
        interval=None,
        interval_of=None,
        pairs=0,
        agreeing=None,
        p=None,
        p_adjusted=None,
        p_equivalence=None,
        p_equivalence_adjusted=None,
        tests=0,
        floor=None,
        claimable=0.0,
        testable=False,
        verdict=Verdict.NO_TEST,
        reason="",
    )
    if boots is not None and judgement is not None:
        row = _judged(row, boots, judgement, floor)
    return replace(row, reason=_reason(row, margin, control=control))


def _judged(row: Row, boots: Boots, judgement: Judgement, floor: Floor | None) -> Row:
    base = row.baseline.median or 0.0
    effect = judgement.effect
    relative: float | None
    if boots.paired:
        each = boots.variant - boots.baseline
    else:
        each = (boots.variant[:, None] - boots.baseline[None, :]).ravel()
    difference = float(median(each))
    if effect.relative:
        relative = float(effect.estimate)
        claimable = float(judgement.claimable) * abs(base)
        noise = None if floor is None else _number(float(floor.relative))
        noise = noise * abs(base) if noise is not None else None if floor is None else float(floor.absolute)
    else:
        relative = difference / abs(base) if base else None
        claimable = float(judgement.claimable)
        noise = None if floor is None else float(floor.absolute)
    interval = None
    if not math.isnan(float(effect.low)):
        interval = Interval(float(effect.low), float(effect.high), effect.confidence)
    return replace(
        row,
        difference=difference,
        relative=relative,
        interval=interval,
        interval_of=None if interval is None else "relative" if effect.relative else "difference",
        pairs=each.size if boots.paired else 0,
        agreeing=int((np.sign(each) == np.sign(difference)).sum()) if boots.paired else None,
        p=_number(float(judgement.p)),
        p_adjusted=_number(float(judgement.p_adjusted)),
        p_equivalence=_number(float(judgement.p_equivalence)),
        p_equivalence_adjusted=_number(float(judgement.p_equivalence_adjusted)),
        tests=int(judgement.tests),
        floor=noise,
        claimable=claimable,
        testable=bool(judgement.testable),
        verdict=Verdict.NO_TEST if row.always_zero else judgement.verdict(row.better),
    )


def _needed(row: Row, *, control: bool = False) -> int:
    """Number of repetitions needed for a claim."""
    if not row.primary and row.floor is not None:
        return REPETITIONS_FOR_INTERVAL
    return repetitions_needed(row.tests, control=control or row.floor is not None)


def _reason(row: Row, margin: float, *, control: bool) -> str:
    n_baseline, n_compared = row.baseline.n, row.compared.n
    if not n_baseline or not n_compared:
        who = "the baseline" if not n_baseline else "the variant"
        return f"{who} has no value of this metric"
    if row.always_zero:
        return "0 in every repetition of both"
    if row.verdict is Verdict.NO_TEST:
        if min(n_baseline, n_compared) == 1:
            return "one repetition: the difference is shown without a claim"
        return (
            f"too few repetitions ({n_baseline} against {n_compared}) for a claim; "
            f"{_needed(row, control=control)} repetitions are needed"
        )
    size = _size(row.difference or 0.0, row.relative, row.unit)
    by_test = row.primary or row.floor is None
    p = f"p = {row.p_adjusted:.2g}" if row.p_adjusted is not None else "no test of a difference"
    seen = f"in {row.agreeing} of {row.pairs} repetitions" if row.pairs else "unpaired boots"
    if row.verdict in (Verdict.EQUIVALENT, Verdict.SCATTERED):
        shown = f"within {margin:.2%} of the baseline"
        if row.primary and row.p_equivalence_adjusted is not None:
            shown += f" (equivalence p = {row.p_equivalence_adjusted:.2g})"
        else:
            shown += " by its interval"
        if row.verdict is Verdict.SCATTERED:
            return f"the median is {shown}, but single repetitions are not"
        return shown
    if row.claimed:
        return f"{row.verdict.value}: {size} {seen} ({p if by_test else 'by interval and noise floor'})"
    apart = row.interval is not None and not row.interval.low <= 0 <= row.interval.high
    if by_test and apart and abs(row.difference or 0.0) <= row.claimable:
        least = _size(
            row.claimable, row.claimable / abs(row.baseline.median) if row.baseline.median else None, row.unit
        )
        return f"{size} {seen} ({p}) is no larger than margin and noise floor ({least.lstrip('+')})"
    if by_test:
        return f"neither a difference ({p}) nor equivalence within {margin:.2%} is shown"
    return f"the interval is neither beyond margin and noise floor nor within {margin:.2%}"


def _size(difference: float, relative: float | None, unit: str) -> str:
    if relative is None:
        return f"{difference:+.6g} {unit}"
    return f"{relative:+.2%}"


def _side(values: Values) -> Side:
    return Side(
        float(median(values)) if values.size else None,
        int(values.size),
        tuple(map(float, values)),
        variation(values),
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def first_line(text: str) -> str:
    """The first nonempty line of the evidence."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no evidence")


def _plain(value: Any) -> Any:
    """Convert `value` for JSON: no enumerations, no infinities."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
