# SPDX-License-Identifier: GPL-2.0-only
"""Workloads: programs in the guest that measure something, and the manifests that describe them.

A program takes ``--name value`` options and prints JSON lines. The last line must be ``{"end": "ok"}``; without it
the program has failed, whatever its exit status.
"""

from __future__ import annotations

import json
import math
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from orchestrator.document import Document, Shape, read_document
from orchestrator.errors import UserError
from orchestrator.guest.command import (
    COMMAND_METRICS,
    DIRECTORY,
    PROGRAM,
    GuestCommand,
    GuestFile,
    check_pattern,
    files_of,
    records_of,
    values_in,
)
from orchestrator.guest.image import WORKLOADS
from orchestrator.guest.ssh import LONGEST_OUTPUT, Finished, Guest
from orchestrator.spelling import meant
from orchestrator.store.observation import CLOCK, METRIC_NAME, Better, Metric, Observation

Kind = Literal["integer", "choice", "size", "text"]

#: A parameter that every workload has: it sets several other parameters at once.
SIZE = "size"
SIZES = ("quick", "full")
#: Directories in ``guest_workloads`` without a manifest: shared code, and the program that starts commands.
_SHARED = ("common", PROGRAM)
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SIZE = re.compile(r"(\d+)([KMGT]?)", re.ASCII)
_INTEGER = re.compile(r"-?\d+", re.ASCII)
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SHOWN = 160
#: Of commands without a manifest: time limit in host seconds, and guest milliseconds between two samples.
COMMAND_TIMEOUT_S = 3600.0
COMMAND_SAMPLE_MS = 250
#: What a command prints, in the log directory of its cell.
COMMAND_OUTPUT = "command.output"


@dataclass(frozen=True)
class Parameter:
    """One option of a workload.

    Args:
        kind: ``integer``; ``choice`` of `choices`; ``size`` in bytes, given as 4096, 64K, 2M or 1G; ``text``.
        default: default value, as passed to the program.
        minimum, maximum: inclusive bounds of an integer or a size.
    """

    name: str
    kind: Kind
    default: str
    help: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None

    def check(self, text: str) -> str:
        """Check a value and convert it to the form that is passed to the program.

        Raises:
            UserError: the value is not allowed; the message does not name the workload.

        >>> Parameter("memory", "size", "0", "Memory.", minimum=0, maximum=1 << 40).check("2M")
        '2097152'
        """
        if self.kind == "text":
            return text
        if self.kind == "choice":
            if text not in self.choices:
                raise UserError(f"{self.name}={text}: choose {_alternatives(self.choices)}.")
            return text
        number = _bytes_of(text) if self.kind == "size" else _integer_of(text)
        if number is None:
            what = "a size such as 4096, 64K, 2M or 1G" if self.kind == "size" else "an integer"
            raise UserError(f"{self.name}={text}: it must be {what}.")
        if (self.minimum is not None and number < self.minimum) or (
            self.maximum is not None and number > self.maximum
        ):
            unit = " bytes" if self.kind == "size" else f" {self.unit}".rstrip()
            raise UserError(f"{self.name}={text}: it must be {self.minimum} to {self.maximum}{unit}.")
        return str(number)


@dataclass(frozen=True)
class Workload:
    """A program of ``guest_workloads/``, or any command.

    Args:
        title: one line of description.
        program: file name of its program in the guest, without directory.
        timeout_s: time limit in host seconds.
        sample_interval_ms: guest milliseconds between two readings of the counters while it runs; 0 for none.
        help: a paragraph of description.
        sample_processes: whether the memory use of each of its processes is sampled as well.
        layers: layers of the guest image that it needs.
        quick: the parameters of ``size=quick``: parameter -> value, as passed to the program. ``size=full`` means
            the defaults.
        command: the command that `program` starts; None if it does the work itself.
        fault: why it cannot run, e.g. because a file is missing; then its command has no files. Others can.
    """

    name: str
    title: str
    program: str
    parameters: Mapping[str, Parameter]
    metrics: Mapping[str, Metric]
    timeout_s: float
    sample_interval_ms: int
    help: str = ""
    quick: Mapping[str, str] = field(default_factory=dict)
    sample_processes: bool = False
    layers: tuple[str, ...] = ()
    command: GuestCommand | None = None
    fault: str = ""


