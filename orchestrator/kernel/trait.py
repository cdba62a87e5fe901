# SPDX-License-Identifier: GPL-2.0-only
"""Traits: differences in behaviour between point releases, detected from the source text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

from orchestrator.kernel.repository import Repository
from orchestrator.kernel.tree import PatchedTree

#: page_vma_mapped_walk() continues past a PMD that maps another folio, so that rmap finds all PTEs of a large folio.
WALKS_PAST_HUGE_PMDS: Final = "walks-past-huge-pmds"
#: Trait -> a file, and a text that is in this file if and only if the kernel has the trait.
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
        # If the file does not exist, the kernel does not have the trait.
        text = Repository(repository).git("cat-file", "blob", f"{commit}:{path}", check=False).stdout
        if sign in text:
            found.add(trait)
    return frozenset(found)
