# SPDX-License-Identifier: GPL-2.0-only
"""Differences of later point releases from 6.12.117, which :mod:`orchestrator.model.memory` follows."""

from __future__ import annotations

from orchestrator.model.memory import Model
from orchestrator.model.page import Folio


class WalksPastHugePmds(Model):
    """A kernel whose page_vma_mapped_walk() continues after a PMD that maps another folio, as since 6.12.118.

    It finds every mapping of a large folio, so that each can be split.
    """

    def _unreached(self, folio: Folio) -> set[int]:
        return set()
