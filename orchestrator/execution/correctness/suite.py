# SPDX-License-Identifier: GPL-2.0-only
"""Suites of correctness tests: what they run, and their results in one guest."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Step
from orchestrator.execution.bench import Booted
from orchestrator.experiment.knob import SWAP_PATH
from orchestrator.guest.ktap import Status, TestResult, parse_khugepaged, parse_ktap
from orchestrator.guest.selftests import Selftest, Selftests
from orchestrator.guest.ssh import CommandTimeout, Guest, GuestLost
from orchestrator.guest.swap import add_swap
from orchestrator.kernel.series import Series
from orchestrator.machine.oops import TEST_MARK
from orchestrator.spelling import hint

RESERVATIONS: Final = "/usr/lib/tests/reservations"
_KSELFTESTS: Final = "/tmp/selftests"
_SKIP: Final = 4  # kselftest.h: KSFT_SKIP
_HOSTILE: Final = "--hostile"
_KMEMLEAK: Final = "/sys/kernel/debug/kmemleak"
#: kmemleak reports objects of at least this age (mm/kmemleak.c, jiffies_min_age), at the latest in a second scan.
_LEAK_AGE_S: Final = 6
_LRU_GEN: Final = "/sys/kernel/mm/lru_gen/enabled"
_SWAP_SIZE: Final = "512M"
#: Timeout of a whole test program in host seconds, with emulation and a debug kernel.
_SUITE_TIMEOUT_S: Final = 5400.0
_ANSWER_S: Final = 120.0
#: Host seconds for one race, and how their names begin.
_RACE_S: Final = 300.0
_RACE: Final = "race_"
#: stress-ng(1), "EXIT STATUS": not enough resources, not implemented.
_STRESS_SKIPS: Final = {3: "not enough resources", 4: "not implemented on this kernel"}
_STRESS_S: Final = 4
#: A table of this project's tests in C, and a row of it; see vm_images/guest/tests/tests.h.
_TEST_TABLE: Final = re.compile(r"^const struct test \w+\[\] = \{\n(.*?)^\};", re.MULTILINE | re.DOTALL)
_TEST_ROW: Final = re.compile(r'\{ "(?P<name>\w+)", \w+,\s+"[^"]*",\s+(?P<flags>[\w |]+),')


class Kind(StrEnum):
    """The origin of the tests of a suite."""

    RESERVATIONS = "reservations"
    SELFTESTS = "selftests"
    STRESS = "stress"
    RACES = "races"


@dataclass(frozen=True)
class Suite:
    """Tests that share a guest.

    Args:
        lru_gen: whether the multi-gen LRU is enabled.
        swap: whether there is swap on zram.
        neutral: whether each knob of the series has its neutral value, at which the series should change nothing; else
            the default of the kernel or the tests.
        baseline_suite: the suite that runs on the baseline for comparison; empty for the same suite.
        arguments: arguments of the suite's program.
        strict: a test that passes on the baseline must not be skipped either.
        parameters: kernel parameters, in addition to those of all suites.
        by_name: runs only if its name is given.
    """

    name: str
    kind: Kind
    title: str
    lru_gen: bool = True
    swap: bool = False
    neutral: bool = False
    baseline_suite: str = ""
    arguments: tuple[str, ...] = ()
    strict: bool = False
    parameters: tuple[str, ...] = ()
    by_name: bool = False

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers of the guest image."""
        return {
            Kind.RESERVATIONS: ("correctness",),
            Kind.SELFTESTS: ("selftests",),
            Kind.STRESS: ("stress-ng",),
            Kind.RACES: ("correctness",),
        }[self.kind]

    @property
    def is_own(self) -> bool:
        """Whether its tests are this project's own, which fail whatever the baseline does."""
        return self.kind in (Kind.RESERVATIONS, Kind.RACES)

    @property
    def cmdline(self) -> tuple[str, ...]:
        """Kernel parameters."""
        # Huge pages and reservations only in the processes of tests, which enable them; stress-ng does not.
        enabled = "always" if self.kind is Kind.STRESS else "madvise"
        return (f"transparent_hugepage={enabled}", *self.parameters)

    @property
    def timeout_s(self) -> float:
        """Longest duration of its program in host seconds, with emulation and a debug kernel."""
        # A busy host runs an emulated guest at a fraction of its speed.
        return _SUITE_TIMEOUT_S + 4 * self.hostile_s

    @property
    def hostile_s(self) -> int:
        """Duration of the hostile stress in guest seconds; 0 for a suite of tests."""
        return int(self.arguments[-1]) if _HOSTILE in self.arguments else 0

    def lasting(self, minutes: int | None) -> Suite:
        """The same suite, with its stress as long as this; suites without one and None change nothing."""
        if minutes is None or not self.hostile_s:
            return self
        return replace(self, arguments=(*self.arguments[:-1], str(60 * minutes)))


