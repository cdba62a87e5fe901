# SPDX-License-Identifier: GPL-2.0-only
"""This host's processor."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_model() -> str:
    """Model name of this host's processor in ``/proc/cpuinfo``."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
