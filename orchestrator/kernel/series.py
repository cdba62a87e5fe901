# SPDX-License-Identifier: GPL-2.0-only
"""The staged series: its stages in order, its cumulative groups, the knobs and counters they introduce."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.cache import file_digest
from orchestrator.errors import UserError
from orchestrator.spelling import hint, meant

BASELINE = "baseline"
FULL = "full"
_SCHEMA = 2
_TYPES = {int: "a whole number", str: "a text", list: "a list", dict: "a table"}
_NAMES = ("groups", "knobs", "counters", "variants")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_TOP = {
    "schema": int, "name": str, "title": str, "groups": list, "linux": str, "package": str, "directory": str,
    "reference": str, "base": list, "stage": list, "knob": list,
}  # fmt: skip
_BASE = {"version": str}
_STAGE = {
    "number": int, "name": str, "group": str, "patch": str, "title": str, "knobs": list, "counters": list,
    "defaults": dict, "variants": list,
}  # fmt: skip
_KNOB = {
    "name": str, "path": str, "kind": str, "minimum": int, "maximum": int, "default": int, "help": str,
}  # fmt: skip


@dataclass(frozen=True)
class Bases:
    """The kernel sources that a series is for.

    Args:
        linux: the kernel version, e.g. ``6.12``.
        package: Debian's package of that source.
        versions: of the package, the newest first: those on which the series is checked.
        reference: archive of the files that the patches were made against, for a three-way merge; see
            :mod:`orchestrator.kernel.reference`.
    """

    linux: str
    package: str
    versions: tuple[str, ...]
    reference: Path | None = None

    def __str__(self) -> str:
        """The versions, for a sentence."""
        return f"{self.package} {' and '.join(self.versions)}"


@dataclass(frozen=True)
class AlternativePatch:
    """A patch once more, for point releases that the first one does not apply to.

    Args:
        name: the point release that it was made on, e.g. ``6.12.118``.
        patch: the file, in mailbox format.
    """

    name: str
    patch: Path


@dataclass(frozen=True)
class Stage:
    """One patch of the series.

    Args:
        number: from 1, without gaps.
        name: short and unique.
        group: the first group it belongs to; later groups have it too.
        patch: the file, in mailbox format.
        title: subject of the patch, without its tag.
        knobs, counters: names of what a guest has from this stage on: sysfs knobs, /proc/vmstat counters.
        digest: SHA-256 of the patch, and of its variants where it has any.
        bases: what the series is for.
        defaults: knob -> the default it has from this stage on, where it changes.
        variants: of the patch, the newest first.
    """

    number: int
    name: str
    group: str
    patch: Path
    title: str
    knobs: tuple[str, ...]
    counters: tuple[str, ...]
    digest: str
    bases: Bases
    defaults: Mapping[str, int] = field(default_factory=dict)
    variants: tuple[AlternativePatch, ...] = ()


@dataclass(frozen=True)
class Knob:
    """A sysfs file that the series introduces.

    Args:
        path: in the guest.
        minimum, maximum: the values it accepts; everything else is EINVAL.
        default: where it is introduced; see :meth:`Series.default_of` for later stages.
        stage: number of the stage that introduces it.
    """

    name: str
    path: str
    kind: str
    minimum: int
    maximum: int
    default: int
    help: str
    stage: int


@dataclass(frozen=True)
class Series:
    """A staged series.

    Args:
        groups: in order; a group means every stage up to its last one.
        bases: the kernel sources that the patches are for.
    """

    name: str
    title: str
    groups: tuple[str, ...]
    bases: Bases
    stages: tuple[Stage, ...]
    knobs: tuple[Knob, ...]

    def default_of(self, knob: Knob, stages: Sequence[Stage]) -> int:
        """The value that a knob has after boot, in a kernel with these stages."""
        return next(
            (stage.defaults[knob.name] for stage in reversed(stages) if knob.name in stage.defaults),
            knob.default,
        )

    def select(self, patchset: str) -> tuple[Stage, ...]:
        """The stages that a patchset applies.

        Args:
            patchset: ``baseline`` (none), a group, ``full`` (all), ``GROUP:N`` or ``stage-N`` (the first N).

        Raises:
            UserError: no such patchset; the sentence lists what there is.
        """
        if patchset == BASELINE:
            return ()
        if patchset == FULL:
            return self.stages
        if patchset in self.groups:
            last = max(stage.number for stage in self.stages if stage.group == patchset)
            return self.stages[:last]
        match = re.fullmatch(r"(?:(?P<group>[^:]+):|stage-)(?P<number>[0-9]{1,9})", patchset)
        known = [BASELINE, *self.groups, FULL]
        if match and match["group"] in (None, FULL, *self.groups):
            stages = self.select(match["group"]) if match["group"] else self.stages
            number = int(match["number"])
            if not 1 <= number <= len(stages):
                raise UserError(
                    f"patchset {patchset!r}: there is no stage {number}; choose 1 to {len(stages)}."
                )
            return stages[:number]
        near = meant(patchset.partition(":")[0], known)
        start = f"did you mean {near}? There are" if near else "there are"
        raise UserError(
            f"unknown patchset {patchset!r}; {start} {', '.join(known)}, "
            f"and {self.groups[0]}:N or stage-N for the first N stages."
        )


def load_series(directory: Path) -> Series:
    """Read ``series.toml``.

    Args:
        directory: ``kernel_patches``.

    Raises:
        UserError: the file cannot be read or says something that is not understood.
    """
    path = directory / "series.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the series ({error}).") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}.") from error
    if table.get("schema", _SCHEMA) != _SCHEMA:  # first: another schema has other keys
        raise UserError(f"{path}: schema {table['schema']} is not understood; this version reads {_SCHEMA}.")
    _check(path, "the series", table, _TOP, optional=("knob", "reference"))
    bases = _bases(path, table)
    groups = _groups(path, table["groups"])
    stages = tuple(
        _stage(path, entry, number, groups, bases, directory / table["directory"])
        for number, entry in enumerate(table["stage"], 1)
    )
    _check_stages(path, stages, groups)
    knobs = tuple(_knob(path, entry, stages) for entry in table.get("knob", []))
    _check_knobs(path, stages, knobs)
    return Series(table["name"], table["title"], groups, bases, stages, knobs)


def _bases(path: Path, table: Mapping[str, Any]) -> Bases:
    versions: list[str] = []
    for entry in table["base"]:
        _check(path, "a [[base]]", entry, _BASE)
        if entry["version"] in versions:
            raise UserError(f"{path}: two [[base]]s have the version {entry['version']}; remove one.")
        versions.append(entry["version"])
    if not versions:
        raise UserError(f"{path}: there is no [[base]]; name a version of {table['package']}.")
    reference = path.parent / table["directory"] / table["reference"] if "reference" in table else None
    if reference is not None and not reference.is_file():
        raise UserError(f"{path}: there is no reference {reference}.")
    return Bases(table["linux"], table["package"], tuple(versions), reference)


def _groups(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        raise UserError(f"{path}: groups is empty; name at least one.")
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(f"{path}: groups: {name!r} may have a-z, 0-9 and - only.")
        if name in (BASELINE, FULL) or re.fullmatch(r"stage-[0-9]+", name):
            raise UserError(f"{path}: groups: {name} has a meaning already; choose another name.")
        if names.count(name) > 1:
            raise UserError(f"{path}: groups: {name} stands there twice.")
    return tuple(names)


def _stage(
    path: Path, entry: Mapping[str, Any], number: int, groups: tuple[str, ...], bases: Bases, patches: Path
) -> Stage:
    where = f"stage {number}"
    _check(path, where, entry, _STAGE, optional=("defaults", "variants"))
    if entry["number"] != number:
        raise UserError(
            f"{path}: {where} says number {entry['number']}; stages stand in order, without gaps."
        )
    if not _NAME.fullmatch(entry["name"]):
        raise UserError(f"{path}: {where}: name {entry['name']!r} may have a-z, 0-9 and - only.")
    if entry["group"] not in groups:
        raise UserError(f"{path}: {where}: group {entry['group']!r} is none of {', '.join(groups)}.")
    patch = patches / entry["patch"]
    if not patch.is_file():
        raise UserError(f"{path}: {where}: there is no patch {patch}.")
    variants = tuple(
        AlternativePatch(name, patches / name / entry["patch"]) for name in entry.get("variants", [])
    )
    for variant in variants:
        if not variant.patch.is_file():
            raise UserError(f"{path}: {where}: variant {variant.name}: there is no patch {variant.patch}.")
    return Stage(
        number,
        entry["name"],
        entry["group"],
        patch,
        entry["title"],
        tuple(entry["knobs"]),
        tuple(entry["counters"]),
        _digest(patch, variants),
        bases,
        dict(entry.get("defaults", {})),
        variants,
    )


def _digest(patch: Path, variants: Sequence[AlternativePatch]) -> str:
    """The patch's own digest where it has no variant: it is what earlier runs recorded."""
    if not variants:
        return file_digest(patch)
    names = [(variant.name, file_digest(variant.patch)) for variant in variants]
    return hashlib.sha256(repr((file_digest(patch), names)).encode()).hexdigest()


