# SPDX-License-Identifier: GPL-2.0-only
"""Run directories: what writes one, cell by cell, and what reads it back at any moment of its life.

``run.json`` is there before anything slow starts and is replaced atomically. Each cell that ends is one
directory below ``parts/``, renamed into place, so an interruption leaves whole cells only. The three tables
beside ``run.json`` are made of the parts when the run ends, also when it ends early.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from orchestrator.errors import UserError
from orchestrator.store.manifest import FILE, Manifest, PlannedCell, Role, check_plan, read_manifest
from orchestrator.store.observation import Observation, Sample
from orchestrator.store.outcome import Outcome

# pandas and pyarrow take half a second to import, which commands that read no table should not wait for: what needs
# them is in orchestrator.store.tables, and imported where it is used.
if TYPE_CHECKING:
    import pandas as pd

_PARTS = "parts"
_LOGS = "logs"
_LOCK = ".lock"
_NO_END = "no end was recorded"
_TIMED_NAME = re.compile(r"\d{8}T\d{6}Z-")


@dataclass(frozen=True)
class CellRow:
    """How one cell ended.

    Args:
        planned: the cell.
        evidence: for a person; empty where the outcome is ok.
        boot_s, run_s, total_s: host seconds of the boot, of the workload and of everything; None where it did
            not come to that.
        started_utc: ISO 8601.
    """

    planned: PlannedCell
    outcome: Outcome
    evidence: str = ""
    boot_s: float | None = None
    run_s: float | None = None
    total_s: float | None = None
    started_utc: str | None = None

    @property
    def cell(self) -> str:
        """Id of the cell."""
        return self.planned.cell

    def to_dict(self) -> dict[str, Any]:
        """One flat row, as :data:`schema.CELLS`."""
        own = {key: value for key, value in vars(self).items() if key != "planned"}
        return {**asdict(self.planned), "role": self.planned.role.value, **own, "outcome": self.outcome.value}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> CellRow:
        """The row that :meth:`to_dict` gave."""
        names = {each.name for each in fields(PlannedCell)}
        planned = {**{name: row[name] for name in names}, "role": Role(row["role"])}
        own = {key: value for key, value in row.items() if key not in names}
        return cls(**{**own, "planned": PlannedCell(**planned), "outcome": Outcome(row["outcome"])})


class RunWriter:
    """The one writer of a run directory; several threads may record through it.

    Made by :meth:`create` or :meth:`reopen`. It holds the directory's lock until :meth:`finish`.
    """

    def __init__(self, path: Path, manifest: Manifest, lock: FileLock) -> None:
        self.path = path
        self._manifest = manifest
        self._planned = {entry.cell: entry for entry in manifest.cells}
        self._lock = lock
        self._mutex = threading.Lock()
        self._attempt: dict[str, int] = {}
        self._begun: set[str] = set()

    @classmethod
    def create(cls, results: Path, name: str, manifest: Manifest) -> RunWriter:
        """Make ``<results>/<UTC time>-<name>/`` with its ``run.json``.

        Args:
            results: made where it does not exist.
            name: characters that do not belong in a directory name become ``-``.
            manifest: what ``run.json`` says; the directory's name, the time and the command as one line for a shell
                are added.
        """
        now = datetime.now(UTC)
        plain = re.sub(r"[^A-Za-z0-9@=,_+.-]+", "-", name).strip("-.")[:80] or "run"
        check_plan(manifest, results / FILE)
        path = _make_directory(results, f"{now:%Y%m%dT%H%M%SZ}-{plain}")
        lock = _locked(path)
        manifest = replace(
            manifest,
            run=path.name,
            created_utc=now.isoformat(timespec="seconds"),
            reproduce=shlex.join(manifest.command),
        )
        for directory in (_PARTS, _LOGS):
            (path / directory).mkdir()
        _replace(path / FILE, manifest.to_json())
        return cls(path, manifest, lock)

    @classmethod
    def reopen(cls, path: Path) -> RunWriter:
        """Open a run directory to finish it.

        Raises:
            UserError: not a run directory, of a newer schema, without its parts, or being written to.
        """
        manifest = read_manifest(path)
        if not (path / _PARTS).is_dir():
            raise UserError(f"{path} has no {_PARTS}/ any more, so it cannot be finished; start a new run.")
        lock = _locked(path)
        for left in (path / _PARTS).glob(".*"):  # a cell whose writer died between two files
            shutil.rmtree(left)
        return cls(path, manifest, lock)

    @property
    def manifest(self) -> Manifest:
        """What ``run.json`` says now."""
        return self._manifest

    def update_manifest(self, **changes: Any) -> None:
        """Replace fields of ``run.json``; a reader sees the old file or the new one."""
        if "cells" in changes:
            raise ValueError("the planned cells of a run do not change")
        with self._mutex:
            self._manifest = replace(self._manifest, **changes)
            _replace(self.path / FILE, self._manifest.to_json())

    def plan(self, cell: PlannedCell) -> None:
        """Add a cell to the plan, for a run that decides as it goes; one that is planned already stays as it is."""
        with self._mutex:
            if cell.cell in self._planned:
                return
            manifest = replace(self._manifest, cells=(*self._manifest.cells, cell))
            check_plan(manifest, self.path / FILE)
            _replace(self.path / FILE, manifest.to_json())
            self._manifest = manifest
            self._planned[cell.cell] = cell

    def cell_directory(self, cell: str) -> Path:
        """``logs/<cell>/``, empty for a new attempt.

        What an earlier attempt, of a run that is being resumed, left there is kept as
        ``logs/<cell>.attempt-N``.
        """
        self._planned_entry(cell)
        directory = self.path / _LOGS / cell
        with self._mutex:
            if cell not in self._begun:
                self._begun.add(cell)
                if directory.exists():
                    directory.rename(directory.with_name(f"{cell}.attempt-{self._attempt_of(cell)}"))
            directory.mkdir(parents=True, exist_ok=True)
        return directory

    def record(
        self, row: CellRow, observations: Iterable[Observation] = (), samples: Iterable[Sample] = ()
    ) -> None:
        """Keep the end of one cell: all of it, or nothing.

        An earlier end of the same cell is kept as ``parts/<cell>.attempt-N``.

        Raises:
            KeyError: the cell was not planned.
            ValueError: the row contradicts the plan.
        """
        planned = self._planned_entry(row.cell)
        if row.planned != planned:
            raise ValueError(f"cell {row.cell} is {row.planned}, planned was {planned}")
        from orchestrator.store import tables

        parts = self.path / _PARTS
        working = Path(tempfile.mkdtemp(prefix=f".{row.cell}-", dir=parts))
        try:
            tables.write(tables.metrics_table(row, observations), working / "metrics.parquet")
            tables.write(tables.samples_table(row.cell, samples), working / "samples.parquet")
            _replace(working / "cell.json", json.dumps(row.to_dict(), indent=2) + "\n")
            working.chmod(0o755)
            with self._mutex:
                final = parts / row.cell
                if final.exists():
                    final.rename(parts / f"{row.cell}.attempt-{self._attempt_of(row.cell)}")
                self._attempt.pop(row.cell, None)
                working.rename(final)
        except BaseException:
            shutil.rmtree(working, ignore_errors=True)
            raise

    def completed_cells(self) -> frozenset[str]:
        """Ids of the cells that ended ok and need not be run again."""
        return frozenset(row.cell for row in _ends(self.path, self._planned) if row.outcome is Outcome.OK)

    def has_ended(self, cell: str) -> bool:
        """Whether an end of the cell is recorded, whatever it is."""
        return (self.path / _PARTS / cell / "cell.json").is_file()

    def outcomes(self) -> dict[Outcome, int]:
        """How many of the planned cells ended how; a cell without an end is not in it."""
        counts: dict[Outcome, int] = {}
        for row in _ends(self.path, self._planned):
            counts[row.outcome] = counts.get(row.outcome, 0) + 1
        return counts

    def finish(self) -> None:
        """Make the three tables of what there is, and let go of the directory.

        For a run that was interrupted too: a planned cell without an end is a row with the outcome ``lost``.
        """
        from orchestrator.store import tables

        rows = _cell_rows(self.path, self._planned.values())
        tables.write(tables.cells_table(rows), self.path / "cells.parquet")
        for name in ("metrics", "samples"):
            tables.concatenate(
                _part_files(self.path, name, self._planned), name, self.path / f"{name}.parquet"
            )
        self.update_manifest(ended_utc=datetime.now(UTC).isoformat(timespec="seconds"))
        self._lock.release()

    def _planned_entry(self, cell: str) -> PlannedCell:
        return self._planned[cell]

    def _attempt_of(self, cell: str) -> int:
        """Number of the attempt that is being put aside, the same for its logs and for its end."""
        if cell not in self._attempt:
            taken = [
                int(path.name.rpartition("-")[2])
                for directory in (_PARTS, _LOGS)
                for path in (self.path / directory).glob("*.attempt-*")
                if path.name.rpartition(".attempt-")[0] == cell
            ]
            self._attempt[cell] = max(taken, default=0) + 1
        return self._attempt[cell]


class Run:
    """A run directory as it is now, finished or not.

    Args:
        path: the directory.
        manifest: the content of its ``run.json``.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path) -> Run:
        """Read ``run.json``; tables are read when they are first asked for.

        Raises:
            UserError: not a run directory, or written by a newer version.
        """
        return cls(path, read_manifest(path))

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.resolve().name

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row a planned cell, in the order of the plan; columns as :data:`schema.CELLS`."""
        from orchestrator.store import tables

        whole = self._whole_cells()
        if whole is not None:
            return tables.read([whole], "cells")
        frame: pd.DataFrame = tables.cells_table(_cell_rows(self.path, self.manifest.cells)).to_pandas()
        return frame

    def outcomes(self) -> dict[str, int]:
        """How many of the planned cells ended how, the most frequent first; quick, for a list of runs."""
        whole = self._whole_cells()
        if whole is None:
            ends = [row["outcome"] for row in _cell_rows(self.path, self.manifest.cells)]
        else:
            from orchestrator.store import tables

            ends = tables.read_column(whole, "outcome")
        return dict(Counter(ends).most_common())

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row an observation; columns as :data:`schema.METRICS`."""
        return self._table("metrics")

    @cached_property
    def samples(self) -> pd.DataFrame:
        """Every sample; columns as :data:`schema.SAMPLES`. Large: prefer :meth:`samples_of`."""
        return self.samples_of()

    def samples_of(
        self,
        *,
        cells: Collection[str] | None = None,
        phases: Collection[str] | None = None,
        counters: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """The samples of these cells, phases and counters; None stands for all of them."""
        frame = self._table("samples", {"cell": cells, "phase": phases, "counter": counters})
        # Arrow's nullable integer would arrive as float, and node 1 would be printed as 1.0.
        frame["node"] = frame["node"].astype("Int32")
        return frame

    def log_directory(self, cell: str) -> Path:
        """``logs/<cell>/``; it need not exist."""
        return self.path / _LOGS / cell

    def workload_records(self, cell: str) -> Iterator[dict[str, Any]]:
        """The JSON lines that the cell's workload printed; a line that it did not finish is passed over."""
        try:
            text = (self.log_directory(cell) / "workload.jsonl").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record

    def _whole_cells(self) -> Path | None:
        """The consolidated table, where there are no parts (the truth) to read instead."""
        whole = self.path / "cells.parquet"
        return whole if not (self.path / _PARTS).is_dir() and whole.is_file() else None

    def _table(self, name: str, selected: Mapping[str, Collection[str] | None] | None = None) -> pd.DataFrame:
        from orchestrator.store import tables

        if (self.path / _PARTS).is_dir():
            files = _part_files(self.path, name, [entry.cell for entry in self.manifest.cells])
        else:
            files = [path for path in [self.path / f"{name}.parquet"] if path.is_file()]
        return tables.read(files, name, selected)


def run_directories(results: Path) -> list[Path]:
    """Every run directory of `results`, by name."""
    return sorted(path.parent for path in results.glob(f"*/{FILE}"))


def find_run(results: Path, name: str | Path) -> Path:
    """The run directory that `name` means.

    Args:
        results: where run directories are.
        name: a path; a directory's name there, or the beginning or end of one where that is unique; or
            ``latest``.

    Raises:
        UserError: nothing or more than one directory fits.
    """
    text = str(name)
    as_path = Path(text).expanduser()
    if (as_path / FILE).is_file():
        return as_path
    if as_path.is_dir() and ("/" in text or not (results / text).is_dir()):
        raise UserError(f"{text} is not a run directory: it has no {FILE}.")
    names = [path.name for path in run_directories(results)]
    if not names:
        raise UserError(f"there is no run in {results} yet; make one with: orchestrate run --patchset NAME.")
    latest = ([each for each in names if _TIMED_NAME.match(each)] or names)[-1]
    if text == "latest":
        return results / latest
    if text in names:
        return results / text
    fitting = [each for each in names if text and (each.startswith(text) or each.endswith(text))]
    if len(fitting) == 1:
        return results / fitting[0]
    if fitting:
        shown = ", ".join(fitting[-4:])
        raise UserError(f"{text} could be {len(fitting)} runs ({shown}); write more of the name.")
    raise UserError(
        f"no run in {results} is named {text}; `orchestrate results list` shows them, the last is {latest}."
    )


def _make_directory(results: Path, name: str) -> Path:
    results.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        path = results / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue  # another run began in the same second
        return path
    raise UserError(f"{results / name} and 999 more exist; choose another --name.")


def _locked(path: Path) -> FileLock:
    lock = FileLock(path / _LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"another process is writing to {path}; wait until it has ended.") from None
    return lock


def _replace(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(temporary).chmod(0o644)  # mkstemp makes it private
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _ends(path: Path, planned: Iterable[str]) -> Iterator[CellRow]:
    """The recorded ends, in the order of the plan."""
    for cell in planned:
        try:
            text = (path / _PARTS / cell / "cell.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        yield CellRow.from_dict(json.loads(text))


def _cell_rows(path: Path, planned: Iterable[PlannedCell]) -> list[dict[str, Any]]:
    """One row per planned cell, whether it has ended or not."""
    plan = list(planned)
    ends = {row.cell: row for row in _ends(path, [entry.cell for entry in plan])}
    return [
        (ends.get(entry.cell) or CellRow(entry, outcome=Outcome.LOST, evidence=_NO_END)).to_dict()
        for entry in plan
    ]


def _part_files(path: Path, name: str, planned: Iterable[str]) -> list[Path]:
    files = (path / _PARTS / cell / f"{name}.parquet" for cell in planned)
    return [file for file in files if file.is_file()]
