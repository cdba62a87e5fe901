# SPDX-License-Identifier: GPL-2.0-only
"""Runs the tree's own kernel-doc on files, to find comments that do not fit the code they document.

See the kernel's Documentation/doc-guide/kernel-doc.rst.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError
from orchestrator.events import Events
from orchestrator.kernel.config import Configuration
from orchestrator.kernel.sparse import checking
from orchestrator.kernel.tree import PatchedTree
from orchestrator.kernel.workshop import Workshop
from orchestrator.process import run

_KIND = "kernel-doc"
#: Where the program is, newest tree first.
_PROGRAMS = ("tools/docs/kernel-doc", "scripts/kernel-doc")
_FINDING = re.compile(r"^(?:\w+: )?(?P<place>[^\s:]+:\d+:?) (?P<text>.*)$")
#: Said of a file without such comments, which is no fault.
_NONE_THERE = "no structured comments found"


def documentation_findings(
    tree: PatchedTree, files: Sequence[str], configuration: Configuration, cache: Cache, events: Events
) -> list[str]:
    """The findings of kernel-doc in C files and headers of a tree; files that it does not have are left out.

    Raises:
        InfrastructureError: the tree has no kernel-doc, or the host failed.
    """
    wanted = sorted(path for path in files if path.endswith((".c", ".h")))
    if not wanted:
        return []
    key = {"tree": tree.tree, "files": wanted}

    def make(directory: Path) -> None:
        # The work tree of the sparse check, as checkpatch uses it.
        apart = checking(configuration)
        with events.step("kernel-doc") as step, Workshop(apart, cache, step) as workshop:
            workshop.lay_out(tree)
            there = [path for path in wanted if (workshop.source / path).is_file()]
            lines = _findings(workshop.source, there) if there else []
        (directory / "findings.json").write_text(json.dumps(lines), encoding="utf-8")

    directory = cache.obtain(_KIND, key, make)
    found: list[str] = json.loads((directory / "findings.json").read_text(encoding="utf-8"))
    return found


def _findings(source: Path, files: Sequence[str]) -> list[str]:
    program = next((name for name in _PROGRAMS if (source / name).is_file()), None)
    if program is None:
        raise InfrastructureError("this kernel source has no scripts/kernel-doc.")
    done = run([str(source / program), "-none", *files], cwd=source, check=False)
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    return [
        line.strip() for line in lines if _FINDING.match(line.strip()) and _NONE_THERE not in line.lower()
    ]
