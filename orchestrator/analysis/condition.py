# SPDX-License-Identifier: GPL-2.0-only
"""Measurement conditions of runs, or of the variants of a run; a comparison reports their differences.

Two runs can be compared despite such differences. A *caution* means that the figures may differ for that reason; a
*note* names a difference that should have no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from orchestrator.store.manifest import AcceleratorRecord, Code, Manifest, VariantRecord
from orchestrator.store.run import Run

#: For runs from before this was recorded.
_UNKNOWN: Final = "not recorded"
#: Characters of a SHA-256 that tell two binaries apart.
_DIGEST: Final = 12


@dataclass(frozen=True)
class Differences:
    """Differences in the conditions of the measurements in a comparison.

    Args:
        cautions: sentences on differences that may affect the figures.
        notes: sentences on all others.
        clocks: which of them make the clocks count differently, e.g. ``QEMU versions``.
    """

    cautions: tuple[str, ...]
    notes: tuple[str, ...]
    clocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Value:
    """One value of a condition.

    Args:
        identity: value for the comparison.
        text: text for display.
    """

    identity: str
    text: str


@dataclass(frozen=True)
class _Condition:
    """A condition that two measurements should have in common.

    Args:
        what: name of the condition, in the plural, to follow "the".
        values: values for a variant of a run; empty if it has no meaning, e.g. before a kernel is built.
        caution: the possible effect on the figures, as a sentence; empty for a note.
        of_clock: whether the figures of two runs that differ in it are by two clocks.
    """

    what: str
    values: Callable[[Manifest, VariantRecord], Iterator[_Value]]
    caution: str = ""
    of_clock: bool = False


def _base(manifest: Manifest, variant: VariantRecord) -> Iterator[_Value]:
    """Two bases are the same if their files are: the commit of an imported source depends only on the files.

    A variant that was given a source or a kernel of its own is meant to differ.
    """
    if variant.other is not None and (variant.other.source or variant.other.kernel):
        return
    source, base = manifest.source, variant.base
    description = (base.description if base else "") or source.description or "an unknown source"
    commit = (base.commit if base else None) or source.commit
    yield _Value(commit or description, description)


def _compiler(manifest: Manifest, variant: VariantRecord) -> Iterator[_Value]:
    for kernel in (*variant.earlier_kernels, variant.kernel):
        if kernel is not None:
            yield _Value(kernel.compiler, kernel.compiler)


def _accelerators(manifest: Manifest) -> tuple[AcceleratorRecord, ...]:
    """All that the results of a run are from, in order."""
    return (*manifest.earlier_accelerators, manifest.accelerator)


def _guest_cpu(manifest: Manifest, variant: VariantRecord) -> Iterator[_Value]:
    for accelerator in _accelerators(manifest):
        cpu = accelerator.cpu or _UNKNOWN
        # With KVM the model is "host": the guest has the processor of the host.
        text = f"host, {manifest.host.cpu}" if cpu == "host" else cpu
        yield _Value(text, text)


def _qemu_generation(manifest: Manifest, variant: VariantRecord) -> Iterator[_Value]:
    """QEMU counts instructions alike within a major version (docs/measurement.md)."""
    for accelerator in _accelerators(manifest):
        version = accelerator.qemu or _UNKNOWN
        yield _Value(version.partition(".")[0], version)


def _qemu_binary(manifest: Manifest, variant: VariantRecord) -> Iterator[_Value]:
    for accelerator in _accelerators(manifest):
        if accelerator.qemu is None:  # a missing version is reported above
            continue
        digest = accelerator.qemu_digest
        yield _Value(
            f"{accelerator.qemu} {digest}",
            f"{accelerator.qemu}, SHA-256 {digest[:_DIGEST] if digest else _UNKNOWN}",
        )


def _code(manifest: Manifest, variant: VariantRecord) -> Iterator[_Value]:
    for code in (manifest.code, *manifest.finished_by):
        yield _Value(str(code), _named(code))


def _named(code: Code) -> str:
    return f"{code.version} ({code.checkout or f'commit {_UNKNOWN}'})"


def _calibrated(manifest: Manifest, variant: VariantRecord) -> Iterator[_Value]:
    if manifest.calibration is not None:
        yield _Value(manifest.calibration.cpu, manifest.calibration.cpu)


_CLOCK: Final = (
    "The same code may cost a different number of instructions: "
    "a difference may come from the clock, not from the kernel."
)
_CONDITIONS: Final = (
    _Condition("base kernels", _base, "A difference may come from the base, not from the series."),
    _Condition("compilers", _compiler, "A difference may come from the compiler, not from the series."),
    _Condition("CPU models of the guests", _guest_cpu, _CLOCK, of_clock=True),
    _Condition("QEMU versions", _qemu_generation, _CLOCK, of_clock=True),
    _Condition(
        "processors that the runs were calibrated on",
        _calibrated,
        "The same difference in instructions may mean different times on them.",
        of_clock=True,
    ),
    _Condition(
        "versions of orchestrate",
        _code,
        "A difference may come from the measurement, not from the kernel.",
    ),
    _Condition("QEMU binaries", _qemu_binary),
)


def differences(runs: Sequence[Run]) -> Differences:
    """Differences in the conditions of runs, or of the variants of a run."""
    cautions: list[str] = []
    notes: list[str] = []
    clocks: list[str] = []
    for condition in _CONDITIONS:
        # identity -> text -> who has it
        found: dict[str, dict[str, list[str]]] = {}
        for run in runs:
            for variant in run.manifest.variants:
                for value in condition.values(run.manifest, variant):
                    users = found.setdefault(value.identity, {}).setdefault(value.text, [])
                    users.append(variant.name if len(runs) == 1 else run.name)
        if len(found) < 2:
            continue
        parts = []
        have = []
        for texts in found.values():
            users = list(dict.fromkeys(user for each in texts.values() for user in each))
            parts.append(f"{' and '.join(texts)} in {', '.join(users)}")
            have += users
        sentence = f"the {condition.what} differ: {'; '.join(parts)}."
        changed = list(dict.fromkeys(user for user in have if have.count(user) > 1))
        if changed:
            sentence += f" For {', '.join(changed)}, they changed before the run was resumed."
        if condition.of_clock:
            clocks.append(condition.what)
        if condition.caution:
            cautions.append(f"{sentence} {condition.caution}")
        else:
            notes.append(sentence)
    return Differences(tuple(cautions), tuple(notes), tuple(clocks))


def mixed(run: Run) -> list[str]:
    """Sentences on what changed before a run was resumed, so that its results are of both."""
    found = differences([run])
    return [
        *(f"CAUTION: {caution}" for caution in found.cautions),
        *(f"note: {note}" for note in found.notes),
    ]


def notes_on_bases(runs: Sequence[Run]) -> list[str]:
    """Sentences on bases that the series is not checked on, and on stages that were merged three-way."""
    notes = []
    for run in runs:
        source = run.manifest.source
        if source.checked is False:
            notes.append(f"the series is not checked on the base {source.description} ({run.name}).")
        merged = {stage for variant in run.manifest.variants for stage in variant.merged}
        if merged:
            stages = ", ".join(map(str, sorted(merged)))
            notes.append(f"merged three-way onto {source.description}: stages {stages} ({run.name}).")
    return notes
