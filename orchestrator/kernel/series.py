# SPDX-License-Identifier: GPL-2.0-only
"""The patch series: its stages in order, its cumulative groups, and the knobs and counters that they add."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from orchestrator import defaults
from orchestrator.analysis.identity import parse_identity
from orchestrator.cache import file_digest
from orchestrator.document import Document, Place, Shape, read_document
from orchestrator.errors import UserError
from orchestrator.kernel.message import may_be_several, split
from orchestrator.spelling import meant
from orchestrator.store.observation import CLOCK, METRIC_NAME, Better, Metric
from orchestrator.temporary import temporary_directory

BASELINE = "baseline"
FULL = "full"
_SCHEMA = 2
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True)
class Bases:
    """The kernel sources that a series is for.

    Args:
        linux: the kernel version, e.g. ``6.12``; empty if it is not known.
        package: Debian's package of that source.
        versions: package versions that the series is checked on, newest first; may be empty.
        reference: archive of the files that the patches were made on, for a three-way merge; see
            :mod:`orchestrator.kernel.reference`.
        source: what to use without ``--source``, e.g. ``~/linux#v6.12``; None for the package.
        commit: the commit that the patches are for, used if the source has it.
    """

    linux: str
    package: str
    versions: tuple[str, ...]
    reference: Path | None = None
    source: str | None = None
    commit: str | None = None

    def __str__(self) -> str:
        """Package and versions, or what else is known, for an error message."""
        if self.versions:
            return f"{self.package} {' and '.join(self.versions)}"
        return self.source or (f"commit {self.commit[:12]}" if self.commit else self.package)


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
        group: the first group that contains it; later groups contain it too. ``full`` in a series without groups.
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
        neutral: the value at which the stage that adds it claims to change nothing; None if there is none.
        sweep: values at which a patched kernel runs if nothing is asked for; empty for its default only.
        label: what stands before the value in the name of a variant, which then always shows it; may be empty, as
            in ``core-only@256``. None for ``NAME=``, shown only where variants differ in it.
    """

    name: str
    path: str
    kind: str
    minimum: int
    maximum: int
    default: int
    help: str
    stage: int
    neutral: int | None = None
    sweep: tuple[int, ...] = ()
    label: str | None = None


@dataclass(frozen=True)
class CounterMetric:
    """A metric computed from counters of /proc/vmstat; exactly one of the last three is set.

    Args:
        scale: what a value is multiplied by to get the metric's unit.
        growth: counters of events whose growth over the workload is summed up.
        peak: a level, whose highest reading counts.
        left: a level, whose reading after the workload counts, over that before.
    """

    metric: Metric
    scale: int = 1
    growth: tuple[str, ...] = ()
    peak: str | None = None
    left: str | None = None


@dataclass(frozen=True)
class OtherKernel:
    """A kernel of a variant that has a source or a series of its own, or that was built elsewhere.

    Args:
        source: its ``--source``; None for that of the run.
        series: directory of its series; None for that of the run.
        patchset: its patchset in that series.
        kernel: absolute path of its bzImage, if it was built elsewhere.
        vmlinux: absolute path of the vmlinux of that kernel, if there is one.
        on_top: directory of a series whose patches are applied after those of the patchset; None for none.
    """

    source: str | None = None
    series: str | None = None
    patchset: str = BASELINE
    kernel: str | None = None
    vmlinux: str | None = None
    on_top: str | None = None


