# SPDX-License-Identifier: GPL-2.0-only
"""The request of ``orchestrate run``: from the command line, an experiment file, or a run to be resumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from orchestrator import defaults
from orchestrator.errors import UserError
from orchestrator.execution.bench import Bench
from orchestrator.execution.derived import derived_metrics
from orchestrator.execution.measured_cell import CellResult
from orchestrator.execution.provenance import begin, other_kernel, topology_of, variant_record
from orchestrator.experiment.cell import Cell
from orchestrator.experiment.experiment import Experiment, load_experiment
from orchestrator.experiment.knob import parse_settings
from orchestrator.experiment.variant import Variant, compared, of_kernels, variants_of
from orchestrator.guest.sampler import SAMPLER_METRICS
from orchestrator.guest.workload import Workload, parse_workload_arguments
from orchestrator.kernel.series import OtherKernel, Series
from orchestrator.machine.topology import Topology
from orchestrator.store.manifest import Manifest, PlannedCell, RunKind, WorkloadRecord
from orchestrator.store.observation import CLOCK, CLOCKS, Metric
from orchestrator.store.probe import Probe, probe_metrics
from orchestrator.store.run import CellRow

#: Fields that override those of an experiment file if they are given: field here -> field of :class:`Experiment`.
_REPLACES: Final = {
    "name": "name",
    "topology": "topology",
    "accelerator": "accelerator",
    "repeat": "repeat",
    "seed": "seed",
    "flavour": "flavour",
    "margin": "margin",
    "timeout_s": "timeout_s",
    "sample": "sample",
    "profile": "profile",
}


@dataclass(frozen=True)
class MeasureRequest:
    """The request for a measuring run on the command line.

    Args:
        file: experiment file.
        patchsets: patchsets to compare with `against`; only without a file.
        workloads: ``NAME`` or ``NAME:KEY=VALUE,...``; with a file, names of its workloads. Empty for all.
        variants: names of variants of the file; empty for all.
        topology: value of ``--topology``.
        settings: ``KEY=VALUE,...``.
        repeat: fresh boots per variant and workload.
        seed: seed for all random choices.
        margin: relative difference up to which a metric counts as unchanged.
        timeout_s: timeout per workload in host seconds; None for the one in its manifest.
        until_decided: add boots until each primary metric is decided; the number of looks at the data is fixed.
        max_repeat: with `until_decided`, most fresh boots per variant and workload; None for the default.
        trees: two sources to compare instead of patchsets.
        sample: what else to read with the counters.
        kernels: kernels that were built elsewhere. Without patchsets and `against`, the first of several is the
            baseline.
        profile: count instructions per kernel function.
        given: names of the fields that were given on the command line; they override the file.
    """

    file: Path | None
    patchsets: Sequence[str]
    against: str
    workloads: Sequence[str]
    variants: Sequence[str]
    topology: str
    accelerator: str
    settings: Sequence[str]
    cmdline: Sequence[str]
    repeat: int
    seed: int
    margin: float
    flavour: str
    timeout_s: float | None
    name: str | None
    given: frozenset[str] = frozenset()
    until_decided: bool = False
    max_repeat: int | None = None
    trees: tuple[str, str] | None = None
    sample: tuple[str, ...] = ()
    kernels: tuple[OtherKernel, ...] = ()
    profile: bool = False

    def experiment(
        self, series: Series, workloads: Mapping[str, Workload], default: Sequence[str]
    ) -> Experiment:
        """The requested experiment.

        Args:
            default: workloads to use if none is given.

        Raises:
            UserError: the request is invalid; the message names the fault.
        """
        looks = self._looks()
        if self.file is not None:
            return replace(self._from_file(self.file, series, workloads), **looks)
        if not self.patchsets and self.trees is None and not self.kernels:
            raise UserError("give a patchset, e.g. --patchset core-only, or an experiment file.")
        if self.variants:
            raise UserError("--variant selects variants of an experiment file; omit it with --patchset.")
        settings = parse_settings(self.settings, series)
        if self.trees is not None:
            variants = compared(self.trees, settings, self.cmdline)
        elif len(self.kernels) > 1 and not self.patchsets and "against" not in self.given:
            variants = of_kernels(self.kernels, settings, self.cmdline, series, with_baseline=True)
        else:
            variants = variants_of(self.patchsets, self.against, settings, self.cmdline, series)
            variants += of_kernels(self.kernels, settings, self.cmdline, series, with_baseline=False)
        asked = Experiment(
            name=self.name or "+".join(self.patchsets) or f"{variants[0].name}-{variants[-1].name}",
            variants=variants,
            workloads=parse_workload_arguments(self.workloads or default, workloads),
            topology=Topology.parse(self.topology),
            accelerator=self.accelerator,
            repeat=self.repeat,
            seed=self.seed,
            flavour=self.flavour,
            margin=self.margin,
            timeout_s=self.timeout_s,
            sample=self.sample,
            profile=self.profile,
        )
        return replace(asked, **looks)

    def _looks(self) -> dict[str, Any]:
        """The fields of an experiment that ``--until-decided`` sets; empty without the option.

        Raises:
            UserError: the options contradict each other.
        """
        if not self.until_decided:
            if self.max_repeat is not None:
                raise UserError(
                    "--max-repeat limits --until-decided; for a fixed number of boots, write --repeat."
                )
            return {}
        most = defaults.MAX_REPEAT if self.max_repeat is None else self.max_repeat
        if not defaults.REPEAT <= most <= 1000:
            raise UserError(
                f"--max-repeat {most}: choose {defaults.REPEAT} to 1000; with fewer boots equivalence cannot be shown."
            )
        # Imported here, because it takes a second and most runs do not need it.
        from orchestrator.analysis.looks import looks

        return {"repeat": looks(most)[0].repetitions, "max_repeat": most}

    def _from_file(self, path: Path, series: Series, workloads: Mapping[str, Workload]) -> Experiment:
        """The experiment of the file, or a part of it; options that were given override the file."""
        if not path.suffix and not path.exists():
            raise UserError(
                f"there is no file {path}; to run a patchset of the series, write: orchestrate run -p {path}"
            )
        whole = load_experiment(path, series, workloads)
        replaced: dict[str, Any] = {
            field: getattr(self, own) for own, field in _REPLACES.items() if own in self.given
        }
        if "topology" in replaced:
            replaced["topology"] = Topology.parse(self.topology)
        return replace(whole.part(self.variants, self.workloads), **replaced)


def manifest_of(experiment: Experiment, bench: Bench, command: Sequence[str]) -> Manifest:
    """The content of ``run.json`` before any slow work; this neither builds nor boots."""
    begun = begin(
        RunKind.RUN,
        experiment.name,
        bench,
        experiment.topology,
        command,
        variants=[variant_record(variant, bench) for variant in experiment.variants],
        workloads={
            name: workload_record(bench.workloads[name], parameters, bench.series, experiment.probes)
            for name, parameters in experiment.workloads.items()
        },
        cells=[planned_cell(cell, experiment) for cell in experiment.cells],
    )
    return replace(
        begun,
        margin=experiment.margin,
        repeat=experiment.repeat,
        max_repeat=experiment.max_repeat,
        seed=experiment.seed,
        timeout_s=experiment.timeout_s,
        tradeoff=dict(experiment.tradeoff),
        sample=experiment.sample,
        profile=experiment.profile,
        probes=experiment.probes,
    )


def workload_record(
    workload: Workload, parameters: Mapping[str, str], series: Series, probes: Sequence[Probe] = ()
) -> WorkloadRecord:
    """The record of a workload in ``run.json``.

    Args:
        parameters: parameters that differ from the defaults.
        series: the series, which may define metrics.
        probes: probes of the experiment, which have metrics of their own.
    """
    declared = {metric.name: metric for metric in metrics_of(workload, series)} | probe_metrics(probes)
    metrics = [
        metric.by(clock)
        for metric in declared.values()
        for clock in (CLOCKS if CLOCK in metric.name else ("",))
    ]
    return WorkloadRecord(
        title=workload.title,
        parameters={**{key: str(p.default) for key, p in workload.parameters.items()}, **parameters},
        metrics={metric.name: metric for metric in metrics},
    )


def planned_cell(cell: Cell, experiment: Experiment) -> PlannedCell:
    """The record of a planned cell in ``run.json``."""
    return PlannedCell(
        cell=cell.id,
        variant=cell.variant,
        role=experiment.variant(cell.variant).role,
        workload=cell.workload,
        repetition=cell.repetition,
        seed=cell.seed,
    )


def metrics_of(workload: Workload, series: Series) -> Iterable[Metric]:
    """Metrics of the workload, then those of all workloads; a workload may override the latter."""
    own = workload.metrics
    return {**own, **derived_metrics(series), **SAMPLER_METRICS, **own}.values()


def row_of(result: CellResult, experiment: Experiment) -> CellRow:
    """The record of a finished cell."""
    return CellRow(
        planned_cell(result.cell, experiment),
        outcome=result.outcome,
        evidence=result.evidence,
        boot_s=result.boot_s,
        run_s=result.run_s,
        total_s=result.total_s,
        started_utc=result.started_utc,
    )


def experiment_of_manifest(manifest: Manifest) -> Experiment:
    """The experiment of a run directory, checked to have exactly the cells that the run planned.

    Raises:
        UserError: the planned cells are not those of the described experiment.
    """
    experiment = described_experiment(manifest)
    planned = [cell.cell for cell in manifest.cells]
    first = [cell.id for cell in experiment.cells]
    # Boots that a look has added are part of the maximum.
    possible = {cell.id for cell in experiment.possible_cells}
    if planned[: len(first)] != first or not possible.issuperset(planned):
        raise UserError(
            "the cells planned in run.json do not match its experiment; this run cannot be resumed."
        )
    return experiment


def described_experiment(manifest: Manifest) -> Experiment:
    """The experiment that ``run.json`` describes, without a check of the planned cells.

    Raises:
        UserError: the described experiment is not valid.
    """
    return Experiment(
        name=manifest.name,
        variants=tuple(
            Variant(each.name, each.role, each.patchset, each.knobs, each.cmdline, other_kernel(each))
            for each in manifest.variants
        ),
        workloads={name: workload.parameters for name, workload in manifest.workloads.items()},
        topology=topology_of(manifest.topology),
        # A resumed run keeps the accelerator of its first part, since a run must not mix clocks.
        accelerator=manifest.accelerator.name,
        repeat=manifest.repeat,
        max_repeat=manifest.max_repeat,
        seed=manifest.seed,
        flavour=manifest.flavour,
        margin=manifest.margin,
        timeout_s=manifest.timeout_s,
        tradeoff=manifest.tradeoff,
        sample=tuple(manifest.sample),
        profile=manifest.profile,
        probes=tuple(manifest.probes),
    )
