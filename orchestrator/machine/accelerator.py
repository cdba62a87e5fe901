# SPDX-License-Identifier: GPL-2.0-only
"""The accelerator: how the guest's instructions are executed, and which clock its work is measured with.

=========  =======  ====================================================================================
icount     insns    TCG on one host thread, one virtual nanosecond per instruction: repeatable to 0.1 %
tcg        ns       TCG with one host thread per CPU: functional tests, races, memory use; not latency
kvm        ns       the host's CPU: wall-clock time, cache and TLB effects
=========  =======  ====================================================================================

``auto`` uses KVM only if it has *booted* a kernel: on some hosts ``/dev/kvm`` opens, creates a VM and runs the
firmware, but guests die at the first instruction that the underlying hypervisor would have to emulate and cannot.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import re
import zlib
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, cast

from orchestrator import process
from orchestrator.cache import Cache, file_digest
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Events
from orchestrator.store.manifest import AcceleratorRecord
from orchestrator.temporary import temporary_directory

Name = Literal["icount", "tcg", "kvm"]
Clock = Literal["insns", "ns"]

QEMU = "qemu-system-x86_64"
KVM_DEVICE = Path("/dev/kvm")
#: Time limit of the probe in host seconds; it takes 0.4 s with TCG.
PROBE_TIMEOUT_S = 5.0
PROBE_TOKEN = "orchestrate: probe reached"

_ARGUMENTS: dict[Name, tuple[str, ...]] = {
    # One thread executes all CPUs in turn, and time is the number of executed instructions. The clock of an idle
    # guest jumps to its next timer instead of waiting in host time (QEMU's docs/devel/tcg-icount.rst).
    "icount": ("-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"),
    "tcg": ("-accel", "tcg,thread=multi"),
    "kvm": ("-accel", "kvm"),
}
#: With these features Linux clears and copies by byte (``rep stosb``), and QEMU counts each iteration: 4096
#: instructions per page. Without them it uses ``rep stosq``, an eighth of that. Names as in ``qemu -cpu help``.
_FAST_STRINGS = ("erms", "fsrm", "fsrs", "fzrm", "fsrc")
#: The family and model of "max" in QEMU 7.2. In QEMU 10.0 it has family 6, for which init_amd() in
#: arch/x86/kernel/cpu/amd.c does not set X86_FEATURE_REP_GOOD, so that an unrolled loop clears pages.
_IDENTITY = "family=15,model=107,stepping=1"
_CLOCKS: dict[Name, Clock] = {"icount": "insns", "tcg": "ns", "kvm": "ns"}

# probe.S in this directory, assembled; a unit test checks that the two agree.
_PROBE = (
    "c-muN7zHB=Fd}n8SG~6LNGS?tVM3J`AlkTJf6@#O^qlCsk#_I_OB!ndP$+HjB!)D8MzIMD{0awn82ObBq`d+e$$_lz|9>Dc>pX;>1f^%"
    "KXOJI_A-aOJ9Rdt}H~J3rUD(6Gpun&nL>L~}$-u+F@OkxdRuGq2K!E|s0+P%MAQeDjM>A0CP6lAA>0}41X+F;J=nKEX16~C-1_pkm2Rl"
    "H5{7N@=HZU+8;5Xt0B`badV0vhN@R=8=tpS)SUNr#|g#^$x{zc6{*o)+LumcS>JjuU^f7fG<V*VYVlz8M(<@W>4KbT6*()h~`r196Ys4"
    "_GFt+P?(0aE`<<##eX{L1?OWa%G|UQ;2EqohHe+Vz9^bKVAqXJ5X&{+nNvoRL~wQj}PdYNb$6l%JHUP?VYo6ieX(Dg^*W7j3H"
)


@dataclass(frozen=True)
class Accelerator:
    """A way to execute the guest's instructions.

    Args:
        name: name of the accelerator.
        clock: what its measurements count: guest instructions or nanoseconds.
        reason: one line on why it was chosen, and if KVM is not used, why not.
        cpu: CPU model of the guest, in the syntax of QEMU's ``-cpu``.
        qemu: version of QEMU, e.g. ``7.2.22``.
        qemu_digest: SHA-256 of QEMU's binary; None where it does not matter.
        program: the QEMU to start, a name or an absolute path.
    """

    name: Name
    clock: Clock
    reason: str
    cpu: str
    qemu: str
    qemu_digest: str | None = None
    program: str = QEMU

    @classmethod
    def named(cls, name: Name, reason: str, program: str = QEMU) -> Accelerator:
        """The accelerator with this name, and the QEMU of this host or another one.

        Raises:
            InfrastructureError: QEMU is not installed.
        """
        cpu = _cpu_model(name, program)
        return cls(name, _CLOCKS[name], reason, cpu, qemu_version(program), qemu_digest(program), program)

    @property
    def qemu_arguments(self) -> tuple[str, ...]:
        """QEMU's arguments for this accelerator, including the CPU model."""
        return (*_ARGUMENTS[self.name], "-cpu", self.cpu)

    @property
    def record(self) -> AcceleratorRecord:
        """The accelerator's entry in ``run.json``."""
        own = {"program": None} if self.program == QEMU else {}
        return AcceleratorRecord(**{**asdict(self), **own})


