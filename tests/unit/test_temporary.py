# SPDX-License-Identifier: GPL-2.0-only
"""Temporary directories of processes that were killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from orchestrator.temporary import make_temporary, remove_temporary, sweep_temporary, temporary_directory


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path


def test_the_directory_of_a_killed_process_is_swept_and_others_stay(place: Path) -> None:
    script = (
        "import sys, pathlib; from orchestrator.temporary import make_temporary\n"
        "print(make_temporary('cell', pathlib.Path(sys.argv[1])), flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", script, str(place)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        theirs = Path(owner.stdout.readline().strip())
        own = make_temporary("cell")
        of_user = place / "orchestrate-notes"
        of_user.mkdir()
        sweep_temporary()
        assert theirs.is_dir() and own.is_dir()
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    (theirs / "file").touch()
    sweep_temporary()
    assert not theirs.exists() and own.is_dir() and of_user.is_dir()
    remove_temporary(own)
    assert not own.exists()


def test_a_locked_directory_stays_where_its_owner_cannot_be_seen(place: Path) -> None:
    """As in another PID namespace that shares the directory."""
    with temporary_directory("cell") as own:
        unseen = own.with_name(own.name.replace(str(os.getpid()), "999999999"))
        own.rename(unseen)
        sweep_temporary()
        assert unseen.is_dir()
    sweep_temporary()
    assert not unseen.exists()
