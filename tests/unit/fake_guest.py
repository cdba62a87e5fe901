# SPDX-License-Identifier: GPL-2.0-only
"""Guests without QEMU and SSH: the machine, the bench and every command are real, what they talk to is not.

A :class:`World` stands for the host of one command. It says how each guest ends: what QEMU does, what the kernel prints
on its console, how the connection breaks, and how the program ends that the command runs in the guest.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.execution import bench as bench_module
from orchestrator.execution import provenance
from orchestrator.execution.bench import Bench
from orchestrator.execution.bisect import trace_trial
from orchestrator.execution.check import run as check_run
from orchestrator.execution.check.differential import expected_views
from orchestrator.execution.check.reference import model_of
from orchestrator.execution.verify import run as series_verification
from orchestrator.guest import ssh
from orchestrator.guest.image import GuestImage
from orchestrator.guest.ssh import CommandTimeout, Finished, Guest
from orchestrator.kernel.build import KernelBuild
from orchestrator.kernel.series import Stage, load_series
from orchestrator.kernel.source import SourceTree
from orchestrator.kernel.tree import PatchedTree
from orchestrator.machine import qemu
from orchestrator.machine.accelerator import Accelerator
from orchestrator.machine.qemu import Machine
from orchestrator.machine.qmp import QmpError
from orchestrator.machine.topology import Topology
from orchestrator.model.trace import Exit, Trace, parse

ROOT = Path(__file__).resolve().parents[2]

READY = "[    0.500000] Run /init as init process\norchestrate: ready\n"
PANIC = (
    "[    9.000000] Kernel panic - not syncing: made up\n"
    "[    9.000001] CPU: 0 UID: 0 PID: 1 Comm: made_up\n"
    "[    9.000002] ---[ end Kernel panic - not syncing: made up ]---\n"
)
OOPS = (
    "[    9.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000\n"
    "[    9.000001] Oops: Oops: 0000 [#1] SMP NOPTI\n"
    "[    9.000002] RIP: 0010:made_up+0x10db/0x1290\n"
    "[    9.000003] ---[ end trace 0000000000000000 ]---\n"
)
KASAN = (
    "[    9.000000] ==================================================================\n"
    "[    9.000001] BUG: KASAN: slab-use-after-free in made_up+0x12/0x34\n"
    "[    9.000002] Read of size 8 at addr ffff888003bb2c80 by task made_up/77\n"
    "[    9.000003] ==================================================================\n"
)
NO_MEMORY = "qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory\n"

TOPOLOGY = "1x512M/1"
#: How a guest ends.
ENDINGS = (
    "well",
    "panic",
    "oops",
    "KASAN report, then a hang",
    "QEMU killed by a signal",
    "QEMU out of memory",
    "boot timeout",
    "workload timeout",
    "SSH lost while the kernel lives",
    "workload failed",
    "output ends early",
)

#: A reading of counters as the guest's sampling program prints it.
_READING = "s 1000 0\ne 0\n"


class FakeQemu:
    """One QEMU: as :class:`subprocess.Popen` towards the machine."""

    pid = 4_000_000  # above what Linux gives

    def __init__(self, world: World, argv: Sequence[str], stderr: Any) -> None:
        self._world = world
        self._stderr = Path(stderr.name)
        self.returncode: int | None = None
        self.connection: Connection | None = None
        kernel = Path(argv[list(argv).index("-kernel") + 1])
        world.stages = int(kernel.parent.name.rpartition("-")[2])
        console = next(word for word in argv if "id=console" in word)
        self.console = Path(console.partition("logfile=")[2].partition(",")[0])
        self.console.write_text("")

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            raise subprocess.TimeoutExpired("qemu", timeout or 0)
        return self.returncode

    def prints(self, text: str) -> None:
        with self.console.open("a") as stream:
            stream.write(text)

    def ends(self, returncode: int, last_words: str = "") -> None:
        if self.returncode is None:
            with self._stderr.open("a") as stream:
                stream.write(last_words)
            if self.connection is not None:
                self.connection.close()
            self.returncode = returncode


class FakeQmp:
    """A control socket: as :class:`orchestrator.machine.qmp.Qmp`."""

    def __init__(self, world: World, on_event: Callable[[str, Mapping[str, Any]], None]) -> None:
        self._world = world
        self.on_event = on_event

    def accept(self, timeout_s: float) -> bool:
        return self._world.qemu_connects()

    def monitor(self, command: str) -> str:
        if command == "info usernet":
            self._world.guest_boots()
            return "  TCP[HOST_FORWARD]   9       127.0.0.1 34567       10.0.2.15    22     0     0\r\n"
        return ""

    def execute(self, command: str, arguments: object = None, timeout_s: float = 0) -> dict[str, Any]:
        if command == "quit":
            self._world.qemu.ends(0)
        return {}

    def close(self) -> None:
        pass


class Connection:
    """As paramiko's transport."""

    def __init__(self) -> None:
        self._is_active = True

    def is_active(self) -> bool:
        return self._is_active

    def close(self) -> None:
        self._is_active = False

    def get_exception(self) -> Exception | None:
        return None


