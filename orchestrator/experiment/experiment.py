# SPDX-License-Identifier: GPL-2.0-only
"""Experiments: all parameters of a run, from flags or from a TOML file."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from orchestrator import defaults
from orchestrator.cache import Cache
from orchestrator.document import Document, Shape, read_document
from orchestrator.errors import UserError
from orchestrator.experiment.cell import Cell, cells_of
from orchestrator.experiment.variant import Variant, check_variant, with_control
from orchestrator.guest.sampler import check_monitor
from orchestrator.guest.workload import Workload, check_parameters
from orchestrator.kernel.posting import series_directory
from orchestrator.kernel.prebuilt import other_of_files
from orchestrator.kernel.series import BASELINE, FULL, OtherKernel, Series
from orchestrator.machine.topology import Topology, TopologyTable
from orchestrator.store.manifest import Role
from orchestrator.store.probe import LIMIT, Probe, check_probes

#: Number of metrics in a [tradeoff] table: two axes and a colour.
TRADEOFF_AXES = 3
ACCELERATORS = ("auto", "icount", "tcg", "kvm")


@dataclass(frozen=True)
class Experiment:
    """What to compare, on which machine, and how often.

    Args:
        name: name of the experiment, part of the run directory's name.
        variants: exactly one of them has the role baseline.
        workloads: name -> parameters that differ from the manifest's defaults.
        topology: the emulated machine.
        accelerator: one of :data:`ACCELERATORS`.
        repeat: fresh boots per variant and workload; with `max_repeat`, before the first look at them.
        max_repeat: most fresh boots per variant and workload of an experiment that goes on until it is decided; None
            for a fixed number.
        seed: seed for all random choices of the run.
        flavour: kernel configuration, a file in ``vm_images/kernel``.
        margin: largest relative difference that counts as unchanged, e.g. 0.005.
        timeout_s: limit of one workload in host seconds; None for the limit in the workload's manifest.
        tradeoff: three metrics to plot against each other, each with a better direction: axis label ->
            ``workload/metric``; empty for none.
        sample: what else to read with the counters, see :func:`check_monitor`.
        profile: count instructions per kernel function.
        probes: points of the kernel at which gdb does something while the workload runs.
    """

    name: str
    variants: tuple[Variant, ...]
    workloads: Mapping[str, Mapping[str, str]]
    topology: Topology
    accelerator: str = "auto"
    repeat: int = defaults.REPEAT
    max_repeat: int | None = None
    seed: int = 1
    flavour: str = "measure"
    margin: float = defaults.MARGIN
    timeout_s: float | None = None
    tradeoff: Mapping[str, str] = field(default_factory=dict)
    sample: tuple[str, ...] = ()
    profile: bool = False
    probes: tuple[Probe, ...] = ()
    cells: tuple[Cell, ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.accelerator not in ACCELERATORS:
            raise UserError(f"unknown accelerator {self.accelerator!r}; choose {', '.join(ACCELERATORS)}.")
        if not 1 <= self.repeat <= 1000:
            raise UserError(f"repeat is {self.repeat}; choose a number from 1 to 1000.")
        if self.max_repeat is not None and not self.repeat <= self.max_repeat <= 1000:
            raise UserError(f"max_repeat is {self.max_repeat}; choose a number from {self.repeat} to 1000.")
        if not 0 < self.margin < 1:
            raise UserError(f"margin is {self.margin:g}; give a fraction, e.g. 0.005 for 0.5 %.")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise UserError(f"timeout is {self.timeout_s:g} s; give more than 0.")
        for monitor in self.sample:
            check_monitor(monitor)
        check_probes(self.probes)
        names = [variant.name for variant in self.variants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"two variants are named {twice[0]}; give each variant a unique name.")
        if sum(variant.role is Role.BASELINE for variant in self.variants) != 1:
            raise UserError(
                "an experiment needs exactly one baseline variant; mark one with role = 'baseline'."
            )
        cells = cells_of(names, list(self.workloads), self.repeat, self.seed)
        object.__setattr__(self, "cells", cells)

    @property
    def needs_dwarf(self) -> bool:
        """Whether its kernels must have debugging information."""
        return any(probe.needs_dwarf for probe in self.probes)

    @property
    def possible_cells(self) -> tuple[Cell, ...]:
        """All cells that may be measured, in the order in which they would be; the first of them are :attr:`cells`."""
        names = [variant.name for variant in self.variants]
        return cells_of(names, list(self.workloads), self.max_repeat or self.repeat, self.seed)

    def variant(self, name: str) -> Variant:
        """The variant with this name."""
        return next(each for each in self.variants if each.name == name)

    def part(self, variants: Collection[str], workloads: Collection[str]) -> Experiment:
        """A part of the experiment; its cells are the same as in the whole experiment.

        Args:
            variants: names to keep; empty for all. Baseline and control are always kept.
            workloads: names to keep; empty for all.

        Raises:
            UserError: the experiment has no such variant or workload.
        """
        known = [variant.name for variant in self.variants]
        for what, wanted, there in (("variant", variants, known), ("workload", workloads, self.workloads)):
            unknown = sorted(set(wanted).difference(there))
            if unknown:
                raise UserError(f"{self.name} has no {what} {unknown[0]}; it has {', '.join(there)}.")
        chosen = {name: given for name, given in self.workloads.items() if not workloads or name in workloads}
        weighed = {source.partition("/")[0] for source in self.tradeoff.values()}
        return replace(
            self,
            variants=tuple(
                each
                for each in self.variants
                if not variants or each.name in variants or each.role is not Role.PATCHED
            ),
            workloads=chosen,
            tradeoff=self.tradeoff if weighed.issubset(chosen) else {},
        )


@dataclass(frozen=True)
class _VariantTable(Shape):
    """``[[variant]]``."""

    name: str
    patchset: str | None = None
    source: str | None = None
    series: str | None = None
    kernel: str | None = None
    vmlinux: str | None = None
    role: Literal["baseline", "patched"] = "patched"
    set: dict[str, str | int] = field(default_factory=dict)
    cmdline: tuple[str, ...] = ()


@dataclass(frozen=True)
class _ProbeTable(Shape):
    """``[[probe]]``."""

    at: str
    do: str | tuple[str, ...]
    hit: int = 0
    fields: tuple[str, ...] = ()
    when: str = ""
    limit: int = LIMIT


@dataclass(frozen=True)
class _ExperimentFile(Shape):
    """An experiment file."""

    variant: tuple[_VariantTable, ...]
    name: str | None = None
    topology: str | TopologyTable = "4x2G"
    accel: str = "auto"
    repeat: int = defaults.REPEAT
    seed: int = 1
    flavour: str = "measure"
    margin: float = defaults.MARGIN
    timeout_s: float | None = None
    workload: dict[str, dict[str, str | int]] = field(default_factory=dict)
    tradeoff: dict[str, str] = field(default_factory=dict)
    sample: tuple[str, ...] = ()
    profile: bool = False
    probe: tuple[_ProbeTable, ...] = ()


def load_experiment(path: Path, series: Series, workloads: Mapping[str, Workload]) -> Experiment:
    """Read an experiment file.

    Args:
        path: the TOML file.
        series: what patchsets and knobs exist.
        workloads: what workloads and parameters exist.

    Raises:
        UserError: the file is missing or invalid, or names something unknown; the message names file and line.
    """
    document = read_document(path, _ExperimentFile, "this experiment file")
    content = document.content
    if not content.variant:
        raise document.fault(
            ["variant"], "no [[variant]] is given; add at least a baseline and one to compare with it"
        )
    variants = [_variant(document, index, series) for index in range(len(content.variant))]
    if all(variant.role is not Role.BASELINE for variant in variants):
        variants[0] = replace(variants[0], role=Role.BASELINE)
    named = content.workload or {name: {} for name in defaults.WORKLOADS}
    chosen: dict[str, Mapping[str, str]] = {}
    for name, parameters in named.items():
        given = {key: str(value) for key, value in parameters.items()}
        chosen[name] = document.checked(["workload", name], partial(check_parameters, workloads, name, given))
    _check_tradeoff(document, chosen, workloads)
    probes = tuple(_probe(document, index) for index in range(len(content.probe)))
    document.checked(["probe"], lambda: check_probes(probes))
    topology = content.topology
    machine = document.checked(
        ["topology"],
        lambda: Topology.parse(topology) if isinstance(topology, str) else Topology.from_table(topology),
    )
    return document.checked(
        [],
        lambda: Experiment(
            name=path.stem if content.name is None else content.name,
            variants=with_control(variants),
            workloads=chosen,
            topology=machine,
            accelerator=content.accel,
            repeat=content.repeat,
            seed=content.seed,
            flavour=content.flavour,
            margin=content.margin,
            timeout_s=content.timeout_s,
            tradeoff=content.tradeoff,
            sample=content.sample,
            profile=content.profile,
            probes=probes,
        ),
    )


def _probe(document: Document[_ExperimentFile], index: int) -> Probe:
    table = document.content.probe[index]
    do = (table.do,) if isinstance(table.do, str) else table.do
    return document.checked(
        ["probe", index],
        lambda: Probe(table.at, do, table.hit, table.fields, table.when, table.limit),
    )


def _check_tradeoff(
    document: Document[_ExperimentFile], workloads: Mapping[str, object], known: Mapping[str, Workload]
) -> None:
    tradeoff = document.content.tradeoff
    if tradeoff and len(tradeoff) != TRADEOFF_AXES:
        raise document.fault(
            ["tradeoff"], f"[tradeoff] weighs {TRADEOFF_AXES} metrics against each other, not {len(tradeoff)}"
        )
    for name, source in tradeoff.items():
        workload, _, metric = source.partition("/")
        if workload not in workloads:
            raise document.fault(
                ["tradeoff", name], f"{source!r}: write 'WORKLOAD/METRIC' with a workload of this experiment"
            )
        facts = known[workload].metrics.get(metric)
        if facts is None or facts.better is None:
            judged = ", ".join(each.name for each in known[workload].metrics.values() if each.better)
            raise document.fault(
                ["tradeoff", name],
                f"{source!r}: {workload} has no such metric with a better direction; it has {judged}",
            )


def _variant(document: Document[_ExperimentFile], index: int, series: Series) -> Variant:
    entry = document.content.variant[index]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9@=,_+-]*", entry.name):
        raise document.fault(
            ["variant", index, "name"],
            f"variant name {entry.name!r}: use only letters, digits and @ = , _ + -",
        )
    knobs = {key: str(value) for key, value in entry.set.items()}
    cmdline = entry.cmdline
    place: list[str | int] = ["variant", index]
    other = None
    if entry.kernel is not None or entry.vmlinux is not None:
        for key in ("patchset", "source", "series"):
            if getattr(entry, key) is not None:
                raise document.fault([*place, key], "a variant with a kernel of its own has nothing to build")
        if entry.kernel is None:
            raise document.fault([*place, "vmlinux"], "this goes with the key kernel")
        files = [
            None if each is None else str(_beside(document.path, each))
            for each in (entry.kernel, entry.vmlinux)
        ]
        other = document.checked(place, lambda: other_of_files(files[0] or "", files[1]))
        patchset = f"of-{entry.name}"
    elif entry.source is None and entry.series is None:
        if entry.patchset is None:
            raise document.fault([*place, "patchset"], "this key is missing")
        patchset = entry.patchset
    else:
        own = None if entry.series is None else _beside(document.path, entry.series)
        other = OtherKernel(
            entry.source,
            None
            if own is None
            else str(document.checked(place, lambda: series_directory(own, Cache.default()))),
            entry.patchset or (BASELINE if own is None else FULL),
        )
        patchset = f"of-{entry.name}"
    variant = document.checked(
        place, lambda: Variant(entry.name, Role(entry.role), patchset, knobs, cmdline, other)
    )
    if other is not None:
        others = {patchset: other}
        series = document.checked(place, lambda: series.with_others(others))
    document.checked(place, lambda: check_variant(variant, series))
    return variant


def _beside(file: Path, given: str) -> Path:
    """A path in an experiment file, which is relative to the file."""
    path = Path(given).expanduser()
    return path if path.is_absolute() else file.parent / path
