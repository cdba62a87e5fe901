# SPDX-License-Identifier: GPL-2.0-only
"""The checks of a stage, and their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from orchestrator.kernel.series import Stage
from orchestrator.store.outcome import Outcome

#: Check -> the option that is off.
WITHOUT: Mapping[str, str] = {
    "THP=n": "CONFIG_TRANSPARENT_HUGEPAGE",
    "NUMA=n": "CONFIG_NUMA",
    "MEMCG=n": "CONFIG_MEMCG",
}
APPLIES, STYLE, BUILD, SPARSE, BOOTS, SMOKE, NAMES = (
    "applies", "checkpatch", "build", "sparse", "boots", "smoke", "names",
)  # fmt: skip
#: In order of execution: fast checks first.
CHECKS: Sequence[str] = (APPLIES, STYLE, BUILD, *WITHOUT, SPARSE, BOOTS, SMOKE, NAMES)
GUEST_CHECKS = (BOOTS, SMOKE, NAMES)


class State(StrEnum):
    """The state of a check."""

    OK = "ok"
    FAILED = "FAILED"
    #: Not requested, or not possible because an earlier check of the stage failed.
    NOT_MADE = "-"


@dataclass(frozen=True)
class CheckResult:
    """The result of one check of one stage.

    Args:
        detail: the failure: messages of the compiler, checkpatch or the guest.
        log: a file with more details, if there is one.
    """

    state: State
    detail: str = ""
    log: Path | None = None


NOT_MADE = CheckResult(State.NOT_MADE)
_OK = CheckResult(State.OK)


@dataclass
class StageReport:
    """The results of all checks of a stage."""

    stage: Stage
    answers: dict[str, CheckResult] = field(default_factory=lambda: dict.fromkeys(CHECKS, NOT_MADE))

    @property
    def failed(self) -> bool:
        """Whether any check failed."""
        return any(answer.state is State.FAILED for answer in self.answers.values())

    def to_json(self) -> dict[str, object]:
        """For ``--json`` and ``verification.json``."""
        return {
            "number": self.stage.number,
            "name": self.stage.name,
            "digest": self.stage.digest,
            "checks": {
                check: {
                    "state": str(answer.state),
                    "detail": answer.detail,
                    "log": str(answer.log) if answer.log else None,
                }
                for check, answer in self.answers.items()
            },
        }


def outcome_of(check: str, answer: CheckResult) -> Outcome:
    """The outcome of a failed check, for its cell.

    For checks in a guest, it is the first word of the result.
    """
    named = answer.detail.partition(":")[0]
    if check in GUEST_CHECKS and named in {outcome.value for outcome in Outcome}:
        return Outcome(named)
    if check == BOOTS:
        return Outcome.BOOT_FAILED
    return Outcome.BUILD_FAILED if check in (APPLIES, BUILD, *WITHOUT) else Outcome.WORKLOAD_FAILED
