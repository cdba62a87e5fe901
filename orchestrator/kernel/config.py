# SPDX-License-Identifier: GPL-2.0-only
"""Kernel configurations: fragments that are requests, and the check that every request was granted."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.spelling import meant

_DIRECTORY = "kernel"
_BASE = "base"
_DWARF = "dwarf"
_SET = re.compile(r"(CONFIG_\w+)=(.*)")
_UNSET = re.compile(r"# (CONFIG_\w+) is not set")


@dataclass(frozen=True)
class Configuration:
    """What a kernel is asked to be; everything that is not requested is off (``make allnoconfig``).

    Args:
        flavour: name of the fragment that is added to the base.
        dwarf: whether debugging information is requested too.
        text: all fragments, one after another, as KCONFIG_ALLCONFIG takes them.
        requested: option -> value, ``n`` for one that is to be off.
        digest: of what is requested, not of how it is commented.
    """

    flavour: str
    dwarf: bool
    text: str
    requested: Mapping[str, str]
    digest: str


def flavours(vm_images: Path) -> tuple[str, ...]:
    """The names that :func:`configuration` knows."""
    found = sorted(path.stem for path in (vm_images / _DIRECTORY).glob("*.config"))
    return tuple(name for name in found if name not in (_BASE, _DWARF))


def summary(vm_images: Path, flavour: str) -> str:
    """The first sentence of the comment at the top of a flavour's fragment.

    Raises:
        UserError: the fragment cannot be read.
    """
    path = vm_images / _DIRECTORY / f"{flavour}.config"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the configuration fragment {path}: {error.strerror}.") from error
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    text = " ".join(line.lstrip("# ") for line in comment if "SPDX" not in line).strip()
    return re.split(r"(?<=\.)\s", text)[0]


def configuration(
    vm_images: Path, flavour: str, dwarf: bool = False, extra: Mapping[str, str] | None = None
) -> Configuration:
    """Put a configuration together from the fragments in ``vm_images/kernel``.

    Args:
        flavour: ``measure``, ``debug-vm``, ``debug-locks``.
        dwarf: add debugging information.
        extra: further requests, option -> value; they win over the fragments.

    Raises:
        UserError: unknown flavour, a line or an extra that is no request, or two fragments that contradict each
            other.
    """
    known = flavours(vm_images)
    if flavour not in known:
        near = meant(flavour, known)
        hint = f"did you mean {near}? There are" if near else "there are"
        raise UserError(f"unknown kernel configuration {flavour!r}; {hint} {', '.join(known) or 'none'}.")
    paths = [
        vm_images / _DIRECTORY / f"{name}.config" for name in (_BASE, flavour, *([_DWARF] if dwarf else []))
    ]
    merged = Fragments()
    for path in paths:
        merged.add(path)
    for option, value in (extra or {}).items():
        if parse_line(line_of(option, value)) != (option, value):
            raise UserError(f"{option}={value} is no request like CONFIG_NUMA=y; write the option in full.")
        merged.requested[option] = value
    text = "".join(line_of(option, value) for option, value in sorted(merged.requested.items()))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Configuration(flavour, dwarf, text, dict(merged.requested), digest)


@dataclass
class Fragments:
    """Fragments read one after another; a contradiction between two lines is an error that names both."""

    requested: dict[str, str] = field(default_factory=dict)
    _where: dict[str, str] = field(default_factory=dict)

    def add(self, path: Path) -> None:
        """Read one fragment.

        Raises:
            UserError: a line is no request, or contradicts an earlier one.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UserError(f"cannot read the configuration fragment {path}: {error.strerror}.") from error
        for number, line in enumerate(lines, 1):
            request = parse_line(line)
            if request is None:
                if line.strip() and not line.startswith("#"):
                    raise UserError(f"{path}:{number}: {line.strip()!r} is no request like CONFIG_NUMA=y.")
                continue
            option, value = request
            here = f"{path.name}:{number}"
            if self.requested.get(option, value) != value:
                raise UserError(
                    f"{here} requests {option}={value}, but {self._where[option]} requests "
                    f"{option}={self.requested[option]}; remove one of them."
                )
            self.requested[option] = value
            self._where.setdefault(option, here)


def parse_line(line: str) -> tuple[str, str] | None:
    """The option and value that a line of a fragment or of a ``.config`` sets; None for any other line.

    >>> parse_line("# CONFIG_KSM is not set")
    ('CONFIG_KSM', 'n')
    """
    match = _SET.fullmatch(line.strip())
    if match:
        return match[1], match[2]
    match = _UNSET.fullmatch(line.strip())
    return (match[1], "n") if match else None


def line_of(option: str, value: str) -> str:
    """The line of a ``.config`` that sets `option`."""
    return f"# {option} is not set\n" if value == "n" else f"{option}={value}\n"


def check_survived(requested: Mapping[str, str], config: str) -> None:
    """Check that a ``.config`` grants everything that was requested.

    Args:
        config: text of the file that ``make olddefconfig`` left.

    Raises:
        UserError: an option vanished or has another value; the sentence names each with both values.
    """
    granted = dict(filter(None, map(parse_line, config.splitlines())))
    refused = [
        f"{option} (requested {value}, got {granted.get(option, 'nothing')})"
        for option, value in sorted(requested.items())
        if granted.get(option, "n") != value
    ]
    if refused:
        raise UserError(
            f"the kernel's configuration does not grant {len(refused)} requested option(s): {', '.join(refused)}; "
            "request what they depend on, or drop them."
        )
