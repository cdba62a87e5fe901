# SPDX-License-Identifier: GPL-2.0-only
"""A run as a self-contained HTML page, with plots and script inside, without network access.

The page shows output of guests, so the template escapes everything, and the Content-Security-Policy forbids all content
from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote
from xml.etree import ElementTree

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestrator.analysis.aspect import Answer, answers
from orchestrator.analysis.comparison import Comparison, Row, Side, first_line
from orchestrator.analysis.conclusion import conclusion
from orchestrator.analysis.notation import (
    CLOCKS,
    MARKS,
    Scale,
    change,
    change_with_unit,
    direction,
    floor,
    instructions,
    interval,
    percent,
    row_scale,
    scale_of,
    spread,
)
from orchestrator.analysis.profile import compare_profiles, profile_text, profiles_of
from orchestrator.analysis.rule import rule_lines
from orchestrator.analysis.table import control_line
from orchestrator.output import is_stream, write_output
from orchestrator.store.manifest import Manifest
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import Run

_TEMPLATE: Final = "report.html.j2"
_SCRIPT: Final = "cell_filter.js"


@dataclass(frozen=True)
class _Figure:
    title: str
    source: str


@dataclass(frozen=True)
class _Shown:
    """The values of one variant for a metric, as text."""

    value: str
    change: str
    interval: str
    spread: str
    values: str
    instructions: str
    mark: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class _MetricRow:
    """A metric as a row of the table."""

    metric: str
    help: str
    unit: str
    direction: str
    primary: bool
    baseline: str
    spread: str
    values: str
    floor: str
    variants: Sequence[_Shown]


@dataclass(frozen=True)
class _Claim:
    """One metric in a tile."""

    variant: str
    metric: str
    change: str
    interval: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class _Tile:
    """One of the three answers at the top of the page."""

    heading: str
    claims: Sequence[_Claim]


def write_report(
    run: Run, comparison: Comparison, plots: Sequence[Path], path: Path, result: str | None = None
) -> None:
    """Write the page.

    Args:
        plots: files of :func:`orchestrator.analysis.plots.plot_run`; the SVG files are embedded.
        path: output file; links to logs are relative to it.
        result: result of a run other than a comparison, as plain text.
    """
    environment = Environment(
        loader=PackageLoader("orchestrator.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    manifest = run.manifest
    # The hash in the policy allows this script only, and none in the evidence.
    script = environment.get_template(_SCRIPT).render()
    planned = sum(sum(each.values()) for each in comparison.planned.values())
    page = environment.get_template(_TEMPLATE).render(
        run=run.name,
        series=manifest.series.title,
        created=manifest.created_utc,
        comparison=comparison,
        result=result,
        functions=profile_text(compare_profiles(run, profiles_of(run))),
        conditions=comparison.conditions,
        clock=CLOCKS.get(comparison.conditions.clock, comparison.conditions.clock),
        margin=percent(comparison.margin, signed=False),
        rule=rule_lines(comparison),
        ok=planned - len(comparison.failures),
        planned=planned,
        broken=len({finding.where for finding in comparison.findings if finding.kind == "counters"}),
        breakable=_breakable,
        tiles=[_tile(answer) for answer in answers(comparison)],
        boots=[(name, _boots(comparison, name)) for name in comparison.workloads],
        conclusions=[conclusion(comparison, variant.name) for variant in comparison.compared],
        control=control_line(comparison),
        tables=[(name, title, _lines(comparison, name)) for name, title in comparison.workloads.items()],
        figures=[_figure(plot) for plot in plots if plot.suffix == ".svg"],
        cells=_cells(run, path),
        outcomes=sorted(set(run.cells["outcome"])),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        variants=manifest.variants,
        reproduce=manifest.reproduce,
        facts=_facts(manifest),
    )
    if not is_stream(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_output(path, page)


def _breakable(name: str) -> Markup:
    """A metric's name that may continue on the next line of a narrow column, between its words."""
    return Markup("<wbr>").join(re.split(r"(?<=[_.])", name))


