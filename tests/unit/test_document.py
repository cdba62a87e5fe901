# SPDX-License-Identifier: GPL-2.0-only
"""TOML files that people write: what is accepted, and that a fault is reported with its line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.document import Document, Shape, line_of, read_document
from orchestrator.errors import UserError


@dataclass(frozen=True)
class Part(Shape):
    cpus: int
    memory: str = "1G"


@dataclass(frozen=True)
class Whole(Shape):
    title: str
    part: tuple[Part, ...] = ()
    machine: str | Part = "2x1G"
    margin: float = 0.5
    names: tuple[str, ...] = ()
    better: Literal["lower", "higher"] | None = None
    named: dict[str, Part] = field(default_factory=dict)
    settings: dict[str, str | int] = field(default_factory=dict)


def read(place: Path, text: str) -> Document[Whole]:
    path = place / "file.toml"
    path.write_text(text)
    return read_document(path, Whole, "this file")


def test_a_file_is_read_into_its_shape(tmp_path: Path) -> None:
    text = 'title = "x"\nmargin = 1\nnames = ["a"]\n[[part]]\ncpus = 2\n[named.b]\ncpus = 1\n'
    text += '[settings]\nc = 3\nd = "4"\n'
    assert read(tmp_path, text).content == Whole(
        "x", (Part(2),), margin=1.0, names=("a",), named={"b": Part(1)}, settings={"c": 3, "d": "4"}
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "1: title: this key is missing."),
        ('# a comment\ntitel = "x"', "2: titel: unknown key; did you mean title?"),
        ("title = 1", "1: title: must be a string, not 1."),
        ('title = "x"\n\nmargin = true', "3: margin: must be a number, not true."),
        ('title = "x"\nnames = "y"', "2: names: must be a list, not 'y'."),
        ('title = "x"\nnames = [\n  "a",\n  1,\n]', "2: names 2: must be a string, not 1."),
        ('title = "x"\nbetter = "least"', "2: better: 'least': choose lower or higher."),
        ('title = "x"\n[[part]]\ncpus = 1\n\n[[part]]\n', "5: part 2: cpus: this key is missing."),
        ('title = "x"\npart = [1]', "2: part 1: must be a table, not 1."),
        ('title = "x"\nmachine = 3', "2: machine: must be a string or a table, not 3."),
        ('title = "x"\n[machine]\ncpus = "2"', "3: machine.cpus: must be a whole number, not '2'."),
        ('title = "x"\n[machine]\ncpu = 2', "3: machine.cpu: unknown key; did you mean cpus?"),
        (
            'title = "x"\n[named.a]\ncpus = 1\n# b\n[named.b]\ncpsu = 1',
            "6: named.b.cpsu: unknown key; did you mean",
        ),
        (
            'title = "x"\n[settings]\na = 1\nb = []',
            "4: settings.b: must be a string or a whole number, not [].",
        ),
        ('title = "x"\nxyzzy = 1', "2: xyzzy: unknown key; known are title, part, machine"),
    ],
)
def test_a_fault_is_one_sentence_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'file.toml'}:{sentence}")


def test_what_is_not_toml_is_reported_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file\.toml: cannot read this file: not valid TOML: .*line 2"):
        read(tmp_path, 'title = "x"\nmargin = \n')
    with pytest.raises(UserError, match=r"cannot read this file \(.*No such file"):
        read_document(tmp_path / "none.toml", Whole, "this file")
    with pytest.raises(UserError, match="cannot read this file"):
        (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
        read_document(tmp_path / "binary.toml", Whole, "this file")


def test_a_reader_reports_its_own_faults_alike(tmp_path: Path) -> None:
    document = read(tmp_path, 'title = "x"\n\n[[part]]\ncpus = 1\n')
    assert str(document.fault(["part", 0, "cpus"], "must be 2")).endswith(":4: part 1: cpus: must be 2.")
    assert str(document.fault(["part", 0, "memory"], "must be 2G")).endswith(
        ":3: part 1: memory: must be 2G."
    )

    def fail() -> None:
        raise UserError("no such thing.")

    with pytest.raises(UserError, match=r":1: title: no such thing\.$"):
        document.checked(["title"], fail)


@given(st.lists(st.sampled_from(["", "# [[a]]", "  "]), max_size=3), st.integers(1, 5))
def test_the_line_is_that_of_the_entry_whatever_stands_between(between: list[str], count: int) -> None:
    lines: list[str] = []
    expected = []
    for number in range(count):
        lines += between
        expected.append(len(lines) + 1)
        lines += ["[[a]]", f"b = {number}"]
    text = "\n".join(lines)
    assert [line_of(text, ["a", number]) for number in range(count)] == expected
    assert [line_of(text, ["a", number, "b"]) for number in range(count)] == [each + 1 for each in expected]