@dataclass(frozen=True)
class WorkloadResult:
    """The result of a workload that succeeded.

    Args:
        records: all JSON lines, in order.
        status: how the program ended.
    """

    observations: list[Observation]
    records: list[dict[str, Any]]
    status: Finished


class WorkloadFailed(Exception):  # noqa: N818 - named like an outcome
    """The program failed, or its output is invalid. The message is the evidence."""


@dataclass(frozen=True)
class _ParameterTable(Shape):
    """``[parameters.NAME]`` of a manifest."""

    type: Literal["integer", "choice", "size", "text"]
    default: int | str
    help: str
    unit: str = ""
    choices: tuple[str, ...] | None = None
    minimum: int | str | None = None
    maximum: int | str | None = None


@dataclass(frozen=True)
class _MetricTable(Shape):
    """``[metrics.NAME]`` of a manifest."""

    unit: str
    help: str
    better: Literal["lower", "higher", "neither"] = "neither"
    primary: bool = False
    clock: bool = False
    pattern: str = ""


@dataclass(frozen=True)
class _Manifest(Shape):
    """The manifest of a workload."""

    title: str
    timeout_s: int
    sample_interval_ms: int
    program: str = ""
    command: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    fetch: tuple[str, ...] = ()
    metrics: dict[str, _MetricTable] = field(default_factory=dict)
    parameters: dict[str, _ParameterTable] = field(default_factory=dict)
    quick: dict[str, int | str] = field(default_factory=dict)
    help: str = ""
    sample_processes: bool = False
    layers: tuple[str, ...] = ()


def load_workloads(directory: Path) -> dict[str, Workload]:
    """Read the manifests ``<name>/<name>.toml`` of all workloads.

    Args:
        directory: directory ``guest_workloads``.

    Raises:
        UserError: a manifest is invalid; the message names file, line and key.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: this directory of workloads does not exist.")
    workloads = {}
    for each in sorted(directory.iterdir()):
        path = each / f"{each.name}.toml"
        if each.is_dir() and each.name not in _SHARED:
            if not path.is_file():
                raise UserError(f"{path}: this manifest is missing, so {each.name} is not a workload.")
            workloads[each.name] = load_workload(path)
    return workloads


def own_directories(named: Sequence[Path] = ()) -> list[Path]:
    """Directories with workloads of the user: ``~/.config/orchestrate/workloads`` if there is one, then `named`."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "orchestrate" / "workloads"
    return [*([home] if home.is_dir() else []), *named]


def known_workloads(project: Path, own: Sequence[Path] = ()) -> dict[str, Workload]:
    """The workloads of the project and of the user.

    Args:
        project: directory ``guest_workloads``.
        own: directories as :func:`own_directories` returns them.

    Raises:
        UserError: a manifest is invalid, or two workloads have the same name.
    """
    workloads = load_workloads(project)
    for directory in own:
        for name, workload in load_workloads(directory).items():
            if name in workloads:
                raise UserError(f"{directory / name}: there is another workload {name}; rename this one.")
            workloads[name] = workload
    return workloads


