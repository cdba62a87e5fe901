# SPDX-License-Identifier: GPL-2.0-only
"""Plants a fault between two stages of a series: in a copy, which ``--series`` takes.

tests/planted/plant.py crash /tmp/with-a-crash
orchestrate bisect --series /tmp/with-a-crash --patchset full --workload churn:size=quick --until kernel-bug
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

HERE = Path(__file__).resolve().parent
SERIES = HERE.parents[1] / "kernel_patches"

#: Fault -> number of the stage that it comes after; it is the next stage of the copy.
AFTER: Final[Mapping[str, int]] = {
    "crash": 6,
    "latency": 8,
    "flaky": 10,
    "drift": 13,
    # For tests of correctness, on top of the whole series.
    **dict.fromkeys(("unzeroed", "leak", "tails", "twice", "holes", "inversion"), 19),
}


def plant(fault: str, directory: Path, series: Path = SERIES) -> int:
    """Copy a series and add a fault as a stage, named after it, in the group of the stage before it.

    Args:
        directory: of the copy; there must be nothing.
        series: what is copied: a directory with a ``series.toml``.

    Returns:
        The number of the planted stage.
    """
    shutil.copytree(series, directory)
    text = (directory / "series.toml").read_text(encoding="utf-8")
    base = re.search(r'^directory = "([^"]+)"', text, re.MULTILINE)
    assert base is not None
    shutil.copy(HERE / f"{fault}.patch", directory / base[1])
    after = AFTER[fault]
    head, *stages = re.split(r"(?m)^(?=\[\[stage\]\])", text)
    last, knobs = re.split(r"(?m)^(?=\[\[knob\]\])", stages[-1], maxsplit=1)
    stages[-1] = last
    group = re.search(r'^group = "([^"]+)"', stages[after - 1], re.MULTILINE)
    assert group is not None
    planted = (
        f'[[stage]]\nnumber = 0\nname = "{fault}"\ngroup = "{group[1]}"\npatch = "{fault}.patch"\n'
        f'title = "mm: planted: {fault}"\nknobs = []\ncounters = []\n\n'
    )
    stages.insert(after, planted)
    numbered = [
        re.sub(r"(?m)^number = [0-9]+$", f"number = {number}", stage)
        for number, stage in enumerate(stages, 1)
    ]
    (directory / "series.toml").write_text("".join([head, *numbered, knobs]), encoding="utf-8")
    return after + 1


def main() -> None:
    """Plant what the command line names."""
    parser = argparse.ArgumentParser(description="Copy the series, with a fault planted in it.")
    parser.add_argument("fault", choices=AFTER)
    parser.add_argument("directory", type=Path, help="of the copy; must not exist")
    arguments = parser.parse_args()
    if arguments.directory.exists():
        parser.error(f"{arguments.directory} exists; name a directory that does not.")
    number = plant(arguments.fault, arguments.directory)
    parser.exit(message=f"stage {number} of {arguments.directory} is the fault\n")


if __name__ == "__main__":
    main()
