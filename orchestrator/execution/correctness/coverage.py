# SPDX-License-Identifier: GPL-2.0-only
"""The lines of the series that the suites of a correctness test executed, out of its guests."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from orchestrator.analysis.layout import listing, text_of
from orchestrator.guest.ssh import Guest
from orchestrator.kernel.build import KernelBuild
from orchestrator.kernel.coverage import AddedLine, Counts, StageCoverage, counts_of, coverage_of, merged
from orchestrator.kernel.tree import PatchedTree

#: Directory in the logs of a cell, and files in the run directory.
DATA: Final = "gcda"
TEXT: Final = "coverage.txt"
PAGE: Final = "coverage.html"

_GCOV: Final = "/sys/kernel/debug/gcov"
_ANSWER_S: Final = 300.0
_STYLE: Final = (
    "body{font-family:sans-serif;max-width:70em;margin:2em auto}"
    "pre{line-height:1.35;border:1px solid #ccc;padding:.5em;overflow-x:auto}"
    ".no{background:#f6c9c0;font-weight:bold}td,th{padding:.1em .8em;text-align:right}"
    "td:nth-child(2),th:nth-child(2){text-align:left}"
)


def collect(guest: Guest, notes: Path, directory: Path) -> None:
    """Fetch the counts of a guest.

    Args:
        notes: directory with the ``.gcno`` files of its kernel.
        directory: directory to put the ``.gcda`` files into.
    """
    wanted = {str(note.relative_to(notes).with_suffix(".gcda")) for note in notes.rglob("*.gcno")}
    found = guest.run(["find", _GCOV, "-name", "*.gcda"], timeout_s=_ANSWER_S, check=True).stdout
    for path in found.splitlines():
        name = next((name for name in wanted if path.endswith(f"/{name}")), None)
        if name is not None:
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(guest.read_bytes(path))


def measured(tree: PatchedTree, kernel: KernelBuild, cells: Iterable[Path]) -> tuple[StageCoverage, ...]:
    """The coverage of a kernel's stages by all guests.

    Args:
        cells: log directories of the guests.
    """
    counts: list[Counts] = [counts_of(cell / DATA, kernel.notes) for cell in cells if (cell / DATA).is_dir()]
    return coverage_of(tree, merged(counts))


def to_json(stages: Sequence[StageCoverage]) -> list[dict[str, Any]]:
    """For ``correctness.json``: the numbers, and the lines that were not executed."""
    return [
        {
            "stage": stage.number,
            "title": stage.title,
            "lines": len(stage.lines),
            "executed": stage.executed,
            "missing": [[line.file, line.line] for line in stage.missing],
        }
        for stage in stages
    ]


def table(stages: Sequence[Mapping[str, Any]], width: int) -> str:
    """A row per stage and one for all.

    Args:
        stages: what :func:`to_json` returned.
        width: columns.
    """
    rows = [[str(each["stage"]), str(each["lines"]), *_share(each), each["title"]] for each in stages]
    whole = {key: sum(each[key] for each in stages) for key in ("lines", "executed")}
    rows.append(["all", str(whole["lines"]), *_share(whole), ""])
    titles = ("stage", "added lines with code", "executed", "share", "title")
    return text_of(listing(rows, width, titles, right=range(4)))


def write(directory: Path, stages: Sequence[StageCoverage], width: int) -> None:
    """Write the table with each line that was not executed, and the marked-up source."""
    lines = [table(to_json(stages), width)]
    for stage in stages:
        if stage.missing:
            lines += ["", f"not executed of stage {stage.number}, {stage.title}:"]
            lines += [f"  {each.file}:{each.line}: {each.text.strip()}" for each in stage.missing]
    (directory / TEXT).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (directory / PAGE).write_text("".join(_page(stages)), encoding="utf-8")


def _share(facts: Mapping[str, Any]) -> list[str]:
    share = f"{100 * facts['executed'] / facts['lines']:.1f} %" if facts["lines"] else "-"
    return [str(facts["executed"]), share]


def _page(stages: Sequence[StageCoverage]) -> Iterator[str]:
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>Coverage</title><style>{_STYLE}</style>"
    yield "<h1>Lines of the series that the tests executed</h1><table><tr>"
    yield "".join(f"<th>{title}</th>" for title in ("stage", "title", "lines", "executed", "share")) + "</tr>"
    for facts in to_json(stages):
        cells = (
            f"<a href='#stage-{facts['stage']}'>{facts['stage']}</a>",
            html.escape(facts["title"]),
            str(facts["lines"]),
            *_share(facts),
        )
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</table><p>Lines with code only; in red those that were not executed. Before each: executions, line number."
    for stage in stages:
        if not stage.lines:
            continue
        yield f"<h2 id=stage-{stage.number}>{stage.number}. {html.escape(stage.title)}</h2>"
        for file, lines in itertools.groupby(stage.lines, key=lambda line: line.file):
            yield f"<h3>{html.escape(file)}</h3><pre>{''.join(map(_marked, lines))}</pre>"
    yield "</html>\n"


def _marked(line: AddedLine) -> str:
    mark = "" if line.count else " class=no"
    return f"<span{mark}>{line.count:>10} {line.line:>6}  {html.escape(line.text.expandtabs())}</span>\n"
