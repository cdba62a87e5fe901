# SPDX-License-Identifier: GPL-2.0-only
"""A fake tree, a fake series and a cache: everything that a build needs."""

from __future__ import annotations

from pathlib import Path

from fake_tree import write_series, write_tree

from orchestrator.cache import Cache
from orchestrator.events import Event, Events
from orchestrator.kernel.build import KernelBuild, kernel_artefact
from orchestrator.kernel.config import Configuration, configuration
from orchestrator.kernel.series import load_series
from orchestrator.kernel.source import import_source
from orchestrator.kernel.tree import PatchedTree, apply_stages


class Workbench:
    """A fake tree, a fake series and a cache."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = Cache(root / "cache")
        self.patches = write_series(root / "patches")
        self.images = root / "vm_images"
        (self.images / "kernel").mkdir(parents=True)
        self.fragment("base", "CONFIG_NUMA=y\n")
        self.fragment("measure", "")
        self.source = import_source(
            str(write_tree(root / "linux")), "linux-source-6.12", self.cache, Events()
        )
        self.seen: list[Event] = []

    def fragment(self, name: str, text: str) -> None:
        (self.images / "kernel" / f"{name}.config").write_text(text)

    def tree(self, patchset: str) -> PatchedTree:
        return apply_stages(self.source, load_series(self.patches).select(patchset), self.cache, Events())

    @property
    def configuration(self) -> Configuration:
        return configuration(self.images, "measure")

    def build(self, patchset: str = "baseline") -> KernelBuild:
        return kernel_artefact(
            self.tree(patchset), self.configuration, self.cache, Events(self.seen.append)
        ).obtain()

    def compiled(self) -> list[str]:
        """What the builds since the last `seen.clear()` compiled."""
        return [event.text for event in self.seen if event.kind == "progress" and event.unit == "files"]

    def notes(self) -> list[str]:
        """What they said beside progress."""
        return [event.text for event in self.seen if event.kind == "note"]

    @property
    def workshop(self) -> Path:
        """The one workshop that there is."""
        (state,) = self.cache.root.glob("workspace/*/state.json")
        return state.parent
