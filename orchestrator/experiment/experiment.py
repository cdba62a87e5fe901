# SPDX-License-Identifier: GPL-2.0-only
"""Experiments: all parameters of a run, from flags or from a TOML file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from orchestrator import defaults
from orchestrator.errors import UserError
from orchestrator.experiment.cell import Cell, cells_of
from orchestrator.experiment.variant import Variant, check_variant, with_control
from orchestrator.guest.workload import Workload, check_parameters
from orchestrator.kernel.series import Series
from orchestrator.machine.topology import Topology
from orchestrator.store.manifest import Role

#: Default workloads of `orchestrate run`.
T = TypeVar("T")
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
    cells: tuple[Cell, ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.accelerator not in ACCELERATORS:
            raise UserError(f"unknown accelerator {self.accelerator!r}; choose {', '.join(ACCELERATORS)}.")
        if not 1 <= self.repeat <= 1000:
            raise UserError(f"repeat is {self.repeat}; choose a number from 1 to 1000.")
        if self.max_repeat is not None and not self.repeat <= self.max_repeat <= 1000:
            raise UserError(f"at most {self.max_repeat} boots: choose {self.repeat} to 1000.")
        if not 0 < self.margin < 1:
            raise UserError(f"margin is {self.margin:g}; it is a fraction, e.g. 0.005 for 0.5 %.")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise UserError(f"timeout is {self.timeout_s:g} s; give more than 0.")
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


_KEYS = {
    "name": str,
    "topology": (str, dict),
    "accel": str,
    "repeat": int,
    "seed": int,
    "flavour": str,
    "margin": float,
    "timeout_s": (int, float),
    "variant": list,
    "workload": dict,
    "tradeoff": dict,
}
_VARIANT_KEYS = {"name": str, "patchset": str, "role": str, "set": dict, "cmdline": list}


def load_experiment(path: Path, series: Series, workloads: Mapping[str, Workload]) -> Experiment:
    """Read an experiment file.

    Args:
        path: the TOML file.
        series: the series, for its patchsets and knobs.
        workloads: the known workloads, by name.

    Raises:
        UserError: the file cannot be read, is not valid TOML, or has an unknown key or a bad value; the message
            starts with file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read this experiment file ({error}).") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}.") from error
    try:
        return _experiment(path, text, table, series, workloads)
    except _KeyFaultError as error:
        where = _line(text, error.key, error.occurrence)
        raise UserError(f"{path}:{where}: {error.message}") from error


class _KeyFaultError(Exception):
    """A fault at a key of the file, before its line is known."""

    def __init__(self, key: str, message: str, occurrence: int = 0) -> None:
        super().__init__(message)
        self.key = key
        self.message = message
        self.occurrence = occurrence


def _experiment(
    path: Path, text: str, table: dict[str, Any], series: Series, known: Mapping[str, Workload]
) -> Experiment:
    _check_keys(table, _KEYS, "an experiment")
    if not table.get("variant"):
        raise _KeyFaultError(
            "variant", "there is no [[variant]]; add a baseline and at least one variant to compare with it."
        )
    variants = []
    for index, entry in enumerate(table["variant"]):
        _check_keys(entry, _VARIANT_KEYS, "a variant", index)
        variants.append(_variant(entry, index, series))
    if all(variant.role is not Role.BASELINE for variant in variants):
        variants[0] = Variant(
            variants[0].name, Role.BASELINE, variants[0].patchset, variants[0].knobs, variants[0].cmdline
        )
    named = table.get("workload") or {name: {} for name in defaults.WORKLOADS}
    workloads: dict[str, Mapping[str, str]] = {}
    for name, parameters in named.items():
        if not isinstance(parameters, dict):
            raise _KeyFaultError(name, f"workload {name} is a table of parameters; write [workload.{name}].")
        given = {key: str(value) for key, value in parameters.items()}
        workloads[name] = _guarded(name, partial(check_parameters, known, name, given))
    tradeoff = {name: str(source) for name, source in table.get("tradeoff", {}).items()}
    _check_tradeoff(tradeoff, workloads, known)
    topology = table.get("topology", defaults.TOPOLOGY)
    return _guarded(
        "name",
        lambda: Experiment(
            name=table.get("name", path.stem),
            variants=with_control(variants),
            workloads=workloads,
            topology=_guarded(
                "topology",
                lambda: (
                    Topology.parse(topology) if isinstance(topology, str) else Topology.from_table(topology)
                ),
            ),
            accelerator=table.get("accel", "auto"),
            repeat=table.get("repeat", defaults.REPEAT),
            seed=table.get("seed", 1),
            flavour=table.get("flavour", "measure"),
            margin=table.get("margin", defaults.MARGIN),
            timeout_s=table.get("timeout_s"),
            tradeoff=tradeoff,
        ),
    )


