# SPDX-License-Identifier: GPL-2.0-only
"""The faults that strike a run."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from trial import DISKS, HANGS_S, MARK, Injection, RunningCommand

_CLOCK = Path(__file__).with_name("jumping_clock.c")
#: Exit statuses for a run that the host failed, or that went on all the same.
HOST = frozenset({0, 1})
_WORKERS = 2


def _nothing(trial: Injection) -> None:
    """No preparation and no repair."""


@dataclass(frozen=True)
class Fault:
    """Something that happens to a run.

    Args:
        group: row of the table that it counts for.
        strike: strikes the running command at the trial's moment; returns whether it hit.
        statuses: exit statuses that the command may end with.
        prepare: called before the command starts.
        repair: called when the command has ended, before it is resumed.
        warm: whether the cache has everything before; None: either.
        needs: "mounts" (root and a mount namespace), "distributed"; empty for nothing.
        refusal: word that a refusal to resume the run has to contain; None if it has to be resumed.
        runs: number of commands at the same time.
    """

    group: str
    name: str
    strike: Callable[[Injection, RunningCommand], bool]
    statuses: frozenset[int]
    prepare: Callable[[Injection], None] = _nothing
    repair: Callable[[Injection], None] = _nothing
    warm: bool | None = None
    needs: str = ""
    refusal: str | None = None
    runs: int = 1


# --- Processes ------------------------------------------------------------------------------------------------------


def _kill_tool(number: int, trial: Injection, command: RunningCommand) -> bool:
    if not trial.sleep_until_moment(command):
        return False
    with suppress(ProcessLookupError):
        os.kill(command.pid, number)
    return True


def _interrupt(times: int, trial: Injection, command: RunningCommand) -> bool:
    if not trial.sleep_until_moment(command):
        return False
    for _ in range(times):
        command.signal(signal.SIGINT)
        time.sleep(trial.random.uniform(0.02, 0.5))
    return True


def _kill_machine(number: int, trial: Injection, command: RunningCommand) -> bool:
    trial.sleep_until_moment(command)
    while command.runs:
        machines = trial.place.machines()
        if machines:
            time.sleep(trial.random.uniform(0, 0.8))
            with suppress(ProcessLookupError):
                os.kill(trial.random.choice(machines), number)
                return True
        time.sleep(0.02)
    return False


# --- Disks ----------------------------------------------------------------------------------------------------------


def _mount(trial: Injection) -> None:
    trial.place.mount()


def _fill(disk: str, trial: Injection, command: RunningCommand) -> bool:
    if not trial.sleep_until_moment(command):
        return False
    with (trial.place.root / disk / "filler").open("wb", buffering=0) as stream:
        for size in (1 << 20, 4096):
            with suppress(OSError):
                while stream.write(bytes(size)):
                    pass
    return True


def _empty(disk: str, trial: Injection) -> None:
    (trial.place.root / disk / "filler").unlink(missing_ok=True)


def _mount_read_only(trial: Injection) -> None:
    _remount(trial, "ro")


def _remount(trial: Injection, mode: str) -> None:
    path = str(trial.place.cache)
    if mode == "ro":
        subprocess.run(["mount", "--bind", path, path], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
    else:
        subprocess.run(["umount", "--lazy", path], check=True)


def _writable(trial: Injection) -> None:
    _remount(trial, "rw")


def _is_there(trial: Injection, command: RunningCommand) -> bool:
    """The fault was there from the start."""
    return True


# --- Bits -----------------------------------------------------------------------------------------------------------


def flip(path: Path, random: Random) -> int:
    """Flip one bit of a file; return its position."""
    content = bytearray(path.read_bytes())
    position = random.randrange(8 * len(content))
    content[position // 8] ^= 1 << position % 8
    with path.open("r+b") as stream:
        stream.write(content)
    return position


def _flip_in_cache(pattern: str, trial: Injection) -> None:
    path = trial.random.choice(sorted(trial.place.cache.glob(pattern)))
    before = path.stat()
    position = flip(path, trial.random)
    if trial.random.random() < 0.5:  # the disk did it, while the host was off
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        seal = path.parent / "seal.json"
        content = json.loads(seal.read_text())
        seal.write_text(json.dumps({**content, "boot_id": "an earlier one"}))
        trial.notes.append("with the old mtime, after a boot of the host")
    trial.notes.append(f"bit {position} of {path.name}")


def _flip_in_run(pattern: str, trial: Injection) -> None:
    found = [path for run in trial.place.runs() for path in sorted(run.glob(pattern))]
    if found:
        path = trial.random.choice(found)
        trial.notes.append(f"bit {flip(path, trial.random)} of {path.name}")


# --- The clock ------------------------------------------------------------------------------------------------------


def _set_clock(trial: Injection, offset_s: float) -> None:
    working = trial.place.clock.with_name("clock-new")
    working.write_text(f"{offset_s:+.0f}\n")
    working.replace(trial.place.clock)


def _fake_clock(trial: Injection) -> None:
    library = trial.place.root / "jumping-clock.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", str(library), str(_CLOCK)], check=True)
    trial.place.library = library
    _set_clock(trial, 0)


def _jump(trial: Injection, command: RunningCommand) -> bool:
    if not trial.sleep_until_moment(command):
        return False
    for _ in range(trial.random.randint(1, 3)):
        offset_s = trial.random.choice((-1, 1)) * 10 ** trial.random.uniform(0, 8.3)
        _set_clock(trial, offset_s)
        trial.notes.append(f"by {offset_s:+.0f} s")
        time.sleep(trial.random.uniform(0.1, 1.0))
    return True


def _real_clock(trial: Injection) -> None:
    trial.place.library = None


# --- Two at once ----------------------------------------------------------------------------------------------------


def _kill_one_of_two(trial: Injection, command: RunningCommand) -> bool:
    if trial.random.random() < 0.5:
        trial.notes.append("one is killed")
        return _kill_tool(signal.SIGKILL, trial, command)
    return True


# --- Resources ------------------------------------------------------------------------------------------------------


def _limit_at_start(number: int, lowest: float, highest: float, unit: int, trial: Injection) -> None:
    value = round(trial.random.uniform(lowest, highest))
    trial.limits[number] = value * unit
    trial.notes.append(f"limit {value}")


def _limit_files(trial: Injection, command: RunningCommand) -> bool:
    if not trial.sleep_until_moment(command):
        return False
    value = trial.random.randint(4, 60)
    trial.notes.append(f"limit {value}")
    with suppress(ProcessLookupError):
        resource.prlimit(command.pid, resource.RLIMIT_NOFILE, (value, value))
        return True
    return False


def _limit_memory(trial: Injection, command: RunningCommand) -> bool:
    if not trial.sleep_until_moment(command):
        return False
    with suppress(OSError):
        pages = int(Path(f"/proc/{command.pid}/statm").read_text().split()[0])
        value = pages * resource.getpagesize() + trial.random.randint(0, 64 << 20)
        resource.prlimit(command.pid, resource.RLIMIT_AS, (value, value))
        trial.notes.append(f"limit {value >> 20} MiB")
        return True
    return False


# --- A cluster ------------------------------------------------------------------------------------------------------


def _start_cluster(trial: Injection) -> None:
    place = trial.place
    contact = place.root / "scheduler.json"
    common = ["--scheduler-file", str(contact), "--no-dashboard"]
    _background(trial, ["dask_scheduler", *common, "--port", "0", "--host", "127.0.0.1"])
    until = time.monotonic() + HANGS_S
    while not contact.exists() and time.monotonic() < until:
        time.sleep(0.1)
    for number in range(_WORKERS):
        local = place.root / f"worker-{number}"
        _background(
            trial,
            ["dask_worker", *common, "--no-nanny", "--nthreads", "1", "--local-directory", str(local),
             "--death-timeout", "60", "--preload", str(Path(__file__).with_name("seam.py"))],
        )  # fmt: skip
    address = str(json.loads(contact.read_text())["address"])
    trial.words += ["--executor", address.replace("tcp://", "dask://")]
    from distributed import Client

    client: Any = Client  # it has no types
    with client(address, set_as_default=False, timeout=60) as connected:
        connected.wait_for_workers(_WORKERS, timeout=HANGS_S)


def _background(trial: Injection, words: Sequence[str]) -> None:
    place = trial.place
    subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.{words[0]}", *words[1:]],
        cwd=place.root,
        env={**place.environment, MARK: f"{place.mark}-cluster"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(place.root / "cluster.log").open("ab"),
        start_new_session=True,
    )


def _cluster_processes(trial: Injection, kind: str) -> list[int]:
    found = []
    for pid in trial.place.processes(of=f"{trial.place.mark}-cluster"):
        with suppress(OSError):
            if f"distributed.cli.{kind}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def _kill_worker(number: int, trial: Injection, command: RunningCommand) -> bool:
    if not trial.sleep_until_moment(command):
        return False
    workers = _cluster_processes(trial, "dask_worker")
    os.kill(trial.random.choice(workers), number)
    return True


def _end_cluster(trial: Injection) -> None:
    for kind in ("dask_worker", "dask_scheduler"):
        for pid in _cluster_processes(trial, kind):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + 30
        while _cluster_processes(trial, kind) and time.monotonic() < until:
            _reap()
            time.sleep(0.1)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _signals(
    group: str,
    strike: Callable[[int, Injection, RunningCommand], bool],
    names: str,
    statuses: Callable[[int], frozenset[int]],
) -> list[Fault]:
    numbers = [signal.Signals[f"SIG{name}"] for name in names.split()]
    return [Fault(group, number.name, partial(strike, number), statuses(number)) for number in numbers]


FAULTS: tuple[Fault, ...] = (
    *_signals("the tool is killed", _kill_tool, "KILL TERM HUP", lambda n: frozenset({0, -n, 128 + n})),
    Fault("the tool is killed", "Ctrl-C once", partial(_interrupt, 1), frozenset({0, 130})),
    Fault("the tool is killed", "Ctrl-C twice", partial(_interrupt, 2), frozenset({0, 130})),
    *_signals("QEMU is killed", _kill_machine, "KILL TERM INT HUP", lambda n: HOST),
    *(
        Fault(
            "a Dask worker is killed", f"SIG{name}", partial(_kill_worker, signal.Signals[f"SIG{name}"]), HOST,
            prepare=_start_cluster, repair=_end_cluster, warm=True, needs="distributed",
        )
        for name in ("KILL", "TERM", "INT")
    ),
    *(
        Fault(
            "a disk fills", disk, partial(_fill, disk), HOST,
            prepare=_mount, repair=partial(_empty, disk), needs="mounts",
        )
        for disk in DISKS
    ),
    Fault(
        "the cache is read-only", "warm", _is_there, frozenset({0}),
        prepare=_mount_read_only, repair=_writable, warm=True, needs="mounts",
    ),
    Fault(
        "the cache is read-only", "cold", _is_there, frozenset({1}),
        prepare=_mount_read_only, repair=_writable, warm=False, needs="mounts",
    ),
    Fault(
        "a bit flips in the cache", "kernel", _is_there, frozenset({0}),
        prepare=partial(_flip_in_cache, "kernel/*/bzImage"), warm=True,
    ),
    Fault(
        "a bit flips in the cache", "image", _is_there, frozenset({0}),
        prepare=partial(_flip_in_cache, "image/*/initramfs"), warm=True,
    ),
    Fault(
        "a bit flips in the run", "parquet", partial(_kill_tool, signal.SIGTERM), frozenset({0, 143}),
        repair=partial(_flip_in_run, "parts/*/*.parquet"), warm=True,
    ),
    Fault(
        "a bit flips in the run", "cell.json", partial(_kill_tool, signal.SIGTERM), frozenset({0, 143}),
        repair=partial(_flip_in_run, "parts/*/cell.json"), warm=True,
    ),
    Fault(
        "a bit flips in the run", "run.json", partial(_kill_tool, signal.SIGTERM), frozenset({0, 143}),
        repair=partial(_flip_in_run, "run.json"), warm=True, refusal="run.json",
    ),
    Fault(
        "the clock jumps", "", _jump, frozenset({0}),
        prepare=_fake_clock, repair=_real_clock,
    ),
    Fault(
        "two runs share a cold cache", "", _kill_one_of_two, frozenset({0, -signal.SIGKILL}), warm=False, runs=2
    ),
    Fault(
        "few file descriptors", "from the start", _is_there, HOST,
        prepare=partial(_limit_at_start, resource.RLIMIT_NOFILE, 8, 200, 1),
    ),
    Fault("few file descriptors", "taken away", _limit_files, HOST),
    Fault(
        "little memory", "from the start", _is_there, HOST,
        prepare=partial(_limit_at_start, resource.RLIMIT_AS, 60, 9000, 1 << 20),
    ),
    # A library in C++ that gets no memory aborts. The run has to survive that, too.
    Fault("little memory", "taken away", _limit_memory, HOST | {-signal.SIGABRT}),
)  # fmt: skip


def what_lacks(need: str) -> str | None:
    """Why a fault with this need cannot be tried on this host; None if it can."""
    if need == "mounts" and os.environ.get("ORCHESTRATE_CHAOS_MOUNTS") != "yes":
        return "needs root, or user namespaces, to mount small file systems"
    if need == "distributed":
        try:
            import distributed  # noqa: F401
        except ImportError:
            return "needs the Python package distributed"
    return None
