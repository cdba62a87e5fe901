# SPDX-License-Identifier: GPL-2.0-only
"""How each command says that its guest ended: what it stores, its exit status, what it shows.

Every command is run from its command line on, and ends of guests come about as they do: by what QEMU does, what the
console holds and what the program in the guest prints. Only QEMU, SSH, gdb, kernels and images are not real.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from fake_guest import ENDINGS, TOPOLOGY, World, install

from orchestrator import process
from orchestrator.cli.application import status_of
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.execution.ending import Ending, GuestEnded, ending_of
from orchestrator.guest.ssh import CommandFailed, CommandTimeout, GuestLost
from orchestrator.guest.workload import WorkloadFailed
from orchestrator.machine.oops import Finding
from orchestrator.machine.qemu import MachineFailure
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import Run

TRACE = "trace 1\np0 map 0:0 512 huge\np0 write 0:3 1 7\n"
_SMALL = ["-t", TOPOLOGY, "-a", "tcg"]
_GUEST = ["-p", "baseline", *_SMALL]
_FAST = ["--rate", "0.99", "--max-boots", "8"]
COMMANDS = {
    "run": ["run", "-p", "stage-1", "-w", "touch", "-n", "1", "-j", "1", *_SMALL],
    "check": ["check", "-p", "baseline", "--trace", "one.trace", *_SMALL],
    "bisect": ["bisect", "-p", "stage-1", "-w", "touch", "--until", "failure", *_FAST, *_SMALL],
    "bisect diverges": ["bisect", "-p", "stage-1", "--until", "diverges", "--trace", "one.trace", *_FAST, *_SMALL],
    "test": ["test", "-p", "stage-1", "--config", "measure", "--suite", "reservations", "--no-baseline", *_SMALL],
    "verify": ["series", "verify", "--stage", "1", "--only", "smoke", *_SMALL],
    "exec": ["exec", *_GUEST, "--", "program"],
    "boot": ["boot", *_GUEST],
    "shell": ["shell", *_GUEST],
    "debug": ["debug", *_GUEST, "-x", "continue"],
}  # fmt: skip
#: Keep a run directory, so that the outcome of each cell is stored.
STORING = ("run", "check", "bisect", "bisect diverges", "test")


@dataclass(frozen=True)
class ExpectedEnding:
    """What a command makes of an ending.

    Args:
        outcome: stored for every cell; for a command that stores none it is shown, unless empty.
        status: exit status.
        shown: is printed.
    """

    outcome: str
    status: int
    shown: str


@dataclass(frozen=True)
class Impossible:
    """Why a command has no such ending; `holds` is what the test sees of that."""

    why: str
    holds: Callable[[World], bool]


def _runs_nothing(world: World) -> bool:
    return world.ran == []


_PANIC = ExpectedEnding("kernel-panic", 3, "Kernel panic: made up")
_OOPS = ExpectedEnding("kernel-bug", 3, "BUG: kernel NULL pointer dereference in made_up")
_KASAN = ExpectedEnding("kernel-bug", 3, "KASAN: slab-use-after-free in made_up")
_KILLED = ExpectedEnding("lost", 1, "QEMU was ended by signal 9")
_NO_MEMORY = ExpectedEnding("lost", 1, "Cannot allocate memory")
_BOOT = ExpectedEnding("boot-failed", 3, "the guest was not up within 0.3 s")
_TIMEOUT = ExpectedEnding("timeout", 3, "took more than")
_SSH = ExpectedEnding("lost", 1, "the connection to the guest broke")
_FAILED = ExpectedEnding("workload-failed", 3, "page 7 is not zero")
_EARLY = ExpectedEnding("workload-failed", 3, "it stopped without")
_COMMON = {
    "panic": _PANIC,
    "oops": _OOPS,
    "KASAN report, then a hang": _KASAN,
    "QEMU killed by a signal": _KILLED,
    "QEMU out of memory": _NO_MEMORY,
    "boot timeout": _BOOT,
    "workload timeout": _TIMEOUT,
    "SSH lost while the kernel lives": _SSH,
    "workload failed": _FAILED,
    "output ends early": _EARLY,
}
#: A search goes on until it is sure, or as long as it may: a boot that says nothing leaves it undecided.
_UNDECIDED = {"boot timeout": replace(_BOOT, status=1)}
_NO_WORKLOAD = Impossible("it runs nothing in the guest", _runs_nothing)
_NO_LIMIT = Impossible(
    "ssh(1) is waited for without a limit, and its output is the person's own", _runs_nothing
)
TABLE: dict[str, dict[str, ExpectedEnding | Impossible]] = {
    "run": {"well": ExpectedEnding("ok", 0, "stage-1"), **_COMMON},
    "check": {
        "well": ExpectedEnding("ok", 0, "no divergence"),
        **_COMMON,
        "workload failed": ExpectedEnding("workload-failed", 3, "trace-exec in the guest: cannot fork: made up"),
        "output ends early": ExpectedEnding("workload-failed", 3, "its output ends in the middle of a line"),
    },
    "bisect": {"well": ExpectedEnding("ok", 0, "no stage up to stage-1 shows 'failure'"), **_COMMON},
    "bisect diverges": {
        "well": ExpectedEnding("ok", 0, "no stage up to stage-1 shows 'diverges'"),
        **_COMMON,
        **_UNDECIDED,
        "workload failed": ExpectedEnding("workload-failed", 1, "trace-exec in the guest: cannot fork: made up"),
        "output ends early": ExpectedEnding("workload-failed", 1, "its output ends in the middle of a line"),
    },
    "test": {
        "well": ExpectedEnding("ok", 0, "no regression"),
        **_COMMON,
        "workload failed": ExpectedEnding("workload-failed", 3, "second fails"),
        "output ends early": ExpectedEnding("workload-failed", 3, "1 of 2 planned tests have a result"),
    },
    "verify": {
        "well": ExpectedEnding("", 0, "0 failed"),
        **_COMMON,
        "workload failed": ExpectedEnding("", 3, "smoke:\n    workload touch: page 7 is not zero"),
        "output ends early": ExpectedEnding("", 3, "smoke:\n    workload touch: it stopped without"),
    },
    "exec": {
        "well": ExpectedEnding("", 0, "printed\n"),
        **_COMMON,
        "workload timeout": ExpectedEnding(
            "", 3, "took more than 600 s and was killed. Use --timeout to give it more time"
        ),
        "workload failed": ExpectedEnding("", 1, "printed\n"),  # its own status
        "output ends early": ExpectedEnding("", 0, "pri"),  # a program may print what it likes
    },
    "boot": {
        "well": ExpectedEnding("", 0, "up after"),
        **_COMMON,
        "SSH lost while the kernel lives": ExpectedEnding("", 0, "up after"),  # it watches the machine only
        "workload timeout": _NO_WORKLOAD,
        "workload failed": _NO_WORKLOAD,
        "output ends early": _NO_WORKLOAD,
    },
    "shell": {
        "well": ExpectedEnding("", 0, ""),
        **_COMMON,
        "workload failed": ExpectedEnding("", 7, ""),  # the shell's own status
        "SSH lost while the kernel lives": ExpectedEnding("lost", 1, "but the guest still runs"),
        "workload timeout": _NO_LIMIT,
        "output ends early": _NO_LIMIT,
    },
    "debug": {
        "well": ExpectedEnding("", 0, "said by gdb"),
        **_COMMON,
        "workload timeout": ExpectedEnding("", 1, "gdb did not answer within 60 s"),
        "workload failed": ExpectedEnding("", 0, "said by gdb"),  # gdb prints why, and the next command follows
        "output ends early": ExpectedEnding("", 1, "gdb ended"),
    },
}  # fmt: skip


@pytest.fixture
def of_person(monkeypatch: pytest.MonkeyPatch) -> Callable[[World], None]:
    """What a person's commands wait for: time to pass, ssh(1), gdb."""

    def installed(world: World) -> None:
        naps = 0

        def nap(seconds: float) -> None:
            nonlocal naps
            naps += 1
            if naps == 1:
                world.happens()
            elif world.ends.startswith("KASAN"):
                raise KeyboardInterrupt
            elif naps == 5:
                world.resets("guest-shutdown")
            time.sleep(0.02)

        def waits() -> int:
            world.happens()
            if world.ends in ("panic", "QEMU killed by a signal", "SSH lost while the kernel lives"):
                return 255
            return 7 if world.ends == "workload failed" else 0

        class FakeGdb:
            @classmethod
            def attach(cls, *_: object) -> Self:
                return cls()

            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def stop_waiting(self) -> None:
                pass

            def command(self, line: str, timeout_s: float) -> str:
                world.happens()
                if world.ends == "QEMU killed by a signal":
                    raise InfrastructureError("the guest ended while gdb waited for it.")
                if world.ends == "workload timeout":
                    raise InfrastructureError("gdb did not answer within 60 s.")
                if world.ends == "output ends early":
                    raise InfrastructureError("gdb ended: said by g")
                return "said by gdb"

        monkeypatch.setattr("orchestrator.cli.boot.time", SimpleNamespace(sleep=nap))
        monkeypatch.setattr("orchestrator.cli.shell._REASON_S", 0.1 if world.ends.startswith("SSH") else 20.0)
        spawned = SimpleNamespace(wait=waits)
        real = process.spawn

        def spawn(argv: Sequence[str], **options: Any) -> Any:
            return spawned if argv[0] == "ssh" else real(argv, **options)

        monkeypatch.setattr(process, "spawn", spawn)
        monkeypatch.setattr("orchestrator.debugger.gdb.Gdb", FakeGdb)
        monkeypatch.setattr("orchestrator.kernel.elf.has_dwarf", lambda vmlinux: False)

    return installed


