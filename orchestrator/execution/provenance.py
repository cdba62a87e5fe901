# SPDX-License-Identifier: GPL-2.0-only
"""Provenance of a run: what its directory records, so that the run can be repeated and verified."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

from orchestrator import __version__
from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError
from orchestrator.execution.bench import Bench
from orchestrator.execution.calibration import last_calibration
from orchestrator.execution.processor import processor_model
from orchestrator.experiment.variant import Variant
from orchestrator.kernel.build import BuildFailed, KernelBuild
from orchestrator.kernel.series import OtherKernel, Series
from orchestrator.machine.accelerator import QEMU
from orchestrator.machine.topology import Node, Topology
from orchestrator.process import run, version_of
from orchestrator.store.manifest import (
    AcceleratorRecord,
    BaseRecord,
    CalibrationRecord,
    Code,
    HostRecord,
    KernelRecord,
    Manifest,
    NodeRecord,
    OtherKernelRecord,
    PlannedCell,
    RunKind,
    SeriesRecord,
    SourceRecord,
    StageRecord,
    TopologyRecord,
    VariantRecord,
    WorkloadRecord,
)

_GIT_TIMEOUT_S = 30
_VERSION_OF = {
    "qemu": QEMU,
    "gcc": "gcc",
    "ld": "ld",
    "make": "make",
    "git": "git",
    "gdb": "gdb",
    "ccache": "ccache",
}

#: The source of a run whose kernels were all built elsewhere.
_ELSEWHERE = "none, as the kernels were built elsewhere"


def begin(
    kind: RunKind,
    name: str,
    bench: Bench,
    topology: Topology,
    command: Sequence[str],
    *,
    variants: Sequence[VariantRecord],
    workloads: Mapping[str, WorkloadRecord],
    cells: Sequence[PlannedCell],
) -> Manifest:
    """The common content of ``run.json`` before any slow work; this neither builds nor boots.

    Args:
        command: words of the command line.

    Raises:
        UserError: there is no such source.
        InfrastructureError: no version of the source package is available on this host.
    """
    series = bench.series
    directory = bench.series_directory
    return Manifest(
        kind=kind,
        name=name,
        command=tuple(command),
        code=measuring_code(),
        source=source_record(bench) if builds(variants) else SourceRecord(description=_ELSEWHERE),
        series=SeriesRecord(
            name=series.name,
            title=series.title,
            base=series.bases.linux,
            directory=str(directory.resolve()) if directory else None,
            neutral={knob.name: str(knob.neutral) for knob in series.knobs if knob.neutral is not None},
            identities=series.identities,
            levels=series.levels,
        ),
        flavour=bench.flavour,
        topology=topology_record(topology),
        accelerator=AcceleratorRecord(
            name=bench.accelerator_request,
            clock=None,
            reason="requested; not yet chosen",
            program=None if bench.qemu == QEMU else bench.qemu,
        ),
        host=host_record(),
        calibration=calibration_record(bench.cache),
        tools=tool_versions(),
        variants=tuple(variants),
        workloads=dict(workloads),
        cells=tuple(cells),
    )


def builds(variants: Sequence[VariantRecord]) -> bool:
    """Whether a kernel source is needed: not if the kernels of all variants were built elsewhere."""
    return any(each.other is None or each.other.kernel is None for each in variants) or not variants


def measuring_code() -> Code:
    """The version of this package, and of the checkout that it runs from."""
    return Code(version=__version__, checkout=_checkout())


@lru_cache
def _checkout() -> str | None:
    """``git describe --always --dirty`` of the checkout; None without a checkout or git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    described = run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"], check=False, timeout_s=_GIT_TIMEOUT_S
    )
    return described.stdout.strip() or None if described.returncode == 0 else None


def topology_record(topology: Topology) -> TopologyRecord:
    """The record of the topology in ``run.json``."""
    return TopologyRecord(
        text=topology.text,
        nodes=tuple(NodeRecord(cpus=node.cpus, memory_mib=node.memory_mib) for node in topology.nodes),
        distances=tuple(tuple(row) for row in topology.distances),
    )


def topology_of(record: TopologyRecord) -> Topology:
    """The emulated machine of a run."""
    nodes = tuple(Node(node.cpus, node.memory_mib) for node in record.nodes)
    return Topology(nodes, record.distances)


