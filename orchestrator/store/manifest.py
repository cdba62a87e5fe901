# SPDX-License-Identifier: GPL-2.0-only
"""``run.json`` as typed records: the request, the kernel source and host, and the code that measured.

This is the only module that knows the keys of the file. The records are plain dataclasses; pydantic checks every key
and type on reading. Files of schema 1 are converted to schema 2 first.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orchestrator.defaults import MARGIN
from orchestrator.errors import UserError
from orchestrator.store.observation import Metric
from orchestrator.store.probe import Probe
from orchestrator.store.record import Record
from orchestrator.store.version import SCHEMA_VERSION

if TYPE_CHECKING:
    from pydantic import TypeAdapter

#: Name of the file in a run directory.
FILE: Final = "run.json"
#: Key of the digest of the rest of the file.
_DIGEST: Final = "digest"
_CELL_ID = re.compile(r"[^/\0.][^/\0]*")
_SHOWN_FAULTS = 3
#: What a run did not record of its series before series.toml had it, by the name of the series.
_SERIES_BEFORE: Final[Mapping[str, Mapping[str, Any]]] = {
    "thp-reservations": {
        "neutral": {"promotion_threshold": "1"},
        "identities": [
            "512 * thp_res_alloc == nr_thp_reserved + thp_res_mapped + thp_res_released + thp_res_filled"
        ],
        "levels": ["nr_thp_reserved"],
    }
}


class RunKind(StrEnum):
    """The command that created a run."""

    RUN = "run"
    CHECK = "check"
    TEST = "test"
    BISECT = "bisect"
    VERIFY = "verify"


class Role(StrEnum):
    """The role of a variant in the comparison."""

    BASELINE = "baseline"
    CONTROL = "control"  # a second copy of the baseline: the A/A control, which shows the noise floor
    PATCHED = "patched"


@dataclass(frozen=True, kw_only=True)
class Code(Record):
    """The code that measured.

    Args:
        version: version of this package.
        checkout: ``git describe --always --dirty`` of its checkout; None without a checkout.
    """

    version: str
    checkout: str | None = None

    def __str__(self) -> str:
        return f"{self.version} ({self.checkout})" if self.checkout else self.version


@dataclass(frozen=True, kw_only=True)
class NodeRecord(Record):
    """A NUMA node of the guest."""

    cpus: int
    memory_mib: int


@dataclass(frozen=True, kw_only=True)
class TopologyRecord(Record):
    """The emulated machine.

    Args:
        text: topology in the syntax of ``--topology``.
        distances: the ACPI SLIT, one row per node.
    """

    text: str
    nodes: tuple[NodeRecord, ...]
    distances: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class AcceleratorRecord(Record):
    """How the guests' instructions were executed.

    Args:
        name: the requested name until it is chosen, e.g. ``auto``; then icount, tcg or kvm.
        clock: ``insns`` or ``ns``; None until it is chosen.
        reason: why it was chosen.
        cpu: CPU model of the guest, in the syntax of QEMU's ``-cpu``.
        qemu: version of QEMU.
        qemu_digest: SHA-256 of the QEMU binary.
        program: path of the QEMU of ``--qemu``; None for the host's.
    """

    name: str
    clock: str | None
    reason: str
    cpu: str | None = None
    qemu: str | None = None
    qemu_digest: str | None = None
    program: str | None = None


@dataclass(frozen=True, kw_only=True)
class SourceRecord(Record):
    """The kernel source without the series.

    Args:
        requested: ``--source``, or the package in ``series.toml``.
        description: description for display.
        package, package_version: name and version of a Debian source package.
        version: kernel version.
        checked: whether the series is checked on this version; None if it is not from a package.
        commit: commit of the imported source; it depends only on the files.
    """

    description: str
    requested: str | None = None
    package: str | None = None
    package_version: str | None = None
    version: str | None = None
    checked: bool | None = None
    commit: str | None = None


@dataclass(frozen=True, kw_only=True)
class SeriesRecord(Record):
    """The patch series.

    Args:
        base: kernel version that it is made for.
        directory: directory, if it is not the series of the project.
        neutral: knob -> value at which the series claims to change nothing.
        identities: equations between its counters; see :mod:`orchestrator.analysis.identity`.
        levels: counters of what processes hold.
    """

    name: str
    title: str
    base: str
    directory: str | None = None
    neutral: Mapping[str, str] = field(default_factory=dict)
    identities: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HostRecord(Record):
    """The host, without anything that identifies it or its owner.

    Args:
        load: load averages of 1, 5 and 15 minutes when the run began.
    """

    cpu: str
    cpus: int | None
    memory_mib: int
    kernel: str
    load: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord(Record):
    """The host's last calibration before the run.

    Args:
        sentence: the result as a sentence.
        cpu: the calibrated processor.
        measured: all measurements, see :class:`orchestrator.analysis.calibration.Calibration`.
    """

    sentence: str
    cpu: str
    measured: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageRecord(Record):
    """An applied patch.

    Args:
        digest: digest of the patch with its alternatives.
    """

    number: int
    name: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class BaseRecord(Record):
    """The source that a variant's patches were applied to."""

    description: str
    commit: str | None = None


