# SPDX-License-Identifier: GPL-2.0-only
"""Reads the experiment from a run's ``run.json``, so that an interrupted run can be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.errors import UserError
from orchestrator.experiment.experiment import Experiment
from orchestrator.experiment.variant import Role, Variant
from orchestrator.machine.topology import Node, Topology


def experiment_of_manifest(manifest: Mapping[str, Any]) -> Experiment:
    """The experiment of a run directory, checked to have exactly the cells that the run planned.

    Args:
        manifest: content of ``run.json``.

    Raises:
        UserError: a key is missing, or the planned cells are not those of the described experiment.
    """
    experiment = described_experiment(manifest)
    if [entry["cell"] for entry in manifest["cells"]] != [cell.id for cell in experiment.cells]:
        raise UserError(
            "the cells planned in run.json do not match its experiment; this run cannot be resumed."
        )
    return experiment


def described_experiment(manifest: Mapping[str, Any]) -> Experiment:
    """The experiment that ``run.json`` describes, without a check of the planned cells.

    Raises:
        UserError: a key is missing.
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
            # A resumed run keeps the accelerator of its first part, since a run must not mix clocks.
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
            f"run.json has no valid {error}; this run cannot be resumed, start a new one."
        ) from error
