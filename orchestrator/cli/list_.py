# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate list``: lists the names that options accept, with their meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.analysis.layout import listing, text_of, wrapped
from orchestrator.cli import option
from orchestrator.cli.terminal import terminal_of
from orchestrator.errors import UserError
from orchestrator.spelling import hint

if TYPE_CHECKING:
    from orchestrator.kernel.series import Series
    from orchestrator.project import Project

NAME = "list"
EXAMPLE = "Example: orchestrate list workloads chunk"

Entry = dict[str, Any]


class What(StrEnum):
    """What to list."""

    WORKLOADS = "workloads"
    KNOBS = "knobs"
    PATCHSETS = "patchsets"
    CONFIGS = "configs"


def command(
    context: typer.Context,
    what: Annotated[What, typer.Argument(metavar="WHAT", help="workloads, knobs, patchsets or configs.")],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="List only this entry, in detail.")
    ] = None,
    directory: option.SeriesDirectory = None,
    as_json: option.Json = False,
) -> int:
    """List the values of --workload, --set, --patchset and --config, with defaults and units."""
    from orchestrator.kernel.series import load_series

    terminal = terminal_of(context)
    series = load_series(terminal.series_directory(directory))
    entries = _LISTED[what](terminal.project, series)
    if name is not None:
        entries = [entry for entry in entries if entry["name"] == name]
        if not entries:
            known = [entry["name"] for entry in _LISTED[what](terminal.project, series)]
            raise UserError(f"list {what} {name}: unknown name; {hint(name, known)}")
    if as_json:
        terminal.print_json(entries)
    elif what is What.WORKLOADS:
        terminal.print("\n\n".join(_workload_text(entry, terminal.width) for entry in entries))
    else:
        titles = {
            What.KNOBS: ("knob", "default", "values and meaning"),
            What.PATCHSETS: ("patchset", "stages"),
            What.CONFIGS: ("configuration", "meaning"),
        }[what]
        rows = [
            [entry["name"], entry["default"], _meaning(entry)]
            if what is What.KNOBS
            else [entry["name"], entry["help"]]
            for entry in entries
        ]
        terminal.print(text_of(listing(rows, terminal.width, titles)))
    return 0


def _workload_text(entry: Entry, width: int) -> str:
    rows = [[f"  {each['name']}", each["default"], _meaning(each)] for each in entry["parameters"]]
    table = listing(rows, width, ("  parameter", "default", "values and meaning"))
    return "\n".join([*wrapped(f"{entry['name']}: {entry['title']}", width, "  "), text_of(table)])


def _workloads(project: Project, _: Series) -> list[Entry]:
    from orchestrator.guest.workload import SIZE, SIZES, known_workloads, own_directories

    return [
        {
            "name": workload.name,
            "title": workload.title,
            "help": " ".join(workload.help.split()),
            "parameters": [
                {
                    "name": SIZE,
                    "kind": "choice",
                    "default": "full",
                    "unit": "",
                    "values": " or ".join(SIZES),
                    "help": "`quick` sets other parameters so that the workload takes seconds, for tests.",
                },
                *(
                    {
                        "name": parameter.name,
                        "kind": parameter.kind,
                        "default": _amount(parameter.default, parameter.kind),
                        "unit": "bytes" if parameter.kind == "size" else parameter.unit,
                        "values": _values(
                            parameter.choices,
                            _amount(str(parameter.minimum), parameter.kind),
                            _amount(str(parameter.maximum), parameter.kind),
                            parameter.unit,
                        ),
                        "help": parameter.help,
                    }
                    for parameter in workload.parameters.values()
                ),
            ],
            "metrics": [
                {
                    "name": metric.name,
                    "unit": metric.unit,
                    "better": metric.better,
                    "primary": metric.primary,
                    "help": metric.help,
                }
                for metric in workload.metrics.values()
            ],
        }
        for workload in known_workloads(project.guest_workloads, own_directories()).values()
    ]


def _knobs(_: Project, series: Series) -> list[Entry]:
    from orchestrator.experiment.knob import BASELINE_KNOBS

    own = [
        {
            "name": knob.name,
            "default": str(knob.default),
            "unit": "",
            "values": _values((), str(knob.minimum), str(knob.maximum), ""),
            "help": f"Added by stage {knob.stage}. {knob.help}",
            "path": knob.path,
            "stage": knob.stage,
        }
        for knob in series.knobs
    ]
    baseline = [
        {
            "name": name,
            "default": knob.default,
            "unit": knob.unit,
            "values": _values(knob.choices, str(knob.minimum), str(knob.maximum), knob.unit),
            "help": knob.help,
            "path": knob.path,
            "stage": None,
        }
        for name, knob in BASELINE_KNOBS.items()
    ]
    return [*own, *baseline]


def _patchsets(_: Project, series: Series) -> list[Entry]:
    from orchestrator.kernel.series import BASELINE, FULL

    entries: list[Entry] = [{"name": BASELINE, "stages": 0, "help": "none: the kernel without the series"}]
    for group in series.groups:
        last = len(series.select(group))
        added = ", ".join(stage.name for stage in series.stages if stage.group == group)
        entries.append({"name": group, "stages": last, "help": f"1 to {last}; adds {added}"})
    count = len(series.stages)
    entries.append({"name": FULL, "stages": count, "help": f"1 to {count}: all"})
    for first in series.groups[:1]:
        entries.append({"name": f"{first}:N", "stages": None, "help": f"the first N stages of {first}"})
    entries.append({"name": "stage-N", "stages": None, "help": "the first N stages of the series"})
    return entries


def _configs(project: Project, _: Series) -> list[Entry]:
    from orchestrator.kernel.config import flavours, summary

    return [
        {"name": flavour, "help": summary(project.vm_images, flavour)}
        for flavour in flavours(project.vm_images)
    ]


_LISTED: Mapping[What, Callable[[Project, Series], list[Entry]]] = {
    What.WORKLOADS: _workloads,
    What.KNOBS: _knobs,
    What.PATCHSETS: _patchsets,
    What.CONFIGS: _configs,
}


def _meaning(entry: Entry) -> str:
    return f"{entry['values']}. {entry['help']}"


def _values(choices: tuple[str, ...], minimum: str, maximum: str, unit: str) -> str:
    if choices:
        return ", ".join(choices)
    if (minimum, maximum) == ("0", "1"):
        return "0 or 1"
    until = "or more" if maximum == str(2**32 - 1) else f"to {maximum}"
    return f"{minimum} {until} {unit}".rstrip()


def _amount(text: str, kind: str) -> str:
    """Format a size for display: 2097152 as 2M."""
    if kind != "size" or not text.isdigit():
        return text
    number = int(text)
    for letter, factor in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if number and number % factor == 0:
            return f"{number // factor}{letter}"
    return text