def _check_stages(path: Path, stages: tuple[Stage, ...], groups: tuple[str, ...]) -> None:
    if not stages:
        raise UserError(f"{path}: there is no [[stage]].")
    for what in ("name", "patch"):
        values = [getattr(stage, what) for stage in stages]
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"{path}: two stages have the {what} {value}.")
    order = [groups.index(stage.group) for stage in stages]
    if order != sorted(order):
        raise UserError(
            f"{path}: groups are cumulative, so the stages of one stand together, in their order."
        )
    for group in groups:
        if all(stage.group != group for stage in stages):
            raise UserError(f"{path}: group {group} has no stage of its own; add one, or remove the group.")


def _knob(path: Path, entry: Mapping[str, Any], stages: tuple[Stage, ...]) -> Knob:
    where = f"knob {entry['name']}" if isinstance(entry, dict) and "name" in entry else "a [[knob]]"
    _check(path, where, entry, _KNOB)
    if entry["kind"] != "integer":
        raise UserError(f"{path}: {where}: kind {entry['kind']!r} is not understood; it is integer.")
    if not entry["minimum"] <= entry["default"] <= entry["maximum"]:
        raise UserError(f"{path}: {where}: the default does not lie between minimum and maximum.")
    stage = next((stage.number for stage in stages if entry["name"] in stage.knobs), None)
    if stage is None:
        raise UserError(f"{path}: {where}: no stage introduces it.")
    return Knob(**{key: entry[key] for key in _KNOB}, stage=stage)


