# SPDX-License-Identifier: GPL-2.0-only
"""What the shell offers for a value, asked as a shell asks it, and that the answer takes no heavy import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_run import Synthetic

ROOT = Path(__file__).resolve().parents[2]
#: As the program is started, but with a line that says what was imported.
PROGRAM = """
import atexit, sys
heavy = ("pandas", "pyarrow", "numpy", "scipy", "matplotlib", "paramiko")
atexit.register(lambda: print("imported:", *[name for name in heavy if name in sys.modules]))
from orchestrator.cli.application import main
main()
"""


def offered(line: str, results: Path, root: Path = ROOT) -> list[str]:
    """The answers to the Tab key behind `line`, the last word of which is incomplete."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ORCHESTRATE_ROOT": str(root),
        "ORCHESTRATE_RESULTS": str(results),
        "_ORCHESTRATE_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    *answers, imported = filter(None, done.stdout.splitlines())
    assert imported == "imported:"
    return answers


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("orchestrate run -p me", ["memcg"]),
        ("orchestrate check --patchset base", ["baseline"]),
        ("orchestrate boot -p core-only:", [f"core-only:{number}" for number in range(1, 10)]),
        ("orchestrate boot -p stage-1", ["stage-1", *(f"stage-{number}" for number in range(10, 20))]),
        ("orchestrate bisect -p fu", ["full"]),
        ("orchestrate run -w fault", ["fault_latency"]),
        ("orchestrate run -w fault_latency:order", [f"fault_latency:order={o}" for o in ("sequential", "random")]),
        ("orchestrate run -w chunk:size=quick,adv", [f"chunk:size=quick,advice={a}" for a in
                                                     ("none", "hugepage", "nohugepage")]),
        ("orchestrate run --set promotion", [f"promotion_threshold={value}" for value in (1, 512)]),
        ("orchestrate run --set enabled=always,", ["enabled=always,madvise", "enabled=always,never"]),
        ("orchestrate test --config debug", ["debug-locks", "debug-vm"]),
        ("orchestrate run -p nonsense", []),
        ("orchestrate run -w nonsense:", []),
    ],
)  # fmt: skip
def test_values(line: str, expected: list[str], tmp_path: Path) -> None:
    assert offered(line, tmp_path) == expected


@pytest.mark.parametrize("command", ["compare", "results show", "report", "run --resume", "simulate --run"])
def test_runs(command: str, tmp_path: Path) -> None:
    run = Synthetic(repeat=1, histograms=False).write(tmp_path)
    assert offered(f"orchestrate {command} ", tmp_path) == ["latest", run.name]
    assert offered(f"orchestrate {command} {run.name[:5]}", tmp_path) == [run.name]


def test_a_project_that_cannot_be_read_offers_nothing(tmp_path: Path) -> None:
    assert offered("orchestrate run -p ", tmp_path, root=tmp_path / "none") == []
