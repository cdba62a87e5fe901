# SPDX-License-Identifier: GPL-2.0-only
"""The checks of a stage, and their results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from orchestrator.kernel.series import Stage
from orchestrator.kernel.target import OTHER_TARGETS
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
#: In order of execution: fast checks first. All others have to be asked for.
CHECKS: Sequence[str] = (APPLIES, STYLE, BUILD, *WITHOUT, SPARSE, BOOTS, SMOKE, NAMES)
GUEST_CHECKS = (BOOTS, SMOKE, NAMES)
DOCUMENTATION = "kernel-doc"
#: Checks that need other compilers, or that few trees pass: not made unless asked for.
OPTIONAL: Sequence[str] = (DOCUMENTATION, *OTHER_TARGETS)
_OFF = re.compile(r"(?P<option>[A-Z0-9_]+)=n")


def is_check(name: str) -> bool:
    """Whether there is such a check."""
    return name in CHECKS or name in OPTIONAL or _OFF.fullmatch(name) is not None


def option_off(check: str) -> str | None:
    """The option of the kernel configuration that is off in a check; None for all other checks.

    >>> option_off("THP=n"), option_off("KSM=n"), option_off("W=1")
    ('CONFIG_TRANSPARENT_HUGEPAGE', 'CONFIG_KSM', None)
    """
    match = _OFF.fullmatch(check)
    return WITHOUT.get(check, f"CONFIG_{match['option']}") if match else None


def in_order(checks: Iterable[str]) -> tuple[str, ...]:
    """Checks in the order in which they are made and shown, each once."""
    asked = set(checks)
    off = sorted(check for check in asked - set(CHECKS) if option_off(check))
    at = CHECKS.index(SPARSE)
    whole = (*CHECKS[:at], *off, *OPTIONAL, *CHECKS[at:])
    return tuple(check for check in whole if check in asked)


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
    is_build = check in (APPLIES, BUILD, *OTHER_TARGETS) or option_off(check) is not None
    return Outcome.BUILD_FAILED if is_build else Outcome.WORKLOAD_FAILED
