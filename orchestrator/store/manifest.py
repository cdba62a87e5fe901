# SPDX-License-Identifier: GPL-2.0-only
"""``run.json`` as typed records: what was asked for, on which source and host, measured by which code.

This is the only module that knows the keys of the file. The records are plain dataclasses; reading checks every key
and every type with pydantic. A file of schema 1 is brought into the form of schema 2 first.
"""

from __future__ import annotations

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
from orchestrator.store.record import Record
from orchestrator.store.version import SCHEMA_VERSION

if TYPE_CHECKING:
    from pydantic import TypeAdapter

#: The file's name in a run directory.
FILE: Final = "run.json"
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
    """Which command made a run."""

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
        version: of this package.
        checkout: ``git describe --always --dirty`` of the checkout it runs from; None where it runs from none.
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
        text: as ``--topology`` takes it.
        distances: of the ACPI SLIT, node by node.
    """

    text: str
    nodes: tuple[NodeRecord, ...]
    distances: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class AcceleratorRecord(Record):
    """How the guests' instructions were executed.

    Args:
        name: as requested until it is chosen, e.g. ``auto``; then icount, tcg or kvm.
        clock: ``insns`` or ``ns``; None until it is chosen.
        reason: why it was chosen.
        cpu: CPU model of the guest, as QEMU's ``-cpu`` takes it.
        qemu: QEMU's version.
        qemu_digest: SHA-256 of QEMU's binary.
    """

    name: str
    clock: str | None
    reason: str
    cpu: str | None = None
    qemu: str | None = None
    qemu_digest: str | None = None


@dataclass(frozen=True, kw_only=True)
class SourceRecord(Record):
    """The unpatched kernel source.

    Args:
        requested: ``--source``, or the package that the series names.
        description: for a person.
        package, package_version: of a Debian source package.
        version: of the kernel.
        checked: whether the series is checked on this version; None where it is no package's.
        commit: of the imported source; it depends on the files only.
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
        base: kernel version that it is for.
        directory: of another series than the project's.
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
    """The host, without anything that names it or its owner.

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
        sentence: what it showed, for a person.
        cpu: the processor that was calibrated.
        measured: everything it measured, see :class:`orchestrator.analysis.calibration.Calibration`.
    """

    sentence: str
    cpu: str
    measured: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageRecord(Record):
    """A patch as it was applied.

    Args:
        digest: SHA-256 of the patch that was used, which may be a variant for the run's base.
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
        digest: its key in the cache.
        configuration: digest of its configuration.
        warnings: of the compiler.
    """

    release: str
    build_id: str
    digest: str
    compiler: str
    configuration: str
    warnings: int = 0


@dataclass(frozen=True, kw_only=True)
class VariantRecord(Record):
    """A kernel plus its command line plus the knobs set in it.

    Args:
        tree: git tree id of the patched source.
        base: what the patches were applied to.
        patch_variants: stage number -> name of the alternative patch that was used.
        merged: numbers of the stages that were merged three-way.
        kernel: None until it is built.
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


@dataclass(frozen=True, kw_only=True)
class WorkloadRecord(Record):
    """What ran in the guest.

    Args:
        parameters: all of them, defaults included.
        metrics: name -> what it is.
    """

    title: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PlannedCell(Record):
    """A cell that is to be run.

    Args:
        cell: its id, ``<variant>.<workload>.<repetition>``: a directory name.
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
    """What a bisection came to.

    Args:
        stages: names of the variants that may be the first bad one.
        sure: probability.
        condition: what that rests on.
        seen: bad boots and all boots of bad stages.
        alarms: bad boots and all boots of good stages.
        boots: how many there were.
        reference: median of the metric before the first stage.
        sentence: all of it, for a person.
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
    """What a bisection looks for, and what it found.

    Args:
        metric: condition of a bad boot; None where `until` is given.
        until: outcome of a bad boot.
        matching: regular expression for the outcome's evidence.
        confidence: required probability that the answer is right.
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
    """What a check is asked for, beside its variant.

    Args:
        traces: their names; ``logs/NAME.trace`` is the trace.
        shrink: reduce what diverges.
        every_stage: find the first stage that diverges.
    """

    traces: tuple[str, ...]
    shrink: bool
    every_stage: bool


