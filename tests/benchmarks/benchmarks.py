# SPDX-License-Identifier: GPL-2.0-only
"""How fast the tool is, each benchmark beside something that does the same work without it, in the same minutes.

A ratio of two times holds on a slow and on a busy host, as a time does not. `budget.toml` has the ratio of each
benchmark; one that is more than 20 % worse is reported. Prints a table on stderr and JSON on stdout.

usage: tests/benchmarks/run [--only NAME]... [--rounds N] [--keep]
       --keep   write the ratios of this run into budget.toml
Exit status: 0 if every ratio is within its budget, else 3.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator.cache import Cache
from orchestrator.events import Events
from orchestrator.execution.bench import Bench
from orchestrator.machine.console import READY
from orchestrator.machine.oops import parse_console
from orchestrator.project import Project

ROOT = Path(__file__).resolve().parents[2]
BUDGET = Path(__file__).with_name("budget.toml")
#: How much worse than its budget a ratio may be.
TOLERANCE = 1.2
_PATCHSET = "baseline"
_CONSOLE_BYTES = 50 << 20


@dataclass(frozen=True)
class Measured:
    """One benchmark.

    Args:
        value: what the tool takes, in `unit`.
        beside: what it is compared with takes.
        other: name of that.
        ratio: value by beside; lower is better.
    """

    name: str
    value: float
    unit: str
    beside: float
    other: str

    @property
    def ratio(self) -> float:
        return self.value / self.beside


def _tool(
    *words: str, environment: dict[str, str] | None = None, program: Sequence[str] = ("-m", "orchestrator")
) -> float:
    """Host seconds of a command of the tool."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *program, *words], cwd=ROOT, env={**os.environ, **(environment or {})},
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"orchestrate {' '.join(words)}: status {done.returncode}\n{done.stderr}")
    return time.monotonic() - began


def _bare_boot(bench: Bench) -> float:
    """Host seconds in which QEMU alone boots the same kernel and image, until the guest says that it is up."""
    argv = [
        "qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35",
        *bench.accelerator.qemu_arguments, "-m", "512M", "-smp", "1", "-no-reboot", "-serial", "stdio",
        "-kernel", str(bench.kernel(_PATCHSET).bzimage), "-initrd", str(bench.image.initramfs),
        "-append", "console=ttyS0,115200 panic=-1 no_timer_check",
        "-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile=",
        "-device", "virtio-rng-pci",
    ]  # fmt: skip
    began = time.monotonic()
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True
    ) as qemu:
        assert qemu.stdout
        try:
            for line in qemu.stdout:
                if READY.encode() in line:
                    return time.monotonic() - began
            raise SystemExit("QEMU alone does not boot the kernel")
        finally:
            os.killpg(qemu.pid, signal.SIGKILL)


def boot(rounds: int) -> list[Measured]:
    """A boot until SSH answers, and the whole of `exec -- true`, beside QEMU alone."""
    found = []
    for accelerator in ("tcg", "icount"):
        bench = Bench(Project(ROOT), Cache.default(), Events(), accelerator_request=accelerator)
        bare, boots, execs = [], [], []
        for _ in range(rounds):
            bare.append(_bare_boot(bench))
            with tempfile.TemporaryDirectory() as place:
                logs = Path(place) / "logs"
                words = ["exec", "-p", _PATCHSET, "-t", "1x512M/1", "-a", accelerator]
                execs.append(_tool(*words, "--logs", str(logs), "--", "true"))
            from orchestrator.machine.topology import Topology

            with (
                tempfile.TemporaryDirectory() as place,
                bench.boot(
                    bench.kernel(_PATCHSET), Topology.parse("1x512M/1"), log_directory=Path(place)
                ) as booted,
            ):
                boots.append(booted.boot_s)
        least = min(bare)
        found.append(Measured(f"boot {accelerator}", min(boots), "s", least, "QEMU alone"))
        found.append(Measured(f"exec {accelerator}", min(execs), "s", least, "QEMU alone"))
    return found


def console(rounds: int) -> list[Measured]:
    """Reports in a console log of 50 MiB, beside a search of it for one word; and the memory that it takes."""
    text = _console_text()
    times, searches = [], []
    for _ in range(rounds):
        began = time.process_time()
        parse_console(text)
        times.append(time.process_time() - began)
        began = time.process_time()
        sum(1 for line in text.splitlines() if re.search(r"\bBUG\b", line))
        searches.append(time.process_time() - began)
    with tempfile.TemporaryDirectory() as place:
        log = Path(place) / "console.log"
        log.write_text(text)
        peak = _peak_bytes(log)
    return [
        Measured("parse 50 MiB of console", min(times), "s", min(searches), "a search by line"),
        Measured("memory to parse 50 MiB", peak / 2**20, "MiB", _CONSOLE_BYTES / 2**20, "the log"),
    ]


