# SPDX-License-Identifier: GPL-2.0-only
"""Kernel configurations: fragments that request options, and a check that the final .config has them all.

A line of a fragment may end with a remark on other kernel versions::

    CONFIG_PREEMPT_VOLUNTARY=y  # or CONFIG_PREEMPT_LAZY=y
    CONFIG_PER_VMA_LOCK=y       # optional
    CONFIG_NUMA_MIGRATION=y     # elsewhere

The first is granted if either option is. An ``optional`` one may be missing: a kernel without it is measured
all the same. One from ``elsewhere`` does not exist in the version that the fragments are written for.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.kernel.target import HOST, Target, check_compiler
from orchestrator.spelling import meant

_DIRECTORY = "kernel"
_BASE = "base"
_DWARF = "dwarf"
_SET = re.compile(r"(CONFIG_\w+)=(.*)")
_REMARK = re.compile(r"\s+#\s*(?:(?P<word>optional|elsewhere)|or (?P<other>CONFIG_\w+=\S+))\s*$")
_UNSET = re.compile(r"# (CONFIG_\w+) is not set")


@dataclass(frozen=True)
class Configuration:
    """Requested kernel options; everything else is off (``make allnoconfig``).

    Args:
        flavour: name of the fragment that is added to the base fragment.
        dwarf: whether debugging information is requested as well.
        text: all fragments, concatenated for KCONFIG_ALLCONFIG.
        requested: option -> value; ``n`` for an option that must be off.
        digest: digest of the requested options, without comments and without options from elsewhere.
        optional: requested options that may be missing.
        elsewhere: those of them that the version the fragments are written for does not have.
        others: requested option -> the option and value that replace it in other kernel versions.
        target: architecture and compiler.
    """

    flavour: str
    dwarf: bool
    text: str
    requested: Mapping[str, str]
    digest: str
    optional: frozenset[str] = frozenset()
    elsewhere: frozenset[str] = frozenset()
    others: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    target: Target = HOST

    def missing_from(self, config: str) -> list[str]:
        """The optional options that a ``.config`` lacks."""
        granted = _granted(config)
        wanted = {name: self.requested.get(name, "n") for name in self.optional - self.elsewhere}
        return sorted(name for name, value in wanted.items() if value not in ("n", granted.get(name, "n")))


def flavours(vm_images: Path) -> tuple[str, ...]:
    """Names that :func:`configuration` accepts."""
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
    """Assemble a configuration from the fragments in ``vm_images/kernel``.

    Args:
        flavour: ``measure``, ``debug-vm``, ``debug-locks``, or the path of a fragment; then, with a ``+`` before each,
            options that override the fragments, e.g. ``measure+CONFIG_KSM=n``; before these may be a compiler, as in
            ``measure+cc=clang``.
        dwarf: add debugging information.
        extra: more options, option -> value; they override the fragments.

    Raises:
        UserError: unknown flavour, a line or an extra option that does not parse, or fragments that contradict
            each other.
    """
    flavour, *settings = flavour.split("+CONFIG_")
    flavour, _, compiler = flavour.partition("+cc=")
    target = replace(HOST, compiler=check_compiler(compiler)) if compiler else HOST
    own = dict(_setting(f"CONFIG_{setting}") for setting in settings)
    fragment = Path(flavour).expanduser() if "/" in flavour or flavour.endswith(".config") else None
    known = flavours(vm_images)
    if fragment is None and flavour not in known:
        near = meant(flavour, known)
        hint = f"did you mean {near}? There are" if near else "there are"
        raise UserError(f"unknown kernel configuration {flavour!r}; {hint} {', '.join(known) or 'none'}.")
    place = vm_images / _DIRECTORY
    paths = [place / f"{_BASE}.config", fragment or place / f"{flavour}.config"]
    paths += [place / f"{_DWARF}.config"] if dwarf else []
    if fragment is not None:
        flavour = re.sub(r"[^A-Za-z0-9_-]+", "-", fragment.stem)
    merged = Fragments()
    for path in paths:
        merged.add(path)
    for option, value in {**own, **(extra or {})}.items():
        if parse_line(line_of(option, value)) != (option, value):
            raise UserError(
                f"{option}={value} is not an option like CONFIG_NUMA=y; write the full name of the option."
            )
        merged.requested[option] = value
        merged.optional.discard(option)
        merged.others.pop(option, None)
    known_here = {name: value for name, value in merged.requested.items() if name not in merged.elsewhere}
    text = "".join(line_of(option, value) for option, value in sorted(known_here.items()))
    digest = hashlib.sha256(text.encode()).hexdigest()
    elsewhere = {name: merged.requested[name] for name in merged.elsewhere} | dict(merged.others.values())
    text += "".join(line_of(option, value) for option, value in sorted(elsewhere.items()))
    return Configuration(
        flavour,
        dwarf,
        text,
        dict(merged.requested),
        digest,
        frozenset(merged.optional | merged.elsewhere),
        frozenset(merged.elsewhere),
        dict(merged.others),
        target,
    )


def with_settings(flavour: str, settings: Sequence[str], compiler: str | None = None) -> str:
    """A flavour with the values of ``--config-set`` and ``--cc``, for :func:`configuration`.

    Args:
        settings: ``CONFIG_X=VALUE`` each.
        compiler: None for the default.

    Raises:
        UserError: one has another form, or one option has two values; or unknown compiler.
    """
    if compiler is not None and check_compiler(compiler) != HOST.compiler:
        name, plus, options = flavour.partition("+CONFIG_")
        flavour = f"{name}+cc={compiler}{plus}{options}"
    chosen: dict[str, str] = {}
    for text in settings:
        option, value = _setting(text)
        if chosen.setdefault(option, value) != value:
            raise UserError(
                f"--config-set {text}: {option} is set to {chosen[option]} as well; give it once."
            )
    return "+".join([flavour, *(f"{option}={value}" for option, value in chosen.items())])


def _setting(text: str) -> tuple[str, str]:
    match = _SET.fullmatch(text.strip())
    if match is None or not match[2] or "+CONFIG_" in match[2]:
        raise UserError(
            f"--config-set {text}: write CONFIG_NAME=VALUE, where VALUE is y, n, m, a number or a string."
        )
    return match[1], match[2]


@dataclass
class Fragments:
    """Reads several fragments; two lines that contradict each other are an error that names both."""

    requested: dict[str, str] = field(default_factory=dict)
    optional: set[str] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)
    others: dict[str, tuple[str, str]] = field(default_factory=dict)
    _where: dict[str, str] = field(default_factory=dict)

    def add(self, path: Path) -> None:
        """Read one fragment.

        Raises:
            UserError: a line does not parse, or contradicts an earlier line.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UserError(f"cannot read the configuration fragment {path}: {error.strerror}.") from error
        for number, line in enumerate(lines, 1):
            remark = _REMARK.search(line)
            request = parse_line(line[: remark.start()] if remark else line)
            if request is None:
                if line.strip() and not line.startswith("#"):
                    raise UserError(f"{path}:{number}: {line.strip()!r} is not an option like CONFIG_NUMA=y.")
                continue
            option, value = request
            here = f"{path.name}:{number}"
            if self.requested.get(option, value) != value:
                raise UserError(
                    f"{here} requests {option}={value}, but {self._where[option]} requests "
                    f"{option}={self.requested[option]}; remove one of them."
                )
            self.requested[option] = value
            if remark and remark["other"]:
                name, _, other = remark["other"].partition("=")
                self.others[option] = (name, other)
            elif remark:
                (self.optional if remark["word"] == "optional" else self.elsewhere).add(option)
            self._where.setdefault(option, here)


def parse_line(line: str) -> tuple[str, str] | None:
    """The option and value set by a line of a fragment or a ``.config``; None for other lines.

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


def _granted(config: str) -> dict[str, str]:
    return dict(filter(None, map(parse_line, config.splitlines())))


def check_survived(
    requested: Mapping[str, str],
    config: str,
    optional: Collection[str] = (),
    others: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """Check that a ``.config`` has every requested option.

    Args:
        optional: options that may be missing.
        others: option -> the option and value that replace it in other kernel versions.
        config: content of the file written by ``make olddefconfig``.

    Raises:
        UserError: an option is missing or has another value; the message lists each with both values.
    """
    granted = _granted(config)

    def has(option: str, value: str) -> bool:
        return granted.get(option, "n") == value

    others = others or {}
    refused = [
        f"{option} (requested {value}, got {granted.get(option, 'nothing')})"
        for option, value in sorted(requested.items())
        if option not in optional
        and not has(option, value)
        and not (option in others and has(*others[option]))
    ]
    if refused:
        raise UserError(
            f"the final kernel configuration lacks {len(refused)} requested option(s): {', '.join(refused)}; "
            "request their dependencies too, or drop them."
        )