@dataclass(frozen=True, kw_only=True)
class CorrectnessRecord(Record):
    """What a test of correctness is asked for, beside its variants.

    Args:
        suites: names of the suites.
        only: names of the tests; all of them where empty.
        compare: run the suites on the baseline, too.
        cmdline: further kernel parameters.
    """

    patchset: str
    suites: tuple[str, ...]
    only: tuple[str, ...]
    compare: bool
    cmdline: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class VerificationRecord(Record):
    """What a verification is asked for.

    Args:
        stages: numbers of the stages.
        checks: names of the checks.
    """

    stages: tuple[int, ...]
    checks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """Everything that ``run.json`` says.

    Args:
        kind: which command made the run.
        command: words of the command line.
        name: part of the directory's name.
        code: what began the run.
        flavour: kernel configuration.
        tools: name -> first line of its version.
        image: workload -> digest of its guest image.
        margin: relative difference up to which a metric counts as unchanged.
        repeat: planned fresh boots per variant and workload; of a run that goes on until it is decided, before the
            first look.
        max_repeat: most fresh boots of a run that goes on until it is decided; None of any other.
        seed: of all random choices.
        timeout_s: host seconds that one workload may take; None: what the workload says.
        tradeoff: what a metric stands for -> ``workload/metric``.
        cells: the plan, in its order.
        run, created_utc, reproduce: the directory's first name, when it was made (ISO 8601), and the command as one
            line for a shell; :meth:`RunWriter.create` fills them in.
        ended_utc: when it was last finished; None while it is being written.
        bisection, check, test, verification: what a run of that kind is asked for; None in others.
        finished_by: further code that a resumed run was finished with.
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
    host: HostRecord
    calibration: CalibrationRecord | None = None
    tools: Mapping[str, str] = field(default_factory=dict)
    image: Mapping[str, str] = field(default_factory=dict)
    margin: float = MARGIN
    repeat: int = 1
    max_repeat: int | None = None
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
        """The variant of that name."""
        return next(each for each in self.variants if each.name == name)

    def metric(self, workload: str, metric: str) -> Metric | None:
        """What a metric of a workload is; None where the run does not declare it."""
        described = self.workloads.get(workload)
        return described.metrics.get(metric) if described else None

    def to_json(self) -> str:
        """As ``run.json``: in the order of the fields; workloads, metrics and knobs keep the order they are run in."""
        return json.dumps(asdict(self), indent=2) + "\n"


def read_manifest(directory: Path) -> Manifest:
    """Read ``run.json`` of a run directory, of this schema or an earlier one.

    Raises:
        UserError: there is none, it is damaged, or a newer version wrote it.
    """
    path = directory / FILE
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{directory} is not a run directory: it has no {FILE}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {error}.") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(schema, int):
        raise UserError(f"{path} names no schema version; it was not written by orchestrate.")
    if schema > SCHEMA_VERSION:
        raise UserError(
            f"{directory} was written by a newer orchestrate (schema {schema}, this one reads {SCHEMA_VERSION}); "
            "update orchestrate."
        )
    series = content.get("series")
    if isinstance(series, dict) and "identities" not in series:
        content["series"] = {**_SERIES_BEFORE.get(str(series.get("name")), {}), **series}
        text = json.dumps(content)
    if schema == 1:
        text = json.dumps(_from_schema_1(content))
    manifest = _parsed(text, path)
    check_plan(manifest, path)
    return manifest


def check_plan(manifest: Manifest, path: Path) -> None:
    """Check that every planned cell has an id of its own that is a directory name.

    Args:
        path: of the file, for the sentence.

    Raises:
        UserError: one has not.
    """
    names = [cell.cell for cell in manifest.cells]
    for name in names:
        if not _CELL_ID.fullmatch(name):
            raise UserError(f"{path} plans a cell whose id is no directory name: {name!r}.")
    if len(set(names)) != len(names):
        raise UserError(f"{path} plans the same cell twice.")


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
    # It takes a while to import, which commands that read no run should not wait for.
    from pydantic import TypeAdapter

    return TypeAdapter(Manifest)


def _fault(kind: str, place: Sequence[int | str], message: str) -> str:
    """What is wrong at one place of the file, as a clause."""
    where = ".".join(map(str, place))
    if kind == "missing":
        return f"{where} is missing"
    if kind == "unexpected_keyword_argument":
        return f"{where} is not known"
    return f"{where}: {message[:1].lower()}{message[1:]}"


def _from_schema_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a file of schema 1 in the form of schema 2.

    Schema 1 said which command made a run only for some of them, and kept no account of the code that measured. Its
    keys came and went with the code; those that are no longer known are dropped.
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
    """A workload whose metrics do not repeat their names."""
    if not isinstance(workload, dict) or not isinstance(workload.get("metrics"), dict):
        return workload
    metrics = {
        name: {"name": name, **metric} if isinstance(metric, dict) else metric
        for name, metric in workload["metrics"].items()
    }
    return {**workload, "metrics": metrics}
