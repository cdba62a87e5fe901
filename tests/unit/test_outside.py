# SPDX-License-Identifier: GPL-2.0-only
"""Files from outside, damaged at random: each reader accepts them or says what is wrong, and never fails otherwise."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from guest_data import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import manifest, planned

from orchestrator.errors import OrchestrateError, UserError
from orchestrator.events import Events
from orchestrator.experiment.experiment import load_experiment
from orchestrator.guest.counters import parse_file
from orchestrator.guest.workload import load_workloads
from orchestrator.kernel import source
from orchestrator.kernel.series import load_series
from orchestrator.machine.topology import Topology
from orchestrator.model import trace
from orchestrator.store.manifest import read_manifest
from orchestrator.store.observation import Observation
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import CellRow, Run, RunWriter

_EXPERIMENT = (ROOT / "experiments" / "stages.toml").read_text()
_TRACE = (ROOT / "tests" / "differential" / "two-nodes.trace").read_text()
_SERIES = load_series(ROOT / "kernel_patches")
_WORKLOADS = load_workloads(ROOT / "guest_workloads")
_NUMBERS = (
    "9" * 5000,
    "1e999",
    "inf",
    "nan",
    "-1",
    "0",
    "18446744073709551616",
    "9223372036854775808",
    "0x" + "f" * 40,
)
_ODD = (
    *_NUMBERS,
    "null",
    "true",
    "[" * 2000,
    "{}",
    '""',
    "\x00",
    "\u2028",
    "\ud7ff",
    "=",
    "\n",
    '"',
    "a" * 5000,
)


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """`text` with a few places replaced, removed or added."""
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(text)))
        end = min(begin + draw(st.sampled_from([0, 1, 2, 5, 20])), len(text))
        text = text[:begin] + draw(st.sampled_from(_ODD) | st.text(max_size=5)) + text[end:]
    return text


def _leaves(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [place, *(leaf for key, each in entries for leaf in _leaves(each, (*place, key)))]


@st.composite
def other_values(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one of its parts replaced by another value, or removed."""
    value = json.loads(json.dumps(value))
    place = draw(st.sampled_from([leaf for leaf in _leaves(value) if leaf]))
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    other: Any = draw(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
        | st.just(10**400) | st.just("remove")
    )  # fmt: skip
    if other == "remove":
        del inner[place[-1]]
    else:
        inner[place[-1]] = other
    return value


def accepts_or_refuses(read: Callable[[], object]) -> None:
    try:
        read()
    except OrchestrateError as error:
        assert str(error).strip()


