# SPDX-License-Identifier: GPL-2.0-only
"""The two kinds of errors: the request was wrong, or the host failed.

A message is one sentence that says what is wrong and what to do. The command line prints it without a
traceback and ends with the exit status of its kind. A failure of the *guest* is not an exception but a result:
see :class:`orchestrator.store.outcome.Outcome`.
"""

from __future__ import annotations

from pathlib import Path


class OrchestrateError(Exception):
    """Base of every error that is reported without a traceback.

    Args:
        message: one sentence.
        log: log file with the details, if there is one.
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


#: Packages that only ``--executor dask://...`` needs; scripts/setup installs them with --cluster only.
_OF_CLUSTER = ("dask", "distributed")


def missing_package(error: ImportError) -> str | None:
    """The error message for a Python package that cannot be imported.

    Returns:
        One sentence; None if a module of this project is missing, which is a bug.
    """
    cause: BaseException | None = error
    # pandas wraps the error about a missing dependency in one without a name.
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
    reason = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".:")
    return f"a Python package cannot be imported ({reason}); run scripts/setup --force"