@dataclass
class Seen:
    """What a command made of an ending."""

    status: int
    out: str
    err: str
    outcomes: set[str]
    world: World


Act = Callable[[str, str], Seen]


@pytest.fixture
def act(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    of_person: Callable[[World], None],
) -> Act:
    """Run a command whose guests end in one way."""

    def acted(command: str, ends: str, *more: str) -> Seen:
        world = World(ends, tmp_path)
        install(world, monkeypatch)
        of_person(world)
        monkeypatch.chdir(tmp_path)
        Path("one.trace").write_text(TRACE)
        status = status_of([*COMMANDS[command][:1], *more, *COMMANDS[command][1:]])
        said = capsys.readouterr()
        outcomes: set[str] = set()
        for path in (tmp_path / "results").glob("*/run.json"):
            outcomes |= set(Run.open(path.parent).cells["outcome"])
        return Seen(status, said.out, said.err, outcomes, world)

    return acted


def test_no_ending_of_any_command_is_left_out() -> None:
    assert set(TABLE) == set(COMMANDS)
    assert {command: set(row) for command, row in TABLE.items()} == {key: set(ENDINGS) for key in COMMANDS}


@pytest.mark.parametrize("ends", ENDINGS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_how_its_guest_ended(command: str, ends: str, act: Act, tmp_path: Path) -> None:
    expected = TABLE[command][ends]
    seen = act(command, ends)
    if isinstance(expected, Impossible):
        assert expected.holds(seen.world), expected.why
        assert seen.status == 0
        return
    shown = seen.out + seen.err
    assert seen.status == expected.status, shown
    assert expected.shown in shown
    if command in STORING:
        assert seen.outcomes == {expected.outcome}
    elif expected.outcome and command != "verify":
        assert f"{expected.outcome}: " in seen.err
    assert not list((tmp_path / "tmp").glob("orchestrate-*")), "logs are left behind"


@pytest.mark.parametrize("ends", [ends for ends, what in _COMMON.items() if what.outcome == "lost"])
def test_a_lost_guest_is_not_shrunk(ends: str, act: Act) -> None:
    seen = act("check", ends)
    assert seen.world.boots == 1
    assert "shrink" not in seen.err


@pytest.mark.parametrize("command", ["bisect", "bisect diverges"])
@pytest.mark.parametrize("ends", [ends for ends, what in _COMMON.items() if what.outcome == "lost"])
def test_a_lost_guest_says_nothing_of_its_stage_and_is_tried_again(command: str, ends: str, act: Act) -> None:
    seen = act(command, ends)
    assert seen.world.boots > 1
    assert "unclear" in seen.err and _COMMON[ends].shown in seen.err
    assert "first bad stage" not in seen.out


@pytest.mark.parametrize("ends", ["panic", "QEMU killed by a signal"])
@pytest.mark.parametrize("command", ["exec", "boot", "shell", "debug"])
def test_logs_are_kept_where_they_are_asked_for(command: str, ends: str, act: Any, tmp_path: Path) -> None:
    seen = act(command, ends, "--logs", "kept")
    assert "the logs are in kept" in seen.err
    assert (tmp_path / "kept" / "console.log").exists() and (tmp_path / "kept" / "qemu.log").exists()


def test_the_logs_of_another_guest_are_not_overwritten(act: Any, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "console.log").write_text("evidence")
    seen = act("exec", "panic", "--logs", "kept")
    assert seen.status == 2 and "name a new directory" in seen.err
    assert (tmp_path / "kept" / "console.log").read_text() == "evidence"


_REPORT = Finding(Outcome.KERNEL_BUG, "KASAN: use-after-free", "its text", 1)
_STALL = Finding(Outcome.KERNEL_BUG, "RCU stall in made_up", "its text", 1, kind="rcu-stall")
_DEATH = Finding(Outcome.KERNEL_PANIC, "Kernel panic: made up", "its text", 9)
_SIGNAL = MachineFailure(Outcome.LOST, "QEMU was ended by signal 9\nits words")


@pytest.mark.parametrize(
    ("error", "findings", "failure", "is_up", "outcome"),
    [
        (None, [], None, True, Outcome.OK),
        (None, [_REPORT], None, True, Outcome.KERNEL_BUG),
        (None, [_REPORT, _DEATH], None, True, Outcome.KERNEL_PANIC),
        (None, [], _SIGNAL, True, Outcome.LOST),
        # A host that kills QEMU has starved it before.
        (None, [_STALL], _SIGNAL, True, Outcome.LOST),
        (None, [_STALL, _REPORT], _SIGNAL, True, Outcome.KERNEL_BUG),
        (None, [_STALL], None, True, Outcome.KERNEL_BUG),
        (GuestLost("broke"), [], None, True, Outcome.LOST),
        (GuestLost("broke", _SIGNAL), [], None, True, Outcome.LOST),
        (GuestLost("no SSH connection"), [], None, False, Outcome.BOOT_FAILED),
        (GuestLost("no SSH connection"), [], _SIGNAL, False, Outcome.LOST),
        (CommandTimeout("slow"), [], None, True, Outcome.TIMEOUT),
        (CommandTimeout("slow"), [], None, False, Outcome.BOOT_FAILED),
        (CommandTimeout("slow"), [_REPORT], None, True, Outcome.KERNEL_BUG),
        (WorkloadFailed("bad"), [], None, True, Outcome.WORKLOAD_FAILED),
        (WorkloadFailed("bad"), [], _SIGNAL, True, Outcome.LOST),
        (WorkloadFailed("bad"), [_REPORT], _SIGNAL, True, Outcome.KERNEL_BUG),
        # A program of ours that fails in the guest.
        (CommandFailed("cat: exit status 1"), [], None, True, Outcome.LOST),
        (CommandFailed("cat: exit status 1"), [], None, False, Outcome.BOOT_FAILED),
        (CommandFailed("cat: exit status 1"), [_REPORT], None, True, Outcome.KERNEL_BUG),
        (MachineFailure(Outcome.BOOT_FAILED, "another topology"), [], None, False, Outcome.BOOT_FAILED),
        # The host before there is a guest, a wrong request, a fault of this program.
        (InfrastructureError("QEMU is not installed"), [], None, False, None),
        (UserError("no such symbol"), [], None, True, None),
        (UserError("no such symbol"), [_REPORT], None, True, None),
        (UserError("cannot read"), [_DEATH], None, True, Outcome.KERNEL_PANIC),
        (TypeError("a fault"), [_DEATH], _SIGNAL, True, None),
    ],
)
def test_the_mapping(
    error: Exception | None,
    findings: list[Finding],
    failure: MachineFailure | None,
    is_up: bool,
    outcome: Outcome | None,
) -> None:
    ending = ending_of(error, findings, failure, is_up=is_up)
    assert (ending and ending.outcome) == outcome


def test_the_evidence_says_what_came_after_the_kernels_report() -> None:
    ending = ending_of(GuestLost("broke", _SIGNAL), [_REPORT], None)
    assert ending is not None
    assert ending.evidence == "KASAN: use-after-free\nits text\nthen: QEMU was ended by signal 9"


def test_everything_that_the_kernel_reported_is_shown_once() -> None:
    ending = ending_of(None, [_REPORT, _DEATH], None)
    assert ending is not None
    assert ending.reports == (
        "kernel-panic: Kernel panic: made up\nits text",
        "kernel-bug: KASAN: use-after-free\nits text",
    )


def test_an_ending_survives_the_way_between_processes() -> None:
    ended = pickle.loads(
        pickle.dumps(GuestEnded(Ending(Outcome.LOST, "QEMU was ended"), Path("console.log")))
    )
    assert (ended.ending.outcome, ended.exit_status, ended.log) == (Outcome.LOST, 1, Path("console.log"))


def test_an_option_of_the_program_in_the_guest_is_not_ours(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "exec", [*COMMANDS["exec"], "--debug"])
    monkeypatch.setattr("orchestrator.guest.ssh.Guest.attach", _refuses)
    seen = act("exec", "well")
    assert seen.status == 1 and "orchestrate: the disk is full." in seen.err


def _refuses(*_: object, **__: object) -> None:
    raise InfrastructureError("the disk is full.")
