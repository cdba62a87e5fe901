# SPDX-License-Identifier: GPL-2.0-only
"""A program that behaves like gdb 13 with the machine interface; its answers were recorded from a real one on a guest.

What it is asked to do is written to ``$FAKE_GDB_LOG``. ``$FAKE_GDB`` may be ``refuse`` (nobody listens on the socket),
``no-dwarf``, ``guest-ends``, ``never-stops`` or ``hangs`` (it ignores an interrupt as well).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

interrupted = threading.Event()
PROMPT = "(gdb) \n"
STACK = (
    '^done,stack=[frame={level="0",addr="0xffffffff8126a4d0",func="thp_resv_alloc",file="mm/huge_memory_resv.c",'
    'fullname="/src/mm/huge_memory_resv.c",line="120",arch="i386:x86-64"},frame={level="1",addr="0xffffffff8126b001",'
    'func="thp_resv_create"},frame={level="2",addr="0x0000000000401136",func="??"}]'
)


STOPPED = (
    '*stopped,reason="breakpoint-hit",disp="keep",bkptno="1",frame={addr="0xffffffff8126a4d0",func="thp_resv_alloc",'
    'args=[{name="vma",value="0xffff888003bb2c80"},{name="haddr",value="140737353744384"},'
    '{name="order",value="<optimized out>"},{name="name",value="0xffffffff820f1a3c \\"chunk\\""},'
    '{name="vec",value="{x = 1, y = 2}"}],file="mm/huge_memory_resv.c",fullname="/src/mm/huge_memory_resv.c",'
    'line="120",arch="i386:x86-64"},thread-id="2",stopped-threads="all"\n'
)
WITHOUT_DWARF = (
    '*stopped,reason="breakpoint-hit",disp="keep",bkptno="1",frame={addr="0xffffffff8126a4d0",func="thp_resv_alloc",'
    'args=[],arch="i386:x86-64"},thread-id="2",stopped-threads="all"\n'
)
INTERRUPTED = (
    '*stopped,reason="signal-received",signal-name="SIGINT",signal-meaning="Interrupt",frame={addr="0x401136",'
    'func="??",args=[],arch="i386:x86-64"},thread-id="1",stopped-threads="all"\n'
)
WATCHED = (
    '*stopped,reason="watchpoint-trigger",wpt={number="7",exp="(jiffies) != 0"},value={old="0",new="1"},'
    'frame={addr="0xffffffff8126a4d0",func="tick",args=[],arch="i386:x86-64"},thread-id="1",stopped-threads="all"\n'
)
NOTES = "040000001400000003000000474e5500" + bytes(range(20)).hex()


def answer(command: str, mode: str) -> str:
    if command.startswith("-thread-info"):
        return '^done,threads=[{id="1",target-id="Thread 1.1",state="stopped"}],current-thread-id="2"'
    if command.startswith("-target-select"):
        if mode == "refuse":
            return f'^error,msg="{command.split()[-1]}: No such file or directory."'
        return "^done" if " core " in command else "^connected"
    if command.startswith("-stack-list-frames"):
        return STACK
    if command.startswith("-break-watch"):
        return '^done,wpt={number="7",exp="(jiffies) != 0"}'
    if command.startswith("-break-info"):
        kind = "watchpoint" if mode == "no-debug-registers" else "hw watchpoint"
        return f'^done,BreakpointTable={{nr_rows="1",nr_cols="6",hdr=[],body=[bkpt={{number="7",type="{kind}"}}]}}'
    if command.startswith("-break-insert"):
        if "nosuch" in command:
            return '^error,msg="Function \\"nosuch\\" not defined."'
        return '^done,bkpt={number="1",type="breakpoint",disp="keep",enabled="y",addr="0xffffffff8126a4d0",times="0"}'
    if command.startswith("-data-read-memory-bytes"):
        return f'^done,memory=[{{begin="0x1",offset="0x0",end="0x25",contents="{NOTES}"}}]'
    if command.startswith("-data-evaluate-expression"):
        if "nosuch" in command:
            return '^error,msg="No symbol \\"nosuch\\" in current context."'
        if "jiffies" in command:
            return '^done,value="0"'
        return '^done,value="0x2a"' if "$" in command else '^done,value="\\"tab\\\\t\\""'
    if command.startswith(
        ("-gdb-set", "-break-delete", "-target-detach", "-list-features", "-thread-select")
    ):
        return "^done"
    return f'^error,msg="Undefined MI command: {command}"'


def main() -> None:
    mode = os.environ.get("FAKE_GDB", "")
    log = Path(os.environ["FAKE_GDB_LOG"]).open("a", buffering=1)  # noqa: SIM115
    stop = WITHOUT_DWARF if mode == "no-dwarf" else STOPPED
    watching = False

    def say(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def waits_for_guest() -> None:
        if mode == "guest-ends":
            say(
                '&"Remote connection closed\\n"\n=thread-exited,id="1",group-id="i1"\n=thread-group-exited,id="i1"\n'
            )
        elif mode in ("never-stops", "hangs"):
            while not interrupted.wait(60) or mode == "hangs":
                pass
            interrupted.clear()
            say(INTERRUPTED)
        else:
            say('~"\\n"\n~"Thread 2 hit Breakpoint 1, thp_resv_alloc\\n"\n' + stop)

    say(f'=thread-group-added,id="i1"\n~"Reading symbols from {sys.argv[-1]}...\\n"\n{PROMPT}')
    for raw in iter(sys.stdin.readline, ""):
        line = raw.rstrip("\n")
        token = line[: len(line) - len(line.lstrip("0123456789"))]
        command = line.removeprefix(token)
        if command == "-gdb-exit":
            say(f"{token}^exit\n")
            return
        log.write(command + "\n")
        if command == "-exec-continue":
            say(f'~"Continuing.\\n"\n{token}^running\n*running,thread-id="all"\n{PROMPT}')
            if watching:
                say(WATCHED)
            elif mode not in ("never-stops", "hangs"):
                waits_for_guest()
            continue
        if command == "-exec-interrupt":
            say(f"{token}^done\n{INTERRUPTED}{PROMPT}")
            continue
        if command.startswith("-interpreter-exec console "):
            console = command.removeprefix("-interpreter-exec console ")[1:-1]
            if console == "info line":
                say(f'~"one\\n"\n~"two\\n"\n{token}^done\n')
            elif console == "continue" or console.startswith("source "):
                say(f'~"Continuing.\\n"\n{token}^running\n*running,thread-id="all"\n')
                waits_for_guest()
            else:
                say(f'{token}^error,msg="Undefined command: \\"{console}\\".  Try \\"help\\"."\n')
        else:
            watching = watching or command.startswith("-break-watch")
            say(token + answer(command, mode) + "\n")
        say(PROMPT)


if __name__ == "__main__":
    # It may come before we wait for it.
    signal.signal(signal.SIGINT, lambda number, frame: interrupted.set())
    main()