SUITES: Final[Mapping[str, Suite]] = {
    suite.name: suite
    for suite in (
        Suite(
            "reservations",
            Kind.RESERVATIONS,
            "tests of this project",
            arguments=("--prefill",),
        ),
        Suite("reservations-swap", Kind.RESERVATIONS, "with swap", swap=True, arguments=("--matrix",)),
        Suite(
            "reservations-classic",
            Kind.RESERVATIONS,
            "with the classic LRU",
            lru_gen=False,
            arguments=("--matrix",),
        ),
        Suite(
            "reservations-classic-swap",
            Kind.RESERVATIONS,
            "with the classic LRU and swap",
            lru_gen=False,
            swap=True,
            arguments=("--matrix",),
        ),
        Suite(
            "reservations-init",
            Kind.RESERVATIONS,
            "with pages zeroed when they are allocated",
            arguments=("--quick",),
            # Poisoning freed pages takes precedence over it (mm/mm_init.c).
            parameters=("page_poison=0", "init_on_alloc=1"),
        ),
        Suite(
            "selftests-1",
            Kind.SELFTESTS,
            "the kernel's selftests/mm, threshold 1",
            neutral=True,
            baseline_suite="selftests",
            strict=True,
        ),
        Suite("selftests", Kind.SELFTESTS, "the kernel's selftests/mm, default threshold"),
        Suite("stress", Kind.STRESS, "stress-ng"),
        Suite(
            "races",
            Kind.RACES,
            "races with khugepaged, in an order that gdb enforces",
            arguments=("--races",),
            # A held CPU is no stall, however long a busy host takes to release it.
            parameters=("rcupdate.rcu_cpu_stall_suppress=1", "nowatchdog"),
            by_name=True,
        ),
        Suite(
            "stress-classic-swap",
            Kind.STRESS,
            "stress-ng with the classic LRU and swap",
            lru_gen=False,
            swap=True,
        ),
        Suite(
            "hostile",
            Kind.RESERVATIONS,
            "everything at once, while settings, CPUs and memory change",
            arguments=("--prefill", _HOSTILE, "600"),
            by_name=True,
        ),
    )
}

#: Name -> arguments of stress-ng; each runs for some seconds, with --verify.
STRESSORS: Final[Mapping[str, tuple[str, ...]]] = {
    "vm": ("--vm", "2", "--vm-bytes", "96M", "--vm-method", "all"),
    "vm-populate": ("--vm", "2", "--vm-bytes", "64M", "--vm-populate"),
    "vm-madvise": ("--vm", "2", "--vm-bytes", "64M", "--vm-madvise", "hugepage"),
    "vm-rw": ("--vm-rw", "2", "--vm-rw-bytes", "32M"),
    "vm-splice": ("--vm-splice", "2"),
    "vm-addr": ("--vm-addr", "1"),
    "madvise": ("--madvise", "2"),
    "mmap": ("--mmap", "2", "--mmap-bytes", "64M"),
    "mmap-mprotect": ("--mmap", "2", "--mmap-bytes", "32M", "--mmap-mprotect"),
    "mmapfork": ("--mmapfork", "1"),
    "mmapfixed": ("--mmapfixed", "2"),
    "mremap": ("--mremap", "2", "--mremap-bytes", "32M"),
    "fork": ("--fork", "2"),
    "fork-vm": ("--fork", "2", "--fork-vm"),
    "numa": ("--numa", "2"),
    "mlock": ("--mlock", "2"),
    "brk": ("--brk", "2", "--brk-bytes", "64M"),
    "bigheap": ("--bigheap", "2", "--bigheap-bytes", "64M"),
    "malloc": ("--malloc", "2", "--malloc-bytes", "64M"),
    "stack": ("--stack", "2"),
    "userfaultfd": ("--userfaultfd", "2", "--userfaultfd-bytes", "16M"),
    "mincore": ("--mincore", "2"),
    "munmap": ("--munmap", "1"),
    "pageswap": ("--pageswap", "1"),
}


