# SPDX-License-Identifier: GPL-2.0-only
"""Waits for khugepaged by its scan counter instead of sleeping."""

from __future__ import annotations

from orchestrator.errors import InfrastructureError
from orchestrator.guest.ssh import Guest

#: The current scan may have begun before the memory was mapped; the next one has not.
SCANS = 2
_PROGRAM = "khugepaged-barrier"
_TIMED_OUT = 3
#: Host seconds per guest second that an emulated, loaded guest may take.
_HOST_S_PER_GUEST_S = 20.0
_HOST_S_LEAST = 60.0


class BarrierTimeout(Exception):  # noqa: N818 - named like CommandTimeout
    """khugepaged did not finish two full scans in time, e.g. because it is disabled."""


def khugepaged_barrier(guest: Guest, bound_s: float) -> int:
    """Wait until khugepaged has scanned everything that is mapped now.

    It is woken up, and its settings do not change; see vm_images/guest/tools/khugepaged-barrier.c.

    Args:
        bound_s: time limit in guest seconds.

    Returns:
        Number of full scans that ended meanwhile, at least 2.

    Raises:
        BarrierTimeout: they did not end within `bound_s`.
        InfrastructureError: this kernel has no khugepaged.
        GuestLost, CommandTimeout: the guest did not answer.
    """
    done = guest.run(
        [_PROGRAM, str(SCANS), str(int(bound_s * 1000))],
        timeout_s=max(bound_s * _HOST_S_PER_GUEST_S, _HOST_S_LEAST),
    )
    words = done.stderr.strip().removeprefix(f"{_PROGRAM}: ")
    if done.status == _TIMED_OUT:
        raise BarrierTimeout(f"khugepaged did not finish its scans: {words}")
    if done.status != 0:
        raise InfrastructureError(f"cannot wait for khugepaged: {words} ({done.end}).")
    return int(done.stdout)
