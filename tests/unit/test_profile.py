# SPDX-License-Identifier: GPL-2.0-only
"""Instructions per kernel function: what the plugin counts, how it is stored, compared and drawn."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from synthetic_run import Synthetic

from orchestrator.analysis.plots import flame
from orchestrator.analysis.plots.style import style
from orchestrator.analysis.profile import (
    Profiles,
    compare_profiles,
    mean_chains,
    profile_text,
    profiles_of,
)
from orchestrator.debugger import profiler
from orchestrator.debugger.profiler import Counts, Profiler, check_profile, interface_version, parse_counts
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.execution.measure.report import conclude
from orchestrator.machine.qemu import Plugin, Sockets
from orchestrator.store.profile import FILE, Profile, read_profile, write_profile
from orchestrator.store.run import Run

SOURCE = Path(profiler.__file__).with_name("plugin")
#: Name -> start and size, in the kernel's half of the address space.
FUNCTIONS: Mapping[str, tuple[int, int]] = {
    "entry": (0xFFFFFFFF81000000, 0x100),
    "fault": (0xFFFFFFFF81000100, 0x80),
    "alloc": (0xFFFFFFFF81000200, 0x40),
    "schedule": (0xFFFFFFFF81000300, 0x40),
    "__switch_to_asm": (0xFFFFFFFF81000400, 0x40),
    "ret_from_fork_asm": (0xFFFFFFFF81000500, 0x40),
    "kthread": (0xFFFFFFFF81000600, 0x40),
    "interrupt": (0xFFFFFFFF81000700, 0x40),
}
USER_CODE = 0x401000


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The plugin and its host, compiled as the tool compiles it."""
    directory = tmp_path_factory.mktemp("plugin")
    plugin, host = directory / "profile.so", directory / "host"
    subprocess.run(
        ["gcc", *profiler._FLAGS, "-DINTERFACE_VERSION=1", "-o", str(plugin), str(SOURCE / "profile.c")],
        check=True,
    )
    subprocess.run(
        [
            *("gcc", "-O0", "-Wall", "-Werror", "-rdynamic", f"-I{SOURCE}"),
            *("-o", str(host), str(Path(__file__).with_name("plugin_host.c")), "-ldl"),
        ],
        check=True,
    )
    return plugin, host


class ProfiledGuest:
    """A guest that executes what a test says."""

    def __init__(self, process: subprocess.Popen[str], sockets: Sockets) -> None:
        self._process = process
        self.sockets = sockets

    def run(self, place: str | int, insns: int, offset: int = 0, *accesses: str) -> None:
        address = place if isinstance(place, int) else FUNCTIONS[place][0] + offset
        assert self._process.stdin is not None
        self._process.stdin.write(f"run {address:x} {insns} {' '.join(accesses)}\n")

    def read(self) -> Counts:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("wait\n")
        self._process.stdin.flush()
        while self._process.stdout.readline() != "ready\n":
            pass
        return Profiler.read(cast("Any", self))


