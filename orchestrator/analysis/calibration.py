# SPDX-License-Identifier: GPL-2.0-only
"""A calibration: the cost of pages on the host's processor, compared with instructions of an emulated guest."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from orchestrator.store.manifest import Manifest

#: Numbers of touched pages per range, as in the sweep of guest_workloads/fault_latency.
DENSITIES = (1, 16, 64, 96, 256, 512)
#: Default number of native rounds to evaluate.
DEFAULT_ROUNDS = 10
#: Density for the cost of a base page fault: high enough that the setup of the range does not matter.
_FAULTS = 64


@dataclass(frozen=True)
class Spread:
    """A cost, or a ratio of two.

    Args:
        p10: 10th percentile, which is least disturbed on a busy host.
        p50: median.
    """

    p10: float
    p50: float

    def over(self, other: Spread) -> Spread:
        """The ratio of two costs, percentile by percentile."""
        return Spread(self.p10 / other.p10, self.p50 / other.p50)


@dataclass(frozen=True)
class Costs:
    """The cost of touching pages of a new 2 MiB range, by one clock.

    Args:
        unit: ``ns`` of thread CPU time, or ``insns``.
        base: pages touched -> cost with base pages (MADV_NOHUGEPAGE).
        huge: pages touched -> cost with huge pages (MADV_HUGEPAGE).
    """

    unit: str
    base: Mapping[int, Spread]
    huge: Mapping[int, Spread]

    @property
    def base_fault(self) -> Spread:
        """One fault on a base page."""
        region = self.base[_FAULTS]
        return Spread(region.p10 / _FAULTS, region.p50 / _FAULTS)

    @property
    def huge_fault(self) -> Spread:
        """One fault on a huge page."""
        return self.huge[1]

    @property
    def faults_per_huge_fault(self) -> Spread:
        """Cost of a huge page fault, divided by that of a base page fault."""
        return self.huge_fault.over(self.base_fault)

    def base_over_huge(self, pages: int) -> Spread:
        """Cost of base pages, divided by that of a huge page, for this number of touched pages of a range."""
        return self.base[pages].over(self.huge[pages])

    @property
    def break_even(self) -> Spread:
        """Number of touched pages, of 512, at which base pages cost as much as a huge page; NaN if there is none."""
        ratios = [(pages, self.base_over_huge(pages)) for pages in DENSITIES]
        return Spread(
            _crossing([(pages, ratio.p10) for pages, ratio in ratios]),
            _crossing([(pages, ratio.p50) for pages, ratio in ratios]),
        )


@dataclass(frozen=True)
class Calibration:
    """One calibration of a host.

    Args:
        measured_utc: when, ISO 8601.
        cpu: the host's processor.
        load: load averages of one minute before and after the native measurements.
        rounds: native rounds that count.
        processor: costs on the host's processor.
        guest: costs in the emulated guest.
        guest_cpu: CPU model of that guest.
        qemu: version of QEMU.
        kernel: of the guest, e.g. ``6.12.117``.
        host_kernel: of the host.
    """

    measured_utc: str
    cpu: str
    load: tuple[float, float]
    rounds: int
    processor: Costs
    guest: Costs
    guest_cpu: str
    qemu: str
    kernel: str
    host_kernel: str

    @property
    def sentence(self) -> str:
        """One line for readers of instruction counts."""
        real, counted = self.processor, self.guest
        return (
            f"one huge fault costs {real.faults_per_huge_fault.p10:.0f} base faults on the host's processor "
            f"({self.cpu}) and {counted.faults_per_huge_fault.p50:.0f} in instructions; base pages cost as much as a "
            f"huge page at {_pages(real.break_even.p10)} touched pages of 512, and at "
            f"{_pages(counted.break_even.p50)} in instructions"
        )

    def to_json(self) -> str:
        """As JSON; :meth:`of_json` reads it."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def of_json(cls, text: str) -> Calibration:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: the text is not a calibration.
        """
        try:
            facts = json.loads(text)
            return cls(
                **{
                    **facts,
                    "load": tuple(facts["load"]),
                    "processor": _costs(facts["processor"]),
                    "guest": _costs(facts["guest"]),
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a calibration: {error!r}") from error


def calibration_line(manifest: Manifest) -> str:
    """The line on the calibration in the report of a run; empty if its clock is not instructions."""
    if manifest.accelerator.clock != "insns":
        return ""
    if manifest.calibration is None:
        return "the host of the run was not calibrated; run `orchestrate calibrate` there"
    return manifest.calibration.sentence


def _costs(facts: Mapping[str, Any]) -> Costs:
    sides = ({int(pages): Spread(**cost) for pages, cost in facts[side].items()} for side in ("base", "huge"))
    return Costs(facts["unit"], *sides)


def _crossing(ratios: list[tuple[int, float]]) -> float:
    """Where the ratio crosses 1, interpolated logarithmically."""
    for (low, below), (high, above) in pairwise(ratios):
        if below < 1 <= above:
            share = math.log(1 / below) / math.log(above / below)
            return math.exp(math.log(low) + share * math.log(high / low))
    return math.nan


def _pages(count: float) -> str:
    return "no number of" if math.isnan(count) else f"{count:.0f}"
