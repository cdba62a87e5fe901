# SPDX-License-Identifier: GPL-2.0-only
"""How a cell ended: always exactly one of these, each with its evidence."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The end of a cell. A cell that has no end recorded is :attr:`LOST`, never :attr:`OK`."""

    OK = "ok"
    WORKLOAD_FAILED = "workload-failed"
    KERNEL_BUG = "kernel-bug"
    KERNEL_PANIC = "kernel-panic"
    BOOT_FAILED = "boot-failed"
    BUILD_FAILED = "build-failed"
    LOST = "lost"
    TIMEOUT = "timeout"
