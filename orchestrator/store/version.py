# SPDX-License-Identifier: GPL-2.0-only
"""The version of the run directory's format; separate from the schema, which is slow to import."""

from __future__ import annotations

from typing import Final

#: Version of ``run.json`` and the tables. Increased when a reader of the earlier version would misread the files.
SCHEMA_VERSION: Final = 2