def _console_text() -> str:
    lines = [
        f"[{number / 1000:12.6f}] systemd[1]: Started a service of number {number}, as planned.\n"
        for number in range(1000)
    ]
    part = "".join(lines) + (
        "[    1.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000\n"
        "[    1.000001] Oops: Oops: 0000 [#1] SMP NOPTI\n"
        "[    1.000002] RIP: 0010:made_up+0x10db/0x1290\n"
        "[    1.000003] ---[ end trace 0000000000000000 ]---\n"
    )
    return part * (_CONSOLE_BYTES // len(part))


def _peak_bytes(log: Path) -> int:
    """Memory that a process grows by when it reads the reports of a log."""
    # proc_pid_clear_refs(5): 5 sets the peak back to what is in use now.
    script = (
        "import re, sys; from pathlib import Path\n"
        "from orchestrator.machine.oops import parse_console_file as parse\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "parse(Path('/dev/null')); Path('/proc/self/clear_refs').write_text('5'); before = peak()\n"
        "found = parse(Path(sys.argv[1])); assert found; print(1024 * (peak() - before))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(log)], cwd=ROOT, check=True, capture_output=True)
    return int(done.stdout)


def model(rounds: int) -> list[Measured]:
    """10,000 operations of the reference model, beside 1,000,000 turns of a loop in Python."""
    from model_speed import touches

    from orchestrator.execution.check.reference import model_of
    from orchestrator.kernel.series import load_series
    from orchestrator.machine.topology import Topology

    series, trace = load_series(ROOT / "kernel_patches"), touches(10_000)
    steps, loops = [], []
    for _ in range(rounds):
        reference = model_of("full", series, Topology.parse("1x512M/1"))(trace)
        began = time.process_time()
        for operation in trace.operations:
            reference.step(operation)
        steps.append(time.process_time() - began)
        began = time.process_time()
        table: dict[int, int] = {}
        for number in range(1_000_000):
            table[number & 511] = number
        loops.append(time.process_time() - began)
    return [Measured("model, 10,000 operations", min(steps), "s", min(loops), "a loop of Python")]


def cells(rounds: int) -> list[Measured]:
    """Cells with stand-ins for guests: two at a time, and on a Dask worker, beside one at a time."""
    from random import Random

    from fault import _end_cluster, _start_cluster
    from trial import Injection, Sandbox

    with tempfile.TemporaryDirectory() as directory:
        place = Sandbox(Path(directory) / "place", f"{os.getpid()}-benchmark")
        seam = str(ROOT / "tests" / "chaos" / "seam.py")
        words = [*place.run_words(), "-n", "8"]
        number = 3 * 8

        def seconds(*more: str) -> float:
            return _tool(*words, *more, environment=place.environment, program=(seam,))

        try:
            seconds("-n", "1")  # fills the cache
            one = min(seconds("-j", "1") for _ in range(rounds))
            two = min(seconds("-j", "2") for _ in range(rounds))
            trial = Injection(place, Random(1), 0, [])
            _start_cluster(trial)
            dask = min(seconds("-j", "2", *trial.words) for _ in range(rounds))
            _end_cluster(trial)
        finally:
            place.remove()
    return [
        Measured("seconds per cell, 2 jobs", two / number, "s", one / number, "1 job"),
        Measured("seconds per cell, 2 Dask workers", dask / number, "s", two / number, "2 jobs"),
    ]


BENCHMARKS: dict[str, Callable[[int], list[Measured]]] = {
    "boot": boot,
    "cells": cells,
    "console": console,
    "model": model,
}


def main() -> int:
    """Measure, compare with the budget, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=sorted(BENCHMARKS), help="repeatable")
    parser.add_argument("--rounds", type=int, default=3, help="the least of so many counts")
    parser.add_argument("--keep", action="store_true", help="write the ratios into budget.toml")
    asked = parser.parse_args()
    budget: dict[str, float] = tomllib.loads(BUDGET.read_text(encoding="utf-8"))["ratio"]
    measured = [each for name in asked.only or BENCHMARKS for each in BENCHMARKS[name](asked.rounds)]
    table = Table("benchmark", "takes", "beside", "ratio", "budget", "", box=None)
    worse = []
    for each in measured:
        allowed = budget.get(each.name)
        is_worse = allowed is not None and each.ratio > TOLERANCE * allowed
        worse += [each.name] if is_worse else []
        table.add_row(
            each.name,
            f"{each.value:.3g} {each.unit}",
            f"{each.beside:.3g} {each.unit}, {each.other}",
            f"{each.ratio:.2f}",
            "none" if allowed is None else f"{allowed:.2f}",
            "WORSE" if is_worse else "",
        )
    Console(stderr=True).print(table)
    facts = {
        "load": os.getloadavg(),
        "cpus": os.cpu_count(),
        "benchmarks": [{**asdict(each), "ratio": each.ratio, "budget": budget.get(each.name)} for each in measured],
        "worse": worse,
    }  # fmt: skip
    print(json.dumps(facts, indent=2))
    if asked.keep:
        _keep(budget | {each.name: round(each.ratio, 3) for each in measured})
    return 3 if worse else 0


def _keep(ratios: dict[str, float]) -> None:
    head = BUDGET.read_text(encoding="utf-8").partition("[ratio]")[0]
    lines = [f'"{name}" = {ratio}' for name, ratio in sorted(ratios.items())]
    BUDGET.write_text(f"{head}[ratio]\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
