# SPDX-License-Identifier: GPL-2.0-only
"""A compressed swap device of the guest."""

from __future__ import annotations

from orchestrator.guest.ssh import Guest


def add_swap(guest: Guest, path: str, size: str, timeout_s: float) -> str | None:
    """Give the guest a compressed swap device.

    Args:
        path: the file that sets the size of the device (Documentation/admin-guide/blockdev/zram.rst).
        size: what is written to it, e.g. ``512M``.
        timeout_s: host seconds.

    Returns:
        Why there is none; None if there is one.
    """
    # busybox's mkswap prints to standard output; its swapon says why it failed.
    script = 'echo "$1" >"$2" && mkswap /dev/zram0 >/dev/null && swapon /dev/zram0'
    done = guest.run(["sh", "-c", script, "sh", size, path], timeout_s=timeout_s)
    swaps = guest.read_text("/proc/swaps").splitlines()[1:]
    if done.status == 0 and len(swaps) == 1:
        return None
    return (done.stderr.strip().splitlines() or ["the guest has no swap"])[-1]
