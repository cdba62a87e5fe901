# SPDX-License-Identifier: GPL-2.0-only
"""The comparison as a table, in the shape that mmtests' compare-kernels made familiar: baseline left, one row
a metric, each variant with its change in per cent.

One renderer serves terminal and file: colour is the only difference.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.comparison import ComparedVariant, Comparison, Failure, Row, first_line
from orchestrator.analysis.conclusion import conclusion
from orchestrator.analysis.notation import (
    CLOCKS,
    MARKS,
    change,
    direction,
    floor,
    folded,
    instructions,
    interval,
    percent,
    scale_of,
)
from orchestrator.analysis.statistics import CONFIDENCE, Verdict

WIDTH: Final = 100
_STYLES: Final = {
    Verdict.IMPROVED: "green",
    Verdict.REGRESSED: "bold red",
    Verdict.EQUIVALENT: "",
    Verdict.DIFFERS: "yellow",
    Verdict.INCONCLUSIVE: "dim",
    Verdict.NO_TEST: "dim",
}
#: Failed cells that get a line each; the others are counted.
_SHOWN_FAILURES: Final = 12


def to_text(comparison: Comparison, *, colour: bool = False, width: int = WIDTH) -> str:
    """The whole comparison as text.

    Args:
        colour: with the escape sequences of a terminal.
        width: columns; variants that do not fit beside each other follow in another block.
    """
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
    )
    console.print(Group(*_parts(comparison, console)))
    lines = stream.getvalue().splitlines()
    return "\n".join(lines if colour else [line.rstrip() for line in lines]) + "\n"


def _parts(comparison: Comparison, console: Console) -> list[RenderableType]:
    notes = _footnotes(comparison)
    parts: list[RenderableType] = [
        Text(f"CAUTION: {caution}", style="bold red") for caution in comparison.cautions
    ]
    for workload, title in comparison.workloads.items():
        head = Text(f"{workload}: {title}" if title != workload else workload, style="bold")
        parts += [head, Text(_repetitions(comparison, workload, notes))]
        rows = comparison.rows_of(workload=workload)
        zero, empty = _without_content(rows)
        shown = [row for row in rows if row.metric not in zero and row.metric not in empty]
        if shown:
            for block in _blocks(comparison, shown, console):
                parts += [Text(), block]
        else:
            parts.append(Text("no cell of this workload ended ok with a value; there is nothing to compare."))
        if zero:
            parts += [Text(), Text("0 in every cell: " + ", ".join(zero))]
        if empty:
            parts += [Text(), Text("in cells of the A/A control only: " + ", ".join(empty))]
        parts.append(Text())
    parts += _findings(comparison, notes)
    parts += [Text(conclusion(comparison, variant.name)) for variant in comparison.compared]
    parts += [Text(), _legend(comparison)]
    return parts


def _without_content(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Metrics that are 0 wherever they have a value, and those without any value to show."""
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
    """A number for each variant and workload with failed cells."""
    pairs = dict.fromkeys((failure.variant, failure.workload) for failure in comparison.failures)
    return {pair: number for number, pair in enumerate(pairs, 1)}


def _repetitions(comparison: Comparison, workload: str, notes: dict[tuple[str, str], int]) -> str:
    counts = []
    for variant in comparison.variants:
        planned = comparison.planned[variant.name][workload]
        failed = sum(f.variant == variant.name and f.workload == workload for f in comparison.failures)
        note = f" [{notes[variant.name, workload]}]" if failed else ""
        counts.append(f"{variant.name} {f'{planned - failed} of {planned}' if failed else planned}{note}")
    return "fresh boots: " + ", ".join(counts)


