# SPDX-License-Identifier: GPL-2.0-only
"""The plan of a measuring run with its cost, without building or booting anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import InfrastructureError
from orchestrator.execution.admission import Admission, admit
from orchestrator.execution.bench import Bench
from orchestrator.execution.durations import in_words
from orchestrator.execution.forecast import forecast, free_gib
from orchestrator.execution.place import LOCAL
from orchestrator.execution.provenance import Base, base_of
from orchestrator.experiment.experiment import Experiment


@dataclass(frozen=True)
class Needs:
    """What a run would need, as text and as JSON."""

    lines: Sequence[str]
    facts: Mapping[str, object]


@dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Args:
        base: the kernel source.
        cached: patchset -> whether its kernel is in the cache.
        image_cached: whether the guest images are in the cache.
    """

    experiment: Experiment
    base: Base
    cached: Mapping[str, bool]
    image_cached: bool
    needs: Needs

    def to_json(self) -> dict[str, object]:
        """For ``--json``."""
        asked = self.experiment
        return {
            "base": vars(self.base),
            "topology": asked.topology.text,
            "accelerator": asked.accelerator,
            "repeat": asked.repeat,
            "max_repeat": asked.max_repeat,
            "cells": [cell.id for cell in asked.cells],
            "variants": [
                {
                    "name": variant.name,
                    "role": variant.role.value,
                    "patchset": variant.patchset,
                    "knobs": dict(variant.knobs),
                    "kernel_cached": self.cached[variant.patchset],
                }
                for variant in asked.variants
            ],
            "workloads": {name: dict(parameters) for name, parameters in asked.workloads.items()},
            "image_cached": self.image_cached,
            "needs": self.needs.facts,
        }

    @property
    def lines(self) -> list[str]:
        """The plan as text."""
        asked = self.experiment
        lines = [
            f"{len(asked.cells)} cells on {asked.topology.text}, accelerator {asked.accelerator}:",
            f"  base {self.base.sentence}",
            *(f"       {remark}" for remark in self.base.remarks),
        ]
        for variant in asked.variants:
            knobs = " ".join(f"{key}={value}" for key, value in variant.knobs.items())
            prebuilt = variant.other is not None and variant.other.kernel is not None
            kernel = (
                "built elsewhere"
                if prebuilt
                else "kernel cached"
                if self.cached[variant.patchset]
                else "kernel to be built"
            )
            lines.append(f"  {variant.name:<28} {variant.role.value:<9} {kernel:<19} {knobs}".rstrip())
        for workload, parameters in asked.workloads.items():
            given = " ".join(f"{key}={value}" for key, value in parameters.items())
            boots = f"{asked.repeat}, at most {asked.max_repeat}" if asked.max_repeat else f"{asked.repeat}"
            lines.append(f"  workload {workload} x {boots}  {given}".rstrip())
        lines.append(f"  guest image {'cached' if self.image_cached else 'to be built'}")
        return [*lines, *self.needs.lines]


def plan_of(experiment: Experiment, bench: Bench, executor: str, guests: int | None) -> Plan:
    """The plan of a run. This may apply patches to find out what is cached, but builds nothing.

    Args:
        guests: number of parallel guests on this host; None for as many as suit the host.
    """
    cached = {
        patchset: bench.has_kernel(patchset) for patchset in {each.patchset for each in experiment.variants}
    }
    layers = {bench.workloads[name].layers for name in experiment.workloads}
    image_cached = all(bench.has_image(each) for each in layers)
    needs = _needs(experiment, bench, executor, guests)
    base = base_of(bench)
    if base.imported:
        base.remarks.extend(
            dict.fromkeys(
                remark
                for patchset in cached
                if not bench.is_prebuilt(patchset)
                for remark in bench.tree(patchset).remarks
            )
        )
    return Plan(experiment, base, cached, image_cached, needs)


def _needs(asked: Experiment, bench: Bench, executor: str, guests: int | None) -> Needs:
    try:
        accelerator = bench.accelerator
    except InfrastructureError as error:  # a plan is useful even without QEMU
        return Needs([f"accelerator  none: {error}"], {"accelerator": None, "reason": str(error)})
    here = executor == LOCAL
    admission = (
        admit(guests, asked.topology, accelerator, len(asked.cells))
        if here
        else Admission(1, f"the workers of {executor} decide")
    )
    needed = forecast(asked, bench, asked.cells, admission.guests)
    free = free_gib(bench.cache.root)
    parts = [*needed.prepare, (f"{len(asked.cells)} cells", needed.cells), ("conclusion", needed.conclude)]
    lines = [
        f"accelerator  {accelerator.reason}",
        f"guests       {admission.guests} in parallel: {admission.reason}",
        f"time         about {in_words(needed.seconds)}, {needed.basis}:",
        *(f"               {name}: {in_words(each.seconds)}" for name, each in parts),
        f"disk         about {needed.disk_gib:.1f} GiB, estimated; {free:.0f} GiB are free at {bench.cache.root}",
    ]
    facts = {
        "accelerator": accelerator.name,
        "reason": accelerator.reason,
        "guests": admission.guests,
        "seconds": round(needed.seconds),
        "basis": needed.basis,
        "parts": {name: {"seconds": round(e.seconds), "basis": e.basis} for name, e in parts},
        "disk_gib": round(needed.disk_gib, 2),
        "free_gib": round(free, 1),
    }
    return Needs(lines, facts)
