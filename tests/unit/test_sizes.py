# SPDX-License-Identifier: GPL-2.0-only
"""Sizes of functions and structures, read out of programs that gcc made on the spot."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.kernel.elf import functions, section_sizes, symbol
from orchestrator.kernel.growth import (
    WIDTH,
    FunctionChange,
    Growth,
    KernelSizes,
    check_is_of,
    growth,
    sizes_of,
    stages_text,
    structures_in,
    text_of,
    with_structures,
)
from orchestrator.kernel.structure import Hole, Structure, structures

# The assertions are the compiler's: what the test expects is what it laid out.
MM = """
#include <stddef.h>
typedef struct { int counter; } atomic_t;
struct list_head { struct list_head *next, *prev; };
struct page { union { struct { int a; long b; }; char c[24]; }; unsigned int refcount; };
struct mm_struct {
	struct { char early; long count; };
	atomic_t users;
	unsigned int dumpable : 2, locked : 7;
#ifdef PATCHED
	struct list_head reserved;
#endif
	int last;
	unsigned long cpu_bitmap[];
};
_Static_assert(sizeof(struct page) == 32, "");
#ifdef PATCHED
struct reservation { unsigned long address; struct list_head node; char used[64]; };
_Static_assert(sizeof(struct reservation) == 88, "");
_Static_assert(sizeof(struct mm_struct) == 48 && offsetof(struct mm_struct, reserved) == 24, "");
_Static_assert(offsetof(struct mm_struct, last) == 40, "");
#else
_Static_assert(sizeof(struct mm_struct) == 32 && offsetof(struct mm_struct, last) == 24, "");
#endif
"""
MAIN = """
int unmap(struct mm_struct *mm, struct page *page) { return mm->early + mm->count + page->refcount + PLUS; }
int main(void) { struct mm_struct mm = {0}; struct page page = {0}; return unmap(&mm, &page); }
"""
RESERVE = """
int reserve(struct reservation *r) { return r->used[3] + (r->address >> 21) + (r->node.next == &r->node); }
"""


def kernel(directory: Path, patched: bool, *flags: str) -> Path:
    directory.mkdir()
    plus = "mm->count * mm->users.counter * 7" if patched else "0"
    (directory / "main.c").write_text(MM + MAIN.replace("PLUS", plus))
    # A definition that the first source file does not have.
    files = ["main.c"]
    if patched:
        (directory / "reserve.c").write_text(MM + RESERVE)
        (directory / "main.c").write_text(
            MM.replace("struct reservation {", "struct other {").replace(
                "struct reservation)", "struct other)"
            )
            + MAIN.replace("PLUS", plus)
        )
        files.append("reserve.c")
    define = ["-DPATCHED"] if patched else []
    # The kernel has .debug_aranges, which gcc writes with -g.
    subprocess.run(
        ["gcc", "-O1", "-no-pie", "-Wl,--build-id", *flags, *define, "-o", "vmlinux", *files],
        cwd=directory,
        check=True,
    )
    return directory / "vmlinux"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("kernels")
    return kernel(directory / "old", False, "-g"), kernel(directory / "new", True, "-g")


def test_the_layout_is_that_of_the_compiler(kernels: tuple[Path, Path]) -> None:
    found = structures(kernels[0], ["mm_struct", "page", "no_such"])
    assert set(found) == {"mm_struct", "page"}
    mm = found["mm_struct"]
    assert (mm.size, mm.cache_lines) == (32, 1)
    assert [(m.name, m.offset, m.size) for m in mm.members] == [
        ("early", 0, 1),
        ("count", 8, 8),
        ("users", 16, 4),
        ("dumpable", 20, 1),
        ("locked", 20, 2),
        ("last", 24, 4),
        ("cpu_bitmap", 32, 0),
    ]
    assert mm.holes == (Hole(1, 7, "early"), Hole(22, 2, "locked"), Hole(28, 4, "last"))
    page = found["page"]
    assert (page.size, page.holes, page.padding) == (32, (), 4)
    assert [(m.name, m.size) for m in page.members] == [("", 24), ("refcount", 4)]


def test_gdb_agrees_on_the_layout(kernels: tuple[Path, Path]) -> None:
    shown = subprocess.run(
        ["gdb", "-nx", "-batch", "-ex", "ptype /o struct mm_struct", str(kernels[1])],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    mm = structures(kernels[1], ["mm_struct"])["mm_struct"]
    assert f"total size (bytes): {mm.size}" in " ".join(shown.split())
    assert [f"{hole.size}-byte hole" in shown for hole in mm.holes[:2]] == [True, True]


def test_a_structure_of_another_source_file_is_found_by_its_functions(kernels: tuple[Path, Path]) -> None:
    assert structures(kernels[1], ["reservation"]) == {}
    near = [symbol(kernels[1], "reserve").address]
    assert structures(kernels[1], ["reservation"], near)["reservation"].size == 88


def test_without_debugging_information_there_are_no_structures(tmp_path: Path) -> None:
    plain = kernel(tmp_path / "plain", False)
    with pytest.raises(UserError, match="no debugging information; build it with --dwarf"):
        structures(plain, ["mm_struct"])


def test_functions_have_the_sizes_that_nm_prints(kernels: tuple[Path, Path]) -> None:
    said = subprocess.run(["nm", "-S", str(kernels[1])], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in said.splitlines()]
    there = {row[3]: int(row[1], 16) for row in rows if len(row) == 4 and row[2] in "tT"}
    assert {each.name: each.size for each in functions(kernels[1])} == there


def test_a_stripped_file_is_refused(kernels: tuple[Path, Path], tmp_path: Path) -> None:
    stripped = tmp_path / "vmlinux"
    subprocess.run(["strip", "-o", str(stripped), str(kernels[0])], check=True)
    with pytest.raises(UserError, match="has no symbols"):
        sizes_of("stripped", stripped)


def test_sections_add_up_to_what_size_prints(kernels: tuple[Path, Path]) -> None:
    said = subprocess.run(["size", str(kernels[0])], capture_output=True, text=True, check=True).stdout
    text, data, bss = map(int, said.splitlines()[1].split()[:3])
    found = section_sizes(kernels[0])
    assert (found["text"] + found["rodata"], found["data"], found["bss"]) == (text, data, bss)


def test_growth_of_a_patched_kernel(kernels: tuple[Path, Path]) -> None:
    old, new = sizes_of("baseline", kernels[0]), sizes_of("core-only", kernels[1])
    found = growth(old, new)
    by_name = {each.name: each for each in found.changes}
    assert by_name["reserve"].old == 0 and by_name["reserve"].delta == new.functions["reserve"]
    assert by_name["unmap"].delta > 0
    assert found.up + found.down == sum(new.functions.values()) - sum(old.functions.values())
    names = ("page", "mm_struct", "reservation")
    old = with_structures(old, kernels[0], names, found.changes)
    new = with_structures(new, kernels[1], names, found.changes)
    text = text_of(growth(old, new), 0)
    assert max(map(len, text.splitlines())) <= WIDTH
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "mm_struct 32 48 +16 1 3 (13 bytes) 0" in lines
    assert "+ reserved, 16 bytes at 24" in lines
    assert "page 32 32 0 1 0 4" in lines
    assert "reservation - 88 +88 2 0 0" in lines
    facts = growth(old, new).to_json()
    assert facts["structures"]["mm_struct"]["new"]["holes"][0] == {"offset": 1, "size": 7, "after": "early"}
    assert facts["structures"]["reservation"]["old"] is None
    assert facts["functions"]["changes"][0].keys() == {"name", "old", "new", "delta"}


def _sizes(name: str, **sizes: int) -> KernelSizes:
    return KernelSizes(name, "00", {"text": sum(sizes.values())}, sizes)


def test_the_form_is_that_of_bloat_o_meter() -> None:
    found = growth(_sizes("baseline", a=100, b=50, c=8, d=6), _sizes("full", a=130, b=40, d=6, e=12))
    assert found.changes == (
        FunctionChange("a", 100, 130),
        FunctionChange("e", 0, 12),
        FunctionChange("c", 8, 0),
        FunctionChange("b", 50, 40),
    )
    lines = [" ".join(line.split()) for line in text_of(found, 0).splitlines()]
    assert "add/remove: 1/1 grow/shrink: 1/1 up/down: 42/-18 (24)" in lines
    assert lines[-6:] == [
        "Function old new delta",
        "a 100 130 +30",
        "e - 12 +12",
        "c 8 - -8",
        "b 50 40 -10",
        "Total: Before=164, After=188, chg +14.63%",
    ]


def test_functions_that_are_not_shown_are_summed_up() -> None:
    found = growth(_sizes("baseline", a=100, b=50, c=8), _sizes("full", a=130, b=40, c=9))
    lines = [" ".join(line.split()) for line in text_of(found, 1).splitlines()]
    assert "a 100 130 +30" in lines
    assert "2 more functions -9" in lines


def test_equal_kernels_have_no_changes() -> None:
    same = _sizes("baseline", a=1)
    assert growth(same, same) == Growth(same, same, ())
    assert "chg +0.00%" in text_of(growth(same, same), 0)


def test_numbers_that_gcc_appends_do_not_make_a_new_function(tmp_path: Path) -> None:
    (tmp_path / "a.s").write_text(
        ".globl main\nmain: ret\n.type main, @function\n.size main, 1\n"
        '"scan.constprop.7": nop\nret\n.type "scan.constprop.7", @function\n.size "scan.constprop.7", 2\n'
    )
    subprocess.run(["gcc", "-Wl,--build-id", "-o", "vmlinux", "a.s"], cwd=tmp_path, check=True)
    assert sizes_of("a", tmp_path / "vmlinux").functions["scan.constprop"] == 2


def test_a_table_per_stage() -> None:
    def of(name: str, text: int, size: int | None) -> KernelSizes:
        layout = {} if size is None else {"thp_reservation": Structure("thp_reservation", size, ())}
        return KernelSizes(name, "00", {}, {"f": text}, {}, {"page": Structure("page", 64, ()), **layout})

    shown = stages_text([of("baseline", 100, None), of("core-only:1", 100, 40), of("core-only", 164, 48)])
    assert [" ".join(line.split()) for line in shown.splitlines()] == [
        "kernel functions delta page thp_reservat",
        "baseline 100 64 -",
        "core-only:1 100 +0 64 40",
        "core-only 164 +64 64 48 +8",
    ]


def test_the_structures_that_a_patch_changes() -> None:
    patch = """\
diff --git a/include/linux/mm_types.h b/include/linux/mm_types.h
--- a/include/linux/mm_types.h
+++ b/include/linux/mm_types.h
@@ -1000,6 +1000,7 @@ struct mm_struct {
 \t\tint a;
+\t\tstruct list_head reserved;
 \t\tint b;
@@ -2000,3 +2001,9 @@ struct untouched {
 };
+struct thp_reservation {
+\tstruct list_head node;
+};
+struct declared_only;
+struct page *thp_page(struct folio *folio);
 struct context {
 \tint x;
 };
"""
    assert structures_in(patch) == ("mm_struct", "thp_reservation")


def test_a_vmlinux_of_another_kernel_is_refused_in_one_sentence(kernels: tuple[Path, Path]) -> None:
    mine = sizes_of("x", kernels[0]).build_id
    assert check_is_of(kernels[0], {mine: "baseline"}, "the run") == "baseline"
    with pytest.raises(UserError) as refused:
        check_is_of(kernels[1], {mine: "baseline"}, "the run")
    assert "is not a kernel of the run: its build ID is" in str(refused.value)
    assert f"baseline {mine[:12]}" in str(refused.value)
    assert "\n" not in str(refused.value)
