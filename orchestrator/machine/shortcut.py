# SPDX-License-Identifier: GPL-2.0-only
"""Shortcuts of an emulated guest's boot: what firmware and kernel need not do, as it is known in advance.

Emulated instructions are expensive, and under icount all CPUs share one host thread. So QEMU starts the uncompressed
kernel (PVH, include/xen/interface/hvm/start_info.h in Linux), with a firmware that only prepares the ACPI tables
(qboot), and the kernel is told what it would measure: the frequency of the APIC timer, and with icount that of the TSC.
None of it changes what the kernel does once it is up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from orchestrator import process
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.kernel.elf import has_pvh_entry, symbol_address
from orchestrator.machine.accelerator import Accelerator
from orchestrator.machine.apic_timer import FUNCTION, VARIABLE, ApicTimer

#: A firmware of QEMU that starts a kernel and does nothing else.
FIRMWARE = "qboot.rom"
#: Frequency of the TSC with icount: it counts virtual nanoseconds (cpu_get_tsc() in QEMU).
_TSC_HZ = 1_000_000_000


@dataclass(frozen=True)
class Shortcuts:
    """The shortcuts that one kernel allows; without arguments none.

    Args:
        elf: the uncompressed kernel, to be started instead of the bzImage.
        timer: its timer, whose frequency it is told.
        lpj: loops_per_jiffy of all CPUs, which the kernel otherwise measures for each socket.
    """

    elf: Path | None = None
    timer: ApicTimer | None = None
    lpj: int | None = None

    @property
    def firmware(self) -> tuple[str, ...]:
        """QEMU's arguments for the firmware."""
        return () if self.elf is None else ("-bios", FIRMWARE)

    @property
    def cmdline(self) -> tuple[str, ...]:
        """Kernel parameters."""
        return () if self.lpj is None else (f"lpj={self.lpj}",)


@lru_cache(maxsize=64)
def shortcuts(vmlinux: Path, config: Path, accelerator: Accelerator) -> Shortcuts:
    """The shortcuts for a kernel.

    There are none with KVM, which is fast; and each is left out where something for it is missing: an entry of the
    kernel, a symbol, QEMU's firmware.

    Args:
        vmlinux: the kernel as an ELF file.
        config: its ``.config``.
    """
    if accelerator.name == "kvm":
        return Shortcuts()
    try:
        is_direct = has_pvh_entry(vmlinux) and _has_firmware(accelerator.program)
    except UserError:  # e.g. there is only a bzImage
        return Shortcuts()
    hz = _ticks_per_second(config)
    return Shortcuts(
        vmlinux if is_direct else None,
        None if hz is None else _timer(vmlinux, hz),
        _TSC_HZ // hz if hz is not None and accelerator.name == "icount" else None,
    )


def _timer(vmlinux: Path, hz: int) -> ApicTimer | None:
    try:
        return ApicTimer(symbol_address(vmlinux, FUNCTION), symbol_address(vmlinux, VARIABLE), hz)
    except UserError:
        return None


def _ticks_per_second(config: Path) -> int | None:
    """CONFIG_HZ; None if it is unknown, or if the kernel chooses its own address and its symbols are elsewhere."""
    try:
        lines = config.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    options = dict(line.split("=", 1) for line in lines if line.startswith("CONFIG_") and "=" in line)
    if options.get("CONFIG_RANDOMIZE_BASE") == "y":
        return None
    hz = options.get("CONFIG_HZ", "")
    return int(hz) if hz.isdecimal() and int(hz) > 0 else None


@lru_cache(maxsize=8)
def _has_firmware(qemu: str) -> bool:
    """Whether this QEMU has the firmware in one of its data directories."""
    try:
        directories = process.run([qemu, "-L", "help"], timeout_s=30, check=False).stdout.splitlines()
    except InfrastructureError:
        return False
    return any((Path(directory) / FIRMWARE).is_file() for directory in directories)
