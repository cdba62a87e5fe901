# SPDX-License-Identifier: GPL-2.0-only
"""An experiment read back from a run's ``run.json``, so that the run can be finished."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.errors import UserError
from orchestrator.experiment.experiment import Experiment
from orchestrator.experiment.variant import Role, Variant
from orchestrator.machine.topology import Node, Topology


def experiment_of_manifest(manifest: Mapping[str, Any]) -> Experiment:
    """The experiment that a run directory was made for, which plans the very cells that it does.

    Args:
        manifest: the content of ``run.json``.

    Raises:
        UserError: it lacks something, or its planned cells are not those of the experiment it describes.
    """
    experiment = described_experiment(manifest)
    if [entry["cell"] for entry in manifest["cells"]] != [cell.id for cell in experiment.cells]:
        raise UserError("run.json plans other cells than its experiment has; this run cannot be finished.")
    return experiment


def described_experiment(manifest: Mapping[str, Any]) -> Experiment:
    """The variants, workloads and machine that ``run.json`` describes, whatever cells were made of them.

    Raises:
        UserError: it lacks something.
    """
    try:
        return Experiment(
            name=manifest["name"],
            variants=tuple(
                Variant(
                    entry["name"],
                    Role(entry["role"]),
                    entry["patchset"],
                    entry["knobs"],
                    tuple(entry["cmdline"]),
                )
                for entry in manifest["variants"]
            ),
            workloads={name: entry["parameters"] for name, entry in manifest["workloads"].items()},
            topology=Topology(
                tuple(Node(**node) for node in manifest["topology"]["nodes"]),
                tuple(tuple(row) for row in manifest["topology"]["distances"]),
            ),
            # A finished choice is kept: a run never mixes clocks.
            accelerator=manifest["accelerator"]["name"],
            repeat=manifest["repeat"],
            seed=manifest["seed"],
            flavour=manifest["flavour"],
            margin=manifest["margin"],
            timeout_s=manifest.get("timeout_s"),
            tradeoff=manifest.get("tradeoff", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"run.json lacks or garbles {error}; this run cannot be finished, start a new one."
        ) from error