def _check_tradeoff(
    tradeoff: Mapping[str, str], workloads: Mapping[str, object], known: Mapping[str, Workload]
) -> None:
    if tradeoff and len(tradeoff) != TRADEOFF_AXES:
        raise _KeyFaultError(
            "tradeoff", f"[tradeoff] weighs {TRADEOFF_AXES} metrics against each other, not {len(tradeoff)}."
        )
    for name, source in tradeoff.items():
        workload, _, metric = source.partition("/")
        if workload not in workloads:
            raise _KeyFaultError(
                name, f"{name} = {source!r}: write 'WORKLOAD/METRIC', with a workload of this experiment."
            )
        facts = known[workload].metrics.get(metric)
        if facts is None or facts.better is None:
            judged = ", ".join(each.name for each in known[workload].metrics.values() if each.better)
            raise _KeyFaultError(
                name,
                f"{name} = {source!r}: {workload} has no such metric with a better direction; choose one of {judged}.",
            )


def _variant(entry: dict[str, Any], index: int, series: Series) -> Variant:
    if "name" not in entry or "patchset" not in entry:
        raise _KeyFaultError("[[variant]]", "a variant needs a name and a patchset.", index)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9@=,_+-]*", entry["name"]):
        raise _KeyFaultError(
            "name", f"variant name {entry['name']!r}: use only letters, digits and @ = , _ + -.", index
        )
    try:
        role = Role(entry.get("role", Role.PATCHED))
    except ValueError:
        raise _KeyFaultError("role", f"role {entry['role']!r}: choose baseline or patched.", 0) from None
    knobs = {key: str(value) for key, value in entry.get("set", {}).items()}
    variant = Variant(
        entry["name"], role, entry["patchset"], knobs, tuple(map(str, entry.get("cmdline", ())))
    )
    try:
        check_variant(variant, series)
    except UserError as error:
        raise _KeyFaultError("[[variant]]", str(error), index) from error
    return variant


def _check_keys(table: Mapping[str, Any], known: Mapping[str, Any], what: str, occurrence: int = 0) -> None:
    for key, value in table.items():
        if key not in known:
            raise _KeyFaultError(key, f"unknown key {key!r} in {what}; the keys are {', '.join(known)}.")
        if not isinstance(value, known[key]) or (isinstance(value, bool)):
            raise _KeyFaultError(key, f"{key} has the wrong type ({type(value).__name__}).", occurrence)


def _guarded(key: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except UserError as error:
        raise _KeyFaultError(key, str(error)) from error


def _line(text: str, key: str, occurrence: int) -> int:
    """The line number (from 1) of the n-th occurrence of `key` as a key or table name; 1 if there is none."""
    pattern = re.compile(
        rf"^\s*(?:{re.escape(key)}\s*=|\[\[?[^\]]*\b{re.escape(key.strip('[]'))}\b[^\]]*\]\]?|.*\b{re.escape(key.strip('[]'))}\s*=)"
    )
    lines = [number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)]
    return lines[min(occurrence, len(lines) - 1)] if lines else 1
