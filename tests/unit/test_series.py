# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fake_tree import SERIES, write_series
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import UserError
from orchestrator.kernel.series import load_series

ROOT = Path(__file__).resolve().parents[2]


def numbers(directory: Path, patchset: str) -> list[int]:
    return [stage.number for stage in load_series(directory).select(patchset)]


def test_groups_are_cumulative(tmp_path: Path) -> None:
    write_series(tmp_path)
    assert numbers(tmp_path, "baseline") == []
    assert numbers(tmp_path, "core-only") == [1, 2]
    assert numbers(tmp_path, "docs") == numbers(tmp_path, "full") == [1, 2, 3]
    assert numbers(tmp_path, "core-only:1") == numbers(tmp_path, "stage-1") == [1]


@pytest.mark.parametrize(
    "patchset", ["core-onyl", "core-only:3", "core-only:0", "stage-4", "", "CORE-ONLY", "first"]
)
def test_an_unknown_patchset_is_refused(tmp_path: Path, patchset: str) -> None:
    series = load_series(write_series(tmp_path))
    with pytest.raises(UserError):
        series.select(patchset)


def test_a_knob_knows_its_stage(tmp_path: Path) -> None:
    (knob,) = load_series(write_series(tmp_path)).knobs
    assert (knob.name, knob.stage, knob.minimum, knob.maximum) == ("promotion_threshold", 1, 1, 512)


def test_a_default_may_change_at_a_later_stage(tmp_path: Path) -> None:
    write_series(tmp_path)
    toml = tmp_path / "series.toml"
    text = toml.read_text()
    last = text.rindex("counters = []")
    toml.write_text(text[:last] + "defaults = { promotion_threshold = 256 }\n" + text[last:])
    series = load_series(tmp_path)
    (knob,) = series.knobs
    assert series.default_of(knob, series.stages[:2]) == 1
    assert series.default_of(knob, series.stages) == 256
    for wrong, sentence in (
        ("513", "must be between its minimum and maximum"),
        ("true", "must be a whole number, not true"),
        ('"many"', "must be a whole number, not 'many'"),
    ):
        toml.write_text(text[:last] + f"defaults = {{ promotion_threshold = {wrong} }}\n" + text[last:])
        with pytest.raises(UserError, match=sentence):
            load_series(tmp_path)


def test_the_digest_is_of_the_change_and_not_of_its_changelog(tmp_path: Path) -> None:
    patch = write_series(tmp_path) / "6.12" / "0001.patch"
    change = "\ndiff --git a/mm/x.c b/mm/x.c\n--- a/mm/x.c\n+++ b/mm/x.c\n@@ -1 +1 @@\n-1\n+2\n"
    patch.write_text(patch.read_text() + change)
    before = load_series(tmp_path).stages[0]
    patch.write_text(patch.read_text().replace("Because.", "Why not."))
    reworded = load_series(tmp_path).stages[0]
    assert reworded.digest == before.digest and reworded.text_digest != before.text_digest
    patch.write_text(patch.read_text().replace("+2", "+3"))
    assert load_series(tmp_path).stages[0].digest != before.digest


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("schema = 2", "schema = 1", "schema 1"),
        ("schema = 2", "schema = ", "not valid TOML"),
        ('name = "second"', 'name = "first"', "two stages have the name first"),
        ("number = 2", "number = 3", "without gaps"),
        ('patch = "0002.patch"', 'patch = "0009.patch"', "does not exist"),
        ('group = "docs"', 'group = "shrinker"', "shrinker"),
        ('knobs = ["promotion_threshold"]', "knobs = []", "no stage adds it"),
        (
            'knobs = ["promotion_threshold"]',
            'knobs = ["promotion_threshold", "other"]',
            "no .*knob.* for it",
        ),
        ("default = 1", "default = 0", "between minimum and maximum"),
        ('title = "mm: change it again"\n', "", "stage 2: title: this key is missing"),
        ('title = "mm: change it again"\n', 'titel = "x"\n', "titel: unknown key; did you mean title?"),
        ("counters = []", "counters = [1]", "stage 2: counters 1: must be a string, not 1"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in SERIES
    write_series(tmp_path, SERIES.replace(old, new, 1))
    with pytest.raises(UserError, match=sentence) as caught:
        load_series(tmp_path)
    assert "TOML" in sentence or re.match(r".*/series\.toml:\d+: ", str(caught.value))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "schema: this key is missing"),
        ("schema = 2\nstage = 1", "stage: must be a list"),
        (
            SERIES.replace('groups = ["core-only", "docs"]', 'groups = ["core-only", "full"]'),
            "the name full is reserved",
        ),
        (
            SERIES.replace('groups = ["core-only", "docs"]', 'groups = ["docs", "docs"]'),
            "docs is listed twice",
        ),
        (SERIES.replace('groups = ["core-only", "docs"]', 'groups = "docs"'), "groups: must be a list"),
        ('stage = ["first"]\n' + SERIES.partition("[[stage]]")[0], "stage 1: must be a table"),
        (SERIES.replace("number = 1", "number = true"), "stage 1: number: must be a whole number, not true"),
        (
            SERIES.replace("[[base]]", '[[base]]\nversion = "6.12.117-1"\n\n[[base]]'),
            "two .*base.* the version",
        ),
        (SERIES.replace("[[base]]", "[base]"), "base: must be a list"),
        (
            SERIES.replace("[[base]]", 'reference = "none.tar.xz"\n\n[[base]]'),
            "reference archive .* does not exist",
        ),
        (
            SERIES.replace("knobs = []", "variants = [1]\nknobs = []", 1),
            "variants 1: must be a string, not 1",
        ),
        (SERIES + SERIES[SERIES.index("[[knob]]") :], "two .*knob.* have the name"),
        (SERIES.replace("minimum = 1", 'minimum = "1"'), "knob 1: minimum: must be a whole number, not '1'"),
        (SERIES.replace("counters =", "counter ="), "did you mean counters"),
    ],
)
def test_what_is_not_a_series_is_refused_with_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    write_series(tmp_path, text)
    with pytest.raises(UserError, match=sentence) as caught:
        load_series(tmp_path)
    assert "series.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_name_that_is_nearly_right_gets_a_suggestion(tmp_path: Path) -> None:
    series = load_series(write_series(tmp_path))
    for patchset in ("core-onyl", "core-onyl:2"):
        with pytest.raises(UserError, match="did you mean core-only"):
            series.select(patchset)


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text('ab-"\n', max_size=4),
    st.lists(st.integers(), max_size=2),
)


