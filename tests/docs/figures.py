# SPDX-License-Identifier: GPL-2.0-only
"""Figures in texts come from stored runs: write them, or check that they are what a run says.

    .venv/bin/python tests/docs/figures.py           # write them
    .venv/bin/python tests/docs/figures.py --check   # the gate `docs` of tests/run
    .venv/bin/python tests/docs/figures.py --keep RUN NAME   # make results/reference-NAME of a run

A figure in a Markdown file stands between two comments, which name where it comes from::

    <!-- figure: core-only chunk/survivors.total core-only@256 -->107<!-- end -->
    <!-- figure: core-only fault_latency/touch_insns.mean core-only@256 change -->-38.6%<!-- end -->
    <!-- figure: core-only break-even core-only@256 -->106<!-- end -->
    <!-- figure: core-only cells minutes -->14<!-- end -->

The run is ``results/reference-<first word>``. The last word is what is shown: ``value`` (the default), ``change``,
``interval``, ``floor``, ``instructions`` or ``both`` (value and change). Rows of the table are between::

    <!-- table: core-only fault_latency/touch_insns.mean 100 -->
    <!-- end -->

The table and the changelog text in a stored run are those that `compare` and `changelog` print now.

What a patch's changelog reports is the text of ``orchestrate changelog`` from "Medians of" to the end;
``kernel_patches/<base>/figures.toml`` says of which run, stages, workloads and metrics.

The check also fails if a stored run is not of the patches as they are, or if all of them are larger than 3 MiB.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.analysis.changelog import changelog_text
from orchestrator.analysis.comparison import Comparison, Row, compare
from orchestrator.analysis.density import break_even, densities
from orchestrator.analysis.notation import change, floor, instructions, interval, scale_of
from orchestrator.analysis.table import to_text
from orchestrator.errors import UserError
from orchestrator.kernel.series import Series, load_series
from orchestrator.store.run import Run

ROOT: Final = Path(__file__).resolve().parents[2]
PREFIX: Final = "reference-"
#: Of all stored runs together.
MOST_BYTES: Final = 3 << 20
_FIGURE: Final = re.compile(r"(<!-- figure: ([^>]*?) -->)(.*?)(<!-- end -->)", re.DOTALL)
_TABLE: Final = re.compile(r"(<!-- table: ([^>]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
#: The part of a patch's changelog that `orchestrate changelog` wrote: to the end of the changelog.
_MEASURED: Final = re.compile(r"^Medians of .*?(?=^---$)", re.MULTILINE | re.DOTALL)
#: What is kept of a run: to compare, to draw most plots again, and to look at.
_KEPT: Final = ("run.json", "cells.parquet", "metrics.parquet", "comparison.txt", "changelog.txt")


@dataclass
class Stored:
    """The stored runs of a repository.

    Args:
        root: the repository.
    """

    root: Path

    def __post_init__(self) -> None:
        self._compared: dict[str, tuple[Run, Comparison]] = {}

    @cached_property
    def directories(self) -> list[Path]:
        """Their directories."""
        return sorted((self.root / "results").glob(f"{PREFIX}*"))

    def compared(self, name: str) -> tuple[Run, Comparison]:
        """A run and its comparison.

        Raises:
            UserError: there is none of that name.
        """
        if name not in self._compared:
            path = self.root / "results" / f"{PREFIX}{name}"
            if not path.is_dir():
                there = ", ".join(each.name.removeprefix(PREFIX) for each in self.directories) or "none"
                raise UserError(f"there is no stored run {path.name}; there are {there}.")
            run = Run.open(path)
            self._compared[name] = run, compare(run)
        return self._compared[name]

    def row(self, name: str, metric: str, variant: str) -> Row:
        """The row of ``workload/metric``; of the baseline itself, the first of that metric.

        Raises:
            UserError: the run has none.
        """
        _, comparison = self.compared(name)
        workload, _, own = metric.partition("/")
        rows = [row for row in comparison.rows if (row.workload, row.metric) == (workload, own)]
        chosen = [row for row in rows if row.variant == variant or variant == comparison.baseline]
        if not chosen:
            raise UserError(f"{PREFIX}{name} has no {metric} of {variant}.")
        return chosen[0]


def figure(stored: Stored, words: Sequence[str]) -> str:
    """The text of one figure.

    Raises:
        UserError: the words name nothing.
    """
    if len(words) == 3 and words[1] == "cells":
        return _of_cells(stored.compared(words[0])[0], words[2])
    if len(words) not in (3, 4):
        raise UserError(f"figure: {' '.join(words)}: write RUN WORKLOAD/METRIC VARIANT [SHOWN].")
    name, metric, variant, shown = (*words, "value")[:4]
    if metric == "break-even":
        run, comparison = stored.compared(name)
        found = densities(run)
        even = break_even(found[comparison.baseline], found[variant]) if variant in found else None
        if even is None:
            raise UserError(f"{PREFIX}{name}: {variant} has no break-even with {comparison.baseline}.")
        return f"{even:.0f}"
    row = stored.row(name, metric, variant)
    _, comparison = stored.compared(name)
    scale = scale_of(row.unit, (row.baseline.median, row.compared.median))
    side = row.baseline if variant == comparison.baseline else row.compared
    forms: Mapping[str, Callable[[], str]] = {
        "value": lambda: scale.text(side.median),
        "change": lambda: change(row, scale),
        "interval": lambda: interval(row, scale),
        "floor": lambda: f"A/A {floor(row, scale)}",
        "instructions": lambda: instructions(row),
        "both": lambda: f"{scale.text(side.median)} ({change(row, scale)})",
    }
    if shown not in forms:
        raise UserError(f"figure: {' '.join(words)}: show {', '.join(forms)}.")
    return forms[shown]()


def _of_cells(run: Run, shown: str) -> str:
    """How many cells a run has, or the minutes from the start of the first to the end of the last."""
    cells = run.cells
    if shown == "number":
        return str(len(cells))
    if shown != "minutes":
        raise UserError(f"figure: cells {shown}: show number or minutes.")
    began = pd.to_datetime(cells["started_utc"], utc=True)
    ended = began + pd.to_timedelta(cells["total_s"], unit="s")
    return f"{(ended.max() - began.min()).total_seconds() / 60:.0f}"


def table(stored: Stored, words: Sequence[str]) -> str:
    """The rows of one metric as `compare` prints them, in a block of code.

    Raises:
        UserError: the words name nothing.
    """
    if len(words) != 3 or not words[2].isdecimal():
        raise UserError(f"table: {' '.join(words)}: write RUN WORKLOAD/METRIC COLUMNS.")
    _, comparison = stored.compared(words[0])
    workload, _, metric = words[1].partition("/")
    lines = to_text(comparison, width=int(words[2])).splitlines()
    # The part of this workload, and in it the metric with what is indented below.
    begins = next((n for n, line in enumerate(lines) if line.startswith(f"{workload}:")), len(lines))
    at = next((n for n in range(begins, len(lines)) if lines[n].startswith(f"{metric} ")), None)
    if at is None:
        raise UserError(f"{PREFIX}{words[0]} has no {words[1]}.")
    end = next(n for n in range(at + 1, len(lines)) if not lines[n].startswith(" "))
    # Columns have names on the first line; variants below each other have them on their own.
    head = [] if lines[at].startswith(f"{metric} (") else [lines[begins + lines[begins:].index("") + 1]]
    shown = "\n".join([*head, *lines[at:end]])
    return f"```\n{shown}\n```\n"


def rendered(stored: Stored, text: str) -> str:
    """A Markdown text with its figures as the stored runs have them."""

    def of_figure(match: re.Match[str]) -> str:
        said = figure(stored, match[2].split())
        return match[1] + (f"`{said}`" if match[3].startswith("`") else said) + match[4]

    def of_table(match: re.Match[str]) -> str:
        return match[1] + table(stored, match[2].split()) + match[4]

    return _TABLE.sub(of_table, _FIGURE.sub(of_figure, text))


def with_measurement(stored: Stored, patch: str, block: Mapping[str, Any]) -> str:
    """A patch with the measured part of its changelog as the stored run has it.

    Args:
        block: a table ``[[block]]`` of ``figures.toml``.

    Raises:
        UserError: the changelog has no such part, or the run not what the table names.
    """
    run, comparison = stored.compared(block["run"])
    chosen = (block.get("stages", ()), block.get("workloads", ()), block.get("metrics", ()))
    said = changelog_text(run, comparison, *chosen, plots=bool(block.get("plots", False)))
    if not _MEASURED.search(patch):
        raise UserError(f"{block['patch']}: its changelog has no line that begins with 'Medians of'.")
    return _MEASURED.sub(lambda _: said, patch, count=1)


def texts(stored: Stored) -> Iterator[tuple[Path, str | UserError]]:
    """Every file that reports figures, and what it should say or why that is not known."""
    root = stored.root
    for path in sorted([root / "README.md", *root.glob("docs/*.md"), *root.glob("results/*.md")]):
        if path.is_file():
            yield path, _or_fault(partial(rendered, stored, path.read_text(encoding="utf-8")))
    for path in sorted(root.glob("kernel_patches/*/figures.toml")):
        for block in tomllib.loads(path.read_text(encoding="utf-8")).get("block", ()):
            patch = path.parent / block["patch"]
            text = patch.read_text(encoding="utf-8")
            yield patch, _or_fault(partial(with_measurement, stored, text, block))
    for directory in stored.directories:  # as the commands print them now
        run, comparison = stored.compared(directory.name.removeprefix(PREFIX))
        yield directory / "comparison.txt", to_text(comparison)
        yield directory / "changelog.txt", changelog_text(run, comparison)


def _or_fault(make: Callable[[], str]) -> str | UserError:
    try:
        return make()
    except UserError as error:
        return error


def stale(stored: Stored, series: Series) -> Iterator[str]:
    """A sentence for each stored run that is not of the patches as they are."""
    now = {stage.number: stage.digest for stage in series.stages}
    for path in stored.directories:
        manifest = Run.open(path).manifest
        changed = sorted(
            {
                stage.number
                for variant in manifest.variants
                for stage in variant.stages
                if now.get(stage.number) != stage.digest
            }
        )
        if changed:
            yield (
                f"{path.name}: stages {', '.join(map(str, changed))} are not those of the series; measure again: "
                f"{manifest.reproduce}"
            )


def too_large(stored: Stored) -> Iterator[str]:
    """A sentence where the stored runs are larger than they may be together."""
    sizes = {
        path.name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        for path in stored.directories
    }
    if sum(sizes.values()) > MOST_BYTES:
        each = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in sizes.items())
        yield f"the stored runs are larger than {MOST_BYTES >> 20} MiB together: {each}"


def missing_files(root: Path) -> Iterator[str]:
    """A sentence for each file of a stored run that a text names and that is not there."""
    for path in sorted([root / "README.md", *root.glob("docs/*.md"), *root.glob("results/*.md")]):
        if not path.is_file():
            continue
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
            if PREFIX in target and not (path.parent / target).exists():
                yield f"{path.relative_to(root)}: {target} does not exist"


def keep(run: Path, directory: Path, plots: Sequence[str] = ()) -> None:
    """Store a run: what a comparison needs, what its plots are drawn from, and the plots as PNG.

    Samples of counters from before and after a workload are kept, for `simulate` and the counter identities. Those in
    between, the report and logs of cells that ended ok are left out: they are most of a run.
    """
    temporary = directory.with_name(f".{directory.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in _KEPT:
        if (run / name).is_file():
            shutil.copy2(run / name, temporary / name)
    samples = run / "samples.parquet"
    if samples.is_file():
        at_ends = pc.field("phase").isin(["before", "after"])
        table = pq.read_table(samples, filters=at_ends)
        pq.write_table(table, temporary / samples.name, compression="zstd")
    for file in sorted((run / "plots").glob("*.png")):
        if not plots or file.stem in plots:
            (temporary / "plots").mkdir(exist_ok=True)
            shutil.copy2(file, temporary / "plots" / file.name)
    for file in sorted(run.glob("logs/*/workload.jsonl")):
        to = temporary / "logs" / file.parent.name
        to.mkdir(parents=True)
        shutil.copy2(file, to / file.name)
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the figures, or with ``--check`` say where they are not what a run says."""
    parser = argparse.ArgumentParser(description="Figures of the texts, from stored runs.")
    parser.add_argument(
        "--check", action="store_true", help="Write nothing; exit 1 where a figure is another one."
    )
    parser.add_argument(
        "--keep", nargs=2, metavar=("RUN", "NAME"), help="Store a run directory as results/reference-NAME."
    )
    parser.add_argument(
        "--plot",
        action="append",
        default=[],
        metavar="NAME",
        help="With --keep: keep this plot only; repeatable.",
    )
    options = parser.parse_args(argv)
    if options.keep:
        keep(Path(options.keep[0]), ROOT / "results" / f"{PREFIX}{options.keep[1]}", options.plot)
        return 0
    stored = Stored(ROOT)
    faults: list[str] = []
    number = 0
    for path, text in texts(stored):
        number += 1
        where = path.relative_to(ROOT)
        if isinstance(text, UserError):
            faults.append(f"{where}: {text}")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            if options.check:
                faults.append(
                    f"{where}: its figures are not those of the stored run; run tests/docs/figures.py"
                )
            else:
                path.write_text(text, encoding="utf-8")
                print(f"wrote {where}")
    if options.check:
        faults += [
            *stale(stored, load_series(ROOT / "kernel_patches")),
            *too_large(stored),
            *missing_files(ROOT),
        ]
    for fault in faults:
        print(fault)
    print(f"{number} texts, {len(stored.directories)} stored runs: {'FAULTS' if faults else 'ok'}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