@dataclass
class ProgramEnd:
    """How a program in the guest ends; `status` None is a signal, `hangs` a program that does not end."""

    stdout: str = ""
    status: int | None = 0
    hangs: bool = False


class FakeRemote:
    """A program in the guest: as :class:`orchestrator.guest.ssh.Remote`."""

    def __init__(self, guest: FakeGuest, argv: Sequence[str], answer: ProgramEnd) -> None:
        self._guest = guest
        self._argv = tuple(argv)
        self._answer = answer

    @property
    def stdout_bytes(self) -> bytes:
        return self._answer.stdout.encode()

    def wait(self, timeout_s: float | None = None) -> Finished:
        if not self._guest.alive:
            raise self._guest.lost()
        if self._answer.hangs:
            assert timeout_s is not None, f"{self._argv} would hang for ever"
            raise CommandTimeout(
                f"{shlex.join(self._argv)} in the guest took more than {timeout_s:g} s and was killed.",
                self._answer.stdout,
            )
        name = None if self._answer.status is not None else "SIGKILL"
        return Finished(self._argv, self._answer.status, name, self._answer.stdout, "", 0.1)

    def stop(self, timeout_s: float = 0.0) -> Finished:
        return self.wait(timeout_s)


class FakeGuest(Guest):
    """A connection whose programs end as the world says."""

    def __init__(self, world: World, why: Callable[[float], Exception | None] | None) -> None:
        super().__init__(Connection(), None)  # type: ignore[arg-type]
        self._world = world
        if why is not None:
            self._why = why

    def _start(self, argv: Any, stdout: Any, stderr: Any, stdin: Any, on_line: Any, *_: Any) -> Any:
        if not self.alive:
            raise self.lost()
        answer = self._world.answers(list(argv), stdin)
        if isinstance(stdout, Path):
            stdout.write_text(answer.stdout)
        elif stdout is not None:
            stdout.write(answer.stdout.encode())
            stdout.flush()
        if on_line is not None:
            for line in answer.stdout.splitlines():
                on_line(line)
        return FakeRemote(self, argv, answer)


