# SPDX-License-Identifier: GPL-2.0-only
"""Random traces, and invariants of the model along them."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.model import trace as tr
from orchestrator.model.generator import PROFILES, first_settings, follow, generate
from orchestrator.model.memory import STAGES, Model
from orchestrator.model.trace import format_trace, parse

BLOCKS = 6


@pytest.mark.parametrize("profile", PROFILES)
def test_a_seed_gives_the_same_trace_and_another_one_another(profile: str) -> None:
    assert generate(5, 60, profile) == generate(5, 60, profile)
    assert generate(5, 60, profile) != generate(6, 60, profile)


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_generated_can_be_read(profile: str) -> None:
    trace = generate(3, 200, profile, patchset="core-only", nodes=2)
    assert parse(format_trace(trace)) == trace
    assert len(trace.operations) == 200
    assert (trace.seed, trace.patchset) == (3, "core-only")


def test_there_is_no_such_profile() -> None:
    with pytest.raises(ValueError, match="unknown profile `forks`; the profiles are mixed"):
        generate(1, 1, "forks")


@pytest.mark.parametrize("profile", PROFILES)
def test_traces_are_dense_in_interesting_states(profile: str) -> None:
    seen: Counter[str] = Counter()
    for seed in range(20):
        # The core alone: later stages leave less to khugepaged.
        model = Model(STAGES[:9], {"promotion_threshold": "64", "enabled": "always"}, BLOCKS)
        operations = follow(random.Random(seed), model, profile)
        for _ in range(200):
            next(operations)
        seen.update({name: model.counter(name) for name in model.counter_names})
    for counter in ("alloc", "released", "copy", "collapse", "dump"):
        assert seen[f"thp_res_{counter}"] >= 4, counter
    assert seen["thp_res_alloc"] >= 200
    for counter in ("thp_split_pmd", "thp_deferred_split_page", "thp_scan_exceed_none_pte"):
        assert seen[counter] >= 20, counter


def test_traces_start_from_and_set_every_knob() -> None:
    starts: Counter[tuple[str, str]] = Counter()
    sets: Counter[str] = Counter()
    for seed in range(60):
        trace = generate(seed, 300, "khugepaged")
        starts.update(trace.settings.items())
        sets.update(each.knob for each in trace.operations if isinstance(each, tr.Set))
    # The others start from "madvise", without reservations.
    assert 45 <= starts["enabled", "always"] <= 59
    assert {knob for knob, _ in starts} >= {
        "promotion_threshold",
        "defrag",
        "max_ptes_swap",
        "hugepages-64kB",
    }
    assert set(sets) == {
        "promotion_threshold", "enabled", "use_zero_page", "max_ptes_none", "max_ptes_shared", "max_ptes_swap",
        "defrag", "hugepages-16kB", "hugepages-64kB", "hugepages-128kB", "hugepages-1024kB",
    }  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    chance=st.randoms(use_true_random=False),
    profile=st.sampled_from(sorted(PROFILES)),
    stages=st.integers(0, len(STAGES)),
)
def test_the_invariants_hold_along_any_trace(chance: random.Random, profile: str, stages: int) -> None:
    chosen = STAGES[:stages]
    model = Model(chosen, first_settings(chance, chosen), BLOCKS, nodes=2)
    operations = follow(chance, model, profile)
    for _ in range(40):
        before = set(model.alive)
        operation = next(operations)
        assert model.violations() == [], operation
        if "threshold-knob" not in chosen:
            assert not model.counter("nr_thp_reserved")
        if isinstance(operation, tr.Fork):
            assert operation.child not in before
            assert not model.process(operation.child).reservations
    for name in model.alive:
        model.step(tr.Exit(name))
    assert model.counter("nr_thp_reserved") == 0
    assert model.counter("nr_anon_transparent_hugepages") == 0


@pytest.mark.parametrize("stages", range(len(STAGES) + 1))
def test_the_invariants_hold_along_long_traces(stages: int) -> None:
    chosen = STAGES[:stages]
    for profile in PROFILES:
        chance = random.Random(f"{stages}{profile}")
        model = Model(chosen, first_settings(chance, chosen), BLOCKS, nodes=2)
        operations = follow(chance, model, profile)
        for step in range(300):
            operation = next(operations)
            if step % 10 == 0:
                assert model.violations() == [], operation
