# SPDX-License-Identifier: GPL-2.0-only
"""How many boots a bisection takes: the table of docs/bisection.md, as Markdown.

    .venv/bin/python tests/benchmarks/bisection_boots.py

The search is the one that is shipped, its boots are simulated: 20 stages, each boot costs the same. In a real search a
stage that must be built first costs more, so the order of the boots, and their number, may differ a little.
"""

from __future__ import annotations

import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))

from test_bisection import guests, is_right, search

from orchestrator.execution.bisect.bisection import Bisection, flaky, repeatable

STAGES = 20
#: What is planted -> kind of noise that the search assumes, first bad stage, share of bad boots.
PLANTED = {
    "a fault, `--until`": (flaky(0.3), 7, 1.0),
    "a metric by `icount`": (repeatable(), 9, 1.0),
    "a fault in three of ten boots, `--until … --rate 0.3`": (flaky(0.3), 11, 0.3),
}
SEARCHES = 40


def main() -> None:
    """Print the table."""
    print("| planted | boots, median (least to most) | right |\n|---|---|---|")
    for name, (noise, first, rate) in PLANTED.items():
        boots, right = [], 0
        # Where every bad boot shows it, all searches are alike.
        for seed in range(SEARCHES if rate < 1 else 1):
            done = search(Bisection(STAGES, noise), guests(first, random.Random(seed), 0.0, rate))
            boots.append(len(done.steps))
            right += is_right(done.answer, first)
        spread = f" ({min(boots)} to {max(boots)})" if len(boots) > 1 else ""
        print(f"| {name}, stage {first} | {statistics.median(boots):.0f}{spread} | {right} of {len(boots)} |")


if __name__ == "__main__":
    main()
