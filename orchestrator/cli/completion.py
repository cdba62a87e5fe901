# SPDX-License-Identifier: GPL-2.0-only
"""Shell completion for the values of options: patchsets, workloads, knobs, runs.

Completion must be fast, so only manifests are read, no tables of a run, and pandas is not imported. Imports are inside
of functions, since every command imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.kernel.series import Series
    from orchestrator.project import Project

#: A value and its meaning, which is shown by shells that support it.
Offer = tuple[str, str]


def _offered(names: Callable[[str], Iterator[Offer]]) -> Callable[[str], list[Offer]]:
    """The names that begin with the typed text; none if the project cannot be read."""

    @wraps(names)
    def offer(incomplete: str) -> list[Offer]:
        from orchestrator.errors import OrchestrateError

        try:
            offers = [each for each in names(incomplete) if each[0].startswith(incomplete)]
            if len(offers) == 1 and offers[0][0].endswith("="):
                # bash appends a space to a single match, and the value would become another word.
                return list(names(offers[0][0])) or offers
            return offers
        except (OrchestrateError, OSError):  # completion cannot show an error
            return []

    return offer


def _project() -> Project:
    from orchestrator.project import find_project

    return find_project()


def _series() -> Series:
    from orchestrator.kernel.series import load_series

    return load_series(_project().kernel_patches)


def _numbers(*values: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(str, values)))


@_offered
def patchsets(incomplete: str) -> Iterator[Offer]:
    """For ``--patchset``; after ``GROUP:`` and ``stage-``, numbers of stages."""
    from orchestrator.kernel.series import BASELINE, FULL

    series = _series()
    group, colon, _ = incomplete.partition(":")
    if colon and group in (*series.groups, FULL):
        for stage in series.select(group):
            yield f"{group}:{stage.number}", stage.title
        return
    if incomplete.startswith("stage-"):
        for stage in series.stages:
            yield f"stage-{stage.number}", stage.title
        return
    yield BASELINE, "the kernel without the series"
    for name in series.groups:
        yield name, f"stages 1 to {len(series.select(name))}"
    yield FULL, "all stages"


@_offered
def workloads(incomplete: str) -> Iterator[Offer]:
    """For ``--workload``: names; after ``NAME:``, parameters; after ``NAME:KEY=``, values."""
    from orchestrator.guest.workload import SIZE, SIZES, known_workloads, own_directories

    known = known_workloads(_project().guest_workloads, own_directories())
    name, colon, rest = incomplete.partition(":")
    if not colon:
        for workload in known.values():
            yield workload.name, workload.title
        return
    if name not in known:
        return
    before, comma, last = rest.rpartition(",")
    start = f"{name}:{before}{comma}"
    given = {part.partition("=")[0] for part in before.split(",")}
    values = {SIZE: SIZES} | {
        each.name: each.choices or _numbers(each.minimum, each.default, each.maximum)
        for each in known[name].parameters.values()
    }
    key, equals, _ = last.partition("=")
    if equals:
        for value in values.get(key, ()):
            yield f"{start}{key}={value}", ""
        return
    yield f"{start}{SIZE}=", "quick or full"
    for parameter in known[name].parameters.values():
        if parameter.name not in given:
            yield f"{start}{parameter.name}=", parameter.help


@_offered
def settings(incomplete: str) -> Iterator[Offer]:
    """For ``--set``: knobs; after ``KEY=`` or a comma, values."""
    from orchestrator.experiment.knob import BASELINE_KNOBS

    series = _series()
    key, equals, rest = incomplete.partition("=")
    if not equals:
        for knob in series.knobs:
            yield f"{knob.name}=", knob.help
        for name, baseline in BASELINE_KNOBS.items():
            yield f"{name}=", baseline.help
        return
    before, comma, _ = rest.rpartition(",")
    values: tuple[str, ...] = ()
    if key in BASELINE_KNOBS:
        baseline = BASELINE_KNOBS[key]
        values = baseline.choices or _numbers(baseline.minimum, baseline.default, baseline.maximum)
    for knob in series.knobs:
        if knob.name == key:
            values = _numbers(knob.minimum, knob.default, knob.maximum)
    for value in values:
        if value not in before.split(","):
            yield f"{key}={before}{comma}{value}", ""


@_offered
def configurations(incomplete: str) -> Iterator[Offer]:
    """For ``--config``."""
    from orchestrator.kernel.config import flavours, summary

    images = _project().vm_images
    for flavour in flavours(images):
        yield flavour, summary(images, flavour)


@_offered
def runs(incomplete: str) -> Iterator[Offer]:
    """For a run: the names of run directories, newest first, and ``latest``."""
    yield "latest", "the newest run"
    from orchestrator.store.run import run_directories

    for path in reversed(run_directories(_project().results)):
        yield path.name, ""