def _check_knobs(path: Path, stages: tuple[Stage, ...], knobs: tuple[Knob, ...]) -> None:
    described = [knob.name for knob in knobs]
    for name in described:
        if described.count(name) > 1:
            raise UserError(f"{path}: two [[knob]]s have the name {name}.")
    for stage in stages:
        for name, value in stage.defaults.items():
            knob = next((each for each in knobs if each.name == name and each.stage <= stage.number), None)
            if knob is None:
                raise UserError(
                    f"{path}: stage {stage.number}: defaults: no stage up to it introduces {name}."
                )
            if type(value) is not int or not knob.minimum <= value <= knob.maximum:
                raise UserError(
                    f"{path}: stage {stage.number}: defaults: {name} is to lie between its minimum and maximum."
                )
        for name in stage.knobs:
            if name not in described:
                raise UserError(
                    f"{path}: stage {stage.number} introduces {name}, which no [[knob]] describes."
                )


def _check(
    path: Path, where: str, entry: object, keys: Mapping[str, type], optional: Sequence[str] = ()
) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{path}: {where} is to be a table with {', '.join(keys)}.")
    for key, value in entry.items():
        if key not in keys:
            raise UserError(f"{path}: {where}: unknown key {key!r}; {hint(key, keys, 'known are')}")
        if not isinstance(value, keys[key]) or isinstance(value, bool):
            raise UserError(f"{path}: {where}: {key} is to be {_TYPES[keys[key]]}, not {value!r}.")
        if key in _NAMES and isinstance(value, list) and not all(isinstance(each, str) for each in value):
            raise UserError(f"{path}: {where}: {key} is to be a list of names, not {value!r}.")
    missing = next((key for key in keys if key not in entry and key not in optional), None)
    if missing:
        raise UserError(f"{path}: {where}: the key {missing} is missing.")
