# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from records import manifest, planned

from orchestrator.cli.application import status_of
from orchestrator.errors import UserError
from orchestrator.store.manifest import AcceleratorRecord, Manifest, Role, WorkloadRecord
from orchestrator.store.observation import Observation, Phase, Sample
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import CellRow, Run, RunWriter, find_run
from orchestrator.store.schema import TABLES
from orchestrator.store.version import SCHEMA_VERSION


def sampled(counter: str, value: int, phase: Phase = "after", node: int | None = None) -> Sample:
    return Sample(1.5, 3.0, phase, "vmstat", node, counter, value)


def plan(repeat: int = 2) -> Manifest:
    return manifest(
        command=("orchestrate", "run", "--patchset", "core only"),
        cells=tuple(
            planned(variant, "chunk", repetition, role=role)
            for repetition in range(1, repeat + 1)
            for variant, role in (("baseline", Role.BASELINE), ("core-only@256", Role.PATCHED))
        ),
    )


def end_of(writer: RunWriter, cell: str, outcome: Outcome = Outcome.OK, evidence: str = "") -> CellRow:
    due = next(entry for entry in writer.manifest.cells if entry.cell == cell)
    return CellRow(due, outcome=outcome, evidence=evidence, boot_s=1.0, run_s=2.0, total_s=3.5)


OBSERVED = [Observation("survivors.total", "children", 15.0)]
SAMPLED = [sampled("nr_free_pages", 100), sampled("nr_free_pages", 50, node=1)]


def test_run_json_is_there_before_any_cell(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "results", "core only/256", plan())
    content = json.loads((writer.path / "run.json").read_text())
    assert content["schema"] == SCHEMA_VERSION
    assert content["reproduce"] == "orchestrate run --patchset 'core only'"
    assert len(content["cells"]) == 4
    assert writer.path.name.endswith("Z-core-only-256")
    assert list(writer.path.glob(".run.json*")) == []


def test_run_json_keeps_the_order_it_was_given(tmp_path: Path) -> None:
    writer = RunWriter.create(
        tmp_path,
        "x",
        replace(plan(), workloads={each: WorkloadRecord(title="") for each in ("zebra", "ant")}),
    )
    assert list(Run.open(writer.path).manifest.workloads) == ["zebra", "ant"]


def test_two_runs_of_one_second_have_directories_of_their_own(tmp_path: Path) -> None:
    paths = {RunWriter.create(tmp_path, "same", plan()).path for _ in range(5)}
    assert len(paths) == 5


def test_what_was_recorded_is_read_back_from_an_unfinished_run(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, "x", plan())
    writer.record(end_of(writer, "core-only@256.chunk.1"), OBSERVED, SAMPLED)
    run = Run.open(writer.path)
    assert list(run.cells["outcome"]) == ["lost", "ok", "lost", "lost"]
    assert run.cells["evidence"][0] == "the end was not recorded"
    assert run.metrics.to_dict("records") == [
        {
            "cell": "core-only@256.chunk.1",
            "variant": "core-only@256",
            "workload": "chunk",
            "repetition": 1,
            "metric": "survivors.total",
            "unit": "children",
            "value": 15.0,
        }
    ]
    assert list(run.samples["value"]) == [100, 50]
    assert run.samples["node"].isna().tolist() == [True, False]
    assert run.samples["node"][1] == 1


def test_samples_are_filtered(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, "x", plan())
    for cell in ("baseline.chunk.1", "baseline.chunk.2"):
        writer.record(end_of(writer, cell), [], [*SAMPLED, sampled("pgfault", 3, phase="before")])
    run = Run.open(writer.path)
    assert len(run.samples_of(cells=["baseline.chunk.1"])) == 3
    assert len(run.samples_of(counters=["pgfault"])) == 2
    assert len(run.samples_of(cells=[])) == 0
    assert len(run.samples_of(cells=["baseline.chunk.2"], phases=["after"], counters=["pgfault"])) == 0


def test_finish_makes_three_tables_also_of_an_interrupted_run(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, "x", plan())
    writer.record(end_of(writer, "baseline.chunk.1"), OBSERVED, SAMPLED)
    writer.finish()
    for name, schema in TABLES.items():
        table = pq.read_table(writer.path / f"{name}.parquet")
        assert table.schema.equals(schema, check_metadata=False)
        assert table.schema.metadata[b"orchestrate.schema"] == b"2"
    assert pq.read_table(writer.path / "cells.parquet")["outcome"].to_pylist() == [
        "ok",
        "lost",
        "lost",
        "lost",
    ]
    assert (
        pq.read_table(writer.path / "cells.parquet").schema.field("boot_s").metadata[b"unit"]
        == b"host seconds"
    )


