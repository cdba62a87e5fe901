# SPDX-License-Identifier: GPL-2.0-only
"""Runs sparse(1) on C files of a tree, and tells which findings a stage added.

See the kernel's Documentation/dev-tools/sparse.rst.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from orchestrator.cache import Cache
from orchestrator.events import Events
from orchestrator.kernel.config import Configuration
from orchestrator.kernel.diagnostics import added
from orchestrator.kernel.target import tool_versions
from orchestrator.kernel.tree import PatchedTree
from orchestrator.kernel.without_option import enabled_objects
from orchestrator.kernel.workshop import Workshop, pinned
from orchestrator.process import require, run

_KIND = "sparse"
_CHECKED = re.compile(r"^  CHECK +(\S+)$")
_FINDING = re.compile(r"^[^\s:]+:\d+(?::\d+)?: (?:warning|error): ")
_SUFFIX = "-sparse"


@lru_cache(maxsize=1)
def sparse_version() -> str:
    """The output of ``sparse --version``.

    Raises:
        InfrastructureError: sparse is not installed.
    """
    return run([require("sparse"), "--version"]).stdout.strip()


def checking(configuration: Configuration) -> Configuration:
    """The same configuration for a separate workshop, so that switching to the previous stage costs no rebuild."""
    return replace(configuration, flavour=f"{configuration.flavour}{_SUFFIX}")


def findings_in(
    tree: PatchedTree,
    sources: Iterable[str],
    configuration: Configuration,
    cache: Cache,
    events: Events,
    jobs: int | None = None,
) -> dict[str, list[str]]:
    """The findings of sparse for each C file that the configuration compiles.

    Results are cached by tree and file, so the results of one stage are reused for the next.

    Raises:
        DoesNotCompileError: one of the files does not compile.
        InfrastructureError: sparse is not installed, or the host failed.
    """
    wanted = sorted(set(sources))
    keys = {source: _key(tree, source, configuration) for source in wanted}
    missing = [source for source in wanted if not cache.has(_KIND, keys[source])]
    if missing:
        said = _check(tree, missing, configuration, cache, events, jobs)
        for source in missing:
            lines = said.get(source)

            def keep(directory: Path, lines: Sequence[str] | None = lines) -> None:
                (directory / "findings.json").write_text(json.dumps(lines), encoding="utf-8")

            cache.obtain(_KIND, keys[source], keep)
    found = {}
    for source in wanted:
        text = (cache.path(_KIND, keys[source]) / "findings.json").read_text(encoding="utf-8")
        lines = json.loads(text)
        if lines is not None:  # not compiled in this configuration, or missing
            found[source] = lines
    return found


def new_findings(parent: Mapping[str, Sequence[str]], stage: Mapping[str, Sequence[str]]) -> list[str]:
    """Findings that a stage adds to those of its parent, compared per checked source file."""
    return [line for source, lines in stage.items() for line in added(parent.get(source, ()), lines)]


def parse_findings(lines: Iterable[str]) -> dict[str, list[str]]:
    """The findings in the output of make ``C=2``, per checked C file.

    >>> parse_findings(["  CHECK   mm/a.c", "mm/a.c:3:1: warning: context imbalance in 'f'"])
    {'mm/a.c': ["mm/a.c:3:1: warning: context imbalance in 'f'"]}
    """
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in lines:
        checked = _CHECKED.match(line)
        if checked:
            current = found.setdefault(checked[1], [])
        elif _FINDING.match(line):
            current.append(line)
    return found


def _check(
    tree: PatchedTree,
    sources: Sequence[str],
    configuration: Configuration,
    cache: Cache,
    events: Events,
    jobs: int | None,
) -> dict[str, list[str]]:
    apart = checking(configuration)
    parallel = jobs or os.cpu_count() or 1
    with events.step(f"sparse on {len(sources)} files") as step, Workshop(apart, cache, step) as workshop:
        sparse_version()
        workshop.lay_out(tree)
        objects = enabled_objects(workshop, sources)
        if not objects:
            return {}
        workshop.build(tree, parallel, objects)
        found = parse_findings(workshop.check(objects, parallel))
    return {f"{name.removesuffix('.o')}.c": found.get(f"{name.removesuffix('.o')}.c", []) for name in objects}


def _key(tree: PatchedTree, source: str, configuration: Configuration) -> dict[str, object]:
    return {
        "tree": tree.tree,
        "file": source,
        "configuration": configuration.digest,
        "tools": [*tool_versions(), sparse_version()],
        "pinned": pinned(configuration),
    }
