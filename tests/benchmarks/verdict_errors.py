# SPDX-License-Identifier: GPL-2.0-only
"""How often the rule of `compare` errs, and what it sees: the tables of docs/measurement.md, as Markdown.

    .venv/bin/python tests/benchmarks/verdict_errors.py [--share FRACTION]

Every figure is of the rule that is shipped, on simulated runs; the seeds are fixed, so that the output is, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))

from simulated_boots import ICOUNT_SPREAD, MTTCG_SPREAD, NOISE, Simulation

from orchestrator.analysis.statistics import sign_interval

#: Repetitions -> simulated runs of each kind of noise; many repetitions take longer to count.
RUNS = {6: 2000, 10: 1000, 20: 300}
PRIMARY, OTHERS = 4, 20
SEED = 1


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Error rates and power of the rule of compare, as Markdown.")
    parser.add_argument("--share", type=float, default=1.0, help="Of the simulated runs, e.g. 0.1.")
    share = parser.parse_args().share
    runs = {n: max(20, int(number * share)) for n, number in RUNS.items()}
    equal = (
        f"False positives: runs of two equal kernels that claim any difference, without a margin. {PRIMARY} primary "
        f"metrics by the test alone and by the rule, {OTHERS} others by the rule"
    )
    for title, header, rows in (
        (equal, ["noise of a boot", *(f"n = {n}: test, rule, others" for n in runs)], false_positives(runs)),
        (
            "Power: share of the primary metrics whose true change is claimed, by change and margin",
            ["spread of a boot, n", *(f"{c:.1%}, margin {m:.1%}" for c, m in _SHIFTS)],
            power(runs),
        ),
        (
            "Coverage of 95 % intervals of a median: order statistics (says, reaches), percentile bootstrap",
            ["noise of a boot", *(f"n = {n}" for n in _COVERED)],
            coverage(max(100, int(2000 * share))),
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


def print_table(header: Sequence[str], rows: Iterator[list[str]]) -> None:
    """Print Markdown, a row at a time."""
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)
    print()


if __name__ == "__main__":
    main()
