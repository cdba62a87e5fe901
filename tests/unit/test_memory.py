# SPDX-License-Identifier: GPL-2.0-only
"""Finding a guest's memory, and refusing that of another kernel; the kernel here is a small program that gcc links."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.debugger import memory
from orchestrator.debugger.memory import (
    Attached,
    GuestMemory,
    KernelFiles,
    RunningGuest,
    memory_of_dump,
)
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.kernel.elf import build_id, variables
from orchestrator.machine.qmp import Qmp, QmpError

SOURCE = """
const char linux_banner[] = "Linux version 6.12.9-test (someone)";
char init_top_pgt[4096] = {1};
%s
struct thp_resv { int nr_unused; } first = {7};
static int hidden = 5;
int *user(void) { return &hidden; }
void _start(void) { user(); }
"""
TEXT = 0xFFFFFFFF81000000


def linked(directory: Path, *flags: str, before: str = "") -> Path:
    """A program at the addresses of a kernel, with a build ID at __start_notes."""
    directory.mkdir(exist_ok=True)
    (directory / "kernel.c").write_text(SOURCE % before)
    kernel = directory / "vmlinux"
    argv = [
        "gcc", "-O0", "-nostdlib", "-static", "-no-pie", "-fno-pie", "-mcmodel=kernel", "-fcf-protection=none",
        "-Wl,--build-id", f"-Wl,-Ttext-segment={TEXT:#x}", *flags, "-o", str(kernel), "kernel.c",
    ]  # fmt: skip
    subprocess.run(argv, cwd=directory, check=True)
    subprocess.run([*argv, f"-Wl,--defsym=__start_notes={notes_of(kernel)[0]:#x}"], cwd=directory, check=True)
    return kernel


def notes_of(kernel: Path) -> tuple[int, bytes]:
    """The address and content of the build ID's note."""
    from elftools.elf.elffile import ELFFile

    with kernel.open("rb") as stream:
        section = ELFFile(stream).get_section_by_name(".note.gnu.build-id")
        assert section is not None
        return section["sh_addr"], section.data()


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linked(tmp_path_factory.mktemp("kernel"), "-g")


def holding(kernel: Path) -> Callable[[Any], object]:
    """Attach memory with the notes of a kernel, and its variable ``first``."""
    address, notes = notes_of(kernel)
    first = variables(kernel)["first"]
    content = {address - memory._KERNEL_MAP: notes + bytes(4096), first - memory._KERNEL_MAP: b"\x07\0\0\0"}

    def attach(program: Any) -> None:
        for at, data in content.items():
            program.add_memory_segment(
                at,
                len(data),
                lambda _, count, offset, __, data=data: data[offset : offset + count],
                physical=True,
            )

    return attach


def opened(kernel: KernelFiles, content: Path) -> GuestMemory:
    return memory._opened(kernel, holding(content), "the guest")


def test_the_types_and_variables_of_the_kernel_are_known(kernel: Path) -> None:
    program = opened(KernelFiles.of(kernel), kernel).program
    assert program.type("struct thp_resv").has_member("nr_unused")
    assert program["first"].address_ == variables(kernel)["first"]
    assert program["UTS_RELEASE"].string_() == b"6.12.9-test"


def test_a_kernel_of_another_build_is_refused(kernel: Path, tmp_path: Path) -> None:
    other = linked(tmp_path / "other", "-g", before="int more = 3;")
    said = f"{other} has build ID {build_id(other)}, but the guest has "
    with pytest.raises(UserError) as error:
        opened(KernelFiles.of(other), kernel)
    assert str(error.value).startswith(said) and "name the vmlinux" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_guest_with_nothing_at_the_place_is_refused(kernel: Path) -> None:
    with pytest.raises(UserError, match=r"no build ID where that kernel has it; .*nokaslr"):
        memory._opened(KernelFiles.of(kernel), lambda program: None, "the guest")


def test_types_come_from_the_build_with_debugging_information_and_addresses_do_not(tmp_path: Path) -> None:
    plain = linked(tmp_path / "plain")
    types = linked(tmp_path / "types", "-g", before="int more[99] = {3};")
    assert variables(plain)["first"] != variables(types)["first"]
    program = opened(KernelFiles.of(plain, types), plain).program
    assert program["first"].address_ == variables(plain)["first"]
    assert program["more"].absent_  # the guest's kernel does not have it


def test_without_debugging_information(kernel: Path, tmp_path: Path) -> None:
    plain = linked(tmp_path / "plain")
    assert KernelFiles.of(plain, kernel).types == kernel and KernelFiles.of(kernel, plain).types == kernel
    with pytest.raises(UserError, match=r"no debugging information; name a vmlinux .* --dwarf"):
        KernelFiles.of(plain)