@dataclass(frozen=True)
class Leak:
    """A leak reported by kmemleak.

    Args:
        signature: the functions that allocated the memory, innermost first; equal for equal leaks.
        count: number of objects.
    """

    signature: tuple[str, ...]
    text: str
    count: int = 1


@dataclass
class Found:
    """The results of a suite in one guest so far; updated while it runs, so that they survive the guest.

    Args:
        results: one result per test.
        faults: faults of programs, e.g. that one ended early.
        complete: the suite has finished, whatever the results of its tests.
    """

    results: list[TestResult] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)
    complete: bool = True

    def count(self, status: Status) -> int:
        """Number of tests with this status."""
        return sum(result.status is status for result in self.results)


@dataclass(frozen=True)
class SuiteRun:
    """One suite in one guest.

    Args:
        stages: names of the stages of the kernel.
        neutral: path of each knob of the kernel that has a neutral value -> that value.
        only: names of tests; empty for all.
        selftests: the built selftests and their list, for a suite that runs them.
        vmlinux: vmlinux of the kernel, for a suite that needs gdb.
    """

    suite: Suite
    booted: Booted
    stages: Sequence[str]
    neutral: Mapping[str, int]
    only: Sequence[str]
    logs: Path
    found: Found
    step: Step
    selftests: tuple[Sequence[Selftest], Selftests] | None = None
    vmlinux: Path | None = None

    @property
    def guest(self) -> Guest:
        """The guest of the suite."""
        return self.booted.guest

    def run(self) -> None:
        """Run the suite, and check for leaks.

        Raises:
            GuestLost, CommandTimeout: the guest was lost, or a program did not end; results so far are in
                :attr:`found`.
            UserError: the guest rejects a setting of the suite.
        """
        self.found.complete = False
        self._settings()
        {
            Kind.RESERVATIONS: self._reservations,
            Kind.SELFTESTS: self._selftests,
            Kind.STRESS: self._stress,
            Kind.RACES: self._races,
        }[self.suite.kind]()
        leaks, fault = scan_for_leaks(self.guest)
        self.found.leaks += leaks
        self.found.faults += [fault] if fault else []
        self.found.complete = True

    def _settings(self) -> None:
        suite = self.suite
        self.guest.write_text(_LRU_GEN, "y" if suite.lru_gen else "n")
        if suite.swap and (why := add_swap(self.guest, SWAP_PATH, _SWAP_SIZE, _ANSWER_S)) is not None:
            raise InfrastructureError(f"the guest of the suite has no swap: {why}.")
        for path, value in self.neutral.items() if suite.neutral else ():
            self.guest.write_text(path, str(value))

    def _own_argv(self) -> list[str]:
        """The command line of this project's tests; empty if none of the requested ones is in the suite."""
        argv = [RESERVATIONS, *self.suite.arguments]
        if self.stages:
            argv += ["--stages", ",".join(self.stages)]
        if self.only:
            listed = self.guest.run([RESERVATIONS, *self.suite.arguments, "--list"], timeout_s=_ANSWER_S)
            there = {line.split("\t")[0] for line in listed.stdout.splitlines()}
            if not there & set(self.only):
                return []
            argv += ["--only", ",".join(self.only)]
        return argv

    def _races(self) -> None:
        from orchestrator.debugger.gdb import Gdb
        from orchestrator.debugger.race import CUE, RaceDirector

        argv = self._own_argv()
        if not argv:
            return
        machine = self.booted.machine
        assert machine.gdb_socket is not None and self.vmlinux is not None, "a suite of races comes with gdb"

        def answer(word: str) -> None:
            self.guest.run(["sh", "-c", f"echo {word} >{CUE}.new && mv {CUE}.new {CUE}"], timeout_s=_ANSWER_S)

        lines: list[str] = []
        heard: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        with Gdb.attach(machine.gdb_socket, self.vmlinux, transcript=self.logs / "gdb.log") as gdb:
            director = RaceDirector(gdb, self.vmlinux, answer)
            gdb.continue_()
            remote = self.guest.spawn(
                argv, on_line=heard.put, stdout=self.logs / "races.log", stderr=self.logs / "races.stderr.log"
            )

            def wait() -> None:
                with suppress(CommandTimeout, GuestLost):  # what is missing of its output says so
                    remote.wait(_SUITE_TIMEOUT_S)
                heard.put(None)

            waiter = threading.Thread(target=wait, daemon=True)
            waiter.start()
            try:
                while (line := self._next(heard)) is not None:
                    lines.append(line)
                    director.heard(line)
                    if re.match(r"(not )?ok \d+ ", line):
                        self.step.progress(len(lines), None, "lines", line)
            finally:
                results, incomplete = parse_ktap(lines)
                self.found.results += results
        waiter.join(_ANSWER_S)
        if incomplete or not results:
            self.found.faults.append(f"races: {incomplete or 'no result'}")

    def _next(self, heard: queue.SimpleQueue[str | None]) -> str | None:
        try:
            return heard.get(timeout=_RACE_S)
        except queue.Empty:
            raise CommandTimeout(f"no test of the suite races ended within {_RACE_S:g} s") from None

    def _reservations(self) -> None:
        argv = self._own_argv()
        if not argv:
            return
        lines: list[str] = []
        try:
            fault = self._stream(argv, "reservations", lines, self.suite.timeout_s, is_all=True)
        finally:
            results, incomplete = parse_ktap(lines)
            self.found.results += results
        if incomplete or not results:
            self.found.faults.append(
                f"reservations: {incomplete or 'no result'} ({fault or 'exit status 0'})"
            )

    def _selftests(self) -> None:
        assert self.selftests is not None, "a suite of selftests comes with them"
        plan, built = self.selftests
        self.guest.upload(built.archive, f"{_KSELFTESTS}.tar")
        script = (
            f"mkdir -p {_KSELFTESTS} && tar xf {_KSELFTESTS}.tar -C {_KSELFTESTS} && rm {_KSELFTESTS}.tar"
        )
        self.guest.run(["sh", "-c", script], timeout_s=_ANSWER_S, check=True)
        chosen = [test for test in plan if not self.only or test.name in self.only]
        for done, test in enumerate(chosen):
            self.step.progress(done, len(chosen), "programs", test.name)
            if test.argv[0] not in built.built:
                self.found.results.append(TestResult(test.name, Status.FAILED, "it was not built"))
                continue
            # Do not let page cache of one program affect the next.
            self.guest.run(["sh", "-c", "echo 3 >/proc/sys/vm/drop_caches"], timeout_s=_ANSWER_S)
            self._mark(test.name)
            lines: list[str] = []
            fault = ""
            try:
                fault = self._stream(
                    [f"{_KSELFTESTS}/{test.argv[0]}", *test.argv[1:]], test.name, lines, test.timeout_s
                )
            finally:
                self.found.results += results_of_selftest(test, lines, fault)

    def _stress(self) -> None:
        chosen = {name: words for name, words in STRESSORS.items() if not self.only or name in self.only}
        for done, (name, words) in enumerate(chosen.items()):
            self.step.progress(done, len(chosen), "stressors", name)
            argv = [
                "stress-ng",
                "--verify",
                "--no-rand-seed",
                "--temp-path",
                "/tmp",
                "--timeout",
                f"{_STRESS_S}s",
            ]
            self._mark(f"stress-{name}")
            lines: list[str] = []
            fault = self._stream([*argv, *words], f"stress-{name}", lines, _SUITE_TIMEOUT_S)
            self.found.results.append(result_of_stressor(name, lines, fault))

    def _mark(self, test: str) -> None:
        """Mark the kernel's log, so that a report in it belongs to a test. Tests of this project do so themselves."""
        self.guest.write_text("/dev/kmsg", f"<5>{TEST_MARK}{test}")

    def _stream(
        self, argv: Sequence[str], name: str, lines: list[str], timeout_s: float, *, is_all: bool = False
    ) -> str:
        """Run a program and append its output to `lines`. Returns how it failed; empty if it did not.

        Args:
            is_all: the suite consists of this program, so a timeout ends the suite.

        Raises:
            CommandTimeout: the program did not end, with `is_all`.
        """

        def on_line(line: str) -> None:
            lines.append(line)
            if self.suite.kind is Kind.RESERVATIONS and re.match(r"(not )?ok \d+ ", line):
                self.step.progress(len(lines), None, "lines", line)

        remote = self.guest.spawn(
            argv,
            on_line=on_line,
            stdout=self.logs / f"{name}.log",
            stderr=self.logs / f"{name}.stderr.log",
        )
        try:
            finished = remote.wait(timeout_s)
        except CommandTimeout:
            self.booted.machine.ask_where()
            if is_all:
                raise
            return f"it did not end within {timeout_s:.0f} s"
        lines += finished.stderr.splitlines() if self.suite.kind is Kind.STRESS else []
        return "" if finished.status == 0 else finished.end


