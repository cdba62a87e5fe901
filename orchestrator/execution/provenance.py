# SPDX-License-Identifier: GPL-2.0-only
"""Where a run comes from: what every run directory keeps, so that the run can be repeated and doubted."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError
from orchestrator.execution.bench import Bench
from orchestrator.execution.calibration import last_calibration
from orchestrator.execution.processor import processor_model
from orchestrator.kernel.build import BuildFailed, KernelBuild
from orchestrator.machine.topology import Topology
from orchestrator.process import version_of

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
        "source": source_facts(bench),
        "series": {
            "name": series.name,
            "title": series.title,
            "base": series.bases.linux,
            **({"directory": str(bench.series_directory.resolve())} if bench.series_directory else {}),
        },
        "host": host_facts(),
        "calibration": calibration_facts(bench.cache),
        "tools": tool_facts(),
    }


def source_facts(bench: Bench) -> dict[str, object]:
    """What ``run.json`` says of the kernel source before it is imported.

    Raises:
        UserError: there is no such source.
        InfrastructureError: this host can get no version of the package.
    """
    package = bench.origin.package
    return {
        "requested": bench.source or bench.series.bases.package,
        "description": bench.origin.description,
        **(
            {
                "package": package.package,
                "package_version": package.version,
                "version": package.linux,
                "checked": bench.unchecked_base is None,
            }
            if package is not None
            else {}
        ),
    }


@dataclass(frozen=True)
class Base:
    """The kernel source of a bench, for a person.

    Args:
        description: the source; None where there is none.
        imported: whether it is in the cache.
        remarks: sentences on what is not as usual.
    """

    description: str | None
    imported: bool
    remarks: list[str]

    @property
    def sentence(self) -> str:
        """The source, and whether it is in the cache."""
        if self.description is None:
            return "none"
        return f"{self.description}, {'imported' if self.imported else 'to be imported'}"


def base_of(bench: Bench) -> Base:
    """The kernel source of a bench; nothing is imported.

    Raises:
        UserError: there is no such source.
    """
    try:
        origin, unchecked = bench.origin, bench.unchecked_base
    except InfrastructureError as error:
        return Base(None, False, [str(error)])
    return Base(origin.description, origin.is_imported(bench.cache), [unchecked] if unchecked else [])


def requested_source(manifest: Mapping[str, Any], bench: Bench) -> str | None:
    """The ``--source`` with which a run is finished: on the base it began with."""
    source = manifest["source"]
    if "package_version" in source:
        return f"{source['package']}={source['package_version']}"
    requested: str | None = source.get("requested")
    if requested != bench.series.bases.package:
        return requested
    # Older runs have the version in their description only.
    package, _, version = source.get("description", "").partition(" ")
    return f"{package}={version}" if package == requested and version else None


def kernel_facts(patchset: str, kernel: KernelBuild, bench: Bench) -> dict[str, object]:
    """What ``run.json`` says of a variant once its kernel is built."""
    tree = bench.tree(patchset)
    return {
        "tree": tree.tree,
        "base": {"description": tree.source.description, "commit": tree.source.commit},
        "patch_variants": {str(number): name for number, name in tree.variants.items()},
        "merged": list(tree.merged),
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
    import psutil

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
            with suppress(InfrastructureError):  # a tool that is there but does not start says nothing
                facts[name] = version_of(program)
    return facts
