# SPDX-License-Identifier: GPL-2.0-only
"""Where a run comes from: what every run directory keeps, so that the run can be repeated and doubted."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import psutil

from orchestrator import __version__
from orchestrator.cache import Cache
from orchestrator.execution.bench import Bench
from orchestrator.execution.calibration import last_calibration
from orchestrator.execution.host import processor_model
from orchestrator.kernel.build import BuildFailed, KernelBuild
from orchestrator.machine.topology import Topology
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


def provenance(bench: Bench, topology: Topology, command: Sequence[str]) -> dict[str, object]:
    """What ``run.json`` says of any run before anything slow starts; nothing here builds or boots."""
    series = bench.series
    return {
        "command": list(command),
        "topology": {
            "text": topology.text,
            "nodes": [asdict(node) for node in topology.nodes],
            "distances": [list(row) for row in topology.distances],
        },
        "accelerator": {
            "name": bench.accelerator_request,
            "clock": None,
            "reason": "requested; not yet chosen",
        },
        "flavour": bench.flavour,
        "source": {"requested": bench.source or series.package},
        "series": {
            "name": series.name,
            "title": series.title,
            "base": series.base_version,
            **({"directory": str(bench.series_directory.resolve())} if bench.series_directory else {}),
        },
        "host": host_facts(),
        "calibration": calibration_facts(bench.cache),
        "tools": tool_facts(),
    }


def kernel_facts(patchset: str, kernel: KernelBuild, bench: Bench) -> dict[str, object]:
    """What ``run.json`` says of a variant once its kernel is built."""
    return {
        "tree": bench.tree(patchset).tree,
        "kernel": {
            "release": kernel.release,
            "build_id": kernel.build_id,
            "digest": kernel.digest,
            "compiler": kernel.compiler,
            "configuration": bench.configuration().digest,
            "warnings": len(kernel.warnings),
        },
    }


def keep_build_log(run: Path, patchset: str, kernel: KernelBuild | BuildFailed) -> None:
    """Copy what make printed to ``logs/build-PATCHSET.log`` of a run: the cache may forget it."""
    if kernel.log is not None and kernel.log.is_file():
        shutil.copyfile(kernel.log, run / "logs" / f"build-{patchset.replace(':', '-')}.log")


def host_facts() -> dict[str, object]:
    """Processor, memory and kernel of this host; nothing that names it or its owner."""
    return {
        "cpu": processor_model(),
        "cpus": os.cpu_count(),
        "memory_mib": psutil.virtual_memory().total // 2**20,
        "kernel": platform.release(),
        "load": [round(figure, 2) for figure in os.getloadavg()],
    }


def calibration_facts(cache: Cache) -> dict[str, object] | None:
    """The last calibration since this host was booted, with the sentence that reports show; None without one."""
    last = last_calibration(cache)
    return {"sentence": last.sentence, **asdict(last)} if last is not None else None


def tool_facts() -> dict[str, str]:
    """The first line that each tool prints of its version; a missing tool is left out."""
    facts = {"orchestrate": __version__, "python": platform.python_version()}
    for name, program in _VERSION_OF.items():
        if shutil.which(program):
            lines = run([program, "--version"], check=False, timeout_s=20).stdout.splitlines()
            facts[name] = lines[0].strip() if lines else "prints no version"
    return facts
