# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import pytest

from orchestrator.kernel.build_log import blames_source, compiled, error_of, host_trouble, warnings_by_object


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("  CC      mm/memory.o", "mm/memory.o"),
        ("  CC [M]  drivers/net/dummy.o", "drivers/net/dummy.o"),
        ("  AS      arch/x86/entry/entry_64.o", "arch/x86/entry/entry_64.o"),
        ("  HOSTCC  scripts/mod/empty.o", "scripts/mod/empty.o"),
        ("  LD      vmlinux.o", None),
        ("  CALL    scripts/checksyscalls.sh", None),
        ("make[4]: *** [mm/memory.o] Error 1", None),
        ("", None),
    ],
)
def test_what_is_compiled(line: str, name: str | None) -> None:
    assert compiled(line) == name


def test_warnings_belong_to_the_object_before_them() -> None:
    log = [
        "  CC      mm/memory.o",
        "mm/memory.c: In function 'do_anonymous_page':",
        "mm/memory.c:12:3: warning: unused variable 'x' [-Wunused-variable]",
        "   12 |   int x;",
        "  CC      mm/gup.o",
        "  LD      vmlinux.o",
        "vmlinux.o: warning: objtool: do_swap_page+0x12: unreachable instruction",
    ]
    assert warnings_by_object(log) == {
        "mm/memory.o": ["mm/memory.c:12:3: warning: unused variable 'x' [-Wunused-variable]"],
        "mm/gup.o": [],
        "vmlinux": ["vmlinux.o: warning: objtool: do_swap_page+0x12: unreachable instruction"],
    }


def test_the_first_error_comes_with_its_context() -> None:
    log = [
        "  CC      mm/memory.o",
        "mm/memory.c: In function 'do_anonymous_page':",
        "mm/memory.c:4711:9: error: 'adress' undeclared (first use in this function)",
        " 4711 |  return adress;",
        "make[4]: *** [../scripts/Makefile.build:229: mm/memory.o] Error 1",
    ]
    assert error_of(log) == log[1:]
    assert error_of(["  CC      mm/memory.o"]) == ["  CC      mm/memory.o"]


@pytest.mark.parametrize(
    "line",
    [
        "mm/memory.c:4711:9: error: 'adress' undeclared (first use in this function)",
        "mm/memory.c:3:10: fatal error: linux/thp.h: No such file or directory",
        "arch/x86/entry/entry_64.S:12: Error: no such instruction: `mvo %eax'",
        "mm/Kconfig:812: syntax error",
        "ld: mm/memory.o:(.text+0x1c): undefined reference to `reserve'",
        "ld: mm/gup.o: multiple definition of `reserve'; mm/memory.o: first defined here",
    ],
)
def test_a_mistake_in_the_source(line: str) -> None:
    assert blames_source(["  LD      vmlinux", line])


@pytest.mark.parametrize(
    "line",
    [
        "ld: mm/memory.o: file not recognized: file truncated",
        "fixdep: error opening file: mm/.memory.o.d: No such file or directory",
        "ar: mm/built-in.a: malformed archive",
        "make[3]: *** No rule to make target 'mm/none.o', needed by 'mm/built-in.a'.  Stop.",
    ],
)
def test_what_damage_may_cause_too(line: str) -> None:
    assert not blames_source([line])


def test_a_linker_that_reads_an_object_as_a_script_blames_no_source() -> None:
    log = [
        "ld: init/main.o: file format not recognized; treating as linker script",
        "ld: init/main.o:1: syntax error",
    ]
    assert not blames_source(log)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/tmp/ccXYZ.s: fatal error: error closing: No space left on device", "disk is full"),
        ("gcc: fatal error: Killed signal terminated program cc1", "fewer build jobs"),
        (
            "scripts/sign-file.c:24:10: fatal error: openssl/opensslv.h: No such file or directory",
            "libssl-dev",
        ),
    ],
)
def test_trouble_of_the_host(line: str, sentence: str) -> None:
    trouble = host_trouble(["  CC      mm/memory.o", line])
    assert trouble is not None and sentence in str(trouble)
    assert host_trouble(["mm/memory.c:1:1: error: nothing"]) is None
