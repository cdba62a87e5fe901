# SPDX-License-Identifier: GPL-2.0-only
"""Which unit tests are ``thorough``, which are ``fast``, and which of them count for the gate ``coverage``."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from coverage import Coverage

#: They simulate, search or draw at length: about a second of CPU time each, or more. A name covers all its parameters.
THOROUGH = frozenset(
    (
        "test_a_change_as_large_as_the_margin_is_seldom_equivalent",
        "test_a_fault_of_three_boots_in_ten_is_found",
        "test_a_mistake_breaks_what_always_holds",
        "test_a_report_that_is_cut_off_still_counts",
        "test_a_run_that_was_interrupted_anywhere_is_resumed_to_the_same_end",
        "test_a_stored_run_fits",
        "test_a_third_of_the_boots_is_saved_where_the_clock_is_steady_and_no_decision_is_lost",
        "test_any_flake_rate_leads_to_an_answer_that_was_verified",
        "test_any_text_can_be_read",
        "test_equal_kernels_differ_no_more_often_than_stated",
        "test_every_plot_is_there_as_png_and_svg",
        "test_false_positives_of_a_family_are_at_most_nominal",
        "test_figures_stand_with_their_own_variant_and_metric",
        "test_no_number_is_cut_or_lost",
        "test_no_word_is_broken_and_none_is_lost",
        "test_plots_leave_what_is_not_a_file_alone",
        "test_pngs_are_wide_enough_and_not_empty",
        "test_stages_that_cannot_be_tested_widen_the_answer_by_exactly_themselves",
        "test_standard_output_gets_the_report_and_nothing_else",
        "test_svgs_are_well_formed_and_named",
        "test_the_callers_environment_changes_nothing",
        "test_the_file_without_a_change_agrees_with_every_recorded_trace",
        "test_the_invariants_hold_along_any_trace",
        "test_the_invariants_hold_along_long_traces",
        "test_the_row_is_one_of_a_stored_run",
        "test_the_same_run_gives_the_same_bytes",
        "test_the_stated_confidence_holds",
        "test_the_stated_confidence_holds_below_the_rate_that_was_asked_for",
        "test_traces_are_dense_in_interesting_states",
        "test_traces_start_from_and_set_every_knob",
        "test_what_always_holds",
        "test_what_survives_is_judged_in_the_documentation",
        "test_what_user_space_writes_in_between_changes_nothing",
        "test_where_boots_do_not_err_the_answer_is_right",
    )
)
#: The same for whole files: their tests compile kernel trees, or replay what real kernels answered.
THOROUGH_FILES = frozenset(("test_mutants.py", "test_series_verify.py"))
#: Files of which every test takes milliseconds.
FAST = frozenset(
    f"test_{name}.py"
    for name in (
        "accelerator", "admission", "build_log", "cache", "check_run", "console", "counters", "derived", "differential",
        "document", "elf", "events", "experiment", "ktap", "mistakes", "model", "oops", "run_store", "schema", "series",
        "shrinking", "topology", "trace", "trait", "workload",
    )
)  # fmt: skip
#: Packages that the gate `coverage` holds to a floor; `source_pkgs` of pyproject.toml.
_COUNTED = re.compile(r"\borchestrator\.(execution|machine|guest)\b")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What ``-m`` deselects is not even imported, which would take longer than the tests."""
    name, selected = collection_path.name, config.getoption("markexpr")
    if not collection_path.is_file() or not name.startswith("test_"):
        return None
    is_other = (
        name not in FAST if selected == "fast" else name in THOROUGH_FILES and selected == "not thorough"
    )
    return True if is_other else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if getattr(item, "originalname", item.name) in THOROUGH or item.path.name in THOROUGH_FILES:
            item.add_marker(pytest.mark.thorough)
        elif item.path.name in FAST:
            item.add_marker(pytest.mark.fast)


@cache
def counts(path: Path) -> bool:
    """Whether a file of tests or doctests is about a package that the gate `coverage` holds to a floor."""
    return _COUNTED.search(path.read_text(encoding="utf-8")) is not None


class Counting:
    """Pauses coverage.py for tests of other packages: its tracer would see all their lines, and take as long again."""

    def __init__(self) -> None:
        # Only the gate `unit` counts, and the tests with the lowest versions do without coverage.py.
        self._coverage: Coverage | None = None
        if "COVERAGE_RUN" in os.environ:
            import coverage

            self._coverage = coverage.Coverage.current()
        self._counts = True
        #: What coverage.py starts itself by in other processes.
        self._start = {name: os.environ[name] for name in os.environ if name.startswith("COVERAGE_PROCESS")}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        if self._coverage is not None and counts(item.path) != self._counts:
            self._counts = not self._counts
            if self._counts:
                os.environ.update(self._start)
                self._coverage.start()
            else:
                self._coverage.stop()
                for name in self._start:
                    del os.environ[name]
        return (yield)


def pytest_configure(config: pytest.Config) -> None:
    # Not as a hook of this file, which would not see the doctests.
    config.pluginmanager.register(Counting())
