# SPDX-License-Identifier: GPL-2.0-only
"""Tables fit: no line is longer than the width, no word is broken, no figure cut or lost."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import Synthetic

from orchestrator.analysis.comparison import Comparison, compare
from orchestrator.analysis.layout import listing, text_of, wrapped
from orchestrator.analysis.table import to_text
from orchestrator.cli.application import status_of
from orchestrator.cli.terminal import Terminal
from orchestrator.execution.correctness.report import as_text
from orchestrator.execution.correctness.suite import SUITES, Found
from orchestrator.execution.correctness.summary import CorrectnessSummary, SuiteResult, Trouble
from orchestrator.execution.verify.answer import CHECKS, CheckResult, StageReport, State
from orchestrator.execution.verify.report import table
from orchestrator.execution.verify.run import VerificationSummary
from orchestrator.guest.ktap import Status, TestResult
from orchestrator.kernel.series import load_series
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import Run

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = (60, 80, 100, 140, 200)
#: Wide enough for every variant beside the others.
UNLIMITED = 10_000
NUMBER = re.compile(r"[+-]?\d[\d.,]*%?")
WORD = st.text("abcxyz0189.%+-", min_size=1, max_size=20)


@pytest.fixture(scope="module", params=["reference-core-only", "reference-stages"])
def stored(request: pytest.FixtureRequest) -> Comparison:
    """A run that was measured; the second has 18 variants."""
    return compare(Run.open(ROOT / "results" / request.param))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_stored_run_fits(stored: Comparison, width: int) -> None:
    lines = to_text(stored, width=width).splitlines()
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_no_word_is_broken_and_none_is_lost(stored: Comparison, width: int) -> None:
    # Brackets and colons differ between the two layouts; the names and figures inside do not.
    def words(text: str) -> set[str]:
        return {word.strip("():,") for word in text.split()}

    assert words(to_text(stored, width=width)) == words(to_text(stored, width=UNLIMITED))


@pytest.mark.parametrize("width", WIDTHS)
def test_no_number_is_cut_or_lost(stored: Comparison, width: int) -> None:
    def numbers(text: str) -> Counter[str]:
        # A variant's name is repeated under each metric where the variants stand below each other.
        for variant in sorted((each.name for each in stored.variants), key=len, reverse=True):
            text = text.replace(variant, "NAME")
        return Counter(NUMBER.findall(text))

    assert numbers(to_text(stored, width=width)) == numbers(to_text(stored, width=UNLIMITED))


def test_figures_stand_with_their_own_variant_and_metric(stored: Comparison) -> None:
    workload = next(iter(stored.workloads))
    section = to_text(stored, width=60).split("\n\n")[1]
    blocks = re.split(r"^(?=\S+ \()", section, flags=re.MULTILINE)
    by_metric = {block.split(" (")[0]: block for block in blocks}
    wide = to_text(stored, width=UNLIMITED).splitlines()
    names = [variant.name for variant in stored.compared]
    checked = 0
    for row in stored.rows_of(workload=workload):
        if row.metric not in by_metric:
            continue
        line = next(line for line in wide if line.startswith(f"{row.metric} "))
        # Value, change and mark of each variant; a variant without a value has "-" alone.
        figures = re.findall(r"(\S+)(?: (\(\S+\)) (\S))?", line.split(maxsplit=2)[2])
        expected = figures[names.index(row.variant)]
        found = re.search(
            rf"^  {re.escape(row.variant)} +(\S+)(?: +(\(\S+\)) (\S))?", by_metric[row.metric], re.MULTILINE
        )
        assert found is not None and tuple(group or "" for group in found.groups()) == expected
        checked += 1
    assert checked > len(names)


def test_long_names_do_not_break_the_table(tmp_path: Path) -> None:
    name = "full@thp_enabled=always,another_long_knob=511,promotion_threshold=512"
    variants = {"baseline": "baseline", "baseline-control": "control", name: "patched"}
    comparison = compare(Synthetic(repeat=2, histograms=False, variants=variants).write(tmp_path))
    for width in WIDTHS:
        text = to_text(comparison, width=width)
        assert max(map(len, text.splitlines())) <= width
        for part in ("full@", "thp_enabled=always,", "another_long_knob=511,", "promotion_threshold=512"):
            assert part in text


@pytest.mark.parametrize(
    "environment", [{"TERM": "dumb"}, {"TERM": None}, {"COLUMNS": "40"}, {"NO_COLOR": "1"}]
)
def test_the_callers_environment_changes_nothing(
    stored: Comparison, environment: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    expected = [to_text(stored, colour=colour, width=80) for colour in (False, True)]
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    assert [to_text(stored, colour=colour, width=80) for colour in (False, True)] == expected


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("results")
    Synthetic(repeat=1, histograms=False).write(directory)
    return directory


@pytest.mark.parametrize(
    "command",
    [
        ["series", "list"],
        ["results", "list"],
        ["results", "show", "latest"],
        ["compare", "latest"],
        ["simulate", "--thresholds", "1,256"],
        ["list", "workloads"],
        ["list", "knobs"],
        ["list", "patchsets"],
        ["list", "configs"],
    ],
)
def test_every_table_of_a_command_fits(
    command: list[str],
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ORCHESTRATE_ROOT", str(ROOT))
    monkeypatch.setenv("ORCHESTRATE_RESULTS", str(results))
    printed = {}
    for columns in (60, 80, 140, UNLIMITED):
        monkeypatch.setattr(Terminal, "width", columns)
        assert status_of(["--quiet", *command]) == 0
        printed[columns] = capsys.readouterr().out
    for width, text in printed.items():
        # The last line of `results show` is a path, to be copied.
        lines = [line for line in text.splitlines() if not line.startswith("run      ")]
        assert max(map(len, lines)) <= width
        assert set(NUMBER.findall(printed[UNLIMITED])) <= set(NUMBER.findall(text))


@pytest.mark.parametrize("width", [60, 80, 200])
def test_tables_of_guests_stages_and_findings_fit(width: int) -> None:
    found = Found(results=[TestResult(f"test {n}", Status.PASSED) for n in range(1234)])
    suites = [
        SuiteResult("sync-promotion", suite, found, Outcome.KERNEL_BUG, run_s=5400)
        for suite in SUITES.values()
    ]
    trouble = Trouble(
        "sync-promotion.stress.1", "a test that has a name of several words fails, as on the baseline"
    )
    tested = as_text(CorrectnessSummary(suites, [trouble], [trouble]), width)
    answers = {check: CheckResult(State.FAILED, "why") for check in CHECKS}
    stages = load_series(ROOT / "kernel_patches").stages
    reports = [StageReport(stage, dict(answers)) for stage in stages]
    verified = table(VerificationSummary(reports).to_json(), width)
    for text in (tested, verified):
        assert max(map(len, text.splitlines())) <= width
    assert tested.count("1234") == len(SUITES) and tested.count("5400") == len(SUITES)
    assert verified.count("FAILED") == len(stages) * len(CHECKS)


def test_the_width_is_the_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Terminal().width == 100
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for columns, expected in ((72, 72), (20, 60), (500, 200)):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert Terminal().width == expected


@settings(deadline=None)  # a busy host is no failure
@given(st.lists(WORD, min_size=1), st.integers(22, 80))
def test_wrapping_keeps_every_word_in_order(words: list[str], width: int) -> None:
    lines = wrapped(" ".join(words), width, "  ")
    assert " ".join(lines).split() == words
    assert all(len(line) <= width for line in lines)


@settings(deadline=None)  # a busy host is no failure
@given(
    st.integers(2, 6).flatmap(lambda n: st.lists(st.lists(WORD, min_size=n, max_size=n), min_size=1)),
    st.integers(60, 200),
    st.booleans(),
)
def test_a_listing_fits_and_keeps_every_cell(rows: list[list[str]], width: int, titled: bool) -> None:
    titles = [f"title {number}" for number in range(len(rows[0]))] if titled else []
    blocks = listing(rows, width, titles)
    assert all(len(line) <= width for block in blocks for line in block)
    for row, block in zip(rows, blocks[-len(rows) :], strict=True):
        assert set(row) <= {word.removesuffix(",") for word in text_of([block]).split()}


def test_a_word_longer_than_the_line_is_left_whole() -> None:
    path = "/home/somebody/" + "directory/" * 10
    assert path in wrapped(f"the log is {path} there", 60)


def test_a_listing_becomes_records_where_it_does_not_fit() -> None:
    rows = [["12 sync-promotion", *(["FAILED"] * 8)]]
    titles = ["stage", *(f"check-{number}" for number in range(8))]
    assert len(listing(rows, 100, titles)) == 2
    (record,) = listing(rows, 60, titles)
    assert record[0] == "stage 12 sync-promotion"
    assert record[1] == "  check-0 FAILED, check-1 FAILED, check-2 FAILED,"


def test_titles_take_several_lines_before_the_table_becomes_records() -> None:
    text = text_of(listing([["1", "2"]], 20, ["what was seen first", "second"]))
    assert text.splitlines() == ["what   second", "was", "seen", "first", "1      2"]
