# SPDX-License-Identifier: GPL-2.0-only
"""The version of what a run directory holds; apart from the schema, which takes a while to import."""

from __future__ import annotations

from typing import Final

#: Of ``run.json`` and of the tables. Raised when a reader of the earlier version would misread what is written.
SCHEMA_VERSION: Final = 2