@dataclass
class World:
    """The host of one command, whose guests all end in one way.

    Args:
        ends: one of :data:`ENDINGS`.
        directory: where kernels and images lie.
        ran: command lines of what the command has run in its guests, reading of counters left out.
        boots: how many guests were started.
        stages: of the kernel of the last one.
    """

    ends: str
    directory: Path
    ran: list[list[str]] = field(default_factory=list)
    boots: int = 0
    stages: int = 0
    notes_read: int = 0
    _qemu: FakeQemu | None = None
    _qmp: FakeQmp | None = None

    # QEMU

    @property
    def qemu(self) -> FakeQemu:
        assert self._qemu is not None
        return self._qemu

    def spawns(self, argv: Sequence[str], **options: Any) -> FakeQemu:
        self.boots += 1
        self.notes_read = 0
        started = FakeQemu(self, argv, options["stderr"])
        if self.ends == "QEMU out of memory":
            started.ends(1, NO_MEMORY)
        self._qemu = started  # from now on another thread may connect
        return started

    def qemu_connects(self) -> bool:
        return self._qemu is not None and self._qemu.returncode is None

    def listens(self, socket: Path, on_event: Any) -> FakeQmp:
        self._qmp = FakeQmp(self, on_event)
        return self._qmp

    def guest_boots(self) -> None:
        self.qemu.prints("[    0.000000] Linux version 6.12\n")
        if self.ends != "boot timeout":
            self.qemu.prints(READY)

    def connects(self, *_: Any, **options: Any) -> FakeGuest:
        why = next((each for each in (*_, *options.values()) if callable(each)), None)
        guest = FakeGuest(self, why)
        self.qemu.connection = guest._transport  # type: ignore[assignment]
        return guest

    # What happens in the guest

    def happens(self) -> None:
        """What ends the guest, or is reported in it, once its work is under way."""
        if self.ends == "panic":
            self.qemu.prints(PANIC)
            self.resets("guest-reset")
        elif self.ends == "oops":
            self.qemu.prints(OOPS)
        elif self.ends == "KASAN report, then a hang":
            self.qemu.prints(KASAN)
        elif self.ends == "QEMU killed by a signal":
            self.qemu.ends(-signal.SIGKILL)
        elif self.ends == "SSH lost while the kernel lives":
            assert self.qemu.connection is not None
            self.qemu.connection.close()

    def resets(self, reason: str) -> None:
        """The guest resets itself or switches itself off."""
        assert self._qmp is not None
        self._qmp.on_event("SHUTDOWN", {"guest": True, "reason": reason})
        self.qemu.ends(0)

    def works(self, well: str, failed: str, early: str) -> ProgramEnd:
        """How the program ends that the command runs in its guest.

        Args:
            well, failed, early: what it prints if all goes well, if it fails, and if its output ends early.
        """
        self.happens()
        if self.ends in ("workload timeout", "KASAN report, then a hang"):
            return ProgramEnd(early, hangs=True)
        if self.ends == "workload failed":
            return ProgramEnd(failed, status=1)
        if self.ends == "output ends early":
            return ProgramEnd(early)
        if self.ends == "oops":  # die() kills the task
            return ProgramEnd(early, status=None)
        return ProgramEnd(well)

    def answers(self, argv: list[str], stdin: str | None) -> ProgramEnd:
        """What a program does in the guest."""
        program = argv[0].rpartition("/")[2]
        if "--while" in argv:
            return ProgramEnd("r\n")
        if "--once" in argv:
            return ProgramEnd(_READING)
        if argv == ["cat", "/sys/kernel/notes"]:
            self.notes_read += 1
            if self.notes_read == 2 and self.ends.startswith("SSH"):  # once to know the kernel, once for gdb
                self.happens()
            return ProgramEnd("notes")
        if argv == ["cat", "/proc/swaps"]:
            return ProgramEnd("Filename\n/dev/zram0\n")
        self.ran.append(argv)
        if program == "touch":
            good = {"metric": "rss_kib.max", "unit": "KiB", "value": 1}
            bad = {"end": "failed", "reason": "page 7 is not zero"}
            return self.works(_lines(good, {"end": "ok"}), _lines(bad), _lines(good))
        if program == "trace-exec":
            bad = {"end": "error", "reason": "cannot fork: made up"}
            return self.works(_traced(stdin or "", self.stages), _lines(bad), '{"trace": 0')
        if program == "reservations":
            head = "TAP version 13\n1..2\nok 1 first\n"
            return self.works(f"{head}ok 2 second\n", f"{head}not ok 2 second\n", head)
        if program == "program":
            return self.works("printed\n", "printed\n", "pri")
        if program == "test":  # there is no kmemleak
            return ProgramEnd(status=1)
        return ProgramEnd()


