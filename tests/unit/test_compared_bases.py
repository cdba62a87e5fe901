# SPDX-License-Identifier: GPL-2.0-only
"""What a comparison says of the kernel sources that its runs are based on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from synthetic_run import Synthetic

from orchestrator.analysis.changelog import changelog_text
from orchestrator.analysis.comparison import Comparison, compare, compare_runs
from orchestrator.analysis.table import to_text
from orchestrator.store.run import Run

QUIET = Synthetic(effects={}, histograms=False)


def on_base(results: Path, name: str, **source: object) -> Run:
    return replace(QUIET, manifest={"source": source}).write(results, name)


def loud(comparison: Comparison) -> list[str]:
    return [caution for caution in comparison.cautions if "base kernels differ" in caution]


def test_runs_on_different_point_releases_are_marked(tmp_path: Path) -> None:
    one = on_base(tmp_path, "one", description="linux-source-6.12 6.12.117-1~deb12u1", commit="1" * 40)
    two = on_base(tmp_path, "two", description="linux-source-6.12 6.12.118-1", commit="2" * 40)
    comparison = compare_runs(one, two)
    (note,) = loud(comparison)
    for each in ("6.12.117-1~deb12u1", "6.12.118-1", one.name, two.name):
        assert each in note
    assert to_text(comparison).startswith("CAUTION: the base kernels differ")


def test_the_same_files_are_the_same_base(tmp_path: Path) -> None:
    one = on_base(tmp_path, "one", description="linux-source-6.12 6.12.117-1", commit="1" * 40)
    two = on_base(tmp_path, "two", description="git linux v6.12.117", commit="1" * 40)
    assert not loud(compare_runs(one, two))
    assert not loud(compare(one))


def test_runs_that_did_not_come_to_import_are_told_apart_by_their_version(tmp_path: Path) -> None:
    one = on_base(tmp_path, "one", description="linux-source-6.12 6.12.117-1")
    two = on_base(tmp_path, "two", description="linux-source-6.12 6.12.118-1")
    assert loud(compare_runs(one, two))


def test_variants_of_one_run_on_different_bases_are_marked(tmp_path: Path) -> None:
    plain = QUIET.write(tmp_path, "plain")
    variants = [dict(variant) for variant in plain.manifest["variants"]]
    variants[-1]["base"] = {"description": "linux-source-6.12 6.12.118-1", "commit": "2" * 40}
    run = replace(QUIET, manifest={"variants": variants}).write(tmp_path, "mixed")
    (note,) = loud(compare(run))
    assert "6.12.118-1" in note and variants[-1]["name"] in note and variants[0]["name"] in note


def test_an_unchecked_base_and_merged_stages_are_noted(tmp_path: Path) -> None:
    plain = QUIET.write(tmp_path, "plain")
    variants = [{**variant, "merged": [4, 9]} for variant in plain.manifest["variants"]]
    source = {"description": "linux-source-6.12 6.12.119-1", "checked": False}
    run = replace(QUIET, manifest={"variants": variants, "source": source}).write(tmp_path, "new")
    notes = compare(run).notes
    assert any("not checked on the base linux-source-6.12 6.12.119-1" in note for note in notes)
    assert any("merged three-way" in note and "stages 4, 9" in note for note in notes)


def test_the_changelog_says_what_is_unusual_of_the_base(tmp_path: Path) -> None:
    plain = QUIET.write(tmp_path, "plain")
    variants = [{**variant, "merged": [4]} for variant in plain.manifest["variants"]]
    variants[-1]["base"] = {"description": "linux-source-6.12 6.12.118-1", "commit": "2" * 40}
    source = {"description": "linux-source-6.12 6.12.119-1", "checked": False}
    run = replace(QUIET, manifest={"variants": variants, "source": source}).write(tmp_path, "new")
    text = " ".join(changelog_text(run, compare(run)).split())
    assert "Caution: the base kernels differ" in text
    assert "the series is not checked on the base linux-source-6.12 6.12.119-1" in text
    assert "merged three-way onto linux-source-6.12 6.12.119-1: stages 4" in text
