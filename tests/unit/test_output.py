# SPDX-License-Identifier: GPL-2.0-only
"""Files that the user names: written whole; a FIFO, a device or standard output is written to, not replaced."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from synthetic_run import Synthetic

from orchestrator.analysis.comparison import compare
from orchestrator.analysis.plots.style import write_figure
from orchestrator.analysis.report import write_report
from orchestrator.cli.application import status_of
from orchestrator.errors import InfrastructureError
from orchestrator.output import is_stream, write_output
from orchestrator.store.run import Run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = Synthetic(repeat=1, workloads=("chunk",), histograms=False)
    return small.write(tmp_path_factory.mktemp("results")).path


def read_from(fifo: Path, write: Callable[[], object]) -> bytes:
    """What a reader of the FIFO gets while `write` runs."""
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()), daemon=True)
    reader.start()
    write()
    assert fifo.is_fifo(), "it was replaced"
    reader.join(20)
    return read[0]


def device(path: Path, minor: int) -> Path:
    """A device of the kernel's memory driver: 3 is null, 7 is full (Documentation/admin-guide/devices.txt)."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        path.open("wb").close()
    except PermissionError:
        pytest.skip("only root makes devices, and only where the file system allows it")
    return path


def report(run: Path, output: Path) -> int:
    return status_of(["--quiet", "report", str(run), "--format", "ktap", "-o", str(output)])


def test_a_report_goes_through_a_pipe(run: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert read_from(fifo, lambda: report(run, fifo)).startswith(b"KTAP version 1\n")
    opened = Run.open(run)
    page = read_from(fifo, lambda: write_report(opened, compare(opened), [], fifo))
    assert page.startswith(b"<!DOCTYPE html>")


def test_a_device_stays_a_device(run: Path, tmp_path: Path) -> None:
    null = device(tmp_path / "null", 3)
    assert report(run, null) in (0, 3)
    assert null.is_char_device()
    link = tmp_path / "link"
    link.symlink_to(null)
    assert report(run, link) in (0, 3)
    assert link.is_symlink() and null.is_char_device()


def test_a_full_device_is_one_sentence(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = device(tmp_path / "full", 7)
    assert report(run, full) == 1
    assert capsys.readouterr().err == f"orchestrate: {full} cannot be written: No space left on device.\n"
    assert full.is_char_device()


@pytest.mark.parametrize(("name", "kind"), [("-", "pipe"), ("/dev/stdout", "pipe"), ("/dev/stdout", "file")])
def test_standard_output_gets_the_report_and_nothing_else(
    run: Path, tmp_path: Path, name: str, kind: str
) -> None:
    argv = [sys.executable, "-m", "orchestrator", "--quiet", "report", str(run), "-f", "ktap", "-o", name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if kind == "pipe":
        text = subprocess.run(argv, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment).stdout
    else:
        path = tmp_path / "out"
        with path.open("w") as stream:
            stream.write("before\n")
            stream.flush()
            subprocess.run(argv, stdout=stream, cwd=tmp_path, env=environment)
            os.lseek(stream.fileno(), 0, os.SEEK_END)
            stream.write("# after\n")
        text = path.read_text()
        assert text.startswith("before\n") and text.endswith("# after\n")
        text = text.removeprefix("before\n").removesuffix("# after\n")
    assert text.startswith("KTAP version 1\n") and str(run) not in text
    assert not (tmp_path / "-").exists()


def test_a_link_stays_and_its_file_is_written(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "report"
    link.symlink_to("there/report")  # which does not exist yet
    for _ in range(2):
        assert report(run, link) in (0, 3)
        assert link.is_symlink()
        assert (tmp_path / "there" / "report").read_text().startswith("KTAP version 1\n")


def test_a_file_keeps_its_mode_and_its_old_content_if_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_output(path, "old")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    path.chmod(0o600)
    write_output(path, "new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o600)
    monkeypatch.setattr(
        Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(InfrastructureError, match="file cannot be written: No space left on device"):
        write_output(path, "newer")
    assert path.read_text() == "new" and [each.name for each in tmp_path.iterdir()] == ["file"]


def test_what_is_written_to_and_what_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    assert is_stream(Path("-")) and is_stream(tmp_path / "fifo") and is_stream(Path("/dev/null"))
    assert not is_stream(tmp_path / "file") and not is_stream(tmp_path / "nothing")


def test_a_figure_is_drawn_into_a_device_or_a_pipe(tmp_path: Path) -> None:
    figure = Figure(figsize=(1, 1))
    pipe = tmp_path / "pipe.svg"
    os.mkfifo(pipe)
    assert b"<svg" in read_from(pipe, lambda: write_figure(figure, pipe))
    null = device(tmp_path / "null.png", 3)
    write_figure(figure, null)
    assert null.is_char_device()


def test_plots_leave_what_is_not_a_file_alone(run: Path, tmp_path: Path) -> None:
    null = device(tmp_path / "simulation.png", 3)
    assert status_of(["--quiet", "simulate", "--plot", str(tmp_path / "simulation")]) == 0
    assert null.is_char_device() and (tmp_path / "simulation.svg").is_file()
    null = device(tmp_path / "memory.png", 3)
    assert status_of(["--quiet", "plot", str(run), "-o", str(tmp_path)]) == 0
    assert null.is_char_device() and (tmp_path / "memory.svg").is_file()