def _tile(answer: Answer) -> _Tile:
    return _Tile(
        answer.heading,
        [
            _Claim(
                variant=variant,
                metric=row.metric,
                change=change_with_unit(row),
                interval=interval(row, row_scale(row)),
                verdict=row.verdict.value,
                reason=row.reason,
            )
            for variant, rows in answer.rows.items()
            for row in rows
        ],
    )


def _boots(comparison: Comparison, workload: str) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Metric, unit, and each variant with every boot's value, the control included."""
    sides: dict[str, tuple[str, dict[str, Side]]] = {}
    for row in (*comparison.control, *comparison.rows_of(workload=workload)):
        if row.workload == workload and not row.always_zero:
            own = sides.setdefault(row.metric, (row.unit, {}))[1]
            own.setdefault(comparison.baseline, row.baseline)
            own.setdefault(row.variant, row.compared)
    shown = []
    for metric, (unit, by_variant) in sides.items():
        scale = scale_of(unit, [value for side in by_variant.values() for value in side.values])
        shown.append((metric, scale.unit, [(name, _each(side, scale)) for name, side in by_variant.items()]))
    return shown


def _lines(comparison: Comparison, workload: str) -> list[_MetricRow]:
    rows = comparison.rows_of(workload=workload)
    lines = []
    for metric in dict.fromkeys(row.metric for row in rows):
        own = {row.variant: row for row in rows if row.metric == metric}
        first = next(iter(own.values()))
        scale = scale_of(first.unit, [first.baseline.median, *(row.compared.median for row in own.values())])

        def shown(row: Row, scale: Any = scale) -> _Shown:
            tested = row.difference is not None
            return _Shown(
                value=scale.text(row.compared.median),
                change=change(row, scale),
                interval=interval(row, scale),
                spread=spread(row.compared, scale),
                values=_each(row.compared, scale),
                instructions=instructions(row),
                mark=MARKS[row.verdict] if tested else "",
                verdict=row.verdict.value if tested else "no-test",
                reason=row.reason,
            )

        lines.append(
            _MetricRow(
                metric=metric,
                help=first.help if first.help != metric else "",
                unit=scale.unit,
                direction=direction(first),
                primary=first.primary,
                baseline=scale.text(first.baseline.median),
                spread=spread(first.baseline, scale),
                values=_each(first.baseline, scale),
                floor=floor(first, scale),
                variants=[shown(own[variant.name]) for variant in comparison.compared],
            )
        )
    return lines


def _each(side: Side, scale: Scale) -> str:
    """The values of all boots, in the order of the repetitions."""
    return ", ".join(map(scale.text, side.values))


def _figure(path: Path) -> _Figure:
    content = path.read_bytes()
    # The title of the plot, from the metadata of the SVG file.
    titles = (
        element.text for element in ElementTree.fromstring(content).iter() if element.tag.endswith("title")
    )
    title = next((text for text in titles if text), path.stem)
    return _Figure(title, "data:image/svg+xml;base64," + base64.b64encode(content).decode())


def _cells(run: Run, page: Path) -> list[dict[str, Any]]:
    cells = []
    for cell in run.cells.itertuples():
        logs = run.log_directory(str(cell.cell))
        relative = os.path.relpath(logs.resolve(), page.resolve().parent)
        ok = cell.outcome == Outcome.OK.value
        cells.append(
            {
                "cell": cell.cell,
                "outcome": cell.outcome,
                "ok": ok,
                "evidence": "" if ok else first_line(str(cell.evidence)),
                "more": "" if ok else str(cell.evidence).strip(),
                "boot": _seconds(cell.boot_s),
                "run": _seconds(cell.run_s),
                "logs": quote(relative) + "/" if logs.is_dir() else "",
            }
        )
    return cells


def _seconds(value: Any) -> str:
    return "" if value is None or value != value else f"{float(value):.1f} s"


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Code, host and tools, so that readers can verify the figures."""
    return [
        *(("orchestrate", str(code)) for code in (manifest.code, *manifest.finished_by)),
        ("guest CPU", manifest.accelerator.cpu or "not recorded"),
        ("QEMU binary", f"SHA-256 {manifest.accelerator.qemu_digest or 'not recorded'}"),
        *((f"host {key}", str(value)) for key, value in asdict(manifest.host).items()),
        *manifest.tools.items(),
    ]
