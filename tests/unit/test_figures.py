# SPDX-License-Identifier: GPL-2.0-only
"""Figures in texts: what a stored run says is written, and what it does not say is a fault."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import figures
import pytest
from figures import Stored, figure, keep, missing_files, rendered, stale, table, too_large, with_measurement
from synthetic_run import Synthetic

from orchestrator.errors import UserError
from orchestrator.kernel.series import Series
from orchestrator.store.run import Run

PATCH = """Subject: [PATCH] mm: x

Because.

Medians of 5 fresh boots, of an earlier version.

  survivors.total 1 2 3
---
 mm/x.c | 2 +-
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    run = Synthetic(repeat=6, ranges=True).write(root / "elsewhere")
    (run.path / "plots").mkdir()
    (run.path / "plots" / "boots.png").write_bytes(b"PNG")
    (run.path / "plots" / "boots.svg").write_bytes(b"SVG")
    keep(run.path, root / "results" / "reference-x")
    return root


@pytest.fixture
def stored(root: Path) -> Stored:
    return Stored(root)


def test_a_kept_run_can_be_compared_and_has_the_samples_of_both_ends(root: Path, stored: Stored) -> None:
    directory = root / "results" / "reference-x"
    _, comparison = stored.compared("x")
    assert comparison.rows
    names = {path.name for path in directory.rglob("*") if path.is_file()}
    assert {"run.json", "metrics.parquet", "boots.png", "workload.jsonl"} <= names
    assert not {"boots.svg", "report.html"} & names
    assert set(Run.open(directory).samples["phase"]) == {"before", "after"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("x chunk/survivors.total core-only@256", "107"),
        ("x chunk/survivors.total baseline", "15"),
        ("x chunk/survivors.total core-only@256 change", "+613%"),
        ("x chunk/survivors.total core-only@256 both", "107 (+613%)"),
        ("x cells number", "48"),
    ],
)
def test_a_figure_is_that_of_the_table(stored: Stored, words: str, said: str) -> None:
    assert figure(stored, words.split()) == said


def test_figures_are_replaced_where_they_stand_and_nothing_else_is(stored: Stored) -> None:
    text = (
        "Of them, <!-- figure: x chunk/survivors.total core-only@256 -->99<!-- end --> fit, not "
        "<!-- figure: x chunk/survivors.total baseline -->`98`<!-- end -->; 97 is no figure.\n"
    )
    once = rendered(stored, text)
    assert ">107<" in once and ">`15`<" in once and "97 is no figure" in once
    assert rendered(stored, once) == once


@pytest.mark.parametrize("width", [60, 100])
def test_a_table_has_the_lines_that_compare_prints(stored: Stored, width: int) -> None:
    shown = table(stored, ["x", "fault_latency/fault_insns.p50", str(width)])
    assert shown.startswith("```\n") and shown.endswith("\n```\n")
    assert shown.count("fault_insns.p50") == 1 and "core-only@256" in shown
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize(
    "words",
    ["y chunk/survivors.total baseline", "x chunk/nothing.total baseline", "x chunk/survivors.total nobody",
     "x chunk/survivors.total baseline loud", "x", "x cells hours", "x break-even core-only@1"],
)  # fmt: skip
def test_what_no_run_says_is_a_fault(stored: Stored, words: str) -> None:
    with pytest.raises(UserError):
        figure(stored, words.split())


def test_the_measured_part_of_a_changelog_is_replaced_up_to_its_end(stored: Stored) -> None:
    block = {"patch": "x.patch", "run": "x", "stages": [9], "workloads": ["chunk"]}
    once = with_measurement(stored, PATCH, block)
    assert once.startswith("Subject: [PATCH] mm: x\n\nBecause.\n\nMedians of 6 fresh boots")
    assert once.endswith("---\n mm/x.c | 2 +-\n") and "earlier version" not in once
    assert "fault_insns.p50" not in once and "survivors.total" in once
    assert with_measurement(stored, once, block) == once
    with pytest.raises(UserError, match="no line that begins with"):
        with_measurement(stored, "Subject: none\n---\n", block)


def test_a_run_of_other_patches_is_a_fault_with_the_command_that_mends_it(stored: Stored) -> None:
    def series(digest: str) -> Series:
        stages = [SimpleNamespace(number=n, digest=digest.format(n)) for n in range(1, 10)]
        return cast("Series", SimpleNamespace(stages=stages))

    assert list(stale(stored, series("{:040x}"))) == []
    (fault,) = stale(stored, series("other"))
    assert (
        "stages 1, 2, 3, 4, 5, 6, 7, 8, 9 are not" in fault
        and "orchestrate run --patchset core-only" in fault
    )


def test_stored_runs_stay_small_and_what_texts_show_is_there(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(root / "results", tmp_path / "results")
    (tmp_path / "README.md").write_text(
        "![a](results/reference-x/plots/boots.png) [b](results/reference-x/plots/gone.png)\n"
    )
    assert list(missing_files(tmp_path)) == ["README.md: results/reference-x/plots/gone.png does not exist"]
    assert list(too_large(Stored(tmp_path))) == []
    monkeypatch.setattr(figures, "MOST_BYTES", 1000)
    assert len(list(too_large(Stored(tmp_path)))) == 1


def test_the_same_run_is_kept_as_the_same_bytes(root: Path, tmp_path: Path) -> None:
    run = next((root / "elsewhere").iterdir())
    for name in ("one", "two"):
        keep(run, tmp_path / name, ["boots"])
    sizes = [
        {
            str(p.relative_to(tmp_path / name)): p.read_bytes()
            for p in (tmp_path / name).rglob("*")
            if p.is_file()
        }
        for name in ("one", "two")
    ]
    assert sizes[0] == sizes[1]


def test_every_block_of_the_series_names_a_patch_with_a_measured_part() -> None:
    import tomllib

    for path in figures.ROOT.glob("kernel_patches/*/figures.toml"):
        for block in tomllib.loads(path.read_text(encoding="utf-8"))["block"]:
            text = (path.parent / block["patch"]).read_text(encoding="utf-8")
            assert "\nMedians of " in text.partition("\n---\n")[0]


def test_a_figure_that_is_another_one_fails_the_check(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(root / "results", tmp_path / "results")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- figure: x chunk/survivors.total core-only@256 -->99<!-- end -->\n")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    stages = [SimpleNamespace(number=n, digest=f"{n:040x}") for n in range(1, 10)]
    monkeypatch.setattr(figures, "load_series", lambda _: SimpleNamespace(stages=stages))
    assert figures.main(["--check"]) == 1
    assert "README.md: its figures are not those" in capsys.readouterr().out
    assert figures.main([]) == 0 and ">107<" in readme.read_text()
    assert figures.main(["--check"]) == 0