def test_a_program_is_no_kernel(tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text("int main(void) { return 0; }")
    subprocess.run(["gcc", "-g", "-o", "main", "main.c"], cwd=tmp_path, check=True)
    with pytest.raises(UserError, match="main is not a Linux kernel: it has no symbol __start_notes"):
        memory_of_dump(dump_in(tmp_path), KernelFiles.of(tmp_path / "main"))


def dump_in(directory: Path) -> Path:
    (directory / "dump").write_bytes(b"no dump\n" * 999)
    return directory / "dump"


def test_a_file_that_is_no_dump(kernel: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the memory of .*dump: "):
        memory_of_dump(dump_in(tmp_path), KernelFiles.of(kernel))
    with pytest.raises(UserError, match="there is no such file"):
        memory_of_dump(tmp_path / "none", KernelFiles.of(kernel))


# --- a running guest -----------------------------------------------------------------------------------------------


def described(directory: Path, **changes: Any) -> Path:
    facts = {
        "alive": True, "pid": os.getpid(), "monitor": str(directory / "monitor"),
        "control": str(directory / "control"), "memory": str(directory / "memory"),
        "argv": ["qemu-system-x86_64", "-kernel", "/cache/kernel/1234/bzImage", "-initrd", "x"],
    }  # fmt: skip
    (directory / "machine.json").write_text(json.dumps(facts | changes))
    return directory


def test_a_running_guest_is_found_by_its_directory(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "control"))
        guest = RunningGuest.in_directory(described(tmp_path))
    assert guest == RunningGuest(
        tmp_path / "control", tmp_path / "memory", Path("/cache/kernel/1234/vmlinux")
    )


@pytest.mark.parametrize("changes", [{"alive": False}, {"control": None}, {}])
def test_a_guest_that_has_ended(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="does not run any more"):
        RunningGuest.in_directory(described(tmp_path, **changes))


def test_a_guest_whose_qemu_was_killed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with socket.socket(socket.AF_UNIX) as server:  # a socket stays behind
        server.bind(str(tmp_path / "control"))
        with pytest.raises(UserError, match="does not run any more"):
            RunningGuest.in_directory(described(tmp_path, pid=ended.pid))


def test_a_directory_without_a_guest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no machine\.json; name the log directory"):
        RunningGuest.in_directory(tmp_path)
    (tmp_path / "machine.json").write_text('{"alive": true}')
    with pytest.raises(UserError, match="damaged"):
        RunningGuest.in_directory(tmp_path)


def test_a_socket_that_nobody_serves(tmp_path: Path) -> None:
    with pytest.raises(QmpError):
        Qmp(tmp_path / "none", listen=False)


class RecordingQmp:
    def __init__(self, status: str = "running", broken: str = "") -> None:
        self.status, self.broken, self.asked = status, broken, list[str]()

    def execute(self, command: str, arguments: object = None, timeout_s: float = 10.0) -> Any:
        self.asked.append(command)
        if command == self.broken:
            raise QmpError("no answer")
        return {"status": self.status} if command == "query-status" else {}


def attached_to(qmp: RecordingQmp) -> Attached:
    return Attached(qmp, GuestMemory(None))  # type: ignore[arg-type]


def test_the_guest_stands_still_while_it_is_read_and_goes_on_whatever_happens() -> None:
    qmp = RecordingQmp()
    with pytest.raises(ZeroDivisionError), attached_to(qmp).stopped():
        assert qmp.asked == ["query-status", "stop"]
        raise ZeroDivisionError
    assert qmp.asked == ["query-status", "stop", "cont"]


def test_a_guest_that_somebody_has_stopped_stays_so() -> None:
    qmp = RecordingQmp("paused")
    with attached_to(qmp).stopped():
        pass
    assert qmp.asked == ["query-status"]


@pytest.mark.parametrize("command", ["stop", "cont"])
def test_a_qemu_that_does_not_answer(command: str) -> None:
    with (
        pytest.raises(InfrastructureError, match="no answer"),
        attached_to(RecordingQmp(broken=command)).stopped(),
    ):
        pass


def test_the_memory_is_saved_by_qemu(tmp_path: Path) -> None:
    qmp = RecordingQmp()
    attached_to(qmp).save(tmp_path / "dump")
    assert qmp.asked == ["dump-guest-memory"]
    with pytest.raises(InfrastructureError, match=r"cannot write the memory to .*dump"):
        attached_to(RecordingQmp(broken="dump-guest-memory")).save(tmp_path / "dump")
