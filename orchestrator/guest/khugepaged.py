# SPDX-License-Identifier: GPL-2.0-only
"""Waiting for khugepaged: by its own count of scans, never by sleeping."""

from __future__ import annotations

from orchestrator.errors import InfrastructureError
from orchestrator.guest.ssh import Guest

#: A scan may have begun before what shall be seen was there; the one after it has not.
SCANS = 2
_PROGRAM = "khugepaged-barrier"
_TIMED_OUT = 3
#: Host seconds for a second of the guest: what an emulated, loaded guest may take.
_HOST_S_PER_GUEST_S = 20.0
_HOST_S_LEAST = 60.0


class BarrierTimeout(Exception):  # noqa: N818 - it is an end, as CommandTimeout is
    """khugepaged did not get round twice in time, e.g. because it is off."""


def khugepaged_barrier(guest: Guest, bound_s: float) -> int:
    """Wait until khugepaged has scanned everything that is mapped now.

    It is woken rather than awaited, and its settings stay as they are; see
    vm_images/guest/tools/khugepaged-barrier.c.

    Args:
        bound_s: seconds of the guest's time.

    Returns:
        Full scans that ended meanwhile, at least 2.

    Raises:
        BarrierTimeout: they did not within `bound_s`.
        InfrastructureError: this kernel has no khugepaged.
        GuestLost, CommandTimeout: the guest did not answer.
    """
    done = guest.run(
        [_PROGRAM, str(SCANS), str(int(bound_s * 1000))],
        timeout_s=max(bound_s * _HOST_S_PER_GUEST_S, _HOST_S_LEAST),
    )
    words = done.stderr.strip().removeprefix(f"{_PROGRAM}: ")
    if done.status == _TIMED_OUT:
        raise BarrierTimeout(f"khugepaged did not get round: {words}")
    if done.status != 0:
        raise InfrastructureError(f"cannot wait for khugepaged: {words} ({done.end}).")
    return int(done.stdout)
