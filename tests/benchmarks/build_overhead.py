# SPDX-License-Identifier: GPL-2.0-only
"""What `orchestrate build` costs over a bare make of the same configuration, cold and from stage to stage.

Both sides build the same trees with the same compiler, in turn, without ccache, each in a directory of its own. Laying
out the source is not counted on either side. Prints the ratios of wall time, and of CPU time, which holds on a busy
host too:

    .venv/bin/python tests/benchmarks/build_overhead.py [--cold] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from orchestrator.cache import Cache
from orchestrator.events import Event, Events
from orchestrator.kernel.build import kernel_artefact
from orchestrator.kernel.config import Configuration, configuration
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.series import load_series
from orchestrator.kernel.source import import_source
from orchestrator.kernel.tree import PatchedTree, apply_stages
from orchestrator.kernel.workshop import pinned

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class TimeTaken:
    """Seconds that something took.

    Args:
        wall: on the clock.
        cpu: of us and of everything that we started and waited for.
    """

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> TimeTaken:
        """What was spent so far; two of them are subtracted."""
        used = os.times()
        return cls(time.monotonic(), used.user + used.system + used.children_user + used.children_system)

    def __sub__(self, other: TimeTaken) -> TimeTaken:
        return TimeTaken(self.wall - other.wall, self.cpu - other.cpu)

    def __add__(self, other: TimeTaken) -> TimeTaken:
        return TimeTaken(self.wall + other.wall, self.cpu + other.cpu)


def report(what: str, bare: TimeTaken, ours: TimeTaken) -> None:
    """Print a pair."""
    print(
        f"{what:<12} wall: bare {bare.wall:7.1f} s, orchestrate {ours.wall:7.1f} s, {ours.wall / bare.wall - 1:+6.1%}"
        f"   CPU: bare {bare.cpu:7.1f} s, orchestrate {ours.cpu:7.1f} s, {ours.cpu / bare.cpu - 1:+6.1%}",
        flush=True,
    )


class Bare:
    """make, as a person would call it."""

    def __init__(self, place: Path, wanted: Configuration) -> None:
        self.pinned = [f"{key}={value}" for key, value in pinned(wanted).items() if key != "LC_ALL"]
        self.source, self.objects, self.index = place / "source", place / "objects", place / "index"
        self.requests = place / "requests"
        self.source.mkdir(parents=True)
        self.objects.mkdir()
        self.requests.write_text(wanted.text)

    def make(self, *words: str) -> None:
        command = [
            "make",
            "-s",
            "-C",
            str(self.source),
            f"O={self.objects}",
            "ARCH=x86_64",
            *self.pinned,
            *words,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def switch(self, tree: PatchedTree) -> None:
        Repository(tree.repository).git(
            "read-tree", "--reset", "-u", tree.commit,
            work_tree=self.source, index=self.index, config=("core.sparseCheckout=false",),
        )  # fmt: skip

    def configure(self) -> None:
        self.make("allnoconfig", f"KCONFIG_ALLCONFIG={self.requests}")
        self.make("olddefconfig")

    def build(self) -> TimeTaken:
        began = TimeTaken.now()
        self.make(f"-j{os.cpu_count()}", "bzImage")
        return TimeTaken.now() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cold", action="store_true", help="measure a cold build too: two whole builds")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of incremental builds")
    asked = parser.parse_args()
    shared, events = Cache.default(), Events()
    series = load_series(ROOT / "kernel_patches")
    source = import_source(None, series.bases.package, shared, events, series.bases.versions)
    wanted = configuration(ROOT / "vm_images", "measure")
    last = len(series.stages)
    # Between these two only files of mm/ differ, as they do for somebody who works on a stage.
    trees = [apply_stages(source, series.select(f"stage-{n}"), shared, events) for n in (last - 1, last)]
    with tempfile.TemporaryDirectory(prefix="build-overhead-", dir=shared.root) as scratch, without_ccache():
        bare = Bare(Path(scratch) / "bare", wanted)
        ours = Cache(Path(scratch) / "ours")
        laid_out = TimeTaken(0, 0)
        began = TimeTaken.now()

        def watch(event: Event) -> None:
            nonlocal laid_out, began
            if event.kind == "note" and event.text == "source checked out":
                laid_out = TimeTaken.now() - began

        def orchestrated(tree: PatchedTree) -> TimeTaken:
            nonlocal laid_out, began
            laid_out, began = TimeTaken(0, 0), TimeTaken.now()
            kernel = kernel_artefact(tree, wanted, ours, Events(watch)).obtain()
            took = TimeTaken.now() - began - laid_out
            shutil.rmtree(kernel.directory)
            return took

        bare.switch(trees[0])
        began = TimeTaken.now()
        bare.configure()
        configured = TimeTaken.now() - began
        cold = configured + bare.build(), orchestrated(trees[0])
        if asked.cold:
            report("cold", *cold)
        pairs: list[tuple[TimeTaken, TimeTaken]] = []
        for turn in range(2 * asked.rounds):
            tree = trees[(turn + 1) % 2]
            bare.switch(tree)  # not counted, though a person would have to do it too
            pairs.append((bare.build(), orchestrated(tree)))
            report("incremental", *pairs[-1])
        for what in ("wall", "cpu"):
            ratios = [getattr(ours_, what) / getattr(bare_, what) for bare_, ours_ in pairs]
            print(f"incremental  {what}: median {statistics.median(ratios) - 1:+.1%} of {len(ratios)} pairs")


def without_ccache() -> mock._patch[object]:
    """A cached object would make both sides a copy."""
    which = shutil.which
    return mock.patch.object(shutil, "which", lambda name: None if name == "ccache" else which(name))


if __name__ == "__main__":
    main()
