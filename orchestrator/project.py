# SPDX-License-Identifier: GPL-2.0-only
"""Directories of the project's data: patches, workloads, image recipes, results."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UserError


@dataclass(frozen=True)
class Project:
    """A checkout of this project, or a directory with the same layout.

    Args:
        root: the directory that holds ``kernel_patches/``, ``guest_workloads/`` and ``vm_images/``.
    """

    root: Path

    @property
    def kernel_patches(self) -> Path:
        """The patch series."""
        return self.root / "kernel_patches"

    @property
    def guest_workloads(self) -> Path:
        """C sources and manifests of the workloads."""
        return self.root / "guest_workloads"

    @property
    def vm_images(self) -> Path:
        """Recipes for guest images and kernel configuration fragments."""
        return self.root / "vm_images"

    @property
    def results(self) -> Path:
        """The run directories; ``$ORCHESTRATE_RESULTS`` overrides this."""
        return Path(os.environ.get("ORCHESTRATE_RESULTS") or self.root / "results")


def find_project(start: Path | None = None) -> Project:
    """Find the project: in ``$ORCHESTRATE_ROOT``, else in `start` or a parent, else around this package.

    Args:
        start: directory to search upwards from; default: the working directory.

    Raises:
        UserError: no directory with ``kernel_patches/`` and ``vm_images/`` was found.
    """
    named = os.environ.get("ORCHESTRATE_ROOT")
    here = (start or Path.cwd()).resolve()
    candidates = [Path(named)] if named else [here, *here.parents, Path(__file__).resolve().parent.parent]
    for candidate in candidates:
        if (candidate / "kernel_patches").is_dir() and (candidate / "vm_images").is_dir():
            return Project(candidate)
    raise UserError(
        f"no kernel_patches/ and vm_images/ in {candidates[0]} or its parent directories; "
        "run inside a clone of the project, or set ORCHESTRATE_ROOT to one."
    )