@dataclass(frozen=True)
class Series:
    """A patch series.

    Args:
        groups: names of the groups in order; a group contains every stage up to its last one.
        bases: the kernel sources that the patches are for.
        identities: equations that its counters satisfy after a workload; see :mod:`orchestrator.analysis.identity`.
        levels: counters of what processes hold: never negative, and after a workload no more than before.
        metrics: computed from counters, for every workload. One with the name of a general metric replaces it.
        others: more patchsets: name -> their stages, of another series or for another source.
    """

    name: str
    title: str
    groups: tuple[str, ...]
    bases: Bases
    stages: tuple[Stage, ...]
    knobs: tuple[Knob, ...]
    identities: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    metrics: tuple[CounterMetric, ...] = ()
    others: Mapping[str, tuple[Stage, ...]] = field(default_factory=dict)

    def with_others(self, others: Mapping[str, OtherKernel]) -> Series:
        """This series with the patchsets of other kernels, and with the knobs of their series.

        Args:
            others: name of the patchset -> the kernel.

        Raises:
            UserError: one of the series or patchsets does not exist, or a name is that of a patchset of this series.
        """
        stages: dict[str, tuple[Stage, ...]] = {}
        knobs = {knob.name: knob for knob in self.knobs}
        for name, other in others.items():
            if name in (BASELINE, FULL, *self.groups):
                raise UserError(f"{name} is a patchset of the series; give the variant another name.")
            its = load_series(Path(other.series)) if other.series else self
            stages[name] = its.select(other.patchset)
            if other.on_top:
                more = load_series(Path(other.on_top)).stages
                stages[name] += tuple(
                    replace(stage, number=number) for number, stage in enumerate(more, len(stages[name]) + 1)
                )
            knobs = {**{knob.name: knob for knob in its.knobs}, **knobs}
        return replace(self, others=stages, knobs=tuple(knobs.values()))

    def default_of(self, knob: Knob, stages: Sequence[Stage]) -> int:
        """The value of a knob after boot of a kernel with these stages."""
        return next(
            (stage.defaults[knob.name] for stage in reversed(stages) if knob.name in stage.defaults),
            knob.default,
        )

    def neutral_values(self, stages: Sequence[Stage]) -> dict[str, int]:
        """Path of each knob of a kernel with these stages that has a neutral value -> that value."""
        names = {name for stage in stages for name in stage.knobs}
        return {
            knob.path: knob.neutral for knob in self.knobs if knob.neutral is not None and knob.name in names
        }

    def select(self, patchset: str) -> tuple[Stage, ...]:
        """The stages that a patchset applies.

        Args:
            patchset: ``baseline`` (none), a group, ``full`` (all), ``GROUP:N`` or ``stage-N`` (the first N).

        Raises:
            UserError: unknown patchset; the message lists the known ones.
        """
        if patchset in self.others:
            return self.others[patchset]
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
        prefix = f"{self.groups[0]}:N or stage-N" if self.groups else "stage-N"
        raise UserError(
            f"unknown patchset {patchset!r}; {start} {', '.join(known)}, and {prefix} for the first N stages."
        )


@dataclass(frozen=True)
class _BaseTable(Shape):
    """``[[base]]``."""

    version: str


@dataclass(frozen=True)
class _StageTable(Shape):
    """``[[stage]]``."""

    number: int
    name: str
    patch: str
    title: str
    group: str | None = None
    knobs: tuple[str, ...] = ()
    counters: tuple[str, ...] = ()
    defaults: dict[str, int] = field(default_factory=dict)
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class _KnobTable(Shape):
    """``[[knob]]``."""

    name: str
    path: str
    kind: Literal["integer"]
    minimum: int
    maximum: int
    default: int
    help: str
    neutral: int | None = None
    sweep: tuple[int, ...] = ()
    label: str | None = None


@dataclass(frozen=True)
class _IdentityTable(Shape):
    """``[[identity]]``."""

    expression: str


@dataclass(frozen=True)
class _CounterMetricTable(Shape):
    """``[[metric]]``; see :class:`CounterMetric`."""

    name: str
    unit: str
    help: str
    better: Literal["lower", "higher", "neither"] = "neither"
    primary: bool = False
    scale: int = 1
    growth: tuple[str, ...] = ()
    peak: str | None = None
    left: str | None = None


@dataclass(frozen=True)
class _SeriesFile(Shape):
    """``series.toml``."""

    schema: int
    name: str
    title: str
    stage: tuple[_StageTable, ...]
    groups: tuple[str, ...] = ()
    linux: str = ""
    package: str | None = None
    directory: str = "."
    base: tuple[_BaseTable, ...] = ()
    source: str | None = None
    base_commit: str | None = None
    knob: tuple[_KnobTable, ...] = ()
    identity: tuple[_IdentityTable, ...] = ()
    metric: tuple[_CounterMetricTable, ...] = ()
    levels: tuple[str, ...] = ()
    reference: str | None = None


def load_series(directory: Path) -> Series:
    """Read ``series.toml``.

    Args:
        directory: the directory of ``series.toml`` and the patches.

    Raises:
        UserError: the file is missing or invalid; the message names file and line.
    """
    document = read_document(directory / "series.toml", _SeriesFile, "the series", schema=_SCHEMA)
    content = document.content
    bases = _bases(document)
    _check_groups(document)
    stages = tuple(
        _stage(document, index, bases, directory / content.directory) for index in range(len(content.stage))
    )
    _check_stages(document, stages)
    knobs = tuple(_knob(document, index, stages) for index in range(len(content.knob)))
    _check_knobs(document, stages, knobs)
    counters = {name for stage in stages for name in stage.counters}
    for index, level in enumerate(content.levels):
        if level not in counters:
            raise document.fault(["levels", index], f"no stage adds the counter {level}")
    return Series(
        content.name,
        content.title,
        content.groups,
        bases,
        stages,
        knobs,
        tuple(_identity(document, index, counters) for index in range(len(content.identity))),
        content.levels,
        tuple(_metric(document, index) for index in range(len(content.metric))),
    )