def test_a_finished_run_is_read_without_its_parts(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, "x", plan())
    writer.record(end_of(writer, "baseline.chunk.1"), OBSERVED, SAMPLED)
    writer.finish()
    with_parts = Run.open(writer.path)
    before = (with_parts.cells, with_parts.metrics, with_parts.samples)
    (writer.path / "parts").rename(tmp_path / "elsewhere")
    without = Run.open(writer.path)
    for left, right in zip(before, (without.cells, without.metrics, without.samples), strict=True):
        assert left.equals(right)
    with pytest.raises(UserError, match="cannot be resumed"):
        RunWriter.reopen(writer.path)


def test_an_empty_run_has_tables_with_the_right_columns(tmp_path: Path) -> None:
    run = Run.open(RunWriter.create(tmp_path, "x", plan()).path)
    assert list(run.metrics.columns) == TABLES["metrics"].names
    assert list(run.samples.columns) == TABLES["samples"].names
    assert set(run.cells["outcome"]) == {"lost"}


def test_resume_runs_what_did_not_end_ok_and_keeps_the_earlier_end(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, "x", plan())
    writer.record(end_of(writer, "baseline.chunk.1"), OBSERVED, SAMPLED)
    broken = "core-only@256.chunk.1"
    for number in (1, 2):
        if number == 2:
            writer = RunWriter.reopen(writer.path)
        logs = writer.cell_directory(broken)
        assert list(logs.iterdir()) == []
        (logs / "console.log").write_text(f"attempt {number}")
        writer.record(end_of(writer, broken, Outcome.KERNEL_BUG, f"BUG {number}"))
        writer.finish()

    writer = RunWriter.reopen(writer.path)
    assert writer.completed_cells() == {"baseline.chunk.1"}
    assert writer.outcomes() == {Outcome.OK: 1, Outcome.KERNEL_BUG: 1}
    writer.cell_directory(broken)
    writer.record(end_of(writer, broken), OBSERVED, SAMPLED)
    writer.finish()
    assert writer.completed_cells() == {"baseline.chunk.1", broken}
    for number in (1, 2):
        earlier = json.loads((writer.path / "parts" / f"{broken}.attempt-{number}" / "cell.json").read_text())
        assert earlier["evidence"] == f"BUG {number}"
        assert (
            writer.path / "logs" / f"{broken}.attempt-{number}" / "console.log"
        ).read_text() == f"attempt {number}"
    assert list(Run.open(writer.path).metrics["value"]) == [15.0, 15.0]
    assert pq.read_table(writer.path / "cells.parquet")["outcome"].to_pylist().count("ok") == 2


def test_cell_directory_is_not_emptied_twice_in_one_attempt(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, "x", plan())
    (writer.cell_directory("baseline.chunk.1") / "console.log").write_text("here")
    assert (writer.cell_directory("baseline.chunk.1") / "console.log").read_text() == "here"


def test_a_part_that_fails_to_be_written_leaves_nothing(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, "x", plan())
    with pytest.raises((ValueError, TypeError)):
        writer.record(end_of(writer, "baseline.chunk.1"), OBSERVED, [sampled("pgfault", "no number")])  # type: ignore[arg-type]
    assert list((writer.path / "parts").iterdir()) == []
    assert writer.outcomes() == {}


def test_what_a_killed_writer_left_half_made_is_not_an_end(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, "x", plan())
    writer.finish()
    (writer.path / "parts" / ".baseline.chunk.1-abc").mkdir()
    again = RunWriter.reopen(writer.path)
    assert list((writer.path / "parts").iterdir()) == []
    assert again.completed_cells() == frozenset()


def test_cells_that_were_not_planned_are_refused(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, "x", plan())
    row = end_of(writer, "baseline.chunk.1")
    with pytest.raises(KeyError):
        writer.record(replace(row, planned=replace(row.planned, cell="other.chunk.1")))
    with pytest.raises(ValueError, match="variant"):
        writer.record(replace(row, planned=replace(row.planned, variant="other")))
    with pytest.raises(ValueError, match="do not change"):
        writer.update_manifest(cells=())


def test_a_counter_below_zero_is_kept_as_such(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, "x", plan())
    writer.record(end_of(writer, "baseline.chunk.1"), [], [sampled("nr_thp_reserved", 2**64 - 895)])
    assert list(Run.open(writer.path).samples["value"]) == [-895]


def test_update_manifest_replaces_entries_for_a_reader_at_once(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, "x", plan())
    writer.update_manifest(accelerator=AcceleratorRecord(name="tcg", clock="ns", reason="as asked for"))
    assert Run.open(writer.path).manifest.accelerator.clock == "ns"
    assert writer.manifest.accelerator.name == "tcg"


