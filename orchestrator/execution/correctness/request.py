# SPDX-License-Identifier: GPL-2.0-only
"""The request of ``orchestrate test``: a patchset, suites, and whether the baseline runs them as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from orchestrator.errors import UserError
from orchestrator.execution.bench import Bench
from orchestrator.execution.correctness.suite import Suite, choose
from orchestrator.execution.provenance import begin, topology_of, variant_record
from orchestrator.experiment.variant import Variant, role_of
from orchestrator.kernel.series import BASELINE
from orchestrator.machine.topology import Topology
from orchestrator.store.manifest import (
    CorrectnessRecord,
    Manifest,
    PlannedCell,
    RunKind,
    WorkloadRecord,
)
from orchestrator.store.observation import Metric

#: Kernel parameters of all guests; configurations without a feature ignore its parameter. A quarter of the memory is
#: movable, so that it can be taken offline.
CMDLINE: Final = ("movablecore=25%", "cma=64M", "page_poison=1")
METRICS: Final = {
    metric.name: metric
    for metric in (
        Metric("passed_tests.total", "tests", None, help="Tests that passed."),
        Metric("failed_tests.total", "tests", "lower", help="Tests that failed."),
        Metric("skipped_tests.total", "tests", None, help="Tests that could not run."),
        Metric(
            "kernel_reports.total",
            "reports",
            "lower",
            help="Distinct reports of the kernel: oops, WARNING, KASAN, lockdep.",
        ),
        Metric("leaks.total", "objects", "lower", help="Objects that kmemleak reported."),
    )
}


@dataclass(frozen=True)
class CorrectnessRequest:
    """The request for a correctness test.

    Args:
        only: names of tests; empty for all.
        compare: also run the suites on the baseline.
        minutes: duration of the hostile stress in guest minutes; None for that of its suite.
    """

    patchset: str
    suites: tuple[Suite, ...]
    topology: Topology
    only: tuple[str, ...] = ()
    cmdline: tuple[str, ...] = ()
    compare: bool = True
    minutes: int | None = None

    def cells(self) -> list[tuple[str, Suite]]:
        """Patchset and suite of each guest, the baseline first, so that its failures are known."""
        cells = []
        if self.compare and self.patchset != BASELINE:
            baseline_suites = {
                suite.baseline_suite or suite.name: suite for suite in self.suites if not suite.baseline_suite
            }
            missing = [
                suite
                for suite in self.suites
                if suite.baseline_suite and suite.baseline_suite not in baseline_suites
            ]
            for suite in missing:
                # The baseline has no knobs of the series, so suites that differ only in these are the same.
                baseline_suites.setdefault(suite.baseline_suite, _with_defaults(suite))
            cells += [(BASELINE, suite) for suite in baseline_suites.values()]
        return [*cells, *((self.patchset, suite) for suite in self.suites)]

    def manifest(self, bench: Bench, command: Sequence[str]) -> Manifest:
        """The content of ``run.json`` before any slow work."""
        cells = self.cells()
        cmdline = (*CMDLINE, *self.cmdline)
        begun = begin(
            RunKind.TEST,
            f"test-{self.patchset}",
            bench,
            self.topology,
            command,
            variants=[
                variant_record(Variant(patchset, role_of(patchset), patchset, cmdline=cmdline), bench)
                for patchset in dict.fromkeys(patchset for patchset, _ in cells)
            ],
            workloads={suite.name: WorkloadRecord(title=suite.title, metrics=METRICS) for _, suite in cells},
            cells=[planned_cell(patchset, suite) for patchset, suite in cells],
        )
        record = CorrectnessRecord(
            patchset=self.patchset,
            suites=tuple(suite.name for suite in self.suites),
            only=self.only,
            compare=self.compare,
            cmdline=self.cmdline,
            minutes=self.minutes,
        )
        return replace(begun, test=record)

    @classmethod
    def of_run(cls, path: Path, manifest: Manifest) -> CorrectnessRequest:
        """The test request of a run directory.

        Raises:
            UserError: the run is not a correctness test, or one of its suites no longer exists.
        """
        asked = manifest.test
        if asked is None:
            raise UserError(
                f"{path.name} was made by a version that could not resume tests; start a new run."
            )
        return cls(
            asked.patchset,
            tuple(suite.lasting(asked.minutes) for suite in choose(asked.suites)),
            topology_of(manifest.topology),
            asked.only,
            asked.cmdline,
            asked.compare,
            asked.minutes,
        )


def planned_cell(patchset: str, suite: Suite, repetition: int = 1) -> PlannedCell:
    """The cell of a suite in a guest.

    Args:
        repetition: more than 1 for an extra boot of the baseline.
    """
    return PlannedCell(
        cell=f"{patchset}.{suite.name}.{repetition}",
        variant=patchset,
        role=role_of(patchset),
        workload=suite.name,
        repetition=repetition,
        seed=0,
    )


def _with_defaults(suite: Suite) -> Suite:
    return Suite(
        suite.baseline_suite, suite.kind, suite.title, suite.lru_gen, suite.swap, False, "", suite.arguments
    )