def _bases(document: Document[_SeriesFile]) -> Bases:
    content = document.content
    versions: list[str] = []
    for index, base in enumerate(content.base):
        if base.version in versions:
            raise document.fault(
                ["base", index], f"two [[base]]s have the version {base.version}; remove one"
            )
        versions.append(base.version)
    if versions and content.package is None:
        raise document.fault(["base"], "a [[base]] is a version of a package; add the key package")
    reference = None
    if content.reference is not None:
        reference = document.path.parent / content.directory / content.reference
        if not _is_file(reference):
            raise document.fault(["reference"], f"the reference archive {reference} does not exist")
    return Bases(
        content.linux,
        content.package or defaults.PACKAGE,
        tuple(versions),
        reference,
        content.source,
        content.base_commit,
    )


def _is_file(path: Path) -> bool:
    """Like ``path.is_file()``, which raises for a name that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113 - the method raises


def _check_groups(document: Document[_SeriesFile]) -> None:
    names = document.content.groups
    for index, name in enumerate(names):
        if not _NAME.fullmatch(name):
            raise document.fault(["groups", index], f"{name!r} may only have a-z, 0-9 and -")
        if name in (BASELINE, FULL) or re.fullmatch(r"stage-[0-9]+", name):
            raise document.fault(["groups", index], f"the name {name} is reserved; choose another name")
        if names.count(name) > 1:
            raise document.fault(["groups", index], f"{name} is listed twice")


def _stage(document: Document[_SeriesFile], index: int, bases: Bases, patches: Path) -> Stage:
    entry, groups = document.content.stage[index], document.content.groups
    place: Place = ["stage", index]
    if entry.number != index + 1:
        raise document.fault(
            [*place, "number"], f"the number is {entry.number}; stages must be in order, without gaps"
        )
    if not _NAME.fullmatch(entry.name):
        raise document.fault([*place, "name"], f"{entry.name!r} may only have a-z, 0-9 and -")
    if not groups and entry.group is not None:
        raise document.fault(
            [*place, "group"], f"list {entry.group!r} in the key groups at the top, or omit it"
        )
    if groups and entry.group is None:
        raise document.fault([*place, "group"], f"the series has groups; choose one of {', '.join(groups)}")
    if groups and entry.group not in groups:
        raise document.fault(
            [*place, "group"], f"unknown group {entry.group!r}; choose one of {', '.join(groups)}"
        )
    patch = patches / entry.patch
    if not _is_file(patch):
        raise document.fault([*place, "patch"], f"the patch {patch} does not exist")
    several = _messages_of(patch)
    if several > 1:
        raise document.fault(
            [*place, "patch"],
            f"{patch} has {several} patches, and a stage is one commit; make a stage of each with "
            f"`orchestrate series init DIR --series {patch}`",
        )
    variants = tuple(AlternativePatch(name, patches / name / entry.patch) for name in entry.variants)
    for variant in variants:
        if not _is_file(variant.patch):
            raise document.fault(
                [*place, "variants"], f"variant {variant.name}: the patch {variant.patch} does not exist"
            )
    return Stage(
        entry.number,
        entry.name,
        entry.group or FULL,
        patch,
        entry.title,
        entry.knobs,
        entry.counters,
        _digest(patch, variants, change_digest),
        _digest(patch, variants, file_digest),
        bases,
        entry.defaults,
        variants,
    )


def _messages_of(patch: Path) -> int:
    """Number of messages of a patch file, as git-am(1) counts them."""
    if not may_be_several(patch.read_bytes()):
        return 1
    with temporary_directory("patch") as place:
        return len(split(patch, Path(place)))


def _digest(patch: Path, variants: Sequence[AlternativePatch], of: Callable[[Path], str]) -> str:
    """The digest of a stage; without alternative patches it is that of the patch."""
    if not variants:
        return of(patch)
    names = [(variant.name, of(variant.patch)) for variant in variants]
    return hashlib.sha256(repr((of(patch), names)).encode()).hexdigest()


def change_digest(patch: Path) -> str:
    """The SHA-256 of a patch from its first diff on: what it changes, and not its changelog."""
    content = patch.read_bytes()
    return hashlib.sha256(content[max(content.find(b"\ndiff --git "), 0) :]).hexdigest()


def _check_stages(document: Document[_SeriesFile], stages: tuple[Stage, ...]) -> None:
    groups = document.content.groups
    if not stages:
        raise document.fault(["stage"], "there is no [[stage]]")
    for what in ("name", "patch"):
        values = [getattr(stage, what) for stage in document.content.stage]
        for index, value in enumerate(values):
            if value in values[:index]:
                raise document.fault(["stage", index, what], f"two stages have the {what} {value}")
    order = [groups.index(stage.group) for stage in stages] if groups else []
    for index in range(1, len(order)):
        if order[index] < order[index - 1]:
            raise document.fault(
                ["stage", index, "group"],
                "groups are cumulative, so the stages must be in the order of their groups",
            )
    for index, group in enumerate(groups):
        if all(stage.group != group for stage in stages):
            raise document.fault(
                ["groups", index], f"group {group} adds no stage; add one, or remove the group"
            )


def _knob(document: Document[_SeriesFile], index: int, stages: tuple[Stage, ...]) -> Knob:
    entry = document.content.knob[index]
    place: Place = ["knob", index]
    if not entry.minimum <= entry.default <= entry.maximum:
        raise document.fault(
            [*place, "default"], f"the default of {entry.name} is not between minimum and maximum"
        )
    stage = next((stage.number for stage in stages if entry.name in stage.knobs), None)
    if stage is None:
        raise document.fault([*place, "name"], f"no stage adds it: {entry.name}")
    for key, values in (("neutral", [entry.neutral]), ("sweep", entry.sweep)):
        for value in values:
            if value is not None and not entry.minimum <= value <= entry.maximum:
                raise document.fault(
                    [*place, key], f"{value} is not between minimum and maximum of {entry.name}"
                )
    if len(set(entry.sweep)) != len(entry.sweep):
        raise document.fault([*place, "sweep"], "a value occurs twice; give each value once")
    if entry.label is not None and not re.fullmatch(r"[A-Za-z0-9_+-]*=?", entry.label):
        raise document.fault(
            [*place, "label"], f"{entry.label!r} may only have letters, digits, _ + - and an = at the end"
        )
    return Knob(
        entry.name,
        entry.path,
        entry.kind,
        entry.minimum,
        entry.maximum,
        entry.default,
        entry.help,
        stage,
        entry.neutral,
        entry.sweep,
        entry.label,
    )


def _identity(document: Document[_SeriesFile], index: int, counters: Set[str]) -> str:
    text = document.content.identity[index].expression
    place: Place = ["identity", index, "expression"]
    try:
        unknown = sorted(parse_identity(text).counters - counters)
    except ValueError as error:
        raise document.fault(place, str(error)) from error
    if unknown:
        raise document.fault(place, f"no stage adds the counter {unknown[0]}")
    return text


def _metric(document: Document[_SeriesFile], index: int) -> CounterMetric:
    entry = document.content.metric[index]
    place: Place = ["metric", index]
    if not METRIC_NAME.fullmatch(entry.name) or CLOCK in entry.name:
        raise document.fault(
            [*place, "name"], f"{entry.name!r} must have the form noun_unit.statistic, e.g. dumps.total"
        )
    if (bool(entry.growth), entry.peak is not None, entry.left is not None).count(True) != 1:
        raise document.fault(place, "give exactly one of growth, peak and left")
    if any(each.name == entry.name for each in document.content.metric[:index]):
        raise document.fault([*place, "name"], f"two [[metric]]s have the name {entry.name}")
    better: Better = None if entry.better == "neither" else entry.better
    metric = Metric(entry.name, entry.unit, better, primary=entry.primary, help=entry.help)
    return CounterMetric(metric, entry.scale, entry.growth, entry.peak, entry.left)


def _check_knobs(document: Document[_SeriesFile], stages: tuple[Stage, ...], knobs: tuple[Knob, ...]) -> None:
    described = [knob.name for knob in knobs]
    for index, name in enumerate(described):
        if name in described[:index]:
            raise document.fault(["knob", index, "name"], f"two [[knob]]s have the name {name}")
    for index, stage in enumerate(stages):
        for name, value in stage.defaults.items():
            place: Place = ["stage", index, "defaults", name]
            knob = next((each for each in knobs if each.name == name and each.stage <= stage.number), None)
            if knob is None:
                raise document.fault(place, f"neither this stage nor an earlier one adds {name}")
            if not knob.minimum <= value <= knob.maximum:
                raise document.fault(place, f"{name} must be between its minimum and maximum")
        for name in stage.knobs:
            if name not in described:
                raise document.fault(
                    ["stage", index, "knobs"], f"it adds {name}, but there is no [[knob]] for it"
                )
