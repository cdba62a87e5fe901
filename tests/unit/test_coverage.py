# SPDX-License-Identifier: GPL-2.0-only
"""Which added lines were executed: gcov's counts of a program that gcc made here, and stages that git knows."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from orchestrator.errors import InfrastructureError
from orchestrator.execution.correctness import coverage as report
from orchestrator.kernel.config import Configuration, configuration, flavours
from orchestrator.kernel.coverage import StageCoverage, counts_of, coverage_of, merged
from orchestrator.kernel.tree import PatchedTree
from orchestrator.kernel.workshop import pinned
from orchestrator.project import find_project

HEADER = "static inline int twice(int x)\n{\n\treturn 2 * x;\n}\n"
BASE = '#include <stdlib.h>\n#include "twice.h"\nint main(int argc, char **argv)\n{\n\treturn 0;\n}\n'
#: Stage 1 adds a branch that is not taken without an argument, stage 2 changes a line of it and adds one more.
FIRST = BASE.replace(
    "\treturn 0;\n", "\tint n = twice(argc);\n\tif (argc > 1)\n\t\tn += 5;\n\treturn n == 9;\n"
)
SECOND = FIRST.replace("\t\tn += 5;\n", "\t\tn += 7;\n\tn -= 2;\n")


def git(directory: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x@y", *words],
        cwd=directory, check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> PatchedTree:
    """Two stages on a source."""
    directory = tmp_path_factory.mktemp("tree")
    git(directory, "init", "-q")
    (directory / "mm").mkdir()
    commits = []
    for main, header in ((BASE, HEADER), (FIRST, HEADER), (SECOND, HEADER + "\n/* read */\n")):
        (directory / "mm/main.c").write_text(main)
        (directory / "mm/twice.h").write_text(header)
        git(directory, "add", ".")
        git(directory, "commit", "-q", "-m", "x")
        commits.append(git(directory, "rev-parse", "HEAD"))
    stages: Any = tuple(SimpleNamespace(number=number, title=f"stage {number}") for number in (1, 2))
    source: Any = SimpleNamespace(commit=commits[0])
    return PatchedTree(directory / ".git", commits[-1], "tree", source, stages)


def built(tree: PatchedTree, directory: Path, *arguments: str) -> tuple[Path, Path]:
    """Build the last stage elsewhere, as with O=, run it, and part the counts from the notes."""
    objects, data, notes = (directory / name for name in ("objects", "data", "notes"))
    (objects / "mm").mkdir(parents=True)
    source = tree.repository.parent
    subprocess.run(
        ["gcc", "--coverage", "-c", "-o", "mm/main.o", str(source / "mm/main.c")], cwd=objects, check=True
    )
    subprocess.run(["gcc", "--coverage", "-o", "main", "mm/main.o"], cwd=objects, check=True)
    subprocess.run(["./main", *arguments], cwd=objects, check=False)
    for suffix, place in (("gcda", data), ("gcno", notes)):
        (place / "mm").mkdir(parents=True)
        (objects / "mm" / f"main.{suffix}").rename(place / "mm" / f"main.{suffix}")
    return data, notes


def missing(stages: tuple[StageCoverage, ...]) -> list[list[str]]:
    return [[line.text.strip() for line in stage.missing] for stage in stages]


def test_a_line_belongs_to_the_last_stage_that_changed_it(tree: PatchedTree, tmp_path: Path) -> None:
    stages = coverage_of(tree, counts_of(*built(tree, tmp_path)))
    assert missing(stages) == [[], ["n += 7;"]]
    assert [line.text.strip() for line in stages[0].lines] == [
        "int n = twice(argc);", "if (argc > 1)", "return n == 9;",
    ]  # fmt: skip
    assert [(line.file, line.count) for line in stages[1].lines] == [("mm/main.c", 0), ("mm/main.c", 1)]
    # Lines of the source itself, and comments of a stage, are not counted.
    assert [len(stage.lines) for stage in stages] == [3, 2] and stages[1].executed == 1


def test_what_one_guest_executed_is_executed(tree: PatchedTree, tmp_path: Path) -> None:
    one = counts_of(*built(tree, tmp_path / "one"))
    other = counts_of(*built(tree, tmp_path / "other", "argument"))
    stages = coverage_of(tree, merged([one, other]))
    assert missing(stages) == [[], []]
    assert [line.count for line in stages[1].lines] == [1, 2]


def test_a_file_that_was_not_compiled_has_no_lines(tree: PatchedTree) -> None:
    assert [stage.lines for stage in coverage_of(tree, {"lib/main.c": {1: 1}})] == [(), ()]


def test_counts_of_another_kernel_are_refused(tree: PatchedTree, tmp_path: Path) -> None:
    data, notes = built(tree, tmp_path)
    (notes / "mm/main.gcno").write_bytes(b"oncg" + bytes(40))
    with pytest.raises(InfrastructureError, match=r"gcov cannot read mm/main\.gcda"):
        counts_of(data, notes)


def test_the_table_and_the_marked_source(tree: PatchedTree, tmp_path: Path) -> None:
    stages = coverage_of(tree, counts_of(*built(tree, tmp_path)))
    report.write(tmp_path, stages, 100)
    text = (tmp_path / report.TEXT).read_text()
    rows = [line.split() for line in text.splitlines()]
    assert ["1", "3", "3", "100.0", "%", "stage", "1"] in rows and ["all", "5", "4", "80.0", "%"] in rows
    assert "  mm/main.c:7: n += 7;" in text.splitlines()
    page = (tmp_path / report.PAGE).read_text()
    assert "<span class=no>         0      7                  n += 7;</span>" in page
    assert "argc &gt; 1" in page and page.count("class=no") == 1
    facts = report.to_json(stages)[1]
    assert facts == {"stage": 2, "title": "stage 2", "lines": 2, "executed": 1, "missing": [["mm/main.c", 7]]}


def test_nothing_measured_has_no_share() -> None:
    assert report.table(report.to_json([StageCoverage(1, "one", ())]), 80).split()[-2:] == ["0", "-"]


class Gcov:
    """A guest with the files of gcov."""

    files: ClassVar = {
        "/sys/kernel/debug/gcov/build/objects/mm/main.gcda": b"counts",
        "/sys/kernel/debug/gcov/build/objects/drivers/base/main.gcda": b"of another object",
    }

    def run(self, argv: list[str], **_: Any) -> Any:
        assert argv[0] == "find"
        return SimpleNamespace(stdout="\n".join(self.files) + "\n")

    def read_bytes(self, path: str) -> bytes:
        return self.files[path]


def test_only_counts_of_the_files_of_the_series_are_fetched(tmp_path: Path) -> None:
    (tmp_path / "notes/mm").mkdir(parents=True)
    (tmp_path / "notes/mm/main.gcno").touch()
    guest: Any = Gcov()
    report.collect(guest, tmp_path / "notes", tmp_path / "data")
    fetched = {
        path.relative_to(tmp_path / "data"): path.read_bytes() for path in (tmp_path / "data").rglob("*.gcda")
    }
    assert fetched == {Path("mm/main.gcda"): b"counts"}


def of(*counted: str) -> Configuration:
    return configuration(find_project().vm_images, "measure", counted=counted)


def test_only_the_files_of_the_series_count(tmp_path: Path) -> None:
    plain, counting = of(), of("mm/memory.c", "kernel/fork.c", "drivers/base/memory.c")
    assert counting.requested["CONFIG_GCOV_KERNEL"] == "y" and counting.digest != plain.digest
    assert "CONFIG_GCOV_PROFILE_ALL" not in counting.requested
    added = {name: value for name, value in pinned(counting).items() if name not in pinned(plain)}
    makefile = "all:\n\t@$(MAKE) --no-print-directory -f below obj=$(of)\n"
    (tmp_path / "Makefile").write_text(makefile)
    (tmp_path / "below").write_text("all:\n\t@echo '[$(GCOV_PROFILE_memory.o)$(GCOV_PROFILE_fork.o)]'\n")
    variables = [f"{name}={value}" for name, value in added.items()]
    counts = {"mm": "[y]", "kernel": "[y]", "drivers/base": "[y]", "arch/x86/boot": "[]", "mm/damon": "[]"}
    for directory, said in counts.items():
        argv = ["make", "-s", f"of={directory}", *variables]
        assert subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True).stdout == f"{said}\n"
    assert pinned(dataclasses.replace(counting, counted=())) == pinned(plain)
    assert "coverage" not in flavours(find_project().vm_images)
