# SPDX-License-Identifier: GPL-2.0-only
"""How many operations a second the reference model does on one core.

    .venv/bin/python tests/benchmarks/model_speed.py [--ops N] [--patchset NAME]

"touch": one page is written, read or given back, at a random place of 16 blocks. The other rows are the random traces
of `orchestrate check`, where an operation is a system call or an access to a range, of 29 to 65 pages on average, two
full scans of khugepaged, or a fork; "pages/s" counts the pages of the ranges written and read.

"stepped": the operation is done, and all counters after it are known, which is what a search over traces asks for.
"reported": every block of the process that the step belongs to is described too, with the hash of its contents, which
is more than a comparison with a guest asks for. Traces are drawn before the clock starts; the best of three passes
counts, since others use the machine too.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

from orchestrator.execution.check.reference import model_of
from orchestrator.kernel.series import load_series
from orchestrator.machine.topology import Topology
from orchestrator.model.generator import PROFILES, generate
from orchestrator.model.memory import Model
from orchestrator.model.page import PAGES
from orchestrator.model.trace import Advise, Map, Operation, Read, Trace, Write

ROOT = Path(__file__).resolve().parents[2]
_PASSES = 3


def seconds(model: Model, trace: Trace, *, reported: bool) -> float:
    """CPU seconds that a fresh model takes for a trace."""
    began = time.process_time()
    for operation in trace.operations:
        model.step(operation)
        process = getattr(operation, "process", None)
        if reported and process in model.alive:
            for block in model.process(process).tables:
                model.block(process, block)
    return time.process_time() - began


def touches(count: int) -> Trace:
    """Accesses to one page each, most of which write."""
    chance = random.Random(1)
    pages = 16 * PAGES
    operations: list[Operation] = [Map("p0", 0, pages, "huge")]
    for number in range(count - 1):
        page = chance.randrange(pages)
        kind = chance.random()
        if kind < 0.8:
            operations.append(Write("p0", page, 1, number))
        elif kind < 0.9:
            operations.append(Read("p0", page, 1))
        else:
            operations.append(Advise("p0", page, 1, "dontneed"))
    return Trace(tuple(operations), settings={"promotion_threshold": "256"})


def main() -> None:
    """Measure, and print a row a profile."""
    parser = argparse.ArgumentParser(description="Operations of the reference model a second.")
    parser.add_argument("--ops", type=int, default=20_000, help="operations a trace (default: %(default)s)")
    parser.add_argument("--patchset", default="full", help="default: %(default)s")
    arguments = parser.parse_args()
    series = load_series(ROOT / "kernel_patches")
    names = [stage.name for stage in series.select(arguments.patchset)]
    model_for = model_of(arguments.patchset, series, Topology.parse("2x512M/1"))

    def make(trace: Trace) -> Model:
        model = model_for(trace)
        assert isinstance(model, Model)
        return model

    traces = {"touch": touches(arguments.ops)}
    traces |= {profile: generate(1, arguments.ops, profile, names) for profile in PROFILES}
    print(f"{'trace':<12} {'operations':>10} {'stepped/s':>12} {'pages/s':>12} {'reported/s':>12}")
    for name, trace in traces.items():
        best = {
            reported: min(seconds(make(trace), trace, reported=reported) for _ in range(_PASSES))
            for reported in (False, True)
        }
        count = len(trace.operations)
        pages = sum(each.count for each in trace.operations if isinstance(each, Write | Read))
        print(
            f"{name:<12} {count:>10,} {count / best[False]:>12,.0f} {pages / best[False]:>12,.0f} "
            f"{count / best[True]:>12,.0f}"
        )


if __name__ == "__main__":
    main()