def _lines(*records: Mapping[str, object]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _traced(stdin: str, stages: int) -> str:
    """What trace-exec prints if a kernel with so many stages does exactly what its model expects of some traces."""
    head = "trace 1\n"
    texts = [head + text for text in stdin.split(head)[1:]]
    answers = [_answers(number, parse(text), stages) for number, text in enumerate(texts)]
    return "".join(answers) + _lines({"end": "ok"})


def _answers(number: int, trace: Trace, stages: int) -> str:
    series = load_series(ROOT / "kernel_patches")
    patchset = f"stage-{stages}" if stages else "baseline"
    model = model_of(patchset, series, Topology.parse(TOPOLOGY))(trace)
    records: list[dict[str, object]] = [{"trace": number, "vmstat": {}}]
    for step, operation in enumerate(trace.operations):
        expected = model.step(operation)
        views, with_rss = expected_views(trace, step, model.alive)
        processes = {
            name: {
                "blocks": {str(block): model.block(name, block).as_dict() for block in blocks},
                **({"rss": model.rss(name)} if with_rss else {}),
            }
            for name, blocks in views.items()
        }
        records.append(
            {
                "step": step,
                "errno": expected.errno,
                "processes": processes,
                "vmstat": dict(expected.vmstat),
            }
        )
    last = {}
    for name in list(model.alive):
        last = dict(model.step(Exit(name)).vmstat)
    return _lines(*records, {"over": number, "vmstat": last})


def not_saved(bench: Bench, asked: object, directory: Path) -> None:
    """There are no clones of fake guests."""
    raise QmpError("a fake guest has no state")


def install(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a world in the place of QEMU, SSH, kernels and images."""
    directory = world.directory
    monkeypatch.setenv("ORCHESTRATE_ROOT", str(ROOT))
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(directory / "cache"))
    monkeypatch.setenv("ORCHESTRATE_RESULTS", str(directory / "results"))
    (directory / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory / "tmp"))
    fake_process = SimpleNamespace(
        spawn=world.spawns,
        require=lambda program: program,
        kill_group=lambda running: running.ends(-signal.SIGKILL),
        is_stopped=lambda running: False,
    )
    monkeypatch.setattr(qemu, "process", fake_process)
    monkeypatch.setattr(qemu, "Qmp", world.listens)
    monkeypatch.setattr(qemu, "POLL_S", 0.005)
    monkeypatch.setattr(bench_module, "BOOT_TIMEOUT_S", 0.3 if world.ends == "boot timeout" else 60.0)
    monkeypatch.setattr(bench_module, "verify", lambda guest, topology: [])
    monkeypatch.setattr(bench_module, "build_id_of_notes", lambda notes: "build-id")
    monkeypatch.setattr(ssh, "_REASON_S", 0.1 if world.ends.startswith("SSH") else 20.0, raising=False)
    monkeypatch.setattr(Machine, "ask_where", lambda *_, **__: None)
    monkeypatch.setattr(Guest, "connect", world.connects)
    accelerator = Accelerator("tcg", "ns", "for a test", "max", "7.2.22")
    monkeypatch.setattr(Bench, "accelerator", accelerator)
    source = SourceTree(Path("/source.git"), "base", "base", "6.12", "a source")
    monkeypatch.setattr(Bench, "source_tree", source)
    origin = SimpleNamespace(package=None, description="a source", is_imported=lambda cache: True)
    monkeypatch.setattr(Bench, "origin", origin)
    image = GuestImage(directory / "image", "image")
    monkeypatch.setattr(Bench, "image_with", lambda bench, layers: image)
    monkeypatch.setattr(Bench, "has_kernel", lambda bench, patchset: True)
    monkeypatch.setattr(Bench, "_save_boot", not_saved)

    def tree_of(stages: Sequence[Stage]) -> PatchedTree:
        name = f"tree-{len(stages)}"
        return PatchedTree(Path("/tree.git"), name, name, source, tuple(stages))

    def kernel(bench: Bench, patchset: str, dwarf: bool = False) -> KernelBuild:
        digest = f"kernel-{len(bench.series.select(patchset))}"
        return KernelBuild(directory / digest, "6.12", "build-id", "gcc", (), 1.0, True, digest)

    monkeypatch.setattr(Bench, "tree", lambda bench, patchset: tree_of(bench.series.select(patchset)))
    monkeypatch.setattr(Bench, "kernel", kernel)
    monkeypatch.setattr(series_verification, "apply_stages", lambda source, stages, *_: tree_of(stages))
    for module in (check_run, trace_trial):
        monkeypatch.setattr(module, "traits_of", lambda tree: frozenset())
    monkeypatch.setattr(provenance, "tool_versions", dict)
    monkeypatch.setattr(provenance, "_checkout", lambda: None)
    # What follows a run is not how it ended, and takes a while.
    monkeypatch.setattr("orchestrator.execution.measure.report.plot_run", lambda run, directory: [])
    monkeypatch.setattr("orchestrator.execution.measure.report.write_report", lambda *_: None)
