# SPDX-License-Identifier: GPL-2.0-only
"""What was recorded from a real guest: 4 nodes of 2 GiB, 8 CPUs, Linux 6.12, icount."""

from __future__ import annotations

import json
from pathlib import Path

DIRECTORY = Path(__file__).parent / "data" / "guest"
FILES: dict[str, str] = json.loads((DIRECTORY / "files.json").read_text())
SAMPLER = (DIRECTORY / "sampler.txt").read_text()
FAULT_LATENCY = (DIRECTORY / "fault_latency.jsonl").read_text()
ROOT = Path(__file__).resolve().parents[2]
