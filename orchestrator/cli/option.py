# SPDX-License-Identifier: GPL-2.0-only
"""Options of several commands, defined once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from orchestrator import defaults
from orchestrator.cli import completion
from orchestrator.errors import UserError

#: Options that are allowed with --resume, because they are not part of the run.
_OF_RESUMING = {"resume", "jobs", "executor", "build_jobs", "as_json", "workloads", "keep"}


def is_given(context: typer.Context, parameter: str) -> bool:
    """Whether a parameter was given on the command line, even with its default value."""
    origin = context.get_parameter_source(parameter)
    return origin is not None and origin.name == "COMMANDLINE"


def refuse(context: typer.Context, parameters: Iterable[str], why: str) -> None:
    """Reject parameters that would have no effect.

    Args:
        why: the reason, e.g. "--resume continues a run with its own settings"; the parameter to omit is appended.

    Raises:
        UserError: one of them was given.
    """
    names = set(parameters)
    for parameter in context.command.params:
        if parameter.name in names and is_given(context, parameter.name):
            raise UserError(f"{why}; omit {max(parameter.opts, key=len)}.")


def refuse_beside_resume(context: typer.Context) -> None:
    """Reject options that would change the settings of a resumed run.

    Raises:
        UserError: such an option was given.
    """
    names = {parameter.name for parameter in context.command.params if parameter.name}
    refuse(context, names - _OF_RESUMING, "--resume continues a run with its own settings")


Patchset = Annotated[
    str,
    typer.Option(
        "--patchset",
        "-p",
        metavar="NAME",
        help="Group or prefix of the series, or baseline: e.g. core-only, core-only:5, full.",
        autocompletion=completion.patchsets,
    ),
]
Source = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="PATH",
        help="Kernel git tree (PATH#REF) or its URL, directory, tarball, PACKAGE=VERSION or debian:7.3; "
        "default: Debian's source package.",
    ),
]
SeriesDirectory = Annotated[
    Path | None,
    typer.Option(
        "--series",
        metavar="SERIES",
        help="Another series: a directory with a series.toml or patches, an mbox, a Maildir, or TREE#BASE..TIP.",
    ),
]
Kernel = Annotated[
    str | None,
    typer.Option(
        "--kernel",
        metavar="BZIMAGE",
        help="Boot this kernel, built elsewhere, instead of a patchset.",
    ),
]
Vmlinux = Annotated[
    str | None,
    typer.Option(
        "--vmlinux",
        metavar="VMLINUX",
        help="The vmlinux of --kernel; its build ID is compared with the guest's, and gdb reads it.",
    ),
]
GuestPatchset = Annotated[
    str | None,
    typer.Option(
        "--patchset",
        "-p",
        metavar="NAME",
        help="Group or prefix of the series, or baseline: e.g. core-only, core-only:5, full.",
        autocompletion=completion.patchsets,
    ),
]
Topology = Annotated[
    str,
    typer.Option(
        "--topology",
        "-t",
        metavar="TOPOLOGY",
        help="NODESxMEMORY[/CPUS per node], e.g. 4x2G, 2x1G/4, 2x2G/2+1x0/1.",
    ),
]
Accelerator = Annotated[
    str, typer.Option("--accel", "-a", metavar="NAME", help="Accelerator: auto, icount, tcg or kvm.")
]


def _use_qemu(context: typer.Context, given: Path | None) -> Path | None:
    """Let all guests of this command run in the QEMU of ``--qemu``."""
    if given is not None and not context.resilient_parsing:
        from orchestrator.cli.terminal import terminal_of
        from orchestrator.machine.accelerator import qemu_at

        terminal_of(context).qemu = qemu_at(given)
    return given


Qemu = Annotated[
    Path | None,
    typer.Option(
        "--qemu",
        metavar="PATH",
        help="Use this qemu-system-x86_64 instead of the one in $PATH, e.g. one you built.",
        callback=_use_qemu,
    ),
]
Flavour = Annotated[
    str,
    typer.Option(
        "--config",
        metavar="NAME",
        help="Kernel configuration: measure, debug-vm, debug-locks or a FILE.config with options to add to the base.",
        autocompletion=completion.configurations,
    ),
]
ConfigSet = Annotated[
    list[str] | None,
    typer.Option(
        "--config-set",
        metavar="CONFIG_X=VALUE",
        help="Set an option of the kernel configuration to y, n, m or a value; repeatable.",
    ),
]
Compiler = Annotated[
    str | None,
    typer.Option("--cc", metavar="NAME", help="Compiler of the kernel: gcc, the default, or clang."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE,...",
        help="Set a knob, a sysctl such as vm.swappiness or a file below /sys after boot; in `run`, several values "
        "make a sweep.",
        autocompletion=completion.settings,
    ),
]
KeepOnFailure = Annotated[
    bool,
    typer.Option(
        "--keep-on-failure",
        help="Keep a guest whose kernel or workload failed, stopped, and print how to attach gdb; Ctrl-C ends it.",
    ),
]
Swap = Annotated[
    str | None,
    typer.Option(
        "--swap",
        metavar="SIZE",
        help="Add a compressed swap device (zram) of this size after boot, e.g. 512M; short for --set swap=SIZE.",
    ),
]
Cmdline = Annotated[
    list[str] | None,
    typer.Option(
        "--cmdline", metavar="PARAMETER", help="Kernel parameter to add to the command line; repeatable."
    ),
]
CopyIn = Annotated[
    list[str] | None,
    typer.Option(
        "--copy-in",
        metavar="HOST[:GUEST]",
        help="With cmd:, a file or directory to copy into the guest, with its shared libraries; default: into the "
        "directory where the command runs. Repeatable.",
    ),
]
CopyOut = Annotated[
    list[str] | None,
    typer.Option(
        "--copy-out",
        metavar="GUEST",
        help="With cmd:, a file of the guest to keep in the logs of the cell; repeatable.",
    ),
]
OwnMetric = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="NAME=REGEX",
        help="With cmd:, a number that the command prints; NAME,UNIT,higher=REGEX makes it a primary metric. "
        "Repeatable.",
    ),
]
Workloads = Annotated[
    list[Path] | None,
    typer.Option(
        "--workloads",
        metavar="DIR",
        help="Directory with workloads of your own (NAME/NAME.toml), beside ~/.config/orchestrate/workloads; "
        "repeatable.",
    ),
]
Sample = Annotated[
    list[str] | None,
    typer.Option(
        "--sample",
        metavar="NAME",
        help="Read more than the usual counters: psi, memcg, pagetypeinfo, slabinfo, processes (smaps_rollup of each "
        "process of the workload), or files below /proc or /sys. Repeatable.",
    ),
]
Profile = Annotated[
    bool,
    typer.Option(
        "--profile",
        help="Count guest instructions per kernel function during the workload (with --accel icount), and show which "
        "functions grew.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
BuildJobs = Annotated[
    int | None,
    typer.Option(
        "--build-jobs", metavar="N", help="Number of parallel make jobs; default: number of CPUs.", min=1
    ),
]
Logs = Annotated[
    Path | None,
    typer.Option(
        "--logs",
        metavar="DIR",
        help="Keep the guest's console log and QEMU's command line in this directory.",
        file_okay=False,
    ),
]
Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run directory, its name, or `latest`.",
        autocompletion=completion.runs,
    ),
]

Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", help="Timeout per workload, in seconds of host time."),
]
Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        help="Resume an interrupted run: do only what is missing.",
        autocompletion=completion.runs,
    ),
]
Name = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="Name of the run, used in the name of its directory."),
]

DEFAULT_TOPOLOGY = defaults.TOPOLOGY

#: Names for help texts, repeated here because the modules that define them are slow to import. Tests check that
#: they agree.
PROFILES = "mixed, fork, mremap, pressure, zero-page, khugepaged"
PATTERNS = "mixed, one, random, fixed, geometric, dense"
SUITES = (
    "reservations, reservations-swap, reservations-classic, reservations-classic-swap, reservations-init, "
    "selftests-1, selftests, stress, races, stress-classic-swap, hostile"
)
CHECKS = "applies, checkpatch, build, THP=n, NUMA=n, MEMCG=n, sparse, boots, smoke, names"
MORE_CHECKS = "kernel-doc, arm64-64k, i386, powerpc64le, clang, W=1"
