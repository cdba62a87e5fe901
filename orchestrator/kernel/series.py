# SPDX-License-Identifier: GPL-2.0-only
"""The patch series: its stages in order, its cumulative groups, and the knobs and counters that they add."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.cache import file_digest
from orchestrator.errors import UserError
from orchestrator.spelling import hint, meant

BASELINE = "baseline"
FULL = "full"
_SCHEMA = 2
_TYPES = {int: "a whole number", str: "a string", list: "a list", dict: "a table"}
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
        versions: package versions that the series is checked on, newest first.
        reference: archive of the files that the patches were made on, for a three-way merge; see
            :mod:`orchestrator.kernel.reference`.
    """

    linux: str
    package: str
    versions: tuple[str, ...]
    reference: Path | None = None

    def __str__(self) -> str:
        """Package and versions, for an error message."""
        return f"{self.package} {' and '.join(self.versions)}"


@dataclass(frozen=True)
class AlternativePatch:
    """The patch of a stage for point releases that the main patch does not apply to.

    Args:
        name: point release that it was made on, e.g. ``6.12.118``.
        patch: patch file, in mailbox format.
    """

    name: str
    patch: Path


@dataclass(frozen=True)
class Stage:
    """One patch of the series.

    Args:
        number: position in the series, from 1, without gaps.
        name: short unique name.
        group: the first group that contains it; later groups contain it too.
        patch: patch file, in mailbox format.
        title: subject of the patch, without the [PATCH] tag.
        knobs, counters: names of the sysfs knobs and /proc/vmstat counters that this stage adds.
        digest: SHA-256 of what the patch changes, and of what its alternative patches do if it has any. Not of its
            changelog, which reports measurements of it.
        text_digest: SHA-256 of the whole file, and of those of its alternative patches.
        bases: the kernel sources that the series is for.
        defaults: knob -> default value, for knobs whose default this stage changes.
        variants: alternative patches, newest first.
    """

    number: int
    name: str
    group: str
    patch: Path
    title: str
    knobs: tuple[str, ...]
    counters: tuple[str, ...]
    digest: str
    text_digest: str
    bases: Bases
    defaults: Mapping[str, int] = field(default_factory=dict)
    variants: tuple[AlternativePatch, ...] = ()


