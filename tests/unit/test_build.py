# SPDX-License-Identifier: GPL-2.0-only
"""The build, with a make of its own that has everything of the kernel's but its size."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fake_tree import write_patch, write_series, write_tree

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Event, Events
from orchestrator.kernel.build import BuildFailed, KernelBuild, build_kernel, error_of, is_built, warnings_of
from orchestrator.kernel.config import Configuration, configuration
from orchestrator.kernel.elf import build_id, build_id_of_notes, has_dwarf, parameters, symbol_address
from orchestrator.kernel.series import load_series
from orchestrator.kernel.source import import_source
from orchestrator.kernel.tree import PatchedTree, apply_stages


class Workbench:
    """A fake tree, a fake series and a cache."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = Cache(root / "cache")
        self.patches = write_series(root / "patches")
        self.images = root / "vm_images"
        (self.images / "kernel").mkdir(parents=True)
        self.fragment("base", "CONFIG_NUMA=y\n")
        self.fragment("measure", "")
        self.source = import_source(
            str(write_tree(root / "linux")), "linux-source-6.12", self.cache, Events()
        )
        self.seen: list[Event] = []

    def fragment(self, name: str, text: str) -> None:
        (self.images / "kernel" / f"{name}.config").write_text(text)

    def tree(self, patchset: str) -> PatchedTree:
        return apply_stages(self.source, load_series(self.patches).select(patchset), self.cache, Events())

    @property
    def configuration(self) -> Configuration:
        return configuration(self.images, "measure")

    def build(self, patchset: str = "baseline") -> KernelBuild:
        return build_kernel(self.tree(patchset), self.configuration, self.cache, Events(self.seen.append))

    def compiled(self) -> list[str]:
        return [event.text for event in self.seen if event.kind == "progress" and event.unit == "files"]


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def test_a_kernel_has_its_artefacts(bench: Workbench) -> None:
    kernel = bench.build()
    assert kernel.bzimage.is_file() and "CONFIG_NUMA=y" in kernel.config.read_text()
    assert "CC      mm/memory.o" in kernel.log.read_text()
    assert kernel.release == "6.12.117" and kernel.build_id == build_id(kernel.vmlinux)
    assert not kernel.cached and kernel.warnings == ()


def test_a_kernel_is_built_once(bench: Workbench) -> None:
    assert not is_built(bench.tree("baseline"), bench.configuration, bench.cache)
    first = bench.build()
    bench.seen.clear()
    again = bench.build()
    assert again.cached and again.directory == first.directory and bench.compiled() == []


def test_the_next_stage_compiles_what_it_touches(bench: Workbench) -> None:
    first = bench.build()
    bench.seen.clear()
    time.sleep(1.1)  # make compares whole seconds on some file systems
    second = bench.build("stage-1")
    assert bench.compiled() == ["mm/memory.o"]
    assert second.build_id != first.build_id


def test_the_same_tree_gives_the_same_binary(bench: Workbench, tmp_path: Path) -> None:
    first = bench.build("stage-1")
    time.sleep(1.1)
    bench.build("full")
    other = Cache(tmp_path / "elsewhere")
    source = import_source(str(tmp_path / "linux"), "linux-source-6.12", other, Events())
    tree = apply_stages(source, load_series(bench.patches).select("stage-1"), other, Events())
    assert build_kernel(tree, bench.configuration, other, Events()).digest == first.digest


def test_an_option_that_vanishes_is_an_error_each_time(bench: Workbench) -> None:
    bench.fragment("measure", "CONFIG_UNMET=y\n")
    for _ in range(2):
        with pytest.raises(UserError, match=r"CONFIG_UNMET \(requested y, got nothing\)"):
            bench.build()
    assert not list(bench.cache.root.glob("kernel/*"))


def test_a_tree_that_does_not_compile_shows_the_compilers_error(bench: Workbench) -> None:
    write_patch(bench.patches / "6.12" / "0001.patch", "\treturn address;", "\treturn adress;")
    with pytest.raises(BuildFailed) as caught:
        bench.build("stage-1")
    assert "memory.c" in str(caught.value) and "adress" in str(caught.value)
    assert caught.value.log.read_text()
    assert not list(bench.cache.root.glob("kernel/*"))
    assert bench.build().bzimage.is_file(), "a failed build spoilt the next one"


def test_warnings_are_kept(bench: Workbench) -> None:
    write_patch(bench.patches / "6.12" / "0001.patch", "\treturn address;", "\tint unused; return address;")
    (warning,) = bench.build("stage-1").warnings
    assert "unused variable" in warning and warning.startswith("mm/memory.c:")


def test_a_missing_tool_names_its_package(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree, wanted = bench.tree("baseline"), bench.configuration
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("git", "gcc", "ld", "setpriv", "make"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(InfrastructureError, match="Debian package flex"):
        build_kernel(tree, wanted, bench.cache, Events())


def test_a_damaged_workspace_is_laid_out_again(bench: Workbench) -> None:
    bench.build()
    for index in bench.cache.root.glob("workspace/*/index"):
        index.unlink()
    assert bench.build("stage-1").bzimage.is_file()


def test_dwarf_names_types_and_parameters(bench: Workbench) -> None:
    vmlinux = bench.build().vmlinux
    assert has_dwarf(vmlinux)
    assert [(p.name, p.type) for p in parameters(vmlinux, "do_anonymous_page")] == [("address", "int")]
    assert symbol_address(vmlinux, "do_anonymous_page") > 0
    with pytest.raises(UserError, match="no symbol do_swap_page"):
        symbol_address(vmlinux, "do_swap_page")


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
    with pytest.raises(UserError, match="no build id"):
        build_id_of_notes(note(b"Xen\0", 6, b"linux"))


def test_what_is_no_elf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_text("text")
    with pytest.raises(UserError, match="no ELF"):
        build_id(tmp_path / "vmlinux")


def test_the_first_error_is_found_in_a_log() -> None:
    log = [
        "  CC      mm/memory.o",
        "../mm/memory.c: In function 'do_anonymous_page':",
        "../mm/memory.c:4711:9: error: 'adress' undeclared (first use in this function)",
        " 4711 |  return adress;",
        "make[4]: *** [../scripts/Makefile.build:229: mm/memory.o] Error 1",
    ]
    assert error_of(log)[0].endswith("'do_anonymous_page':") and "adress" in error_of(log)[1]


def test_a_warning_is_named_once() -> None:
    line = "../mm/memory.c:12:3: warning: unused variable 'x' [-Wunused-variable]"
    assert warnings_of([line, "  CC  mm/x.o", line]) == (line.removeprefix("../"),)
