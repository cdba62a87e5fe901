# SPDX-License-Identifier: GPL-2.0-only
"""The comparison as a table in the style of mmtests' compare-kernels: baseline on the left, one row per metric, and
each variant with its change in per cent.

If the variants do not fit next to each other, they are listed below each metric. The same renderer is used for terminal
and file, which differ only in colour and width.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.comparison import Comparison, Failure, Row, first_line
from orchestrator.analysis.conclusion import conclusion
from orchestrator.analysis.layout import NO_BREAK, WIDTH, wrapped, wrapped_below
from orchestrator.analysis.notation import (
    CLOCKS,
    MARKS,
    Scale,
    change,
    direction,
    floor,
    folded,
    instructions,
    interval,
    meanings,
    percent,
    scale_of,
)
from orchestrator.analysis.rule import expected_by_chance, rule_lines
from orchestrator.analysis.statistics import Verdict

_STYLES: Final = {
    Verdict.IMPROVED: "green",
    Verdict.REGRESSED: "bold red",
    Verdict.EQUIVALENT: "",
    Verdict.SCATTERED: "yellow",
    Verdict.DIFFERS: "yellow",
    Verdict.INCONCLUSIVE: "dim",
    Verdict.NO_TEST: "dim",
}
_OTHERS: Final = "other metrics"
#: Number of failed cells to list; the others are only counted.
_SHOWN_FAILURES: Final = 12


def to_text(comparison: Comparison, *, colour: bool = False, width: int = WIDTH) -> str:
    """The whole comparison as text.

    Args:
        colour: use terminal escape sequences.
        width: columns; variants that do not fit next to each other are listed below each other.
    """
    stream = io.StringIO()
    # All that rich would otherwise take from the caller's TERM, COLUMNS and NO_COLOR. Without a height, a width is
    # ignored where TERM is dumb.
    console = Console(
        file=stream,
        width=width,
        height=25,
        force_terminal=colour,
        no_color=not colour,
        color_system="standard" if colour else None,
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
    )
    for part in _parts(comparison, console):
        console.print(part, crop=False, overflow="ignore", no_wrap=isinstance(part, Text))
    lines = stream.getvalue().splitlines()
    return "\n".join(lines if colour else [line.rstrip() for line in lines]) + "\n"


def _parts(comparison: Comparison, console: Console) -> list[RenderableType]:
    def prose(text: str, style: str = "") -> Text:
        return Text("\n".join(wrapped(text, console.width)), style)

    notes = _footnotes(comparison)
    parts: list[RenderableType] = [
        prose(f"CAUTION: {caution}", "bold red") for caution in comparison.cautions
    ]
    for workload, title in comparison.workloads.items():
        head = f"{workload}: {title}" if title != workload else workload
        parts += [prose(head, "bold"), prose(_repetitions(comparison, workload, notes))]
        rows = comparison.rows_of(workload=workload)
        zero, empty = _without_content(rows)
        shown = [row for row in rows if row.metric not in zero and row.metric not in empty]
        if shown:
            parts += [Text(), _rows(comparison, shown, console)]
        else:
            parts.append(prose("no cell of this workload ended ok with a value."))
        if zero:
            parts += [Text(), prose("0 in every cell: " + ", ".join(zero))]
        if empty:
            parts += [Text(), prose("only in cells of the A/A control: " + ", ".join(empty))]
        parts.append(Text())
    findings = _findings(comparison, notes)
    parts += [prose(text, style) for text, style in findings] + ([Text()] if findings else [])
    parts += [prose(conclusion(comparison, variant.name)) for variant in comparison.compared]
    parts.append(Text())
    legend = _legend(comparison)
    indent = " " * (max(len(name) for name, _ in legend) + 2)
    for name, text in legend:
        lines = wrapped_below(name.ljust(len(indent)), text, console.width, indent)
        parts.append(Text("\n".join(lines), "dim"))
    return parts


def _without_content(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Metrics that are 0 in all cells, and metrics without any value."""
    zero, empty = [], []
    for name in _names(rows):
        own = [row for row in rows if row.metric == name]
        if not any(row.baseline.n or row.compared.n for row in own):
            empty.append(name)
        elif all(row.always_zero for row in own):
            zero.append(name)
    return zero, empty


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.metric for row in rows))


def _footnotes(comparison: Comparison) -> dict[tuple[str, str], int]:
    """Footnote numbers for variants and workloads with failed cells."""
    pairs = dict.fromkeys((failure.variant, failure.workload) for failure in comparison.failures)
    return {pair: number for number, pair in enumerate(pairs, 1)}


def _repetitions(comparison: Comparison, workload: str, notes: dict[tuple[str, str], int]) -> str:
    counts = []
    for variant in comparison.variants:
        planned = comparison.planned[variant.name][workload]
        failed = sum(f.variant == variant.name and f.workload == workload for f in comparison.failures)
        note = f" [{notes[variant.name, workload]}]" if failed else ""
        count = f"{variant.name} {f'{planned - failed} of {planned}' if failed else planned}{note}"
        counts.append(count.replace(" ", NO_BREAK))
    return "fresh boots: " + ", ".join(counts)


