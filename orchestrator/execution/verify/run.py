# SPDX-License-Identifier: GPL-2.0-only
"""Checks every stage of a series in order, so that a maintainer can merge only some of them.

The result of each check is cached by its inputs, so after a change to the series only the affected checks are repeated.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.cache import digest
from orchestrator.errors import UserError
from orchestrator.execution.bench import Bench
from orchestrator.execution.countdown import Countdown, line_of
from orchestrator.execution.driver import record_accelerator, record_kernel, record_source
from orchestrator.execution.verify.answer import (
    APPLIES,
    BOOTS,
    BUILD,
    CHECKS,
    DOCUMENTATION,
    GUEST_CHECKS,
    NAMES,
    SMOKE,
    SPARSE,
    STYLE,
    CheckResult,
    StageReport,
    State,
    in_order,
    option_off,
    outcome_of,
)
from orchestrator.execution.verify.inventory import Inventory, take_inventory
from orchestrator.execution.verify.request import VerificationRequest
from orchestrator.kernel.build import BuildFailed, KernelBuild
from orchestrator.kernel.checkpatch import review
from orchestrator.kernel.config import Configuration
from orchestrator.kernel.diagnostics import added
from orchestrator.kernel.kernel_doc import documentation_findings
from orchestrator.kernel.series import BASELINE, Series, Stage
from orchestrator.kernel.sparse import checking, findings_in, new_findings
from orchestrator.kernel.stage_change import StageChange, last_change, touched_sources
from orchestrator.kernel.target import OTHER_TARGETS
from orchestrator.kernel.tree import PatchedTree, apply_stages
from orchestrator.kernel.without_option import Compiled, compile_changed, compile_parent, on_target, without
from orchestrator.kernel.workshop import DoesNotCompileError, Workshop
from orchestrator.machine.topology import Topology
from orchestrator.process import require
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import CellRow, RunWriter

_OK = CheckResult(State.OK)
#: File in the run directory.
SUMMARY = "verification.json"
#: The checks that are done in one boot of a guest.
_GUEST = "guest"
_DETAIL_LINES = 12
#: A check that takes fewer host seconds was cached, and its duration is not typical.
_FROM_CACHE_S = 0.5

#: Boots a kernel and returns the inventory of its guest; logs are written to the directory.
InventoryOf = Callable[[KernelBuild, Path], Inventory]


@dataclass
class VerificationSummary:
    """The result of a verification.

    Args:
        reports: reports of the checked stages, in order.
    """

    reports: list[StageReport] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """0 if all checks are ok, 3 if one failed."""
        return 3 if any(report.failed for report in self.reports) else 0

    def to_json(self) -> dict[str, Any]:
        """For ``--json`` and ``verification.json``."""
        return {"ok": not self.exit_status, "stages": [report.to_json() for report in self.reports]}


def execute(
    request: VerificationRequest, bench: Bench, writer: RunWriter, inventory_of: InventoryOf | None = None
) -> VerificationSummary:
    """Run every check that has not ended ok in this run yet, and store each result as a cell.

    Args:
        inventory_of: function that boots a kernel; tests replace it.

    Raises:
        InfrastructureError: the host failed; results so far are kept.
        UserError: the source or the configuration is invalid.
    """
    summary = VerificationSummary()
    done = writer.completed_cells()
    stages = request.stages_of(bench.series)
    known = {
        (stage.number, check): _OK
        for stage in stages
        for check in request.checks
        if request.cell(stage, check).cell in done
    }
    verification = SeriesVerification(bench, request.checks, request.topology, inventory_of, known)
    try:
        record_source(writer, bench)
        if set(GUEST_CHECKS) & set(request.checks):
            record_accelerator(writer, bench)
        for report in verification.verify(stages):
            summary.reports.append(report)
            _keep(report, request, verification, bench, writer, done)
        return summary
    finally:
        writer.write_json(SUMMARY, summary.to_json())
        writer.finish()


def read_summary(path: Path) -> dict[str, Any]:
    """The results that :func:`execute` has written to a run directory."""
    if not (path / SUMMARY).is_file():
        return VerificationSummary().to_json()
    facts: dict[str, Any] = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
    return facts


def _keep(
    report: StageReport,
    request: VerificationRequest,
    verification: SeriesVerification,
    bench: Bench,
    writer: RunWriter,
    done: frozenset[str],
) -> None:
    """Store the results of a stage as cells, with their logs, and record its kernel."""
    cause = next((each for each in report.answers.values() if each.state is State.FAILED), None)
    for check in request.checks:
        planned = request.cell(report.stage, check)
        answer = report.answers[check]
        if planned.cell in done:
            continue
        outcome, evidence = Outcome.OK, ""
        if answer.state is State.FAILED:
            outcome, evidence = outcome_of(check, answer), answer.detail
        elif answer.state is State.NOT_MADE:
            reason = cause.detail if cause else "an earlier check failed"
            outcome, evidence = Outcome.BUILD_FAILED, f"not run: {reason}"
        if answer.log is not None and answer.log.is_file():
            shutil.copyfile(answer.log, writer.cell_directory(planned.cell) / answer.log.name)
        writer.record(CellRow(planned, outcome=outcome, evidence=evidence))
    kernels = {BASELINE: verification.kernel_of(None)}
    kernels[f"stage-{report.stage.number}"] = verification.kernel_of(report.stage)
    for patchset, kernel in kernels.items():
        if kernel is not None:
            record_kernel(writer, bench, patchset, kernel)


class SeriesVerification:
    """A verification of a series.

    Args:
        bench: series, source, configuration and cache.
        checks: checks to run, from :data:`CHECKS`.
        topology: topology of the guests.
        inventory_of: function that boots a kernel; tests replace it.
        known: results of an earlier attempt to reuse, by stage number and check.
    """

    def __init__(
        self,
        bench: Bench,
        checks: Sequence[str] = CHECKS,
        topology: Topology | None = None,
        inventory_of: InventoryOf | None = None,
        known: Mapping[tuple[int, str], CheckResult] | None = None,
    ) -> None:
        self._known = known or {}
        self._bench = bench
        self._checks = checks
        self._topology = topology or Topology.parse("4x512M")
        self._boot = inventory_of or self._boot_on_bench
        self._kernels: dict[str, KernelBuild] = {}
        self._by_number: dict[int, KernelBuild] = {}
        self._broken: dict[str, BuildFailed] = {}

    @property
    def series(self) -> Series:
        """The series to verify."""
        return self._bench.series

    def verify(self, stages: Sequence[Stage]) -> Iterator[StageReport]:
        """Run the checks of some stages, one after another.

        Raises:
            InfrastructureError: the host failed; results so far are kept.
            UserError: the source or the configuration is invalid.
        """
        for check in OTHER_TARGETS.keys() & set(self._checks):
            for tool in OTHER_TARGETS[check].tools:
                require(tool)
        with self._bench.events.step("verify") as step:
            _ = self._baseline  # do not count the import as part of the first check
            kinds = [self._kind(check) for check in self._parts()] * len(stages)
            condition = "if nothing is in the cache"
            countdown = Countdown(step, self._bench.durations, kinds, "checks", condition=condition)
            for stage in stages:
                yield self._verify(stage, countdown)

    def _parts(self) -> Sequence[str]:
        """The parts of a stage's verification; the checks in a guest are one part."""
        asked = [check for check in in_order({APPLIES, *self._checks}) if check not in GUEST_CHECKS]
        return [*asked, _GUEST] if set(GUEST_CHECKS) & set(self._checks) else asked

    def _kind(self, part: str) -> str:
        """The key for the duration of a part."""
        where = f" {self._bench.accelerator.name} {self._topology}" if part == _GUEST else ""
        return f"check {part} {self._bench.flavour}{where}"

    def kernel_of(self, stage: Stage | None) -> KernelBuild | None:
        """The kernel of a stage, or of the baseline, if it has been built."""
        return self._by_number.get(stage.number if stage is not None else 0)

    def _known_of(self, stage: Stage, part: str) -> dict[str, CheckResult] | None:
        """The results of a part, if all of them are known already."""
        checks = [check for check in GUEST_CHECKS if check in self._checks] if part == _GUEST else [part]
        if all((stage.number, check) in self._known for check in checks):
            return {check: self._known[stage.number, check] for check in checks}
        return None

    def _verify(self, stage: Stage, countdown: Countdown) -> StageReport:
        report = StageReport(stage)
        known = {part: self._known_of(stage, part) for part in self._parts()}
        for part, kept in known.items():
            if kept is not None:
                report.answers.update(kept)
                countdown.left_out(self._kind(part))
        due = [part for part, kept in known.items() if kept is None]
        if not due:
            return report
        name = f"stage {stage.number} ({stage.name})"
        began = time.monotonic()

        def answered(part: str, answers: Mapping[str, CheckResult]) -> None:
            nonlocal began
            now = time.monotonic()
            seconds, began = now - began, now
            report.answers.update(answers)
            states = ", ".join(f"{check} {answer.state}" for check, answer in answers.items())
            detail = next((answer.detail for answer in answers.values() if answer.detail), "")
            typical_s = seconds if seconds >= _FROM_CACHE_S or part == APPLIES else None
            countdown.ended(self._kind(part), line_of(name, states, seconds, detail), typical_s)

        try:
            tree = self._tree(stage.number)
        except UserError as error:
            # Distinguish a fault of this stage from one of an earlier stage.
            own = str(error).startswith(f"stage {stage.number} ")
            detail = str(error) if own else f"an earlier one does not: {error}"
            for part in due:
                if part != APPLIES:
                    countdown.left_out(self._kind(part))
            answered(APPLIES, {APPLIES: CheckResult(State.FAILED, detail)})
            return report
        if APPLIES in due:
            answered(APPLIES, {APPLIES: _OK})
        makers: dict[str, Callable[[], CheckResult]] = {
            STYLE: lambda: self._style(stage, tree),
            BUILD: lambda: self._build(tree),
            **{check: self._maker_changed(tree, check) for check in self._checks if option_off(check)},
            **{check: self._maker_changed(tree, check) for check in OTHER_TARGETS},
            DOCUMENTATION: lambda: self._documentation(stage, tree),
            SPARSE: lambda: self._sparse(stage, tree),
        }
        with self._bench.events.step(name, part=True):
            for part in due:
                if part == APPLIES:
                    continue
                if part in makers:
                    answered(part, {part: makers[part]()})
                    continue
                # Report why the checks in a guest cannot run, even if that check was not requested.
                answers = (
                    {BUILD: self._build(tree)} if self._does_not_build(tree) else self._guest(stage, tree)
                )
                answered(
                    part,
                    {
                        check: answer
                        for check, answer in answers.items()
                        if check in self._checks or answer.state is State.FAILED
                    },
                )
        return report

    # Trees and kernels

    def _tree(self, number: int) -> PatchedTree:
        bench = self._bench
        return apply_stages(bench.source_tree, self.series.stages[:number], bench.cache, bench.events)

    @cached_property
    def _baseline(self) -> PatchedTree:
        return self._tree(0)

    def _kernel(self, tree: PatchedTree) -> KernelBuild:
        if tree.commit in self._broken:
            raise self._broken[tree.commit]
        if tree.commit not in self._kernels:
            last = tree.stages[-1].number if tree.stages else 0
            try:
                self._kernels[tree.commit] = self._bench.kernel(f"stage-{last}" if last else BASELINE)
                self._by_number[last] = self._kernels[tree.commit]
            except BuildFailed as error:
                self._broken[tree.commit] = error
                raise
        return self._kernels[tree.commit]

    def _kernel_before(self, tree: PatchedTree) -> KernelBuild:
        """The kernel of the last stage that compiles, without the last stage of `tree`."""
        for number in range(len(tree.stages) - 1, 0, -1):
            before = self._tree(number)
            if not self._does_not_build(before):
                return self._kernel(before)
        return self._kernel(self._baseline)

    def _does_not_build(self, tree: PatchedTree) -> bool:
        try:
            self._kernel(tree)
        except BuildFailed:
            return True
        return False

    # checkpatch

    def _style(self, stage: Stage, tree: PatchedTree) -> CheckResult:
        cache = self._bench.cache
        key = {"tree": tree.tree, "patch": stage.digest}

        def make(directory: Path) -> None:
            # Use the work tree of the sparse check: checkpatch reads other files of the tree.
            apart = checking(self._bench.configuration())
            with self._bench.events.step("checkpatch") as step, Workshop(apart, cache, step) as workshop:
                workshop.lay_out(tree)
                reviewed = review(tree.patch_of(stage), workshop.source)
            (directory / "checkpatch.log").write_text(reviewed.text, encoding="utf-8")
            facts = {"clean": reviewed.is_clean, "findings": list(reviewed.findings)}
            (directory / "checkpatch.json").write_text(json.dumps(facts), encoding="utf-8")

        directory = cache.obtain("checkpatch", key, make)
        facts = json.loads((directory / "checkpatch.json").read_text(encoding="utf-8"))
        if facts["clean"]:
            return _OK
        return CheckResult(
            State.FAILED, _shortened("\n".join(facts["findings"])), directory / "checkpatch.log"
        )

    # Compilers

    def _build(self, tree: PatchedTree) -> CheckResult:
        try:
            kernel = self._kernel(tree)
        except BuildFailed as error:
            return CheckResult(State.FAILED, _shortened(str(error)), error.log)
        mine = _of_files(kernel.warnings, last_change(tree))
        if mine:
            mine = added(self._kernel_before(tree).warnings, mine)
        return CheckResult(State.FAILED, _shortened("\n".join(mine)), kernel.log) if mine else _OK

    def _maker_changed(self, tree: PatchedTree, check: str) -> Callable[[], CheckResult]:
        usual, option = self._bench.configuration(), option_off(check)
        return lambda: self._build_changed(
            tree, on_target(usual, check) if option is None else without(usual, option)
        )

    def _build_changed(self, tree: PatchedTree, changed: Configuration) -> CheckResult:
        bench = self._bench
        baseline = self._kernel(self._baseline)
        done = compile_changed(tree, changed, baseline, bench.cache, bench.events, bench.build_jobs)
        if done.error or done.undefined:
            return CheckResult(State.FAILED, _shortened(done.error or "\n".join(done.undefined)), done.log)
        change = last_change(tree)
        mine = _of_files([line for own in done.warnings.values() for line in own], change)
        if mine:
            objects = [name for name, own in done.warnings.items() if own]

            def compiled_at(number: int) -> Compiled:
                return compile_parent(
                    self._tree(number),
                    changed,
                    objects,
                    baseline,
                    bench.cache,
                    bench.events,
                    bench.build_jobs,
                )

            # Compare with the last earlier stage that compiles.
            earlier = map(compiled_at, range(len(tree.stages) - 1, -1, -1))
            before = next((found for found in earlier if not found.error), None)
            known = before.warnings if before else {}
            mine = added([line for own in known.values() for line in own], mine)
        return CheckResult(State.FAILED, _shortened("\n".join(mine)), done.log) if mine else _OK

    def _documentation(self, stage: Stage, tree: PatchedTree) -> CheckResult:
        bench = self._bench
        files = last_change(tree).files
        before, after = (
            documentation_findings(each, files, bench.configuration(), bench.cache, bench.events)
            for each in (self._tree(stage.number - 1), tree)
        )
        mine = added(before, after)
        return CheckResult(State.FAILED, _shortened("\n".join(mine))) if mine else _OK

    def _sparse(self, stage: Stage, tree: PatchedTree) -> CheckResult:
        bench = self._bench
        mine = self._sparse_sources(tree)
        # Also check the files that the next stage needs for comparison, while this tree is checked out.
        later = self._tree_or_none(stage.number + 1)
        there = set(mine) | (set(self._sparse_sources(later)) if later else set())
        common = (bench.configuration(), bench.cache, bench.events, bench.build_jobs)
        before: Mapping[str, Sequence[str]] = {}
        for number in range(stage.number - 1, -1, -1):
            with suppress(DoesNotCompileError):  # that stage reports it; compare with the stage before it
                before = findings_in(self._tree(number), mine, *common)
                break
        try:
            after = findings_in(tree, sorted(there), *common)
        except DoesNotCompileError as error:
            return CheckResult(State.FAILED, _shortened(f"it does not compile: {error}"))
        found = new_findings(before, {source: after.get(source, ()) for source in mine})
        return CheckResult(State.FAILED, _shortened("\n".join(found))) if found else _OK

    def _tree_or_none(self, number: int) -> PatchedTree | None:
        if number > len(self.series.stages):
            return None
        try:
            return self._tree(number)
        except UserError:  # it does not apply, which is reported in its turn
            return None

    @staticmethod
    def _sparse_sources(tree: PatchedTree) -> tuple[str, ...]:
        """The C files that a stage touches; if it only touches headers, those of the series so far."""
        change = last_change(tree)
        return change.sources or (touched_sources(tree) if change.headers else ())

    # Guests

    def _guest(self, stage: Stage, tree: PatchedTree) -> dict[str, CheckResult]:
        baseline, baseline_logs = self._inventory(self._baseline)
        found, logs = self._inventory(tree)
        if found.boot:
            return {BOOTS: CheckResult(State.FAILED, _shortened(found.boot), logs / "console.log")}
        smoke = found.smoke or []
        answers = {
            BOOTS: _OK,
            SMOKE: CheckResult(State.FAILED, _shortened("\n".join(smoke)), logs / "console.log")
            if smoke
            else _OK,
        }
        if baseline.boot:  # its names cannot be distinguished from those of the series
            sentence = f"the baseline does not boot: {baseline.boot}"
            return {
                **answers,
                NAMES: CheckResult(State.FAILED, _shortened(sentence), baseline_logs / "console.log"),
            }
        faults = wrong_names(self.series, stage, baseline, found)
        return {**answers, NAMES: CheckResult(State.FAILED, _shortened("\n".join(faults))) if faults else _OK}

    def _inventory(self, tree: PatchedTree) -> tuple[Inventory, Path]:
        """The inventory of the guest of a tree. Only successes are cached, as the host may cause failures."""
        bench = self._bench
        kernel = self._kernel(tree)
        key: dict[str, object] = {
            "kernel": kernel.digest,
            "image": bench.image.digest,
            "topology": str(self._topology),
            "accelerator": bench.accelerator.name,
            "knobs": [[knob.path, knob.minimum, knob.maximum] for knob in self.series.knobs],
        }
        logs = bench.cache.workspace("verify-logs") / digest(key)
        name = "inventory"
        if not bench.cache.has(name, key):
            with bench.events.step("boot"):
                found = self._boot(kernel, logs)
            if not found.is_good:
                return found, logs

            def keep(place: Path) -> None:
                (place / "inventory.json").write_text(found.to_json(), encoding="utf-8")

            bench.cache.obtain(name, key, keep)
        text = (bench.cache.path(name, key) / "inventory.json").read_text(encoding="utf-8")
        return Inventory.of_json(text), logs

    def _boot_on_bench(self, kernel: KernelBuild, logs: Path) -> Inventory:
        return take_inventory(self._bench, kernel, self._topology, self.series.knobs, logs)


