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
