# SPDX-License-Identifier: GPL-2.0-only
"""Which of the lines that the stages of a series add were executed, by gcov(1) (Documentation/dev-tools/gcov.rst)."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.errors import InfrastructureError
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.tree import PatchedTree
from orchestrator.process import require, run

#: Executions by file, as the compiler found it, and line.
Counts = Mapping[str, Mapping[int, int]]

# A line of `git blame --porcelain`: commit, line in that commit, line now.
_BLAMED: Final = re.compile(r"^(?P<commit>[0-9a-f]{40,64}) \d+ (?P<line>\d+)", re.MULTILINE)
_SOURCES: Final = ("*.c", "*.h")


@dataclass(frozen=True)
class AddedLine:
    """A line that a stage adds and that has code.

    Args:
        count: how often it was executed.
        text: the line.
    """

    file: str
    line: int
    count: int
    text: str


@dataclass(frozen=True)
class StageCoverage:
    """The lines with code that one stage adds, as far as no later stage changes them.

    Args:
        number, title: the stage's.
        lines: in order of file and line.
    """

    number: int
    title: str
    lines: tuple[AddedLine, ...]

    @property
    def executed(self) -> int:
        """Number of lines that were executed."""
        return sum(line.count > 0 for line in self.lines)

    @property
    def missing(self) -> tuple[AddedLine, ...]:
        """The lines that were not executed."""
        return tuple(line for line in self.lines if not line.count)


def counts_of(data: Path, notes: Path) -> dict[str, dict[int, int]]:
    """The executions of each line with code.

    Args:
        data: directory with the ``.gcda`` files of one guest, each at the path of its object.
        notes: directory with the ``.gcno`` files of its kernel.

    Returns:
        Executions by file, as the compiler found it, and line.

    Raises:
        InfrastructureError: gcov is not installed, or cannot read a file.
    """
    require("gcov")
    counts: dict[str, Counter[int]] = {}
    for file in sorted(data.rglob("*.gcda")):
        name = file.relative_to(data)
        with tempfile.TemporaryDirectory(prefix="orchestrate-gcov-") as place:
            for each in (file, (notes / name).with_suffix(".gcno")):
                shutil.copy(each, place)
            argv = ["gcov", "--json-format", "--stdout", file.name]
            done = run(argv, cwd=Path(place), check=False)
        try:
            said = json.loads(done.stdout)
        except ValueError:
            reason = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
            raise InfrastructureError(f"gcov cannot read {name}: {reason}.") from None
        for source in said["files"]:
            own = counts.setdefault(str(source["file"]), Counter())
            for line in source["lines"]:
                own[int(line["line_number"])] += int(line["count"])
    return {path: dict(own) for path, own in counts.items()}


def merged(all_counts: Sequence[Counts]) -> dict[str, dict[int, int]]:
    """The executions of several guests together."""
    total: dict[str, Counter[int]] = {}
    for counts in all_counts:
        for file, lines in counts.items():
            total.setdefault(file, Counter()).update(lines)
    return {file: dict(lines) for file, lines in total.items()}


def coverage_of(tree: PatchedTree, counts: Counts) -> tuple[StageCoverage, ...]:
    """The lines with code that each stage adds, and how often they were executed.

    A line belongs to the last stage that changed it. Lines in files that the configuration does not compile have no
    counts, and are left out like lines without code.
    """
    repository = Repository(tree.repository)
    base = tree.source.commit
    commits = repository.git("rev-list", "--reverse", f"{base}..{tree.commit}").stdout.split()
    stages = dict(zip(commits, tree.stages, strict=True))
    found: dict[int, list[AddedLine]] = {stage.number: [] for stage in tree.stages}
    changed = repository.git(
        "diff", "-z", "--no-renames", "--name-only", "--diff-filter=d", base, tree.commit, "--", *_SOURCES
    ).stdout
    for file in sorted(filter(None, changed.split("\0"))):
        own = next((lines for path, lines in counts.items() if f"/{path}".endswith(f"/{file}")), None)
        if own is None:
            continue
        text = repository.git("show", f"{tree.commit}:{file}").stdout.splitlines()
        blamed = repository.git("blame", "--porcelain", f"{base}..{tree.commit}", "--", file).stdout
        for match in _BLAMED.finditer(blamed):
            stage, line = stages.get(match["commit"]), int(match["line"])
            if stage is not None and line in own:
                found[stage.number].append(AddedLine(file, line, own[line], text[line - 1]))
    return tuple(
        StageCoverage(stage.number, stage.title, tuple(sorted(found[stage.number], key=_place)))
        for stage in tree.stages
    )


def _place(line: AddedLine) -> tuple[str, int]:
    return line.file, line.line
