# SPDX-License-Identifier: GPL-2.0-only
"""Whether the clocks of two runs count alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What a run says that was measured before the accelerator's CPU model and QEMU were recorded.
_UNKNOWN = "not recorded"


def clock_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What makes the clocks of two runs count differently, one sentence per difference.

    Args:
        first, second: the runs' manifests.
    """
    left, right = (manifest.get("accelerator") or {} for manifest in (first, second))
    differences = []
    if left.get("cpu") != right.get("cpu"):
        differences.append(("CPU models", left.get("cpu"), right.get("cpu")))
    if _major(left.get("qemu")) != _major(right.get("qemu")):
        differences.append(("QEMU versions", left.get("qemu"), right.get("qemu")))
    said = [
        f"the two runs have different {what} ({one or _UNKNOWN} and {other or _UNKNOWN}), so the same code may cost "
        "a different number of instructions: a difference may be the clock's, not the kernel's."
        for what, one, other in differences
    ]
    processors = [(manifest.get("calibration") or {}).get("cpu") for manifest in (first, second)]
    if all(processors) and processors[0] != processors[1]:
        said.append(
            f"the two runs were calibrated on different processors ({processors[0]} and {processors[1]}): what a "
            "difference in instructions means in time is not the same for both."
        )
    return said


def _major(version: str | None) -> str | None:
    return version.partition(".")[0] if version else None