def test_several_threads_record(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, "x", plan(repeat=8))
    rows = [end_of(writer, entry.cell) for entry in writer.manifest.cells]
    threads = [threading.Thread(target=writer.record, args=(row, OBSERVED, SAMPLED)) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.outcomes() == {Outcome.OK: 16}


def test_a_second_writer_is_refused_until_the_first_has_finished(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, "x", plan())
    with pytest.raises(UserError, match="another process"):
        RunWriter.reopen(writer.path)
    script = "import sys, pathlib, orchestrator.store.run as r; r.RunWriter.reopen(pathlib.Path(sys.argv[1]))"
    other = subprocess.run([sys.executable, "-c", script, str(writer.path)], capture_output=True, text=True)
    assert "another process" in other.stderr
    writer.finish()
    RunWriter.reopen(writer.path).finish()


def test_something_else_than_a_run_directory_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        Run.open(tmp_path)
    with pytest.raises(UserError, match="not a run directory"):
        Run.open(tmp_path / "nowhere")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(UserError, match="no schema version"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"schema": SCHEMA_VERSION + 1}))
    with pytest.raises(UserError, match="newer orchestrate"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"schema": SCHEMA_VERSION}))
    with pytest.raises(UserError, match="kind is missing"):
        Run.open(tmp_path)


@pytest.mark.parametrize("cell", ["../escape", "a/b", ".hidden", ""])
def test_a_cell_id_that_is_not_a_directory_name_is_refused(tmp_path: Path, cell: str) -> None:
    wrong = replace(plan(), cells=(replace(planned("baseline"), cell=cell),))
    with pytest.raises(UserError, match="not a directory name"):
        RunWriter.create(tmp_path, "x", wrong)
    assert list(tmp_path.iterdir()) == []


class TestFindRun:
    @pytest.fixture
    def results(self, tmp_path: Path) -> Path:
        for name in ("20250101T000000Z-first", "20250102T000000Z-second", "reference-1"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "run.json").write_text("{}")
        (tmp_path / "20260101T000000Z-not-a-run").mkdir()
        return tmp_path

    @pytest.mark.parametrize(
        ("asked", "found"),
        [
            ("latest", "20250102T000000Z-second"),
            ("20250101T000000Z-first", "20250101T000000Z-first"),
            ("20250101", "20250101T000000Z-first"),
            ("first", "20250101T000000Z-first"),
            ("reference-1", "reference-1"),
        ],
    )
    def test_by_name(self, results: Path, asked: str, found: str) -> None:
        assert find_run(results, asked) == results / found

    def test_by_path(self, results: Path) -> None:
        assert find_run(results / "elsewhere", str(results / "reference-1")) == results / "reference-1"

    @pytest.mark.parametrize(
        ("asked", "sentence"),
        [("2025", "matches 2 runs"), ("nothing", "is named nothing"), ("", "no run in|not a run directory")],
    )
    def test_what_cannot_be_found(self, results: Path, asked: str, sentence: str) -> None:
        with pytest.raises(UserError, match=sentence):
            find_run(results, asked)

    def test_a_directory_that_is_not_a_run(self, results: Path) -> None:
        with pytest.raises(UserError, match=r"no run\.json"):
            find_run(results, str(results / "20260101T000000Z-not-a-run"))

    def test_no_results_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no run in"):
            find_run(tmp_path / "results", "latest")


