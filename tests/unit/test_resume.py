# SPDX-License-Identifier: GPL-2.0-only
"""Every kind of run has a run directory, is finished with --resume, is shown again and exported.

Only QEMU, SSH, kernels and images are not real.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from fake_guest import World, install
from records import MANIFEST, manifest, planned
from test_ending import COMMANDS, TRACE

from orchestrator.cli.application import status_of
from orchestrator.errors import UserError
from orchestrator.execution import driver
from orchestrator.execution.check.request import CheckRequest
from orchestrator.execution.correctness.request import CorrectnessRequest
from orchestrator.execution.verify.request import VerificationRequest
from orchestrator.kernel.series import change_digest, load_series
from orchestrator.store.manifest import (
    Code,
    KernelRecord,
    Manifest,
    Role,
    RunKind,
    VariantRecord,
    read_manifest,
)
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import CellRow, Run, RunWriter

SERIES = load_series(Path(__file__).resolve().parents[2] / "kernel_patches")

#: Kind -> the words that choose its command, and its --resume.
WORDS = {
    RunKind.RUN: ["run"],
    RunKind.CHECK: ["check"],
    RunKind.TEST: ["test"],
    RunKind.BISECT: ["bisect"],
    RunKind.VERIFY: ["series", "verify"],
}
LOST = "QEMU killed by a signal"


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str


Act = Callable[..., Said]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(LOST, tmp_path)
    install(made, monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("one.trace").write_text(TRACE)
    return made


@pytest.fixture
def act(world: World, capsys: pytest.CaptureFixture[str]) -> Act:
    def acted(*words: str) -> Said:
        status = status_of(list(words))
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return acted


def only_run(world: World) -> Path:
    (path,) = (world.directory / "results").glob("*/run.json")
    return path.parent


@pytest.mark.parametrize("kind", list(RunKind))
def test_a_run_of_each_kind_is_finished_shown_and_exported(kind: RunKind, world: World, act: Act) -> None:
    command = COMMANDS["verify" if kind is RunKind.VERIFY else kind.value]
    resume = [*WORDS[kind], *(["-j", "1"] if kind is RunKind.RUN else []), "--resume"]
    if (
        kind is RunKind.BISECT
    ):  # a search whose boots are used up does not go on: tests/unit/test_staged_bisection.py
        world.ends = "well"
        assert act(*command).status == 0
    else:
        assert act(*command).status == 1
        world.ends = "well"
        world.ran.clear()
        assert act(*resume, "latest").status == 0
        assert world.ran
    path = only_run(world)
    assert read_manifest(path).kind is kind
    assert set(Run.open(path).cells["outcome"]) == {"ok"}
    # Once more: there is nothing left to do in a guest, and the same is said.
    world.ran.clear()
    again = act(*resume, path.name)
    assert (again.status, world.ran) == (0, [])
    if kind is not RunKind.RUN:
        shown = act("results", "show", "latest")
        body = [line for line in again.out.splitlines() if str(path) not in line]
        assert [line for line in shown.out.splitlines() if str(path) not in line] == body
    exported = act("report", "latest", "--format", "junit")
    assert exported.status == 0, exported.err
    document = ElementTree.parse(path / "junit.xml").getroot()
    assert {case.get("name") for case in document.iter("testcase")} >= set(Run.open(path).cells["cell"])
    if kind is not RunKind.RUN:
        assert act("report", "latest").status == 0
        page = html.unescape((path / "report.html").read_text(encoding="utf-8"))
        assert all(line in page for line in body if line.strip())


def test_a_run_is_finished_by_the_command_of_its_kind(world: World, act: Act) -> None:
    assert act(*COMMANDS["check"]).status == 1
    said = act("run", "--resume", "latest")
    assert said.status == 2
    assert (
        f"is a check, not a measuring run; resume it with: orchestrate check --resume {only_run(world).name}"
        in (" ".join(said.err.split()))
    )


def test_what_finishes_a_run_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunWriter.create(tmp_path, "x", manifest())
    writer.finish()
    codes = [MANIFEST.code, Code(version="0.0", checkout="later")]
    for code in (*codes, codes[1]):
        monkeypatch.setattr(driver, "measuring_code", lambda code=code: code)
        driver.reopen(tmp_path, writer.path.name, RunKind.RUN).finish()
    assert read_manifest(writer.path).finished_by == (codes[1],)


def test_a_check_that_is_finished_counts_what_was_compared_before(world: World, act: Act) -> None:
    Path("two.trace").write_text(TRACE)
    world.ends = "well"
    both = [*COMMANDS["check"], "--trace", "two.trace"]
    assert act(*both).status == 0
    path = only_run(world)
    before = json.loads((path / "check.json").read_text())
    # As if it had been interrupted before the second trace ended.
    for each in (path / "parts").glob("*.2"):
        each.rename(path / "gone")
    assert act("check", "--resume", "latest").status == 0
    after = json.loads((path / "check.json").read_text())
    assert {key: after[key] for key in after if key != "run_s"} == {
        key: before[key] for key in before if key != "run_s"
    }


def test_a_qemu_that_was_replaced_in_between_is_named(world: World, act: Act) -> None:
    Path("two.trace").write_text(TRACE)
    world.ends = "well"
    assert act(*COMMANDS["check"], "--trace", "two.trace").status == 0
    path = only_run(world)
    record = read_manifest(path)
    before = replace(record.accelerator, qemu="2.5.0", qemu_digest="a" * 64)
    (path / "run.json").write_text(replace(record, accelerator=before).to_json())
    for each in (path / "parts").glob("*.2"):
        each.rename(path / "gone")
    resumed = act("check", "--resume", "latest")
    again = read_manifest(path)
    assert (again.accelerator, again.earlier_accelerators) == (record.accelerator, (before,))
    caution = "CAUTION: the QEMU versions differ: 2.5.0 in baseline; "
    for text in (resumed.out, act("results", "show", "latest").out, (path / "check.txt").read_text()):
        assert caution in text and "they changed before the run was resumed" in " ".join(text.split())


def ended(results: Path, *outcomes: Outcome | None, **changes: Any) -> RunWriter:
    """A run that is being written, whose cells ended like this; None has not ended."""
    cells = tuple(planned("patched", repetition=number) for number in range(1, len(outcomes) + 1))
    writer = RunWriter.create(results, "x", manifest(cells=cells, **changes))
    for cell, outcome in zip(cells, outcomes, strict=True):
        if outcome is not None:
            writer.record(CellRow(cell, outcome=outcome, evidence="" if outcome is Outcome.OK else "made up"))
    return writer


@pytest.mark.parametrize(
    ("outcomes", "is_kept", "is_replaced"),
    [
        ((None, None), False, True),
        ((Outcome.LOST, None), False, True),  # it runs again
        ((Outcome.OK, None), True, True),
        ((Outcome.KERNEL_BUG, Outcome.LOST), True, True),
        ((Outcome.OK, Outcome.OK), False, False),  # nothing is left to run
    ],
)
def test_what_kept_results_were_measured_with_stays_recorded(
    outcomes: Sequence[Outcome | None],
    is_kept: bool,
    is_replaced: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = KernelRecord(
        release="6.12", build_id="1", digest="old", compiler="gcc 12", configuration="c" * 8
    )
    variant = VariantRecord(name="patched", role=Role.PATCHED, patchset="full", kernel=kernel)
    newer = replace(kernel, digest="new", compiler="gcc 14")
    monkeypatch.setattr(driver, "built", lambda variant, kernel, bench: replace(variant, kernel=newer))
    other = replace(MANIFEST.accelerator, qemu="10.0.0")
    bench: Any = SimpleNamespace(accelerator=SimpleNamespace(record=other))
    writer = ended(tmp_path, *outcomes, variants=(variant,))
    driver.record_accelerator(writer, bench)
    made: Any = None
    driver.record_kernel(writer, bench, "full", made)
    record = writer.manifest
    (now,) = record.variants
    assert record.accelerator == (other if is_replaced else MANIFEST.accelerator)
    assert now.kernel == (newer if is_replaced else kernel)
    assert record.earlier_accelerators == ((MANIFEST.accelerator,) if is_kept else ())
    assert now.earlier_kernels == ((kernel,) if is_kept else ())


def test_the_same_qemu_is_not_recorded_twice(tmp_path: Path) -> None:
    same = replace(MANIFEST.accelerator, reason="it was asked for")
    bench: Any = SimpleNamespace(accelerator=SimpleNamespace(record=same))
    writer = ended(tmp_path, Outcome.OK, None)
    driver.record_accelerator(writer, bench)
    assert (writer.manifest.accelerator, writer.manifest.earlier_accelerators) == (same, ())


def test_the_patches_of_a_run_must_not_change(world: World, act: Act) -> None:
    assert act(*COMMANDS["check"][:1], "-p", "stage-1", *COMMANDS["check"][3:]).status == 1
    path = only_run(world)
    record = read_manifest(path)
    (variant,) = record.variants
    stages = tuple(replace(stage, digest="0" * 64) for stage in variant.stages)
    # Another digest and the same source: the series has got an alternative patch for another base.
    (path / "run.json").write_text(replace(record, variants=(replace(variant, stages=stages),)).to_json())
    world.ends = "well"
    assert act("check", "--resume", "latest").status == 0
    changed = replace(variant, stages=stages, tree="another tree")
    (path / "run.json").write_text(replace(record, variants=(changed,)).to_json())
    said = act("check", "--resume", "latest")
    assert said.status == 2 and "the patches of stage-1 have changed" in said.err


def test_an_unbuilt_variant_may_have_got_an_alternative_patch(tmp_path: Path, world: World, act: Act) -> None:
    with_alternative = next(stage for stage in SERIES.stages if stage.variants)
    patchset = f"stage-{with_alternative.number}"
    assert act(*COMMANDS["check"][:1], "-p", patchset, *COMMANDS["check"][3:]).status == 1
    path = only_run(world)
    record = read_manifest(path)
    (variant,) = record.variants
    assert variant.stages[-1].digest == with_alternative.digest != change_digest(with_alternative.patch)
    before = replace(variant.stages[-1], digest=change_digest(with_alternative.patch))
    unbuilt = replace(variant, tree=None, kernel=None, stages=(*variant.stages[:-1], before))
    (path / "run.json").write_text(replace(record, variants=(unbuilt,)).to_json())
    world.ends = "well"
    assert act("check", "--resume", "latest").status == 0
    stages = tuple(replace(stage, digest="0" * 64) for stage in variant.stages)
    (path / "run.json").write_text(replace(record, variants=(replace(unbuilt, stages=stages),)).to_json())
    assert act("check", "--resume", "latest").status == 2


@pytest.mark.parametrize("kind", [RunKind.CHECK, RunKind.TEST, RunKind.VERIFY])
def test_a_run_that_keeps_no_request_cannot_be_finished(kind: RunKind, tmp_path: Path) -> None:
    read: Callable[[Path, Manifest], object] = {
        RunKind.CHECK: CheckRequest.of_run,
        RunKind.TEST: CorrectnessRequest.of_run,
        RunKind.VERIFY: VerificationRequest.of_run,
    }[kind]
    with pytest.raises(UserError, match="the-run"):
        read(tmp_path / "the-run", manifest(kind=kind))