def variant_record(variant: Variant, bench: Bench) -> VariantRecord:
    """The record of a variant in ``run.json`` before its kernel is built."""
    return VariantRecord(
        name=variant.name,
        role=variant.role,
        patchset=variant.patchset,
        knobs=dict(variant.knobs),
        cmdline=tuple(variant.cmdline),
        stages=tuple(
            StageRecord(number=stage.number, name=stage.name, digest=stage.digest)
            for stage in bench.series.select(variant.patchset)
        ),
        other=None
        if variant.other is None
        else OtherKernelRecord(
            source=variant.other.source,
            series=variant.other.series,
            patchset=variant.other.patchset,
            kernel=variant.other.kernel,
            vmlinux=variant.other.vmlinux,
        ),
    )


def other_kernel(record: VariantRecord) -> OtherKernel | None:
    """The kernel that a variant of a run has of its own."""
    return None if record.other is None else OtherKernel(**asdict(record.other))


def source_record(bench: Bench) -> SourceRecord:
    """The record of the kernel source in ``run.json`` before it is imported.

    Raises:
        UserError: there is no such source.
        InfrastructureError: no version of the package is available on this host.
    """
    package = bench.origin.package
    known = SourceRecord(
        requested=bench.source or bench.series.bases.source or bench.series.bases.package,
        description=bench.origin.description,
    )
    if package is None:
        return known
    return replace(
        known,
        package=package.package,
        package_version=package.version,
        version=package.linux,
        checked=bench.unchecked_base is None,
    )


@dataclass(frozen=True)
class Base:
    """The kernel source of a bench, for display.

    Args:
        description: the source; None if there is none.
        imported: whether it is in the cache.
        remarks: sentences on anything unusual.
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
    """The kernel source of a bench, without importing it.

    Raises:
        UserError: there is no such source.
    """
    try:
        origin, unchecked = bench.origin, bench.unchecked_base
    except InfrastructureError as error:
        return Base(None, False, [str(error)])
    return Base(origin.description, origin.is_imported(bench.cache), [unchecked] if unchecked else [])


def requested_source(manifest: Manifest, series: Series) -> str | None:
    """The ``--source`` for resuming a run: the base that it began with."""
    source = manifest.source
    if source.package_version is not None:
        return f"{source.package}={source.package_version}"
    if source.requested is None and source.description == _ELSEWHERE:
        return None
    if source.requested != series.bases.package:
        return source.requested
    # Older runs have the version only in the description.
    package, _, version = source.description.partition(" ")
    return f"{package}={version}" if package == source.requested and version else None


def built(variant: VariantRecord, kernel: KernelBuild, bench: Bench) -> VariantRecord:
    """The record of a variant in ``run.json`` after its kernel is built."""
    if variant.other is not None and variant.other.kernel is not None:
        record = KernelRecord(
            release=kernel.release,
            build_id=kernel.build_id,
            digest=kernel.digest,
            compiler=kernel.compiler,
            configuration="",
        )
        return replace(variant, base=BaseRecord(description="built elsewhere"), kernel=record)
    tree = bench.tree(variant.patchset)
    return replace(
        variant,
        tree=tree.tree,
        base=BaseRecord(description=tree.source.description, commit=tree.source.commit),
        patch_variants={str(number): name for number, name in tree.variants.items()},
        merged=tuple(tree.merged),
        kernel=KernelRecord(
            release=kernel.release,
            build_id=kernel.build_id,
            digest=kernel.digest,
            compiler=kernel.compiler,
            configuration=bench.configuration().digest,
            warnings=len(kernel.warnings),
        ),
    )


def keep_build_log(directory: Path, patchset: str, kernel: KernelBuild | BuildFailed) -> None:
    """Copy the output of make to ``logs/build-PATCHSET.log`` of a run, since the cache may be cleaned up."""
    if kernel.log is not None and kernel.log.is_file():
        shutil.copyfile(kernel.log, directory / "logs" / f"build-{patchset.replace(':', '-')}.log")


def host_record() -> HostRecord:
    """Processor, memory and kernel of this host; nothing that identifies the host or its owner."""
    import psutil

    return HostRecord(
        cpu=processor_model(),
        cpus=os.cpu_count(),
        memory_mib=psutil.virtual_memory().total // 2**20,
        kernel=platform.release(),
        load=tuple(round(figure, 2) for figure in os.getloadavg()),
    )


def calibration_record(cache: Cache) -> CalibrationRecord | None:
    """The last calibration since the host was booted; None if there is none."""
    last = last_calibration(cache)
    if last is None:
        return None
    return CalibrationRecord(sentence=last.sentence, cpu=last.cpu, measured=asdict(last))


def tool_versions() -> dict[str, str]:
    """The first line of each tool's version output; missing tools are omitted."""
    versions = {"python": platform.python_version()}
    for name, program in _VERSION_OF.items():
        if shutil.which(program):
            with suppress(InfrastructureError):  # ignore a tool that is installed but does not start
                versions[name] = version_of(program)
    return versions
