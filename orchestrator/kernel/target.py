# SPDX-License-Identifier: GPL-2.0-only
"""A target: the architecture that a kernel is compiled for, and the compiler that does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from orchestrator.errors import UserError
from orchestrator.process import version_of
from orchestrator.spelling import hint

COMPILERS = ("gcc", "clang")


@dataclass(frozen=True)
class Target:
    """An architecture and a compiler.

    Args:
        architecture: ``ARCH`` of make.
        directory: its directory below ``arch/``, ``SRCARCH`` of make.
        bits: size of a pointer.
        cross: ``CROSS_COMPILE`` of make; empty for the host's tools.
        compiler: one of :data:`COMPILERS`.
        options: options of the kernel configuration that it is chosen with; see Kconfig below ``arch/``.
        words: more words for make, such as ``W=1``.
    """

    architecture: str = "x86_64"
    directory: str = "x86"
    bits: int = 64
    cross: str = ""
    compiler: str = "gcc"
    options: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    @property
    def program(self) -> str:
        """The compiler's program."""
        return f"{self.cross}{self.compiler}"

    @property
    def tools(self) -> tuple[str, str]:
        """Compiler and linker."""
        return self.program, f"{self.cross}ld"


#: What guests run.
HOST = Target()
#: Name of a check -> target. Debian has compilers for all of them; that for i386 is the host's with ``-m32``.
OTHER_TARGETS: Mapping[str, Target] = {
    "arm64-64k": Target(
        "arm64", "arm64", cross="aarch64-linux-gnu-", options={"CONFIG_ARM64_64K_PAGES": "y"}
    ),
    "i386": Target(
        "i386", bits=32, options={"CONFIG_HIGHMEM64G": "y", "CONFIG_X86_PAE": "y", "CONFIG_64BIT": "n"}
    ),
    "powerpc64le": Target(
        "powerpc",
        "powerpc",
        cross="powerpc64le-linux-gnu-",
        options={
            "CONFIG_PPC64": "y",
            "CONFIG_PPC_BOOK3S_64": "y",
            "CONFIG_CPU_LITTLE_ENDIAN": "y",
            "CONFIG_PPC_PSERIES": "y",
            "CONFIG_PPC_64K_PAGES": "y",
            "CONFIG_PPC_RADIX_MMU": "y",
        },
    ),
    "clang": Target(compiler="clang"),
    "W=1": Target(words=("W=1",)),
}


def check_compiler(name: str) -> str:
    """`name`, if kernels can be built with it.

    Raises:
        UserError: they cannot.
    """
    if name not in COMPILERS:
        raise UserError(f"--cc {name}: unknown compiler; {hint(name, COMPILERS, 'choose')}")
    return name


@lru_cache
def _versions(tools: tuple[str, str]) -> tuple[str, ...]:
    return tuple(map(version_of, tools))


def tool_versions(target: Target = HOST) -> tuple[str, ...]:
    """Version lines of compiler and linker.

    Raises:
        InfrastructureError: one of them is not installed.
    """
    return _versions(target.tools)