def choose(names: Sequence[str]) -> tuple[Suite, ...]:
    """The suites with these names; if there are none, all that do not have to be named.

    Raises:
        UserError: unknown suite.
    """
    for name in names:
        if name not in SUITES:
            raise UserError(f"--suite {name}: unknown suite; {hint(name, SUITES)}")
    return tuple(suite for name, suite in SUITES.items() if (name in names if names else not suite.by_name))


def choose_for(series: Series, names: Sequence[str], own: bool) -> tuple[Suite, ...]:
    """The suites with these names; if there are no names, all that can judge the series.

    Args:
        own: whether it is the project's own series, which the tests of reservations are for.

    Raises:
        UserError: unknown suite, or one that is for the project's own series.
    """
    chosen = choose(names)
    if own:
        return chosen
    general = tuple(suite for suite in chosen if not suite.is_own and not suite.neutral)
    if names and general != chosen:
        other = next(suite.name for suite in chosen if suite not in general)
        every = ", ".join(suite.name for suite in choose_for(series, (), own))
        raise UserError(
            f"--suite {other} tests the project's own series and has no test of {series.name}; choose {every}."
        )
    return general


def reservation_tests(directory: Path) -> dict[str, tuple[bool, bool]]:
    """The tests of this project, read from the tables in their sources.

    Args:
        directory: directory ``vm_images/guest/tests``.

    Returns:
        Name -> whether ``--matrix`` and ``--quick`` run it, like the program's ``--list``, but without compiling
        the program.
    """
    return {
        match["name"]: ("MATRIX" in match["flags"].split(" | "), "QUICK" in match["flags"].split(" | "))
        for path in sorted(directory.glob("*.c"))
        for table in _TEST_TABLE.findall(path.read_text(encoding="utf-8"))
        for match in _TEST_ROW.finditer(table)
    }


