# SPDX-License-Identifier: GPL-2.0-only
"""Whether this host can run experiments: programs, headers, memory, disk, and the KVM probe."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from orchestrator.cache import Cache
from orchestrator.defaults import TOPOLOGY
from orchestrator.errors import OrchestrateError
from orchestrator.events import Events
from orchestrator.execution.bench import Bench
from orchestrator.execution.provenance import base_of
from orchestrator.machine.accelerator import choose_accelerator
from orchestrator.process import PACKAGES, run
from orchestrator.project import Project

#: Mandatory programs, and programs for optional functions.
REQUIRED = (
    "gcc", "ld", "make", "flex", "bison", "bc", "perl", "git", "tar", "xz",
    "setpriv", "ssh-keygen", "qemu-system-x86_64",
)  # fmt: skip
#: Where the kernel source and the parts of the guest image come from, on Debian and what descends from it.
DEBIAN = ("apt-get", "apt-cache", "dpkg-query", "dpkg-deb")
OPTIONAL = {
    "ccache": "without it, more objects are recompiled",
    "gdb": "`orchestrate debug` needs it",
    "sparse": "`orchestrate series verify` needs it",
    "ssh": "`orchestrate shell` needs it",
    "clang": "`--cc clang` and `orchestrate series verify --also clang` need it",
    "aarch64-linux-gnu-gcc": "`orchestrate series verify --also arm64-64k` needs it",
    "powerpc64le-linux-gnu-gcc": "`orchestrate series verify --also powerpc64le` needs it",
}
#: Headers that the kernel's host tools (objtool, certs) need.
HEADERS = {"gelf.h": "libelf-dev", "openssl/bio.h": "libssl-dev"}
#: One unpacked source, its git repository and the objects of two configurations.
_DISK_GIB = 10.0
_MEMORY_GIB = 5.0


@dataclass(frozen=True)
class HostFinding:
    """The result of one check.

    Args:
        what: name of the checked item.
        state: ``lacks`` means that runs cannot work.
        text: what was found, or what to do.
    """

    what: str
    state: Literal["ok", "note", "lacks"]
    text: str


def examine(project: Project, cache: Cache, events: Events) -> list[HostFinding]:
    """Check everything that a run needs. Only the result of the KVM probe is cached; nothing else changes."""
    found: list[HostFinding] = []
    apt = shutil.which("apt-get") is not None
    missing: list[str] = []

    def look_for(
        what: str, there: str | None, package: str, state: Literal["note", "lacks"], loss: str
    ) -> None:
        if there:
            found.append(HostFinding(what, "ok", there))
            return
        missing.append(package)
        advice = f"install the {'' if apt else 'equivalent of the '}Debian package {package}"
        found.append(HostFinding(what, state, "; ".join(filter(None, ("missing", loss, advice)))))

    for program in REQUIRED:
        look_for(program, shutil.which(program), PACKAGES[program], "lacks", "")
    for program, loss in OPTIONAL.items():
        look_for(program, shutil.which(program), PACKAGES[program], "note", loss)
    if cache.unfit_to_build:
        found.append(HostFinding("cache", "lacks", cache.unfit_to_build))
    found.append(_debian(apt))
    if shutil.which("gcc") and shutil.which("setpriv"):
        for header, package in HEADERS.items():
            look_for(header, "found" if _compiles(header) else None, package, "lacks", "")
        linked = run(
            ["gcc", "-static", "-x", "c", "-", "-o", "/dev/null"],
            input_text="int main(void){return 0;}",
            check=False,
        )
        look_for("static linking", "works" if linked.returncode == 0 else None, "libc6-dev", "lacks", "")
    if missing and apt:
        packages = " ".join(dict.fromkeys(missing))
        found.append(HostFinding("to install them", "note", f"as root: apt-get install {packages}"))
    found += [_base(project, cache, events), _disk(cache)]
    memory = psutil.virtual_memory().available / 2**30
    found.append(
        HostFinding(
            "memory",
            "ok" if memory >= _MEMORY_GIB else "note",
            f"{memory:.1f} GiB available; the default topology {TOPOLOGY} needs {_MEMORY_GIB:.0f}, "
            "--topology 2x1G needs 3",
        )
    )
    found.append(HostFinding("Python", "ok", sys.version.split()[0]))
    if shutil.which("qemu-system-x86_64") and shutil.which("setpriv"):
        try:
            chosen = choose_accelerator("auto", cache, events)
            found.append(HostFinding("accelerator", "ok" if chosen.name == "kvm" else "note", chosen.reason))
        except OrchestrateError as error:
            found.append(HostFinding("accelerator", "lacks", str(error)))
    return found


def _debian(apt: bool) -> HostFinding:
    missing = [program for program in DEBIAN if shutil.which(program) is None]
    if not missing:
        return HostFinding("Debian packages", "ok", "apt and dpkg are available")
    if apt:
        return HostFinding("Debian packages", "lacks", f"{', '.join(missing)} missing; install apt and dpkg")
    return HostFinding(
        "Debian packages",
        "lacks",
        "this host has no apt: with --source (a git tree, a directory or a tarball), `build` and `series` work; "
        "the guest image is made from Debian packages, so commands that boot a guest (`run`, `test`, `boot`) "
        "need Debian or Ubuntu, which may be in a container",
    )


def _base(project: Project, cache: Cache, events: Events) -> HostFinding:
    """The kernel source that a run would use; without one, --source still works."""
    base = base_of(Bench(project, cache, events))
    text = "; ".join([base.sentence, *base.remarks] if base.description else base.remarks)
    return HostFinding("kernel source", "note" if base.remarks else "ok", text)


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
        f"{free:.1f} GiB free at {place}, a run needs {_DISK_GIB:.0f}; set ORCHESTRATE_CACHE to another disk",
    )
