# SPDX-License-Identifier: GPL-2.0-only
"""Invented boots of many runs at once, for the error rates of the rule that `compare` applies.

Nothing here was measured. Values are on a log scale around a page fault's cost: what all variants of a repetition share
(their seed), plus what each boot adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from orchestrator.analysis.looks import looks
from orchestrator.analysis.statistics import Boots, Floor, Judgement, Values, judge, noise_floor

FAULT_INSNS: Final = 6290.0
#: Spread of the median anonymous fault over boots under icount, relative.
ICOUNT_SPREAD: Final = 0.0006
#: Spread of the same with one host thread for each virtual CPU (MTTCG), on a busy host.
MTTCG_SPREAD: Final = 0.05

_Noise = Callable[[np.random.Generator, tuple[int, ...]], Values]


def _bimodal(draw: np.random.Generator, shape: tuple[int, ...]) -> Values:
    return np.asarray(3.0 * (draw.random(shape) < 0.5) + 0.3 * draw.standard_normal(shape))


def _outlier(draw: np.random.Generator, shape: tuple[int, ...]) -> Values:
    return np.asarray(draw.standard_normal(shape) + 50.0 * (draw.random(shape) < 0.1))


#: What a boot adds, in units of the spread.
NOISE: Final[Mapping[str, _Noise]] = {
    "normal": lambda draw, shape: draw.standard_normal(shape),
    "lognormal": lambda draw, shape: np.exp(draw.standard_normal(shape)),
    "t2": lambda draw, shape: draw.standard_t(2, shape),
    "bimodal": _bimodal,
    "outlier": _outlier,
    "discrete": lambda draw, shape: draw.poisson(1.0, shape).astype(np.float64),
}


@dataclass(frozen=True)
class Simulation:
    """Many runs of one family of metrics.

    Args:
        kind: of the noise, see NOISE; ``counts`` are whole numbers with zeros among them.
        shift: what the variant's kernel really changes, relative.
        shared: spread of what the variants of a repetition share, relative.
        metrics: in the family.
    """

    kind: str
    n: int
    runs: int
    spread: float = ICOUNT_SPREAD
    shift: float = 0.0
    shared: float = 0.025
    metrics: int = 4
    control: bool = True

    def family(self, seed: int) -> tuple[list[Boots], list[Floor | None]]:
        draw = np.random.default_rng(seed)
        family: list[Boots] = []
        floors: list[Floor | None] = []
        for _ in range(self.metrics):
            baseline, variant, copy = self._boots(draw)
            family.append(Boots(baseline, variant, copy if self.control else None))
            floors.append(noise_floor(Boots(baseline, copy)) if self.control else None)
        return family, floors

    def _boots(self, draw: np.random.Generator) -> tuple[Values, Values, Values]:
        shape = (self.runs, self.n)
        if self.kind == "counts":
            baseline, variant, copy = (draw.poisson(0.7, shape).astype(np.float64) for _ in range(3))
            return baseline, variant, copy
        common = self.shared * draw.standard_normal(shape)
        noise = NOISE[self.kind]
        baseline, variant, copy = (
            FAULT_INSNS * np.exp(common + self.spread * noise(draw, shape)) for _ in range(3)
        )
        return baseline, (1 + self.shift) * variant, copy

    def judged(
        self, seed: int, margin: float, *, primary: bool = True, known_floor: bool = True
    ) -> list[Judgement]:
        """What the shipped rule says.

        Args:
            known_floor: else the A/A control is taken to show no noise at all, so that the test stands alone.
        """
        family, floors = self.family(seed)
        if not known_floor:
            floors = [Floor(np.asarray(0.0), np.asarray(0.0), 1.0)] * self.metrics
        return judge(family, floors, margin, primary=primary)

    def claims(
        self, seed: int, margin: float, *, primary: bool = True, known_floor: bool = True
    ) -> tuple[float, float]:
        """Share of the runs that claim any difference, and of those that claim any equivalence."""
        judged = self.judged(seed, margin, primary=primary, known_floor=known_floor)
        different = np.any([each.different for each in judged], axis=0)
        equivalent = np.any([each.equivalent for each in judged], axis=0)
        return float(different.mean()), float(equivalent.mean())

    def until_decided(
        self, seed: int, margin: float, *, known_floor: bool = True
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Each run, stopped at the first look at which its whole family is decided, at the latest after `n` boots.

        Returns:
            Boots at the stop, and whether any difference and any equivalence is claimed there.
        """
        family, _ = self.family(seed)
        stopped = np.zeros(self.runs, dtype=np.int64)
        different, equivalent = np.zeros((2, self.runs), dtype=bool)
        for look in looks(self.n):
            cut = [
                Boots(
                    each.baseline[:, : look.repetitions],
                    each.variant[:, : look.repetitions],
                    None if each.control is None else each.control[:, : look.repetitions],
                )
                for each in family
            ]
            still = Floor(np.asarray(0.0), np.asarray(0.0), 1.0)
            floors: list[Floor | None] = [
                still
                if not known_floor
                else None
                if each.control is None
                else noise_floor(Boots(each.baseline, each.control))
                for each in cut
            ]
            judged = judge(
                cut, floors, margin, primary=True, alpha=look.alpha, alpha_equivalence=look.alpha_equivalence
            )
            decided = np.all([each.different | each.equivalent for each in judged], axis=0)
            now = (stopped == 0) & (decided | (look.repetitions == self.n))
            stopped[now] = look.repetitions
            different[now] = np.any([each.different for each in judged], axis=0)[now]
            equivalent[now] = np.any([each.equivalent for each in judged], axis=0)[now]
        return stopped, different, equivalent

    def power(self, seed: int, margin: float, *, primary: bool = True) -> float:
        """Share of the metrics whose difference is claimed, where every metric of the family differs."""
        judged = self.judged(seed, margin, primary=primary)
        return float(np.mean([each.different for each in judged]))

    def with_shift(self, shift: float) -> Simulation:
        return replace(self, shift=shift)
