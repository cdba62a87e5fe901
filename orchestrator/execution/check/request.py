# SPDX-License-Identifier: GPL-2.0-only
"""The request of ``orchestrate check``: a patchset, and the traces to replay."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from orchestrator.errors import UserError
from orchestrator.execution.bench import Bench
from orchestrator.execution.check.reference import check_modelled, known_stages, memory_nodes
from orchestrator.execution.provenance import begin, topology_of, variant_record
from orchestrator.experiment.variant import Variant, role_of
from orchestrator.kernel.series import BASELINE, Series
from orchestrator.machine.topology import Topology
from orchestrator.model import generator
from orchestrator.model.trace import Trace, TraceError, format_trace, parse
from orchestrator.spelling import hint
from orchestrator.store.manifest import CheckRecord, Manifest, PlannedCell, RunKind, WorkloadRecord
from orchestrator.store.observation import Metric

#: Name of the workload in tables of this kind of run.
WORKLOAD = "check"
METRICS = (
    Metric("steps.total", "operations", None, help="Operations up to the first divergence, or all."),
    Metric("compared_fields.total", "fields", None, help="Number of compared values."),
    Metric(
        "uncompared_fields.total",
        "fields",
        None,
        help="Counters that the kernel has and the model does not.",
    ),
)
_SEEDS: Final = re.compile(r"(\d{1,18})(?:\.\.(\d{1,18}))?")
_MOST_SEEDS: Final = 100_000


@dataclass(frozen=True)
class CheckRequest:
    """The request for a check.

    Args:
        traces: traces by name, which is part of the cell's name: the seed, or the name of the file.
        shrink: shrink traces that diverge.
        every_stage: find the first stage of the patchset whose kernel diverges.
    """

    patchset: str
    traces: Mapping[str, Trace]
    topology: Topology
    cmdline: tuple[str, ...] = ()
    shrink: bool = True
    every_stage: bool = False

    def record(self) -> CheckRecord:
        """The part of ``run.json`` that is needed to resume the check."""
        return CheckRecord(traces=tuple(self.traces), shrink=self.shrink, every_stage=self.every_stage)

    def manifest(self, bench: Bench, command: Sequence[str]) -> Manifest:
        """The content of ``run.json`` before any slow work."""
        role = role_of(self.patchset)
        variant = Variant(self.patchset, role, self.patchset, cmdline=self.cmdline)
        begun = begin(
            RunKind.CHECK,
            f"check-{self.patchset}",
            bench,
            self.topology,
            command,
            variants=[variant_record(variant, bench)],
            workloads={
                WORKLOAD: WorkloadRecord(
                    title="Traces against the reference model",
                    metrics={metric.name: metric for metric in METRICS},
                )
            },
            cells=[self.cell(number, trace) for number, trace in enumerate(self.traces.values(), 1)],
        )
        return replace(begun, check=self.record())

    def cell(self, number: int, trace: Trace) -> PlannedCell:
        """The cell of a trace.

        Args:
            number: number of the trace, from 1.
        """
        return PlannedCell(
            cell=f"{self.patchset}.{WORKLOAD}.{number}",
            variant=self.patchset,
            role=role_of(self.patchset),
            workload=WORKLOAD,
            repetition=number,
            seed=trace.seed or 0,
        )

    @classmethod
    def of_run(cls, path: Path, manifest: Manifest) -> CheckRequest:
        """The check request of a run directory.

        Raises:
            UserError: the run is not a check, or a trace is missing.
        """
        asked = manifest.check
        if asked is None:
            raise UserError(
                f"{path.name} was made by a version that could not resume checks; start a new run."
            )
        (variant,) = manifest.variants
        return cls(
            variant.patchset,
            read_traces(path, asked.traces),
            topology_of(manifest.topology),
            variant.cmdline,
            asked.shrink,
            asked.every_stage,
        )


@dataclass(frozen=True)
class TraceChoice:
    """The traces requested on the command line.

    Args:
        files: trace files; if empty, random traces are generated.
        seed, seeds: ``--seed`` and ``--seeds FIRST..LAST``.
        operations: number of operations per random trace.
        profile: mix of random operations.
    """

    files: Sequence[Path] = ()
    seed: int | None = None
    seeds: str | None = None
    operations: int = 1000
    profile: str = "mixed"

    def __post_init__(self) -> None:
        if self.profile not in generator.PROFILES:
            raise UserError(
                f"--profile {self.profile}: unknown profile; {hint(self.profile, generator.PROFILES)}"
            )
        if self.files and (self.seed is not None or self.seeds is not None):
            raise UserError("give either --trace or seeds, not both.")

    def loaded(self) -> dict[str, Trace]:
        """The traces of the files, by name.

        Raises:
            UserError: a file cannot be read, or two have the same name.
        """
        found = {path.stem: load_trace(path) for path in self.files}
        if len(found) < len(self.files):
            raise UserError(
                "two of the --trace files have the same name; rename one, as results are stored by name."
            )
        return found

    def traces(self, patchset: str, series: Series, topology: Topology) -> dict[str, Trace]:
        """The traces for a patchset's kernel; random traces depend on its stages and on the nodes of the guest."""
        names = known_stages(series.select(patchset))
        if patchset != BASELINE:
            check_modelled(series)
        nodes = memory_nodes(topology)
        return self.loaded() or {
            f"seed-{each}": generator.generate(each, self.operations, self.profile, names, nodes=nodes)
            for each in parse_seeds(self.seed, self.seeds)
        }


