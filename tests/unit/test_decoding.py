# SPDX-License-Identifier: GPL-2.0-only
"""Source lines of the addresses in reports, from a small program that stands for a vmlinux."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from orchestrator.cli.application import status_of
from orchestrator.errors import UserError
from orchestrator.kernel.decoding import (
    AddressDecoder,
    CodePoint,
    build_ids_of,
    point_in,
    source_of_directory,
)
from orchestrator.kernel.elf import build_id, text_symbols

SOURCE = """\
static const char linux_banner[] __attribute__((used)) = "Linux version 6.12.117 (a@b)";
volatile int sink;

static inline __attribute__((always_inline)) void store_twice(int value)
{
	sink = value;
	sink = value + 1;
}

__attribute__((noinline)) void at_fault(int value)
{
	store_twice(value);
	sink = 0;
}

__attribute__((noinline)) void calls_it(int value)
{
	at_fault(value);
	sink = 7;
}
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source tree with a vmlinux."""
    root = tmp_path_factory.mktemp("tree")
    (root / "mm").mkdir()
    (root / "mm" / "made_up.c").write_text(SOURCE)
    subprocess.run(
        [
            "gcc", "-g", "-O2", "-fno-pic", "-nostdlib", "-static", "-Wl,-e,0", "-Wl,--build-id=sha1",
            f"-ffile-prefix-map={root}=.", "-o", "vmlinux", f"{root}/mm/made_up.c",
        ],
        cwd=root, check=True,
    )  # fmt: skip
    subprocess.run(["strip", "-g", "-o", "stripped", "vmlinux"], cwd=root, check=True)
    return root


def sizes(tree: Path) -> dict[str, int]:
    symbols = sorted(text_symbols(tree / "vmlinux"), key=lambda symbol: symbol.address)
    after = [symbol.address for symbol in symbols[1:]]
    room = {one.name: end - one.address for one, end in zip(symbols, after, strict=False)}
    return {symbol.name: room.get(symbol.name, symbol.size) for symbol in symbols}


def report(tree: Path, wrong: int = 0, said: str = "") -> str:
    size = {name: f"{value + wrong:#x}" for name, value in sizes(tree).items()}
    lines = [
        "Oops: Oops: 0002 [#1] PREEMPT SMP",
        f"CPU: 0 UID: 0 PID: 9 Comm: sh Not tainted 6.12.117 #1{said}",
        f"RIP: 0010:at_fault+0x0/{size['at_fault']}",
        "Call Trace:",
        " <TASK>",
        f" ? at_fault+0x1/{size['at_fault']}",
        f" calls_it+{size['calls_it']}/{size['calls_it']}",
        " in_module+0x1/0x2 [provoke]",
        " </TASK>",
        "---[ end trace 0000000000000000 ]---",
    ]
    return "".join(f"[    1.000000] {line}\n" for line in lines)


def test_each_frame_has_its_line_with_the_inlined_functions(tree: Path) -> None:
    decoder = AddressDecoder(tree / "vmlinux", source_of_directory(tree))
    decoder.check(report(tree))
    lines = decoder.decoded(report(tree)).splitlines()
    rip = next(index for index, line in enumerate(lines) if "RIP:" in line)
    assert [line.strip() for line in lines[rip + 1 : rip + 3]] == [
        "store_twice at mm/made_up.c:6:  sink = value;",
        "at_fault at mm/made_up.c:12:  store_twice(value);",
    ]
    # What the unwinder guesses, and modules, have none.
    assert sum(" at mm/made_up.c" in line for line in lines) == 3


def test_a_return_address_is_that_of_the_call(tree: Path) -> None:
    size = sizes(tree)["calls_it"]
    decoder = AddressDecoder(tree / "vmlinux")
    (symbol,) = (each for each in text_symbols(tree / "vmlinux") if each.name == "calls_it")
    dump = subprocess.run(
        ["objdump", "-d", tree / "vmlinux"], capture_output=True, text=True, check=True
    ).stdout
    calls = dump[dump.index("<calls_it>:") :].splitlines()
    call = next(index for index, line in enumerate(calls) if "at_fault" in line)
    back = int(calls[call + 1].split(":")[0], 16) - symbol.address
    points = [CodePoint("calls_it", back, size, exact) for exact in (False, True)]
    lines = decoder.lines_of(points)
    assert lines[points[0]][0].line == 18
    assert lines[points[1]][0].line == 19


def test_without_source_there_is_the_place_alone(tree: Path) -> None:
    assert "store_twice at mm/made_up.c:6\n" in AddressDecoder(tree / "vmlinux").decoded(report(tree))


def test_a_decoded_report_reads_as_before(tree: Path) -> None:
    from orchestrator.machine.oops import parse_console

    decoder = AddressDecoder(tree / "vmlinux", source_of_directory(tree))
    before, after = (parse_console(text) for text in (report(tree), decoder.decoded(report(tree))))
    assert [each.fingerprint for each in before] == [each.fingerprint for each in after]


@pytest.mark.parametrize(
    ("line", "point"),
    [
        (" f.isra.0+0x10/0x20", CodePoint("f.isra.0", 16, 32, False)),
        ("RIP: 0010:f+0x10/0x20", CodePoint("f", 16, 32, True)),
        (" ? f+0x10/0x20", None),
        (" f+0x10/0x20 [zram]", None),
        ("f+0x10", None),
    ],
)
def test_points(line: str, point: CodePoint | None) -> None:
    assert point_in(line) == point


def test_another_build_is_refused_by_its_build_id(tree: Path) -> None:
    mine, other = build_id(tree / "vmlinux"), "0123456789" * 4
    decoder = AddressDecoder(tree / "vmlinux")
    decoder.check(report(tree, said=f" {mine}"))
    assert build_ids_of(report(tree, said=f" {mine}")) == {mine}
    with pytest.raises(UserError, match=f"its build ID is {mine}, that of the log is {other}; name"):
        decoder.check(report(tree, said=f" {other}"))
    # The same code, built without debugging information.
    decoder.check(report(tree, said=f" {other}"), [other])


def test_another_build_is_refused_by_its_functions(tree: Path) -> None:
    with pytest.raises(UserError, match=r"2 of 2 functions in the log, e\.g\. at_fault, have another size"):
        AddressDecoder(tree / "vmlinux").check(report(tree, wrong=64))


def test_another_release_is_refused(tree: Path) -> None:
    decoder = AddressDecoder(tree / "vmlinux")
    decoder.check("[    0.000000] Linux version 6.12.117 (c@d)\n" + report(tree))
    with pytest.raises(UserError, match=r"the log is of Linux 6\.6\.1; name"):
        decoder.check("[    0.000000] Linux version 6.6.1 (c@d)\n" + report(tree))


def test_a_kernel_without_debugging_information_is_refused(tree: Path) -> None:
    with pytest.raises(UserError, match="has no debugging information; name a vmlinux"):
        AddressDecoder(tree / "stripped")


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "console.log"
    log.write_text(report(tree))
    arguments = ["decode", str(log), "--vmlinux", str(tree / "vmlinux"), "--code", str(tree)]
    assert status_of(arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith("[1] Oops in at_fault (line 1)\nfingerprint: oops: at_fault: Oops\n")
    assert "store_twice at mm/made_up.c:6:  sink = value;" in said
    assert status_of([*arguments, "--json"]) == 0
    (finding,) = json.loads(capsys.readouterr().out)
    assert finding["function"] == "at_fault" and "made_up.c:6" in finding["text"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either --patchset NAME or --vmlinux FILE"),
        (["--vmlinux", "x", "--patchset", "full"], "either --patchset NAME or --vmlinux FILE"),
        (["--vmlinux", "x", "--config", "measure"], "already built; omit --config"),
        (["--patchset", "full", "--code", "x"], "brings its source; omit --code"),
        (["--vmlinux", "{log}"], "is not a readable ELF file"),
    ],
)
def test_a_wrong_request(
    arguments: list[str], said: str, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "console.log"
    log.write_text(report(tree))
    words = [word.format(log=log) for word in arguments]
    assert status_of(["decode", str(log), *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_log_that_is_missing_or_has_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["decode", str(tmp_path / "none"), "--vmlinux", "x"]) == 2
    assert "cannot read" in capsys.readouterr().err
    (tmp_path / "quiet").write_text("[    1.000000] all is well\n")
    assert status_of(["decode", str(tmp_path / "quiet"), "--vmlinux", "x"]) == 0
    assert capsys.readouterr().out.strip().endswith("has no report of the kernel.")
