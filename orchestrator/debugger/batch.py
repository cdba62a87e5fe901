# SPDX-License-Identifier: GPL-2.0-only
"""A gdb session without a person: breakpoints, a condition, commands and scripts, with each result as an event."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.debugger.gdb import Gdb, StackFrame, Stop, StopTimeout
from orchestrator.errors import UserError

#: What happened, for a line of JSON: ``event`` names its kind, the other keys depend on it.
Event = Mapping[str, Any]
#: What gdb can run: by gdb's own interpreter, and by its Python.
SCRIPTS = (".gdb", ".py")
#: Stack frames of a stop.
FRAMES = 16


@dataclass(frozen=True)
class Batch:
    """What to do in a session.

    Args:
        breakpoints: places as for :meth:`Gdb.break_at`.
        until: a C expression. With breakpoints, the guest stops at the first one where it is not 0; without, as soon
            as its value changes to another one than 0. Empty for none.
        goes_on: whether the guest runs until it stops, before the commands.
        commands: gdb commands, in order.
        script: file with gdb commands (``.gdb``) or Python for gdb (``.py``), run after the commands.
        timeout_s: limit of each wait and command in host seconds.
    """

    breakpoints: Sequence[str] = ()
    until: str = ""
    goes_on: bool = False
    commands: Sequence[str] = ()
    script: Path | None = None
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.script is not None:
            check_script(self.script)


def check_script(script: Path) -> None:
    """Check that gdb can run a script.

    Raises:
        UserError: there is no such file, or its name has another end.
    """
    if script.suffix not in SCRIPTS:
        raise UserError(
            f"--script {script}: name a file that ends in .gdb (gdb commands) or .py (Python for gdb)."
        )
    if not script.is_file():
        raise UserError(f"--script {script}: there is no such file.")


def run_batch(
    gdb: Gdb, batch: Batch, say: Callable[[Event], None], started: Callable[[], object] = lambda: None
) -> bool:
    """Run a session.

    Args:
        gdb: attached to a guest that is stopped, or to a dump.
        say: receives the events: ``stop``, ``timeout``, ``command`` and ``script``.
        started: called each time that the guest runs, e.g. to start a program in it.

    Returns:
        Whether the guest stopped as requested; False after a ``timeout``.

    Raises:
        UserError: a place or an expression that gdb does not know, or a command that it rejects.
        InfrastructureError: the guest ended, or a command did not end in time.
    """
    for place in batch.breakpoints:
        gdb.break_at(place, condition=batch.until)
    reached = True
    if batch.until or batch.goes_on:
        reached = _go_on(gdb, batch, say, started)
    for line in batch.commands:
        say({"event": "command", "command": line, "output": gdb.command(line, batch.timeout_s)})
    if batch.script is not None:
        output = gdb.command(f"source {batch.script.absolute()}", batch.timeout_s)
        say({"event": "script", "script": str(batch.script), "output": output})
    return reached


def _go_on(gdb: Gdb, batch: Batch, say: Callable[[Event], None], started: Callable[[], object]) -> bool:
    watched = None
    if not batch.breakpoints and batch.until:
        if gdb.number(f"({batch.until}) != 0"):
            say(
                {"event": "stop", "reason": "it is so from the beginning", "value": gdb.evaluate(batch.until)}
            )
            return True
        watched = gdb.watch(f"({batch.until}) != 0")
    gdb.continue_()
    started()
    try:
        stop = gdb.wait_stop(batch.timeout_s)
    except StopTimeout:
        gdb.interrupt()
        say(timeout_event(gdb, batch))
        return False
    finally:
        if watched is not None and not gdb.running:
            gdb.delete(watched)
    if watched is not None and stop.breakpoint == watched:
        say({**stop_event(stop, gdb.backtrace(FRAMES)), "value": gdb.evaluate(batch.until)})
    else:
        say(stop_event(stop, gdb.backtrace(FRAMES)))
    return True


def stop_event(stop: Stop, stack: Sequence[StackFrame]) -> dict[str, Any]:
    """The event of a stop."""
    return {
        "event": "stop",
        "reason": stop.reason,
        "function": stop.function,
        "place": stop.place,
        "cpu": stop.thread - 1,
        "args": dict(stop.args),
        "backtrace": [
            {"function": frame.function, "pc": f"{frame.pc:#x}", "place": frame.place} for frame in stack
        ],
    }


def timeout_event(gdb: Gdb, batch: Batch) -> dict[str, Any]:
    """The event of a wait that reached its limit: what it waited for."""
    what = f"a breakpoint at {', '.join(batch.breakpoints)}" if batch.breakpoints else ""
    if batch.until:
        what += f" where {batch.until} is not 0" if what else f"{batch.until} to become other than 0"
    event: dict[str, Any] = {
        "event": "timeout", "waited_for": what or "a stop", "seconds": batch.timeout_s
    }  # fmt: skip
    if batch.until and not batch.breakpoints:
        event["value"] = gdb.evaluate(batch.until)
    return event


def text_of(event: Event) -> str:
    """An event for a person."""
    kind = event["event"]
    if kind in ("command", "script"):
        return str(event["output"])
    if kind == "program":
        return f"program  {event['command']}: {event['end']}\n{event.get('output', '')}".rstrip()
    if kind == "timeout":
        value = f"; its value is {event['value']}" if "value" in event else ""
        return f"not reached within {event['seconds']:g} s: waited for {event['waited_for']}{value}"
    value = f"; value {event['value']}" if "value" in event else ""
    if "function" not in event:
        return f"stop     {event['reason']}{value}"
    arguments = ", ".join(
        f"{name}={argument:#x}" if isinstance(argument, int) else f"{name}={argument}"
        for name, argument in event["args"].items()
    )
    lines = [f"stop     {event['reason']} on CPU {event['cpu']}: {event['function']}({arguments}){value}"]
    lines += [
        f"  #{level:<2} {frame['function'] or frame['pc']} {frame['place']}".rstrip()
        for level, frame in enumerate(event["backtrace"])
    ]
    return "\n".join(lines)