@contextmanager
def guest(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ProfiledGuest, Profiler]]:
    from orchestrator.kernel.elf import Symbol

    symbols = [Symbol(name, start, size) for name, (start, size) in FUNCTIONS.items()]
    monkeypatch.setattr(profiler, "_functions", lambda _: symbols)
    monkeypatch.setattr(profiler, "symbol_address", lambda _, name: FUNCTIONS[name][0])
    plugin, host = built
    (tmp_path / "vmlinux").touch()
    mine = Profiler(tmp_path / "vmlinux", plugin, tmp_path)
    sockets = Sockets(tmp_path)
    arguments = [f"{key}={value}" for key, value in mine.plugin.arguments.items()]
    with subprocess.Popen(
        [host, plugin, *arguments, f"socket={sockets.plugin}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield ProfiledGuest(process, sockets), mine
        assert process.stdin is not None
        process.stdin.close()
    assert process.returncode == 0


def chains_of(
    built: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    does: Callable[[ProfiledGuest], None],
) -> Mapping[str, int]:
    with guest(built, tmp_path, monkeypatch) as (running, mine):
        does(running)
        counted = mine.between(Counts({}), running.read())
    return {";".join(chain): count for chain, count in counted.chains.items()}


def test_a_call_and_a_return_make_a_chain(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def does(running: ProfiledGuest) -> None:
        running.run(USER_CODE, 5)
        running.run("entry", 3)
        running.run("fault", 7)
        running.run("alloc", 11)
        running.run("alloc", 2, 0x20)
        running.run("fault", 4, 0x30)
        running.run("alloc", 11)
        running.run("entry", 1, 0x80)
        running.run(USER_CODE + 0x10, 6)

    assert chains_of(built, tmp_path, monkeypatch, does) == {
        "[user]": 11,
        "[user];entry": 4,
        "[user];entry;fault": 11,
        "[user];entry;fault;alloc": 24,
    }


def test_an_interrupt_returns_into_the_middle_of_a_function(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def does(running: ProfiledGuest) -> None:
        running.run(USER_CODE, 1)
        running.run("entry", 1)
        running.run("alloc", 1)
        running.run("interrupt", 9)
        running.run("alloc", 2, 0x10)
        running.run("entry", 3, 0x10)

    assert chains_of(built, tmp_path, monkeypatch, does) == {
        "[user]": 1,
        "[user];entry": 4,
        "[user];entry;alloc": 3,
        "[user];entry;alloc;interrupt": 9,
    }


def test_each_task_goes_on_where_it_was(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def switch(running: ProfiledGuest, old: str, new: str) -> None:
        # Registers are pushed, the old stack pointer is stored, the new one loaded, registers are popped.
        running.run("__switch_to_asm", 10, 0, "+w", "7000", "+w", old, "+r", new, "+r", "8000")

    def does(running: ProfiledGuest) -> None:
        running.run(USER_CODE, 1)
        running.run("fault", 2)
        running.run("schedule", 3)
        switch(running, "a000", "b000")
        running.run("ret_from_fork_asm", 4)  # a new task
        running.run("kthread", 5)
        running.run("schedule", 6)
        switch(running, "b000", "a000")
        running.run("schedule", 7, 0x10)  # the old one, where it left
        running.run("fault", 8, 0x10)
        running.run("schedule", 3)
        switch(running, "a000", "b000")
        running.run("schedule", 9, 0x10)
        running.run("kthread", 1, 0x10)

    assert chains_of(built, tmp_path, monkeypatch, does) == {
        "[user]": 1,
        "[user];fault": 10,
        "[user];fault;schedule": 13,
        "[user];fault;schedule;__switch_to_asm": 20,
        "ret_from_fork_asm": 4,
        "ret_from_fork_asm;kthread": 6,
        "ret_from_fork_asm;kthread;schedule": 15,
        "ret_from_fork_asm;kthread;schedule;__switch_to_asm": 10,
    }


def test_an_entry_in_the_middle_of_a_function_is_a_call(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As irq_entries_start, which has one entry per interrupt, and NAME.cold, which is jumped into."""

    def does(running: ProfiledGuest) -> None:
        running.run(USER_CODE, 1)
        running.run("entry", 1)
        running.run("alloc", 2)
        running.run("interrupt", 3, 0x18)
        running.run("fault", 4)
        running.run("alloc", 5, 0x10)
        running.run("entry", 6, 0x10)

    assert chains_of(built, tmp_path, monkeypatch, does) == {
        "[user]": 1,
        "[user];entry": 7,
        "[user];entry;alloc": 7,
        "[user];entry;alloc;interrupt": 3,
        "[user];entry;alloc;interrupt;fault": 4,
    }


def test_code_outside_of_all_functions_is_counted(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = chains_of(
        built, tmp_path, monkeypatch, lambda running: running.run(FUNCTIONS["fault"][0] + 0x90, 8)
    )
    assert counted == {"[other]": 8}


def test_a_window_is_the_difference_of_two_readings(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with guest(built, tmp_path, monkeypatch) as (running, mine):
        running.run(USER_CODE, 100)
        running.run("fault", 10)
        before = running.read()
        running.run("alloc", 3)
        running.run("fault", 4, 0x10)
        after = running.read()
    assert mine.between(before, after).chains == {
        ("[user]", "fault"): 4,
        ("[user]", "fault", "alloc"): 3,
    }


def test_the_plugin_refuses_wrong_arguments(built: tuple[Path, Path], tmp_path: Path) -> None:
    done = subprocess.run(
        [built[1], built[0], "functions=/nonexistent"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "wrong arguments" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "answer",
    [b"", b"1 0 0 5\n", b"1 0 0 5\nend 6\n", b"1 0 0\nend 0\n", b"1 0 x 5\nend 5\n", b"end\n", b"\xff 1\n"],
)
def test_an_answer_that_is_not_whole_is_refused(answer: bytes) -> None:
    with pytest.raises(InfrastructureError, match="not whole"):
        parse_counts(answer)


def test_a_qemu_that_does_not_answer(tmp_path: Path) -> None:
    class ProfiledMachine:
        sockets = Sockets(tmp_path)

    with pytest.raises(InfrastructureError, match="does not answer"):
        Profiler.read(cast("Any", ProfiledMachine()))


@pytest.mark.parametrize(
    ("exported", "version"),
    [
        (b"\0qemu_plugin_register_vcpu_tb_exec_cb\0qemu_plugin_n_vcpus\0", 1),
        (b"\0qemu_plugin_num_vcpus\0qemu_plugin_register_vcpu_tb_exec_cb\0", 2),
    ],
)
def test_the_interface_is_the_one_that_qemu_has(exported: bytes, version: int, tmp_path: Path) -> None:
    (tmp_path / "qemu").write_bytes(exported)
    assert interface_version(tmp_path / "qemu") == version


def test_a_qemu_without_plugins_is_refused(tmp_path: Path) -> None:
    (tmp_path / "qemu").write_bytes(b"\x7fELF")
    with pytest.raises(InfrastructureError, match="built without plugins"):
        interface_version(tmp_path / "qemu")


@pytest.mark.parametrize("accelerator", ["kvm", "tcg"])
def test_only_icount_counts_instructions(accelerator: str) -> None:
    check_profile("icount")
    with pytest.raises(UserError, match=f"which {accelerator} does not; add --accel icount"):
        check_profile(accelerator)


def test_a_kernel_without_vmlinux_cannot_be_profiled(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add --vmlinux FILE to --kernel"):
        Profiler(tmp_path / "vmlinux", tmp_path / "profile.so", tmp_path)


def test_the_arguments_of_a_plugin_may_have_commas() -> None:
    plugin = Plugin(Path("/a,b/profile.so"), {"functions": "/c,d"})
    assert plugin.qemu_arguments(Sockets(Path("/run"))) == [
        "-plugin",
        "file=/a,,b/profile.so,functions=/c,,d,socket=/run/plugin",
    ]


# Stored, compared, drawn

OLD = {
    "[user]": 1000,
    "[user];entry;fault": 500,
    "[user];entry;fault;alloc": 300,
    "[user];entry;clear": 200,
    "do_idle;timer": 7777,
    "ret_from_fork_asm;ret_from_fork;kthread;kcompactd": 5000,
    "ret_from_fork_asm;ret_from_fork;kthread;kcompactd;scan": 600,
    "ret_from_fork_asm;ret_from_fork": 3,
}


def profile(chains: Mapping[str, int]) -> Profile:
    return Profile({tuple(name.split(";")): count for name, count in chains.items()})


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = profile(OLD)
    write_profile(tmp_path / FILE, written)
    assert read_profile(tmp_path / FILE) == written
    assert (
        "[user];entry;fault;alloc 300"
        in gzip.decompress((tmp_path / FILE).read_bytes()).decode().splitlines()
    )
    first = (tmp_path / FILE).read_bytes()
    write_profile(tmp_path / FILE, Profile(dict(reversed(list(written.chains.items())))))
    assert (tmp_path / FILE).read_bytes() == first


@pytest.mark.parametrize("damage", ["cut", "text", "number", "flipped", "absent"])
def test_a_damaged_profile_is_one_sentence(damage: str, tmp_path: Path) -> None:
    path = tmp_path / FILE
    write_profile(path, profile(OLD))
    whole = path.read_bytes()
    content = {
        "cut": whole[:-9],
        "text": b"text",
        "number": gzip.compress(b"a;b many\n"),
        "flipped": whole[:20] + bytes([whole[20] ^ 0xFF]) + whole[21:],
        "absent": b"",
    }[damage]
    path.write_bytes(content)
    if damage == "absent":
        path.unlink()
    with pytest.raises(UserError, match="is not a profile, or damaged"):
        read_profile(path)


def test_processes_and_kernel_threads_count_apart_and_the_idle_task_does_not() -> None:
    found = profile(OLD)
    assert found.total == 2000
    assert found.own == {"[user]": 1000, "fault": 500, "alloc": 300, "clear": 200}
    assert found.threads == {"kcompactd": 5600, "[other]": 3}
    assert found.with_callees["entry"] == 1000
    assert found.with_callees["fault"] == 800


def test_a_function_that_calls_itself_counts_once() -> None:
    assert profile({"[user];a;b;a": 5}).with_callees == {"[user]": 5, "a": 5, "b": 5}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two boots per variant: `reserve` is new, `clear` shrinks, `noise` changes its direction, and `tick` differs
    as much between baseline and control."""
    made_up = Synthetic(
        repeat=2,
        variants={"baseline": "baseline", "baseline-control": "control", "core-only@256": "patched"},
        workloads=("fault_latency",),
        changes={"profile": True},
    )
    run = made_up.write(tmp_path_factory.mktemp("results"))
    for cell in run.cells.itertuples():
        more = 10 * int(str(cell.repetition))
        chains = {**OLD, "[user];noise": 50 + more}
        if cell.variant != "baseline":
            chains["[user];tick"] = 30 + more
            chains["ret_from_fork_asm;ret_from_fork;kthread;kcompactd;scan"] = 1000 + more
        if cell.variant == "core-only@256":
            chains |= {
                "[user];entry;fault;reserve": 100 + more,
                "[user];entry;clear": 120,
                "[user];noise": {1: 70, 2: 55}[int(str(cell.repetition))],
            }
        directory = run.log_directory(str(cell.cell))
        directory.mkdir(parents=True, exist_ok=True)
        write_profile(directory / FILE, profile(chains))
    return Run.open(run.path)


def test_functions_that_grew_in_each_pair(profiled: Run) -> None:
    (found,) = compare_profiles(profiled, profiles_of(profiled))
    assert (found.workload, found.variant, found.pairs) == ("fault_latency", "core-only@256", 2)
    assert [row.function for row in found.grown] == ["reserve"]
    assert [row.function for row in found.shrunk] == ["clear"]
    reserve, clear = found.grown[0], found.shrunk[0]
    assert (reserve.baseline, reserve.compared, reserve.low, reserve.high) == (0, 115, 110, 120)
    assert (clear.baseline, clear.compared, clear.change) == (200, 120, -80)
    by_name = {row.function: row for row in found.rows}
    assert by_name["fault"].change == 0
    assert by_name["fault"].callees == 115
    assert found.user.change == 0
    assert (by_name["tick"].change, by_name["tick"].floor) == (45, 50)
    assert found.total.baseline == 2000 + 65


def test_the_table_says_what_grew_and_by_how_much_of_all(profiled: Run) -> None:
    text = profile_text(compare_profiles(profiled, profiles_of(profiled)))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "reserve 0 115 +115 +5.57% 0 +115" in lines
    assert "clear 200 120 -80 -3.87% 0 -80" in lines
    assert not any(line.startswith(("noise", "tick")) for line in lines)
    assert max(map(len, text.splitlines())) <= 120


def test_a_long_name_gets_a_line_of_its_own() -> None:
    name = "a_function_with_a_name_that_is_longer_than_the_column.constprop.0"
    old, new = profile({"[user]": 100}), profile({"[user]": 100, f"[user];{name}": 50})
    from orchestrator.analysis.profile import _compared

    lines = profile_text([_compared("w", "v", "b", [(old, new)])]).splitlines()
    assert name in lines


def test_a_run_without_profiles_has_no_table(tmp_path: Path) -> None:
    run = Synthetic(repeat=1, workloads=("fault_latency",)).write(tmp_path)
    assert profiles_of(run) == Profiles({})
    assert profile_text(compare_profiles(run, profiles_of(run))) == ""


def test_the_frames_of_a_flame_graph() -> None:
    old, new = profile(OLD), profile({**OLD, "[user];entry;fault;reserve": 100, "[user];entry;clear": 0})
    root = flame.tree_of(mean_chains([new]), mean_chains([old]))
    entry = root.callees["[user]"].callees["entry"]
    assert (root.count, root.before) == (7503, 7603)
    assert (entry.count, entry.before) == (900, 1000)
    assert {name: (each.count, each.before) for name, each in entry.callees.items()} == {
        "fault": (900, 800),
        "clear": (0, 200),
    }
    places = {frame.name: (left, level) for frame, left, level in flame._placed(root, 0.0, 0)}
    assert places["fault"] == (0.0, 3)
    assert places["reserve"] == (300.0, 4)
    assert places["ret_from_fork_asm"] == (1900.0, 1)
    assert "clear" not in places


def test_the_flame_graph_is_drawn_with_names_and_changes(profiled: Run) -> None:
    with style():
        (plot,) = flame.flame_graphs(profiled, profiles_of(profiled))
    assert plot.name == "flame-fault_latency-core-only-256"
    assert plot.figure is not None
    texts = [text.get_text() for text in plot.figure.axes[0].texts]
    assert {"entry", "fork"} & {text.split()[0] for text in texts}
    assert any(text.startswith("fault +1.4") for text in texts)


def test_the_report_has_the_table_and_the_flame_graph(profiled: Run) -> None:
    from orchestrator.cache import Cache
    from orchestrator.events import Events
    from orchestrator.execution.durations import Durations

    written = conclude(profiled.path, Events(), Durations(Cache(profiled.path / "cache")))
    page = written.page.read_text(encoding="utf-8")
    assert "Instructions per kernel function" in page
    assert "Where the instructions went: fault_latency, core-only@256" in page
    assert written.functions in (profiled.path / "profile.txt").read_text(encoding="utf-8")
    facts = json.loads((profiled.path / "profile.json").read_text(encoding="utf-8"))
    assert facts[0]["functions"][0]["function"] == "reserve"


def test_a_resumed_run_is_profiled_as_well(profiled: Run) -> None:
    from orchestrator.execution.measure.request import described_experiment

    assert described_experiment(replace(profiled.manifest, kind=profiled.manifest.kind)).profile
    names: Sequence[str] = [cell.cell for cell in profiled.manifest.cells]
    assert len(names) == 6
