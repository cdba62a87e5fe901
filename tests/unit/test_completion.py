# SPDX-License-Identifier: GPL-2.0-only
"""What the shell offers for a value, asked as a shell asks it, and that the answer takes no heavy import."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from synthetic_run import Synthetic

ROOT = Path(__file__).resolve().parents[2]
#: As the program is started, but with a line that says what was imported. It forks for each line that it is asked,
#: since starting Python takes longer than an answer.
PROGRAM = """
import atexit, json, os, sys
heavy = ("pandas", "pyarrow", "numpy", "scipy", "matplotlib", "paramiko")
from orchestrator.cli.application import main
for line in json.load(sys.stdin):
    if os.fork() == 0:
        os.environ.update(COMP_WORDS=line, COMP_CWORD=str(line.count(" ")))
        atexit.register(lambda: print("imported:", *[name for name in heavy if name in sys.modules]))
        main()
        os._exit(1)  # it exits itself
    os.wait()
"""


def offered(lines: Sequence[str], results: Path, root: Path = ROOT) -> list[list[str]]:
    """The answers to the Tab key behind each line, the last word of which is incomplete."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ORCHESTRATE_ROOT": str(root),
        "ORCHESTRATE_RESULTS": str(results),
        "_ORCHESTRATE_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(list(lines)),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    # One that imported something heavy has a name behind the colon.
    *answers, rest = re.split(r"^imported:\n", done.stdout, flags=re.MULTILINE)
    assert rest == "" and len(answers) == len(lines)
    return [[word for word in answer.splitlines() if word] for answer in answers]


#: Line -> what is offered.
VALUES: dict[str, list[str]] = {
    "orchestrate run -p me": ["memcg"],
    "orchestrate check --patchset base": ["baseline"],
    "orchestrate boot -p core-only:": [f"core-only:{number}" for number in range(1, 10)],
    "orchestrate boot -p stage-1": ["stage-1", *(f"stage-{number}" for number in range(10, 20))],
    "orchestrate bisect -p fu": ["full"],
    "orchestrate run -w fault": ["fault_latency"],
    "orchestrate run -w fault_latency:order": [f"fault_latency:order={o}" for o in ("sequential", "random")],
    "orchestrate run -w chunk:size=quick,adv": [f"chunk:size=quick,advice={a}" for a in
                                                ("none", "hugepage", "nohugepage")],
    "orchestrate run --set promotion": [f"promotion_threshold={value}" for value in (1, 512)],
    "orchestrate run --set enabled=always,": ["enabled=always,madvise", "enabled=always,never"],
    "orchestrate test --config debug": ["debug-locks", "debug-vm"],
    "orchestrate run -p nonsense": [],
    "orchestrate run -w nonsense:": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def offered_values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return dict(zip(VALUES, offered(list(VALUES), tmp_path_factory.mktemp("results")), strict=True))


@pytest.mark.parametrize("line", VALUES)
def test_values(line: str, offered_values: dict[str, list[str]]) -> None:
    assert offered_values[line] == VALUES[line]


def test_runs(tmp_path: Path) -> None:
    run = Synthetic(repeat=1, histograms=False).write(tmp_path)
    commands = ("compare", "results show", "report", "run --resume", "simulate --run")
    typed = offered([f"orchestrate {command} {run.name[:5]}" for command in commands], tmp_path)
    assert typed == [[run.name]] * len(commands)
    nothing_yet = offered([f"orchestrate {command} " for command in commands], tmp_path)
    assert nothing_yet == [["latest", run.name]] * len(commands)


def test_a_project_that_cannot_be_read_offers_nothing(tmp_path: Path) -> None:
    assert offered(["orchestrate run -p "], tmp_path, root=tmp_path / "none") == [[]]
