# SPDX-License-Identifier: GPL-2.0-only
"""The base class of all parts of ``run.json``."""

from __future__ import annotations

from typing import Any, ClassVar


class Record:
    """A part of ``run.json``: unknown keys are rejected, and values are not converted to other types."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}