def _in_file(name: str, text: str, read: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / name
        path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
        accepts_or_refuses(lambda: read(path))


def _experiment(text: str) -> None:
    _in_file("e.toml", text, lambda path: load_experiment(path, _SERIES, _WORKLOADS))


def _series(text: str) -> None:
    _in_file("series.toml", text, lambda path: load_series(path.parent))


def _trace(text: str) -> None:
    with contextlib.suppress(trace.TraceError, OrchestrateError):
        trace.parse(text)


def _topology(text: str) -> None:
    accepts_or_refuses(lambda: Topology.parse(text))


def _counters(text: str) -> None:
    for path in (
        "/proc/vmstat",
        "/proc/meminfo",
        "/proc/buddyinfo",
        "/proc/zoneinfo",
        "/proc/1/smaps_rollup",
    ):
        accepts_or_refuses(lambda path=path: parse_file(path, text))  # type: ignore[misc]


def _manifest(text: str) -> None:
    _in_file("run.json", text, lambda path: read_manifest(path.parent))


_RUN = json.loads(manifest(cells=(planned("baseline", "chunk", 1),)).to_json())
_READERS: dict[str, tuple[str, Callable[[str], None]]] = {
    "experiment": (_EXPERIMENT, _experiment),
    "series": ((ROOT / "kernel_patches" / "series.toml").read_text(), _series),
    "trace": (_TRACE, _trace),
    "topology": ("2x512M/2+1x1G", _topology),
    "counters": ("nr_free_pages 1\nNode 0, zone   DMA  1 2 3\nMemTotal:  16 kB\nRss: 4 kB\n", _counters),
    "run.json": (json.dumps(_RUN), _manifest),
}


@pytest.mark.parametrize("reader", _READERS)
def test_a_damaged_file_is_refused_in_a_sentence(reader: str) -> None:
    _try(reader, 15)


@pytest.mark.parametrize("name", ["9" * 300, "\\u0000", "../" * 2000])
@pytest.mark.parametrize("key", ["reference", "patch", "variants"])
def test_a_name_that_no_file_can_have_is_refused_in_a_sentence(key: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "6.12").symlink_to(ROOT / "kernel_patches" / "6.12")
    lines = (ROOT / "kernel_patches" / "series.toml").read_text().splitlines()
    line = next(number for number, each in enumerate(lines) if each.startswith(f"{key} = "))
    lines[line] = f'{key} = ["{name}"]' if key == "variants" else f'{key} = "{name}"'
    (tmp_path / "series.toml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"does not exist|valid"):
        load_series(tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("reader", _READERS)
def test_many_damaged_files_are_refused_in_a_sentence(reader: str) -> None:
    _try(reader, 1000)


def _try(reader: str, examples: int) -> None:
    text, read = _READERS[reader]

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(text))
    def attempt(changed: str) -> None:
        read(changed)

    attempt()


@settings(max_examples=50, deadline=None)
@given(other_values(_RUN))
def test_another_value_in_run_json(content: Any) -> None:
    _manifest(json.dumps(content))


def _tarball(names: list[str], size: int = 3) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = size
            tar.addfile(member, io.BytesIO(b"x" * size))
    return packed.getvalue()


def _read_archive(data: bytes) -> int:
    """The number of files that would be imported."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "linux.tar"
        path.write_bytes(data)
        with (
            mock.patch.object(source, "_import", lambda files, repository, step: str(len(list(files)))),
            Events().step("import") as step,
        ):
            return int(source.read_archive(path, mock.Mock(), step))


@pytest.mark.parametrize(
    "name",
    ["linux/../etc/passwd", "../x", "/etc/passwd", "linux/.git/hooks/post-checkout", "linux/.GIT/config"],
)
def test_a_tarball_whose_files_leave_the_tree_is_refused_before_the_import(name: str) -> None:
    assert _read_archive(_tarball(["linux/Makefile", "linux/..a", "linux/.gitignore"])) == 3
    with pytest.raises(UserError, match=r"linux\.tar has a file named .* which a kernel source cannot have"):
        _read_archive(_tarball(["linux/Makefile", name]))


def test_a_large_file_in_a_tarball_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_LARGEST_MEMBER", 1000)
    with pytest.raises(UserError, match="no file of a kernel source is that large"):
        _read_archive(_tarball(["linux/Makefile"], size=1001))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_tarball_is_refused_in_a_sentence(data: st.DataObject) -> None:
    packed = bytearray(_tarball(["linux/Makefile", "linux/mm/a.c"]))
    for _ in range(data.draw(st.integers(1, 8))):
        packed[data.draw(st.integers(0, 2047))] = data.draw(st.integers(0, 255))
    accepts_or_refuses(lambda: _read_archive(bytes(packed)))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["cell.json", "metrics.parquet", "samples.parquet", "digests.json"]), st.data())
def test_a_damaged_file_of_a_cell_is_a_lost_cell(name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        writer = RunWriter.create(
            Path(directory), "x", replace(manifest(), cells=(planned("baseline", "chunk", 1),))
        )
        cell = writer.manifest.cells[0].cell
        writer.record(CellRow(writer.manifest.cells[0], Outcome.OK), [Observation("a", "b", 1.0)])
        path = writer.path / "parts" / cell / name
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        run = Run.open(writer.path)
        assert next(iter(run.cells["outcome"])) in ("ok", "lost")
        assert len(run.metrics) == (1 if "ok" in run.outcomes() else 0)
        writer._lock.release()