def load_workload(path: Path) -> Workload:
    """Read one manifest.

    Raises:
        UserError: it is invalid; the message names file, line and key.
    """
    document = read_document(path, _Manifest, "this manifest")
    manifest = document.content
    parameters = {name: _parameter(name, document) for name in manifest.parameters}
    metrics = {name: _metric(name, document) for name in manifest.metrics}
    quick = {}
    for name, value in manifest.quick.items():
        if name not in parameters:
            raise document.fault(
                ["quick", name], f"there is no such parameter{_suggestion(name, parameters)}"
            )
        quick[name] = document.checked(["quick", name], partial(parameters[name].check, str(value)))
    command, fault = _command(document, path.parent)
    if command is not None:
        metrics = _metrics_of_command(metrics, COMMAND_METRICS)
        _check_fields(document, command, parameters)
    if not metrics:
        raise document.fault(["metrics"], "a workload must have at least one metric")
    if manifest.timeout_s <= 0:
        raise document.fault(["timeout_s"], "must be more than 0 seconds")
    if manifest.sample_processes and not manifest.sample_interval_ms:
        raise document.fault(["sample_processes"], "needs a sample_interval_ms")
    if manifest.sample_interval_ms < 0:
        raise document.fault(["sample_interval_ms"], "must be 0 (no sampling) or more milliseconds")
    return Workload(
        path.stem,
        manifest.title,
        manifest.program if command is None else PROGRAM,
        parameters,
        metrics,
        float(manifest.timeout_s),
        manifest.sample_interval_ms,
        manifest.help.strip(),
        quick,
        manifest.sample_processes,
        manifest.layers,
        command,
        fault,
    )


def _command(document: Document[_Manifest], directory: Path) -> tuple[GuestCommand | None, str]:
    """The command of a manifest, and why its files cannot be read; empty if they can."""
    manifest = document.content
    if bool(manifest.program) == bool(manifest.command):
        raise document.fault(["program"], "give either a program or a command")
    if not manifest.command:
        for key, given in (("files", manifest.files), ("fetch", manifest.fetch)):
            if given:
                raise document.fault([key], "only a workload with a command has this key")
        for name, table in manifest.metrics.items():
            if table.pattern:
                raise document.fault(
                    ["metrics", name, "pattern"], "only a workload with a command has this key"
                )
        return None, ""
    files: list[GuestFile] = []
    fault = ""
    for place, source in manifest.files.items():
        try:
            files += document.checked(["files", place], partial(files_of, directory / source, place))
        except UserError as error:  # only a run of this workload needs the file
            fault = fault or str(error)
    patterns = {}
    for name, table in manifest.metrics.items():
        if not table.pattern and name not in COMMAND_METRICS:
            raise document.fault(["metrics", name, "pattern"], "this key is missing")
        if table.pattern:
            patterns[name] = document.checked(
                ["metrics", name, "pattern"], partial(check_pattern, table.pattern)
            )
    return GuestCommand(manifest.command, () if fault else tuple(files), manifest.fetch, patterns), fault


def _metrics_of_command(own: Mapping[str, Metric], general: Mapping[str, Metric]) -> dict[str, Metric]:
    """The metrics of a command: its own, and those of every command, which are primary only if none of its own is."""
    is_judged = any(metric.primary for metric in own.values())
    return {
        **{name: replace(each, primary=each.primary and not is_judged) for name, each in general.items()},
        **own,
    }


def _check_fields(
    document: Document[_Manifest], command: GuestCommand, parameters: Mapping[str, Parameter]
) -> None:
    for name in command.fields:
        if name != "seed" and name not in parameters:
            raise document.fault(["command"], f"{{{name}}} is not a parameter{_suggestion(name, parameters)}")


def command_workload(
    name: str, text: str, command: GuestCommand, own: Sequence[Metric], record: Mapping[str, str]
) -> Workload:
    """A workload for a command of the command line.

    Args:
        text: the command as the user wrote it.
        own: metrics from its output.
        record: what ``run.json`` tells of it, as parameters.
    """
    return Workload(
        name,
        f"The command: {text}",
        PROGRAM,
        {key: Parameter(key, "text", value, "Given on the command line.") for key, value in record.items()},
        _metrics_of_command({metric.name: metric for metric in own}, COMMAND_METRICS),
        COMMAND_TIMEOUT_S,
        COMMAND_SAMPLE_MS,
        command=command,
    )


