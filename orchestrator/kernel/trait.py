# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel source does that others do not, as its text shows: point releases change more than the series does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

from orchestrator.kernel.repository import Repository
from orchestrator.kernel.tree import PatchedTree

#: page_vma_mapped_walk() goes on behind a PMD that maps another folio, so that rmap finds all PTEs of a large folio.
WALKS_PAST_HUGE_PMDS: Final = "walks-past-huge-pmds"
#: Trait -> the file that shows it, and a text that this file has only where the kernel has the trait.
_SIGNS: Final[Mapping[str, tuple[str, str]]] = {
    WALKS_PAST_HUGE_PMDS: ("mm/page_vma_mapped.c", "goto next_pmd;"),
}


def traits_of(tree: PatchedTree) -> frozenset[str]:
    """The traits of a patched tree.

    Raises:
        InfrastructureError: its repository cannot be read.
    """
    return _traits(tree.repository, tree.commit)


@lru_cache
def _traits(repository: Path, commit: str) -> frozenset[str]:
    found = set()
    for trait, (path, sign) in _SIGNS.items():
        # A tree that lacks the file lacks the trait.
        text = Repository(repository).git("cat-file", "blob", f"{commit}:{path}", check=False).stdout
        if sign in text:
            found.add(trait)
    return frozenset(found)
