# SPDX-License-Identifier: GPL-2.0-only
"""A run's variants against its baseline: what may be claimed of each metric, and what went wrong."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from orchestrator.analysis.base import base_differences, notes_on_bases
from orchestrator.analysis.calibration import calibration_line
from orchestrator.analysis.clock import clock_differences
from orchestrator.analysis.invariants import check_counters
from orchestrator.analysis.statistics import (
    ALPHA,
    Interval,
    Values,
    Verdict,
    bootstrap_interval,
    cliffs_delta,
    decide,
    equivalence_p,
    holm,
    median,
    noise_floor,
    permutation_p,
    repetitions_needed,
    smallest_p,
)
from orchestrator.defaults import MARGIN
from orchestrator.errors import UserError
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import Run

#: A knob at its neutral value: the patch that introduces it claims to change nothing there.
_NEUTRAL_KNOBS: Final = {"promotion_threshold": "1"}


@dataclass(frozen=True)
class Side:
    """The repetitions of one variant.

    Args:
        median: None where there is no value.
        n: repetitions with a value; those that failed have none.
        values: in the order of the repetitions.
    """

    median: float | None
    n: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One metric of one variant against the baseline.

    Args:
        unit: of medians, `difference` and `floor`.
        better: ``lower``, ``higher`` or None.
        difference: of the medians, variant - baseline; under the clock ``insns`` and with a unit of insns this
            is the exact difference in guest instructions.
        relative: `difference` as a fraction of the baseline's median; None where that is zero.
        interval: at 95 %, of `relative` or of `difference`, see `interval_of`.
        delta: Cliff's delta, -1 to 1.
        p, p_equivalence: of the permutation test and of the equivalence test; ``*_adjusted`` after Holm over
            `tests` metrics: the primary ones of this workload and variant are a family, the others another.
        floor: noise floor, what the A/A control shows; None without a control.
        claimable: the least effect that could have been claimed: the larger of margin and floor.
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
    delta: float | None
    p: float | None
    p_adjusted: float | None
    p_equivalence: float | None
    p_equivalence_adjusted: float | None
    tests: int
    floor: float | None
    claimable: float
    verdict: Verdict
    reason: str

    @property
    def always_zero(self) -> bool:
        """Whether every value on both sides is 0: there is nothing to show."""
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
class Finding:
    """Something that the exit status must tell: a failed cell, a broken counter, a regression.

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
    """One variant as the comparison knows it.

    Args:
        neutral: declared to change nothing, so that equivalence is what it has to show.
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
    """What every side had in common.

    Args:
        clock: ``insns`` (guest instructions), ``ns`` (nanoseconds) or None before anything was measured.
        repeat: planned fresh boots a variant and workload.
        calibration: what the host's processor said beside the clock; empty where the clock is not instructions.
    """

    clock: str | None
    accelerator: str
    accelerator_reason: str
    topology: str
    flavour: str
    kernel: str
    repeat: int
    calibration: str = ""


@dataclass(frozen=True)
class Comparison:
    """The whole comparison.

    Args:
        runs: names of the run directories.
        margin: relative difference up to which a metric counts as unchanged.
        control: rows of the A/A control, against the baseline that it is a copy of.
        planned: variant -> workload -> planned cells.
        counters_checked: cells whose reservation counters were checked.
        notes: sentences that a reader of the figures must know.
        cautions: shown before the figures: why a difference may not be the kernel's.
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
    findings: tuple[Finding, ...]
    counters_checked: int
    notes: tuple[str, ...]
    cautions: tuple[str, ...] = ()

    @property
    def found_something(self) -> bool:
        """Whether the exit status is 3: a failed cell, counters that contradict each other, or a primary
        metric that regressed beyond the margin."""
        return bool(self.findings)

    @property
    def compared(self) -> tuple[ComparedVariant, ...]:
        """The variants on the right of the table."""
        return tuple(v for v in self.variants if v.name != self.baseline and v.role != "control")

    @property
    def control_variant(self) -> str | None:
        """The name of the A/A control."""
        return next((v.name for v in self.variants if v.role == "control"), None)

    def variant(self, name: str) -> ComparedVariant:
        """The variant of that name."""
        return next(each for each in self.variants if each.name == name)

    def rows_of(self, *, variant: str | None = None, workload: str | None = None) -> tuple[Row, ...]:
        """The rows of a variant, of a workload, or of both."""
        return tuple(
            row
            for row in self.rows
            if (variant is None or row.variant == variant) and (workload is None or row.workload == workload)
        )

    def to_json(self) -> str:
        """The comparison for a machine: the same run gives the same bytes."""
        content = {"schema": 1, "found_something": self.found_something, **asdict(self)}
        return json.dumps(_plain(content), indent=2, sort_keys=True, allow_nan=False) + "\n"


