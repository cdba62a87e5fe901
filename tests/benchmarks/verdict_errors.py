# SPDX-License-Identifier: GPL-2.0-only
"""How often the rule of `compare` errs, and what it sees: the tables of docs/measurement.md, as Markdown.

    .venv/bin/python tests/benchmarks/verdict_errors.py [--share FRACTION]

Every figure is of the rule that is shipped, on simulated runs; the seeds are fixed, so that the output is, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))

from simulated_boots import ICOUNT_SPREAD, MTTCG_SPREAD, NOISE, Simulation

from orchestrator.analysis.statistics import sign_interval

#: Repetitions -> simulated runs of each kind of noise; many repetitions take longer to count.
RUNS = {6: 1000, 10: 500, 20: 150}
PRIMARY, OTHERS = 4, 20
#: Of runs until decided: most boots, metrics of a family, simulated runs.
MOST, FAMILY, LOOKED = 12, 3, 300
SEED = 1


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Error rates and power of the rule of compare, as Markdown.")
    parser.add_argument("--share", type=float, default=1.0, help="Of the simulated runs, e.g. 0.1.")
    share = parser.parse_args().share
    runs = {n: max(20, int(number * share)) for n, number in RUNS.items()}
    equal = (
        f"**False positives**: share of {_listed(runs.values())} runs (n = {', '.join(map(str, runs))}) of two equal "
        f"kernels in which any difference is claimed, without a margin: for {PRIMARY} primary metrics by the test "
        f"alone, for the same by the rule, and for {OTHERS} others by the rule"
    )
    covered = (
        "**Coverage** of 95 % intervals of a median: order statistics (stated level, simulated coverage); percentile "
        "bootstrap"
    )
    looked = max(20, int(LOOKED * share))
    decided = (
        f"**Until decided**, at most {MOST} boots: share of {looked} runs, of a family of {FAMILY} metrics, that claim "
        "any difference of equal kernels; of one metric, that claim equivalence of a change as large as the margin of "
        "0.5 %; and the boots that a family takes where nothing has changed"
    )
    for title, header, rows in (
        (equal, ["noise of a boot", *(f"n = {n}: test, rule, others" for n in runs)], false_positives(runs)),
        (
            "**Power**: share of the primary metrics whose true change is detected, by change and margin",
            ["spread of a boot, n", *(f"{c:.1%}, margin {m:.1%}" for c, m in _SHIFTS)],
            power(runs),
        ),
        (
            covered,
            ["noise of a boot", *(f"n = {n}" for n in _COVERED)],
            coverage(max(100, int(2000 * share))),
        ),
        (
            decided,
            ["noise of a boot", "wrong difference", "wrong equivalence", "boots, mean"],
            until_decided(looked),
        ),
    ):
        print(f"{title}:\n")
        print_table(header, rows)


def false_positives(runs: dict[int, int]) -> Iterator[list[str]]:
    """A row for each kind of noise."""
    for kind in (*NOISE, "counts"):
        row = [kind]
        for n, number in runs.items():
            simulation = Simulation(kind, n, number, metrics=PRIMARY)
            alone, _ = simulation.claims(SEED, 1e-9, known_floor=False)
            rule, _ = simulation.claims(SEED, 1e-9)
            others, _ = replace(simulation, metrics=OTHERS).claims(SEED, 1e-9, primary=False)
            row.append(f"{alone:.1%}, {rule:.1%}, {others:.1%}")
        yield row


#: True change, margin.
_SHIFTS = ((0.005, 0.001), (0.005, 0.005), (0.01, 0.005), (0.03, 0.005), (0.2, 0.005))


def power(runs: dict[int, int]) -> Iterator[list[str]]:
    """A row for each spread and number of repetitions."""
    for name, spread in (("icount", ICOUNT_SPREAD), ("MTTCG", MTTCG_SPREAD)):
        for n, number in runs.items():
            simulation = Simulation("normal", n, number // 2, spread=spread, metrics=PRIMARY)
            row = [f"{name} {spread:.2%}, {n}"]
            row += [f"{simulation.with_shift(change).power(SEED, margin):.0%}" for change, margin in _SHIFTS]
            yield row


_COVERED = (3, 5, 6, 10, 20)


def coverage(runs: int) -> Iterator[list[str]]:
    """A row for each kind of noise."""
    draw = np.random.default_rng(SEED)
    for kind, noise in NOISE.items():
        truth = float(np.median(noise(draw, (400_000,))))
        row = [kind]
        for n in _COVERED:
            index, says = sign_interval(n)
            samples = noise(draw, (runs, n))
            ordered = np.sort(samples, axis=-1)
            exact = (ordered[:, index] <= truth) & (truth <= ordered[:, -1 - index])
            medians = np.median(samples[:, draw.integers(0, n, (400, n))], axis=-1)
            low, high = np.percentile(medians, [2.5, 97.5], axis=-1)
            bootstrap = (low <= truth) & (truth <= high)
            row.append(f"{says:.1%}, {exact.mean():.1%}; {bootstrap.mean():.1%}")
        yield row


def until_decided(runs: int) -> Iterator[list[str]]:
    """A row for each kind of noise."""
    for kind in (*NOISE, "counts"):
        simulation = Simulation(kind, MOST, runs, metrics=FAMILY)
        _, different, _ = simulation.until_decided(SEED, 1e-9, known_floor=False)
        boots, _, _ = simulation.until_decided(SEED, 0.005)
        # A count has no change in per cent where the baseline has a 0.
        wrong = "-"
        if kind != "counts":
            _, _, same = replace(simulation, metrics=1).with_shift(0.005).until_decided(SEED + 1, 0.005)
            wrong = f"{same.mean():.1%}"
        yield [kind, f"{different.mean():.1%}", wrong, f"{boots.mean():.1f}"]


def _listed(numbers: Iterable[int]) -> str:
    """The numbers as a list in words."""
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last


def print_table(header: Sequence[str], rows: Iterator[list[str]]) -> None:
    """Print Markdown, a row at a time."""
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)
    print()


if __name__ == "__main__":
    main()
