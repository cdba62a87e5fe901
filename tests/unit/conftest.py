# SPDX-License-Identifier: GPL-2.0-only
"""Makes modules beside the tests importable: pytest's importlib mode adds nothing to ``sys.path``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