def compare(run: Run, against: str | None = None, margin: float | None = None) -> Comparison:
    """Compare every variant of a run with its baseline.

    Args:
        against: another variant to compare with.
        margin: another one than the run's own, e.g. 0.01 for one per cent.

    Raises:
        UserError: no such variant, or a margin that is no fraction.
    """
    variants = [_Variant(run, entry) for entry in run.manifest["variants"]]
    baseline = _chosen(variants, against)
    control = next((v for v in variants if v.role == "control"), None)
    return _compare([run], variants, baseline, control, margin)


def compare_runs(
    first: Run, second: Run, against: str | None = None, margin: float | None = None
) -> Comparison:
    """Compare the variants of one run with the baseline of another.

    Where the second run has the same baseline, that is the A/A control: it also shows what lies between the
    two runs.

    Raises:
        UserError: the runs differ in something that makes their figures incomparable; the sentence names it.
    """
    _refuse_incomparable(first, second)
    baseline = _chosen([_Variant(first, entry) for entry in first.manifest["variants"]], against)
    variants = [baseline]
    control: _Variant | None = None
    for entry in second.manifest["variants"]:
        variant = _Variant(second, entry, label=f"{entry['name']} ({second.name})")
        if variant.role == "control":
            continue
        if control is None and variant.same_kernel_as(baseline):
            variant.role = "control"
            control = variant
        variants.append(variant)
    notes = []
    if control is None:
        notes.append(
            "the second run has no copy of the baseline, so what lies between the two runs is not known."
        )
    if first.manifest.get("seed") != second.manifest.get("seed"):
        notes.append("the two runs have different seeds: workloads drew different pages.")
    if first.manifest.get("image") != second.manifest.get("image"):
        notes.append("the two runs have different guest images.")
    comparison = _compare([first, second], variants, baseline, control, margin, notes)
    clocks = clock_differences(first.manifest, second.manifest)
    return replace(comparison, cautions=(*comparison.cautions, *clocks))


class _Variant:
    """A variant of one run, with its measured values."""

    def __init__(self, run: Run, entry: Mapping[str, Any], label: str | None = None) -> None:
        self.run = run
        self.entry = entry
        self.own_name = str(entry["name"])
        self.name = label or self.own_name
        self.role = str(entry["role"])
        cells = run.cells
        self.cells: pd.DataFrame = cells[cells["variant"] == self.own_name]
        ok = self.cells.loc[self.cells["outcome"] == Outcome.OK.value, "cell"]
        metrics = run.metrics
        finite = np.isfinite(metrics["value"])
        self.metrics: pd.DataFrame = metrics[metrics["cell"].isin(ok) & finite]
        self.not_finite = int((metrics["cell"].isin(ok) & ~finite).sum())

    def values(self, workload: str, metric: str) -> Values:
        """One value a repetition: the boot is the unit of replication, however often it reported."""
        own = self.metrics[(self.metrics["workload"] == workload) & (self.metrics["metric"] == metric)]
        return np.asarray(own.groupby("repetition")["value"].median(), dtype=np.float64)

    def planned(self, workload: str) -> int:
        return int((self.cells["workload"] == workload).sum())

    def same_kernel_as(self, other: _Variant) -> bool:
        def facts(entry: Mapping[str, Any]) -> tuple[Any, ...]:
            stages = [stage["digest"] for stage in entry.get("stages", ())]
            return (entry.get("tree"), stages, dict(entry.get("knobs", {})), list(entry.get("cmdline", ())))

        return facts(self.entry) == facts(other.entry)

    def described(self) -> ComparedVariant:
        entry = self.entry
        knobs = {str(key): str(value) for key, value in entry.get("knobs", {}).items()}
        neutral = any(knobs.get(key) == value for key, value in _NEUTRAL_KNOBS.items())
        return ComparedVariant(
            name=self.name,
            role=self.role,
            patchset=str(entry.get("patchset", "")),
            knobs=knobs,
            cmdline=tuple(map(str, entry.get("cmdline", ()))),
            stages=tuple(int(stage["number"]) for stage in entry.get("stages", ())),
            neutral=bool(entry.get("neutral", neutral and self.role == "patched")),
            release=(entry.get("kernel") or {}).get("release"),
        )

    def failures(self) -> list[Failure]:
        failed = self.cells[self.cells["outcome"] != Outcome.OK.value]
        suffix = self.name.removeprefix(self.own_name)  # names the run, where there are two
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
        raise UserError("this run has no baseline; name one with --against.")
    for variant in variants:
        if variant.name == against:
            return variant
    raise UserError(f"this run has no variant {against}; it has {', '.join(v.name for v in variants)}.")


