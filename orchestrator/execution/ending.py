# SPDX-License-Identifier: GPL-2.0-only
"""How a guest ended: the only mapping from observations to an outcome with its evidence.

There are three observations: the exception that stopped the work, the kernel's reports on the console, and how QEMU
ended. :meth:`orchestrator.execution.bench.Bench.boot` combines them, so its callers get an :class:`Ending` and need not
find out why a connection broke. docs/architecture.md has the mapping as a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InfrastructureError, OrchestrateError, UserError
from orchestrator.guest.ssh import CommandFailed, CommandTimeout, GuestLost
from orchestrator.guest.workload import WorkloadFailed
from orchestrator.machine.oops import Finding
from orchestrator.machine.qemu import MachineFailure
from orchestrator.printable import printable
from orchestrator.store.outcome import Outcome

#: Exceptions that always concern the guest.
_OF_GUEST = (MachineFailure, GuestLost, CommandTimeout, CommandFailed, WorkloadFailed)
#: Outcomes from reports of the kernel.
_REPORTED = (Outcome.KERNEL_PANIC, Outcome.KERNEL_BUG)


@dataclass(frozen=True)
class Ending:
    """How a guest ended, or its state while it runs.

    Args:
        outcome: the outcome.
        evidence: one line that says what happened, followed by output of the kernel, QEMU or the workload; empty if
            the outcome is ok.
        findings: all reports of the kernel.
    """

    outcome: Outcome
    evidence: str = ""
    findings: tuple[Finding, ...] = ()

    def __post_init__(self) -> None:
        """Make the evidence safe to print, since it has output of the guest."""
        object.__setattr__(self, "evidence", printable(self.evidence))

    @property
    def is_ok(self) -> bool:
        """Whether there was no problem."""
        return self.outcome is Outcome.OK

    @property
    def is_lost(self) -> bool:
        """Whether the host or the tool failed, so that the guest's kernel is neither good nor bad."""
        return self.outcome is Outcome.LOST

    @property
    def reports(self) -> tuple[str, ...]:
        """Everything to show: the outcome with its evidence, then all other reports of the kernel."""
        others = [each for each in self.findings if not self.evidence.startswith(f"{each.title}\n")]
        return (
            f"{self.outcome.value}: {self.evidence}",
            *(f"{each.outcome.value}: {each.evidence}" for each in others),
        )

    @property
    def title(self) -> str:
        """One line: the outcome, and the first line of the evidence."""
        first = self.evidence.partition("\n")[0]
        return f"{self.outcome.value}: {first}" if first else self.outcome.value

    @property
    def exit_status(self) -> int:
        """Exit status of a command that ends because its guest did: 0, 1 if the host failed, 3 if the guest failed."""
        return 0 if self.is_ok else 1 if self.is_lost else 3


class GuestEnded(OrchestrateError):  # noqa: N818 - named like an outcome
    """A guest did not come up, or ended before its work was done.

    Args:
        ending: how it ended.
        log: console log of the guest.
    """

    def __init__(self, ending: Ending, log: Path | None = None) -> None:
        super().__init__(f"{ending.outcome.value}: {ending.evidence}", log)
        self.ending = ending
        self.exit_status = ending.exit_status

    def __reduce__(self) -> tuple[type[GuestEnded], tuple[object, ...]]:
        """Both arguments, so that the exception can be pickled in a worker process."""
        return GuestEnded, (self.ending, self.log)


def ending_of(
    error: BaseException | None,
    findings: Sequence[Finding],
    failure: MachineFailure | None,
    *,
    is_up: bool = True,
) -> Ending | None:
    """Map the observations of a guest to how it ended.

    The first that applies is used: a report of the kernel (a panic before all others), the failure of the machine, the
    exception.

    Args:
        error: the exception that stopped the work; None if there was none.
        findings: reports on the console of the guest.
        failure: the failure of the machine: how QEMU ended, or why the guest did not come up; None while it runs.
        is_up: whether the guest was up when `error` was raised.

    Returns:
        None if `error` does not concern the guest: a wrong request, a bug of this program, Ctrl-C.
    """
    if isinstance(error, MachineFailure):
        failure = failure or error
    elif isinstance(error, GuestLost) and isinstance(error.why, MachineFailure):
        failure = failure or error.why
    panic = next((each for each in findings if each.outcome is Outcome.KERNEL_PANIC), None)
    worst = panic or next(iter(findings), None)
    if not _concerns_guest(error, is_gone=failure is not None or panic is not None, is_up=is_up):
        return None
    if failure is not None and failure.outcome is Outcome.LOST and all(each.is_stall for each in findings):
        # A host short of memory starves its guests before it kills one.
        before = "".join(f"\nbefore: {each.title}" for each in findings)
        return Ending(Outcome.LOST, f"{failure.evidence}{before}")
    if worst is not None:
        evidence = worst.evidence
        # For a panic the report says everything; for any other end, add a line.
        reason = failure or error
        if reason is not None and not (failure is not None and failure.outcome in _REPORTED):
            evidence += f"\nthen: {_first_line(reason)}"
        # A bisection looks for one defect by its fingerprint, even where another is worse.
        for other in findings:
            if other is not worst and other.fingerprint != other.title:
                evidence += f"\nalso: {other.title}\nfingerprint: {other.fingerprint}"
        return Ending(worst.outcome, evidence, tuple(findings))
    if failure is not None:
        return Ending(failure.outcome, failure.evidence)
    if error is None:
        return Ending(Outcome.OK)
    if not is_up:
        return Ending(Outcome.BOOT_FAILED, str(error))
    if isinstance(error, CommandTimeout):
        return Ending(Outcome.TIMEOUT, str(error))
    if isinstance(error, WorkloadFailed):
        return Ending(Outcome.WORKLOAD_FAILED, str(error))
    return Ending(Outcome.LOST, str(error))


def _concerns_guest(error: BaseException | None, *, is_gone: bool, is_up: bool) -> bool:
    if error is None or isinstance(error, _OF_GUEST):
        return True
    if isinstance(error, UserError):
        return is_gone
    if isinstance(error, InfrastructureError):  # a program in the guest failed, or the host
        return is_up or is_gone
    return False


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
