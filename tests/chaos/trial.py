# SPDX-License-Identifier: GPL-2.0-only
"""One trial: a run in a place of its own, a fault that strikes it, `--resume`, and what has to hold then."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fake_tree import write_series, write_tree

from orchestrator.cache import damage

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
#: Environment variable that every process of a trial inherits.
MARK = "ORCHESTRATE_CHAOS"
#: Host seconds after which a command hangs, and for what it leaves behind to end.
HANGS_S = 240.0
ENDS_S = 15.0
#: Bytes of each file system of a place whose disks can be filled.
DISK_BYTES = 64 << 20
#: What ccache and Dask keep in the temporary directory.
_OF_OTHERS = ("ccache-tmp", "dask-scratch-space")
DISKS = ("results", "cache", "tmp")

Figures = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Ended:
    """A command that ended.

    Args:
        status: exit status, the negative number of the signal that killed it, or None if it hung and was killed.
        text: what it printed.
        seconds: host seconds that it took.
    """

    status: int | None
    text: str
    seconds: float


class Sandbox:
    """The directories of a trial: sources, series, cache, results, temporary files, and the program QEMU.

    Args:
        root: made anew. The source and the series are beside it, shared with other places.
        mark: tells the processes of this place from all others.
    """

    def __init__(self, root: Path, mark: str) -> None:
        self.root, self.mark = root, mark
        self.source, self.series = root.parent / "linux", root.parent / "patches"
        self.cache, self.results, self.tmp = root / "cache", root / "results", root / "tmp"
        self.clock = root / "clock"
        self.library: Path | None = None
        self._mounted: list[Path] = []
        if not self.source.exists():  # the first one
            write_tree(self.source)
            write_series(self.series)
        for path in (self.cache, self.results, self.tmp, root / "bin"):
            path.mkdir(parents=True)
        program = root / "bin" / "qemu-system-x86_64"
        # Questions about QEMU itself are answered at once; Python takes a while to start.
        program.write_text(
            "#!/bin/sh\n"
            'case "$*" in --version) echo "QEMU emulator version 7.2.22"; exit ;;\n'
            '"-cpu help") echo max; exit ;; esac\n'
            f'exec {sys.executable} {HERE / "fake_machine.py"} "$@"\n'
        )
        program.chmod(0o755)

    def mount(self) -> None:
        """Give cache, results and temporary files small file systems of their own; for root in a mount namespace."""
        for name in DISKS:
            path = self.root / name
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "chaos", str(path)], check=True
            )
            self._mounted.append(path)

    def take_cache(self, warm: Path) -> None:
        """Begin with a cache that has everything."""
        shutil.copytree(warm, self.cache, dirs_exist_ok=True, symlinks=True)

    def remove(self) -> None:
        """Remove everything, and end what was left behind."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in self._mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=False)
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every program of this place."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATE_")}
        paths = [str(ROOT), str(HERE), str(ROOT / "tests" / "unit")]
        own |= {
            "PATH": f"{self.root / 'bin'}:{own['PATH']}",
            "PYTHONPATH": ":".join(paths),
            "ORCHESTRATE_ROOT": str(ROOT),
            "ORCHESTRATE_CACHE": str(self.cache),
            "ORCHESTRATE_RESULTS": str(self.results),
            "TMPDIR": str(self.tmp),
            "XDG_RUNTIME_DIR": str(self.tmp),
            "CCACHE_DISABLE": "1",
            MARK: self.mark,
        }
        if self.library is not None:
            own |= {"LD_PRELOAD": str(self.library), "ORCHESTRATE_CLOCK": str(self.clock)}
        return own

    def run_words(self, *more: str) -> list[str]:
        """The command that the trials strike: three cells, two at a time."""
        return [
            "run", "-p", "core-only", "-w", "touch", "-n", "1", "-j", "2", "-t", "1x512M/1", "-a", "tcg",
            "--build-jobs", "1", "--source", str(self.source), "--series", str(self.series), *more,
        ]  # fmt: skip

    def start(self, words: Sequence[str], limits: Mapping[int, int] | None = None) -> RunningCommand:
        """Start a command of the tool in its own process group."""
        return RunningCommand(self, words, limits or {})

    def processes(self, *, of: str | None = None) -> list[int]:
        """The processes that were started for this place and have not ended."""
        wanted = f"{MARK}={of or self.mark}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def machines(self) -> list[int]:
        """The processes that stand for QEMU."""
        found = []
        for pid in self.processes():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if any(word.endswith(b"fake_machine.py") for word in words[:3]):
                    found.append(pid)
        return found

    def runs(self) -> list[Path]:
        """The run directories, those that have no run.json yet left out."""
        return sorted(path.parent for path in self.results.glob("*/run.json"))


