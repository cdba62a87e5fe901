# SPDX-License-Identifier: GPL-2.0-only
"""A machine: one QEMU process with a guest in it, supervised from its start to its end.

A supervising thread notices a panic of the guest, the death of QEMU or a hanging boot within a fraction of a second,
and reports it through :meth:`Machine.boot`, :meth:`Machine.watch` and :meth:`Machine.on_failure`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from orchestrator import process
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Events
from orchestrator.machine import saved_boot
from orchestrator.machine.accelerator import Accelerator
from orchestrator.machine.apic_timer import ApicTimer, Stub, StubError, tell_frequency
from orchestrator.machine.console import ConsoleLog, dialogue
from orchestrator.machine.description import write_description
from orchestrator.machine.oops import Finding
from orchestrator.machine.qmp import Qmp, QmpError
from orchestrator.machine.saved_boot import SavedBoot
from orchestrator.machine.shortcut import Shortcuts
from orchestrator.machine.topology import NodeMemory, Topology
from orchestrator.store.outcome import Outcome
from orchestrator.temporary import make_temporary, remove_temporary

log = logging.getLogger(__name__)

#: Seconds between two checks of the supervisor: the longest delay before a panic is noticed. The cost is negligible.
POLL_S = 0.05
#: Seconds to wait for the rest of a panic report after its first line.
PANIC_GRACE_S = 0.5
#: Seconds that a workload may continue after an oops, with `end_after_oops`: it may still end and report by itself.
OOPS_GRACE_S = 10.0
#: Seconds that the supervisor may take to judge a QEMU that has ended.
_LAST_WORDS_S = 5.0
#: Seconds in which the reason of a shutdown may arrive after QEMU has ended.
_EVENT_S = 1.0
#: QEMU connects before it allocates anything, so only an overloaded host takes this long.
START_TIMEOUT_S = 60.0
#: Longest path of a Unix socket (unix(7)): sun_path has 108 bytes including the terminating null.
SOCKET_PATH_BYTES = 107

#: Kernel parameters that come before those of the caller, so that the caller's take precedence.
CMDLINE = (
    "console=ttyS0,115200",
    "earlyprintk=ttyS0,115200",  # without it a panic before the console is up prints nothing
    "panic=-1",  # reset at once, at which -no-reboot makes QEMU exit
    "printk.time=1",  # tells lines of the kernel from those of user space
    "sysrq_always_enabled",  # to find out where a hung guest hangs
    # Its test of the timer counts ticks against a loop of the CPU, and panics where a busy host emulates both.
    "no_timer_check",
)
#: More of them, for gdb.
_OF_GDB = ("nokaslr", "panic=0")
#: The longest of a :class:`Shortcuts`.
_LONGEST_LPJ = "lpj=1000000000"
#: Bytes of the longest kernel command line.
_LONGEST = 2047

_USERNET = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(?P<port>\d+)\s")
_CONNECTION = re.compile(r"TCP\[(?!HOST_FORWARD)")
#: Host seconds for a closed connection to end in the guest, too.
_CLOSE_S = 10.0
# States that a guest never leaves (RunState in the QEMU QMP Reference Manual).
_DEAD_STATES = ("internal-error", "io-error", "guest-panicked")


class MachineFailure(Exception):  # noqa: N818 - a result of the experiment, not an error of the tool
    """The machine failed in a way that ends the cell.

    Args:
        outcome: ``boot-failed``, ``kernel-panic``, ``kernel-bug`` (the kernel reported a bug and did not come up),
            ``lost`` or ``timeout``.
        evidence: one line that says what happened, followed by output of the console or of QEMU.
    """

    def __init__(self, outcome: Outcome, evidence: str) -> None:
        super().__init__(outcome, evidence)
        self.outcome = outcome
        self.evidence = evidence

    def __str__(self) -> str:
        return self.evidence


FailureHandler = Callable[[MachineFailure], object]


@dataclass(frozen=True)
class Sockets:
    """The Unix sockets of one machine, in a private directory.

    Args:
        directory: has mode 0700; removed when the machine is closed.
    """

    directory: Path

    @property
    def qmp(self) -> Path:
        """QEMU's control socket; QEMU connects to it."""
        return self.directory / "qmp"

    @property
    def monitor(self) -> Path:
        """The human monitor, for interactive use."""
        return self.directory / "monitor"

    @property
    def console(self) -> Path:
        """The serial console, for interactive use or :func:`orchestrator.machine.console.dialogue`."""
        return self.directory / "console"

    @property
    def control(self) -> Path:
        """A control socket for another process, which connects to QEMU."""
        return self.directory / "control"

    @property
    def memory(self) -> Path:
        """Like :attr:`control`, for whoever reads the guest's memory: a socket serves one client at a time."""
        return self.directory / "memory"

    @property
    def gdb(self) -> Path:
        """The gdb stub, if there is one."""
        return self.directory / "gdb"

    @property
    def plugin(self) -> Path:
        """Where a plugin of QEMU answers, if there is one."""
        return self.directory / "plugin"