def _parameter(name: str, document: Document[_Manifest]) -> Parameter:
    table = document.content.parameters[name]
    place = ["parameters", name]
    if not _NAME.fullmatch(name) or name in ("seed", "clock", SIZE):
        raise document.fault(
            place,
            "the name of a parameter must have only a-z, 0-9 and _, and must not be seed, clock or size",
        )
    # Each type has keys of its own.
    numeric = table.type in ("integer", "size")
    for key, value, is_its_own in (
        ("choices", table.choices, table.type == "choice"),
        ("minimum", table.minimum, numeric),
        ("maximum", table.maximum, numeric),
    ):
        if is_its_own and value is None:
            raise document.fault([*place, key], "this key is missing")
        if not is_its_own and value is not None:
            raise document.fault([*place, key], f"a parameter of the type {table.type} has no such key")
    minimum = maximum = None
    if table.type == "integer":
        for key, value in (
            ("default", table.default),
            ("minimum", table.minimum),
            ("maximum", table.maximum),
        ):
            if not isinstance(value, int):
                raise document.fault([*place, key], f"must be a whole number, not {value!r}")
        minimum, maximum = table.minimum, table.maximum
    elif table.type == "size":
        minimum, maximum = (_bytes_of(str(value)) for value in (table.minimum, table.maximum))
        for key, value in (("minimum", minimum), ("maximum", maximum)):
            if value is None:
                raise document.fault([*place, key], "must be a size such as 64K, 2M or 1G")
    elif table.type == "choice" and not table.choices:
        raise document.fault([*place, "choices"], "must have at least one string")
    if table.type != "integer" and not isinstance(table.default, str):
        raise document.fault([*place, "default"], f"must be a string, not {table.default!r}")
    parameter = Parameter(
        name,
        table.type,
        str(table.default),
        " ".join(table.help.split()),
        table.unit.strip(),
        table.choices or (),
        cast("int | None", minimum),
        cast("int | None", maximum),
    )
    default = document.checked([*place, "default"], partial(parameter.check, parameter.default))
    return replace(parameter, default=default)


def _metric(name: str, document: Document[_Manifest]) -> Metric:
    table = document.content.metrics[name]
    place = ["metrics", name]
    if not METRIC_NAME.fullmatch(name):
        raise document.fault(
            place, "the name of a metric must have the form noun_unit.statistic, e.g. fault_{clock}.p50"
        )
    if table.clock != (CLOCK in name) or (CLOCK in table.unit and not table.clock):
        raise document.fault(
            [*place, "clock"], "must be true if and only if the name of the metric contains {clock}"
        )
    direction: Better = None if table.better == "neither" else table.better
    return Metric(name, table.unit, direction, table.primary, table.clock, table.help)


def check_parameters(
    known: Mapping[str, Workload], name: str, parameters: Mapping[str, str]
) -> dict[str, str]:
    """Check the given parameters of workload `name`, and convert them to the form that is passed to the program.

    ``size=quick`` is replaced by its parameters, except for those that are given explicitly.

    Raises:
        UserError: unknown workload or parameter (the message suggests one), an invalid value, or a workload that
            cannot run.
    """
    if name not in known:
        raise UserError(
            f"unknown workload {name!r}{_suggestion(name, known)}; the workloads are {', '.join(sorted(known))}."
        )
    workload = known[name]
    if workload.fault:
        raise UserError(workload.fault)
    given = dict(parameters)
    size = given.pop(SIZE, "full")
    if size not in SIZES:
        raise UserError(f"workload {name}: size={size}: choose {_alternatives(SIZES)}.")
    if size == "quick":
        given = {**workload.quick, **given}
    for key in given:
        if key not in workload.parameters:
            there = ", ".join([SIZE, *workload.parameters])
            raise UserError(
                f"workload {name} has no parameter {key!r}{_suggestion(key, workload.parameters)}; "
                f"it has {there}."
            )
    try:
        return {key: workload.parameters[key].check(str(value)) for key, value in given.items()}
    except UserError as error:
        raise UserError(f"workload {name}: {error}") from error