def wrong_names(series: Series, stage: Stage, baseline: Inventory, found: Inventory) -> list[str]:
    """Differences between a guest's counters and knobs and ``series.toml``, as sentences.

    Args:
        baseline: inventory of the baseline.
        found: inventory of the kernel with all stages up to `stage`.
    """
    applied = series.stages[: stage.number]
    paths = {knob.name: knob.path for knob in series.knobs}
    faults = []
    for what, since, before, after in (
        (
            "counter",
            {name: each.number for each in series.stages for name in each.counters},
            baseline.counters,
            found.counters,
        ),
        (
            "knob",
            {paths[name]: each.number for each in series.stages for name in each.knobs},
            baseline.files,
            found.files,
        ),
    ):
        due = {name for name, number in since.items() if number <= stage.number}
        new = set(after) - set(before)
        faults += [f"{what} {name} of stage {since[name]} is missing" for name in sorted(due - new)]
        faults += [
            f"{what} {name} exists before its stage {since[name]}"
            if name in since
            else f"{what} {name} exists, but is not in series.toml"
            for name in sorted(new - due)
        ]
        gone = sorted(set(before) - set(after))
        faults += [f"{what} {name} of the baseline is missing" for name in gone]
    for knob in series.knobs:
        facts = found.knobs.get(knob.name)
        if facts is not None and knob.stage <= stage.number:
            default = series.default_of(knob, applied)
            if facts.value != str(default):
                faults.append(f"{knob.name} is {facts.value} after boot, but {default} in series.toml")
            faults += facts.faults
    return faults


def _of_files(warnings: Sequence[str], change: StageChange) -> list[str]:
    """The warnings in files that a stage touches; warnings of objtool name the object."""
    names = {*change.files, *(f"{path.removesuffix('.c')}.o" for path in change.sources)}
    return [line for line in warnings if line.partition(":")[0] in names]


def _shortened(text: str) -> str:
    lines = text.strip().splitlines()
    more = len(lines) - _DETAIL_LINES
    return "\n".join([*lines[:_DETAIL_LINES], f"... and {more} more lines"] if more > 0 else lines)
