# SPDX-License-Identifier: GPL-2.0-only
"""Record what real guests answer to traces, for tests that compare without a guest.

    .venv/bin/python tests/differential/record.py [--all] [PATCHSET ...]

For each patchset random traces of every profile, and those of this directory. What is recorded already for the same
trace is kept; `--all` records everything again, as is needed when a change of the series changes what a trace leads to.
The answers are the kernel's; never edit them. `mutation.py` says whether the traces are enough.
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
from orchestrator.execution.check.differential import TraceGuest, check_traces
from orchestrator.execution.check.reference import memory_nodes, model_of
from orchestrator.execution.check.request import load_trace
from orchestrator.kernel.trait import traits_of
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
SEEDS: Final = range(1, 6)


def recorded(patchset: str) -> dict[str, str]:
    """The lines of a patchset's file, by the text of their trace."""
    path = RECORDED / f"{patchset}.jsonl.xz"
    lines = lzma.decompress(path.read_bytes()).decode().splitlines() if path.exists() else []
    return {json.loads(line)["trace"]: line for line in lines}


def record(bench: Bench, patchset: str, everything: bool) -> None:
    """Run traces on a patchset's kernel, and write the answers beside this file.

    Args:
        everything: also those that are recorded already.
    """
    names = [stage.name for stage in bench.series.select(patchset)]
    topology = Topology.parse(TOPOLOGY)
    traces = {path.stem: load_trace(path) for path in sorted(HERE.glob("*.trace"))}
    traces |= {
        f"{profile}-{seed}": generate(seed, OPERATIONS, profile, names, nodes=memory_nodes(topology))
        for profile in PROFILES
        for seed in SEEDS
    }
    kept = {} if everything else recorded(patchset)
    missing = {name: trace for name, trace in traces.items() if format_trace(trace) not in kept}
    with (
        tempfile.TemporaryDirectory() as logs,
        TraceGuest(bench, bench.kernel(patchset), topology, Path(logs)) as guest,
    ):
        traits = traits_of(bench.tree(patchset))
        model_for = model_of(patchset, bench.series, topology, traits)
        checked = check_traces(guest, list(missing.values()), model_for)
    for name, each in zip(missing, checked, strict=True):
        print(f"{patchset} {name}: {each.divergence or 'agrees with the model'}")
        answers = list(map(json.loads, each.answers.lines))
        line = {"name": name, "trace": format_trace(each.trace), "answers": answers}
        kept[format_trace(each.trace)] = json.dumps(line, separators=(",", ":"))
    lines = [kept[format_trace(trace)] for trace in traces.values()]
    RECORDED.mkdir(exist_ok=True)
    packed = lzma.compress(("\n".join(lines) + "\n").encode(), preset=9 | lzma.PRESET_EXTREME)
    (RECORDED / f"{patchset}.jsonl.xz").write_bytes(packed)


def main() -> None:
    """Record all patchsets, or those that the command line names."""
    bench = Bench(
        Project(HERE.parents[1]), Cache.default(), Events(PlainProgress()), accelerator_request="tcg"
    )
    for patchset in [each for each in sys.argv[1:] if each != "--all"] or PATCHSETS:
        record(bench, patchset, "--all" in sys.argv)


if __name__ == "__main__":
    main()