@dataclass(frozen=True)
class _TableMetric:
    """A metric in the table.

    Args:
        explained: unit and better direction.
        secondary: whether it is the first one that is not primary.
    """

    name: str
    explained: str
    secondary: bool
    baseline: str
    floor: str
    figures: Mapping[str, _Figures]


@dataclass(frozen=True)
class _Figures:
    """The figures of one metric for one variant; each may be empty."""

    value: str
    change: str
    mark: str
    style: str
    below: tuple[str, ...]


def _rows(comparison: Comparison, rows: Sequence[Row], console: Console) -> RenderableType:
    """The variants next to each other if they fit, else below each other."""
    metrics = _metrics(rows)
    beside = _beside(comparison, metrics)
    # Measure with unlimited width, to get the width that the table needs.
    wanted = Measurement.get(console, console.options.update(width=10_000), beside).maximum
    return beside if wanted <= console.width else _below(comparison, metrics, console.width)


def _metrics(rows: Sequence[Row]) -> list[_TableMetric]:
    metrics = []
    seen_other = False
    for name in _names(rows):
        own = {row.variant: row for row in rows if row.metric == name}
        any_row = next(iter(own.values()))
        # One scale per metric, whatever the layout.
        scale = scale_of(
            any_row.unit, [any_row.baseline.median, *(row.compared.median for row in own.values())]
        )
        noise = floor(any_row, scale)
        metrics.append(
            _TableMetric(
                name,
                ", ".join(part for part in (scale.unit, direction(any_row)) if part),
                not any_row.primary and not seen_other,
                scale.text(any_row.baseline.median),
                f"A/A {noise}" if noise else "",
                {variant: _figures(row, scale) for variant, row in own.items()},
            )
        )
        seen_other = seen_other or not any_row.primary
    return metrics


def _figures(row: Row, scale: Scale) -> _Figures:
    changed = change(row, scale)
    return _Figures(
        scale.text(row.compared.median),
        f"({changed})" if changed else "",
        MARKS[row.verdict] if row.difference is not None else "",
        _STYLES[row.verdict],
        tuple(line for line in (interval(row, scale), instructions(row)) if line),
    )


def _beside(comparison: Comparison, metrics: Sequence[_TableMetric]) -> Table:
    """One row per metric, one column per variant."""
    variants = comparison.compared
    table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False, show_header=True, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column(Text(folded(comparison.baseline), justify="right"), justify="right", no_wrap=True)
    for variant in variants:
        table.add_column(Text(folded(variant.name), justify="right"), justify="right", no_wrap=True)
    for metric in metrics:
        if metric.secondary:
            table.add_row(Text(_OTHERS, style="italic"))
        cells = [
            Text.assemble(metric.name, "\n", (f"  {metric.explained}", "dim")),
            Text.assemble(metric.baseline, "\n", (metric.floor, "dim"), justify="right"),
        ]
        for variant in variants:
            figures = metric.figures[variant.name]
            first = " ".join(part for part in (figures.value, figures.change, figures.mark or " ") if part)
            under = "".join(f"\n{line}  " for line in figures.below)
            cells.append(Text.assemble((first, figures.style), (under, "dim"), justify="right"))
        table.add_row(*cells)
    return table


def _below(comparison: Comparison, metrics: Sequence[_TableMetric], width: int) -> Text:
    """One line per variant below each metric, with interval and instructions on the same line if they fit."""
    names = {name: folded(name).splitlines() for name in [comparison.baseline, *_variants(metrics)]}
    every = [figures for metric in metrics for figures in metric.figures.values()]
    name_width = max(len(line) for lines in names.values() for line in lines)
    values = max(*(len(figures.value) for figures in every), *(len(metric.baseline) for metric in metrics))
    changes = max(len(figures.change) for figures in every)
    details = [
        max((len(figures.below[n]) for figures in every if len(figures.below) > n), default=0) for n in (0, 1)
    ]
    left = 2 + name_width + 2
    own_line = left + values + 1 + changes + 2 > width  # the name alone
    if own_line:
        left = 4
    figures = left + values + 1 + changes + 2
    # Number of details next to the figures; the others follow below.
    beside = (
        2
        if figures + 2 + details[0] + 2 + details[1] <= width
        else 1
        if figures + 2 + details[0] <= width
        else 0
    )

    def block(name: str, value: str, changed: str, mark: str, style: str, below: Sequence[str]) -> None:
        first, *rest = names[name]
        if own_line:
            for line in names[name]:
                text.append(f"  {line}\n")
            head, rest = " " * left, []
        else:
            head = f"  {first:<{name_width}}  "
        text.append(head)
        text.append(f"{value:>{values}} {changed:>{changes}} {mark or ' '}", style)
        for number, detail in enumerate(below[:beside]):
            text.append(f"  {detail:<{details[number]}}", "dim")
        text.append("\n")
        more = list(below[beside:])
        for number in range(max(len(rest), len(more))):
            part = f"  {rest[number]}" if number < len(rest) else ""
            detail = more[number] if number < len(more) else ""
            column = figures + 2 if beside else max(figures - len(detail), len(part) + 1)
            text.append(part)
            text.append(" " * (column - len(part)) + detail if detail else "", "dim")
            text.append("\n")

    text = Text()
    for metric in metrics:
        if metric.secondary:
            text.append(f"{_OTHERS}\n", "italic")
        heading = wrapped(f"{metric.name} ({metric.explained})", width, "  ")
        text.append(metric.name, "bold")
        text.append("\n".join(heading).removeprefix(metric.name) + "\n", "dim")
        block(comparison.baseline, metric.baseline, "", "", "", [metric.floor] if metric.floor else [])
        for variant in comparison.compared:
            cell = metric.figures[variant.name]
            block(variant.name, cell.value, cell.change, cell.mark, cell.style, cell.below)
    text.rstrip()
    return text