@dataclass(frozen=True)
class Plugin:
    """A plugin of QEMU's TCG (QEMU's docs/devel/tcg-plugins.rst).

    Args:
        library: shared library.
        arguments: its arguments; ``socket=`` with the path :attr:`Sockets.plugin` is added.
    """

    library: Path
    arguments: Mapping[str, str]

    def qemu_arguments(self, sockets: Sockets) -> list[str]:
        """QEMU's arguments that load it."""
        arguments = {"file": str(self.library), **self.arguments, "socket": str(sockets.plugin)}
        return ["-plugin", ",".join(f"{key}={_escaped(Path(value))}" for key, value in arguments.items())]


def check_cmdline(cmdline: Sequence[str]) -> None:
    """Check that a kernel command line is not cut.

    Args:
        cmdline: kernel parameters, to be appended to :data:`CMDLINE`.

    Raises:
        UserError: it is longer than x86 takes (Documentation/arch/x86/boot.rst, cmdline_size; COMMAND_LINE_SIZE of
            arch/x86/include/asm/setup.h is 2048 with the terminating zero).
    """
    length = len(" ".join([*CMDLINE, *_OF_GDB, _LONGEST_LPJ, *cmdline]).encode())
    if length > _LONGEST:
        own = length - len(" ".join(cmdline).encode())
        raise UserError(
            f"the kernel command line has {length} bytes and x86 takes {_LONGEST}; shorten --cmdline to at most "
            f"{_LONGEST - own} bytes."
        )


