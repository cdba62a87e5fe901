# SPDX-License-Identifier: GPL-2.0-only
"""What a point release changed beside the series: read from the source, and followed by the model."""

from __future__ import annotations

from pathlib import Path

import pytest
from guest_data import ROOT

from orchestrator.execution.check.reference import model_of
from orchestrator.execution.check.request import load_trace
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.series import load_series
from orchestrator.kernel.source import SourceTree
from orchestrator.kernel.trait import WALKS_PAST_HUGE_PMDS, traits_of
from orchestrator.kernel.tree import PatchedTree
from orchestrator.machine.topology import Topology

WALK = "while (pvmw->address < end) {{ {} }}\n"


def tree_with(tmp_path: Path, files: dict[str, str]) -> PatchedTree:
    repository = Repository.create(tmp_path / "repository.git")
    for name, text in files.items():
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    index = tmp_path / "index"
    repository.git("add", "--all", ".", work_tree=tmp_path / "files", index=index)
    tree = repository.git("write-tree", index=index).stdout.strip()
    commit = repository.commit(tree, "Linux")
    return PatchedTree(
        repository.path, commit, tree, SourceTree(repository.path, commit, tree, "6.12", "a source"), ()
    )


@pytest.mark.parametrize(
    ("files", "traits"),
    [
        ({"mm/page_vma_mapped.c": WALK.format("goto next_pmd;")}, {WALKS_PAST_HUGE_PMDS}),
        ({"mm/page_vma_mapped.c": WALK.format("return not_found(pvmw);")}, set()),
        ({"mm/memory.c": "goto next_pmd;"}, set()),
    ],
)
def test_the_source_says_what_the_kernel_does(
    tmp_path: Path, files: dict[str, str], traits: set[str]
) -> None:
    assert traits_of(tree_with(tmp_path, files)) == traits


@pytest.mark.parametrize(("traits", "present"), [(set(), 380), ({WALKS_PAST_HUGE_PMDS}, 2)])
def test_a_folio_across_two_blocks_is_split_where_the_walk_goes_on(traits: set[str], present: int) -> None:
    """Seen in guests: 6.12.117 keeps 380 pages of the block, 6.12.118 keeps 2."""
    series = load_series(ROOT / "kernel_patches")
    trace = load_trace(ROOT / "tests/differential/split-behind-a-huge-page.trace")
    model = model_of("core-only", series, Topology.parse("2x512M/1"), traits)(trace)
    for operation in trace.operations:
        model.step(operation)
    blocks = {block: model.block("p2", block).as_dict()["present"] for block in range(trace.blocks)}
    assert present in blocks.values()
    assert ({380, 2} - {present}).isdisjoint(blocks.values())
