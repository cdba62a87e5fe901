# SPDX-License-Identifier: GPL-2.0-only
"""gdb attached to a running guest through QEMU's gdb stub, controlled from Python or interactively.

gdb runs its normal command line on a pseudo terminal, so that the user can take over at any time
(:meth:`Gdb.interactive`). Its output is *parsed* only as records of the machine interface (``interpreter-exec mi3``,
see "GDB/MI" in the gdb manual), so that nothing depends on the wording of its messages.

With TCG, QEMU keeps breakpoints outside of the guest's memory, so they work from the first instruction on. With KVM,
a breakpoint is an ``int3`` in memory, which the decompression of the kernel overwrites; use ``hardware=True`` for
breakpoints that are set before the kernel runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pexpect
from pygdbmi.gdbmiparser import parse_response

from orchestrator import process
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.kernel.elf import build_id, build_id_of_notes, has_dwarf

#: Time limit of a command in host seconds; the first one that needs DWARF reads hundreds of megabytes.
COMMAND_TIMEOUT_S = 120.0
#: Registers of the first six arguments of a kernel function (System V ABI, x86-64).
ARGUMENT_REGISTERS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")

#: Host seconds to wait for gdb to exit.
_END_TIMEOUT_S = 10.0
#: How often a command that takes long looks whether it is still to wait, in host seconds.
_LOOK_S = 1.0
_PROMPT = "(orchestrate-gdb)"
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
        reason: reason of the stop according to gdb, e.g. ``Breakpoint 1`` or ``SIGINT``.
    """

    function: str
    args: Mapping[str, int | str]
    args_by_name: bool
    thread: int
    pc: int
    reason: str


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