@dataclass(frozen=True)
class Knob:
    """A sysfs file that the series adds.

    Args:
        path: path in the guest.
        minimum, maximum: accepted values; the kernel rejects all others with EINVAL.
        default: default value in the stage that adds it; see :meth:`Series.default_of` for later stages.
        stage: number of the stage that adds it.
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
    """A patch series.

    Args:
        groups: names of the groups in order; a group contains every stage up to its last one.
        bases: the kernel sources that the patches are for.
    """

    name: str
    title: str
    groups: tuple[str, ...]
    bases: Bases
    stages: tuple[Stage, ...]
    knobs: tuple[Knob, ...]

    def default_of(self, knob: Knob, stages: Sequence[Stage]) -> int:
        """The value of a knob after boot of a kernel with these stages."""
        return next(
            (stage.defaults[knob.name] for stage in reversed(stages) if knob.name in stage.defaults),
            knob.default,
        )

    def select(self, patchset: str) -> tuple[Stage, ...]:
        """The stages that a patchset applies.

        Args:
            patchset: ``baseline`` (none), a group, ``full`` (all), ``GROUP:N`` or ``stage-N`` (the first N).

        Raises:
            UserError: unknown patchset; the message lists the known ones.
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
                    f"patchset {patchset!r}: there is no stage {number}; choose a number from 1 to {len(stages)}."
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
        directory: the directory of ``series.toml`` and the patches.

    Raises:
        UserError: the file cannot be read, or an entry is invalid.
    """
    path = directory / "series.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the series ({error}).") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}.") from error
    if table.get("schema", _SCHEMA) != _SCHEMA:  # checked first, since another schema has other keys
        raise UserError(f"{path}: unknown schema {table['schema']}; this version reads schema {_SCHEMA}.")
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
        raise UserError(f"{path}: there is no [[base]]; add one with a version of {table['package']}.")
    reference = path.parent / table["directory"] / table["reference"] if "reference" in table else None
    if reference is not None and not reference.is_file():
        raise UserError(f"{path}: the reference archive {reference} does not exist.")
    return Bases(table["linux"], table["package"], tuple(versions), reference)


def _groups(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        raise UserError(f"{path}: groups is empty; name at least one.")
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(f"{path}: groups: {name!r} may only have a-z, 0-9 and -.")
        if name in (BASELINE, FULL) or re.fullmatch(r"stage-[0-9]+", name):
            raise UserError(f"{path}: groups: the name {name} is reserved; choose another name.")
        if names.count(name) > 1:
            raise UserError(f"{path}: groups: {name} is listed twice.")
    return tuple(names)


def _stage(
    path: Path, entry: Mapping[str, Any], number: int, groups: tuple[str, ...], bases: Bases, patches: Path
) -> Stage:
    where = f"stage {number}"
    _check(path, where, entry, _STAGE, optional=("defaults", "variants"))
    if entry["number"] != number:
        raise UserError(
            f"{path}: {where} has the number {entry['number']}; stages must be in order, without gaps."
        )
    if not _NAME.fullmatch(entry["name"]):
        raise UserError(f"{path}: {where}: name {entry['name']!r} may only have a-z, 0-9 and -.")
    if entry["group"] not in groups:
        raise UserError(
            f"{path}: {where}: unknown group {entry['group']!r}; choose one of {', '.join(groups)}."
        )
    patch = patches / entry["patch"]
    if not patch.is_file():
        raise UserError(f"{path}: {where}: the patch {patch} does not exist.")
    variants = tuple(
        AlternativePatch(name, patches / name / entry["patch"]) for name in entry.get("variants", [])
    )
    for variant in variants:
        if not variant.patch.is_file():
            raise UserError(
                f"{path}: {where}: variant {variant.name}: the patch {variant.patch} does not exist."
            )
    return Stage(
        number,
        entry["name"],
        entry["group"],
        patch,
        entry["title"],
        tuple(entry["knobs"]),
        tuple(entry["counters"]),
        _digest(patch, variants, _change_digest),
        _digest(patch, variants, file_digest),
        bases,
        dict(entry.get("defaults", {})),
        variants,
    )


def _digest(patch: Path, variants: Sequence[AlternativePatch], of: Callable[[Path], str]) -> str:
    """The digest of a stage; without alternative patches it is that of the patch."""
    if not variants:
        return of(patch)
    names = [(variant.name, of(variant.patch)) for variant in variants]
    return hashlib.sha256(repr((of(patch), names)).encode()).hexdigest()


def _change_digest(patch: Path) -> str:
    """The SHA-256 of a patch from its first diff on."""
    content = patch.read_bytes()
    return hashlib.sha256(content[max(content.find(b"\ndiff --git "), 0) :]).hexdigest()


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
        raise UserError(f"{path}: groups are cumulative, so the stages must be in the order of their groups.")
    for group in groups:
        if all(stage.group != group for stage in stages):
            raise UserError(f"{path}: group {group} adds no stage; add one, or remove the group.")


def _knob(path: Path, entry: Mapping[str, Any], stages: tuple[Stage, ...]) -> Knob:
    where = f"knob {entry['name']}" if isinstance(entry, dict) and "name" in entry else "a [[knob]]"
    _check(path, where, entry, _KNOB)
    if entry["kind"] != "integer":
        raise UserError(f"{path}: {where}: unknown kind {entry['kind']!r}; the only kind is integer.")
    if not entry["minimum"] <= entry["default"] <= entry["maximum"]:
        raise UserError(f"{path}: {where}: the default is not between minimum and maximum.")
    stage = next((stage.number for stage in stages if entry["name"] in stage.knobs), None)
    if stage is None:
        raise UserError(f"{path}: {where}: no stage adds it.")
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
                    f"{path}: stage {stage.number}: defaults: neither this stage nor an earlier one adds {name}."
                )
            if type(value) is not int or not knob.minimum <= value <= knob.maximum:
                raise UserError(
                    f"{path}: stage {stage.number}: defaults: {name} must be between its minimum and maximum."
                )
        for name in stage.knobs:
            if name not in described:
                raise UserError(f"{path}: stage {stage.number} adds {name}, but there is no [[knob]] for it.")


def _check(
    path: Path, where: str, entry: object, keys: Mapping[str, type], optional: Sequence[str] = ()
) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{path}: {where} must be a table with {', '.join(keys)}.")
    for key, value in entry.items():
        if key not in keys:
            raise UserError(f"{path}: {where}: unknown key {key!r}; {hint(key, keys, 'the keys are')}")
        if not isinstance(value, keys[key]) or isinstance(value, bool):
            raise UserError(f"{path}: {where}: {key} must be {_TYPES[keys[key]]}, not {value!r}.")
        if key in _NAMES and isinstance(value, list) and not all(isinstance(each, str) for each in value):
            raise UserError(f"{path}: {where}: {key} must be a list of names, not {value!r}.")
    missing = next((key for key in keys if key not in entry and key not in optional), None)
    if missing:
        raise UserError(f"{path}: {where}: the key {missing} is missing.")
