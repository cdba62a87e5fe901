# SPDX-License-Identifier: GPL-2.0-only
"""A stage with a configuration option off: what has to be compiled to know that it builds, and what came of it.

A whole kernel for each option and stage would take hours and compile the same lines again and again. The standard
configuration, with the option on, is built and linked as a whole. With the option off it is enough to compile

- every C file that the series has touched so far: whatever the series adds is used in no other file;
- every C file with a name that the stage adds to a header, or takes out of one: to any other file the headers say what
  they said before, whichever options are on.

Only what kbuild's own files list for the configuration counts. A header is parsed as a whole wherever it is included,
so that a broken stub shows in each of these files. Nothing is linked, so the names that the objects leave undefined are
compared with what there is: one that a stage brought into use and that neither these objects nor the unpatched kernel
define would be missing at link time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from orchestrator.cache import Cache
from orchestrator.events import Events
from orchestrator.kernel.build import KernelBuild
from orchestrator.kernel.config import Configuration, line_of
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.stage_change import (
    added_words,
    last_change,
    sources_with,
    touched_sources,
)
from orchestrator.kernel.tree import PatchedTree
from orchestrator.kernel.workshop import DoesNotCompileError, Workshop, pinned, tool_versions
from orchestrator.process import run

_KIND = "compiled"
_USERS = "users"
#: Part of the key: raise it when what is compiled, or how it is judged, changes.
_RULES = 2


@dataclass(frozen=True)
class Compiled:
    """What compiling came to.

    Args:
        objects: that were compiled, relative to the object directory.
        warnings: object -> the compiler's warnings.
        error: the compiler's own lines; empty where all compiled.
        undefined: names that a link would miss, each with the object that wants it.
        log: everything that make printed.
    """

    objects: tuple[str, ...]
    warnings: Mapping[str, Sequence[str]]
    error: str
    undefined: tuple[str, ...]
    log: Path


def without(configuration: Configuration, option: str) -> Configuration:
    """A configuration with one option off, in a workshop of its own; what depends on the option goes as well.

    Args:
        option: e.g. ``CONFIG_NUMA``.
    """
    requested = {**configuration.requested, option: "n"}
    text = "".join(line_of(name, value) for name, value in sorted(requested.items()))
    flavour = f"{configuration.flavour}-no-{option.removeprefix('CONFIG_').lower().replace('_', '-')}"
    # Only the option itself has to be granted.
    return replace(
        configuration,
        flavour=flavour,
        text=text,
        requested={option: "n"},
        digest=f"{configuration.digest}-without-{option}",
    )


def compile_without(
    tree: PatchedTree,
    configuration: Configuration,
    option: str,
    baseline: KernelBuild,
    cache: Cache,
    events: Events,
    jobs: int | None = None,
) -> Compiled:
    """Compile what an option changes, with the option off, or find the result in the cache.

    Args:
        configuration: with the option on.
        baseline: the unpatched kernel in that configuration, for the names it defines.

    Raises:
        UserError: the option cannot be turned off.
        InfrastructureError: the host is in trouble.
    """
    sources = sorted({*touched_sources(tree), *_users(tree, cache)})
    return _compile(tree, without(configuration, option), sources, baseline, cache, events, jobs)


def compile_parent_without(
    parent: PatchedTree,
    configuration: Configuration,
    option: str,
    objects: Sequence[str],
    baseline: KernelBuild,
    cache: Cache,
    events: Events,
    jobs: int | None = None,
) -> Compiled:
    """Compile some objects of the stage before, as far as it has them: what did the compiler say of them there?"""
    there = set(
        Repository(parent.repository).git("ls-tree", "-r", "--name-only", parent.commit).stdout.split()
    )
    sources = [source for name in objects if (source := f"{name.removesuffix('.o')}.c") in there]
    return _compile(parent, without(configuration, option), sources, baseline, cache, events, jobs)


def _users(tree: PatchedTree, cache: Cache) -> list[str]:
    """C files with a name that the last stage declares in a header, or no longer declares."""
    names = last_change(tree).names

    def make(directory: Path) -> None:
        with_names = sources_with(tree, names)
        (directory / "files.json").write_text(json.dumps(with_names), encoding="utf-8")

    directory = cache.obtain(_USERS, {"tree": tree.tree, "names": list(names)}, make)
    found: list[str] = json.loads((directory / "files.json").read_text(encoding="utf-8"))
    return found


def _compile(
    tree: PatchedTree,
    configuration: Configuration,
    sources: Sequence[str],
    baseline: KernelBuild,
    cache: Cache,
    events: Events,
    jobs: int | None,
) -> Compiled:
    key = {
        "rules": _RULES,
        "tree": tree.tree,
        "configuration": configuration.digest,
        "sources": list(sources),
        "baseline": baseline.digest,
        "tools": list(tool_versions()),
        "pinned": pinned(configuration),
    }

    def make(directory: Path) -> None:
        facts: dict[str, object] = {"objects": [], "warnings": {}, "error": "", "undefined": []}
        with (
            events.step(f"compile {configuration.flavour}") as step,
            Workshop(configuration, cache, step) as workshop,
        ):
            try:
                workshop.lay_out(tree)
                objects = enabled_objects(workshop, sources)
                facts["objects"] = objects
                if objects:
                    workshop.build(tree, jobs or os.cpu_count() or 1, objects)
                    facts["warnings"] = workshop.warnings_of(objects)
                    facts["undefined"] = _undefined(tree, workshop, objects, baseline)
            except DoesNotCompileError as error:
                facts["error"] = str(error)
            if workshop.log.is_file():
                shutil.copyfile(workshop.log, directory / "build.log")
        (directory / "compiled.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    directory = cache.obtain(_KIND, key, make)
    facts = json.loads((directory / "compiled.json").read_text(encoding="utf-8"))
    return Compiled(
        tuple(facts["objects"]),
        facts["warnings"],
        facts["error"],
        tuple(facts["undefined"]),
        directory / "build.log",
    )


def enabled_objects(workshop: Workshop, sources: Sequence[str]) -> list[str]:
    """The objects of C files that kbuild makes in the workshop's configuration, in the tree laid out there.

    A file counts where its directory lists it, and every directory above lists the one below.
    """
    listed: dict[str, list[str]] = {}

    def names_in(place: str) -> list[str]:
        if place not in listed:
            listed[place] = workshop.listed(place)
        return listed[place]

    def is_entered(place: str) -> bool:
        # From the top downwards: a directory that is not entered may hold anything, of other tools even.
        path = PurePosixPath(place)
        return not place or any(
            is_entered(above) and f"{path.relative_to(above or '.')}/" in names_in(above)
            for above in map(_text, reversed(path.parents))
        )

    found = []
    for source in sources:
        path = PurePosixPath(source)
        place = _text(path.parent)
        if is_entered(place) and f"{path.stem}.o" in names_in(place):
            found.append(f"{source.removesuffix('.c')}.o")
    return found


def _text(directory: PurePosixPath) -> str:
    return "" if str(directory) == "." else str(directory)


def _undefined(
    tree: PatchedTree, workshop: Workshop, objects: Sequence[str], baseline: KernelBuild
) -> list[str]:
    words = added_words(tree)
    wanted: dict[str, str] = {}
    defined: set[str] = set()
    for name in objects:
        for symbol, kind in _symbols(workshop.objects / name):
            if kind == "U":
                wanted.setdefault(symbol, name)
            elif kind not in "wv":  # a weak name that nothing defines is 0, and links
                defined.add(symbol)
    missing = {symbol for symbol in set(wanted) - defined if symbol in words}
    if missing:
        missing -= {symbol for symbol, kind in _symbols(baseline.vmlinux) if kind != "U"}
    return [f"{wanted[symbol]}: undefined reference to `{symbol}'" for symbol in sorted(missing)]


def _symbols(path: Path) -> list[tuple[str, str]]:
    """Name and kind of each symbol (nm(1))."""
    lines = run(["nm", str(path)]).stdout.splitlines()
    return [(match[2], match[1]) for line in lines if (match := re.search(r"(\w) (\S+)$", line))]
