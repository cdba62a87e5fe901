# SPDX-License-Identifier: GPL-2.0-only
"""Record what real guests answer to traces, for tests that compare without a guest.

    .venv/bin/python tests/differential/record.py

For each patchset random traces of every profile, and those of this directory. Has to be done again when a change of the
series changes what a trace leads to; the answers are the kernel's, so they are never edited.
"""

from __future__ import annotations

import json
import lzma
import sys
import tempfile
from pathlib import Path
from typing import Final

from orchestrator.cache import Cache
from orchestrator.cli.progress import PlainProgress
from orchestrator.events import Events
from orchestrator.execution.bench import Bench
from orchestrator.execution.check_run import load_trace, model_of
from orchestrator.execution.differential import TraceGuest, check_traces
from orchestrator.machine.topology import Topology
from orchestrator.model.generator import PROFILES, generate
from orchestrator.model.trace import format_trace
from orchestrator.project import Project

HERE = Path(__file__).resolve().parent
RECORDED = HERE / "recorded"
PATCHSETS: Final = ("baseline", "core-only", "full")
TOPOLOGY: Final = "2x512M/1"
#: Operations of a random trace: enough that each profile comes to promotion, fork and dump.
OPERATIONS: Final = 150
SEEDS: Final = (1, 2)


def record(bench: Bench, patchset: str) -> None:
    """Run the traces on a patchset's kernel, and write the answers beside this file."""
    names = [stage.name for stage in bench.series.select(patchset)]
    traces = {path.stem: load_trace(path) for path in sorted(HERE.glob("*.trace"))}
    traces |= {
        f"{profile}-{seed}": generate(seed, OPERATIONS, profile, names)
        for profile in PROFILES
        for seed in SEEDS
    }
    topology = Topology.parse(TOPOLOGY)
    with (
        tempfile.TemporaryDirectory() as logs,
        TraceGuest(bench, bench.kernel(patchset), topology, Path(logs)) as guest,
    ):
        checked = check_traces(guest, list(traces.values()), model_of(patchset, bench.series, topology))
    lines = [
        json.dumps(
            {
                "name": name,
                "trace": format_trace(each.trace),
                "answers": list(map(json.loads, each.answers.lines)),
            },
            separators=(",", ":"),
        )
        for name, each in zip(traces, checked, strict=True)
    ]
    RECORDED.mkdir(exist_ok=True)
    packed = lzma.compress(("\n".join(lines) + "\n").encode(), preset=9 | lzma.PRESET_EXTREME)
    (RECORDED / f"{patchset}.jsonl.xz").write_bytes(packed)
    for name, each in zip(traces, checked, strict=True):
        print(f"{patchset} {name}: {each.divergence or 'as the model'}")


def main() -> None:
    """Record all patchsets, or those that the command line names."""
    bench = Bench(
        Project(HERE.parents[1]), Cache.default(), Events(PlainProgress()), accelerator_request="tcg"
    )
    for patchset in sys.argv[1:] or PATCHSETS:
        record(bench, patchset)


if __name__ == "__main__":
    main()
