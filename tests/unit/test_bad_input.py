# SPDX-License-Identifier: GPL-2.0-only
"""What a person's host and habits may give: one sentence and exit status 2, or it works; never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_tree import SERIES, write_series
from guest_data import ROOT
from workbench import Workbench

from orchestrator.cache import Cache
from orchestrator.cli.application import status_of
from orchestrator.errors import UserError
from orchestrator.experiment.variant import Variant
from orchestrator.kernel.config import configuration, with_settings
from orchestrator.kernel.series import load_series
from orchestrator.machine.qemu import CMDLINE, check_cmdline
from orchestrator.store.manifest import Role


def orchestrate(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        errors="replace",
    )


@pytest.mark.thorough
def test_a_title_that_the_encoding_lacks(tmp_path: Path) -> None:
    place = write_series(
        tmp_path / "patches", SERIES.replace("mm: change the answer", "mm: größer \u2014 \u65e5")
    )
    for encoding in ("ascii", "latin-1"):
        done = orchestrate("series", "list", "--series", str(place), cwd=tmp_path, PYTHONIOENCODING=encoding)
        assert (done.returncode, done.stderr) == (0, "")
        # For ASCII, which is usually a mistake, the library writes UTF-8.
        assert ("\\u65e5" if encoding == "latin-1" else "\u65e5") in done.stdout


def test_a_working_directory_that_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert status_of(["list", "workloads"]) == 2
    assert (
        capsys.readouterr().err == "orchestrate: the working directory was deleted; change to another one.\n"
    )


def test_toml_with_a_byte_order_mark(tmp_path: Path) -> None:
    place = write_series(tmp_path)
    toml = place / "series.toml"
    toml.write_bytes(b"\xef\xbb\xbf" + toml.read_bytes())
    assert len(load_series(place).stages) == 3


def test_a_relative_cache_is_that_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATE_CACHE", "mine/cache")
    cache = Cache.default()
    monkeypatch.chdir("/")
    assert cache.root == tmp_path / "mine" / "cache"


@pytest.mark.parametrize("name", ["my cache", "a:b"])
def test_kbuild_cannot_build_below_such_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(tmp_path / name))
    assert status_of(["build", "-p", "baseline", "--source", str(tmp_path)]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "has a space or a colon" in sentence and "set ORCHESTRATE_CACHE" in sentence
    assert not (tmp_path / name).exists()


def test_ccache_that_cannot_write_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    ccache = tools / "ccache"
    ccache.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exec echo ccache 4\n'
        'echo "ccache: error: failed to create /x: Permission denied" >&2\nexit 1\n'
    )
    ccache.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    bench = Workbench(tmp_path)
    assert bench.build().bzimage.is_file()
    assert [note for note in bench.notes() if "ccache" in note] == [
        "ccache does not work, building without it: ccache: error: failed to create /x: Permission denied"
    ]


def test_a_command_line_is_never_cut() -> None:
    with pytest.raises(UserError) as refused:
        check_cmdline(["a" * 2047])
    room = int(str(refused.value).split()[-2])
    assert 1500 < room < 2047 - len(" ".join(CMDLINE))
    check_cmdline(["a" * room])
    for make in (
        lambda: check_cmdline(["a" * room, "b"]),
        lambda: Variant("v", Role.PATCHED, "full", cmdline=("é" * room,)),
    ):
        with pytest.raises(UserError, match="x86 takes 2047; shorten --cmdline to at most"):
            make()


def test_options_of_ones_own_override_the_fragments(tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / "base.config").write_text("CONFIG_NUMA=y\n")
    (tmp_path / "kernel" / "measure.config").write_text("CONFIG_KSM=y  # optional\n")
    flavour = with_settings("measure", ["CONFIG_KSM=n", 'CONFIG_X="a+b"', "CONFIG_NR_CPUS=8"])
    asked = configuration(tmp_path, flavour)
    assert asked.flavour == "measure"
    assert asked.requested == {
        "CONFIG_NUMA": "y",
        "CONFIG_KSM": "n",
        "CONFIG_X": '"a+b"',
        "CONFIG_NR_CPUS": "8",
    }
    assert asked.digest != configuration(tmp_path, "measure").digest
    own = tmp_path / "my own.config"
    own.write_text("CONFIG_KSM=m\n")
    mine = configuration(tmp_path, str(own))
    assert (mine.flavour, mine.requested) == ("my-own", {"CONFIG_NUMA": "y", "CONFIG_KSM": "m"})
    for wrong in ("KSM=y", "CONFIG_KSM", "CONFIG_KSM=", "CONFIG_KSM y"):
        with pytest.raises(UserError, match="write CONFIG_NAME=VALUE"):
            with_settings("measure", [wrong])
    with pytest.raises(UserError, match="is set to y as well"):
        with_settings("measure", ["CONFIG_KSM=y", "CONFIG_KSM=n"])
    with pytest.raises(UserError, match="cannot read the configuration fragment"):
        configuration(tmp_path, "./none.config")