class RunningCommand:
    """A command of the tool while it runs."""

    def __init__(self, place: Sandbox, words: Sequence[str], limits: Mapping[int, int]) -> None:
        import resource

        def limit() -> None:
            for number, value in limits.items():
                resource.setrlimit(number, (value, value))

        self.began = time.monotonic()
        self._output = (place.root / f"output-{time.monotonic_ns()}").open("w+b")
        self._process = subprocess.Popen(
            [
                sys.executable,
                str(HERE / "seam.py"),
                *os.environ.get("ORCHESTRATE_CHAOS_DEBUG", "").split(),
                *words,
            ],
            cwd=place.root,
            env=place.environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=limit if limits else None,
        )
        self.pid = self._process.pid

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def handles_signals(self) -> bool:
        """Whether it has come so far that SIGTERM has a handler; before, Python is still starting."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return False
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)

    def signal(self, number: int) -> None:
        """Send a signal to its process group, as a terminal does."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self) -> Ended:
        """Wait until it ends; kill it if it hangs."""
        status: int | None
        try:
            status = self._process.wait(HANGS_S)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self._process.wait()
            status = None
        self._output.seek(0)
        text = self._output.read().decode(errors="replace")
        self._output.close()
        return Ended(status, text, time.monotonic() - self.began)


@dataclass
class Injection:
    """What a fault gets to strike.

    Args:
        moment_s: host seconds after the start of the command at which it strikes.
        words: command line of the tool.
        limits: limits of resources that the command starts with: RLIMIT number -> value.
        notes: what the fault did.
    """

    place: Sandbox
    random: random.Random
    moment_s: float
    words: list[str]
    limits: dict[int, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def sleep_until_moment(self, command: RunningCommand) -> bool:
        """Wait for the moment, and for the command to have begun; False if it ends before."""
        while time.monotonic() < command.began + self.moment_s or not command.handles_signals:
            if not command.runs:
                return False
            time.sleep(0.01)
        return command.runs


def figures_of(run: Path) -> tuple[Figures, dict[str, str]]:
    """The figures of a run, and the outcome per cell; a cell with two outcomes gets both, joined."""
    import pandas as pd

    metrics = pd.read_parquet(run / "metrics.parquet")
    values = {
        (str(cell), str(metric)): float(value)
        for cell, metric, value in zip(metrics["cell"], metrics["metric"], metrics["value"], strict=True)
    }
    outcomes: dict[str, str] = {}
    cells = pd.read_parquet(run / "cells.parquet")
    for cell, outcome in zip(cells["cell"], cells["outcome"], strict=True):
        outcomes[cell] = f"{outcomes[cell]} and {outcome}" if cell in outcomes else str(outcome)
    return values, outcomes


def recorded_outcomes(run: Path) -> dict[str, str]:
    """The outcomes that are recorded so far, without those that cannot be read."""
    found = {}
    for path in run.glob("parts/*/cell.json"):
        if ".attempt-" not in path.parent.name and not path.parent.name.startswith("."):
            with suppress(OSError, ValueError, KeyError):
                found[path.parent.name] = str(json.loads(path.read_text())["outcome"])
    return found


def left_processes(place: Sandbox) -> Iterator[str]:
    """What still runs some time after the command has ended."""
    until = time.monotonic() + ENDS_S
    while time.monotonic() < until:
        if not place.processes():
            return
        time.sleep(0.1)
    for pid in place.processes():
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            yield f"a process still runs: {words[:120]}"


def left_files(place: Sandbox) -> Iterator[str]:
    """Sockets, temporary directories and files that were not finished."""
    for path in place.tmp.iterdir():
        if path.name in _OF_OTHERS:
            continue
        yield f"{path.name} is left in the temporary directory"
    for path in place.cache.glob("*/.*-*"):
        yield f"a half-made entry is left in the cache: {path.relative_to(place.cache)}"
    for path in place.cache.glob("*/*/.*.json-*"):
        yield f"a half-written file is left in the cache: {path.relative_to(place.cache)}"
    for path in place.cache.glob("*/*/key.json"):
        fault = damage(path.parent)
        if fault is not None:
            yield f"{path.parent.relative_to(place.cache)} in the cache is damaged: {fault}"
    for path in place.results.rglob(".*"):
        if path.name != ".lock":
            yield f"a half-written file is left in the run: {path.relative_to(place.results)}"
    for path in place.results.iterdir():
        if not (path / "run.json").is_file():
            yield f"{path.name} is a run directory without run.json"
