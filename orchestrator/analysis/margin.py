# SPDX-License-Identifier: GPL-2.0-only
"""How much a metric may differ and still count as unchanged."""

from __future__ import annotations

from typing import Final

#: Relative difference, where the experiment does not say another.
DEFAULT_MARGIN: Final = 0.005
