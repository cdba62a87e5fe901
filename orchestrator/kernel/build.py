# SPDX-License-Identifier: GPL-2.0-only
"""Reproducible kernel builds from a tree and a configuration, cached by the digest of all inputs."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cache import Artefact, Cache
from orchestrator.errors import InfrastructureError, OrchestrateError, UserError
from orchestrator.events import Events
from orchestrator.kernel.config import Configuration
from orchestrator.kernel.elf import build_id
from orchestrator.kernel.target import Target, tool_versions
from orchestrator.kernel.tree import PatchedTree
from orchestrator.kernel.workshop import (
    DoesNotCompileError,
    Workshop,
    has_objects,
    pinned,
)
from orchestrator.process import require, run

_KIND = "kernel"
_IMAGE = "arch/x86/boot/bzImage"
_TOOLS = ("make", "gcc", "ld", "flex", "bison", "bc", "perl")


class BuildFailed(OrchestrateError):  # noqa: N818 - named like the outcome of a cell
    """The tree does not compile, because of its patches and not because of the host.

    Args:
        message: one sentence, followed by the compiler's messages.
        log: the complete build log.
    """

    exit_status = 3

    def __init__(self, message: str, log: Path) -> None:
        super().__init__(message, log)

    def __reduce__(self) -> tuple[type[BuildFailed], tuple[object, ...]]:
        """Both arguments, so that the exception can be pickled in a worker process."""
        return BuildFailed, (str(self), self.log)


@dataclass(frozen=True)
class KernelBuild:
    """A built kernel in the cache.

    Args:
        directory: directory of the files below.
        release: kernel release, as printed by ``uname -r``.
        build_id: build ID of the vmlinux; a running kernel shows it in /sys/kernel/notes.
        compiler: version line of the compiler.
        warnings: compiler warnings, without duplicates.
        seconds: host seconds that the build took.
        cached: whether it was already in the cache.
        digest: digest of all inputs.
        is_prebuilt: whether it was built elsewhere; then the build ID is empty if there is no vmlinux.
    """

    directory: Path
    release: str
    build_id: str
    compiler: str
    warnings: tuple[str, ...]
    seconds: float
    cached: bool
    digest: str
    is_prebuilt: bool = False

    @property
    def bzimage(self) -> Path:
        """The kernel image that QEMU boots."""
        return self.directory / "bzImage"

    @property
    def vmlinux(self) -> Path:
        """The ELF file that gdb reads."""
        return self.directory / "vmlinux"

    @property
    def config(self) -> Path:
        """The ``.config`` of the build."""
        return self.directory / "config"

    @property
    def log(self) -> Path:
        """The output of make."""
        return self.directory / "build.log"


def kernel_artefact(
    tree: PatchedTree, configuration: Configuration, cache: Cache, events: Events, jobs: int | None = None
) -> Artefact[KernelBuild]:
    """The kernel of a tree, to be built or taken from the cache.

    Args:
        jobs: parallel jobs of make; None for one per CPU.

    Raises when it is obtained:
        BuildFailed: the tree does not compile.
        UserError: a requested option is not in the final configuration.
        InfrastructureError: a tool or a header is missing, or the disk is full.
    """
    key = _key(tree, configuration)
    cached = cache.has(_KIND, key)

    def make(directory: Path) -> None:
        if cache.unfit_to_build:
            raise UserError(f"{cache.unfit_to_build}.")
        _check_host(configuration.target)
        # The duration depends mostly on whether objects of another stage can be reused.
        like = f"kernel-{'next' if has_objects(configuration, cache) else 'first'} {configuration.flavour}"
        with (
            events.step(f"build {label_of(tree)}", _flavour(configuration), like=like) as step,
            Workshop(configuration, cache, step) as workshop,
        ):
            began = time.monotonic()
            try:
                workshop.build(tree, jobs or os.cpu_count() or 1)
            except DoesNotCompileError as error:
                kept = workshop.log.with_name(f"failed-{directory.name.strip('.')[:20]}.log")
                shutil.copyfile(workshop.log, kept)
                raise BuildFailed(
                    f"{label_of(tree)} does not compile as {_flavour(configuration)}:\n{error}", kept
                ) from None
            _collect(workshop, directory, time.monotonic() - began, configuration.target)

    def load(directory: Path) -> KernelBuild:
        facts = json.loads((directory / "build.json").read_text(encoding="utf-8"))
        return KernelBuild(
            directory,
            facts["release"],
            facts["build_id"],
            facts["compiler"],
            tuple(facts["warnings"]),
            facts["seconds"],
            cached,
            directory.name,
        )

    return Artefact(cache, _KIND, lambda: key, make, load)


def label_of(tree: PatchedTree) -> str:
    """Name of a tree for display: the patchset that ends with its last stage."""
    if not tree.stages:
        return "baseline"
    last = tree.stages[-1]
    return f"{last.group}:{last.number}"


def _key(tree: PatchedTree, configuration: Configuration) -> dict[str, Any]:
    return {
        "tree": tree.tree,
        "configuration": configuration.digest,
        "tools": list(tool_versions(configuration.target)),
        "pinned": pinned(configuration),
        "architecture": configuration.target.architecture,
    }


def _collect(workshop: Workshop, directory: Path, seconds: float, target: Target) -> None:
    for made, kept in ((_IMAGE, "bzImage"), ("vmlinux", "vmlinux"), (".config", "config")):
        shutil.copyfile(workshop.objects / made, directory / kept)
    shutil.copyfile(workshop.log, directory / "build.log")
    facts = {
        "release": (workshop.objects / "include/config/kernel.release").read_text(encoding="utf-8").strip(),
        "build_id": build_id(directory / "vmlinux"),
        "compiler": tool_versions(target)[0],
        "warnings": workshop.warnings(),
        "seconds": round(seconds, 1),
    }
    (directory / "build.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _check_host(target: Target) -> None:
    for tool in (*_TOOLS, *target.tools):
        require(tool)
    # Every x86 build needs objtool, which is linked with libelf.
    preprocessed = run(
        ["gcc", "-E", "-o", os.devnull, "-x", "c", "-"], input_text="#include <gelf.h>\n", check=False
    )
    if preprocessed.returncode != 0:
        raise InfrastructureError(
            "the header gelf.h is missing on this host; install the Debian package libelf-dev."
        )


def _flavour(configuration: Configuration) -> str:
    return f"{configuration.flavour}{' with DWARF' if configuration.dwarf else ''}"
