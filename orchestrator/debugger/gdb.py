# SPDX-License-Identifier: GPL-2.0-only
"""gdb attached to a running guest through QEMU's gdb stub, or to a dump of its memory.

gdb is driven by its machine interface ("GDB/MI" in the gdb manual), which pygdbmi parses: nothing depends on the
wording of its messages, and each wait has a time limit.

With TCG, QEMU keeps breakpoints outside of the guest's memory, so they work from the first instruction on. With KVM,
a breakpoint is an ``int3`` in memory, which the decompression of the kernel overwrites; use ``hardware=True`` for
breakpoints that are set before the kernel runs.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pygdbmi.gdbmiparser import parse_response

from orchestrator import process
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.kernel.elf import build_id, build_id_of_notes, has_dwarf

#: Time limit of a command in host seconds; the first one that needs DWARF reads hundreds of megabytes.
COMMAND_TIMEOUT_S = 120.0
#: Registers of the first six arguments of a kernel function (System V ABI, x86-64).
ARGUMENT_REGISTERS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")

#: Host seconds to wait for gdb to exit, or to end a command that was interrupted.
_END_TIMEOUT_S = 10.0
#: How often a command that takes long looks whether it is still to wait, in host seconds.
_LOOK_S = 1.0
_NUMBER = re.compile(r"(?:\([^()]*\) )?(?P<number>0x[0-9a-f]+|-?\d+)(?![\w.])")
#: The grammar of the machine interface (gdb manual, "GDB/MI Output Syntax"), where $ is a value that has been matched.
_MI_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_MI_ITEM = r'(?:[^=,\[\]{}"$]+=)?\$'
_MI_BRACKETS = re.compile(rf"\[(?:{_MI_ITEM}(?:,{_MI_ITEM})*)?\]|\{{(?:{_MI_ITEM}(?:,{_MI_ITEM})*)?\}}")
_MI_RECORD = re.compile(rf"\d*[\^*=+~&@](?:\$|[\w-]+(?:,{_MI_ITEM})*)")
_SYMBOL = re.compile(r"[A-Za-z_][\w.$]*")

Value = str | list[Any] | dict[str, Any]


class StopTimeout(Exception):  # noqa: N818 - not an error: the guest continued to run
    """The guest did not stop within the time limit; it still runs."""


class GdbError(Exception):
    """gdb rejected a command; the message is gdb's."""


@dataclass(frozen=True)
class StackFrame:
    """One frame of a backtrace.

    Args:
        function: name of the function; empty if gdb does not know it.
        pc: program counter.
        place: ``file:line``; empty without DWARF.
    """

    function: str
    pc: int
    place: str


@dataclass(frozen=True)
class Stop:
    """A stop of the guest.

    Args:
        function: name of the current function; empty if gdb does not know it.
        args: its arguments, as numbers if gdb prints numbers, else as gdb prints them, e.g. ``<optimized out>``.
        args_by_name: whether `args` have their names in the source. Without DWARF they are the six argument
            registers, which are valid only at the first instruction of a function.
        thread: gdb's thread number of the CPU; CPU 0 is thread 1.
        pc: program counter.
        reason: reason of the stop: ``Breakpoint 1``, ``Watchpoint 2`` or a signal, e.g. ``SIGINT``.
        place: ``file:line``; empty without DWARF.
        breakpoint: gdb's number of the breakpoint or watchpoint; 0 for another reason.
    """

    function: str
    args: Mapping[str, int | str]
    args_by_name: bool
    thread: int
    pc: int
    reason: str
    place: str = ""
    breakpoint: int = 0


def check_places(vmlinux: Path, places: Sequence[str]) -> None:
    """Check with gdb, without a guest, that breakpoints can be set.

    Args:
        places: places as for :meth:`Gdb.break_at`.

    Raises:
        UserError: a place does not exist in this kernel.
        InfrastructureError: gdb is not installed.
    """
    for place in places:
        if "\n" in place:
            raise UserError(
                f"--break {place!r}: a place must be one line, e.g. do_anonymous_page or mm/memory.c:100."
            )
    commands = [word for place in places for word in ("-ex", "echo \\n#place\\n", "-ex", f"break {place}")]
    argv = ["gdb", "--nx", "--quiet", "--batch", *commands, str(vmlinux)]
    answers = process.run(argv, check=False).stdout.split("#place\n")[1:]
    for place, answer in zip(places, answers, strict=True):
        if not answer.startswith("Breakpoint "):
            raise UserError(f"--break {place}: this kernel has no such function or line.")