@dataclass(frozen=True, kw_only=True)
class KernelRecord(Record):
    """A built kernel.

    Args:
        digest: key in the cache.
        configuration: digest of the configuration.
        warnings: compiler warnings.
    """

    release: str
    build_id: str
    digest: str
    compiler: str
    configuration: str
    warnings: int = 0


@dataclass(frozen=True, kw_only=True)
class OtherKernelRecord(Record):
    """The kernel of a variant that has a source or a series of its own, or that was built elsewhere.

    Args:
        source: its ``--source``; None for that of the run.
        series: directory of its series; None for that of the run.
        patchset: its patchset in that series.
        kernel, vmlinux: its files, if it was built elsewhere.
    """

    source: str | None = None
    series: str | None = None
    patchset: str
    kernel: str | None = None
    vmlinux: str | None = None


@dataclass(frozen=True, kw_only=True)
class VariantRecord(Record):
    """A kernel, its command line, and its knob settings.

    Args:
        other: its kernel, if it has a source or a series of its own.
        tree: git tree ID of the patched source.
        base: source that the patches were applied to.
        patch_variants: stage number -> name of the alternative patch that was used.
        merged: numbers of the stages that were applied with a three-way merge.
        kernel: the built kernel; None until it is built.
        earlier_kernels: kernels of kept results that were replaced when the run was resumed, e.g. by another compiler.
    """

    name: str
    role: Role
    patchset: str
    knobs: Mapping[str, str] = field(default_factory=dict)
    cmdline: tuple[str, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    tree: str | None = None
    base: BaseRecord | None = None
    patch_variants: Mapping[str, str] = field(default_factory=dict)
    merged: tuple[int, ...] = ()
    kernel: KernelRecord | None = None
    earlier_kernels: tuple[KernelRecord, ...] = ()
    other: OtherKernelRecord | None = None


@dataclass(frozen=True, kw_only=True)
class WorkloadRecord(Record):
    """A workload of the run.

    Args:
        parameters: all parameters, including defaults.
        metrics: name -> metric.
    """

    title: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PlannedCell(Record):
    """A planned cell.

    Args:
        cell: ID of the cell, ``<variant>.<workload>.<repetition>``, which is a directory name.
    """

    cell: str
    variant: str
    role: Role
    workload: str
    repetition: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class BootRecord(Record):
    """One boot of a bisection.

    Args:
        stage: position among the variants.
        why: ``reference``, ``search`` or ``verify``.
    """

    stage: int
    cell: str
    why: str


@dataclass(frozen=True, kw_only=True)
class AnswerRecord(Record):
    """The result of a bisection.

    Args:
        stages: names of the variants that may be the first bad one.
        sure: probability.
        condition: assumption that the probability holds for, a clause that begins with "if".
        seen: bad boots and all boots of bad stages.
        alarms: bad boots and all boots of good stages.
        boots: number of boots.
        reference: median of the metric before the first stage.
        sentence: the result as a sentence.
    """

    conclusion: str
    stages: tuple[str, ...]
    sure: float
    condition: str
    seen: tuple[int, ...]
    alarms: tuple[int, ...]
    contradicted: bool
    verified: bool
    boots: int
    reference: float | None
    sentence: str


@dataclass(frozen=True, kw_only=True)
class BisectionRecord(Record):
    """The request and the result of a bisection.

    Args:
        metric: condition of a bad boot; None if `until` is given.
        until: outcome of a bad boot.
        matching: regular expression for the outcome's evidence.
        confidence: required probability that the result is right.
        rate: lowest reproduction rate to assume for a bad stage.
    """

    metric: str | None = None
    until: str | None = None
    matching: str | None = None
    confidence: float
    rate: float
    max_boots: int
    boots: tuple[BootRecord, ...] = ()
    answer: AnswerRecord | None = None


@dataclass(frozen=True, kw_only=True)
class CheckRecord(Record):
    """The request of a check, apart from its variant.

    Args:
        traces: names of the traces; ``logs/NAME.trace`` is the trace.
        shrink: reduce traces that diverge.
        every_stage: find the first stage that diverges.
    """

    traces: tuple[str, ...]
    shrink: bool
    every_stage: bool


@dataclass(frozen=True, kw_only=True)
class CorrectnessRecord(Record):
    """The request of a correctness test, apart from its variants.

    Args:
        suites: names of the suites.
        only: names of the tests; empty for all.
        compare: also run the suites on the baseline.
        cmdline: additional kernel parameters.
        minutes: duration of the hostile stress in guest minutes; None for that of its suite.
    """

    patchset: str
    suites: tuple[str, ...]
    only: tuple[str, ...]
    compare: bool
    cmdline: tuple[str, ...]
    minutes: int | None = None


@dataclass(frozen=True, kw_only=True)
class VerificationRecord(Record):
    """The request of a verification.

    Args:
        stages: numbers of the stages.
        checks: names of the checks.
    """

    stages: tuple[int, ...]
    checks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """The content of ``run.json``.

    Args:
        kind: the command that created the run.
        command: words of the command line.
        name: part of the directory's name.
        code: the code that started the run.
        flavour: kernel configuration.
        tools: name -> first line of its version.
        image: workload -> digest of its guest image.
        margin: largest relative difference that counts as unchanged.
        repeat: planned fresh boots per variant and workload; with ``--until-decided``, those before the first interim
            analysis.
        sample: what else was read with the counters, in addition to the usual files.
        profile: whether instructions were counted per kernel function.
        probes: points of the kernel at which gdb did something.
        max_repeat: maximum number of fresh boots with ``--until-decided``; None for other runs.
        seed: seed for all random choices.
        timeout_s: limit of one workload in host seconds; None for the limit in the workload's manifest.
        tradeoff: axis label -> ``workload/metric``.
        cells: planned cells, in order.
        run, created_utc, reproduce: original name of the directory, creation time (ISO 8601), and the command as one
            shell line; set by :meth:`RunWriter.create`.
        ended_utc: time when it was last finished; None while it is being written.
        bisection, check, test, verification: the request of a run of that kind; None for other kinds.
        finished_by: other code that resumed the run.
        earlier_accelerators: accelerators of kept results that were replaced when the run was resumed, e.g. by another
            QEMU.
    """

    schema: int = SCHEMA_VERSION
    kind: RunKind
    run: str = ""
    name: str
    created_utc: str = ""
    ended_utc: str | None = None
    command: tuple[str, ...]
    reproduce: str = ""
    code: Code
    finished_by: tuple[Code, ...] = ()
    source: SourceRecord
    series: SeriesRecord
    flavour: str
    topology: TopologyRecord
    accelerator: AcceleratorRecord
    earlier_accelerators: tuple[AcceleratorRecord, ...] = ()
    host: HostRecord
    calibration: CalibrationRecord | None = None
    tools: Mapping[str, str] = field(default_factory=dict)
    image: Mapping[str, str] = field(default_factory=dict)
    margin: float = MARGIN
    repeat: int = 1
    max_repeat: int | None = None
    sample: tuple[str, ...] = ()
    profile: bool = False
    probes: tuple[Probe, ...] = ()
    seed: int = 1
    timeout_s: float | None = None
    tradeoff: Mapping[str, str] = field(default_factory=dict)
    variants: tuple[VariantRecord, ...]
    workloads: Mapping[str, WorkloadRecord]
    cells: tuple[PlannedCell, ...]
    bisection: BisectionRecord | None = None
    check: CheckRecord | None = None
    test: CorrectnessRecord | None = None
    verification: VerificationRecord | None = None

    def variant(self, name: str) -> VariantRecord:
        """The variant with this name."""
        return next(each for each in self.variants if each.name == name)

    def name_of(self, role: Role) -> str | None:
        """The name of the first variant with this role; None if there is none."""
        return next((each.name for each in self.variants if each.role is role), None)

    def metric(self, workload: str, metric: str) -> Metric | None:
        """A metric of a workload; None if the run does not declare it."""
        described = self.workloads.get(workload)
        return described.metrics.get(metric) if described else None

    def to_json(self) -> str:
        """The content of ``run.json``, in the order of the fields; workloads, metrics and knobs keep their order.

        A digest of the content comes last: a flipped bit in a digit would silently be another experiment.
        """
        content = asdict(self)
        return json.dumps({**content, _DIGEST: _digest_of(content)}, indent=2) + "\n"


def _digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content of ``run.json``, whatever its layout."""
    # As it is read back: a number that is a key is a string there, and has another place in the order.
    as_read = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """Read ``run.json`` of a run directory, of this schema or an earlier one.

    Raises:
        UserError: there is none, it is damaged, or a newer version has written it.
    """
    path = directory / FILE
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{directory} is not a run directory: it has no {FILE}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # also a number with more digits than Python converts
        raise UserError(f"{path} is damaged: {error}.") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(schema, int):
        raise UserError(f"{path} has no schema version; it was not written by orchestrate.")
    if schema > SCHEMA_VERSION:
        raise UserError(
            f"{directory} was written by a newer orchestrate (schema {schema}, this one reads {SCHEMA_VERSION}); "
            "update orchestrate."
        )
    expected = content.pop(_DIGEST, None)  # earlier versions wrote none
    try:
        found = _digest_of(content)
        text = json.dumps(content)
    except RecursionError as error:
        raise UserError(f"{path} is damaged: {error}.") from error
    series = content.get("series")
    if isinstance(series, dict) and "identities" not in series:
        content["series"] = {**_SERIES_BEFORE.get(str(series.get("name")), {}), **series}
        text = json.dumps(content)
    if schema == 1:
        text = json.dumps(_from_schema_1(content))
    manifest = _parsed(text, path)
    check_plan(manifest, path)
    if expected not in (None, found):  # last, as the faults above say more
        raise UserError(
            f"{path} is damaged: its content has changed since it was written. Restore it from a copy, or run again; "
            f'if you have changed it yourself, remove its line "{_DIGEST}".'
        )
    return manifest


def check_plan(manifest: Manifest, path: Path) -> None:
    """Check that every planned cell has a unique ID that is a directory name.

    Args:
        path: path of the file, for the error message.

    Raises:
        UserError: a cell does not.
    """
    names = [cell.cell for cell in manifest.cells]
    for name in names:
        if not _CELL_ID.fullmatch(name):
            raise UserError(f"{path} has a planned cell whose ID is not a directory name: {name!r}.")
    if len(set(names)) != len(names):
        raise UserError(f"{path} has the same planned cell twice.")


def _parsed(text: str, path: Path) -> Manifest:
    from pydantic import ValidationError

    try:
        return _reader().validate_json(text)
    except ValidationError as error:
        faults = [_fault(each["type"], each["loc"], each["msg"]) for each in error.errors()]
        more = f"; and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        raise UserError(
            f"{path} is damaged: {'; '.join(faults[:_SHOWN_FAULTS])}{more}. Restore it from a copy, or run again."
        ) from error


@lru_cache
def _reader() -> TypeAdapter[Manifest]:
    # Imported here, since the import is slow and not all commands read a run.
    from pydantic import TypeAdapter

    return TypeAdapter(Manifest)


def _fault(kind: str, place: Sequence[int | str], message: str) -> str:
    """A fault at one place of the file, as a clause."""
    where = ".".join(map(str, place))
    if kind == "missing":
        return f"{where} is missing"
    if kind == "unexpected_keyword_argument":
        return f"{where} is unknown"
    return f"{where}: {message[:1].lower()}{message[1:]}"


def _from_schema_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the content of a file of schema 1 to schema 2.

    In schema 1, only some runs record the command that created them, and none the code that measured. Its keys changed
    over time; keys that are no longer known are dropped.
    """
    known = {each.name for each in fields(Manifest)}
    old = dict(content)
    new = {key: value for key, value in old.items() if key in known}
    new["schema"] = SCHEMA_VERSION
    new["kind"] = old.get("kind", RunKind.BISECT if "bisection" in old else RunKind.RUN)
    new["code"] = {"version": old.get("orchestrate", "unknown")}
    if isinstance(old.get("source"), dict):
        new["source"] = {"description": old["source"].get("requested") or "", **old["source"]}
    if isinstance(calibration := old.get("calibration"), dict):
        measured = {key: value for key, value in calibration.items() if key != "sentence"}
        new["calibration"] = {
            "sentence": calibration.get("sentence"),
            "cpu": calibration.get("cpu"),
            "measured": measured,
        }
    if isinstance(workloads := old.get("workloads"), dict):
        new["workloads"] = {name: _workload_of_schema_1(each) for name, each in workloads.items()}
        if isinstance(old.get("image"), str):
            new["image"] = dict.fromkeys(workloads, old["image"])
    if isinstance(bisection := old.get("bisection"), dict):
        new["bisection"] = {**bisection, "boots": old.get("boots", [])}
    return new


def _workload_of_schema_1(workload: Any) -> Any:
    """Convert a workload: in schema 1, metrics do not contain their names."""
    if not isinstance(workload, dict) or not isinstance(workload.get("metrics"), dict):
        return workload
    metrics = {
        name: {"name": name, **metric} if isinstance(metric, dict) else metric
        for name, metric in workload["metrics"].items()
    }
    return {**workload, "metrics": metrics}
