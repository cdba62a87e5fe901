# SPDX-License-Identifier: GPL-2.0-only
"""The outcome of a cell: always exactly one of these, with its evidence."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The outcome of a cell. A cell without a recorded outcome is :attr:`LOST`, never :attr:`OK`."""

    OK = "ok"
    WORKLOAD_FAILED = "workload-failed"
    KERNEL_BUG = "kernel-bug"
    KERNEL_PANIC = "kernel-panic"
    BOOT_FAILED = "boot-failed"
    BUILD_FAILED = "build-failed"
    LOST = "lost"
    TIMEOUT = "timeout"
