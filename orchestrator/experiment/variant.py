# SPDX-License-Identifier: GPL-2.0-only
"""A variant: a kernel, its command line, and its knob settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.experiment.knob import check_paths, check_value, combinations, knob_path, series_knob
from orchestrator.kernel.prebuilt import release_of
from orchestrator.kernel.series import BASELINE, OtherKernel, Series
from orchestrator.machine.qemu import check_cmdline
from orchestrator.store.manifest import Role

#: What a variant's name must not contain: a dot separates the parts of a cell's name.
_FOREIGN = re.compile(r"[^A-Za-z0-9@+_-]")


@dataclass(frozen=True)
class Variant:
    """One side of a comparison.

    Args:
        name: unique within an experiment, e.g. ``core-only@256``.
        role: see :class:`Role`.
        patchset: a name that :meth:`Series.select` accepts.
        knobs: sysfs settings, knob name -> value.
        cmdline: kernel parameters, in addition to those the machine needs.
        other: its kernel, if it has a source or a series of its own; then `patchset` is a name for it.
    """

    name: str
    role: Role
    patchset: str
    knobs: Mapping[str, str] = field(default_factory=dict)
    cmdline: tuple[str, ...] = ()
    other: OtherKernel | None = None

    def __post_init__(self) -> None:
        check_cmdline(self.cmdline)


def variants_of(
    patchsets: Sequence[str],
    against: str,
    settings: Mapping[str, tuple[str, ...]],
    cmdline: Sequence[str],
    series: Series,
) -> tuple[Variant, ...]:
    """The variants for the options of ``orchestrate run``: the baseline, its control, the patched kernels.

    A knob that the series adds is set only on variants that have it. If `settings` lacks a knob
    with a sweep of its own, patched kernels that have it run at each of its values there.

    Raises:
        UserError: unknown patchset; a patchset compared with itself; a knob of the series that no variant has.
    """
    for patchset in (against, *patchsets):
        series.select(patchset)
    unused = {key for key in settings if series_knob(key, series) is not None}
    variants: list[Variant] = []
    for patchset in dict.fromkeys((against, *patchsets)):
        applied = {knob for stage in series.select(patchset) for knob in stage.knobs}
        own = {
            key: values
            for key, values in settings.items()
            if series_knob(key, series) is None or key in applied
        }
        unused -= own.keys()
        sweep = own | {
            knob.name: tuple(map(str, knob.sweep))
            for knob in series.knobs
            if knob.sweep and knob.name in applied and knob.name not in own
        }
        if patchset == against:  # there is one baseline, with the first value of each knob
            sweep = {key: values[:1] for key, values in sweep.items()}
        for knobs in combinations(sweep):
            role = Role.BASELINE if patchset == against else Role.PATCHED
            name = _name(patchset, knobs, sweep, series)
            variants.append(Variant(name, role, patchset, knobs, tuple(cmdline)))
    if unused:
        key = sorted(unused)[0]
        knob = series_knob(key, series)
        assert knob is not None
        raise UserError(
            f"--set {key}: none of {', '.join((against, *patchsets))} has this knob; stage {knob.stage} introduces it."
        )
    if all(variant.role is Role.BASELINE for variant in variants) and patchsets:
        raise UserError(f"{against} would be compared with itself; choose another --patchset or --against.")
    return with_control(variants)


def compared(
    trees: tuple[str, str], settings: Mapping[str, tuple[str, ...]], cmdline: Sequence[str]
) -> tuple[Variant, ...]:
    """The variants for two sources: the first is the baseline, with its control.

    Args:
        trees: the sources, as for ``--source``.
        settings: knob -> its only value.

    Raises:
        UserError: a knob has several values.
    """
    for key, values in settings.items():
        if len(values) > 1:
            raise UserError(f"--set {key}: --compare takes one value, not {','.join(values)}.")
    knobs = {key: values[0] for key, values in settings.items()}
    labels = [_label(tree) for tree in trees]
    if labels[0] == labels[1]:
        labels = [f"{label}-{letter}" for label, letter in zip(labels, "ab", strict=True)]
    first = Variant(labels[0], Role.BASELINE, BASELINE, knobs, tuple(cmdline))
    second = Variant(
        labels[1], Role.PATCHED, f"tree-{labels[1]}", knobs, tuple(cmdline), OtherKernel(source=trees[1])
    )
    return with_control([first, second])


def of_kernels(
    kernels: Sequence[OtherKernel],
    settings: Mapping[str, tuple[str, ...]],
    cmdline: Sequence[str],
    series: Series,
    *,
    with_baseline: bool,
) -> tuple[Variant, ...]:
    """The variants for kernels that were built elsewhere, named after their releases.

    Args:
        settings: knob -> its values; knobs of the series are left out, as its stages are not known here.
        with_baseline: the first kernel is the baseline, with its control.

    Raises:
        UserError: a file is not a bzImage, or no variant has a knob.
    """
    own = {key: values for key, values in settings.items() if series_knob(key, series) is None}
    if with_baseline and (foreign := sorted(settings.keys() - own.keys())):
        raise UserError(
            f"--set {foreign[0]}: --kernel has no stages, so that only its path sets this knob: "
            f"{knob_path(foreign[0], series)}={','.join(settings[foreign[0]])}."
        )
    releases = [release_of(Path(other.kernel)) for other in kernels if other.kernel]
    names = [f"kernel-{_FOREIGN.sub('_', release)}" for release in releases]
    names = [
        f"{name}-{names[:index].count(name) + 1}" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]
    variants: list[Variant] = []
    for name, other in zip(names, kernels, strict=True):
        role = Role.BASELINE if with_baseline and not variants else Role.PATCHED
        sweep = {key: values[:1] for key, values in own.items()} if role is Role.BASELINE else own
        variants += [
            Variant(_name(name, knobs, sweep, series), role, name, knobs, tuple(cmdline), other)
            for knobs in combinations(sweep)
        ]
    return with_control(variants)


def _label(source: str) -> str:
    """A name for a source: its branch, else the end of its path.

    >>> _label("~/linux#v6.12"), _label("debian:7.3"), _label("/src/linux/")
    ('v6.12', 'debian-7.3', 'linux')
    """
    path, _, reference = source.partition("#")
    text = reference or (path if path.startswith("debian:") else path.rstrip("/").rpartition("/")[2])
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-") or "tree"


def others_of(variants: Sequence[Variant]) -> dict[str, OtherKernel]:
    """The kernels that variants have of their own, by patchset."""
    return {variant.patchset: variant.other for variant in variants if variant.other is not None}


def role_of(patchset: str) -> Role:
    """The role of a variant of a run in which the baseline of the series is the only one."""
    return Role.BASELINE if patchset == BASELINE else Role.PATCHED


def with_control(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """`variants`, with the A/A control inserted after the baseline."""
    result: list[Variant] = []
    for variant in variants:
        result.append(variant)
        if variant.role is Role.BASELINE:
            result.append(replace(variant, name=f"{variant.name}-control", role=Role.CONTROL))
    return tuple(result)


def check_variant(variant: Variant, series: Series) -> None:
    """Check a variant from an experiment file: its patchset and all knob values.

    Raises:
        UserError: unknown patchset or knob, a bad value, or a knob whose stage is not applied.
    """
    applied = {knob for stage in series.select(variant.patchset) for knob in stage.knobs}
    for key, value in variant.knobs.items():
        check_value(key, value, series)
        knob = series_knob(key, series)
        if knob is not None and key not in applied:
            raise UserError(
                f"variant {variant.name}: {variant.patchset} has no knob {key}; stage {knob.stage} introduces it."
            )
    check_paths(variant.knobs, series)


def _name(patchset: str, knobs: Mapping[str, str], sweep: Mapping[str, Sequence[str]], series: Series) -> str:
    # Show the knobs that distinguish variants, and always those with a label, which are the subject of the series.
    labels = {knob.name: knob.label for knob in series.knobs if knob.label is not None}
    shown = {key: value for key, value in knobs.items() if len(sweep[key]) > 1 or key in labels}
    if not shown:
        return patchset
    if len(shown) == 1 and (key := next(iter(shown))) in labels:
        return f"{patchset}@{labels[key]}{shown[key]}"
    # The name is part of the names of directories and files.
    return f"{patchset}@" + ",".join(
        f"{_FOREIGN.sub('_', key).strip('_')}={_FOREIGN.sub('_', value)}" for key, value in shown.items()
    )