def parse_workload_arguments(
    arguments: Sequence[str], known: Mapping[str, Workload]
) -> dict[str, dict[str, str]]:
    """Parse workloads given on the command line: ``NAME`` or ``NAME:KEY=VALUE,KEY=VALUE``.

    Returns:
        Name -> checked parameters that were given.

    Raises:
        UserError: a workload or parameter is unknown, invalid or given twice.
    """
    chosen: dict[str, dict[str, str]] = {}
    for argument in arguments:
        name, _, rest = argument.partition(":")
        parameters: dict[str, str] = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            if not equals:
                raise UserError(f"workload {argument}: write NAME:KEY=VALUE,KEY=VALUE; {part!r} has no '='.")
            if key in parameters:
                raise UserError(f"workload {argument}: {key} is given twice.")
            parameters[key] = value
        if name in chosen:
            raise UserError(f"workload {name} is given twice; a run can have each workload only once.")
        chosen[name] = check_parameters(known, name, parameters)
    return chosen


def run_workload(
    guest: Guest,
    workload: Workload,
    parameters: Mapping[str, str],
    seed: int,
    clock: str,
    log_dir: Path,
    timeout_s: float,
) -> WorkloadResult:
    """Run a workload until it ends.

    Args:
        parameters: parameters that differ from their defaults.
        seed: seed for all random choices of the workload.
        clock: ``insns`` or ``ns``, the unit in which it reports time.
        log_dir: directory for ``workload.jsonl`` and ``workload.stderr``, written as output appears.
        timeout_s: time limit in host seconds.

    Raises:
        WorkloadFailed: it failed, or its output is invalid.
        CommandTimeout: it took longer than `timeout_s`.
        GuestLost: the connection broke.
        UserError: a parameter is wrong.
    """
    given = check_parameters({workload.name: workload}, workload.name, parameters)
    values = {name: parameter.default for name, parameter in workload.parameters.items()} | given
    if workload.command is not None:
        return _run_command(
            guest, workload, workload.command, {**values, "seed": str(seed)}, clock, log_dir, timeout_s
        )
    argv = [f"{WORKLOADS}/{workload.program}", "--seed", str(seed), "--clock", clock]
    for name, value in values.items():
        argv += [f"--{name}", value]
    done = guest.run(
        argv,
        stdout=log_dir / "workload.jsonl",
        stderr=log_dir / "workload.stderr",
        timeout_s=timeout_s,
    )
    records = _records_of(done, workload)
    return WorkloadResult(observations_of(records, workload, clock), records, done)


def _run_command(
    guest: Guest,
    workload: Workload,
    command: GuestCommand,
    values: Mapping[str, str],
    clock: str,
    log_dir: Path,
    timeout_s: float,
) -> WorkloadResult:
    done = guest.run(
        command.arguments(values, clock),
        stdout=log_dir / "workload.jsonl",
        stderr=log_dir / COMMAND_OUTPUT,
        timeout_s=timeout_s,
        environment=command.environment,
        directory=DIRECTORY,
    )
    records = _records_of(done, workload)
    try:
        found = values_in(done.stderr, command.patterns)
        for path in command.fetched:
            guest.download(posixpath.join(DIRECTORY, path), log_dir / f"fetched-{posixpath.basename(path)}")
    except UserError as error:
        raise WorkloadFailed(f"workload {workload.name}: {error}") from error
    records += records_of(found, workload.metrics.values(), clock)
    return WorkloadResult(observations_of(records, workload, clock), records, done)