def qemu_argv(
    bzimage: Path,
    initramfs: Path,
    topology: Topology,
    accelerator: Accelerator,
    cmdline: Sequence[str],
    console_log: Path,
    sockets: Sockets,
    gdb: bool = False,
    wait_for_gdb: bool = False,
    shortcuts: Shortcuts = Shortcuts(),  # noqa: B008 - it is frozen
    memory: NodeMemory | None = None,
    plugin: Plugin | None = None,
) -> list[str]:
    """The command line of QEMU (qemu(1)).

    Args:
        cmdline: kernel parameters, appended to :data:`CMDLINE`.
        console_log: file that QEMU writes the console output to.
        gdb: serve gdb on :attr:`Sockets.gdb`, and boot the kernel with nokaslr.
        wait_for_gdb: do not start the CPUs until gdb continues.
        shortcuts: shortcuts of the boot. If the kernel is told the frequency of its timer, the CPUs do not start until
            :func:`tell_frequency` starts them, through the same socket.
        memory: files for the guest's memory; if they are not shared, its state is still to come.
        plugin: plugin to load.
    """
    tells_timer = shortcuts.timer is not None
    words = [*CMDLINE, *(_OF_GDB if gdb else []), *shortcuts.cmdline, *cmdline]
    console = f"socket,id=console,path={_escaped(sockets.console)}"
    argv = [
        *(accelerator.program, "-nodefaults", "-no-user-config", "-display", "none"),
        # A guest that breaks out of QEMU cannot start programs, get privileges or change priorities (seccomp(2)).
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", "q35", *accelerator.qemu_arguments, *topology.qemu_arguments(memory)),
        *shortcuts.firmware,
        *("-kernel", str(shortcuts.elf or bzimage), "-initrd", str(initramfs), "-append", " ".join(words)),
        # A reset ends QEMU; a panic does not, so that the kernel can print its whole report before it resets itself.
        *("-no-reboot", "-action", "panic=none"),
        *("-chardev", f"socket,id=qmp,path={_escaped(sockets.qmp)}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=control,path={_escaped(sockets.control)},server=on,wait=off"),
        *("-mon", "chardev=control,mode=control"),
        *("-chardev", f"socket,id=memory,path={_escaped(sockets.memory)},server=on,wait=off"),
        *("-mon", "chardev=memory,mode=control"),
        *("-chardev", f"socket,id=monitor,path={_escaped(sockets.monitor)},server=on,wait=off"),
        *("-mon", "chardev=monitor,mode=readline"),
        *("-chardev", ",".join([console, "server=on,wait=off", f"logfile={_escaped(console_log)},logappend=on"])),
        *("-serial", "chardev:console"),
        # QEMU chooses a free port, so that two machines never conflict. restrict=on: no access to the network.
        *("-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"),
        *("-device", "virtio-net-pci,netdev=net,romfile="),
        # Without it, sshd waits a long time for entropy.
        *("-device", "virtio-rng-pci"),
        *("-device", "pvpanic"),
    ]  # fmt: skip
    if gdb or wait_for_gdb or tells_timer:
        argv += [
            "-chardev",
            f"socket,id=gdb,path={_escaped(sockets.gdb)},server=on,wait=off",
            "-gdb",
            "chardev:gdb",
        ]
    if wait_for_gdb or tells_timer:
        argv += ["-S"]
    if plugin is not None:
        argv += plugin.qemu_arguments(sockets)
    if memory is not None and not memory.shared:
        argv += ["-incoming", "defer"]
    return argv