def _refuse_incomparable(first: Run, second: Run) -> None:
    """Every difference at once, for a person fixes them together."""
    differences = []
    for what, keys in (
        ("clock", ("accelerator", "clock")),
        ("accelerator", ("accelerator", "name")),
        ("topology", ("topology", "text")),
        ("NUMA distances", ("topology", "distances")),
        ("kernel configuration", ("flavour",)),
    ):
        left, right = _at(first.manifest, keys), _at(second.manifest, keys)
        if left != right:
            differences.append(f"{what} ({left} and {right})")
    configurations = [
        {(variant.get("kernel") or {}).get("configuration") for variant in run.manifest["variants"]} - {None}
        for run in (first, second)
    ]
    if all(configurations) and configurations[0] != configurations[1]:
        differences.append("options of the kernel configuration")
    shared = [name for name in first.manifest["workloads"] if name in second.manifest["workloads"]]
    if not shared:
        differences.append("workloads: they have none in common")
    for name in shared:
        left = first.manifest["workloads"][name].get("parameters", {})
        right = second.manifest["workloads"][name].get("parameters", {})
        for key in sorted({*left, *right}):
            if left.get(key) != right.get(key):
                differences.append(
                    f"parameter {key} of workload {name} ({left.get(key)} and {right.get(key)})"
                )
    if differences:
        raise UserError(
            f"{first.name} and {second.name} cannot be compared, they differ in "
            + "; ".join(differences)
            + "."
        )


def _at(manifest: Mapping[str, Any], keys: Iterable[str]) -> Any:
    value: Any = manifest
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


@dataclass(frozen=True)
class _Metric:
    workload: str
    name: str
    unit: str
    better: str | None
    primary: bool
    help: str


