# SPDX-License-Identifier: GPL-2.0-only
"""Facts of the host and its tools that a run keeps, so that it can be repeated and doubted."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import psutil

from orchestrator import __version__
from orchestrator.process import run

_VERSION_OF = {
    "qemu": "qemu-system-x86_64",
    "gcc": "gcc",
    "ld": "ld",
    "make": "make",
    "git": "git",
    "gdb": "gdb",
    "ccache": "ccache",
}


def host_facts() -> dict[str, object]:
    """Processor, memory and kernel of this host; nothing that names it or its owner."""
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "memory_mib": psutil.virtual_memory().total // 2**20,
        "kernel": platform.release(),
        "load": [round(figure, 2) for figure in os.getloadavg()],
    }


def tool_facts() -> dict[str, str]:
    """The first line that each tool prints of its version; a missing tool is left out."""
    facts = {"orchestrate": __version__, "python": platform.python_version()}
    for name, program in _VERSION_OF.items():
        if shutil.which(program):
            lines = run([program, "--version"], check=False, timeout_s=20).stdout.splitlines()
            facts[name] = lines[0].strip() if lines else "prints no version"
    return facts


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
