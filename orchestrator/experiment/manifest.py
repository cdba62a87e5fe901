# SPDX-License-Identifier: GPL-2.0-only
"""An experiment read back from a run's ``run.json``, so that the run can be finished."""

from __future__ import annotations

from orchestrator.errors import UserError
from orchestrator.experiment.experiment import Experiment
from orchestrator.experiment.variant import Variant
from orchestrator.machine.topology import Node, Topology
from orchestrator.store.manifest import Manifest


def experiment_of_manifest(manifest: Manifest) -> Experiment:
    """The experiment that a run directory was made for, which plans the very cells that it does.

    Raises:
        UserError: its planned cells are not those of the experiment it describes.
    """
    experiment = described_experiment(manifest)
    if [cell.cell for cell in manifest.cells] != [cell.id for cell in experiment.cells]:
        raise UserError("run.json plans other cells than its experiment has; this run cannot be finished.")
    return experiment


def described_experiment(manifest: Manifest) -> Experiment:
    """The variants, workloads and machine that ``run.json`` describes, whatever cells were made of them.

    Raises:
        UserError: it describes no experiment.
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
        # A finished choice is kept: a run never mixes clocks.
        accelerator=manifest.accelerator.name,
        repeat=manifest.repeat,
        seed=manifest.seed,
        flavour=manifest.flavour,
        margin=manifest.margin,
        timeout_s=manifest.timeout_s,
        tradeoff=manifest.tradeoff,
    )