class Gdb:
    """A gdb that is attached to a guest; a context manager that lets the guest continue at the end.

    For example::

        with Gdb.attach(machine.gdb_socket, kernel.vmlinux, notes) as gdb:
            gdb.break_at("do_anonymous_page")
            gdb.continue_()
            stop = gdb.wait_stop(60)
            stop.args["vmf"]

    Args:
        gdb: a gdb process that shows its prompt.
        dwarf: whether its vmlinux has debugging information.
        transcript: file for all input and output of gdb.
    """

    def __init__(self, gdb: pexpect.spawn[str], dwarf: bool, transcript: Path | None = None) -> None:
        self._gdb = gdb
        self._dwarf = dwarf
        self._transcript = transcript.open("a", encoding="utf-8") if transcript is not None else None
        self._gdb.logfile = self._transcript
        self._attached = False
        self._running = False
        self._stop_wanted = threading.Event()
        self._said = ""

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
            running, given = build_id_of_notes(notes), build_id(vmlinux)
            if running != given:
                raise UserError(
                    f"{vmlinux} has build ID {given}, but the guest runs {running}; "
                    "give gdb the vmlinux of the kernel that was booted."
                )
        argv = process.tied(["gdb", "--nx", "--quiet", *_setup(), str(vmlinux)])
        spawned: pexpect.spawn[str] = pexpect.spawn(
            argv[0],
            argv[1:],
            encoding="utf-8",
            codec_errors="replace",
            echo=False,
            timeout=COMMAND_TIMEOUT_S,
            env={**_environment(), "TERM": "dumb"},
        )
        debugger = cls(spawned, has_dwarf(vmlinux), transcript)
        try:
            debugger._await_prompt(COMMAND_TIMEOUT_S)
            debugger._connect(socket)
        except BaseException:
            debugger.close()
            raise
        return debugger

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

    def break_at(self, place: str, hardware: bool = False, condition: str = "") -> int:
        """Set a breakpoint.

        Args:
            place: a function, ``file:line`` or ``*address``. For a function, it is set after the prologue, or without
                DWARF on the first instruction, where the argument registers are valid.
            hardware: use a debug register of the CPU. There are four, and with KVM only these work before the kernel
                has been decompressed.
            condition: an expression; the guest stops only if it is not 0. Each evaluation by gdb takes about a
                millisecond.

        Returns:
            gdb's number of the breakpoint.

        Raises:
            UserError: the place does not exist.
        """
        bare = not self._dwarf and _SYMBOL.fullmatch(place) is not None
        words = [
            "-break-insert",
            *(["-h"] if hardware else []),
            *(["-c", _quoted(condition)] if condition else []),
            _quoted(f"*{place}" if bare else place),
        ]
        try:
            answer = self._mi(" ".join(words))
        except GdbError as error:
            raise UserError(
                f"gdb cannot break at {place}: {error}; it may be inlined, or misspelled."
            ) from error
        return int(_text(_table(answer.get("bkpt")).get("number")) or 0)

    def delete(self, number: int | None = None) -> None:
        """Delete breakpoint `number`; None deletes all breakpoints."""
        self.command("delete" if number is None else f"delete {number}")

    def continue_(self) -> None:
        """Continue the guest, and return once it runs; :meth:`wait_stop` waits for its next stop.

        Raises:
            InfrastructureError: gdb cannot continue it, e.g. because it ended.
        """
        self._need_stopped()
        self._gdb.sendline("continue")
        # If an interrupt came before gdb has read the line, the terminal would discard the line.
        try:
            matched = self._gdb.expect_exact(["Continuing.", _PROMPT], timeout=COMMAND_TIMEOUT_S)
        except (pexpect.TIMEOUT, pexpect.EOF) as error:
            raise InfrastructureError("gdb cannot continue the guest.") from error
        if matched == 1:
            raise InfrastructureError(f"gdb cannot continue the guest: {(self._gdb.before or '').strip()}")
        self._running = True

    def wait_stop(self, timeout_s: float) -> Stop:
        """Wait until the guest stops.

        Raises:
            StopTimeout: it did not stop within `timeout_s` host seconds; it still runs.
            InfrastructureError: the guest or gdb ended.
        """
        if self._running:
            self._await_prompt(timeout_s)
            self._running = False
            self._refuse_ended()
        return self._stop(_reason(self._said))

    def interrupt(self, timeout_s: float = 30.0) -> Stop:
        """Stop a running guest."""
        if self._running:
            self._gdb.sendintr()
        return self.wait_stop(timeout_s)

    def evaluate(self, expression: str) -> int | str:
        """The value of a C expression in the selected frame, as a number if gdb prints one.

        Raises:
            UserError: gdb cannot evaluate it; the message ends with that of gdb.
        """
        self._need_stopped()
        try:
            answer = self._mi(f"-data-evaluate-expression {_quoted(expression)}")
        except GdbError as error:
            raise UserError(f"gdb cannot evaluate {expression}: {error}.") from error
        return _number(_text(answer.get("value")))

    def backtrace(self, limit: int = 64) -> list[StackFrame]:
        """At most `limit` stack frames of the selected CPU, innermost first."""
        self._need_stopped()
        answer = self._mi(f"-stack-list-frames 0 {limit - 1}")
        return [_frame(_table(frame)) for frame in _list(answer.get("stack"))]

    def command(self, line: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run any gdb command and return its output.

        A command that continues the guest returns when the guest stops again.

        Raises:
            InfrastructureError: gdb does not answer in time, or the guest ended.
        """
        self._need_stopped()
        self._gdb.sendline(line)
        until = time.monotonic() + timeout_s
        interrupted = False
        while True:
            left_s = until - time.monotonic()
            try:
                self._await_prompt(max(min(left_s, _LOOK_S), 0.0))
                break
            except InfrastructureError as error:
                if not isinstance(error.__cause__, pexpect.TIMEOUT):
                    raise
                if left_s <= _LOOK_S:
                    raise InfrastructureError(f"gdb did not answer within {timeout_s:g} s.") from error
            if self._stop_wanted.is_set() and not interrupted:
                self._gdb.sendintr()
                interrupted = True
        self._refuse_ended()
        return self._said

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
        self.command("detach")
        self._attached = False

    def interactive(self) -> None:
        """Connect gdb to the user's terminal, until the user quits or detaches.

        The guest is stopped at first; it continues when the user quits.
        """
        if self._running:
            self.interrupt()
        # Restore the usual prompt and interactive settings.
        self._gdb.setecho(True)
        self._gdb.sendline("set editing on")
        self._await_prompt(COMMAND_TIMEOUT_S)
        for line in ("set pagination on", "set confirm off", "set style enabled on", "set width unlimited"):
            self.command(line)
        self._gdb.logfile = None  # else all output would appear twice
        self._gdb.sendline("set prompt (gdb) ")
        self._gdb.interact(escape_character=None)
        self._attached = False
        self.close()

    def close(self) -> None:
        """Detach and end gdb. May be called repeatedly."""
        if self._gdb.isalive():
            # Ignore errors: if the guest is gone or does not respond, there is nothing to detach from.
            with contextlib.suppress(
                InfrastructureError, StopTimeout, GdbError, pexpect.ExceptionPexpect, OSError
            ):
                self.detach()
                self._gdb.sendline("quit")
                self._gdb.expect(pexpect.EOF, timeout=_END_TIMEOUT_S)
            with contextlib.suppress(ProcessLookupError):
                self._gdb.kill(signal.SIGKILL)
            # pexpect's own close() gives a child only 0.2 s to exit, which is too short on a busy host.
            self._gdb.wait()
        self._gdb.close()
        if self._transcript is not None:
            self._gdb.logfile = None
            self._transcript.close()

    def _connect(self, socket: Path) -> None:
        printed = self.command(f"target remote {socket}")
        answer = self._mi("-thread-info")
        if not _list(answer.get("threads")):
            last = next(
                (line for line in reversed(printed.splitlines()) if line.strip()), "it printed nothing"
            )
            raise InfrastructureError(f"gdb cannot attach to {socket}: {last.strip()}")
        self._attached = True

    def _refuse_ended(self) -> None:
        if "Remote connection closed" in self._said or "The program is not being run" in self._said:
            self._attached = False
            raise InfrastructureError("the guest ended while gdb waited for it.")

    def _stop(self, reason: str) -> Stop:
        answer = _table(self._mi("-stack-info-frame").get("frame"))
        frame = _frame(answer)
        thread = int(_text(self._mi("-thread-info").get("current-thread-id")) or 0)
        args: dict[str, int | str] = {}
        named = self._dwarf and "file" in answer
        if named:
            frames = _list(self._mi("-stack-list-arguments --all-values 0 0").get("stack-args"))
            for argument in _list(_table(frames[0]).get("args")) if frames else []:
                entry = _table(argument)
                args[_text(entry.get("name"))] = _number(_text(entry.get("value")))
        else:
            for register in ARGUMENT_REGISTERS:
                value = self._mi(f'-data-evaluate-expression "(unsigned long)${register}"').get("value")
                args[register] = _number(_text(value))
        return Stop(frame.function, args, named, thread, frame.pc, reason)

    def _need_stopped(self) -> None:
        if self._running:
            raise UserError("the guest is running; wait for it to stop or interrupt it first.")

    def _mi(self, command: str) -> dict[str, Value]:
        """Run a command of the machine interface, and return its results by name."""
        # gdb removes the outer quotes by the rules of buildargv(3).
        escaped = command.replace("\\", "\\\\").replace('"', '\\"')
        answer = self.command(f'interpreter-exec mi3 "{escaped}"')
        for line in answer.splitlines():
            if line.startswith("^"):
                return parse_result(line)
        raise GdbError(" ".join(answer.split()) or "no answer")

    def _await_prompt(self, timeout_s: float) -> None:
        try:
            self._gdb.expect_exact(_PROMPT, timeout=timeout_s)
        except pexpect.TIMEOUT as error:
            if self._running:
                raise StopTimeout(f"the guest did not stop within {timeout_s:g} s") from error
            raise InfrastructureError(f"gdb did not answer within {timeout_s:g} s.") from error
        except pexpect.EOF as error:
            raise InfrastructureError(f"gdb ended: {self._gdb.before}".strip()) from error
        self._said = (self._gdb.before or "").replace("\r\n", "\n").strip("\n")


class GdbError(Exception):
    """gdb rejected a command; the message is gdb's."""


def parse_result(line: str) -> dict[str, Value]:
    """Parse a result record of the machine interface, e.g. ``^done,value="1"``.

    Returns:
        The results by name: strings, lists and tables.

    Raises:
        GdbError: it is ``^error``, or not a result record.
    """
    if not _is_record(line):
        raise GdbError(f"cannot read gdb's answer {line[:40]!r}")
    try:
        record = parse_response(line)
    except (TypeError, ValueError, IndexError) as error:  # the library's own, for text that breaks off
        raise GdbError(f"cannot read gdb's answer {line[:40]!r}") from error
    if record["type"] != "result":
        raise GdbError(f"not a result record: {line}")
    results: dict[str, Value] = record["payload"] or {}
    if record["message"] == "error":
        raise GdbError(_text(results.get("msg")).rstrip("."))
    return results


def _is_record(line: str) -> bool:
    """Whether a line has the form of a record; in another one, the library may look for the end of a list for ever."""
    frame, before = _MI_STRING.sub("$", line), ""
    while frame != before:  # innermost lists and tables first
        frame, before = _MI_BRACKETS.sub("$", frame), frame
    return _MI_RECORD.fullmatch(frame) is not None


def _setup() -> list[str]:
    settings: Sequence[str] = (
        f"prompt {_PROMPT}\\n",
        "confirm off",
        "pagination off",
        "width 0",
        "height 0",
        "editing off",
        "style enabled off",
        "print address on",
        "print frame-arguments all",
        "print entry-values no",  # each argument once
        "breakpoint pending off",
        "tcp connect-timeout 30",
        "remotetimeout 30",
    )
    return [word for setting in settings for word in ("-iex", f"set {setting}")]


def _environment() -> dict[str, str]:
    # Do not look for debugging information on the network: it is next to the kernel.
    return {name: value for name, value in os.environ.items() if name != "DEBUGINFOD_URLS"}


def _quoted(text: str) -> str:
    """Quote a string for the machine interface."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _reason(stop: str) -> str:
    match = re.search(r"(?:Temporary b|B|Hardware assisted b|b)reakpoint \d+|received signal (\w+)", stop)
    if match is None:
        return ""
    return match[1] or match[0]


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
