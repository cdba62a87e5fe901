# SPDX-License-Identifier: GPL-2.0-only
"""Options that several commands take, spelt and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Patchset = Annotated[
    str,
    typer.Option(
        "--patchset", "-p", help="Group or stage of the series, e.g. core-only, core-only:5, baseline."
    ),
]
Source = Annotated[
    str | None,
    typer.Option("--source", help="Kernel git tree, directory or tarball; default: Debian's source package."),
]
SeriesDirectory = Annotated[
    Path | None,
    typer.Option("--series", metavar="DIR", help="Directory of another series, with its series.toml."),
]
Topology = Annotated[
    str, typer.Option("--topology", "-t", help="NODESxMEMORY[/CPUS], e.g. 4x2G, 2x1G/4, 2x2G/2+1x0/1.")
]
Accelerator = Annotated[str, typer.Option("--accel", "-a", help="auto, icount, tcg or kvm.")]
Flavour = Annotated[
    str, typer.Option("--config", help="Kernel configuration: measure, debug-vm or debug-locks.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="KEY=VALUE[,VALUE...]: a sysfs knob; a list is a sweep."),
]
Cmdline = Annotated[list[str] | None, typer.Option("--cmdline", help="Kernel parameter; repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")]
BuildJobs = Annotated[
    int | None, typer.Option("--build-jobs", help="Parallel jobs of make; default: all CPUs.", min=1)
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run directory, its name, or `latest`.")]

DEFAULT_TOPOLOGY = "4x2G"
