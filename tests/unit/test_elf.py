# SPDX-License-Identifier: GPL-2.0-only
"""What is read out of a small program that gcc made on the spot."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.kernel.elf import (
    build_id,
    build_id_of_notes,
    has_dwarf,
    parameters,
    symbol,
    symbol_address,
)

SOURCE = """
struct vm_area_struct;
enum mode { FAST };
int reserve_unused[12];
static int helper(const char *name, volatile int *state) { return name[0] + *state; }
int reserve(struct vm_area_struct *vma, unsigned long address, enum mode mode, void **slot, int (*walk)(int))
{
	return vma && slot ? walk((int)address + mode) : 0;
}
int unused(void) { return 0; }
int main(void) { int state = 0; return helper("", &state); }
"""


def linked(directory: Path, *flags: str) -> Path:
    (directory / "reserve.c").write_text(SOURCE)
    subprocess.run(
        ["gcc", "-O0", "-no-pie", "-Wl,--build-id", *flags, "-o", "vmlinux", "reserve.c"],
        cwd=directory,
        check=True,
    )
    return directory / "vmlinux"


def said_by(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linked(tmp_path_factory.mktemp("elf"), "-g")


def test_the_build_id_is_what_readelf_says(vmlinux: Path) -> None:
    assert f"Build ID: {build_id(vmlinux)}" in said_by("readelf", "-n", str(vmlinux))


def test_a_program_without_a_build_id(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no build ID"):
        build_id(linked(tmp_path, "-Wl,--build-id=none"))


@pytest.mark.parametrize("name", ["reserve", "unused", "reserve_unused", "helper", "main"])
def test_a_symbol_is_where_nm_says(vmlinux: Path, name: str) -> None:
    rows = (line.split() for line in said_by("nm", "-S", str(vmlinux)).splitlines())
    address, size = next((row[0], row[1]) for row in rows if row[-1] == name)
    found = symbol(vmlinux, name)
    assert (found.address, found.size) == (int(address, 16), int(size, 16))
    assert symbol_address(vmlinux, name) == found.address


@pytest.mark.parametrize("name", ["do_swap_page", "serve", "reserve.c", ""])
def test_a_symbol_that_is_not_there(vmlinux: Path, name: str) -> None:
    with pytest.raises(UserError, match="no symbol"):
        symbol(vmlinux, name)


def test_parameters_have_names_and_types(vmlinux: Path) -> None:
    assert has_dwarf(vmlinux)
    assert [(each.name, each.type) for each in parameters(vmlinux, "reserve")] == [
        ("vma", "struct vm_area_struct *"),
        ("address", "long unsigned int"),
        ("mode", "enum mode"),
        ("slot", "void **"),
        ("walk", "function *"),
    ]
    assert [each.type for each in parameters(vmlinux, "helper")] == ["const char *", "volatile int *"]
    assert parameters(vmlinux, "unused") == ()


def test_a_program_without_debugging_information(tmp_path: Path) -> None:
    plain = linked(tmp_path)  # it has .eh_frame, which is no debugging information
    assert not has_dwarf(plain)
    with pytest.raises(UserError, match="no debugging information"):
        parameters(plain, "reserve")


def test_a_variable_has_no_parameters(vmlinux: Path) -> None:
    with pytest.raises(UserError, match="does not describe reserve_unused"):
        parameters(vmlinux, "reserve_unused")


def test_the_notes_of_a_running_kernel_hold_its_build_id() -> None:
    # /sys/kernel/notes of a Linux 6.12 guest begins with a Xen note and goes on with the build id.
    def note(name: bytes, kind: int, content: bytes) -> bytes:
        padded = content + b"\0" * (-len(content) % 4)
        head = (
            len(name).to_bytes(4, "little") + len(content).to_bytes(4, "little") + kind.to_bytes(4, "little")
        )
        return head + name + b"\0" * (-len(name) % 4) + padded

    wanted = bytes(range(20))
    notes = note(b"Xen\0", 6, b"linux") + note(b"GNU\0", 3, wanted) + note(b"Linux\0", 257, b"\0")
    assert build_id_of_notes(notes) == wanted.hex()
    with pytest.raises(UserError, match="no build ID"):
        build_id_of_notes(note(b"Xen\0", 6, b"linux"))


def test_what_is_not_an_elf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_text("text")
    with pytest.raises(UserError, match="not a readable ELF file"):
        build_id(tmp_path / "vmlinux")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vmlinux"):
        build_id(tmp_path / "vmlinux")


@pytest.mark.parametrize("size", [16, 64, 1000, 5000])
def test_a_vmlinux_that_is_cut_short_is_refused(vmlinux: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "vmlinux").write_bytes(vmlinux.read_bytes()[:size])
    with pytest.raises(UserError):
        symbol(tmp_path / "vmlinux", "reserve")