def _variants(metrics: Sequence[_TableMetric]) -> list[str]:
    return list(dict.fromkeys(name for metric in metrics for name in metric.figures))


def _findings(comparison: Comparison, notes: dict[tuple[str, str], int]) -> list[tuple[str, str]]:
    """Notable findings, each with a style."""
    lines: list[tuple[str, str]] = []
    failures = sorted(comparison.failures, key=lambda f: notes[f.variant, f.workload])
    planned = sum(sum(each.values()) for each in comparison.planned.values())
    if planned and len(failures) == planned:
        lines.append((f"All {planned} cells failed; nothing was measured.", "bold red"))
    lines += [(_failure(failure, notes), "red") for failure in failures[:_SHOWN_FAILURES]]
    if len(failures) > _SHOWN_FAILURES:
        rest = failures[_SHOWN_FAILURES:]
        kinds = [
            f"{sum(f.outcome is kind for f in rest)} {kind}"
            for kind in dict.fromkeys(f.outcome for f in rest)
        ]
        lines.append((f"and {len(rest)} more failed cells: {', '.join(kinds)}", "red"))
    for finding in comparison.findings:
        if finding.kind == "counters":
            lines.append((f"{finding.where}: {finding.text}", "bold red"))
    return lines + [(f"note: {note}", "") for note in comparison.notes]


def _failure(failure: Failure, notes: dict[tuple[str, str], int]) -> str:
    number = notes[failure.variant, failure.workload]
    return f"[{number}] {failure.cell}: {failure.outcome}: {first_line(failure.evidence)}"


def _legend(comparison: Comparison) -> list[tuple[str, str]]:
    """The legend, and the conditions of the measurement."""
    conditions = comparison.conditions
    margin = percent(comparison.margin, signed=False)
    planned = sum(sum(each.values()) for each in comparison.planned.values())
    lines = [
        ("clock", ": ".join(part for part in (_clock(comparison), conditions.accelerator_reason) if part)),
        *([("host CPU", conditions.calibration)] if conditions.calibration else []),
        ("machine", f"{conditions.topology}, {conditions.kernel}, configuration {conditions.flavour}"),
        (
            "cells",
            f"{planned - len(comparison.failures)} of {planned} ok; {conditions.repeat} fresh boots each",
        ),
        ("A/A", control_line(comparison)),
        ("marks", ", ".join(f"{mark}{NO_BREAK}{meaning}" for mark, meaning in meanings(margin).items())),
        *rule_lines(comparison),
    ]
    if comparison.counters_checked:
        broken = len({f.where for f in comparison.findings if f.kind == "counters"})
        held = comparison.counters_checked - broken
        lines.append(
            (
                "counters",
                f"consistent in {held} of {comparison.counters_checked} patched cells",
            )
        )
    return lines


def _clock(comparison: Comparison) -> str:
    conditions = comparison.conditions
    return f"{CLOCKS.get(conditions.clock, conditions.clock)} ({conditions.accelerator})"


def control_line(comparison: Comparison) -> str:
    """The result of the A/A control, in one line."""
    control = comparison.control_variant
    if control is None:
        return "no control; the noise floor is unknown"
    rows = [row for row in comparison.control if row.difference is not None and not row.always_zero]
    if not rows:
        return f"{control} has no values; the noise floor is unknown"
    if comparison.unjudged:
        return f"{control}: not judged, since {comparison.unjudged}"
    claimed = [f"{row.workload} {row.metric}" for row in rows if row.claimed]
    same = sum(row.verdict is Verdict.EQUIVALENT for row in rows)
    if all(row.verdict is Verdict.NO_TEST for row in rows):
        return f"{control}: too few repetitions for a test of {len(rows)} metrics"
    if not any(row.testable for row in rows):
        few = f"{rows[0].compared.n} repetitions are too few to show a difference"
        return f"{control}: {few}; equivalent in {same} of {len(rows)} metrics"
    differing = f"differs in {', '.join(claimed)}" if claimed else "differs in none"
    chance = expected_by_chance(comparison)
    return f"{control}: {differing} of {len(rows)} metrics{f' ({chance})' if chance else ''}, equivalent in {same}"
