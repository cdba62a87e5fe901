# SPDX-License-Identifier: GPL-2.0-only
"""What the parts of ``run.json`` have in common."""

from __future__ import annotations

from typing import Any, ClassVar


class Record:
    """A part of ``run.json``: unknown keys are refused, and no value is converted to another type."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}
