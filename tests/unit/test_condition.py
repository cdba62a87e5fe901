# SPDX-License-Identifier: GPL-2.0-only
"""What a comparison says of the conditions that its runs do not share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from records import MANIFEST
from synthetic_run import Synthetic

from orchestrator.analysis.changelog import changelog_text
from orchestrator.analysis.comparison import compare, compare_runs
from orchestrator.analysis.conclusion import conclusion
from orchestrator.analysis.condition import differences, mixed, notes_on_bases
from orchestrator.analysis.statistics import Verdict
from orchestrator.analysis.table import to_text
from orchestrator.store.manifest import (
    AcceleratorRecord,
    BaseRecord,
    CalibrationRecord,
    Code,
    OtherKernelRecord,
    SourceRecord,
    VariantRecord,
)
from orchestrator.store.run import Run

QUIET = Synthetic(repeat=1, effects={}, histograms=False, samples=False)
OTHER = BaseRecord(description="linux-source-6.12 6.12.118-1", commit="2" * 40)
UNCHECKED = SourceRecord(description="linux-source-6.12 6.12.119-1", checked=False)
#: A run that was measured before the code, the CPU model and QEMU were recorded.
OLD = {
    "accelerator": AcceleratorRecord(name="icount", clock="insns", reason=""),
    "code": Code(version="0.0"),
}


def made_up(name: str, changes: dict[str, Any]) -> Run:
    """A run that has a manifest and nothing else."""
    return Run(Path(name), replace(QUIET, changes=changes).manifest())


def on_base(name: str, **source: Any) -> Run:
    return made_up(name, {"source": SourceRecord(**source)})


def with_variants(change: Callable[[VariantRecord], VariantRecord]) -> dict[str, Any]:
    return {"variants": tuple(change(variant) for variant in QUIET.manifest().variants)}


def loud(*runs: Run) -> list[str]:
    return [caution for caution in differences(runs).cautions if "base kernels differ" in caution]


def test_runs_on_different_point_releases_are_marked() -> None:
    one = on_base("one", description="linux-source-6.12 6.12.117-1~deb12u1", commit="1" * 40)
    two = on_base("two", description="linux-source-6.12 6.12.118-1", commit="2" * 40)
    (note,) = loud(one, two)
    for each in ("6.12.117-1~deb12u1", "6.12.118-1", one.name, two.name):
        assert each in note


def test_the_same_files_are_the_same_base() -> None:
    one = on_base("one", description="linux-source-6.12 6.12.117-1", commit="1" * 40)
    two = on_base("two", description="git linux v6.12.117", commit="1" * 40)
    assert not loud(one, two)
    assert not loud(one)


def test_runs_that_did_not_come_to_import_are_told_apart_by_their_version() -> None:
    one = on_base("one", description="linux-source-6.12 6.12.117-1")
    two = on_base("two", description="linux-source-6.12 6.12.118-1")
    assert loud(one, two)


def test_variants_of_one_run_on_different_bases_are_marked() -> None:
    first, *between, last = QUIET.manifest().variants
    last = replace(last, base=OTHER)
    run = made_up("mixed", {"variants": (first, *between, last)})
    (note,) = loud(run)
    assert "6.12.118-1" in note and last.name in note and first.name in note


@pytest.mark.parametrize("own", [{"source": "linux#topic"}, {"kernel": "/tmp/bzImage"}])
def test_a_variant_that_is_to_have_another_base_is_not_marked(own: dict[str, str]) -> None:
    *others, last = QUIET.manifest().variants
    other = OtherKernelRecord(patchset="baseline", **own)
    assert not loud(made_up("two", {"variants": (*others, replace(last, base=OTHER, other=other))}))


def test_an_unchecked_base_and_merged_stages_are_noted() -> None:
    merged = with_variants(lambda variant: replace(variant, merged=(4, 9)))
    notes = notes_on_bases([made_up("new", {**merged, "source": UNCHECKED})])
    assert any("not checked on the base linux-source-6.12 6.12.119-1" in note for note in notes)
    assert any("merged three-way" in note and "stages 4, 9" in note for note in notes)


def test_the_changelog_says_what_is_unusual_of_the_base(tmp_path: Path) -> None:
    *others, last = QUIET.manifest().variants
    variants = (*(replace(each, merged=(4,)) for each in others), replace(last, merged=(4,), base=OTHER))
    run = replace(QUIET, changes={"variants": variants, "source": UNCHECKED}).write(tmp_path, "new")
    text = " ".join(changelog_text(run, compare(run)).split())
    assert "Caution: the base kernels differ" in text
    assert "the series is not checked on the base linux-source-6.12 6.12.119-1" in text
    assert "merged three-way onto linux-source-6.12 6.12.119-1: stages 4" in text


def accelerated(**changes: Any) -> dict[str, Any]:
    return {"accelerator": replace(MANIFEST.accelerator, **changes)}


@pytest.mark.parametrize(
    ("first", "second", "cautions", "notes"),
    [
        ({}, {}, [], []),
        (
            accelerated(qemu="7.2.1"),
            accelerated(qemu="10.0.0"),
            ["the QEMU versions differ: 7.2.1 in {0}; 10.0.0 in {1}."],
            ["the QEMU binaries differ"],
        ),
        # Within a major version QEMU counts alike, but it is another program.
        (
            accelerated(qemu="7.2.1"),
            accelerated(qemu="7.2.22"),
            [],
            [
                (
                    "the QEMU binaries differ: 7.2.1, SHA-256 000000000000 in {0}; "
                    "7.2.22, SHA-256 000000000000 in {1}."
                )
            ],
        ),
        (
            {},
            accelerated(qemu_digest="f" * 64),
            [],
            [
                (
                    "the QEMU binaries differ: 7.2.22, SHA-256 000000000000 in {0}; "
                    "7.2.22, SHA-256 ffffffffffff in {1}."
                )
            ],
        ),
        (
            {},
            accelerated(cpu="max,-erms"),
            ["the CPU models of the guests differ: max in {0}; max,-erms in {1}."],
            [],
        ),
        (
            {"accelerator": AcceleratorRecord(name="kvm", clock="ns", reason="", cpu="host")},
            {
                "accelerator": AcceleratorRecord(name="kvm", clock="ns", reason="", cpu="host"),
                "host": replace(MANIFEST.host, cpu="Another CPU"),
            },
            ["the CPU models of the guests differ: host, Synthetic CPU in {0}; host, Another CPU in {1}."],
            [],
        ),
        (
            {},
            {"code": Code(version="0.0", checkout="abc-dirty")},
            ["the versions of orchestrate differ: 0.0 (synthetic) in {0}; 0.0 (abc-dirty) in {1}."],
            [],
        ),
        (
            {},
            with_variants(
                lambda variant: replace(
                    variant, kernel=variant.kernel and replace(variant.kernel, compiler="gcc 14.1.0")
                )
            ),
            ["the compilers differ: gcc 12.2.0 in {0}; gcc 14.1.0 in {1}."],
            [],
        ),
        (
            OLD,
            {},
            [
                "the CPU models of the guests differ: not recorded in {0}; max in {1}.",
                "the QEMU versions differ: not recorded in {0}; 7.2.22 in {1}.",
                "the versions of orchestrate differ: 0.0 (commit not recorded) in {0}; 0.0 (synthetic) in {1}.",
            ],
            [],
        ),
        (OLD, OLD, [], []),
    ],
)
def test_what_two_runs_do_not_share_is_named(
    first: dict[str, Any], second: dict[str, Any], cautions: list[str], notes: list[str]
) -> None:
    runs = [made_up(name, changes) for name, changes in (("first", first), ("second", second))]
    found = differences(runs)
    for sentences, expected in ((found.cautions, cautions), (found.notes, notes)):
        assert len(sentences) == len(expected)
        for sentence, words in zip(sentences, expected, strict=True):
            assert sentence.startswith(words.format("first", "second"))


def test_cautions_stand_before_the_figures_and_notes_behind(tmp_path: Path) -> None:
    one = QUIET.write(tmp_path, "one")
    changes = accelerated(cpu="max,-erms", qemu_digest="f" * 64)
    comparison = compare_runs(one, replace(QUIET, changes=changes).write(tmp_path, "two"))
    caution, refusal = comparison.cautions
    assert refusal.startswith("NO VERDICT is given")
    shown = " ".join(to_text(comparison).split())
    assert shown.startswith(f"CAUTION: {caution}")
    (note,) = [note for note in comparison.notes if "QEMU binaries differ" in note]
    assert f"note: {note}" in shown


@pytest.mark.parametrize(
    "changes",
    [
        accelerated(cpu="max,-erms"),
        accelerated(qemu="10.0.0"),
        {"calibration": CalibrationRecord(sentence="X", cpu="Y")},
    ],
)
def test_runs_by_two_clocks_are_shown_and_not_judged_unless_asked(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    calibrated = {"calibration": CalibrationRecord(sentence="X", cpu="X")}
    synthetic = Synthetic(repeat=6, samples=False, histograms=False, changes=calibrated)
    one = synthetic.write(tmp_path, "one")
    other = replace(synthetic, changes={**calibrated, **changes}).write(tmp_path, "two")
    refused = compare_runs(one, other)
    assert {row.verdict for row in refused.rows} == {Verdict.NO_TEST} and not refused.findings
    # The figures are there.
    assert any(row.relative is not None and row.relative > 6 for row in refused.rows)
    variant = refused.compared[-1].name
    assert "no verdict, since the" in conclusion(refused, variant)
    assert "too few repetitions" not in to_text(refused)
    judged = compare_runs(one, other, anyway=True)
    assert {Verdict.IMPROVED, Verdict.REGRESSED} <= {row.verdict for row in judged.rows}
    assert len(judged.cautions) == 1 and judged.findings


def test_a_run_that_other_code_has_finished_says_so() -> None:
    changes = {"finished_by": (Code(version="0.0", checkout="later"),)}
    (caution,) = differences([made_up("run", changes)]).cautions
    assert "versions of orchestrate differ: 0.0 (synthetic) in" in caution and "0.0 (later) in" in caution


def test_a_run_that_was_resumed_with_another_qemu_or_compiler_says_so() -> None:
    older = replace(MANIFEST.accelerator, qemu="2.5.0")
    variants = with_variants(
        lambda variant: replace(
            variant,
            earlier_kernels=(replace(variant.kernel, compiler="gcc 4.9.0"),) if variant.kernel else (),
        )
    )
    run = made_up("run", {"earlier_accelerators": (older,), **variants})
    sentences = mixed(run)
    assert [sentence.partition(":")[0] for sentence in sentences] == ["CAUTION", "CAUTION", "note"]
    for sentence, what in zip(sentences, ("compilers", "QEMU versions", "QEMU binaries"), strict=True):
        assert f"the {what} differ" in sentence and "they changed before the run was resumed." in sentence
    assert "QEMU versions" in differences([run]).clocks
    assert mixed(made_up("run", {})) == []
