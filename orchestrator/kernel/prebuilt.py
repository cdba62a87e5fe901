# SPDX-License-Identifier: GPL-2.0-only
"""A kernel that was built elsewhere: a bzImage, and the vmlinux that belongs to it if there is one."""

from __future__ import annotations

import itertools
import json
import mmap
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from orchestrator.cache import Artefact, Cache, file_digest
from orchestrator.errors import UserError
from orchestrator.kernel.build import KernelBuild
from orchestrator.kernel.elf import build_id
from orchestrator.kernel.series import OtherKernel

_KIND = "prebuilt"
#: Where the header of a bzImage has its magic and the offset of its version (Documentation/arch/x86/boot.rst).
_MAGIC_AT, _MAGIC, _VERSION_AT, _VERSION_BASE = 0x202, b"HdrS", 0x20E, 0x200
#: The header, and the longest version behind it.
_START_BYTES = 64 << 10
#: ``linux_banner`` of init/version.c: release, builder, compiler.
_BANNER = re.compile(rb"Linux version (\S+) \(\S+\) \((.*)\) #")


def other_of_files(bzimage: str, vmlinux: str | None) -> OtherKernel:
    """The kernel of a variant, from the paths of its files.

    Raises:
        UserError: a file cannot be read, is of another kind, or the two are of different releases.
    """
    image = Path(bzimage).expanduser().absolute()
    release = release_of(image)
    elf = None if vmlinux is None else Path(vmlinux).expanduser().absolute()
    if elf is not None:
        _compiler(elf, release)
    return OtherKernel(kernel=str(image), vmlinux=None if elf is None else str(elf))


def others_of_options(kernels: Sequence[str], vmlinuxes: Sequence[str]) -> tuple[OtherKernel, ...]:
    """The kernels of ``--kernel`` and ``--vmlinux``, each vmlinux with the kernel at its place in the order.

    Raises:
        UserError: as :func:`other_of_files`; or there are more of ``--vmlinux``.
    """
    if len(vmlinuxes) > len(kernels):
        raise UserError(
            "--vmlinux goes with --kernel, and belongs to the same build; give --kernel BZIMAGE too."
        )
    return tuple(
        other_of_files(kernel, vmlinux) for kernel, vmlinux in itertools.zip_longest(kernels, vmlinuxes)
    )


def release_of(bzimage: Path) -> str:
    """The kernel release of a bzImage, as ``uname -r`` prints it.

    Raises:
        UserError: the file cannot be read, or is not a bzImage.
    """
    start = _read(bzimage)
    if start[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC:
        at = int.from_bytes(start[_VERSION_AT : _VERSION_AT + 2], "little") + _VERSION_BASE
        words = start[at:].partition(b"\0")[0].split()
        if at > _VERSION_BASE and words:
            return words[0].decode("ascii", "replace")
    raise UserError(
        f"--kernel {bzimage}: this is not a bzImage of x86; give arch/x86/boot/bzImage of a build."
    )


def prebuilt_artefact(bzimage: Path, vmlinux: Path | None, cache: Cache) -> Artefact[KernelBuild]:
    """The kernel in these files, copied to the cache so that a run can be continued when they are gone or replaced.

    Args:
        vmlinux: the ELF file of the same build; without one, a guest's kernel is known by its release only, and cannot
            be debugged.

    Raises when it is obtained:
        UserError: a file cannot be read, or the two are not from one build.
    """
    release = release_of(bzimage)
    compiler = _compiler(vmlinux, release) if vmlinux else "unknown"
    key = {"bzimage": file_digest(bzimage), "vmlinux": file_digest(vmlinux) if vmlinux else None}
    cached = cache.has(_KIND, key)

    def make(directory: Path) -> None:
        shutil.copyfile(bzimage, directory / "bzImage")
        if vmlinux:
            shutil.copyfile(vmlinux, directory / "vmlinux")
        facts = {
            "release": release,
            "compiler": compiler,
            "build_id": build_id(vmlinux) if vmlinux else "",
        }
        (directory / "kernel.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    def load(directory: Path) -> KernelBuild:
        facts = json.loads((directory / "kernel.json").read_text(encoding="utf-8"))
        return KernelBuild(
            directory,
            facts["release"],
            facts["build_id"],
            facts["compiler"],
            warnings=(),
            seconds=0.0,
            cached=cached,
            digest=directory.name,
            is_prebuilt=True,
        )

    return Artefact(cache, _KIND, lambda: key, make, load)


def _read(bzimage: Path) -> bytes:
    try:
        with bzimage.open("rb") as stream:
            return stream.read(_START_BYTES)
    except OSError as error:
        raise UserError(f"--kernel {bzimage}: {error.strerror}.") from error


def _compiler(vmlinux: Path, release: str) -> str:
    """The compiler that a vmlinux was built with, after a check that it is of this release."""
    try:
        with vmlinux.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = _BANNER.search(content)
            banner = found.groups() if found else None
    except (OSError, ValueError) as error:  # ValueError: an empty file
        reason = error.strerror if isinstance(error, OSError) else "this file is empty"
        raise UserError(f"--vmlinux {vmlinux}: {reason}.") from error
    if banner is None:
        raise UserError(f"--vmlinux {vmlinux}: this is not the vmlinux of a kernel.")
    own = banner[0].decode("ascii", "replace")
    if own != release:
        raise UserError(
            f"--vmlinux {vmlinux} is of {own} and --kernel of {release}; give both files of one build."
        )
    return banner[1].decode("utf-8", "replace")