def _records_of(done: Finished, workload: Workload) -> list[dict[str, Any]]:
    """What a workload printed.

    Raises:
        WorkloadFailed: it reports no success, or its output is invalid.
    """
    if done.missing_bytes:
        raise WorkloadFailed(
            f"workload {workload.name}: it printed more than {LONGEST_OUTPUT >> 20} MiB; the output was cut there, and "
            f"{done.missing_bytes} bytes are missing"
        )
    records, fault = parse_output(done.stdout)
    last = records[-1] if records else {}
    if fault is None and last.get("end") != "ok":
        fault = str(last.get("reason", f"its last line is {json.dumps(last)}"))
    if fault is None and done.status != 0:
        fault = f"it reported success, but ended with {done.end}"
    if fault is not None:
        printed = done.stderr.strip().splitlines()
        words = f"; it printed: {printed[-1]}" if printed else ""
        how = "" if done.status == 1 and "end" in last else f" ({done.end})"
        raise WorkloadFailed(f"workload {workload.name}: {fault}{how}{words}")
    return records


def parse_output(text: str) -> tuple[list[dict[str, Any]], str | None]:
    """Parse and check the output of a workload.

    Args:
        text: its standard output.

    Returns:
        The records up to the first fault, and the fault as a clause; None if every line is valid and the last one
        reports the end.
    """
    records: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line and number == text.count("\n") + 1:
            break  # after the last newline
        if records and "end" in records[-1]:
            return records, f"line {number} comes after the end: {line[:_SHOWN]}"
        try:
            record = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            return records, f"line {number} is not JSON: {line[:_SHOWN]}"
        fault = _fault_of(record)
        if fault is not None:
            return records, f"line {number} {fault}: {line[:_SHOWN]}"
        records.append(record)
    if not records or "end" not in records[-1]:
        return records, "it stopped without reporting its end"
    return records, None


def observations_of(
    records: Sequence[Mapping[str, Any]], workload: Workload, clock: str
) -> list[Observation]:
    """The measured values in `records`.

    Raises:
        WorkloadFailed: a metric is not in the manifest, has another unit there, or occurs twice.
    """
    units = {
        metric.name.replace(CLOCK, clock): metric.unit.replace(CLOCK, clock)
        for metric in workload.metrics.values()
    }
    observations: dict[str, Observation] = {}
    for record in records:
        if "metric" not in record:
            continue
        name, unit = record["metric"], record["unit"]
        if name not in units:
            raise WorkloadFailed(f"workload {workload.name}: its manifest has no metric {name}")
        if unit != units[name]:
            raise WorkloadFailed(
                f"workload {workload.name}: {name} is in {unit}, but in {units[name]} according to its manifest"
            )
        if name in observations:
            raise WorkloadFailed(f"workload {workload.name}: it printed {name} twice")
        observations[name] = Observation(name, unit, float(record["value"]))
    return list(observations.values())


def _fault_of(record: object) -> str | None:
    """The fault of one line, or None."""
    if not isinstance(record, dict):
        return "is not a JSON object"
    kinds = [key for key in ("metric", "histogram", "event", "end") if key in record]
    if len(kinds) != 1:
        return "is not exactly one of metric, histogram, event and end"
    (kind,) = kinds
    if not isinstance(record[kind], str):
        return f"has a {kind} that is not a string"
    if kind == "metric":
        if not isinstance(record.get("unit"), str) or not _is_number(record.get("value")):
            return "lacks a unit or a numeric value"
        if not METRIC_NAME.fullmatch(record["metric"]):
            return "has a metric that is not named noun_unit.statistic"
    if kind == "histogram":
        buckets = record.get("buckets")
        if not isinstance(buckets, list) or not all(
            isinstance(bucket, list) and len(bucket) == 3 and all(map(_is_number, bucket))
            for bucket in buckets
        ):
            return "has buckets that are not [low, high, count]"
    return None


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer too large for a float
        return False


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _bytes_of(text: str) -> int | None:
    found = _SIZE.fullmatch(text)
    return int(found[1]) * _SIZES[found[2]] if found else None


def _integer_of(text: str) -> int | None:
    return int(text) if _INTEGER.fullmatch(text) else None


def _alternatives(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _suggestion(name: str, there: Mapping[str, Any] | set[str]) -> str:
    near = meant(name, there)
    return f", did you mean {near}" if near else ""