class Machine:
    """A machine, from QEMU's start to its end; a context manager that cleans up completely.

    QEMU starts when the block is entered and dies with this process, however that ends. It is started by a thread
    that lives as long as QEMU (see :mod:`orchestrator.process`), so it does not depend on the caller's thread.

    Args:
        bzimage, initramfs: kernel and initramfs to boot.
        topology: NUMA topology.
        accelerator: accelerator to use.
        cmdline: more kernel parameters; if one is given twice, the last one counts.
        log_dir: directory for ``console.log``, ``qemu.log`` (command line and stderr) and ``machine.json`` (how to
            reach the running guest: SSH port, sockets, PID).
        gdb: serve gdb; see :attr:`gdb_socket`.
        wait_for_gdb: like `gdb`, but the CPUs do not start until gdb continues.
        events: receives the progress of the boot.
        ready_mark: line that the guest prints when it is up.
        shortcuts: shortcuts of the boot.
        memory: directory for the guest's memory, so that the guest can be saved there.
        saved: a saved boot to clone instead of a boot; all other arguments must be those of that boot.
        plugin: plugin of QEMU to load.

    Raises:
        MachineFailure: QEMU did not start; the evidence is its output.
        InfrastructureError: QEMU is not installed.
    """

    def __init__(
        self,
        bzimage: Path,
        initramfs: Path,
        topology: Topology,
        accelerator: Accelerator,
        cmdline: Sequence[str],
        log_dir: Path,
        gdb: bool = False,
        wait_for_gdb: bool = False,
        events: Events | None = None,
        ready_mark: str | None = None,
        shortcuts: Shortcuts = Shortcuts(),  # noqa: B008 - it is frozen
        memory: Path | None = None,
        saved: SavedBoot | None = None,
        plugin: Plugin | None = None,
    ) -> None:
        self.topology = topology
        self.accelerator = accelerator
        self.log_dir = log_dir
        self.console_log = log_dir / "console.log"
        self.qemu_log = log_dir / "qemu.log"
        self.console = (
            ConsoleLog(self.console_log) if ready_mark is None else ConsoleLog(self.console_log, ready_mark)
        )
        self.ssh_port = 0
        self._events = events or Events()
        self._arguments = (
            bzimage,
            initramfs,
            topology,
            accelerator,
            tuple(cmdline),
            self.console_log.absolute(),
        )
        self._gdb = gdb or wait_for_gdb
        self._wait_for_gdb = wait_for_gdb
        # Whoever debugs the boot starts the CPUs.
        self._shortcuts = replace(shortcuts, timer=None) if wait_for_gdb or saved else shortcuts
        self._saved = saved
        self._memory = (
            NodeMemory(saved.directory, False) if saved else NodeMemory(memory, True) if memory else None
        )
        self._stub: Stub | None = None
        self._plugin = plugin
        self._sockets: Sockets | None = None
        self._argv: list[str] = []
        self._qmp: Qmp | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._start_error: BaseException | None = None
        self._began = 0.0
        self._booted = False
        self._closing = False
        self._shutdown_reason = ""
        self._dead_state = ""
        self._failure: MachineFailure | None = None
        self._oops_grace_s: float | None = None
        self._callbacks: list[FailureHandler] = []
        self._changed = threading.Condition()
        self._close_lock = threading.Lock()
        self._supervisor = threading.Thread(
            target=self._supervise, name=f"machine {log_dir.name}", daemon=True
        )

    def __enter__(self) -> Machine:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def argv(self) -> tuple[str, ...]:
        """QEMU's command line; empty before the start."""
        return tuple(self._argv)

    @property
    def qmp(self) -> Qmp:
        """QEMU's control socket."""
        assert self._qmp is not None, "the machine has not been started"
        return self._qmp

    @property
    def sockets(self) -> Sockets:
        """The Unix sockets of this machine."""
        assert self._sockets is not None, "the machine has not been started"
        return self._sockets

    @property
    def gdb_socket(self) -> Path | None:
        """The socket that gdb connects to; None if the machine does not serve gdb."""
        return self.sockets.gdb if self._gdb else None

    @property
    def pid(self) -> int:
        """Process ID of QEMU."""
        assert self._process is not None, "the machine has not been started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether QEMU runs and the guest has not failed."""
        return self._process is not None and self._process.poll() is None and self._failure is None

    @property
    def has_process(self) -> bool:
        """Whether QEMU runs, whatever became of the guest in it."""
        return self._process is not None and self._process.poll() is None

    @property
    def failure(self) -> MachineFailure | None:
        """How QEMU or the guest in it has ended; None while it runs, and where it was only closed."""
        with self._changed:
            has_ended = self._process is not None and self._process.poll() is not None
            if has_ended:  # the supervisor sees that a moment later, and reads its last words
                self._changed.wait_for(lambda: self._failure is not None or self._closing, _LAST_WORDS_S)
            return self._failure

    @property
    def switched_off(self) -> bool:
        """Whether the guest has shut itself down."""
        return not self.alive and self._shutdown_reason == "guest-shutdown"

    def boot(self, timeout_s: float) -> float:
        """Wait until the guest is up.

        Args:
            timeout_s: time limit in host seconds since the start of QEMU. With icount, guest time is unrelated.

        Returns:
            Host seconds from the start of QEMU until the guest was up.

        Raises:
            MachineFailure: at once on a panic or if QEMU dies, else after the timeout. In that case backtraces of
                all CPUs and the blocked tasks of the guest are in the console log.
        """
        deadline = self._began + timeout_s
        with self._events.step(f"boot {self.log_dir.name}", part=True):
            with self._changed:
                self._changed.wait_for(
                    lambda: self._failure is not None or self._closing or self.console.ready,
                    max(0.0, deadline - time.monotonic()),
                )
            if self._failure is None and not self.console.ready and not self._closing:
                self._fail(self._hung(timeout_s))
            self.watch()
            self._booted = True
            return time.monotonic() - self._began

    def watch(self, within_s: float = 0.0) -> None:
        """Raise if the machine has failed; else return.

        Args:
            within_s: host seconds to wait for a failure. A connection to the guest breaks a moment before the
                machine knows why.

        Raises:
            MachineFailure: the guest panicked, QEMU died or stopped the guest, or the machine was closed.
        """
        if within_s > 0:
            with self._changed:
                self._changed.wait_for(lambda: self._failure is not None or self._closing, within_s)
        if self._failure is not None:
            raise self._failure
        if self._closing:
            raise MachineFailure(Outcome.LOST, "the machine was closed")

    def why(self, within_s: float = 0.0) -> MachineFailure | None:
        """The reason for which the machine has failed or was closed; None where all is well.

        Args:
            within_s: see :meth:`watch`.
        """
        try:
            self.watch(within_s)
        except MachineFailure as failure:
            return failure
        return None

    def on_failure(self, callback: FailureHandler) -> None:
        """Call `callback` with the failure, once, when the machine fails; at once if it has failed already.

        It is called in the supervising thread and must not block. It is not called when the machine is closed.
        """
        with self._changed:
            if self._failure is None:
                self._callbacks.append(callback)
                return
            failure = self._failure
        callback(failure)

    def end_after_oops(self, grace_s: float = OOPS_GRACE_S) -> None:
        """From now on, treat an oops as a failure of the machine after `grace_s` host seconds.

        The task that died may have held a lock that everything else waits for, and a workload would then run into its
        timeout. In interactive use the guest should stay as it is.
        """
        self._oops_grace_s = grace_s

    def findings(self) -> list[Finding]:
        """The kernel's reports on the console so far."""
        return self.console.findings()

    def ask_where(self, keys: str = "lw", settle_s: float = 1.0) -> None:
        """Make the guest's kernel print what it is doing, with SysRq over the serial line (sysrq.rst).

        Args:
            keys: ``l`` backtraces of all CPUs, ``w`` blocked tasks, ``t`` all tasks, ``m`` memory.
            settle_s: wait until the console has been silent for this many host seconds, at most ten times that.
        """
        for key in keys:
            with contextlib.suppress(OSError, QmpError), dialogue(self.sockets.console) as line:
                # A socket cannot transmit the break that starts SysRq, so QEMU sends it.
                self.qmp.execute("chardev-send-break", {"id": "console"})
                line.send(key)
                time.sleep(min(0.2, settle_s))
        until = time.monotonic() + 10 * settle_s
        while time.monotonic() < until and self.console.silent_s < settle_s and self.alive:
            time.sleep(POLL_S)

    def stop(self) -> bool:
        """Stop the guest's CPUs, also after a failure. Returns whether QEMU still runs."""
        if not self.has_process or self._qmp is None:
            return False
        try:
            self._qmp.execute("stop")
        except QmpError:
            return False
        return True

    def close(self) -> None:
        """End QEMU and remove the sockets. May be called repeatedly, and from any thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        with self._close_lock:
            running = self._process
            if running is not None and running.poll() is None:
                if process.is_stopped(running):  # it would not answer
                    process.kill_group(running)
                elif self._qmp is not None and self.ssh_port:
                    with contextlib.suppress(QmpError):
                        self._qmp.execute("quit", timeout_s=2.0)
                try:
                    running.wait(2.0)
                except subprocess.TimeoutExpired:
                    process.kill_group(running)
            if self._stub is not None:
                self._stub.close()
            if self._supervisor.is_alive() and threading.current_thread() is not self._supervisor:
                self._supervisor.join(5.0)
            if self._qmp is not None:
                self._qmp.close()
            if self._sockets is not None:
                remove_temporary(self._sockets.directory)
                if self.ssh_port:
                    self._describe(alive=False)

    # --- start -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        process.require(self.accelerator.program)
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self.console_log.unlink(missing_ok=True)
        if self._saved is not None:
            # A clone goes on where the boot was saved, and so does its log. It may end at any time.
            shutil.copyfile(self._saved.console, self.console_log)
        self._sockets = Sockets(_private_directory())
        self._argv = qemu_argv(
            *self._arguments,
            self._sockets,
            self._gdb,
            self._wait_for_gdb,
            self._shortcuts,
            self._memory,
            self._plugin,
        )
        self._qmp = Qmp(self._sockets.qmp, self._heard)
        self._began = time.monotonic()
        self._supervisor.start()
        self._await_connection()
        try:
            found = _USERNET.search(self._qmp.monitor("info usernet"))
        except QmpError as error:
            self.watch(within_s=2.0)
            raise MachineFailure(Outcome.LOST, f"QEMU does not answer: {error}") from error
        if found is None:
            raise InfrastructureError(
                "QEMU does not report which port it forwards to the guest.", self.qemu_log
            )
        self.ssh_port = int(found["port"])
        self._describe(alive=True)
        if self._shortcuts.timer is not None:
            self._tell_timer(self._shortcuts.timer)
        if self._saved is not None:
            try:
                saved_boot.load(self.qmp, self._saved, self.sockets.directory)
            except QmpError as error:
                self.watch(within_s=2.0)
                raise MachineFailure(Outcome.LOST, f"the clone did not start: {error}") from error

    def save(self, saved: SavedBoot) -> None:
        """Save the guest, whose memory must be in files of `saved`. It stands still afterwards.

        Raises:
            QmpError: QEMU cannot save it.
            InfrastructureError: its state cannot be written.
        """
        # A connection that was closed a moment ago is not in the saved state of QEMU's network, only in the guest's.
        until = time.monotonic() + _CLOSE_S
        while _CONNECTION.search(self.qmp.monitor("info usernet")) and time.monotonic() < until:
            time.sleep(POLL_S)
        saved_boot.save(self.qmp, saved, self.sockets.directory)
        self.console.poll()
        shutil.copyfile(self.console_log, saved.console)

    def _tell_timer(self, timer: ApicTimer) -> None:
        """Start the CPUs, and tell the kernel the frequency of its timer once it is about to measure it."""
        try:
            stub = self._stub = Stub(self.sockets.gdb)
        except OSError as error:
            self.watch(within_s=2.0)
            raise MachineFailure(Outcome.LOST, f"QEMU's gdb stub does not answer: {error}") from error

        def tell() -> None:
            try:
                tell_frequency(stub, timer)
            except StubError as error:
                # The kernel measures it then. A guest that ended before has its own report.
                log.debug("%s: the timer's frequency was not told: %s", self.log_dir.name, error)
                with contextlib.suppress(QmpError):
                    self.qmp.execute("cont", timeout_s=2.0)
            stub.close()

        threading.Thread(target=tell, name=f"timer {self.log_dir.name}", daemon=True).start()

    def _await_connection(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        # The supervisor may not have come to note the process that connects.
        while not self._connected() or self._process is None:
            if self._start_error is not None:
                raise self._start_error
            self.watch()
            if time.monotonic() > deadline:
                raise MachineFailure(Outcome.LOST, f"QEMU did not start within {START_TIMEOUT_S:g} s")

    def _connected(self) -> bool:
        try:
            return self.qmp.accept(POLL_S)
        except QmpError as error:
            # It connected and then failed on a later option; the supervisor has its message.
            self.watch(within_s=2.0)
            raise InfrastructureError(
                f"QEMU's control socket does not work: {error}.", self.qemu_log
            ) from error

    def _describe(self, alive: bool) -> None:
        """Write what a user or another program needs to reach the guest."""
        facts = {
            "alive": alive,
            "pid": self.pid,
            "ssh_port": self.ssh_port,
            "console": str(self.sockets.console),
            "monitor": str(self.sockets.monitor),
            "control": str(self.sockets.control),
            "memory": str(self.sockets.memory),
            "gdb": str(self.sockets.gdb) if self._gdb else None,
            "console_log": str(self.console_log.absolute()),
            "topology": self.topology.text,
            "accelerator": self.accelerator.name,
            "argv": self._argv,
            "written_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_description(self.log_dir, facts)

    # --- the supervising thread --------------------------------------------------------------------------------

    def _supervise(self) -> None:
        try:
            with self.qemu_log.open("wb") as stderr:
                stderr.write(f"$ {shlex.join(self._argv)}\n".encode())
                stderr.flush()
                # Not in the caller's thread, since QEMU dies with the thread that starts it.
                self._process = process.spawn(self._argv, stdout=stderr, stderr=stderr)
        except BaseException as error:
            self._start_error = error
            return
        while self._process.poll() is None:
            self._look()
            time.sleep(POLL_S)
        # Read the last output.
        self._look()
        if self._failure is None and not self._closing:
            self._fail(self._ended(self._process.returncode))
        with self._changed:
            self._changed.notify_all()

    def _look(self) -> None:
        oopsed = self._is_past_oops()
        if not self.console.poll() and not self._dead_state and not self.console.panicked and not oopsed:
            return
        if self._failure is not None or self._closing:
            return
        if self.console.panicked:
            self._await_panic_report()
            self._fail(self._judged(Outcome.KERNEL_PANIC, "the guest's kernel panicked"))
        elif oopsed:
            what = f"the guest's kernel oopsed, and its workload had not ended {self._oops_grace_s:g} s later"
            self._fail(self._judged(Outcome.KERNEL_BUG, what))
        elif self._dead_state:
            said = self._stderr()
            self._fail(
                MachineFailure(self._lost(), f"QEMU stopped the guest ({self._dead_state})\n{said}".strip())
            )
        elif self.console.ready:
            with self._changed:
                self._changed.notify_all()

    def _is_past_oops(self) -> bool:
        at, grace_s = self.console.oopsed_at, self._oops_grace_s
        return at is not None and grace_s is not None and time.monotonic() - at > grace_s

    def _await_panic_report(self) -> None:
        assert self._process is not None
        until = time.monotonic() + PANIC_GRACE_S
        while not self.console.panic_over and time.monotonic() < until and self._process.poll() is None:
            time.sleep(POLL_S / 5)
            self.console.poll()
        self.console.poll()

    def _heard(self, event: str, data: Mapping[str, Any]) -> None:
        """Handle an event of QEMU, in the thread of the control socket."""
        if event == "SHUTDOWN":
            self._shutdown_reason = str(data.get("reason", ""))
        elif event == "STOP" and self._qmp is not None:
            # A query from this thread would wait for itself.
            threading.Thread(target=self._ask_state, name="machine state", daemon=True).start()

    def _ask_state(self) -> None:
        with contextlib.suppress(QmpError):
            state = str(self.qmp.execute("query-status").get("status", ""))
            if state in _DEAD_STATES:
                self._dead_state = state

    def _fail(self, failure: MachineFailure) -> None:
        with self._changed:
            if self._failure is not None:
                return
            self._failure = failure
            callbacks = list(self._callbacks)
            self._changed.notify_all()
        for callback in callbacks:
            callback(failure)

    # --- verdicts ----------------------------------------------------------------------------------------------

    def _lost(self) -> Outcome:
        return Outcome.LOST if self._booted else Outcome.BOOT_FAILED

    def _judged(self, outcome: Outcome, what: str) -> MachineFailure:
        """A failure with the kernel's report as evidence, if there is one, else the end of the log."""
        findings = self.findings()
        worst = next(
            (f for f in findings if f.outcome is Outcome.KERNEL_PANIC), findings[0] if findings else None
        )
        if worst is None:
            return MachineFailure(outcome, f"{what}\n{self.console.tail()}".strip())
        if outcome is Outcome.BOOT_FAILED:
            outcome = worst.outcome
        return MachineFailure(outcome, f"{what}: {worst.evidence}")

    def _ended(self, returncode: int) -> MachineFailure:
        before = "" if self._booted else " before the guest was up"
        if returncode != 0:
            how = (
                f"was ended by signal {-returncode}" if returncode < 0 else f"ended with status {returncode}"
            )
            # An unexpected SIGKILL usually comes from the OOM killer of the host.
            short = (
                "; the host's dmesg shows whether it ran out of memory"
                if returncode == -signal.SIGKILL
                else ""
            )
            # Whatever ended QEMU (a signal, memory that it could not have), it was not the guest's kernel.
            said = self._stderr()
            last = f": {said.splitlines()[-1]}" if said else ""
            return MachineFailure(Outcome.LOST, f"QEMU {how}{before}{short}{last}\n{said}".strip())
        until = time.monotonic() + _EVENT_S
        while not self._shutdown_reason and time.monotonic() < until:
            time.sleep(POLL_S)
        # SIGTERM, or `quit` in the monitor. What the guest does is always said before the end.
        if not self._shutdown_reason or self._shutdown_reason.startswith("host-"):
            said = self._stderr()
            last = f": {said.splitlines()[-1]}" if said else ""
            return MachineFailure(Outcome.LOST, f"QEMU was ended from outside{before}{last}\n{said}".strip())
        who = {"guest-reset": "the guest reset itself", "guest-shutdown": "the guest switched itself off"}
        what = who.get(self._shutdown_reason, f"QEMU ended by itself ({self._shutdown_reason})")
        return self._judged(self._lost(), f"{what}{before}")

    def _hung(self, timeout_s: float) -> MachineFailure:
        said = (
            f"its last output was {self.console.silent_s:.0f} s earlier"
            if self.console.size
            else "it never printed anything"
        )
        with contextlib.suppress(QmpError):
            said += f"; {_where(self.qmp.monitor('info registers -a'))}"
        tail = self.console.tail()
        if self.console.size:
            self.ask_where()
        what = f"the guest was not up within {timeout_s:g} s ({said})"
        judged = self._judged(Outcome.BOOT_FAILED, what)
        # Without a report, its last output before SysRq is more useful than the output of SysRq.
        return (
            MachineFailure(judged.outcome, f"{what}\n{tail}")
            if judged.outcome is Outcome.BOOT_FAILED
            else judged
        )

    def _stderr(self) -> str:
        try:
            said = self.qemu_log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(said.splitlines()[1:][-30:])


def _private_directory() -> Path:
    """Create a directory with mode 0700 and a path short enough for a socket in it."""
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        if not parent or not os.access(parent, os.W_OK | os.X_OK):
            continue
        directory = make_temporary("machine", Path(parent))
        if len(os.fsencode(directory / "monitor")) <= SOCKET_PATH_BYTES:
            return directory
        remove_temporary(directory)
    raise InfrastructureError(
        "no directory for QEMU's sockets: neither $XDG_RUNTIME_DIR nor /tmp is writable."
    )


def _where(registers: str) -> str:
    """What each CPU executes, from the monitor's ``info registers -a``."""
    states = re.findall(r"[RE]IP=(\w+).*?HLT=(\d)", registers, re.DOTALL)
    return ", ".join(
        f"CPU {number} {'halted ' * int(halted)}at {ip}" for number, (ip, halted) in enumerate(states)
    )


def _escaped(path: Path) -> str:
    """A path in a QEMU option: with commas doubled."""
    return str(path).replace(",", ",,")
