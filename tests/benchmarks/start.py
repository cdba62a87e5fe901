# SPDX-License-Identifier: GPL-2.0-only
"""What commands cost before they do anything: CPU seconds, processes, and how soon a person sees something.

usage: python tests/benchmarks/start.py [RUN]

RUN is what ``results show`` and ``compare`` look at, `latest` by default. A dry run is measured twice: with a toy
kernel and series that are all in the cache, and with this user's own cache as it is. Each figure is the least of
three; a busy host still adds to CPU seconds, so the load is printed too. A table on stderr, JSON on stdout.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "unit")]
TIMES = 3
#: CPU seconds that a command may take; None where nothing is promised.
LIMITS = {
    "--version": 0.3,
    "--help": 0.3,
    "run --help": 0.3,
    "bisect --help": 0.3,
    "series verify --help": 0.3,
    "results list": 1.0,
    "results show RUN": 1.0,
    "compare RUN": None,
    "series list": None,
    "doctor": None,
}
DRY_RUN_LIMIT = 1.5


def measured(arguments: list[str], environment: dict[str, str]) -> dict[str, float]:
    """CPU seconds with those of all children, wall seconds, and seconds until the first byte appeared."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    process.stdout.read(1)
    first = time.monotonic() - began
    process.stdout.read()
    process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_s": cpu, "wall_s": time.monotonic() - began, "first_words_s": first}


def processes(arguments: list[str], environment: dict[str, str]) -> int:
    """How many programs the command starts."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "--verbose", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return sum(line.startswith("orchestrator.process: start ") for line in done.stderr.splitlines())


def row(arguments: list[str], environment: dict[str, str], limit: float | None) -> dict[str, object]:
    """The least of some measurements."""
    all_of_them = [measured(arguments, environment) for _ in range(TIMES)]
    least = {key: round(min(each[key] for each in all_of_them), 2) for key in all_of_them[0]}
    return {**least, "processes": processes(arguments, environment), "limit_cpu_s": limit}


def main() -> None:
    """Measure everything and print it."""
    run = sys.argv[1] if len(sys.argv) > 1 else "latest"
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    rows = {
        command: row(command.replace("RUN", run).split(), own, limit) for command, limit in LIMITS.items()
    }
    with tempfile.TemporaryDirectory() as place:
        other = {"ORCHESTRATE_CACHE": f"{place}/cache", "ORCHESTRATE_RESULTS": f"{place}/results"}
        with mock.patch.dict(os.environ, other), contextlib.redirect_stdout(io.StringIO()):
            from furnished_cache import dry_run

            arguments = dry_run(Path(place))
        rows["run --dry-run, all cached"] = row(arguments, {**own, **other}, DRY_RUN_LIMIT)
    rows["run --dry-run, as it is"] = row(["run", "-p", "core-only", "--dry-run"], own, DRY_RUN_LIMIT)
    print(
        f"{'command':<28} {'CPU s':>6} {'limit':>6} {'wall s':>7} {'first s':>8} {'processes':>10}",
        file=sys.stderr,
    )
    for command, each in rows.items():
        print(
            f"{command:<28} {each['cpu_s']:>6} {each['limit_cpu_s'] or '':>6} {each['wall_s']:>7} "
            f"{each['first_words_s']:>8} {each['processes']:>10}",
            file=sys.stderr,
        )
    print(json.dumps({"load": os.getloadavg(), "cpus": os.cpu_count(), "commands": rows}, indent=2))


if __name__ == "__main__":
    main()
