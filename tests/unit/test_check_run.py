# SPDX-License-Identifier: GPL-2.0-only
"""From which stage on a kernel and its model differ, and what is printed of a check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cache import Cache
from orchestrator.cli.application import status_of
from orchestrator.cli.progress import PlainProgress
from orchestrator.errors import UserError
from orchestrator.events import Events
from orchestrator.execution.check import run as check_run
from orchestrator.execution.check.differential import (
    Answers,
    Checked,
    Difference,
    Divergence,
    TraceComparison,
)
from orchestrator.execution.check.reference import memory_nodes, model_of, pinned
from orchestrator.execution.check.report import as_text
from orchestrator.execution.check.request import CheckRequest
from orchestrator.execution.check.summary import CheckSummary, FoundDivergence
from orchestrator.execution.durations import Durations
from orchestrator.kernel.series import load_series
from orchestrator.machine.topology import Topology
from orchestrator.model import generator
from orchestrator.model.generator import generate
from orchestrator.model.trace import Bind, Trace, parse

SERIES = load_series(Path(__file__).resolve().parents[2] / "kernel_patches")
TOPOLOGY = Topology.parse("2x512M/1")
TRACE = parse("trace 1\np0 map 0:0 512 huge\np0 write 0:3 1 7\n")


def test_a_pinned_trace_starts_alike_at_every_stage() -> None:
    whole = model_of("full", SERIES, TOPOLOGY)
    before = model_of("stage-16", SERIES, TOPOLOGY)
    knob = "promotion_threshold"
    assert (whole(TRACE).settings[knob], before(TRACE).settings[knob]) == ("256", "1")
    assert before(pinned(TRACE, whole)).settings == whole(TRACE).settings


def test_what_a_trace_says_itself_is_kept() -> None:
    trace = replace(TRACE, settings={"promotion_threshold": "64"})
    assert pinned(trace, model_of("full", SERIES, TOPOLOGY)).settings["promotion_threshold"] == "64"


@pytest.mark.parametrize(
    ("diverging", "first"),
    [
        ("2 3", "2"),
        ("3", "3"),
        ("baseline 1 2 3", "baseline"),
        # What comes and goes has its cause in the last stage that it comes with.
        ("1 3", "3"),
        # It was there once and is not any more: no stage is to blame.
        ("1 2", None),
        ("", None),
    ],
)
def test_the_first_stage_is_the_one_from_which_on_all_diverge(diverging: str, first: str | None) -> None:
    divergence = Divergence(0, "p0 map 0:0 512 huge", (Difference("vmstat.thp_res_alloc", 0, 1),))
    found = FoundDivergence("1", divergence, TRACE, Path("1.trace"))
    for stage in ("baseline", "1", "2", "3"):
        found.stages[stage] = divergence if stage in diverging.split() else None
    assert found.first_stage == first


def test_the_summary_says_how_much_of_what_was_compared_can_change() -> None:
    summary = CheckSummary(
        traces=2,
        steps=40,
        run_s=4.0,
        compared=Counter({"errno": 40, "torn": 40, "vmstat.thp_swpout": 40, "blocks.hash": 80}),
        uncompared=Counter({"vmstat.thp_file_alloc": 41}),
        moved={"errno", "blocks.hash"},
    )
    assert summary.moved_share == 0.6
    assert as_text("full", summary).splitlines() == [
        "full: 2 traces, 40 operations compared (10 per second)",
        "200 fields compared, 60% of them of kinds that change in the prediction",
        "never changed (2 kinds): torn, vmstat.thp_swpout",
        "41 fields not compared, as the model does not have them: vmstat.thp_file_alloc",
        "no divergence",
    ]
    assert summary.to_json()["moved_share"] == 0.6


def test_each_trace_is_one_line_with_what_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    divergence = Divergence(1, "p0.t1 write 0:3 1 7", (Difference("vmstat.x", "0", "1"),))

    def check_traces(_guest: object, traces: Sequence[Trace], _model: object, on_checked: Any) -> None:
        for number, trace in enumerate(traces):
            found = divergence if number == 1 else None
            comparison = TraceComparison(found, 2, Counter(), Counter())
            on_checked(Checked(trace, Answers(), comparison, 20.0))

    monkeypatch.setattr(check_run, "check_traces", check_traces)
    monkeypatch.setattr(check_run, "_record", lambda *_: None)
    bench = SimpleNamespace(
        events=Events(PlainProgress()),
        durations=Durations(Cache(tmp_path)),
        accelerator=SimpleNamespace(name="tcg"),
    )
    nothing = SimpleNamespace(completed_cells=frozenset)
    asked = CheckRequest("full", {f"seed-{seed}": TRACE for seed in (1, 2, 3)}, TOPOLOGY)
    arguments: Any = (asked, SimpleNamespace(up=lambda: None), None, bench, nothing, CheckSummary())
    assert [name for name, _ in check_run._run(*arguments)] == ["seed-2"]
    # On a busy host a line follows that says how long the step took.
    assert capsys.readouterr().err.splitlines()[:4] == [
        "check: full: 3 traces, about 15 s (a guess)",
        "[1/3] seed-1 ok 20 s, about 40 s left",
        f"[2/3] seed-2 diverges 20 s: {divergence}, about 20 s left",
        "[3/3] seed-3 ok 20 s",
    ]


def test_random_traces_bind_to_every_node_of_the_guest() -> None:
    nodes = memory_nodes(TOPOLOGY)
    trace = generate(1, 600, nodes=nodes)
    assert {each.node for each in trace.operations if isinstance(each, Bind)} == {0, 1}


def test_a_check_that_compared_nothing_has_no_share() -> None:
    assert CheckSummary().moved_share == 0.0


@pytest.mark.parametrize("words", [["check"], ["bisect", "--until", "diverges"]])
def test_a_seed_is_the_same_trace_in_a_check_and_in_a_bisection(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ORCHESTRATE_ROOT", str(Path(__file__).resolve().parents[2]))
    monkeypatch.setenv("ORCHESTRATE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(tmp_path / "cache"))
    asked: list[tuple[object, ...]] = []

    def generate(seed: int, ops: int, profile: str, patchset: str, nodes: int = 1) -> None:
        asked.append((seed, ops, profile, nodes))
        raise UserError("asked")

    monkeypatch.setattr(generator, "generate", generate)
    status_of(["--quiet", *words, "-p", "full", "--seed", "7", "--topology", "2x512M"])
    assert asked == [(7, 1000, "mixed", 2)]
