# SPDX-License-Identifier: GPL-2.0-only
"""What an emulated guest's boot leaves out, and how the kernel is told the frequency of its timer."""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.kernel.elf import build_id, has_pvh_entry, symbol_address
from orchestrator.machine import shortcut
from orchestrator.machine.accelerator import Accelerator
from orchestrator.machine.apic_timer import ApicTimer, Stub, StubError, tell_frequency
from orchestrator.machine.qemu import Sockets, qemu_argv
from orchestrator.machine.shortcut import Shortcuts, shortcuts
from orchestrator.machine.topology import Topology

ICOUNT = Accelerator("icount", "insns", "", "max", "7.2.22")
TCG = Accelerator("tcg", "ns", "", "max", "7.2.22")
KVM = Accelerator("kvm", "ns", "", "host", "7.2.22")
SOURCE = r"""
asm(".pushsection .note.Xen, \"a\", @note\n .long 4, 4, 18\n .asciz \"Xen\"\n .long 0x1000000\n .popsection");
unsigned int lapic_timer_period;
void setup_boot_APIC_clock(void) { lapic_timer_period++; }
int main(void) { setup_boot_APIC_clock(); return 0; }
"""
TIMER = ApicTimer(0xFFFFFFFF82000000, 0xFFFFFFFF83000000, 250)


def compiled(directory: Path, source: str = SOURCE) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "kernel.c").write_text(source)
    subprocess.run(
        ["gcc", "-O0", "-no-pie", "-Wl,--build-id", "-o", "vmlinux", "kernel.c"], cwd=directory, check=True
    )
    return directory / "vmlinux"


@pytest.fixture(scope="module")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("kernel"))


@pytest.fixture(autouse=True)
def has_firmware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "_has_firmware", lambda _: True)
    shortcuts.cache_clear()


def test_the_firmware_is_that_of_the_qemu_in_use(
    vmlinux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortcut, "_has_firmware", lambda qemu: qemu == "/mine/qemu")
    for program, elf in (("/mine/qemu", vmlinux), ("qemu-system-x86_64", None)):
        accelerator = Accelerator("tcg", "ns", "", "max", "10.0", None, program)
        monkeypatch.setattr(shortcut, "has_pvh_entry", lambda _: True)
        assert shortcuts(vmlinux, config(tmp_path), accelerator).elf == elf


def config(directory: Path, text: str = "# CONFIG_RANDOMIZE_BASE is not set\nCONFIG_HZ=250\n") -> Path:
    path = directory / "config"
    path.write_text(text)
    return path


def test_an_elf_file_says_whether_it_can_be_started_directly(tmp_path: Path, vmlinux: Path) -> None:
    assert has_pvh_entry(vmlinux) and len(build_id(vmlinux)) == 40
    assert not has_pvh_entry(compiled(tmp_path, "int main(void) { return 0; }"))


def test_icount_gets_every_shortcut(tmp_path: Path, vmlinux: Path) -> None:
    found = shortcuts(vmlinux, config(tmp_path), ICOUNT)
    where = ApicTimer(
        symbol_address(vmlinux, "setup_boot_APIC_clock"), symbol_address(vmlinux, "lapic_timer_period"), 250
    )
    assert found == Shortcuts(vmlinux, where, 4_000_000)
    assert where.period == 4_000_000


def test_the_clock_of_multi_threaded_tcg_is_that_of_the_host(tmp_path: Path, vmlinux: Path) -> None:
    found = shortcuts(vmlinux, config(tmp_path), TCG)
    assert found.lpj is None and found.elf and found.timer


def test_kvm_boots_as_a_processor_does(tmp_path: Path, vmlinux: Path) -> None:
    assert shortcuts(vmlinux, config(tmp_path), KVM) == Shortcuts()


@pytest.mark.parametrize(
    "text", ["", "CONFIG_HZ=\n", "CONFIG_HZ=0\n", "CONFIG_HZ=250\nCONFIG_RANDOMIZE_BASE=y\n"]
)
def test_a_kernel_is_told_nothing_if_its_addresses_or_its_ticks_are_unknown(
    tmp_path: Path, vmlinux: Path, text: str
) -> None:
    assert shortcuts(vmlinux, config(tmp_path, text), ICOUNT) == Shortcuts(elf=vmlinux)


