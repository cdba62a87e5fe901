# SPDX-License-Identifier: GPL-2.0-only
"""The two families of errors: the request was wrong, or the host let us down.

A message is one sentence that says what is wrong and what to do. The command line prints it without a
traceback, and ends with the family's exit status. What a *guest* does wrong is no error of ours: that is a
value, see :class:`orchestrator.store.outcome.Outcome`.
"""

from __future__ import annotations

from pathlib import Path


class OrchestrateError(Exception):
    """Base of every error that is reported without a traceback.

    Args:
        message: one sentence.
        log: the file that holds the evidence, where there is one.
    """

    exit_status = 1

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class UserError(OrchestrateError):
    """The request was wrong: an unknown name, a bad value, a patch that does not apply."""

    exit_status = 2


class InfrastructureError(OrchestrateError):
    """The tool or its host failed: a program is missing, a disk is full."""


#: Packages that only ``--executor dask://...`` needs, and that a plain set-up leaves out.
_OF_CLUSTER = ("dask", "distributed")


def missing_package(error: ImportError) -> str | None:
    """What to say of a Python package that cannot be imported.

    Returns:
        One sentence; None where a module of this project is missing, which is a fault of the project.
    """
    cause: BaseException | None = error
    # pandas hides the package that it misses behind an error without a name.
    while cause is not None and not (isinstance(cause, ModuleNotFoundError) and cause.name):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ModuleNotFoundError) and cause.name:
        package = cause.name.partition(".")[0]
        if package == __name__.partition(".")[0]:
            return None
        option = "--cluster" if package in _OF_CLUSTER else "--force"
        return f"the Python package {package} is missing; run scripts/setup {option}"
    if (error.name or "").partition(".")[0] == __name__.partition(".")[0]:
        return None
    reason = (str(error).strip().splitlines() or ["no reason is given"])[0].rstrip(".:")
    return f"a Python package cannot be imported ({reason}); run scripts/setup --force"
