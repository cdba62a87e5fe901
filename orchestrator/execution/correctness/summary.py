# SPDX-License-Identifier: GPL-2.0-only
"""The result of a correctness test: a result per suite and guest, and the problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from orchestrator.execution.correctness.request import planned_cell
from orchestrator.execution.correctness.suite import Found, Leak, Suite
from orchestrator.guest.ktap import Status, TestResult
from orchestrator.machine.oops import Finding
from orchestrator.store.outcome import Outcome


@dataclass
class SuiteResult:
    """The result of one suite in one guest.

    Args:
        evidence: reason of the outcome; empty if it is ok.
        findings: reports of the kernel, without leaks.
        boot_s, run_s: duration of boot and suite in host seconds.
        repetition: more than 1 for an extra boot of the baseline.
    """

    patchset: str
    suite: Suite
    found: Found = field(default_factory=Found)
    outcome: Outcome = Outcome.LOST
    evidence: str = "the end was not recorded"
    findings: Sequence[Finding] = ()
    boot_s: float | None = None
    run_s: float | None = None
    total_s: float = 0.0
    started_utc: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    repetition: int = 1

    @property
    def cell(self) -> str:
        """Name of the cell in the run."""
        return planned_cell(self.patchset, self.suite, self.repetition).cell

    def to_json(self) -> dict[str, Any]:
        """For ``correctness.json``; :meth:`of_json` reads it."""
        return {
            "cell": self.cell,
            "patchset": self.patchset,
            "suite": self.suite.name,
            "repetition": self.repetition,
            "outcome": self.outcome.value,
            "evidence": self.evidence,
            "boot_s": self.boot_s,
            "run_s": self.run_s,
            "total_s": self.total_s,
            "started_utc": self.started_utc,
            "complete": self.found.complete,
            "tests": [
                {"name": test.name, "status": test.status.value, "text": test.text}
                for test in self.found.results
            ],
            "faults": list(self.found.faults),
            "reports": [finding.to_json() for finding in self.findings],
            "leaks": [asdict(leak) for leak in self.found.leaks],
        }

    @classmethod
    def of_json(cls, suite: Suite, facts: Mapping[str, Any]) -> SuiteResult:
        """Read a stored result of a suite."""
        found = Found(
            [TestResult(each["name"], Status(each["status"]), each["text"]) for each in facts["tests"]],
            list(facts["faults"]),
            [Leak(tuple(each["signature"]), each["text"], each["count"]) for each in facts["leaks"]],
            facts["complete"],
        )
        return cls(
            facts["patchset"],
            suite,
            found,
            Outcome(facts["outcome"]),
            facts["evidence"],
            [Finding.of_json(each) for each in facts["reports"]],
            facts["boot_s"],
            facts["run_s"],
            facts["total_s"],
            facts["started_utc"],
            facts["repetition"],
        )

    @property
    def is_final(self) -> bool:
        """Whether the suite ran to its end, so that a resumed run need not run it again."""
        return self.found.complete and self.outcome in (
            Outcome.OK,
            Outcome.WORKLOAD_FAILED,
            Outcome.KERNEL_BUG,
        )


@dataclass(frozen=True)
class Trouble:
    """A problem that fails a correctness test.

    Args:
        where: name of the cell.
        what: one line of description.
        text: output of the test or report of the kernel.
        is_lost: whether the host or the tool caused it, not the kernel.
    """

    where: str
    what: str
    text: str = ""
    is_lost: bool = False


@dataclass
class CorrectnessSummary:
    """The result of a correctness test.

    Args:
        results: results of all guests, in order.
        troubles: problems that fail the test.
        notes: differences from the baseline that are not regressions.
    """

    results: list[SuiteResult] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    notes: list[Trouble] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """3 if a test regressed or the kernel reported a problem, 1 if guests were lost and nothing else is wrong."""
        return max((1 if trouble.is_lost else 3 for trouble in self.troubles), default=0)

    def to_json(self) -> dict[str, Any]:
        """For ``--json`` and ``correctness.json``."""
        return {
            "suites": [result.to_json() for result in self.results],
            "troubles": [asdict(trouble) for trouble in self.troubles],
            "notes": [asdict(note) for note in self.notes],
        }
