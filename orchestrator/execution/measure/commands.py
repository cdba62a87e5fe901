# SPDX-License-Identifier: GPL-2.0-only
"""Commands as workloads: ``--workload "cmd:PROGRAM ARGUMENTS"`` with ``--copy-in``, ``--copy-out``, ``--metric``."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.guest.command import COMMAND_METRICS, GuestCommand, GuestFile, check_pattern, files_of
from orchestrator.guest.workload import Workload, command_workload
from orchestrator.store.manifest import WorkloadRecord
from orchestrator.store.observation import METRIC_NAME, Better, Metric

PREFIX = "cmd:"
_NAME = "cmd_"
_DIRECTIONS: Mapping[str, Better] = {"lower": "lower", "higher": "higher"}
#: Keys of the record of a command in run.json.
_COMMAND, _COPY_IN, _COPY_OUT, _METRIC, _FILES = "command", "copy_in", "copy_out", "metric", "files"


@dataclass(frozen=True)
class CommandOptions:
    """What goes with the commands of a run.

    Args:
        copy_in: ``HOST`` or ``HOST:GUEST``.
        copy_out: paths in the guest.
        metrics: ``NAME=REGEX`` or ``NAME,UNIT,DIRECTION=REGEX``.
    """

    copy_in: Sequence[str] = ()
    copy_out: Sequence[str] = ()
    metrics: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.copy_in or self.copy_out or self.metrics)


def commands_of(arguments: Sequence[str], options: CommandOptions) -> tuple[list[str], dict[str, Workload]]:
    """Workloads for the commands among `arguments`.

    Args:
        arguments: values of ``--workload``.

    Returns:
        `arguments` with the names of the new workloads in place of the commands, and these workloads.

    Raises:
        UserError: a command is empty, an option is invalid, or there are options but no command.
    """
    names: list[str] = []
    found: dict[str, Workload] = {}
    for argument in arguments:
        if not argument.startswith(PREFIX):
            names.append(argument)
            continue
        text = argument.removeprefix(PREFIX).strip()
        name = _name_of(text, found)
        found[name] = _workload(name, text, options)
        names.append(name)
    if options and not found:
        raise UserError(
            "--copy-in, --copy-out and --metric go with a command; add --workload 'cmd:PROGRAM ARGUMENTS'."
        )
    return names, found


def commands_of_run(recorded: Mapping[str, WorkloadRecord]) -> dict[str, Workload]:
    """The commands of a recorded run, to resume it.

    Args:
        recorded: the workloads in ``run.json``.

    Raises:
        UserError: a file that was copied into the guest has changed, or is gone.
    """
    found = {}
    for name, record in recorded.items():
        given = record.parameters
        if not name.startswith(_NAME) or _COMMAND not in given:
            continue
        options = CommandOptions(*(shlex.split(given[key]) for key in (_COPY_IN, _COPY_OUT, _METRIC)))
        workload = _workload(name, given[_COMMAND], options)
        if workload.parameters[_FILES].default != given[_FILES]:
            raise UserError(f"a file of {name} has changed since the run began; start a new run.")
        found[name] = workload
    return found


def check_known(recorded: Mapping[str, WorkloadRecord], known: Mapping[str, Workload]) -> None:
    """Check that the workloads of a recorded run are still there.

    Args:
        recorded: the workloads in ``run.json``.

    Raises:
        UserError: one of them is not.
    """
    missing = sorted(set(recorded) - set(known))
    if missing:
        raise UserError(
            f"there is no workload {missing[0]} any more; if it is one of yours, give --workloads DIR again."
        )
    for name in recorded:
        if known[name].fault:
            raise UserError(known[name].fault)


def _name_of(text: str, taken: Mapping[str, object]) -> str:
    words = _words(text)
    base = _NAME + (re.sub(r"[^a-z0-9]+", "_", posixpath.basename(words[0]).lower()).strip("_") or "program")
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--workload {PREFIX}{text}: {error}.") from error
    if not words:
        raise UserError(f"--workload {PREFIX}: name a program, e.g. '{PREFIX}sort /proc/vmstat'.")
    return words


def _workload(name: str, text: str, options: CommandOptions) -> Workload:
    files: dict[str, GuestFile] = {}
    placed = []
    for given in options.copy_in:
        host, place = _places(given)
        placed.append(f"{host}:{place}")
        files.update((each.path, each) for each in files_of(host, place))
    metrics, patterns = _metrics(options.metrics)
    command = GuestCommand(tuple(_words(text)), tuple(files.values()), tuple(options.copy_out), patterns)
    record = {
        _COMMAND: text,
        _COPY_IN: shlex.join(placed),
        _COPY_OUT: shlex.join(options.copy_out),
        _METRIC: shlex.join(options.metrics),
        _FILES: command.digest,
    }
    return command_workload(name, text, command, metrics, record)


def _places(given: str) -> tuple[Path, str]:
    host, colon, place = given.rpartition(":")
    if not colon or Path(given).exists():  # a name may have a colon
        host, place = given, ""
    path = Path(host).expanduser().absolute()
    if not path.exists():
        raise UserError(f"--copy-in {given}: there is no {host} on this host.")
    return path, place or path.name


def _metrics(options: Sequence[str]) -> tuple[list[Metric], dict[str, str]]:
    metrics: list[Metric] = []
    patterns: dict[str, str] = {}
    for option in options:
        left, equals, pattern = option.partition("=")
        name, *facts = (part.strip() for part in left.split(","))
        if not equals or not pattern:
            raise UserError(
                f"--metric {option}: write NAME=REGEX or NAME,UNIT,DIRECTION=REGEX, e.g. "
                r"'rate.mean,MiB/s,higher=([\d.]+) MiB/s'."
            )
        name = name if "." in name else f"{name}.value"
        if not METRIC_NAME.fullmatch(name) or "{" in name:
            raise UserError(
                f"--metric {option}: a metric has a name like rate or latency_ns.p50, not {name!r}."
            )
        if name in patterns or name in COMMAND_METRICS:
            raise UserError(f"--metric {option}: there is another metric {name}; rename this one.")
        directions = [_DIRECTIONS[fact] for fact in facts if fact in _DIRECTIONS]
        units = [fact for fact in facts if fact not in _DIRECTIONS]
        if len(directions) > 1 or len(units) > 1:
            raise UserError(f"--metric {option}: give at most one unit, and lower or higher.")
        try:
            patterns[name] = check_pattern(pattern)
        except UserError as error:
            raise UserError(f"--metric {option}: {error}") from error
        better = directions[0] if directions else None
        help_text = f"the number that {pattern} finds in the output"
        metrics.append(
            Metric(name, units[0] if units else "", better, primary=better is not None, help=help_text)
        )
    return metrics, patterns