def check_build(vmlinux: Path, notes: bytes) -> None:
    """Check that `vmlinux` is the kernel with these notes.

    Args:
        notes: content of the guest's ``/sys/kernel/notes``.

    Raises:
        UserError: it is another kernel.
    """
    running, given = build_id_of_notes(notes), build_id(vmlinux)
    if running != given:
        raise UserError(
            f"{vmlinux} has build ID {given}, but the guest runs {running}; "
            "give gdb the vmlinux of the kernel that was booted."
        )


def interactive_gdb(
    vmlinux: Path, target: str, breakpoints: Sequence[str] = (), loader: Path | None = None
) -> int:
    """Run gdb on the user's terminal until the user quits.

    gdb is a process of the terminal's group, so that Ctrl-C stops the guest; this process ignores it meanwhile.

    Args:
        target: argument of gdb's ``target`` command, e.g. ``remote SOCKET``.
        breakpoints: places as for :meth:`Gdb.break_at`.
        loader: script to run first.

    Returns:
        gdb's exit status.
    """
    commands = [
        f"target {target}",
        *([f"source {loader}"] if loader else []),
        *(f"break {place}" for place in breakpoints),
    ]
    argv = ["gdb", "--nx", "--quiet", *_settings(("confirm off",))]
    argv += [word for line in commands for word in ("-ex", line)]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        started = process.spawn(
            [*argv, str(vmlinux)], stdin=None, stdout=None, stderr=None, env=_NO_SERVER, own_session=False
        )
        return started.wait()
    finally:
        signal.signal(signal.SIGINT, before)