@settings(deadline=None)  # a busy host takes its time
@given(st.sampled_from(sorted({line for line in SERIES.splitlines() if " = " in line})), _VALUES)
def test_any_value_anywhere_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, line: str, value: object
) -> None:
    directory = tmp_path_factory.mktemp("series")
    key = line.partition(" = ")[0]
    new = "" if value is None else f"{key} = {json.dumps(value)}"
    write_series(directory, SERIES.replace(line, new, 1))
    try:
        series = load_series(directory)
    except UserError:
        return
    assert [stage.number for stage in series.select("full")] == [1, 2, 3]


@settings(deadline=None)  # a busy host takes its time
@given(
    st.text(max_size=30)
    | st.from_regex(r"(core-only|docs|full|stage|baseline)[:-][0-9]{1,5}", fullmatch=True)
)
def test_any_patchset_is_a_prefix_or_refused(tmp_path_factory: pytest.TempPathFactory, patchset: str) -> None:
    series = load_series(write_series(tmp_path_factory.mktemp("series")))
    try:
        chosen = series.select(patchset)
    except UserError as error:
        assert "core-only" in str(error) or "choose a number from 1 to" in str(error)
        return
    assert chosen == series.stages[: len(chosen)]


def test_groups_may_not_be_interleaved(tmp_path: Path) -> None:
    text = SERIES.replace('group = "core-only"', 'group = "docs"', 1)
    with pytest.raises(UserError, match="in the order of their groups"):
        load_series(write_series(tmp_path, text))


def test_the_projects_own_series_is_read() -> None:
    series = load_series(ROOT / "kernel_patches")
    assert series.groups[0] == "core-only"
    for stage in series.stages:
        subject = next(
            line for line in stage.patch.read_text().splitlines() if line.startswith("Subject: ")
        ).removeprefix("Subject: [PATCH] ")
        assert stage.title.startswith(subject), stage


def test_a_kernel_has_the_neutral_values_of_the_knobs_of_its_stages() -> None:
    series = load_series(ROOT / "kernel_patches")
    path = "/sys/kernel/mm/transparent_hugepage/promotion_threshold"
    with_knob = next(stage for stage in series.stages if "promotion_threshold" in stage.knobs)
    assert series.neutral_values(series.stages[: with_knob.number]) == {path: 1}
    assert series.neutral_values(series.stages[: with_knob.number - 1]) == {}
    assert series.neutral_values(()) == {}
