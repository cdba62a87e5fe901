# SPDX-License-Identifier: GPL-2.0-only
"""A guest for a person: what its commands end with, and that nothing the kernel reports goes unsaid."""

from __future__ import annotations

import os
import sys

import pytest

from orchestrator.cli.application import status_of
from orchestrator.kernel.build import KernelBuild

SMALL = ["--patchset", "baseline", "--topology", "1x512M/1", "--accel", "tcg"]
#: As the kernel prints it; the console has no other way to know.
BUG = "echo 'BUG: Bad page state in process sh  pfn:12345' >/dev/kmsg; sleep 1"


@pytest.fixture(autouse=True)
def built(baseline_kernel: KernelBuild) -> None:
    """The kernel is there before the command's time counts."""


def test_exec_ends_with_the_status_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["exec", *SMALL, "--", "sh", "-c", "echo said; exit 7"]) == 7
    assert capsys.readouterr().out == "said\n"


def test_exec_is_a_part_of_a_pipe(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"\xff\x00\n")
    os.close(writing)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        argv = ["exec", *SMALL, "--set", "vm.swappiness=10", "--", "cat", "-", "/proc/sys/vm/swappiness"]
        assert status_of(argv) == 0
    assert capfdbinary.readouterr().out == b"\xff\x00\n10\n"


def test_a_setting_that_the_guest_does_not_have_is_the_users_mistake(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status_of(["exec", *SMALL, "--set", "vm.no_such_thing=10", "--", "true"]) == 2
    assert "the guest has no file /proc/sys/vm/no_such_thing" in capsys.readouterr().err


def test_exec_of_a_command_that_does_not_end_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["exec", *SMALL, "--timeout", "2", "--", "sh", "-c", "echo begun; sleep 60"]) == 3
    out, err = capsys.readouterr()
    assert out == "begun\n"
    assert "took more than 2 s and was killed. Use --timeout to give it more time" in err


def test_a_report_of_the_kernel_is_not_hidden_by_a_good_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["exec", *SMALL, "--", "sh", "-c", BUG]) == 3
    assert "BUG: Bad page state" in capsys.readouterr().err


def test_boot_says_when_the_guest_is_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["boot", *SMALL, "--check"]) == 0
    out = capsys.readouterr().out
    assert "up after" in out and "shell    ssh" in out