def having(
    suites: Sequence[Suite],
    only: Sequence[str],
    selftests: Sequence[str],
    ours: Mapping[str, tuple[bool, bool]],
) -> tuple[Suite, ...]:
    """The suites that have one of these tests; all suites if there are no names.

    Args:
        only: names of tests.
        selftests: names of the kernel's selftests.
        ours: the result of :func:`reservation_tests`.

    Raises:
        UserError: a test is in none of the suites.
    """

    def has(suite: Suite) -> set[str]:
        if suite.kind is Kind.SELFTESTS:
            return set(selftests)
        if suite.kind is Kind.STRESS:
            return set(STRESSORS)
        if suite.kind is Kind.RACES:
            return {name for name in ours if name.startswith(_RACE)}
        if suite.hostile_s:
            return set()
        return {
            name
            for name, (in_matrix, is_quick) in ours.items()
            if not name.startswith(_RACE)
            and (in_matrix or "--matrix" not in suite.arguments)
            and (is_quick or "--quick" not in suite.arguments)
        }

    known = sorted(set().union(*map(has, suites)))
    for name in only:
        if name not in known:
            raise UserError(f"--only {name}: these suites have no such test; {hint(name, known)}")
    return tuple(suite for suite in suites if not only or has(suite) & set(only))


def results_of_selftest(test: Selftest, lines: Sequence[str], fault: str) -> list[TestResult]:
    """The results of the tests in a selftest program, and one result for the whole program, with its name.

    Args:
        fault: how the program failed; empty if it did not.
    """
    parsed, incomplete = (parse_khugepaged(lines), "") if test.argv[0] == "khugepaged" else parse_ktap(lines)
    results = [TestResult(f"{test.name}: {each.name}", each.status, each.text) for each in parsed]
    last = "\n".join(list(lines)[-6:])
    if fault == f"exit status {_SKIP}":
        whole = TestResult(test.name, Status.SKIPPED, last)
    elif fault or incomplete:
        whole = TestResult(test.name, Status.FAILED, "\n".join(filter(None, (fault, incomplete, last))))
    else:
        whole = TestResult(test.name, Status.PASSED)
    return [*results, whole]


