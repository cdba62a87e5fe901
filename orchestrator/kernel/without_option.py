# SPDX-License-Identifier: GPL-2.0-only
"""Checks that a stage builds with an option off or for another target, by compiling only the files that can fail.

A complete kernel per option and stage would take hours and compile the same code again and again. The standard
configuration, with the option on, is built and linked completely. With the option off it is enough to compile

- every C file that the series has touched so far: no other file uses code that the series adds;
- every C file that uses a name which the stage adds to a header or removes from one: for all other files the headers
  are unchanged, whatever the options.

Only files that kbuild lists for the configuration count. A header is parsed completely wherever it is included, so
a broken stub shows in each of these files. Nothing is linked. Instead, the undefined symbols of the objects are
compared with what is defined: a symbol that the stage starts to use, and that neither these objects nor the baseline
define, would be missing at link time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from orchestrator.cache import Cache, digest
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
from orchestrator.kernel.target import HOST, OTHER_TARGETS, tool_versions
from orchestrator.kernel.tree import PatchedTree
from orchestrator.kernel.workshop import DoesNotCompileError, Workshop, pinned
from orchestrator.process import run

_KIND = "compiled"
_USERS = "users"
_HUGE = "CONFIG_TRANSPARENT_HUGEPAGE"
#: Built completely for another target.
_MEMORY = "mm/"
#: Part of the cache key. Increase it when the set of compiled files or the evaluation changes.
_RULES = 2


@dataclass(frozen=True)
class Compiled:
    """The result of compiling.

    Args:
        objects: compiled objects, relative to the object directory.
        warnings: object -> warnings of the compiler.
        error: error messages of the compiler; empty if everything compiled.
        undefined: symbols that would be undefined at link time, each with the object that uses it.
        log: the output of make.
    """

    objects: tuple[str, ...]
    warnings: Mapping[str, Sequence[str]]
    error: str
    undefined: tuple[str, ...]
    log: Path


def without(configuration: Configuration, option: str) -> Configuration:
    """A configuration for a separate workshop with one option off, and with it all options that depend on it.

    Args:
        option: e.g. ``CONFIG_NUMA``.
    """
    requested = {**configuration.requested, option: "n"}
    names = {**dict(configuration.others.values()), **requested}
    text = "".join(line_of(name, value) for name, value in sorted(names.items()))
    flavour = f"{configuration.flavour}-no-{option.removeprefix('CONFIG_').lower().replace('_', '-')}"
    # Only the option itself must be as requested.
    return replace(
        configuration,
        flavour=flavour,
        text=text,
        requested={option: "n"},
        digest=f"{configuration.digest}-without-{option}",
    )


def on_target(configuration: Configuration, name: str) -> Configuration:
    """A configuration for a separate workshop that compiles for another target.

    The options are those that exist there, of which only those of the target and transparent huge pages are needed.

    Args:
        name: one of :data:`OTHER_TARGETS`.
    """
    target = OTHER_TARGETS[name]
    needed = {**target.options, _HUGE: configuration.requested.get(_HUGE, "n")}
    requested = {**configuration.requested, **needed}
    foreign = ("CONFIG_X86", "CONFIG_64BIT") if target.architecture != HOST.architecture else ()
    names = {**dict(configuration.others.values()), **requested}
    lines = [
        line_of(option, value)
        for option, value in sorted(names.items())
        if option in target.options or not option.startswith(foreign or ("-",))
    ]
    suffix = re.sub(r"[^a-z0-9]+", "-", name.lower())
    return replace(
        configuration,
        flavour=f"{configuration.flavour}-{suffix}",
        text="".join(lines),
        requested=needed,
        digest=f"{configuration.digest}-for-{name}-{digest({'options': dict(target.options)})[:8]}",
        optional=frozenset(),
        elsewhere=frozenset(),
        others={},
        target=target,
    )


def compile_changed(
    tree: PatchedTree,
    changed: Configuration,
    baseline: KernelBuild,
    cache: Cache,
    events: Events,
    jobs: int | None = None,
) -> Compiled:
    """Compile the affected files in a changed configuration, or take the result from the cache.

    Args:
        changed: the configuration with an option off, or for another target.
        baseline: the baseline kernel in that configuration, for the symbols that it defines.

    Raises:
        UserError: the option cannot be turned off.
        InfrastructureError: the host failed.
    """
    sources = sorted({*touched_sources(tree), *_users(tree, cache)})
    return _compile(tree, changed, sources, baseline, cache, events, jobs)


def compile_parent(
    parent: PatchedTree,
    changed: Configuration,
    objects: Sequence[str],
    baseline: KernelBuild,
    cache: Cache,
    events: Events,
    jobs: int | None = None,
) -> Compiled:
    """Compile objects in the previous stage, where they exist, to compare the compiler's messages."""
    there = set(
        Repository(parent.repository).git("ls-tree", "-r", "--name-only", parent.commit).stdout.split()
    )
    sources = [source for name in objects if (source := f"{name.removesuffix('.o')}.c") in there]
    return _compile(parent, changed, sources, baseline, cache, events, jobs)


def _users(tree: PatchedTree, cache: Cache) -> list[str]:
    """C files that use a name which the last stage adds to or removes from a header."""
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
        "tools": list(tool_versions(configuration.target)),
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
                    whole = (_MEMORY,) if configuration.target != HOST else ()
                    workshop.build(tree, jobs or os.cpu_count() or 1, [*objects, *whole])
                    facts["warnings"] = workshop.warnings_of(objects)
                    facts["undefined"] = _undefined(
                        tree, workshop, objects, baseline, f"{configuration.target.cross}nm"
                    )
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
    """The objects of C files that kbuild builds in the configuration and the tree of the workshop.

    An object counts if its directory lists it, and every parent directory lists the one below.
    """
    listed: dict[str, list[str]] = {}

    def names_in(place: str) -> list[str]:
        if place not in listed:
            listed[place] = workshop.listed(place)
        return listed[place]

    def is_entered(place: str) -> bool:
        # Top down: a directory that kbuild does not enter may contain anything, even files of other tools.
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
    tree: PatchedTree, workshop: Workshop, objects: Sequence[str], baseline: KernelBuild, nm: str
) -> list[str]:
    words = added_words(tree)
    wanted: dict[str, str] = {}
    defined: set[str] = set()
    for name in objects:
        for symbol, kind in _symbols(workshop.objects / name, nm):
            if kind == "U":
                wanted.setdefault(symbol, name)
            elif kind not in "wv":  # an undefined weak symbol is 0 and links
                defined.add(symbol)
    missing = {symbol for symbol in set(wanted) - defined if symbol in words}
    if missing:
        missing -= {symbol for symbol, kind in _symbols(baseline.vmlinux, "nm") if kind != "U"}
    return [f"{wanted[symbol]}: undefined reference to `{symbol}'" for symbol in sorted(missing)]


def _symbols(path: Path, nm: str) -> list[tuple[str, str]]:
    """Name and type of each symbol (nm(1))."""
    lines = run([nm, str(path)]).stdout.splitlines()
    return [(match[2], match[1]) for line in lines if (match := re.search(r"(\w) (\S+)$", line))]