def _blocks(comparison: Comparison, rows: Sequence[Row], console: Console) -> list[Table]:
    """As many variants beside each other as fit, and as evenly as that allows."""
    variants = comparison.compared
    for number in range(1, len(variants) + 1):
        size = -(-len(variants) // number)
        groups = [variants[start : start + size] for start in range(0, len(variants), size)]
        tables = [_table(comparison, group, rows) for group in groups]
        # A console of unlimited width, for the question is what a table would take if it could.
        wanted = [
            Measurement.get(console, console.options.update(width=10_000), table).maximum for table in tables
        ]
        if max(wanted) <= console.width or size == 1:
            return tables
    return []


def _table(comparison: Comparison, variants: Sequence[ComparedVariant], rows: Sequence[Row]) -> Table:
    table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False, show_header=True, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column(Text(folded(comparison.baseline), justify="right"), justify="right", no_wrap=True)
    for variant in variants:
        table.add_column(Text(folded(variant.name), justify="right"), justify="right", no_wrap=True)
    seen_other = False
    for name in _names(rows):
        own = {row.variant: row for row in rows if row.metric == name}
        any_row = next(iter(own.values()))
        if not any_row.primary and not seen_other:
            seen_other = True
            table.add_row(Text("other metrics", style="italic"))
        # One scale a metric, also across blocks.
        scale = scale_of(
            any_row.unit, [any_row.baseline.median, *(row.compared.median for row in own.values())]
        )
        noise = floor(any_row, scale)
        explained = ", ".join(part for part in (scale.unit, direction(any_row)) if part)
        cells: list[Text] = [
            Text.assemble(name, "\n", (f"  {explained}", "dim")),
            Text.assemble(
                scale.text(any_row.baseline.median),
                "\n",
                (f"A/A {noise}" if noise else "", "dim"),
                justify="right",
            ),
        ]
        for variant in variants:
            row = own[variant.name]
            changed = change(row, scale)
            mark = MARKS[row.verdict] if row.difference is not None else " "
            first = (
                f"{scale.text(row.compared.median)} ({changed})"
                if changed
                else scale.text(row.compared.median)
            )
            below = [interval(row, scale), instructions(row)]
            under = "".join(f"\n{line}  " for line in below if line)
            cells.append(
                Text.assemble((f"{first} {mark}", _STYLES[row.verdict]), (under, "dim"), justify="right")
            )
        table.add_row(*cells)
    return table


def _findings(comparison: Comparison, notes: dict[tuple[str, str], int]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    failures = sorted(comparison.failures, key=lambda f: notes[f.variant, f.workload])
    planned = sum(sum(each.values()) for each in comparison.planned.values())
    if planned and len(failures) == planned:
        parts.append(Text(f"All {planned} cells failed; nothing was measured.", style="bold red"))
    for failure in failures[:_SHOWN_FAILURES]:
        parts.append(Text(_failure(failure, notes), style="red"))
    if len(failures) > _SHOWN_FAILURES:
        rest = failures[_SHOWN_FAILURES:]
        kinds = [
            f"{sum(f.outcome is kind for f in rest)} {kind}"
            for kind in dict.fromkeys(f.outcome for f in rest)
        ]
        parts.append(Text(f"and {len(rest)} more failed cells: {', '.join(kinds)}", style="red"))
    for finding in comparison.findings:
        if finding.kind == "counters":
            parts.append(Text(f"{finding.where}: {finding.text}", style="bold red"))
    parts += [Text(f"note: {note}") for note in comparison.notes]
    return [*parts, Text()] if parts else []


def _failure(failure: Failure, notes: dict[tuple[str, str], int]) -> str:
    number = notes[failure.variant, failure.workload]
    return f"[{number}] {failure.cell}: {failure.outcome}: {first_line(failure.evidence)}"


def _legend(comparison: Comparison) -> Table:
    conditions = comparison.conditions
    margin = percent(comparison.margin, signed=False)
    table = Table.grid(padding=(0, 0, 0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style="dim")
    planned = sum(sum(each.values()) for each in comparison.planned.values())
    rule = (
        f"a difference: permutation test on ranks, p <= {comparison.alpha:g} after Holm over the primary metrics of a "
        f"workload (and over its others), and beyond both {margin} and the noise floor; "
        "the same (=): two one-sided tests"
    )
    lines = [
        ("clock", ": ".join(part for part in (_clock(comparison), conditions.accelerator_reason) if part)),
        *([("host CPU", conditions.calibration)] if conditions.calibration else []),
        ("machine", f"{conditions.topology}, {conditions.kernel}, configuration {conditions.flavour}"),
        (
            "cells",
            f"{planned - len(comparison.failures)} of {planned} ok; {conditions.repeat} fresh boots each",
        ),
        ("A/A", control_line(comparison)),
        (
            "shown",
            f"median (change) mark, {CONFIDENCE:.0%} bootstrap interval; under the baseline the A/A noise floor",
        ),
        ("marks", f"+ improved, - regressed, = within {margin}, ! differs, ? inconclusive, . not tested"),
        ("rule", rule),
    ]
    if comparison.counters_checked:
        broken = len({f.where for f in comparison.findings if f.kind == "counters"})
        held = comparison.counters_checked - broken
        lines.append(
            (
                "counters",
                f"reservation identities held in {held} of {comparison.counters_checked} patched cells",
            )
        )
    for name, text in lines:
        table.add_row(name, text)
    return table


def _clock(comparison: Comparison) -> str:
    conditions = comparison.conditions
    return f"{CLOCKS.get(conditions.clock, conditions.clock)} ({conditions.accelerator})"


def control_line(comparison: Comparison) -> str:
    """What the A/A control says, in one line."""
    control = comparison.control_variant
    if control is None:
        return "no control; the noise floor is not known"
    rows = [row for row in comparison.control if row.difference is not None and not row.always_zero]
    if not rows:
        return f"{control} has no values; the noise floor is not known"
    claimed = [
        f"{row.workload} {row.metric}"
        for row in rows
        if row.verdict in (Verdict.IMPROVED, Verdict.REGRESSED, Verdict.DIFFERS)
    ]
    same = sum(row.verdict is Verdict.EQUIVALENT for row in rows)
    if all(row.verdict is Verdict.NO_TEST for row in rows):
        return f"{control}: too few repetitions for a test of {len(rows)} metrics"
    differing = f"differs in {', '.join(claimed)}" if claimed else "differs in none"
    return f"{control}: {differing} of {len(rows)} metrics, equivalent in {same}"
