# SPDX-License-Identifier: GPL-2.0-only
"""``docs/first-steps.md`` says what the program says: the marks, a real row, and an example that works."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from orchestrator.analysis.comparison import compare
from orchestrator.analysis.notation import MARKS, meanings
from orchestrator.analysis.table import to_text
from orchestrator.guest.workload import load_workload, observations_of, parse_output
from orchestrator.store.run import Run

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "first-steps.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def block(language: str, beginning: str = "") -> str:
    texts: list[str] = [text for kind, text in BLOCKS if kind == language]
    return next(text for text in texts if text.lstrip().startswith(beginning))


def test_marks_are_explained_in_the_words_of_the_legend() -> None:
    known = meanings("0.50%")
    assert set(known) == set(MARKS.values())
    for mark, meaning in known.items():
        assert f"| `{mark}` | {meaning} |" in TEXT


def test_the_row_is_one_of_a_stored_run() -> None:
    run = ROOT / "results" / "reference-core-only"
    stored = (run / "comparison.txt").read_text(encoding="utf-8").splitlines()
    for line in block("", "baseline").splitlines():
        assert line in stored
    for line in block("", "touch_insns").splitlines():
        assert line in to_text(compare(Run.open(run)), width=60).splitlines()


def test_the_example_of_a_workload_works(tmp_path: Path) -> None:
    manifest = tmp_path / "protect" / "protect.toml"
    manifest.parent.mkdir()
    manifest.write_text(block("toml"), encoding="utf-8")
    source = manifest.with_suffix(".c")
    source.write_text(block("c"), encoding="utf-8")
    workload, program = load_workload(manifest), tmp_path / "program"
    common = ROOT / "guest_workloads" / "common"
    flags = ["-std=gnu11", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror", f"-I{common}"]
    sources = [source, *common.glob("*.c")]
    subprocess.run(["gcc", *flags, *map(str, sources), "-lm", "-o", str(program)], check=True)
    defaults = {name: parameter.default for name, parameter in workload.parameters.items()}
    values = {**defaults, **workload.quick}
    options = [part for name, value in values.items() for part in (f"--{name}", value)]
    argv = [str(program), "--seed", "1", "--clock", "ns", *options]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    records, fault = parse_output(done.stdout)
    assert fault is None
    observed = {each.metric: each.value for each in observations_of(records, workload, "ns")}
    assert set(observed) == {name.replace("{clock}", "ns") for name in workload.metrics}
    assert observed["protect_ns.mean"] > 0