def test_a_run_that_decides_as_it_goes_plans_each_cell_when_it_is_due(tmp_path: Path) -> None:
    cells = plan().cells
    writer = RunWriter.create(tmp_path, "x", replace(plan(), cells=()))
    with pytest.raises(KeyError):
        writer.cell_directory("baseline.chunk.1")
    writer.plan(cells[0])
    writer.plan(cells[1])
    writer.plan(cells[0])  # again, as when a run is resumed
    writer.record(end_of(writer, "baseline.chunk.1"), OBSERVED, SAMPLED)
    writer.finish()
    run = Run.open(writer.path)
    assert run.cells["cell"].tolist() == ["baseline.chunk.1", "core-only@256.chunk.1"]
    assert run.cells["outcome"].tolist() == ["ok", "lost"]
    with pytest.raises(UserError, match="directory name"):
        RunWriter.reopen(writer.path).plan(replace(cells[2], cell="../elsewhere"))


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("cell.json", _half),
        ("cell.json", lambda path: path.write_text("[" * 100_000)),
        ("cell.json", lambda path: path.write_text("9")),
        ("cell.json", lambda path: path.write_text('{"cell": null}')),
        ("cell.json", lambda path: path.write_bytes(b"\xff\xfe")),
        ("metrics.parquet", Path.unlink),
        ("metrics.parquet", _half),
        ("metrics.parquet", _flip),
        ("samples.parquet", lambda path: path.write_bytes(b"")),
        ("samples.parquet", _flip),
        ("digests.json", _half),
    ],
)
def test_a_damaged_cell_is_lost_and_hides_no_other(
    file: str, harm: Callable[[Path], object], tmp_path: Path
) -> None:
    writer = RunWriter.create(tmp_path, "x", plan())
    for cell in ("baseline.chunk.1", "core-only@256.chunk.1"):
        writer.record(end_of(writer, cell), OBSERVED, SAMPLED)
    harm(writer.path / "parts" / "baseline.chunk.1" / file)
    run = Run.open(writer.path)
    assert list(run.cells["outcome"]) == ["lost", "ok", "lost", "lost"]
    assert run.cells["evidence"][0].startswith(
        f"the recorded result is damaged: parts/baseline.chunk.1/{file} "
    )
    assert list(run.metrics["cell"]) == ["core-only@256.chunk.1"]
    assert set(run.samples["cell"]) == {"core-only@256.chunk.1"}
    assert run.outcomes() == {"lost": 3, "ok": 1}
    assert writer.completed_cells() == {"core-only@256.chunk.1"}, "a resumed run measures it again"
    assert not writer.has_ended("baseline.chunk.1")
    writer.record(end_of(writer, "baseline.chunk.1"), OBSERVED, SAMPLED)
    writer.finish()
    assert list(Run.open(writer.path).metrics["cell"]) == ["baseline.chunk.1", "core-only@256.chunk.1"]


def test_a_cell_of_an_earlier_version_has_no_digests(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, "x", plan())
    writer.record(end_of(writer, "baseline.chunk.1"), OBSERVED, SAMPLED)
    (writer.path / "parts" / "baseline.chunk.1" / "digests.json").unlink()
    assert writer.completed_cells() == {"baseline.chunk.1"}


@pytest.mark.parametrize("table", ["cells", "metrics", "samples"])
def test_a_damaged_table_of_a_stored_run_is_one_sentence(table: str, tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, "x", plan())
    writer.record(end_of(writer, "baseline.chunk.1"), OBSERVED, SAMPLED)
    writer.finish()
    shutil.rmtree(writer.path / "parts")
    _half(writer.path / f"{table}.parquet")
    with pytest.raises(UserError, match=rf"{table}\.parquet is damaged: "):
        getattr(Run.open(writer.path), table)
    if table == "cells":
        with pytest.raises(UserError, match=r"cells\.parquet is damaged: "):
            Run.open(writer.path).outcomes()


def test_a_damaged_run_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("table", "cell", "manifest", "whole"):
        writer = RunWriter.create(tmp_path, name, plan())
        writer.record(end_of(writer, "baseline.chunk.1"), OBSERVED, SAMPLED)
        writer.finish()
        if name == "table":
            shutil.rmtree(writer.path / "parts")
            _half(writer.path / "cells.parquet")
        elif name == "cell":
            _half(writer.path / "parts" / "baseline.chunk.1" / "cell.json")
        elif name == "manifest":
            (writer.path / "run.json").write_text(f'{{"schema": {"9" * 5000}}}')
    monkeypatch.setenv("ORCHESTRATE_RESULTS", str(tmp_path))
    assert status_of(["results", "list", "--json"]) == 0
    rows = {row["run"].rpartition("-")[2]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["whole"]["outcomes"] == {"lost": 3, "ok": 1}
    assert rows["cell"]["outcomes"] == {"lost": 4}
    assert "cells.parquet is damaged" in rows["table"]["problem"]
    assert "run.json is damaged" in rows["manifest"]["problem"]


def test_a_run_that_cannot_begin_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("orchestrator.store.run.replace_file", full)
    with pytest.raises(OSError, match=r"No space left on device: .*run\.json"):
        RunWriter.create(tmp_path, "x", plan())
    assert not list(tmp_path.iterdir())


def test_the_directory_of_a_writer_that_was_killed_before_it_began_goes(tmp_path: Path) -> None:
    unborn, with_file = tmp_path / "20240101T000000Z-x", tmp_path / "20240101T000000Z-y"
    for path in (unborn, with_file):
        (path / "parts").mkdir(parents=True)
        (path / ".lock").touch()
    (with_file / "parts" / "file").touch()
    (unborn / ".run.json-abc").touch()
    RunWriter.create(tmp_path, "new", plan()).finish()
    assert not unborn.exists() and with_file.is_dir()


def test_an_unfinished_file_of_a_killed_writer_goes(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, "x", plan())
    writer.finish()
    (writer.path / ".run.json-abc").touch()
    RunWriter.reopen(writer.path).finish()
    assert not (writer.path / ".run.json-abc").exists()