def result_of_stressor(name: str, lines: Sequence[str], fault: str) -> TestResult:
    """The result of a stressor, from the exit status of stress-ng(1)."""
    said = "\n".join(line for line in lines if "fail" in line or "error" in line or "unknown" in line)
    status = int(fault.rpartition(" ")[2]) if fault.startswith("exit status ") else None
    if status in _STRESS_SKIPS:
        return TestResult(name, Status.SKIPPED, _STRESS_SKIPS[status])
    if status == 1 and "unrecognized option" in "\n".join(lines):
        return TestResult(name, Status.SKIPPED, "this version of stress-ng does not have it")
    if fault:
        return TestResult(name, Status.FAILED, "\n".join(filter(None, (fault, said))))
    return TestResult(name, Status.PASSED, said)


def scan_for_leaks(guest: Guest, wait: Callable[[float], None] = time.sleep) -> tuple[list[Leak], str]:
    """Scan for leaks with kmemleak, if the kernel has it.

    There are two scans some seconds apart, because objects are only reported at a certain age (mm/kmemleak.c).

    Returns:
        The leaks, and why others may be missing: empty, or that kmemleak has disabled itself.
    """
    if guest.run(["test", "-w", _KMEMLEAK], timeout_s=_ANSWER_S).status != 0:
        return [], ""
    for _ in range(2):
        wait(_LEAK_AGE_S)
        scan = guest.run(["sh", "-c", f"echo scan >{_KMEMLEAK}"], timeout_s=600.0)
        if scan.status != 0:
            # This happens if it runs out of memory for its metadata; the console has its message.
            return [], f"kmemleak is disabled, so leaks cannot be detected ({scan.stderr.strip()})"
    return parse_leaks(guest.read_text(_KMEMLEAK)), ""


def parse_leaks(text: str) -> list[Leak]:
    """The objects in ``/sys/kernel/debug/kmemleak``, with equal ones counted.

    >>> parse_leaks("unreferenced object 0xff (size 32):\\n  backtrace:\\n    [<00>] kmalloc+0x1/0x2\\n")[0].signature
    ('kmalloc',)
    """
    leaks: dict[tuple[str, ...], Leak] = {}
    for record in re.split(r"(?m)^(?=unreferenced object )", text):
        if not record.startswith("unreferenced object "):
            continue
        frames = re.findall(r"(?m)^\s+(?:\[<\w+>\] )?([\w.]+)\+0x[0-9a-f]+/0x[0-9a-f]+", record)
        signature = tuple(frames)
        known = leaks.get(signature)
        leaks[signature] = Leak(
            signature, known.text if known else record.rstrip(), known.count + 1 if known else 1
        )
    return list(leaks.values())