def patchset_of(traces: Mapping[str, Trace]) -> str:
    """The patchset named in the trace files.

    Raises:
        UserError: they name none, or different ones.
    """
    named = {trace.patchset for trace in traces.values() if trace.patchset}
    if len(named) == 1:
        return named.pop()
    if named:
        raise UserError(f"the traces are for {' and '.join(sorted(named))}; choose one with --patchset.")
    raise UserError("give the patchset to check, e.g. --patchset core-only or --patchset baseline.")


def keep_traces(path: Path, traces: Mapping[str, Trace]) -> None:
    """Write the traces of a run to its logs, so that the run can be resumed."""
    for name, trace in traces.items():
        _trace_file(path, name).write_text(format_trace(trace), encoding="utf-8")


def read_traces(path: Path, names: Sequence[str]) -> dict[str, Trace]:
    """The traces that :func:`keep_traces` wrote.

    Raises:
        UserError: one is missing, or damaged.
    """
    return {name: load_trace(_trace_file(path, name)) for name in names}


def _trace_file(path: Path, name: str) -> Path:
    return path / "logs" / f"{name}.trace"


def load_trace(path: Path) -> Trace:
    """Read a trace file.

    Raises:
        UserError: the file cannot be read, or is invalid; the message names the line.
    """
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except TraceError as error:
        raise UserError(str(error)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read this trace ({error}).") from error


def parse_seeds(seed: int | None, seeds: str | None) -> range:
    """The seeds of ``--seed N`` or ``--seeds FIRST..LAST``; 1 if neither is given.

    Raises:
        UserError: both are given, or the interval is invalid.

    >>> parse_seeds(None, "3..5")
    range(3, 6)
    """
    if seeds is None:
        return range(1, 2) if seed is None else range(seed, seed + 1)
    if seed is not None:
        raise UserError("give --seed or --seeds, not both.")
    match = _SEEDS.fullmatch(seeds.strip())
    if match is None:
        raise UserError(f"--seeds {seeds}: write FIRST..LAST or one number, e.g. 1..100.")
    first = int(match[1])
    last = int(match[2] or first)
    if not first <= last < first + _MOST_SEEDS:
        raise UserError(f"--seeds {seeds}: choose 1 to {_MOST_SEEDS} seeds, in ascending order.")
    return range(first, last + 1)