@dataclass(frozen=True)
class ProbeAnswer:
    """Whether a guest got far enough to run a kernel.

    Args:
        reached: the message of the probe kernel arrived on the serial port.
        reason: one clause for display, e.g. "KVM internal error …".
        seconds: host seconds that the probe took.
    """

    reached: bool
    reason: str
    seconds: float


def qemu_at(path: Path) -> str:
    """The absolute path of a QEMU that is not the host's own, for :func:`choose_accelerator`.

    Raises:
        UserError: it is no program, or not QEMU for x86_64.
    """
    whole = path.expanduser().absolute()
    if not whole.is_file() or not os.access(whole, os.X_OK):
        raise UserError(f"--qemu {path}: there is no such program.")
    try:
        asked = process.run([str(whole), "-machine", "help"], timeout_s=30, check=False)
    except InfrastructureError as error:
        raise UserError(f"--qemu {path}: {error}") from error
    if asked.returncode != 0 or not re.search(r"^q35\s", asked.stdout, re.MULTILINE):
        raise UserError(f"--qemu {path}: this program has no machine q35; give a {QEMU}.")
    return str(whole)


def choose_accelerator(request: str, cache: Cache, events: Events, program: str = QEMU) -> Accelerator:
    """Choose the accelerator.

    Args:
        request: ``icount``, ``tcg``, ``kvm``, or ``auto``: KVM if it boots a kernel, else icount.
        cache: keeps the result of the probe until the host is rebooted or QEMU is replaced.
        program: the QEMU to start, a name or an absolute path.

    Raises:
        UserError: unknown accelerator.
        InfrastructureError: QEMU is missing, or ``kvm`` was requested and does not work on this host.
    """
    process.require(program)
    if request in ("icount", "tcg"):
        return Accelerator.named(cast(Name, request), f"{request}, as requested", program)
    if request not in ("auto", "kvm"):
        raise UserError(f"unknown accelerator {request!r}; choose auto, icount, tcg or kvm.")
    obstacle = _kvm_obstacle()
    if obstacle is None:
        answer = _cached_probe(cache, events, program)
        if answer.reached:
            reason = f"kvm: a probe kernel ran within {answer.seconds:.1f} s"
            return Accelerator.named("kvm", reason, program)
        obstacle = answer.reason
    if request == "kvm":
        raise InfrastructureError(f"KVM does not work on this host: {obstacle}; use --accel icount or tcg.")
    return Accelerator.named("icount", f"icount; KVM not used: {obstacle}", program)


