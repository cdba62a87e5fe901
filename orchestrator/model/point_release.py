# SPDX-License-Identifier: GPL-2.0-only
"""What later point releases of the base kernel do otherwise; :mod:`orchestrator.model.memory` is 6.12.117."""

from __future__ import annotations

from orchestrator.model.memory import Model
from orchestrator.model.page import Folio


class WalksPastHugePmds(Model):
    """A kernel whose page_vma_mapped_walk() goes on behind a PMD that maps another folio, as from 6.12.118 on.

    It finds every mapping of a large folio, so that each can be split.
    """

    def _unreached(self, folio: Folio) -> set[int]:
        return set()
