# SPDX-License-Identifier: GPL-2.0-only
"""Reads the experiment from a run's ``run.json``, so that an interrupted run can be resumed."""

from __future__ import annotations

from orchestrator.errors import UserError
from orchestrator.experiment.experiment import Experiment
from orchestrator.experiment.variant import Variant
from orchestrator.machine.topology import Node, Topology
from orchestrator.store.manifest import Manifest


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
    topology = manifest.topology
    return Experiment(
        name=manifest.name,
        variants=tuple(
            Variant(each.name, each.role, each.patchset, each.knobs, each.cmdline)
            for each in manifest.variants
        ),
        workloads={name: workload.parameters for name, workload in manifest.workloads.items()},
        topology=Topology(
            tuple(Node(node.cpus, node.memory_mib) for node in topology.nodes), topology.distances
        ),
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
