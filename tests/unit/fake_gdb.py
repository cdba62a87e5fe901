# SPDX-License-Identifier: GPL-2.0-only
"""A program that behaves like gdb 13 towards :class:`Gdb`; its answers were recorded from a real one on a guest.

What it is asked to do is written to ``$FAKE_GDB_LOG``. ``$FAKE_GDB`` may be ``refuse`` (nobody listens on the socket),
``no-dwarf``, ``guest-ends`` or ``never-stops``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

interrupted = threading.Event()
PROMPT = "(orchestrate-gdb)\n"
FRAME = (
    '^done,frame={level="0",addr="0xffffffff8126a4d0",func="thp_resv_alloc",file="mm/huge_memory_resv.c",'
    'fullname="/src/mm/huge_memory_resv.c",line="120",arch="i386:x86-64"}'
)
ARGUMENTS = (
    '^done,stack-args=[frame={level="0",args=[{name="vma",value="0xffff888003bb2c80"},'
    '{name="haddr",value="140737353744384"},{name="order",value="<optimized out>"},'
    '{name="name",value="0xffffffff820f1a3c \\"chunk\\""},{name="vec",value="{x = 1, y = 2}"}]}]'
)
STACK = (
    '^done,stack=[frame={level="0",addr="0xffffffff8126a4d0",func="thp_resv_alloc",file="mm/huge_memory_resv.c",'
    'fullname="/src/mm/huge_memory_resv.c",line="120",arch="i386:x86-64"},frame={level="1",addr="0xffffffff8126b001",'
    'func="thp_resv_create"},frame={level="2",addr="0x0000000000401136",func="??"}]'
)


def answer(command: str, mode: str) -> str:
    if command.startswith("-thread-info"):
        if mode == "refuse":
            return "^done,threads=[]"
        return '^done,threads=[{id="1",target-id="Thread 1.1",state="stopped"}],current-thread-id="2"'
    if command.startswith("-stack-info-frame"):
        return (
            '^done,frame={level="0",addr="0xffffffff8126a4d0",func="thp_resv_alloc"}'
            if mode == "no-dwarf"
            else FRAME
        )
    if command.startswith("-stack-list-arguments"):
        return ARGUMENTS
    if command.startswith("-stack-list-frames"):
        return STACK
    if command.startswith("-break-insert"):
        if "nosuch" in command:
            return '^error,msg="Function \\"nosuch\\" not defined."'
        return '^done,bkpt={number="1",type="breakpoint",disp="keep",enabled="y",addr="0xffffffff8126a4d0",times="0"}'
    if command.startswith("-data-evaluate-expression"):
        if "nosuch" in command:
            return '^error,msg="No symbol \\"nosuch\\" in current context."'
        return '^done,value="0x2a"' if "$" in command else '^done,value="\\"tab\\\\t\\""'
    return f'^error,msg="Undefined MI command: {command}"'


def main() -> None:
    mode = os.environ.get("FAKE_GDB", "")
    log = Path(os.environ["FAKE_GDB_LOG"]).open("a", buffering=1)  # noqa: SIM115

    def say(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    say(f"Reading symbols from {sys.argv[-1]}...\n{PROMPT}")
    for raw in iter(sys.stdin.readline, ""):
        line = raw.rstrip("\n")
        if line == "quit":
            return
        log.write(line + "\n")
        if line.startswith("interpreter-exec mi3 "):
            command = (
                line.removeprefix("interpreter-exec mi3 ")[1:-1].replace('\\"', '"').replace("\\\\", "\\")
            )
            say(answer(command, mode) + "\n")
        elif line.startswith("target remote") and mode == "refuse":
            say(f"{line.split()[-1]}: No such file or directory.\n")
        elif line == "continue":
            say("Continuing.\n")
            if mode == "guest-ends":
                say("Remote connection closed\n")
            elif mode == "never-stops":
                interrupted.wait(60)
                say("\nThread 1 received signal SIGINT, Interrupt.\n")
            else:
                say(
                    "[Switching to Thread 1.2]\n\nThread 2 hit Breakpoint 1, thp_resv_alloc (vma=0xffff888003bb2c80)\n"
                )
        elif line == "detach":
            say("Detaching from program: vmlinux, process 1\n[Inferior 1 (process 1) detached]\n")
        elif line == "info line":
            say("one\ntwo\n")
        say(PROMPT)


if __name__ == "__main__":
    # It may come before we wait for it.
    signal.signal(signal.SIGINT, lambda number, frame: interrupted.set())
    main()
