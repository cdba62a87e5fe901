# SPDX-License-Identifier: GPL-2.0-only
"""What `orchestrate build` costs over a bare make of the same configuration, cold and from stage to stage.

Both sides build the same trees with the same compiler, in turn, without ccache, each in a directory of its own. Laying
out the source is not counted on either side. Prints the ratios; run it on a quiet host:

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
from pathlib import Path
from unittest import mock

from orchestrator.cache import Cache
from orchestrator.events import Event, Events
from orchestrator.kernel import build
from orchestrator.kernel.config import configuration
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.series import load_series
from orchestrator.kernel.source import import_source
from orchestrator.kernel.tree import PatchedTree, apply_stages

ROOT = Path(__file__).resolve().parents[2]
PINNED = [f"{key}={value}" for key, value in build._PINNED.items() if key != "LC_ALL"]


class Bare:
    """make, as a person would call it."""

    def __init__(self, place: Path, text: str) -> None:
        self.source, self.objects, self.index = place / "source", place / "objects", place / "index"
        self.requests = place / "requests"
        self.source.mkdir(parents=True)
        self.objects.mkdir()
        self.requests.write_text(text)

    def make(self, *words: str) -> None:
        command = ["make", "-s", "-C", str(self.source), f"O={self.objects}", "ARCH=x86_64", *PINNED, *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def switch(self, tree: PatchedTree) -> None:
        Repository(tree.repository).git(
            "read-tree", "--reset", "-u", tree.commit, work_tree=self.source, index=self.index
        )

    def configure(self) -> None:
        self.make("allnoconfig", f"KCONFIG_ALLCONFIG={self.requests}")
        self.make("olddefconfig")

    def build(self) -> float:
        began = time.monotonic()
        self.make(f"-j{os.cpu_count()}", "bzImage")
        return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cold", action="store_true", help="measure a cold build too: two whole builds")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of incremental builds")
    asked = parser.parse_args()
    shared, events = Cache.default(), Events()
    series = load_series(ROOT / "kernel_patches")
    source = import_source(None, series.package, shared, events)
    wanted = configuration(ROOT / "vm_images", "measure")
    last = len(series.stages)
    # Between these two only files of mm/ differ, as they do for somebody who works on a stage.
    trees = [apply_stages(source, series.select(f"stage-{n}"), shared, events) for n in (last - 1, last)]
    with tempfile.TemporaryDirectory(prefix="build-overhead-", dir=shared.root) as scratch, without_ccache():
        bare = Bare(Path(scratch) / "bare", wanted.text)
        ours = Cache(Path(scratch) / "ours")
        laid_out: list[float] = []

        def watch(event: Event) -> None:
            if event.kind == "note" and event.text == "source laid out":
                laid_out.append(event.seconds)

        def orchestrated(tree: PatchedTree) -> float:
            laid_out.clear()
            began = time.monotonic()
            kernel = build.build_kernel(tree, wanted, ours, Events(watch))
            took = time.monotonic() - began - sum(laid_out)
            shutil.rmtree(kernel.directory)
            return took

        bare.switch(trees[0])
        began = time.monotonic()
        bare.configure()
        cold_bare = time.monotonic() - began + bare.build()
        cold_ours = orchestrated(trees[0])
        if asked.cold:
            more = cold_ours / cold_bare - 1
            print(f"cold         bare {cold_bare:7.1f} s  orchestrate {cold_ours:7.1f} s  {more:+.1%}")
        ratios = []
        for round_ in range(2 * asked.rounds):
            tree = trees[(round_ + 1) % 2]
            bare.switch(tree)
            pair = bare.build(), orchestrated(tree)
            ratios.append(pair[1] / pair[0])
            print(
                f"incremental  bare {pair[0]:7.1f} s  orchestrate {pair[1]:7.1f} s  {ratios[-1] - 1:+.1%}",
                flush=True,
            )
        print(f"incremental  median {statistics.median(ratios) - 1:+.1%} of {len(ratios)} pairs")


def without_ccache() -> mock._patch[object]:
    """A cached object would make both sides a copy."""
    which = shutil.which
    return mock.patch.object(build.shutil, "which", lambda name: None if name == "ccache" else which(name))


if __name__ == "__main__":
    main()
