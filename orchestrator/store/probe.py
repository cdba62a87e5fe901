# SPDX-License-Identifier: GPL-2.0-only
"""A probe of an experiment: a point of the kernel, and what gdb does there. ``run.json`` has it as written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from orchestrator.errors import UserError
from orchestrator.store.observation import Metric
from orchestrator.store.record import Record

#: What a probe can do.
ACTIONS: Final = ("count", "capture", "sample", "return = VALUE", "hold = NAME")
#: Largest number of hits at which a probe stops the guest to do more than count.
LIMIT: Final = 100
_ACTION: Final = re.compile(r"(?P<name>\w+)(?:\s*=\s*(?P<value>.+))?")
_NUMBER: Final = re.compile(r"-?(?:0x[0-9a-fA-F]{1,16}|\d{1,20})")
_NAME: Final = re.compile(r"[A-Za-z0-9][\w-]*")


@dataclass(frozen=True)
class Probe(Record):
    """A point of the kernel, and what to do when a CPU comes there.

    Args:
        at: a function; the probe is at its first instruction.
        do: some of :data:`ACTIONS`.
        hit: do it at this hit only; 0 for each, but a hold is over when two tasks have met.
        fields: C expressions to capture, e.g. ``vma->vm_start``.
        when: a C expression; a hit where it is 0 does not count. Empty for none.
        limit: largest number of hits at which the guest is stopped.
    """

    at: str
    do: tuple[str, ...]
    hit: int = 0
    fields: tuple[str, ...] = ()
    when: str = ""
    limit: int = LIMIT

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_][\w.]*", self.at):
            raise UserError(f"probe at {self.at!r}: name a function of the kernel.")
        if not self.do:
            raise UserError(f"probe at {self.at}: say what to do: {', '.join(ACTIONS)}.")
        for action in self.do:
            self._check(action)
        names = [action.partition("=")[0].strip() for action in self.do]
        if len(set(names)) != len(names):
            raise UserError(f"probe at {self.at}: each action can be given once.")
        if self.hit < 0 or self.limit < 1:
            raise UserError(
                f"probe at {self.at}: hit counts from 1 (0 for each hit), and limit is at least 1."
            )
        if self.fields and "capture" not in names:
            raise UserError(f'probe at {self.at}: fields are captured; add "capture" to do.')
        for text in (*self.fields, self.when):
            if "\n" in text:
                raise UserError(f"probe at {self.at}: {text!r} must be one line.")

    def _check(self, action: str) -> None:
        match = _ACTION.fullmatch(action)
        name, value = (match["name"], match["value"]) if match else (action, None)
        fits = {
            "count": value is None,
            "capture": value is None,
            "sample": value is None,
            "return": value is not None and _NUMBER.fullmatch(value) is not None,
            "hold": value is not None and _NAME.fullmatch(value) is not None,
        }
        if not fits.get(name, False):
            raise UserError(f"probe at {self.at}: {action!r} is no action; write {', '.join(ACTIONS)}.")

    def does(self, name: str) -> bool:
        """Whether it has this action."""
        return any(action.partition("=")[0].strip() == name for action in self.do)

    @property
    def value(self) -> int | None:
        """The value that the function returns instead of running; None if it runs."""
        text = self._argument("return")
        return int(text, 0) if text else None

    @property
    def hold(self) -> str:
        """The name of the hold; empty for none."""
        return self._argument("hold")

    @property
    def only_counts(self) -> bool:
        """Whether gdb need not stop the guest for longer than it takes to count."""
        return all(action == "count" for action in self.do)

    @property
    def needs_dwarf(self) -> bool:
        """Whether it needs a kernel with debugging information."""
        return bool(self.fields or self.when) or self.does("capture") or self.does("sample")

    def _argument(self, name: str) -> str:
        for action in self.do:
            key, _, value = action.partition("=")
            if key.strip() == name:
                return value.strip()
        return ""


def check_probes(probes: Sequence[Probe]) -> None:
    """Check what concerns several probes.

    Raises:
        UserError: a hold has not exactly two probes, or two probes have the same point.
    """
    points = [probe.at for probe in probes]
    twice = next((point for point in points if points.count(point) > 1), None)
    if twice is not None:
        raise UserError(f"two probes are at {twice}; give one of them all actions.")
    for name in {probe.hold for probe in probes if probe.hold}:
        count = sum(probe.hold == name for probe in probes)
        if count != 2:
            how_many = "one probe" if count == 1 else f"{count} probes"
            raise UserError(
                f"hold {name!r} has {how_many}; it needs two: the first to come waits for the other."
            )


def label_of(text: str) -> str:
    """A C expression as part of a metric's name.

    >>> label_of("vma->vm_start")
    'vma_vm_start'
    """
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "value"


def hits_metric(probe: Probe) -> str:
    """The name of the metric with its number of hits."""
    return f"{label_of(probe.at)}_hits.total"


def field_metrics(probe: Probe, field: str) -> tuple[str, str]:
    """The names of the metrics with the first and the last captured value of a field."""
    stem = f"{label_of(probe.at)}_{label_of(field)}"
    return f"{stem}.first", f"{stem}.last"


def probe_metrics(probes: Sequence[Probe]) -> dict[str, Metric]:
    """The metrics of probes, by name."""
    metrics: list[Metric] = []
    for probe in probes:
        metrics.append(
            Metric(
                hits_metric(probe),
                "hits",
                None,
                help=f"How often {probe.at}() was called while the workload ran.",
            )
        )
        for field in probe.fields:
            for name, which in zip(field_metrics(probe, field), ("first", "last"), strict=True):
                metrics.append(
                    Metric(name, "value", None, help=f"{field} at the {which} captured hit of {probe.at}().")
                )
    return {metric.name: metric for metric in metrics}