def test_what_is_missing_is_no_error(tmp_path: Path, vmlinux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shortcuts(tmp_path / "none", tmp_path / "none", ICOUNT) == Shortcuts()
    without = compiled(tmp_path / "other", SOURCE.replace("lapic_timer_period", "made_up"))
    assert shortcuts(without, config(tmp_path), ICOUNT) == Shortcuts(elf=without, lpj=4_000_000)
    monkeypatch.setattr(shortcut, "_has_firmware", lambda _: False)
    assert shortcuts(vmlinux, config(tmp_path), TCG).elf is None


def words_of(shortcuts: Shortcuts, gdb: bool = False, wait_for_gdb: bool = False) -> list[str]:
    return qemu_argv(
        Path("/k/bzImage"),
        Path("/i/initramfs"),
        Topology.parse("2x256M"),
        ICOUNT,
        ["lpj=7"],
        Path("/logs/console.log"),
        Sockets(Path("/run/x")),
        gdb,
        wait_for_gdb,
        shortcuts=shortcuts,
    )


def test_the_command_line_of_a_direct_boot() -> None:
    words = words_of(Shortcuts(Path("/k/vmlinux"), TIMER, 4_000_000))
    assert (
        words[words.index("-kernel") + 1] == "/k/vmlinux" and words[words.index("-bios") + 1] == "qboot.rom"
    )
    assert words.count("-S") == 1 and "chardev:gdb" in words, "the CPUs wait until the timer can be told"
    cmdline = words[words.index("-append") + 1].split()
    assert "nokaslr" not in cmdline and cmdline[-2:] == ["lpj=4000000", "lpj=7"], (
        "the caller's words come last"
    )


def test_the_command_line_without_shortcuts() -> None:
    words = words_of(Shortcuts())
    assert words[words.index("-kernel") + 1] == "/k/bzImage" and "-bios" not in words and "-S" not in words


class FakeStub:
    """The gdb stub of a QEMU whose guest has one variable; remembers what it is asked."""

    def __init__(self, directory: Path, before: int, stops: str = "T05thread:01;") -> None:
        self.path = directory / "gdb"
        self.memory = before.to_bytes(4, "little")
        self.asked: list[str] = []
        self._stops = stops
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self.path))
        self._server.listen()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        line, _ = self._server.accept()
        text = b""
        with line:
            while received := line.recv(64):
                text += received
                while (packet := re.search(rb"\$([^#]*)#(..)", text)) is not None:
                    assert sum(packet[1]) & 0xFF == int(packet[2], 16)
                    text = text[packet.end() :]
                    answer = self._answer(packet[1].decode()).encode()
                    with suppress(OSError):  # the asker does not wait for every answer
                        line.sendall(b"+$")  # in pieces, as a stream may bring it
                        line.sendall(answer + b"#%02x" % (sum(answer) & 0xFF))
        self._server.close()

    def _answer(self, command: str) -> str:
        self.asked.append(command)
        if command == "c":
            return self._stops
        if command.startswith("m"):
            return self.memory.hex()
        if command.startswith("M"):
            self.memory = bytes.fromhex(command.partition(":")[2])
        return "OK"


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as name:
        yield Path(name)


def test_the_kernel_is_told_where_it_would_measure(directory: Path) -> None:
    fake = FakeStub(directory, before=0)
    stub = Stub(fake.path)
    tell_frequency(stub, TIMER)
    stub.close()
    fake.thread.join(5)
    assert int.from_bytes(fake.memory, "little") == 4_000_000
    there = "0,ffffffff82000000,1"
    assert fake.asked == [
        f"Z{there}", "c", "mffffffff83000000,4", "Mffffffff83000000,4:00093d00", f"z{there}", "D",
    ]  # fmt: skip


def test_what_the_kernel_knows_already_is_kept(directory: Path) -> None:
    fake = FakeStub(directory, before=62_500)
    stub = Stub(fake.path)
    tell_frequency(stub, TIMER)
    stub.close()
    assert int.from_bytes(fake.memory, "little") == 62_500


def test_a_guest_that_ends_before_is_no_surprise(directory: Path) -> None:
    fake = FakeStub(directory, before=0, stops="W00")
    stub = Stub(fake.path)
    with pytest.raises(StubError, match="stopped for another reason: W00"):
        tell_frequency(stub, TIMER)
    assert fake.memory == bytes(4)
    stub.close()
    fake.thread.join(5)
    assert fake.asked[-2:] == ["z0,ffffffff82000000,1", "D"], "it is not left to stop there later"
    with pytest.raises(StubError, match="the gdb stub is gone"):
        stub.ask("c")
