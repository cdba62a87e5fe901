# SPDX-License-Identifier: GPL-2.0-only
"""Which unit tests are ``thorough``, with a gate of their own, and which are ``fast``, for the inner loop."""

from __future__ import annotations

import pytest

#: They simulate or search at length: seconds of CPU time each. A name covers all its parameters.
THOROUGH = frozenset(
    (
        "test_a_mistake_breaks_what_always_holds",
        "test_a_change_as_large_as_the_margin_is_seldom_equivalent",
        "test_a_third_of_the_boots_is_saved_where_the_clock_is_steady_and_no_decision_is_lost",
        "test_any_flake_rate_leads_to_an_answer_that_was_verified",
        "test_covers_the_truth_as_often_as_it_says",
        "test_equal_kernels_differ_no_more_often_than_stated",
        "test_false_positives_of_a_family_are_at_most_nominal",
        "test_a_shift_of_one_per_cent_is_seen_at_the_spread_of_instruction_counts",
        "test_that_one_boot_in_ten_is_much_slower_does_not_hide_it_for_long",
        "test_the_invariants_hold_along_any_trace",
        "test_the_invariants_hold_along_long_traces",
        "test_the_stated_confidence_holds",
        "test_the_stated_confidence_holds_below_the_rate_that_was_asked_for",
        "test_traces_are_dense_in_interesting_states",
        "test_what_always_holds",
        "test_what_survives_is_judged_in_the_documentation",
    )
)
#: Files of which every test takes milliseconds.
FAST = frozenset(
    f"test_{name}.py"
    for name in (
        "accelerator", "admission", "build_log", "cache", "check_run", "config", "console", "counters", "derived",
        "differential", "elf", "events", "experiment", "host", "image", "ktap", "layout", "mistakes", "model", "oops",
        "run_store", "schema", "series", "shrinking", "topology", "trace", "trait", "workload",
    )
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if getattr(item, "originalname", item.name) in THOROUGH:
            item.add_marker(pytest.mark.thorough)
        elif item.path.name in FAST:
            item.add_marker(pytest.mark.fast)