def _metrics_of(variants: Sequence[_Variant], workload: str) -> list[_Metric]:
    """Metrics with at least one value: primary ones first, then as declared, then those nobody declared."""
    seen: dict[str, str] = {}
    for variant in variants:
        own = variant.metrics[variant.metrics["workload"] == workload]
        for metric, unit in zip(own["metric"], own["unit"], strict=True):
            seen.setdefault(str(metric), str(unit))
    declared: Mapping[str, Any] = variants[0].run.manifest["workloads"].get(workload, {}).get("metrics", {})
    names = [name for name in declared if name in seen] + sorted(
        name for name in seen if name not in declared
    )
    metrics = []
    for name in names:
        facts = declared.get(name, {})
        metrics.append(
            _Metric(
                workload=workload,
                name=name,
                unit=facts.get("unit") or seen[name],
                better=facts.get("better"),
                primary=bool(facts.get("primary")),
                help=str(facts.get("help") or ""),
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
) -> Comparison:
    manifest = runs[0].manifest
    chosen_margin = float(manifest.get("margin", MARGIN)) if margin is None else margin
    if not 0 < chosen_margin < 1:
        raise UserError(f"margin is {chosen_margin:g}; it is a fraction, e.g. 0.005 for half a per cent.")
    seed = int(manifest.get("seed", 0))
    workloads = {
        name: str(entry.get("title") or name)
        for name, entry in manifest["workloads"].items()
        if all(name in run.manifest["workloads"] for run in runs)
    }
    # The A/A pair is the baseline and its copy, also where something else is compared against.
    pair = next((v for v in variants if v.role == "baseline"), baseline)
    rows: list[Row] = []
    control_rows: list[Row] = []
    for workload in workloads:
        metrics = _metrics_of(variants, workload)
        floors: dict[str, float] = {}
        if control is not None:
            control_rows += _rows(metrics, pair, control, {}, chosen_margin, seed)
            for metric in metrics:
                ours, copy = pair.values(workload, metric.name), control.values(workload, metric.name)
                if ours.size and copy.size:
                    floors[metric.name] = noise_floor(ours, copy, _seed(seed, workload, metric.name))
        for variant in variants:
            if variant is not baseline and variant is not control:
                rows += _rows(metrics, baseline, variant, floors, chosen_margin, seed)

    failures = tuple(failure for variant in variants for failure in variant.failures())
    checks = [check_counters(run) for run in runs]
    findings = [
        *(Finding("failed-cell", f.cell, f"{f.outcome}: {first_line(f.evidence)}") for f in failures),
        *(Finding("counters", v.cell, v.text) for check in checks for v in check.violations),
        *(
            Finding("regression", f"{row.variant}: {row.workload} {row.metric}", row.reason)
            for row in rows
            if row.primary and row.verdict is Verdict.REGRESSED
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
        notes=(*notes_on_bases(runs), *notes, *_notes(variants, control, control_rows, rows)),
        cautions=tuple(base_differences(runs)),
    )


def _conditions(manifest: Mapping[str, Any]) -> Conditions:
    source = manifest.get("source") or {}
    return Conditions(
        clock=_at(manifest, ("accelerator", "clock")),
        accelerator=str(_at(manifest, ("accelerator", "name"))),
        accelerator_reason=str(_at(manifest, ("accelerator", "reason")) or ""),
        topology=str(_at(manifest, ("topology", "text"))),
        flavour=str(manifest.get("flavour", "")),
        kernel=str(source.get("description") or source.get("requested") or ""),
        repeat=int(manifest.get("repeat", 0)),
        calibration=calibration_line(manifest),
    )


def _notes(
    variants: Sequence[_Variant], control: _Variant | None, control_rows: Sequence[Row], rows: Sequence[Row]
) -> list[str]:
    notes = []
    strange = sum(variant.not_finite for variant in variants)
    if strange:
        notes.append(f"{strange} values are not finite and were left out.")
    if control is None:
        notes.append("there is no A/A control, so the noise floor is not known.")
    for row in control_rows:
        if row.verdict in (Verdict.IMPROVED, Verdict.REGRESSED, Verdict.DIFFERS):
            notes.append(
                f"the A/A control differs from the baseline in {row.workload} {row.metric}: its boots are not "
                "alike, distrust this metric."
            )
    few = [
        row for row in rows if row.verdict is Verdict.NO_TEST and row.primary and row.difference is not None
    ]
    few = [row for row in few if not row.always_zero]
    if few:
        least = min(few, key=lambda row: min(row.baseline.n, row.compared.n))
        alone = min(least.baseline.n, least.compared.n) < 2
        smallest = smallest_p(least.baseline.n, least.compared.n)
        notes.append(
            f"too few repetitions for a test in {', '.join(dict.fromkeys(row.workload for row in few))} "
            f"({least.baseline.n} against {least.compared.n}"
            + ("" if alone else f": the smallest attainable p is {smallest:.2g}")
            + "); differences are shown, nothing is claimed; "
            f"{max(repetitions_needed(row.tests) for row in few)} repetitions would do."
        )
    return notes


def _rows(
    metrics: Sequence[_Metric],
    baseline: _Variant,
    variant: _Variant,
    floors: Mapping[str, float],
    margin: float,
    seed: int,
) -> list[Row]:
    rows: list[Row] = []
    for primary in (True, False):
        family = [metric for metric in metrics if metric.primary is primary]
        sides = [
            (baseline.values(metric.workload, metric.name), variant.values(metric.workload, metric.name))
            for metric in family
        ]
        tested = [
            _tested(*side, margin, _seed(seed, m.workload, m.name))
            for side, m in zip(sides, family, strict=True)
        ]
        # Holm counts the metrics that some arrangement of their values could decide; a metric that is 0
        # everywhere is none of them, and leaving it out depends on the pooled values only.
        tests = sum(not (math.isnan(p) and math.isnan(q)) for p, q in tested)
        adjusted = holm(np.array([p for p, _ in tested], dtype=np.float64))
        adjusted_equivalence = holm(np.array([q for _, q in tested], dtype=np.float64))
        for index, metric in enumerate(family):
            rows.append(
                _row(
                    metric,
                    variant.name,
                    *sides[index],
                    *tested[index],
                    float(adjusted[index]),
                    float(adjusted_equivalence[index]),
                    tests,
                    floors.get(metric.name),
                    margin,
                    _seed(seed, metric.workload, metric.name),
                )
            )
    return rows


def _tested(baseline: Values, variant: Values, margin: float, seed: int) -> tuple[float, float]:
    """P value of a difference and of equivalence; NaN for a test that these values do not allow."""
    if min(baseline.size, variant.size) < 2:
        return math.nan, math.nan
    p_equivalence = float(equivalence_p(baseline, variant, margin, seed))
    alike = np.ptp(np.concatenate((baseline, variant))) == 0
    if alike:
        return (math.nan if math.isnan(p_equivalence) else 1.0), p_equivalence
    return float(permutation_p(baseline, variant, "two-sided", seed)), p_equivalence


def _row(
    metric: _Metric,
    variant: str,
    baseline: Values,
    compared: Values,
    p: float,
    p_equivalence: float,
    p_adjusted: float,
    p_equivalence_adjusted: float,
    tests: int,
    floor: float | None,
    margin: float,
    seed: int,
) -> Row:
    difference = relative = delta = interval = None
    interval_of: Literal["relative", "difference"] | None = None
    verdict, claimable = Verdict.NO_TEST, 0.0
    if baseline.size and compared.size:
        base = float(median(baseline))
        difference = float(median(compared)) - base
        relative = difference / base if base else None
        delta = float(cliffs_delta(baseline, compared))
        interval, interval_of = bootstrap_interval(baseline, compared, "ratio", seed), "relative"
        if interval is None:
            interval, interval_of = bootstrap_interval(baseline, compared, "difference", seed), "difference"
        if interval is None:
            interval_of = None
        threshold = margin * abs(base)
        claimable = max(threshold, floor or 0.0)
        has_test = not (math.isnan(p) and math.isnan(p_equivalence))
        verdict = decide(
            difference=difference,
            threshold=threshold,
            floor=floor or 0.0,
            p_adjusted=p_adjusted,
            p_equivalence_adjusted=p_equivalence_adjusted,
            better=metric.better,
            testable=has_test and max(1, tests) * smallest_p(baseline.size, compared.size) <= ALPHA,
        )
    row = Row(
        workload=metric.workload,
        metric=metric.name,
        unit=metric.unit,
        better=metric.better,
        primary=metric.primary,
        help=metric.help,
        variant=variant,
        baseline=_side(baseline),
        compared=_side(compared),
        difference=difference,
        relative=relative,
        interval=interval,
        interval_of=interval_of,
        delta=delta,
        p=_number(p),
        p_adjusted=_number(p_adjusted),
        p_equivalence=_number(p_equivalence),
        p_equivalence_adjusted=_number(p_equivalence_adjusted),
        tests=tests,
        floor=floor,
        claimable=claimable,
        verdict=verdict,
        reason="",
    )
    return replace(row, reason=_reason(row, margin))


def _reason(row: Row, margin: float) -> str:
    n_baseline, n_compared = row.baseline.n, row.compared.n
    if not n_baseline or not n_compared:
        who = "the baseline" if not n_baseline else "the variant"
        return f"{who} has no value of this metric"
    if row.always_zero:
        return "0 in every repetition of both"
    if row.verdict is Verdict.NO_TEST:
        if min(n_baseline, n_compared) == 1:
            return "one repetition: the difference is shown, nothing is claimed"
        return (
            f"too few repetitions ({n_baseline} against {n_compared}) for a test of {max(1, row.tests)} metrics: the "
            f"smallest attainable p is {smallest_p(n_baseline, n_compared):.2g}; "
            f"{repetitions_needed(row.tests)} repetitions would do"
        )
    size = _size(row.difference or 0.0, row.relative, row.unit)
    p = f"p = {row.p_adjusted:.2g}" if row.p_adjusted is not None else "no test of a difference"
    if row.verdict is Verdict.EQUIVALENT:
        return f"within {margin:.2%} of the baseline (equivalence p = {row.p_equivalence_adjusted:.2g})"
    if row.verdict is Verdict.INCONCLUSIVE:
        if row.p_adjusted is not None and row.p_adjusted <= ALPHA:
            least = _size(
                row.claimable,
                row.claimable / abs(row.baseline.median) if row.baseline.median else None,
                row.unit,
            )
            return (
                f"{size} is significant ({p}) but no larger than margin and noise floor ({least.lstrip('+')})"
            )
        return f"neither a difference ({p}) nor equivalence within {margin:.2%} is shown"
    return f"{row.verdict.value}: {size} ({p})"


def _size(difference: float, relative: float | None, unit: str) -> str:
    if relative is None:
        return f"{difference:+.6g} {unit}"
    return f"{relative:+.2%}"


def _side(values: Values) -> Side:
    return Side(float(median(values)) if values.size else None, int(values.size), tuple(map(float, values)))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _seed(seed: int, workload: str, metric: str) -> int:
    """A seed a metric, so that one more metric does not move the intervals of the others."""
    return zlib.crc32(f"{seed}/{workload}/{metric}".encode())


def first_line(text: str) -> str:
    """The first line of evidence that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no evidence")


def _plain(value: Any) -> Any:
    """`value` as JSON has it: no enumerations, no infinities."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