class Gdb:
    """A gdb that is attached to a guest; a context manager that lets the guest continue at the end.

    For example::

        with Gdb.attach(machine.gdb_socket, kernel.vmlinux, notes) as gdb:
            gdb.break_at("do_anonymous_page")
            gdb.continue_()
            stop = gdb.wait_stop(60)
            stop.args["vmf"]

    Args:
        gdb: a gdb process with the machine interface on its standard input and output.
        dwarf: whether its vmlinux has debugging information.
        transcript: file for all input and output of gdb.
    """

    def __init__(self, gdb: subprocess.Popen[bytes], dwarf: bool, transcript: Path | None = None) -> None:
        assert gdb.stdin is not None and gdb.stdout is not None
        self._gdb = gdb
        self._input: IO[bytes] = gdb.stdin
        self.dwarf = dwarf
        self._transcript = transcript.open("a", encoding="utf-8") if transcript is not None else None
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(gdb.stdout,), name="gdb", daemon=True)
        self._reader.start()
        self._token = 0
        self._attached = False
        self._running = False
        self._ended = False
        self._stopped: Mapping[str, Any] = {}
        self._stop_wanted = threading.Event()
        self._said: list[str] = []

    @classmethod
    def attach(
        cls, socket: Path, vmlinux: Path, notes: bytes | None = None, transcript: Path | None = None
    ) -> Gdb:
        """Start gdb on `vmlinux` and attach it to the guest, which stops the guest.

        gdb dies with the thread that calls this (see :mod:`orchestrator.process`).

        Args:
            socket: :attr:`orchestrator.machine.qemu.Machine.gdb_socket`.
            vmlinux: vmlinux of the guest's kernel.
            notes: content of the guest's ``/sys/kernel/notes``, to check `vmlinux`; None if the guest is not up yet.
            transcript: file for all input and output of gdb.

        Raises:
            UserError: `vmlinux` is not the kernel that the guest runs.
            InfrastructureError: gdb is not installed, or cannot attach.
        """
        process.require("gdb")
        if notes is not None:
            check_build(vmlinux, notes)
        debugger = cls._started(vmlinux, transcript)
        try:
            debugger._connect(socket)
        except BaseException:
            debugger.close()
            raise
        return debugger

    @classmethod
    def open_core(cls, core: Path, vmlinux: Path, transcript: Path | None = None) -> Gdb:
        """Start gdb on a dump of a guest's memory (QEMU's ``dump-guest-memory -p``).

        Args:
            core: ELF file with the guest's virtual addresses.
            vmlinux: vmlinux of the guest's kernel.

        Raises:
            UserError: `core` is no such dump, or one of another kernel.
            InfrastructureError: gdb is not installed.
        """
        process.require("gdb")
        if not core.is_file():
            raise UserError(f"--core {core}: there is no such file.")
        debugger = cls._started(vmlinux, transcript)
        try:
            try:
                debugger.mi(f"-target-select core {core.absolute()}")  # it takes the rest of the line
                debugger.check_kernel(vmlinux)
            except GdbError as error:
                raise UserError(
                    f"--core {core}: gdb finds no kernel with virtual addresses in it ({error}); write the dump with "
                    "dump-guest-memory -p."
                ) from error
        except BaseException:
            debugger.close()
            raise
        return debugger

    @classmethod
    def _started(cls, vmlinux: Path, transcript: Path | None) -> Gdb:
        argv = ["gdb", "--nx", "--quiet", "--interpreter=mi3", *_settings(_OF_MI), str(vmlinux)]
        gdb = process.spawn(
            argv,
            env={**_NO_SERVER, "TERM": "dumb"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return cls(gdb, has_dwarf(vmlinux), transcript)

    def __enter__(self) -> Gdb:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the guest runs, as far as gdb knows."""
        return self._running

    def break_at(
        self, place: str, hardware: bool = False, condition: str = "", *, first: bool = False
    ) -> int:
        """Set a breakpoint.

        Args:
            place: a function, ``file:line`` or ``*address``. For a function, it is set after the prologue, or without
                DWARF on the first instruction, where the argument registers are valid.
            hardware: use a debug register of the CPU. There are four, and with KVM only these work before the kernel
                has been decompressed.
            condition: an expression; the guest stops only if it is not 0. Each evaluation by gdb takes about a
                millisecond.
            first: set it on the first instruction of the function, even with DWARF.

        Returns:
            gdb's number of the breakpoint.

        Raises:
            UserError: the place does not exist.
        """
        bare = (first or not self.dwarf) and _SYMBOL.fullmatch(place) is not None
        words = [
            "-break-insert",
            *(["-h"] if hardware else []),
            *(["-c", _quoted(condition)] if condition else []),
            _quoted(f"*{place}" if bare else place),
        ]
        try:
            answer = self.mi(" ".join(words))
        except GdbError as error:
            raise UserError(
                f"gdb cannot break at {place}: {error}; it may be inlined, or misspelled."
            ) from error
        return int(_text(_table(answer.get("bkpt")).get("number")) or 0)

    def watch(self, expression: str) -> int:
        """Stop the guest whenever the value of an expression changes.

        Args:
            expression: a C expression of global variables; at most four words of memory (debug registers).

        Returns:
            gdb's number of the watchpoint.

        Raises:
            UserError: gdb cannot watch it without executing the guest step by step, which takes hours.
        """
        try:
            answer = self.mi(f"-break-watch {_quoted(expression)}")
            number = int(_text(_table(answer.get("wpt")).get("number")) or 0)
            table = _table(self.mi(f"-break-info {number}").get("BreakpointTable"))
        except GdbError as error:
            raise UserError(f"gdb cannot watch {expression}: {error}.") from error
        rows = [_table(row) for row in _list(table.get("body"))]
        kind = _text(_table(rows[0].get("bkpt", rows[0])).get("type")) if rows else ""
        if not kind.startswith("hw"):
            self.delete(number)
            raise UserError(
                f"gdb cannot watch {expression} at full speed; name one global variable, e.g. vm_node_stat[0].counter."
            )
        return number

    def ignore(self, number: int, count: int) -> None:
        """Do not stop at the next `count` hits of a breakpoint, but count them."""
        self.mi(f"-break-after {number} {count}")

    def hits(self, number: int) -> int:
        """How often a breakpoint was hit, also where it did not stop the guest."""
        table = _table(self.mi(f"-break-info {number}").get("BreakpointTable"))
        rows = [_table(row) for row in _list(table.get("body"))]
        return int(_text(_table(rows[0].get("bkpt", rows[0])).get("times")) or 0) if rows else 0

    def return_from(self, value: int) -> None:
        """At the first instruction of a function, on the selected CPU: return `value` without running it (x86-64)."""
        self.assign("$rax", value & (1 << 64) - 1)
        self.assign("$rip", self.number("*(unsigned long *)$rsp"))
        self.assign("$rsp", self.number("$rsp") + 8)

    def delete(self, number: int | None = None) -> None:
        """Delete breakpoint `number`; None deletes all breakpoints."""
        self.mi("-break-delete" if number is None else f"-break-delete {number}")

    def continue_(self) -> None:
        """Continue the guest, and return once it runs; :meth:`wait_stop` waits for its next stop.

        Raises:
            InfrastructureError: gdb cannot continue it, e.g. because it ended.
        """
        self._need_stopped()
        try:
            self.mi("-exec-continue")
        except GdbError as error:
            raise InfrastructureError(f"gdb cannot continue the guest: {error}.") from error

    def wait_stop(self, timeout_s: float) -> Stop:
        """Wait until the guest stops.

        Raises:
            StopTimeout: it did not stop within `timeout_s` host seconds; it still runs.
            InfrastructureError: the guest or gdb ended.
        """
        until = time.monotonic() + timeout_s
        while self._running:
            if not self._heard(until - time.monotonic()):
                raise StopTimeout(f"the guest did not stop within {timeout_s:g} s")
        return self._stop(self._stopped)

    def interrupt(self, timeout_s: float = 30.0) -> Stop:
        """Stop a running guest."""
        if self._running:
            self.mi("-exec-interrupt", timeout_s)
        return self.wait_stop(timeout_s)

    def evaluate(self, expression: str) -> int | str:
        """The value of a C expression in the selected frame, as a number if gdb prints one.

        Raises:
            UserError: gdb cannot evaluate it; the message ends with that of gdb.
        """
        self._need_stopped()
        try:
            answer = self.mi(f"-data-evaluate-expression {_quoted(expression)}")
        except GdbError as error:
            raise UserError(f"gdb cannot evaluate {expression}: {error}.") from error
        return _number(_text(answer.get("value")))

    def number(self, expression: str) -> int:
        """The value of a C expression that is a number.

        Raises:
            UserError: gdb cannot evaluate it, or it is no number.
        """
        value = self.evaluate(f"(unsigned long)({expression})")
        if not isinstance(value, int):
            raise UserError(f"gdb cannot evaluate {expression}: {value} is no number.")
        return value

    def assign(self, expression: str, value: int) -> None:
        """Set a register or a variable, e.g. ``$rip``."""
        self.evaluate(f"{expression} = {value:#x}")

    def read_memory(self, address: str, size: str) -> bytes:
        """Read memory of the guest.

        Args:
            address, size: C expressions.

        Raises:
            GdbError: it cannot be read.
        """
        bytes_ = _number(_text(self.mi(f"-data-evaluate-expression {_quoted(size)}").get("value")))
        read = self.mi(f"-data-read-memory-bytes {_quoted(address)} {bytes_}")
        return bytes.fromhex(
            "".join(_text(_table(part).get("contents")) for part in _list(read.get("memory")))
        )

    def write_memory(self, address: int, content: bytes) -> None:
        """Write memory of the guest, also where the guest itself may only read."""
        self.mi(f"-data-write-memory-bytes {address:#x} {content.hex()}")

    def check_kernel(self, vmlinux: Path) -> None:
        """Check `vmlinux` with the notes in the guest's memory.

        Raises:
            UserError: it is another kernel.
            GdbError: there is no kernel in this memory.
        """
        check_build(vmlinux, self.read_memory("&__start_notes", "(long)&__stop_notes - (long)&__start_notes"))

    def select(self, thread: int) -> None:
        """Select a CPU: expressions and backtraces are then its own."""
        self.mi(f"-thread-select {thread}")

    def threads(self) -> int:
        """The number of CPUs."""
        return len(_list(self.mi("-thread-info").get("threads")))

    def backtrace(self, limit: int = 64) -> list[StackFrame]:
        """At most `limit` stack frames of the selected CPU, innermost first."""
        self._need_stopped()
        answer = self.mi(f"-stack-list-frames 0 {limit - 1}")
        return [_frame(_table(frame)) for frame in _list(answer.get("stack"))]

    def command(self, line: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run any gdb command and return its output.

        A command that continues the guest returns when the guest stops again.

        Raises:
            UserError: gdb rejects the command.
            InfrastructureError: gdb does not answer in time, or the guest ended.
        """
        self._need_stopped()
        self._said = []
        until = time.monotonic() + timeout_s
        try:
            self.mi(f"-interpreter-exec console {_quoted(line)}", timeout_s)
            if self._running:  # gdb reads the next command when the guest has stopped, and a script has ended
                self.mi("-list-features", until - time.monotonic(), stoppable=True)
        except GdbError as error:
            said = "".join(self._said).strip("\n")
            raise UserError(f"gdb rejects {line!r}: {str(error) or said}.") from error
        except InfrastructureError as error:
            if self._ended:
                raise
            what = "the guest did not stop" if not self._running else "gdb did not end, and was killed,"
            raise InfrastructureError(f"{what} within {timeout_s:g} s of {line!r}.") from error
        return "".join(self._said).strip("\n")

    def stop_waiting(self) -> None:
        """From any thread: have each :meth:`command` that lets the guest go on stop it again soon, now and later."""
        self._stop_wanted.set()

    def detach(self) -> None:
        """Delete all breakpoints and detach; the guest continues."""
        if not self._attached:
            return
        if self._running:
            self.interrupt()
        self.delete()
        self.mi("-target-detach")
        self._attached = False

    def close(self) -> None:
        """Detach and end gdb. May be called repeatedly."""
        if self._gdb.poll() is None:
            # Ignore errors: if the guest is gone or does not respond, there is nothing to detach from.
            with contextlib.suppress(InfrastructureError, StopTimeout, GdbError, OSError):
                self.detach()
                self._send("-gdb-exit")
            with contextlib.suppress(OSError):
                self._input.close()
            try:
                self._gdb.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill_group(self._gdb)
                self._gdb.wait()
        self._reader.join(_END_TIMEOUT_S)
        if self._transcript is not None:
            self._transcript.close()
            self._transcript = None

    def mi(
        self, command: str, timeout_s: float = COMMAND_TIMEOUT_S, *, stoppable: bool = False
    ) -> dict[str, Any]:
        """Run a command of the machine interface, and return its results by name.

        Args:
            stoppable: whether :meth:`stop_waiting` stops the guest that gdb waits for.

        Raises:
            GdbError: gdb rejects it.
            InfrastructureError: gdb did not answer within `timeout_s` host seconds, or ended.
        """
        token = self._send(command)
        until = time.monotonic() + timeout_s
        is_late = is_interrupted = False
        while True:
            left_s = until - time.monotonic()
            line = self._line(min(left_s, _LOOK_S) if stoppable else left_s)
            if line is None:
                if is_late and left_s <= _LOOK_S:
                    process.kill_group(self._gdb)
                    raise InfrastructureError(f"gdb did not answer within {timeout_s:g} s ({command}).")
                if left_s <= _LOOK_S and not is_late:
                    is_late, until = True, time.monotonic() + _END_TIMEOUT_S
                elif not (stoppable and self._stop_wanted.is_set()):
                    continue
                if not is_interrupted:
                    is_interrupted = True
                    # It may wait for the guest, which stops at an interrupt.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._gdb.pid, signal.SIGINT)
                continue
            own = line.removeprefix(str(token))
            if own == line or not own.startswith("^"):
                self._note(line)
                continue
            if own.startswith("^running"):
                self._running = True
            if is_late:
                raise InfrastructureError(f"gdb did not answer within {timeout_s:g} s ({command}).")
            return parse_result(own)

    def _connect(self, socket: Path) -> None:
        try:
            self.mi("-gdb-set mi-async on")
            self.mi(f"-target-select remote {socket}")
        except GdbError as error:
            raise InfrastructureError(f"gdb cannot attach to {socket}: {error}.") from error
        if not self.threads():
            raise InfrastructureError(f"gdb cannot attach to {socket}: it has no CPUs.")
        self._attached = True

    def _stop(self, record: Mapping[str, Any]) -> Stop:
        table = _table(record.get("frame"))
        frame = _frame(table)
        args: dict[str, int | str] = {}
        named = self.dwarf and "file" in table
        if named:
            for argument in map(_table, _list(table.get("args"))):
                args[_text(argument.get("name"))] = _number(_text(argument.get("value")))
        else:
            for register in ARGUMENT_REGISTERS:
                value = self.mi(f'-data-evaluate-expression "(unsigned long)${register}"').get("value")
                args[register] = _number(_text(value))
        reason, number = _reason(record)
        thread = int(_text(record.get("thread-id")) or 0)
        return Stop(frame.function, args, named, thread, frame.pc, reason, frame.place, number)

    def _need_stopped(self) -> None:
        if self._running:
            raise UserError("the guest is running; wait for it to stop or interrupt it first.")

    def _send(self, command: str) -> int:
        self._token += 1
        line = f"{self._token}{command}\n"
        self._log(line)
        try:
            self._input.write(line.encode())
            self._input.flush()
        except OSError as error:
            raise InfrastructureError(f"gdb ended: {error}.") from error
        return self._token

    def _heard(self, timeout_s: float) -> bool:
        """Whether gdb said anything within `timeout_s` host seconds."""
        line = self._line(timeout_s)
        if line is not None:
            self._note(line)
        return line is not None

    def _line(self, timeout_s: float) -> str | None:
        """The next line of gdb; None if there is none within `timeout_s` host seconds.

        Raises:
            InfrastructureError: gdb ended.
        """
        try:
            line = self._lines.get(timeout=max(timeout_s, 0.0))
        except queue.Empty:
            return None
        if line is None:
            self._lines.put(None)  # for whoever asks next
            self._running = self._attached = False
            self._ended = True
            raise InfrastructureError("gdb ended.")
        return line

    def _note(self, line: str) -> None:
        """Take note of a line that is not the answer to a command: output, or a change of the guest's state."""
        if line.startswith("~"):
            with contextlib.suppress(GdbError):
                self._said.append(_text(_record(line)["payload"]))
        elif line.startswith("*running"):
            self._running = True
        elif line.startswith("*stopped"):
            self._running = False
            self._stopped = _table(_record(line)["payload"])
        elif line.startswith("=thread-group-exited") or "Remote connection closed" in line:
            was_attached, self._attached, self._running = self._attached, False, False
            if was_attached:
                self._ended = True
                raise InfrastructureError("the guest ended while gdb waited for it.")

    def _read(self, stdout: IO[bytes]) -> None:
        for raw in stdout:
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            self._log(line + "\n")
            if line and line != "(gdb) ":
                self._lines.put(line)
        self._lines.put(None)

    def _log(self, text: str) -> None:
        if self._transcript is not None and not self._transcript.closed:
            self._transcript.write(text)
            self._transcript.flush()


def parse_result(line: str) -> dict[str, Value]:
    """Parse a result record of the machine interface, e.g. ``^done,value="1"``.

    Returns:
        The results by name: strings, lists and tables.

    Raises:
        GdbError: it is ``^error``, or not a result record.
    """
    record = _record(line)
    if record["type"] != "result":
        raise GdbError(f"not a result record: {line}")
    results: dict[str, Value] = record["payload"] or {}
    if record["message"] == "error":
        raise GdbError(_text(results.get("msg")).rstrip("."))
    return results


def _record(line: str) -> dict[str, Any]:
    """Parse a record.

    Raises:
        GdbError: it is none.
    """
    if not _is_record(line):
        raise GdbError(f"cannot read gdb's answer {line[:40]!r}")
    try:
        return parse_response(line)
    except (TypeError, ValueError, IndexError) as error:  # the library's own, for text that breaks off
        raise GdbError(f"cannot read gdb's answer {line[:40]!r}") from error


def _is_record(line: str) -> bool:
    """Whether a line has the form of a record; in another one, the library may look for the end of a list for ever."""
    frame, before = _MI_STRING.sub("$", line), ""
    while frame != before:  # innermost lists and tables first
        frame, before = _MI_BRACKETS.sub("$", frame), frame
    return _MI_RECORD.fullmatch(frame) is not None


#: Do not look for debugging information on the network: it is next to the kernel.
_NO_SERVER = {"DEBUGINFOD_URLS": ""}
_OF_MI = (
    "confirm off",
    "pagination off",
    "width 0",
    "height 0",
    "style enabled off",
    "print address on",
    "print frame-arguments all",
    "print entry-values no",  # each argument once
    "breakpoint pending off",
    "tcp connect-timeout 30",
    "remotetimeout 30",
)


def _settings(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("-iex", f"set {setting}")]


def _quoted(text: str) -> str:
    """Quote a string for the machine interface."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _reason(stopped: Mapping[str, Any]) -> tuple[str, int]:
    """Why the guest stopped, and the number of the breakpoint."""
    reason = _text(stopped.get("reason"))
    if reason == "breakpoint-hit":
        number = _text(stopped.get("bkptno"))
        return f"Breakpoint {number}", int(number or 0)
    if "watchpoint" in reason:
        table = next((_table(value) for key, value in stopped.items() if key.endswith("wpt")), {})
        number = _text(table.get("number")) or _text(stopped.get("wpnum"))
        return f"Watchpoint {number}", int(number or 0)
    return _text(stopped.get("signal-name")) or reason, 0


def _number(text: str) -> int | str:
    match = _NUMBER.match(text)
    return int(match["number"], 0) if match else text


def _frame(table: Mapping[str, Any]) -> StackFrame:
    place = f"{table['file']}:{table['line']}" if "file" in table and "line" in table else ""
    return StackFrame(
        _text(table.get("func")).removeprefix("??"), int(_text(table.get("addr")) or "0", 16), place
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
