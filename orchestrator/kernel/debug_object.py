# SPDX-License-Identifier: GPL-2.0-only
"""Objects with debugging information, without the rest of the kernel.

A whole kernel with debugging information takes minutes; the layout of a structure needs one object that uses it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from orchestrator.cache import Cache
from orchestrator.events import Events
from orchestrator.kernel.build import BuildFailed, label_of
from orchestrator.kernel.config import Configuration
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.target import tool_versions
from orchestrator.kernel.tree import PatchedTree
from orchestrator.kernel.without_option import enabled_objects
from orchestrator.kernel.workshop import DoesNotCompileError, Workshop, pinned

_KIND = "objects"
#: Includes most headers of mm/.
_ALWAYS = "init/main.c"


def changed_sources(tree: PatchedTree) -> tuple[str, ...]:
    """The C files that the stages of a tree change or add; none for the baseline."""
    if not tree.stages:
        return ()
    said = Repository(tree.repository).git(
        *("diff-tree", "-r", "-z", "--no-renames", "--name-only", "--diff-filter=d"),
        *(tree.source.commit, tree.commit, "--", "*.c"),
    )
    return tuple(name for name in said.stdout.split("\0") if name)


def debug_objects(
    tree: PatchedTree,
    sources: Sequence[str],
    configuration: Configuration,
    cache: Cache,
    events: Events,
    jobs: int | None = None,
) -> tuple[Path, ...]:
    """The objects of some C files and of init/main.c, from the cache or newly compiled.

    Args:
        sources: C files; those that the configuration or the tree lacks are left out.
        configuration: with debugging information.
        jobs: parallel jobs of make; None for one per CPU.

    Raises:
        BuildFailed: a file does not compile.
        UserError: a requested option is not in the final configuration.
        InfrastructureError: the host failed.
    """
    wanted = sorted({_ALWAYS, *sources})
    key = {
        "tree": tree.tree,
        "sources": wanted,
        "configuration": configuration.digest,
        "tools": list(tool_versions(configuration.target)),
        "pinned": pinned(configuration),
    }

    def make(directory: Path) -> None:
        with (
            events.step(f"compile {label_of(tree)}", "objects with DWARF") as step,
            Workshop(configuration, cache, step) as workshop,
        ):
            try:
                workshop.lay_out(tree)
                objects = enabled_objects(workshop, wanted)
                workshop.build(tree, jobs or os.cpu_count() or 1, objects)
            except DoesNotCompileError as error:
                raise BuildFailed(f"{label_of(tree)} does not compile:\n{error}", workshop.log) from None
            for name in objects:
                kept = directory / name
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(workshop.objects / name, kept)

    return tuple(sorted(cache.obtain(_KIND, key, make).rglob("*.o")))