def probe(name: Name, timeout_s: float = PROBE_TIMEOUT_S, program: str = QEMU) -> ProbeAnswer:
    """Boot a tiny kernel the way Linux is booted, and check whether its message arrives.

    Args:
        name: accelerator to try.
        timeout_s: time limit in host seconds.
        program: the QEMU to start.

    Raises:
        InfrastructureError: QEMU is not installed.
    """
    lines: list[str] = []

    def watch(line: str) -> None:
        lines.append(line)
        if (
            "KVM internal error" in line
        ):  # QEMU has stopped the guest for good, but keeps running for inspection
            raise _GivenUpError

    with temporary_directory("probe") as directory:
        kernel = Path(directory) / "bzImage"
        kernel.write_bytes(probe_kernel())
        argv = [
            *(program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *(
                "-machine",
                "q35",
                "-m",
                "64M",
                *_ARGUMENTS[name],
                "-cpu",
                _cpu_model(name, program),
                "-serial",
                "stdio",
            ),
            *("-device", "isa-debug-exit,iobase=0xf4", "-kernel", str(kernel)),
        ]
        began = os.times().elapsed
        stopped = ""
        try:
            process.run(argv, timeout_s=timeout_s, check=False, on_line=watch)
        except _GivenUpError:
            # KVM_INTERNAL_ERROR_EMULATION of linux/kvm.h
            emulation = lines[-1].endswith("Suberror: 1")
            stopped = "KVM failed to emulate an instruction" if emulation else lines[-1]
        except InfrastructureError:
            stopped = f"no kernel had started after {timeout_s:g} s"
        seconds = os.times().elapsed - began
    if any(PROBE_TOKEN in line for line in lines):
        return ProbeAnswer(True, "a probe kernel ran", seconds)
    last = next((line.strip() for line in reversed(lines) if line.strip()), "QEMU printed nothing")
    return ProbeAnswer(False, f"a probe kernel did not run ({stopped or last})", seconds)


def probe_kernel() -> bytes:
    """The kernel of the probe, a bzImage of 1280 bytes assembled from ``probe.S``."""
    return zlib.decompress(base64.b85decode(_PROBE))


def _cpu_model(name: Name, program: str) -> str:
    """The CPU model; with TCG one for which all versions of QEMU count alike (docs/measurement.md)."""
    if name == "kvm":
        return "host"
    process.require(program)
    known = set(process.run([program, "-cpu", "help"], timeout_s=30).stdout.split())
    return ",".join(["max", *(f"-{flag}" for flag in _FAST_STRINGS if flag in known), _IDENTITY])


def qemu_version(program: str = QEMU) -> str:
    """The version of this host's QEMU, e.g. ``7.2.22``.

    Raises:
        InfrastructureError: QEMU is not installed.
    """
    line = process.version_of(program)
    found = re.search(r"\d+(\.\d+)+", line)
    return found.group() if found else line


def qemu_digest(program: str = QEMU) -> str:
    """SHA-256 of this host's QEMU: a distribution may change it without a new version.

    Raises:
        InfrastructureError: QEMU is not installed.
    """
    path = process.require(program)
    status = Path(path).stat()
    return _sha256(path, status.st_mtime_ns, status.st_size)


@lru_cache
def _sha256(path: str, changed_ns: int, size: int) -> str:
    return file_digest(Path(path))


class _GivenUpError(Exception):
    """The probe cannot succeed any more."""


def _kvm_obstacle() -> str | None:
    """Why KVM cannot work, as far as is known without a boot; checked each time, as it may just have been fixed."""
    if platform.machine() != "x86_64":
        return f"this host is {platform.machine()}, the guest is x86_64"
    if not KVM_DEVICE.exists():
        return f"there is no {KVM_DEVICE} (module not loaded, or virtualisation disabled or not nested)"
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return f"no permission to open {KVM_DEVICE}; join its group"
    return None


def _cached_probe(cache: Cache, events: Events, program: str) -> ProbeAnswer:
    key = {
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        "qemu": process.version_of(program),
        "kernel": _PROBE,
    }

    def make(directory: Path) -> None:
        with events.step("probe KVM"):
            answer = probe("kvm", program=program)
        facts = {"reached": answer.reached, "reason": answer.reason, "seconds": answer.seconds}
        (directory / "answer.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    facts = json.loads((cache.obtain("probe", key, make) / "answer.json").read_text(encoding="utf-8"))
    return ProbeAnswer(facts["reached"], facts["reason"], facts["seconds"])
