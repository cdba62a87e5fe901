# SPDX-License-Identifier: GPL-2.0-only
"""The results of a run as plain text for the changelog of a patch: ASCII, at most 75 columns.

Fault latency, memory consumption and successful promotions come first: the three that reviewers of this series asked
for. Only primary metrics and requested ones are shown; the table has the others. Mailing lists do not accept images,
so the plots consist of characters.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from string import ascii_lowercase
from typing import Final

from orchestrator.analysis.aspect import ASPECTS, OTHERS, aspect_of
from orchestrator.analysis.comparison import Comparison, Row
from orchestrator.analysis.conclusion import conclusion
from orchestrator.analysis.condition import notes_on_bases
from orchestrator.analysis.density import WORKLOAD as DENSITY_WORKLOAD
from orchestrator.analysis.density import break_even, densities
from orchestrator.analysis.notation import (
    CLOCKS,
    change,
    floor,
    instructions,
    interval,
    percent,
    scale_of,
)
from orchestrator.analysis.statistics import CONFIDENCE, Verdict
from orchestrator.analysis.table import control_line
from orchestrator.analysis.text_plot import Bar, bars, points
from orchestrator.errors import UserError
from orchestrator.spelling import hint
from orchestrator.store.manifest import Role
from orchestrator.store.run import Run

WIDTH: Final = 75
_NAME_WIDTH: Final = 20


def check_choice(
    run: Run, stages: Sequence[int] = (), workloads: Sequence[str] = (), metrics: Sequence[str] = ()
) -> None:
    """Check that a run has what :func:`changelog_text` needs, before anything is computed.

    Raises:
        UserError: no variant ends at one of the stages, or the run has no such workload or metric.
    """
    ends = set(_ends(run).values())
    for stage in stages:
        if stage not in ends:
            there = ", ".join(map(str, sorted(ends))) or "none"
            raise UserError(f"--stage {stage}: no variant of this run ends at it; choose one of {there}.")
    known = list(run.manifest.workloads)
    for workload in workloads:
        if workload not in known:
            there = ", ".join(known) or "none"
            raise UserError(f"--workload {workload}: this run did not measure it; it measured {there}.")
    if not metrics:
        return
    values = run.metrics
    measured = values[values["workload"].isin(workloads or known)]["metric"].unique().tolist()
    for metric in metrics:
        if metric not in measured:
            raise UserError(f"--metric {metric}: this run did not measure it there; {hint(metric, measured)}")


def _ends(run: Run) -> dict[str, int]:
    """Patched variant -> number of its last stage."""
    return {
        variant.name: variant.stages[-1].number
        for variant in run.manifest.variants
        if variant.role is Role.PATCHED and variant.stages
    }


def changelog_text(
    run: Run,
    comparison: Comparison,
    stages: Sequence[int] = (),
    workloads: Sequence[str] = (),
    metrics: Sequence[str] = (),
    plots: bool = True,
) -> str:
    """The text, which depends only on the run.

    Args:
        stages: show only variants whose last stage has one of these numbers; empty for all variants. A stage and the
            one before it show the effect of that patch.
        workloads: workloads to show; empty for all.
        metrics: metrics to show although they are not primary.
        plots: whether to draw bars for these metrics, and the cost of a range by density.

    Raises:
        UserError: no variant ends at one of the stages, or the run has no such workload or metric.
    """
    check_choice(run, stages, workloads, metrics)
    variants = [variant.name for variant in comparison.compared]
    if stages:
        ends = _ends(run)
        variants = [name for name in variants if ends.get(name) in stages]
    if workloads:
        comparison = replace(
            comparison, rows=tuple(row for row in comparison.rows if row.workload in workloads)
        )
    rows = [
        row for row in comparison.rows if (row.primary or row.metric in metrics) and row.variant in variants
    ]
    paragraphs = [_introduction(run, comparison)]
    if comparison.conditions.calibration:
        paragraphs.append(_wrapped(f"Instructions and time: {comparison.conditions.calibration}."))
    paragraphs += [_wrapped(f"Caution: {caution}") for caution in comparison.cautions]
    paragraphs += [_wrapped(f"Note: {note}") for note in notes_on_bases([run])]
    paragraphs += [
        text
        for heading in (*(name for name, _ in ASPECTS), OTHERS)
        if (text := _group(comparison, heading, rows))
    ]
    if plots:
        paragraphs += [
            text for text in (_bars(comparison, rows), _density(run, comparison, variants, workloads)) if text
        ]
    if not rows:
        paragraphs.append("No cell with a primary metric ended ok.")
    paragraphs.append(_wrapped(f"A/A control: {control_line(comparison)}."))
    paragraphs += [_wrapped(conclusion(comparison, name)) for name in variants]
    if comparison.findings:
        paragraphs.append(_findings(comparison))
    paragraphs.append(_reproduction(run))
    return "\n\n".join(paragraphs) + "\n"


def _introduction(run: Run, comparison: Comparison) -> str:
    conditions = comparison.conditions
    clock = CLOCKS.get(conditions.clock, conditions.clock)
    stages = {len(variant.stages) for variant in comparison.compared}
    series = run.manifest.series.title
    applied = f", {series}" if series and stages != {0} else ""
    return _wrapped(
        f"Medians of {conditions.repeat} fresh boots in a {conditions.topology} guest ({conditions.kernel}{applied}), "
        f"QEMU accelerator {conditions.accelerator}, clock: {clock}. The change is relative to {comparison.baseline}, "
        f"{_pairing(comparison)}, {_coverage(comparison)}A/A is the noise floor."
    )


def _pairing(comparison: Comparison) -> str:
    """Whether boots were compared in pairs."""
    rows = [row for row in comparison.rows if row.difference is not None]
    unpaired = dict.fromkeys(f"{row.variant} in {row.workload}" for row in rows if not row.pairs)
    if not unpaired:
        return "paired by repetition"
    if not any(row.pairs for row in rows):
        return "with unpaired boots"
    return f"paired by repetition (with unpaired boots: {', '.join(unpaired)})"


def _coverage(comparison: Comparison) -> str:
    """The coverage of the intervals with this number of boots."""
    reached = [row.interval.confidence for row in comparison.rows if row.interval is not None]
    return (
        f"with an interval of {int(1000 * min(*reached, CONFIDENCE)) / 10:g}% confidence or more; "
        if reached
        else ""
    )


def _group(comparison: Comparison, heading: str, rows: Sequence[Row]) -> str:
    own = [row for row in rows if aspect_of(row.metric) == heading]
    if not own:
        return ""
    lines = [heading]
    for workload, metric in dict.fromkeys((row.workload, row.metric) for row in own):
        lines += _metric(comparison, [row for row in own if (row.workload, row.metric) == (workload, metric)])
    return "\n".join(lines)


def _metric(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    """One metric: the baseline, then one line per variant."""
    first = rows[0]
    scale = scale_of(first.unit, [first.baseline.median, *(row.compared.median for row in rows)])
    head = f"  {first.metric} [{scale.unit}], workload {first.workload}"
    if all(row.always_zero for row in rows):
        whole = f"{head}: 0 in every cell"
        return [whole] if len(whole) <= WIDTH else [f"{head}:", "    0 in every cell"]
    noise = floor(first, scale)
    lines = [
        head,
        _line(comparison.baseline, scale.text(first.baseline.median), f"A/A {noise}" if noise else "", ""),
    ]
    for row in rows:
        changed = " ".join(part for part in (change(row, scale), interval(row, scale)) if part)
        lines.append(
            _line(row.variant, scale.text(row.compared.median), changed, _verdict(row, comparison.margin))
        )
        if instructions(row):
            lines.append(" " * (4 + _NAME_WIDTH + 11) + instructions(row))
    return lines


def _bars(comparison: Comparison, rows: Sequence[Row]) -> str:
    """Each metric as bars, the baseline first."""
    drawn = []
    for workload, metric in dict.fromkeys((row.workload, row.metric) for row in rows):
        own = [
            row for row in rows if (row.workload, row.metric) == (workload, metric) and row.compared.values
        ]
        if not own or not own[0].baseline.values:
            continue
        scale = scale_of(own[0].unit, [own[0].baseline.median, *(row.compared.median for row in own)])
        sides = [Bar(comparison.baseline, own[0].baseline.values)]
        sides += [Bar(row.variant, row.compared.values) for row in own]
        lines = bars(sides, scale, WIDTH, _NAME_WIDTH)
        if lines:
            drawn += [f"  {metric} [{scale.unit}], {workload}", *lines]
    if not drawn:
        return ""
    return "\n".join(["Medians as bars from 0, [ ] is the interval of the median", *drawn])


def _density(run: Run, comparison: Comparison, variants: Sequence[str], workloads: Sequence[str]) -> str:
    """The cost of a range by the number of touched pages, and the break-even with the baseline."""
    if workloads and DENSITY_WORKLOAD not in workloads:
        return ""
    found = {name: each for name, each in densities(run).items() if name in (comparison.baseline, *variants)}
    if len(found) < 2 or comparison.baseline not in found:
        return ""
    baseline = found[comparison.baseline]
    found = {name: each for name, each in found.items() if each.pages == baseline.pages}
    letters = ", ".join(f"{letter} {name}" for letter, name in zip(ascii_lowercase, found, strict=False))
    clock = CLOCKS.get(comparison.conditions.clock, comparison.conditions.clock)
    head = _wrapped(
        f"Cost of touching a 2 MiB range in {clock}, one line per number of touched pages, of 512; "
        f"logarithmic; {letters}; * for several"
    )
    lines = points({name: list(each.medians) for name, each in found.items()}, baseline.pages, WIDTH)
    evens = [
        f"{name} costs as much as {comparison.baseline} at {even:.0f} pages"
        for name, each in found.items()
        if name != comparison.baseline and (even := break_even(baseline, each)) is not None
    ]
    return "\n".join([head, *lines, *(_wrapped("; ".join(evens) + ".").splitlines() if evens else [])])


def _line(name: str, value: str, changed: str, verdict: str) -> str:
    figures = f"{value:>9}  {changed:<27} {verdict}".rstrip()
    if len(name) > _NAME_WIDTH:
        return f"    {name}\n    {'':<{_NAME_WIDTH}}{figures}"
    return f"    {name:<{_NAME_WIDTH}}{figures}"


def _verdict(row: Row, margin: float) -> str:
    if row.difference is None:
        return ""
    if row.verdict is Verdict.EQUIVALENT:
        return f"same ({percent(margin, signed=False)})"
    if row.verdict is Verdict.SCATTERED:
        return f"median same ({percent(margin, signed=False)})"
    if row.verdict is Verdict.NO_TEST:
        return "not tested"
    return row.verdict.value


def _findings(comparison: Comparison) -> str:
    failed = sum(finding.kind == "failed-cell" for finding in comparison.findings)
    planned = sum(sum(each.values()) for each in comparison.planned.values())
    lines = []
    if failed:
        kinds = dict.fromkeys(failure.outcome for failure in comparison.failures)
        counts = ", ".join(f"{sum(f.outcome is kind for f in comparison.failures)} {kind}" for kind in kinds)
        lines.append(f"{failed} of {planned} cells failed: {counts}.")
    lines += [f"{f.where}: {f.text}." for f in comparison.findings if f.kind == "counters"]
    return "\n".join(_wrapped(line) for line in lines) if lines else _wrapped("All cells ended ok.")


def _reproduction(run: Run) -> str:
    """The command, with backslashes at line breaks, so that it can be pasted."""
    words = run.manifest.command
    if not words:
        return "The command of this run is unknown."
    # An option and its value stay on one line.
    parts: list[str] = []
    for before, word in pairwise(["", *words]):
        if before.startswith("-") and "=" not in before and not word.startswith("-"):
            parts[-1] += f" {shlex.quote(word)}"
        else:
            parts.append(shlex.quote(word))
    lines, line = [], "    $"
    for part in parts:
        if len(line) + 1 + len(part) > WIDTH - 2 and line.strip("$ "):
            lines.append(line + " \\")
            line = "       "
        line += f" {part}"
    return "To reproduce:\n\n" + "\n".join([*lines, line])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
