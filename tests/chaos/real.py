# SPDX-License-Identifier: GPL-2.0-only
"""A run with real kernels and real guests, one of which loses its QEMU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random

from trial import ENDS_S, MARK, ROOT, figures_of

_TIMEOUT_S = 600.0
_WORDS = (
    "run", "-p", "core-only", "-w", "touch:memory=8M", "-n", "1", "-j", "2", "-t", "1x512M/1", "-a", "tcg",
    "--set", "promotion_threshold=1",
)  # fmt: skip


def try_real(root: Path, random: Random) -> list[str]:
    """Kill one QEMU at a random moment of its life, and resume the run.

    Returns:
        What did not hold.
    """
    for name in ("results", "tmp"):
        (root / name).mkdir(parents=True)
    mark = f"{os.getpid()}-{root.name}"
    environment = os.environ | {
        "ORCHESTRATE_RESULTS": str(root / "results"),
        "TMPDIR": str(root / "tmp"),
        "XDG_RUNTIME_DIR": str(root / "tmp"),
        "PYTHONPATH": str(ROOT),
        MARK: mark,
    }
    with (root / "output").open("w+b") as output:

        def start(*words: str) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-m", "orchestrator", *words],
                cwd=ROOT, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

        command = start(*_WORDS)
        began = time.monotonic()
        while not (machines := _machines(mark)) and command.poll() is None:
            if time.monotonic() > began + _TIMEOUT_S:
                break
            time.sleep(0.05)
        time.sleep(random.uniform(0, 10))
        machines = _machines(mark) or machines
        problems = [] if machines else ["no guest was started"]
        for pid in machines[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, random.choice((signal.SIGKILL, signal.SIGTERM)))
        status = command.wait(_TIMEOUT_S)
        if status not in (0, 1):
            problems.append(f"exit status {status} instead of 0 or 1")
        (run,) = (root / "results").iterdir()
        kept, outcomes = figures_of(run)
        if bad := set(outcomes.values()) - {"ok", "lost"}:
            problems.append(f"outcomes {sorted(bad)}")
        status = start("run", "--resume", run.name, "-j", "2").wait(_TIMEOUT_S)
        figures, ended = figures_of(run)
        if status not in (0, 3):  # nanoseconds of single boots may look like a regression
            problems.append(f"resumed: exit status {status}")
        if set(ended) != set(outcomes) or set(ended.values()) != {"ok"}:
            problems.append(f"resumed: outcomes {ended}")
        whole = {cell for cell, outcome in outcomes.items() if outcome == "ok"}
        if any(figures.get(key) != value for key, value in kept.items() if key[0] in whole):
            problems.append("figures of a cell that had ended have changed")
        until = time.monotonic() + ENDS_S
        while _machines(mark) and time.monotonic() < until:
            time.sleep(0.1)
        problems += [f"a QEMU still runs: {pid}" for pid in _machines(mark)]
        problems += [f"{path.name} is left in the temporary directory" for path in (root / "tmp").iterdir()]
        if problems:
            output.seek(0)
            problems.append(f"output:\n{output.read().decode(errors='replace')}")
    return problems


def _machines(mark: str) -> list[int]:
    """The QEMUs of this run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() not in (path / "environ").read_bytes().split(b"\0"):
                continue
            if (path / "comm").read_text().startswith("qemu-system"):
                found.append(int(path.name))
    return found
