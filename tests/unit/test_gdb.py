# SPDX-License-Identifier: GPL-2.0-only
"""gdb's machine interface, and what is asked of gdb; gdb itself is ``fake_gdb.py``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_gdb
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.debugger import gdb as gdb_module
from orchestrator.debugger.batch import Batch, Event, run_batch, text_of
from orchestrator.debugger.gdb import Gdb, GdbError, StackFrame, StopTimeout, check_places, parse_result
from orchestrator.debugger.kernel_scripts import write_kernel_scripts
from orchestrator.debugger.live import LiveMachine
from orchestrator.errors import InfrastructureError, UserError

VMLINUX_ID = bytes(range(20))


def notes(build_id: bytes) -> bytes:
    """What ``/sys/kernel/notes`` holds: an ELF note of type NT_GNU_BUILD_ID."""
    return struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id


def test_breakpoints_are_looked_up_before_a_guest_boots(tmp_path: Path) -> None:
    if not (shutil.which("gcc") and shutil.which("gdb")):
        pytest.skip("gcc or gdb is not installed")
    source, program = tmp_path / "a.c", tmp_path / "a"
    source.write_text("int first(int a) { return a; }\nint main(void) { return first(0); }\n")
    subprocess.run(["gcc", "-g", "-O0", str(source), "-o", str(program)], check=True)
    check_places(program, ["first", "main", "a.c:2"])
    with pytest.raises(UserError, match="--break frist: this kernel has no such function or line"):
        check_places(program, ["first", "frist", "main"])
    with pytest.raises(UserError, match="--break"):
        check_places(program, ["first\nshell touch left-behind"])
    assert not Path("left-behind").exists()


# --- the machine interface -------------------------------------------------------------------------------------------

values = st.recursive(
    st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.from_regex(r"[a-z][a-z-]{0,6}", fullmatch=True), inner)
    ),
    max_leaves=12,
)


def printed(value: object) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ",".join(printed(item) for item in value) + "]"
    assert isinstance(value, dict)
    return "{" + ",".join(f"{name}={printed(item)}" for name, item in value.items()) + "}"


@settings(deadline=None)  # a busy host is no failure
@given(st.dictionaries(st.from_regex(r"[a-z][a-z-]{0,6}", fullmatch=True), values, max_size=4))
def test_a_record_reads_back(results: dict[str, object]) -> None:
    record = "^done" + "".join(f",{name}={printed(value)}" for name, value in results.items())
    assert parse_result(record) == results


@settings(deadline=None)  # a busy host is no failure
@given(st.text(max_size=60))
@example("[{k}],a=[]")  # each bracket closes, but the library still looks for the end of the outer list
@example("]a=[")
def test_any_text_is_a_record_or_an_error(text: str) -> None:
    for record in (text, "^done," + text, "^done,a=" + text, "^done,a=[" + text, '^done,a={b="' + text):
        with contextlib.suppress(GdbError):
            parse_result(record)


def test_lists_of_named_values_and_escapes() -> None:
    assert parse_result(fake_gdb.STACK)["stack"][2] == {  # type: ignore[index]
        "level": "2",
        "addr": "0x0000000000401136",
        "func": "??",
    }
    assert parse_result('^done,value="a\\tb\\n\\"c\\" \\303\\251"') == {"value": 'a\tb\n"c" é'}


def test_an_error_is_raised_with_gdbs_words() -> None:
    with pytest.raises(GdbError, match=r'^No symbol "x" in current context$'):
        parse_result('^error,msg="No symbol \\"x\\" in current context."')


# --- a session -------------------------------------------------------------------------------------------------------

Attach = Callable[..., Gdb]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "asked"


@pytest.fixture
def attach(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attach]:
    program = tmp_path / "bin" / "gdb"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_gdb.__file__} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("FAKE_GDB_LOG", str(log))
    # The vmlinux is made up: test_elf.py holds the reading of real ones.
    monkeypatch.setattr(gdb_module, "build_id", lambda vmlinux: VMLINUX_ID.hex())
    attached: list[Gdb] = []

    def one(mode: str = "", **options: object) -> Gdb:
        monkeypatch.setenv("FAKE_GDB", mode)
        monkeypatch.setattr(gdb_module, "has_dwarf", lambda vmlinux: mode != "no-dwarf")
        attached.append(Gdb.attach(tmp_path / "gdb.sock", tmp_path / "vmlinux", **options))  # type: ignore[arg-type]
        return attached[-1]

    yield one
    for gdb in attached:
        gdb.close()


def test_a_breakpoint_that_is_hit(attach: Attach, log: Path, tmp_path: Path) -> None:
    with attach(notes=notes(VMLINUX_ID), transcript=tmp_path / "gdb.log") as gdb:
        assert gdb.break_at("thp_resv_alloc") == 1
        gdb.continue_()
        assert gdb.running
        stop = gdb.wait_stop(20)
        assert not gdb.running
        assert (stop.function, stop.thread, stop.pc) == ("thp_resv_alloc", 2, 0xFFFFFFFF8126A4D0)
        assert stop.reason == "Breakpoint 1" and stop.args_by_name
        assert stop.args == {
            "vma": 0xFFFF888003BB2C80,
            "haddr": 140737353744384,
            "order": "<optimized out>",
            "name": 0xFFFFFFFF820F1A3C,
            "vec": "{x = 1, y = 2}",
        }
    asked = log.read_text().splitlines()
    assert asked[1] == f"-target-select remote {tmp_path}/gdb.sock"
    assert asked[-2:] == ["-break-delete", "-target-detach"], "the guest is left running, without breakpoints"
    assert "thp_resv_alloc" in (tmp_path / "gdb.log").read_text()


def test_without_dwarf_the_arguments_are_registers(attach: Attach, log: Path) -> None:
    with attach("no-dwarf") as gdb:
        gdb.break_at("thp_resv_alloc")
        gdb.continue_()
        stop = gdb.wait_stop(20)
        assert not stop.args_by_name
        assert stop.args == dict.fromkeys(("rdi", "rsi", "rdx", "rcx", "r8", "r9"), 42)
    # On the first instruction: behind the prologue the registers may hold something else.
    assert '-break-insert "*thp_resv_alloc"' in log.read_text()


def test_hardware_breakpoints_and_conditions(attach: Attach, log: Path) -> None:
    with attach() as gdb:
        gdb.break_at("thp_resv_alloc", hardware=True, condition='vma->vm_start == 0 || *"x"')
    assert "-break-insert -h -c" in log.read_text()


def test_backtrace_evaluate_and_commands(attach: Attach) -> None:
    with attach() as gdb:
        assert gdb.backtrace() == [
            StackFrame("thp_resv_alloc", 0xFFFFFFFF8126A4D0, "mm/huge_memory_resv.c:120"),
            StackFrame("thp_resv_create", 0xFFFFFFFF8126B001, ""),
            StackFrame("", 0x401136, ""),
        ]
        assert gdb.evaluate("$rdi") == 42
        assert gdb.evaluate('"tab\\t"') == '"tab\\t"'
        assert gdb.command("info line") == "one\ntwo"


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        (lambda gdb: gdb.break_at("nosuch"), 'gdb cannot break at nosuch: Function "nosuch" not defined'),
        (lambda gdb: gdb.evaluate("nosuch"), 'gdb cannot evaluate nosuch: No symbol "nosuch"'),
    ],
)
def test_unknown_symbols(attach: Attach, what: Callable[[Gdb], object], complaint: str) -> None:
    with attach() as gdb, pytest.raises(UserError) as caught:
        what(gdb)
    assert complaint in str(caught.value)


def test_a_guest_that_never_stops_is_interrupted(attach: Attach) -> None:
    with attach("never-stops") as gdb:
        gdb.continue_()
        with pytest.raises(StopTimeout, match=r"did not stop within 0.3 s"):
            gdb.wait_stop(0.3)
        with pytest.raises(UserError, match="the guest is running"):
            gdb.evaluate("1")
        assert gdb.interrupt().reason == "SIGINT"


def test_leaving_interrupts_and_detaches(attach: Attach, log: Path) -> None:
    with attach("never-stops") as gdb:
        gdb.continue_()
    assert log.read_text().splitlines()[-1] == "-target-detach"


def test_a_guest_that_ends(attach: Attach) -> None:
    with attach("guest-ends") as gdb:
        gdb.continue_()
        with pytest.raises(InfrastructureError, match="the guest ended"):
            gdb.wait_stop(20)


def test_the_wrong_vmlinux_is_refused(attach: Attach, log: Path) -> None:
    with pytest.raises(UserError, match="give gdb the vmlinux of the kernel that was booted"):
        attach(notes=notes(bytes(20)))
    assert not log.exists(), "gdb was not even started"


def test_nobody_to_attach_to(attach: Attach) -> None:
    with pytest.raises(InfrastructureError, match=r"cannot attach to .*No such file or directory"):
        attach("refuse")


def test_a_command_that_waits_for_the_guest_can_be_told_to_stop_it(attach: Attach) -> None:
    with attach("never-stops") as gdb:
        threading.Timer(0.3, gdb.stop_waiting).start()
        assert gdb.command("continue") == "Continuing."
        assert gdb.command("info line") == "one\ntwo", "what comes after it is its own"


def test_a_guest_that_ends_under_a_command_is_reported(attach: Attach) -> None:
    with attach("guest-ends") as gdb, pytest.raises(InfrastructureError, match="the guest ended"):
        gdb.command("continue")


@pytest.mark.parametrize("line", ["continue", "source endless.py"])
def test_a_command_has_a_limit_and_says_what_it_waited_for(attach: Attach, line: str) -> None:
    with attach("never-stops") as gdb:
        with pytest.raises(InfrastructureError, match=f"did not stop within 0.3 s of '{line}'"):
            gdb.command(line, timeout_s=0.3)
        assert gdb.command("info line") == "one\ntwo", "the guest stands, and gdb is usable"


def test_a_gdb_that_hangs_is_ended(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdb_module, "_END_TIMEOUT_S", 0.2)
    with (
        attach("hangs") as gdb,
        pytest.raises(InfrastructureError, match=r"was killed, within 0\.2 s of 'cont"),
    ):
        gdb.command("continue", timeout_s=0.2)
    assert gdb._gdb.poll() is not None


def test_a_wrong_command_is_the_users(attach: Attach) -> None:
    with attach() as gdb, pytest.raises(UserError, match="gdb rejects 'nosuch': Undefined command"):
        gdb.command("nosuch")


def test_what_cannot_be_watched_at_full_speed_is_refused(attach: Attach, log: Path) -> None:
    with (
        attach("no-debug-registers") as gdb,
        pytest.raises(UserError, match="cannot watch jiffies at full speed"),
    ):
        gdb.watch("jiffies")
    assert "-break-delete 7" in log.read_text()


# --- a dump of a guest's memory --------------------------------------------------------------------------------------


@pytest.fixture
def core(tmp_path: Path) -> Path:
    dump = tmp_path / "core"
    dump.write_bytes(b"ELF")
    return dump


def test_a_dump_is_read(attach: Attach, core: Path, tmp_path: Path) -> None:
    attach().close()  # for the environment
    with Gdb.open_core(core, tmp_path / "vmlinux") as gdb:
        assert gdb.evaluate("$rdi") == 42


def test_a_dump_of_another_kernel_is_refused(
    attach: Attach, core: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach().close()
    monkeypatch.setattr(gdb_module, "build_id", lambda vmlinux: bytes(20).hex())
    with pytest.raises(UserError, match="give gdb the vmlinux of the kernel that was booted"):
        Gdb.open_core(core, tmp_path / "vmlinux")
    with pytest.raises(UserError, match="there is no such file"):
        Gdb.open_core(tmp_path / "nosuch", tmp_path / "vmlinux")


# --- a session without a person --------------------------------------------------------------------------------------


def events_of(gdb: Gdb, batch: Batch) -> tuple[bool, list[Event]]:
    events: list[Event] = []
    return run_batch(gdb, batch, events.append), events


def test_a_session_stops_at_a_breakpoint_and_runs_commands(attach: Attach, log: Path) -> None:
    with attach() as gdb:
        reached, events = events_of(gdb, Batch(["thp_resv_alloc"], "haddr > 0", commands=["info line"]))
    assert reached and [event["event"] for event in events] == ["stop", "command"]
    assert events[0]["function"] == "thp_resv_alloc" and events[0]["cpu"] == 1
    assert events[0]["backtrace"][0]["place"] == "mm/huge_memory_resv.c:120"
    assert events[1] == {"event": "command", "command": "info line", "output": "one\ntwo"}
    assert json.loads(json.dumps(events)) == events, "each event is a line of JSON"
    assert '-break-insert -c "haddr > 0" "thp_resv_alloc"' in log.read_text()
    shown = text_of(events[0]).splitlines()
    assert shown[0].startswith(
        "stop     Breakpoint 1 on CPU 1: thp_resv_alloc(vma=0xffff888003bb2c80, haddr=0x7ffff7fa"
    )
    assert shown[1] == "  #0  thp_resv_alloc mm/huge_memory_resv.c:120"


def test_a_session_watches_a_global_variable(attach: Attach) -> None:
    with attach() as gdb:
        reached, events = events_of(gdb, Batch(until="jiffies"))
    assert reached and events[0]["reason"] == "Watchpoint 7" and "value" in events[0]


def test_a_session_says_what_it_waited_for(attach: Attach) -> None:
    with attach("never-stops") as gdb:
        reached, events = events_of(gdb, Batch(["thp_resv_alloc"], "haddr > 0", timeout_s=0.2))
    assert not reached
    assert text_of(events[0]) == (
        "not reached within 0.2 s: waited for a breakpoint at thp_resv_alloc where haddr > 0 is not 0"
    )


def test_a_script_is_gdbs_or_pythons(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.gdb"):
        Batch(script=tmp_path / "script.sh")
    with pytest.raises(UserError, match="there is no such file"):
        Batch(script=tmp_path / "script.py")


def test_a_script_is_run(attach: Attach, log: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.gdb"
    script.write_text("continue\n")
    with attach() as gdb:
        _, events = events_of(gdb, Batch(script=script))
    assert events[0]["event"] == "script" and "Thread 2 hit Breakpoint 1" in events[0]["output"]
    assert f"source {script}" in log.read_text()


# --- the kernel's own scripts ----------------------------------------------------------------------------------------


def test_the_kernels_scripts_come_from_its_source(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        named = ["-c", "user.name=a", "-c", "user.email=a@localhost"]
        subprocess.run(["git", *named, *words], cwd=tmp_path / "tree", check=True, env=environment)

    modules = tmp_path / "tree" / "scripts" / "gdb" / "linux"
    modules.mkdir(parents=True)
    (modules / "tasks.py").write_text("print('tasks')\n")
    (modules / "constants.py.in").write_text("not generated\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "all")
    loader = write_kernel_scripts(tmp_path / "tree" / ".git", "HEAD", tmp_path)
    assert loader is not None
    assert sorted(path.name for path in (tmp_path / "gdb" / "linux").iterdir()) == ["tasks.py"]
    done = subprocess.run([sys.executable, str(loader)], capture_output=True, text=True, check=True)
    assert done.stdout == "tasks\nkernel scripts: tasks ; not usable: none\n"
    (tmp_path / "other").mkdir()
    git("rm", "--quiet", "-r", "scripts")
    git("commit", "--quiet", "--allow-empty", "-m", "none")
    assert write_kernel_scripts(tmp_path / "tree" / ".git", "HEAD", tmp_path / "other") is None


# --- a guest of another process --------------------------------------------------------------------------------------


def machine_json(directory: Path, **changes: object) -> None:
    facts = {
        "alive": True,
        "pid": os.getpid(),
        "monitor": str(directory / "monitor"),
        "gdb": None,
        "argv": [],
        **changes,
    }
    (directory / "machine.json").write_text(json.dumps(facts))


def test_only_a_running_guest_can_be_attached_to(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no guest yet"):
        LiveMachine.of_directory(tmp_path)
    machine_json(tmp_path, alive=False)
    with pytest.raises(UserError, match="has ended"):
        LiveMachine.of_directory(tmp_path)
    machine_json(tmp_path)  # its socket is gone: it was killed
    with pytest.raises(UserError, match="has ended"):
        LiveMachine.of_directory(tmp_path)
    (tmp_path / "machine.json").write_text("[")
    with pytest.raises(UserError, match="is damaged"):
        LiveMachine.of_directory(tmp_path)


def test_qemu_is_told_to_serve_gdb() -> None:
    directory = Path(tempfile.mkdtemp(dir="/tmp"))  # a socket's path is short
    machine_json(directory)
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(directory / "monitor"))
        server.listen()

        def monitor() -> None:
            line, _ = server.accept()
            with line:
                line.sendall(b"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ")
                heard.append(line.recv(1000).decode())
                (directory / "gdb").touch()
                line.sendall(heard[0].encode() + b"\r\nWaiting for gdb connection\r\n(qemu) ")

        thread = threading.Thread(target=monitor)
        thread.start()
        assert LiveMachine.of_directory(directory).serve_gdb() == directory / "gdb"
        thread.join()
    assert heard == [f"gdbserver unix:{directory}/gdb,server=on,wait=off\n"]
    assert LiveMachine.of_directory(directory).serve_gdb() == directory / "gdb", "it is asked once"
    shutil.rmtree(directory)
