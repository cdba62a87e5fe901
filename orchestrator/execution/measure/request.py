# SPDX-License-Identifier: GPL-2.0-only
"""What a measuring run is asked for: from the command line, an experiment file, or the run that is finished."""

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
from orchestrator.execution.provenance import begin, topology_of, variant_record
from orchestrator.experiment.cell import Cell
from orchestrator.experiment.experiment import Experiment, load_experiment
from orchestrator.experiment.knob import parse_settings
from orchestrator.experiment.variant import Variant, variants_of
from orchestrator.guest.sampler import SAMPLER_METRICS
from orchestrator.guest.workload import Workload, parse_workload_arguments
from orchestrator.kernel.series import Series
from orchestrator.machine.topology import Topology
from orchestrator.store.manifest import Manifest, PlannedCell, RunKind, WorkloadRecord
from orchestrator.store.observation import CLOCK, CLOCKS, Metric
from orchestrator.store.run import CellRow

#: What replaces what an experiment file says, where it is given: field here -> field of :class:`Experiment`.
_REPLACES: Final = {
    "name": "name",
    "topology": "topology",
    "accelerator": "accelerator",
    "repeat": "repeat",
    "seed": "seed",
    "flavour": "flavour",
    "margin": "margin",
    "timeout_s": "timeout_s",
}


@dataclass(frozen=True)
class MeasureRequest:
    """A measuring run as the command line asks for it.

    Args:
        file: experiment file.
        patchsets: to compare with `against`, without a file.
        workloads: ``NAME`` or ``NAME:KEY=VALUE,...``; with a file, names of its workloads. Empty for all.
        variants: names of the file's variants; empty for all.
        topology: as ``--topology`` takes it.
        settings: ``KEY=VALUE,...``.
        repeat: fresh boots per variant and workload.
        seed: for all random choices.
        margin: relative difference up to which a metric counts as unchanged.
        timeout_s: host seconds that one workload may take; None: what its manifest says.
        until_decided: boot on, in looks planned ahead, until each primary metric is decided.
        max_repeat: most fresh boots per variant and workload then; None for the default.
        given: names of the fields that the command line names; they replace what the file says.
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

    def experiment(
        self, series: Series, workloads: Mapping[str, Workload], default: Sequence[str]
    ) -> Experiment:
        """The experiment that it stands for.

        Args:
            default: workloads where none is named.

        Raises:
            UserError: something in it is wrong; the sentence names it.
        """
        looks = self._looks()
        if self.file is not None:
            return replace(self._from_file(self.file, series, workloads), **looks)
        if not self.patchsets:
            raise UserError("name what to run: --patchset core-only, or an experiment file.")
        if self.variants:
            raise UserError(
                "--variant chooses from an experiment file; --patchset names its variants itself."
            )
        asked = Experiment(
            name=self.name or "+".join(self.patchsets),
            variants=variants_of(
                self.patchsets, self.against, parse_settings(self.settings, series), self.cmdline, series
            ),
            workloads=parse_workload_arguments(self.workloads or default, workloads),
            topology=Topology.parse(self.topology),
            accelerator=self.accelerator,
            repeat=self.repeat,
            seed=self.seed,
            flavour=self.flavour,
            margin=self.margin,
            timeout_s=self.timeout_s,
        )
        return replace(asked, **looks)

    def _looks(self) -> dict[str, Any]:
        """What ``--until-decided`` makes of an experiment's repetitions; nothing where it is not given.

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
        # It takes a second to import, which a run of a fixed number need not wait for.
        from orchestrator.analysis.looks import looks

        return {"repeat": looks(most)[0].repetitions, "max_repeat": most}

    def _from_file(self, path: Path, series: Series, workloads: Mapping[str, Workload]) -> Experiment:
        """What the file asks for, or a part of it; what the command line names replaces what the file says."""
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
    """What ``run.json`` says before anything slow starts; nothing here builds or boots."""
    begun = begin(
        RunKind.RUN,
        experiment.name,
        bench,
        experiment.topology,
        command,
        variants=[variant_record(variant, bench) for variant in experiment.variants],
        workloads={
            name: workload_record(bench.workloads[name], parameters, bench.series)
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
    )


def workload_record(workload: Workload, parameters: Mapping[str, str], series: Series) -> WorkloadRecord:
    """A workload as ``run.json`` has it.

    Args:
        parameters: those that differ from the defaults.
        series: describes metrics of its own.
    """
    declared = _metrics_of(workload, series)
    metrics = [
        metric.by(clock) for metric in declared for clock in (CLOCKS if CLOCK in metric.name else ("",))
    ]
    return WorkloadRecord(
        title=workload.title,
        parameters={**{key: str(p.default) for key, p in workload.parameters.items()}, **parameters},
        metrics={metric.name: metric for metric in metrics},
    )


def planned_cell(cell: Cell, experiment: Experiment) -> PlannedCell:
    """A cell as ``run.json`` has it."""
    return PlannedCell(
        cell=cell.id,
        variant=cell.variant,
        role=experiment.variant(cell.variant).role,
        workload=cell.workload,
        repetition=cell.repetition,
        seed=cell.seed,
    )


def _metrics_of(workload: Workload, series: Series) -> Iterable[Metric]:
    """The workload's own metrics, then those that all have; it may say itself what one of these means to it."""
    own = workload.metrics
    return {**own, **derived_metrics(series), **SAMPLER_METRICS, **own}.values()


def row_of(result: CellResult, experiment: Experiment) -> CellRow:
    """The end of a cell as it is stored."""
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
    # What was added after a look is some of what may be.
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
            Variant(each.name, each.role, each.patchset, each.knobs, each.cmdline)
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
    )
