# SPDX-License-Identifier: GPL-2.0-only
"""Whether this host can run experiments: programs, headers, memory, disk, the KVM probe's answer."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from orchestrator.cache import Cache
from orchestrator.errors import OrchestrateError
from orchestrator.events import Events
from orchestrator.machine.accelerator import choose_accelerator
from orchestrator.process import PACKAGES, run
from orchestrator.project import Project

#: Programs without which the main job cannot work, and those without which something lesser is missing.
REQUIRED = (
    "gcc", "ld", "make", "flex", "bison", "bc", "perl", "git", "tar", "xz",
    "dpkg-deb", "apt-get", "setpriv", "ssh-keygen", "qemu-system-x86_64",
)  # fmt: skip
OPTIONAL = {
    "ccache": "kernels build again from scratch where ccache would have kept the objects",
    "gdb": "`orchestrate debug` needs it",
    "sparse": "`orchestrate series verify` needs it",
    "ssh": "`orchestrate shell` needs it",
}
#: Headers that the kernel's host tools (objtool, certs) are compiled with.
HEADERS = {"gelf.h": "libelf-dev", "openssl/bio.h": "libssl-dev"}
#: One unpacked source, its git repository and the objects of two configurations.
_DISK_GIB = 10.0
_MEMORY_GIB = 9.0


@dataclass(frozen=True)
class HostFinding:
    """One thing that was looked at.

    Args:
        what: its name.
        state: ``lacks`` means that a run could not work.
        text: a sentence: what is there, or what to do.
    """

    what: str
    state: Literal["ok", "note", "lacks"]
    text: str


def examine(project: Project, cache: Cache, events: Events) -> list[HostFinding]:
    """Look at everything a run needs; nothing is changed but the cached answer of the KVM probe."""
    found: list[HostFinding] = []
    for program in REQUIRED:
        path = shutil.which(program)
        text = path or f"missing; install the Debian package {PACKAGES[program]}"
        found.append(HostFinding(program, "ok" if path else "lacks", text))
    for program, loss in OPTIONAL.items():
        path = shutil.which(program)
        text = path or f"missing; {loss}; install the Debian package {PACKAGES[program]}"
        found.append(HostFinding(program, "ok" if path else "note", text))
    if shutil.which("gcc"):
        for header, package in HEADERS.items():
            there = _compiles(header)
            text = "found" if there else f"missing; install the Debian package {package}"
            found.append(HostFinding(header, "ok" if there else "lacks", text))
        linked = run(
            ["gcc", "-static", "-x", "c", "-", "-o", "/dev/null"],
            input_text="int main(void){return 0;}",
            check=False,
        )
        state: Literal["ok", "lacks"] = "ok" if linked.returncode == 0 else "lacks"
        text = "works" if state == "ok" else "fails; install the Debian package libc6-dev"
        found.append(HostFinding("static linking", state, text))
    found.append(_disk(cache))
    memory = psutil.virtual_memory().available / 2**30
    found.append(
        HostFinding(
            "memory",
            "ok" if memory >= _MEMORY_GIB else "note",
            f"{memory:.1f} GiB available; the default topology 4x2G needs {_MEMORY_GIB:.0f}, "
            "--topology 2x1G needs 3",
        )
    )
    found.append(HostFinding("Python", "ok", sys.version.split()[0]))
    if shutil.which("qemu-system-x86_64"):
        try:
            chosen = choose_accelerator("auto", cache, events)
            found.append(HostFinding("accelerator", "ok" if chosen.name == "kvm" else "note", chosen.reason))
        except OrchestrateError as error:
            found.append(HostFinding("accelerator", "lacks", str(error)))
    return found


def _compiles(header: str) -> bool:
    source = f"#include <{header}>\n"
    return run(["gcc", "-fsyntax-only", "-x", "c", "-"], input_text=source, check=False).returncode == 0


def _disk(cache: Cache) -> HostFinding:
    place = cache.root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(Path(place)).free / 2**30
    if free >= _DISK_GIB:
        return HostFinding("disk", "ok", f"{free:.0f} GiB free for the cache at {cache.root}")
    return HostFinding(
        "disk",
        "lacks",
        f"{free:.1f} GiB free at {place}, a run needs {_DISK_GIB:.0f}; set ORCHESTRATE_CACHE elsewhere",
    )


def processor_model() -> str:
    """What ``/proc/cpuinfo`` calls this host's processor."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
