# SPDX-License-Identifier: GPL-2.0-only
"""Which unit tests are ``thorough``, with a gate of their own, and which are ``fast``, for the inner loop."""

from __future__ import annotations

from pathlib import Path

import pytest

#: They simulate or search at length: seconds of CPU time each. A name covers all its parameters.
THOROUGH = frozenset(
    (
        "test_a_mistake_breaks_what_always_holds",
        "test_a_change_as_large_as_the_margin_is_seldom_equivalent",
        "test_a_mistake_is_noticed_and_documented",
        "test_a_third_of_the_boots_is_saved_where_the_clock_is_steady_and_no_decision_is_lost",
        "test_any_flake_rate_leads_to_an_answer_that_was_verified",
        "test_equal_kernels_differ_no_more_often_than_stated",
        "test_the_file_without_a_change_agrees_with_every_recorded_trace",
        "test_the_invariants_hold_along_any_trace",
        "test_the_invariants_hold_along_long_traces",
        "test_the_same_run_gives_the_same_bytes",
        "test_the_stated_confidence_holds",
        "test_the_stated_confidence_holds_below_the_rate_that_was_asked_for",
        "test_traces_are_dense_in_interesting_states",
        "test_traces_start_from_and_set_every_knob",
        "test_what_always_holds",
        "test_what_survives_is_judged_in_the_documentation",
    )
)
#: The same for whole files: their tests compile kernel trees.
THOROUGH_FILES = frozenset(("test_series_verify.py",))
#: Files of which every test takes milliseconds.
FAST = frozenset(
    f"test_{name}.py"
    for name in (
        "accelerator", "admission", "build_log", "cache", "check_run", "console", "counters", "derived", "differential",
        "document", "elf", "events", "experiment", "ktap", "mistakes", "model", "oops", "run_store", "schema", "series",
        "shrinking", "topology", "trace", "trait", "workload",
    )
)  # fmt: skip


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m fast`` the others are not even imported, which would take longer than the tests."""
    is_other = collection_path.name.startswith("test_") and collection_path.name not in FAST
    return True if config.getoption("markexpr") == "fast" and collection_path.is_file() and is_other else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if getattr(item, "originalname", item.name) in THOROUGH or item.path.name in THOROUGH_FILES:
            item.add_marker(pytest.mark.thorough)
        elif item.path.name in FAST:
            item.add_marker(pytest.mark.fast)
