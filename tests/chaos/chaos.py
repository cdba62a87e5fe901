# SPDX-License-Identifier: GPL-2.0-only
"""Strikes runs at random moments, and checks that nothing is lost and nothing is left behind.

Each trial starts a run of three cells, strikes it, and resumes it. Then the run has to have the figures of a run that
nothing happened to and one outcome per cell; no process, socket, temporary directory or half-made cache entry may be
left. Most trials use stand-ins for QEMU, the guest image and the kernel tree, see seam.py; with --real, real guests.

usage: tests/chaos/run [--trials N] [--minutes M] [--real N] [--seed S] [--write docs/chaos.md]
Exit status: 0 if every run survived, else 1.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from fault import FAULTS, Fault, what_lacks
from trial import (
    Ended,
    Figures,
    Injection,
    Sandbox,
    figures_of,
    left_files,
    left_processes,
    recorded_outcomes,
)

_MOUNTS = "ORCHESTRATE_CHAOS_MOUNTS"
#: Outcomes that a cell may have which the host failed.
_OF_HOST = {"ok", "lost"}
_REAL = "a real QEMU is killed"
_BEGIN, _END = "<!-- chaos: table -->", "<!-- end -->"


@dataclass
class Reference:
    """A run that nothing happened to.

    Args:
        warm: a copy of its cache.
        figures: what it measured.
        cold_s, warm_s: host seconds it takes with an empty cache, and with that one.
    """

    warm: Path
    figures: Figures
    cold_s: float
    warm_s: float


@dataclass
class Tally:
    """Trials per group of faults."""

    tried: Counter[str] = field(default_factory=Counter)
    survived: Counter[str] = field(default_factory=Counter)
    missed: int = 0

    def table(self, lacking: dict[str, str]) -> str:
        """The table in Markdown."""
        groups = [*dict.fromkeys(fault.group for fault in FAULTS), _REAL]
        lines = ["| fault | tried | survived |", "|---|---|---|"]
        for group in groups:
            if group in lacking:
                lines.append(f"| {group} | not tried: {lacking[group]} | |")
            else:
                kinds = [fault.name for fault in FAULTS if fault.group == group and fault.name]
                kind = f" ({', '.join(kinds)})" if kinds else ""
                lines.append(f"| {group}{kind} | {self.tried[group]} | {self.survived[group]} |")
        lines.append(f"| all | {self.tried.total()} | {self.survived.total()} |")
        return "\n".join(lines) + "\n"


def reference_of(root: Path) -> Reference:
    """Run the command twice without a fault: with an empty cache, then with everything in it."""
    seconds = []
    place = Sandbox(root / "reference", f"{os.getpid()}-reference")
    try:
        for _ in range(2):
            ended = place.start(place.run_words()).wait()
            if ended.status != 0:
                raise SystemExit(f"the run fails without any fault (status {ended.status}):\n{ended.text}")
            seconds.append(ended.seconds)
        (first, _), (second, outcomes) = (figures_of(run) for run in place.runs())
        if first != second or set(outcomes.values()) != {"ok"}:
            raise SystemExit(f"two runs without any fault differ: {first} and {second}, {outcomes}")
        warm = root / "warm"
        shutil.copytree(place.cache, warm, symlinks=True)
        return Reference(warm, second, *seconds)
    finally:
        place.remove()


def try_fault(
    fault: Fault, number: int, seed: str, root: Path, reference: Reference
) -> tuple[bool, list[str], Injection]:
    """One trial.

    Returns:
        Whether the fault hit; what did not hold afterwards; the trial.
    """
    chance = random.Random(seed)
    warm = chance.random() < 0.5 if fault.warm is None else fault.warm
    place = Sandbox(root / f"trial-{number}", f"{os.getpid()}-{number}")
    duration_s = reference.warm_s if warm else reference.cold_s
    trial = Injection(place, chance, chance.uniform(0, 0.9 * duration_s), place.run_words())
    problems: list[str] = []
    trial.notes.append("warm" if warm else "cold")
    try:
        if warm:
            place.take_cache(reference.warm)
        fault.prepare(trial)
        commands = [place.start(trial.words, trial.limits) for _ in range(fault.runs)]
        hit = fault.strike(trial, commands[0])
        ends = [command.wait() for command in commands]
        trial.notes.append(f"at {trial.moment_s:.2f} s, status {', '.join(str(end.status) for end in ends)}")
        for end in ends:
            problems += _judged(end, fault.statuses)
        if fault.needs != "distributed":
            problems += left_processes(place)
        for run in place.runs():
            bad = {
                cell: outcome for cell, outcome in recorded_outcomes(run).items() if outcome not in _OF_HOST
            }
            problems += [f"{cell} is recorded as {outcome}" for cell, outcome in bad.items()]
        fault.repair(trial)
        problems += left_processes(place)
        problems += _resumed(trial, fault, reference)
        problems += left_processes(place)
        problems += left_files(place)
        if problems:
            trial.notes += [f"output:\n{end.text.strip()}" for end in ends]
        return hit, list(dict.fromkeys(problems)), trial
    finally:
        place.remove()


def _judged(ended: Ended, statuses: frozenset[int]) -> Iterator[str]:
    if ended.status is None:
        yield "the command hung"
    elif ended.status not in statuses:
        yield f"exit status {ended.status} instead of {' or '.join(map(str, sorted(statuses)))}"
    if "Traceback (most recent call last)" in ended.text:
        yield f"a traceback: {ended.text[ended.text.index('Traceback') :][-600:]}"


def _resumed(trial: Injection, fault: Fault, reference: Reference) -> Iterator[str]:
    """Resume each run, or start it again if it had not begun; yield what is wrong with it then."""
    place = trial.place
    runs: Sequence[Path | None] = place.runs() or [None]
    for run in runs:
        words = ["run", "--resume", run.name, "-j", "2"] if run else place.run_words()
        ended = place.start(words).wait()
        if fault.refusal and ended.status == 2 and fault.refusal in ended.text:
            if "Traceback" in ended.text:
                yield "a traceback instead of a refusal"
            listed = place.start(["results", "list"]).wait()
            yield from _judged(listed, frozenset({0}))
            continue
        found = list(_judged(ended, frozenset({0})))
        yield from (f"resumed: {problem}" for problem in found)
        if found:
            trial.notes.append(f"resumed:\n{ended.text.strip()}")
            continue
        figures, outcomes = figures_of(run or place.runs()[-1])
        if figures != reference.figures:
            yield f"other figures: {sorted(set(figures.items()) ^ set(reference.figures.items()))[:6]}"
        cells = {cell for cell, _ in reference.figures}
        if outcomes != dict.fromkeys(cells, "ok"):
            yield f"outcomes: {outcomes}"


def main() -> int:
    """Strike, print a line per trial and the table."""
    parser = argparse.ArgumentParser(description="Strike runs at random moments.")
    parser.add_argument("--trials", type=int, default=200, metavar="N", help="faults that have to hit")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="start no trial after this time; every kind is tried once"
    )
    parser.add_argument("--real", type=int, default=2, metavar="N", help="trials with real guests")
    parser.add_argument("--seed", type=int, metavar="S", help="default: a new one, which is printed")
    parser.add_argument("--only", metavar="TEXT", help="faults whose name has this text")
    parser.add_argument("--trial", type=int, metavar="N", help="only the trial of this number, again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="trials at a time")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this text")
    asked = parser.parse_args()
    if _MOUNTS not in os.environ:
        _enter_mount_namespace()
    seed = asked.seed if asked.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    lacking = {fault.group: lack for fault in FAULTS if (lack := what_lacks(fault.needs)) is not None}
    faults = [fault for fault in FAULTS if fault.group not in lacking]
    faults = [fault for fault in faults if not asked.only or asked.only in f"{fault.group} {fault.name}"]
    tally, lock, began = Tally(), threading.Lock(), time.monotonic()
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as directory:
        root = Path(directory)
        reference = reference_of(root)
        print(f"without a fault: {reference.cold_s:.1f} s cold, {reference.warm_s:.1f} s warm", flush=True)

        def one(number: int) -> None:
            fault = faults[number % len(faults)]
            name = f"{fault.group} {fault.name}".strip()
            hit, problems, trial = try_fault(fault, number, f"{seed}/{number}", root, reference)
            with lock:
                if hit:
                    tally.tried[fault.group] += 1
                    tally.survived[fault.group] += not problems
                else:
                    tally.missed += 1
                verdict = "FAILED" if problems else "survived" if hit else "ended before it was struck"
                notes = [note for note in trial.notes if "\n" not in note]
                print(f"#{number} {name}: {verdict} ({', '.join(notes)})", flush=True)
                for text in [*problems, *(note for note in trial.notes if "\n" in note and problems)]:
                    print("    " + text.replace("\n", "\n    "), flush=True)
                if problems:
                    failed.append(f"#{number} {name}")

        def is_enough(number: int) -> bool:
            if asked.minutes is not None and number >= len(faults):
                return bool(time.monotonic() - began > 60 * asked.minutes)
            return bool(tally.tried.total() >= asked.trials)

        if asked.trial is not None:
            os.environ["ORCHESTRATE_CHAOS_DEBUG"] = "--debug"
            one(asked.trial)
        else:
            _all(one, is_enough, asked.jobs)
        for number in range(asked.real if asked.trial is None and not asked.only else 0):
            from real import try_real

            problems = try_real(root / f"real-{number}", random.Random(f"{seed}/real/{number}"))
            tally.tried[_REAL] += 1
            tally.survived[_REAL] += not problems
            print(f"real guests {number}: {'FAILED' if problems else 'survived'}", *problems, sep="\n    ")
            failed += [f"real guests {number}"] if problems else []
    table = tally.table(lacking)
    print(table)
    if asked.write is not None:
        _write(asked.write, table)
    for each in failed:
        print(f"did not survive: {each}; again: --seed {seed} --trial {each[1:].split()[0]}")
    print(
        f"{tally.survived.total()} of {tally.tried.total()} survived, seed {seed}, "
        f"{(time.monotonic() - began) / 60:.1f} minutes"
    )
    return 1 if failed else 0


def _all(one: Callable[[int], None], is_enough: Callable[[int], bool], jobs: int) -> None:
    """Run trials, several at a time, until there are enough."""
    numbers, lock = iter(range(10**9)), threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        while not errors:
            with lock:
                number = next(numbers)
            if is_enough(number):
                return
            try:
                one(number)
            except BaseException as error:
                errors.append(error)
                raise

    with ThreadPoolExecutor(jobs) as pool:
        for each in [pool.submit(work) for _ in range(jobs)]:
            each.result()


def _write(path: Path, table: str) -> None:
    """Put the table into a text, between its two marks."""
    head, begin, rest = path.read_text(encoding="utf-8").partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not begin or not end:
        raise SystemExit(f"{path} has no place for the table: {_BEGIN} and {_END}.")
    path.write_text(f"{head}{begin}\n{table}{end}{tail}", encoding="utf-8")


def _enter_mount_namespace() -> None:
    """Start this program again where it may mount file systems that nobody else sees."""
    options = ["--mount"] if os.getuid() == 0 else ["--mount", "--user", "--map-root-user"]
    may = subprocess.run(
        ["unshare", *options, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    os.environ[_MOUNTS] = "yes" if may.returncode == 0 else "no"
    if may.returncode == 0:
        os.execvp("unshare", ["unshare", *options, "--", sys.executable, *sys.argv])


if __name__ == "__main__":
    sys.exit(main())
