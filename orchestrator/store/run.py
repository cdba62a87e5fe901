# SPDX-License-Identifier: GPL-2.0-only
"""Run directories: a writer, cell by cell, and a reader, which can be used at any time.

``run.json`` is written before any slow work, and replaced atomically. Each finished cell is a directory in ``parts/``,
renamed into place, so an interruption leaves complete cells only. The three tables next to ``run.json`` are created
from the parts when the run ends, even if it ends early.

A cell with a damaged or missing file is ``lost``, with the reason, so that it hides no other cell and is measured again
when the run is resumed.
"""

from __future__ import annotations

import hashlib
import json
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
from orchestrator.output import replace_file
from orchestrator.store.manifest import FILE, Manifest, PlannedCell, Role, check_plan, read_manifest
from orchestrator.store.observation import Observation, Sample
from orchestrator.store.outcome import Outcome

# Importing pandas and pyarrow takes half a second, so code that needs them is in orchestrator.store.tables, which is
# imported where it is used.
if TYPE_CHECKING:
    import pandas as pd

_PARTS = "parts"
_LOGS = "logs"
_LOCK = ".lock"
#: Host seconds that another command may hold the lock of a new run directory.
_LOOK_S = 10.0
_NO_END = "the end was not recorded"
_CELL = "cell.json"
_TABLES = ("metrics.parquet", "samples.parquet")
#: SHA-256 of the two tables of a cell. Cells of earlier versions have none.
_DIGESTS = "digests.json"
#: First and last bytes of a Parquet file.
_MAGIC = b"PAR1"
_TIMED_NAME = re.compile(r"\d{8}T\d{6}Z-")


@dataclass(frozen=True)
class CellRow:
    """How one cell ended.

    Args:
        planned: the cell.
        evidence: output that shows what happened; empty if the outcome is ok.
        boot_s, run_s, total_s: duration of the boot, the workload and the whole cell in host seconds; None if it did
            not happen.
        started_utc: start time, ISO 8601.
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
        """ID of the cell."""
        return self.planned.cell

    def to_dict(self) -> dict[str, Any]:
        """One flat row, with the columns of :data:`schema.CELLS`."""
        own = {key: value for key, value in vars(self).items() if key != "planned"}
        return {**asdict(self.planned), "role": self.planned.role.value, **own, "outcome": self.outcome.value}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> CellRow:
        """The inverse of :meth:`to_dict`."""
        names = {each.name for each in fields(PlannedCell)}
        planned = {**{name: row[name] for name in names}, "role": Role(row["role"])}
        own = {key: value for key, value in row.items() if key not in names}
        return cls(**{**own, "planned": PlannedCell(**planned), "outcome": Outcome(row["outcome"])})


class RunWriter:
    """The only writer of a run directory; several threads may use it.

    It is created by :meth:`create` or :meth:`reopen`, and holds the lock of the directory until :meth:`finish`.
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
        """Create ``<results>/<UTC time>-<name>/`` with its ``run.json``.

        Args:
            results: parent directory, created if necessary.
            name: part of the name; characters that are not allowed in directory names become ``-``.
            manifest: content of ``run.json``; the name of the directory, the time and the command as one shell line
                are added.
        """
        now = datetime.now(UTC)
        plain = re.sub(r"[^A-Za-z0-9@=,_+.-]+", "-", name).strip("-.")[:80] or "run"
        check_plan(manifest, results / FILE)
        if results.is_dir():
            _remove_unborn(results)
        path, lock = _locked_directory(results, f"{now:%Y%m%dT%H%M%SZ}-{plain}")
        try:
            manifest = replace(
                manifest,
                run=path.name,
                created_utc=now.isoformat(timespec="seconds"),
                reproduce=shlex.join(manifest.command),
            )
            for directory in (_PARTS, _LOGS):
                (path / directory).mkdir()
            replace_file(path / FILE, manifest.to_json().encode())
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return cls(path, manifest, lock)

    @classmethod
    def reopen(cls, path: Path) -> RunWriter:
        """Open a run directory to resume it.

        Raises:
            UserError: it is not a run directory, has a newer schema, lacks its parts, or is in use by another writer.
        """
        manifest = read_manifest(path)
        if not (path / _PARTS).is_dir():
            raise UserError(f"{path} no longer has {_PARTS}/, so it cannot be resumed; start a new run.")
        lock = _locked(path)
        for left in (path / _PARTS).glob(".*"):  # an incomplete cell of a writer that died
            shutil.rmtree(left)
        for left in path.glob(".*-*"):  # a file that it had not finished
            left.unlink()
        return cls(path, manifest, lock)

    @property
    def manifest(self) -> Manifest:
        """The current content of ``run.json``."""
        return self._manifest

    def write_json(self, name: str, content: object) -> None:
        """Write a JSON file into the run directory atomically."""
        replace_file(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def update_manifest(self, **changes: Any) -> None:
        """Replace fields of ``run.json`` atomically."""
        if "cells" in changes:
            raise ValueError("the planned cells of a run do not change")
        with self._mutex:
            self._manifest = replace(self._manifest, **changes)
            replace_file(self.path / FILE, self._manifest.to_json().encode())

    def plan(self, cell: PlannedCell) -> None:
        """Add a cell to the plan, for a run without a fixed plan; does nothing if it is planned already."""
        with self._mutex:
            if cell.cell in self._planned:
                return
            manifest = replace(self._manifest, cells=(*self._manifest.cells, cell))
            check_plan(manifest, self.path / FILE)
            replace_file(self.path / FILE, manifest.to_json().encode())
            self._manifest = manifest
            self._planned[cell.cell] = cell

    def cell_directory(self, cell: str) -> Path:
        """``logs/<cell>/``, empty for a new attempt.

        Logs of an earlier attempt, if the run is resumed, are kept as ``logs/<cell>.attempt-N``.
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
        """Store the result of a cell, completely or not at all.

        An earlier result of the same cell is kept as ``parts/<cell>.attempt-N``.

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
            digests = {name: _digest(working / name) for name in _TABLES}
            replace_file(working / _DIGESTS, (json.dumps(digests, indent=2) + "\n").encode())
            replace_file(working / _CELL, (json.dumps(row.to_dict(), indent=2) + "\n").encode())
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
        """IDs of the cells that ended ok and need not run again."""
        return frozenset(row.cell for row in self.ends() if row.outcome is Outcome.OK)

    def has_ended(self, cell: str) -> bool:
        """Whether an end of the cell is recorded, whatever it is, and undamaged."""
        directory = self.path / _PARTS / cell
        return (directory / _CELL).is_file() and isinstance(_end_of(directory), CellRow)

    def ends(self) -> list[CellRow]:
        """The recorded ends of cells, in the order of the plan."""
        return list(_ends(self._planned, _judged(self.path, self._planned)))

    def outcomes(self) -> dict[Outcome, int]:
        """Number of cells per outcome, without cells that have not ended."""
        counts: dict[Outcome, int] = {}
        for row in self.ends():
            counts[row.outcome] = counts.get(row.outcome, 0) + 1
        return counts

    def finish(self) -> None:
        """Write the three tables from all results, and release the directory.

        This is also done for an interrupted run: a planned cell without a result is a row with the outcome ``lost``.
        """
        from orchestrator.store import tables

        judged = _judged(self.path, self._planned)
        tables.write(tables.cells_table(_cell_rows(self._planned, judged)), self.path / "cells.parquet")
        for name in ("metrics", "samples"):
            tables.concatenate(_part_files(self.path, name, judged), name, self.path / f"{name}.parquet")
        self.update_manifest(ended_utc=datetime.now(UTC).isoformat(timespec="seconds"))
        self._lock.release()

    def _planned_entry(self, cell: str) -> PlannedCell:
        return self._planned[cell]

    def _attempt_of(self, cell: str) -> int:
        """Number of the attempt to put aside, for both its logs and its result."""
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
    """The current state of a run directory, whether or not the run has finished.

    Args:
        path: the directory.
        manifest: content of its ``run.json``.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path) -> Run:
        """Read ``run.json``; tables are read when first used.

        Raises:
            UserError: it is not a run directory, or written by a newer version.
        """
        return cls(path, read_manifest(path))

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.path.resolve().name

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per planned cell, in the order of the plan; columns as in :data:`schema.CELLS`."""
        from orchestrator.store import tables

        whole = self._whole_cells()
        if whole is not None:
            return tables.read([whole], "cells")
        frame: pd.DataFrame = tables.cells_table(_cell_rows(self._planned, self._judged)).to_pandas()
        return frame

    @cached_property
    def _planned(self) -> Mapping[str, PlannedCell]:
        return {entry.cell: entry for entry in self.manifest.cells}

    @cached_property
    def _judged(self) -> Mapping[str, CellRow | str]:
        return _judged(self.path, self._planned)

    def outcomes(self) -> dict[str, int]:
        """Number of planned cells per outcome, most frequent first. This is fast, for lists of runs."""
        whole = self._whole_cells()
        if whole is None:
            ends = [row["outcome"] for row in _cell_rows(self._planned, self._judged)]
        else:
            from orchestrator.store import tables

            ends = tables.read_column(whole, "outcome")
        return dict(Counter(ends).most_common())

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row per observation; columns as in :data:`schema.METRICS`."""
        return self._table("metrics")

    @cached_property
    def ok_cells(self) -> pd.DataFrame:
        """The rows of :attr:`cells` that ended ok."""
        return self.cells[self.cells["outcome"] == Outcome.OK.value]

    @cached_property
    def ok_metrics(self) -> pd.DataFrame:
        """The rows of :attr:`metrics` of cells that ended ok."""
        return self.metrics[self.metrics["cell"].isin(self.ok_cells["cell"])]

    @cached_property
    def samples(self) -> pd.DataFrame:
        """All samples; columns as in :data:`schema.SAMPLES`. This is large; prefer :meth:`samples_of`."""
        return self.samples_of()

    def samples_of(
        self,
        *,
        cells: Collection[str] | None = None,
        phases: Collection[str] | None = None,
        counters: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """The samples of these cells, phases and counters; None stands for all."""
        frame = self._table("samples", {"cell": cells, "phase": phases, "counter": counters})
        # Arrow's nullable integers would become floats, and node 1 would be printed as 1.0.
        frame["node"] = frame["node"].astype("Int32")
        return frame

    def log_directory(self, cell: str) -> Path:
        """``logs/<cell>/``, which may not exist."""
        return self.path / _LOGS / cell

    def workload_records(self, cell: str) -> Iterator[dict[str, Any]]:
        """The JSON lines in the output of the cell's workload; an incomplete line is skipped."""
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
        """The consolidated table, if there are no parts, which take precedence."""
        whole = self.path / "cells.parquet"
        return whole if not (self.path / _PARTS).is_dir() and whole.is_file() else None

    def _table(self, name: str, selected: Mapping[str, Collection[str] | None] | None = None) -> pd.DataFrame:
        from orchestrator.store import tables

        if (self.path / _PARTS).is_dir():
            files = _part_files(self.path, name, self._judged)
        else:
            files = [path for path in [self.path / f"{name}.parquet"] if path.is_file()]
        return tables.read(files, name, selected)


def run_directories(results: Path) -> list[Path]:
    """All run directories in `results`, by name."""
    return sorted(path.parent for path in results.glob(f"*/{FILE}"))


def find_run(results: Path, name: str | Path) -> Path:
    """Find a run directory.

    Args:
        results: directory of the run directories.
        name: a path, the name of a run directory, a unique prefix or suffix of one, or ``latest``.

    Raises:
        UserError: no directory or several match.
    """
    text = str(name)
    as_path = Path(text).expanduser()
    if (as_path / FILE).is_file():
        return as_path
    if as_path.is_dir() and ("/" in text or not (results / text).is_dir()):
        raise UserError(f"{text} is not a run directory: it has no {FILE}.")
    names = [path.name for path in run_directories(results)]
    if not names:
        raise UserError(f"there is no run in {results} yet; start one with: orchestrate run --patchset NAME.")
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
        raise UserError(f"{text} matches {len(fitting)} runs ({shown}); give more of the name.")
    raise UserError(
        f"no run in {results} is named {text}; `orchestrate results list` shows them; the last is {latest}."
    )


def _make_directory(results: Path, name: str) -> Path:
    results.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        path = results / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue  # another run started in the same second
        return path
    raise UserError(f"{results / name} and 999 more exist; choose another --name.")


def _locked_directory(results: Path, name: str) -> tuple[Path, FileLock]:
    """A new run directory, and the lock of its writer."""
    while True:
        path = _make_directory(results, name)
        # Another command may just look whether the directory of a killed writer is left.
        lock = FileLock(path / _LOCK, timeout=_LOOK_S, thread_local=False)
        try:
            lock.acquire()
        except FileNotFoundError:
            continue
        if path.is_dir():
            return path, lock
        lock.release()


def _remove_unborn(results: Path) -> None:
    """Remove run directories whose writer was killed before there was a run.json."""
    for path in results.iterdir():
        if not _TIMED_NAME.match(path.name) or not path.is_dir() or (path / FILE).exists():
            continue
        if any(child.is_file() or child.is_symlink() for child in path.rglob("[!.]*")):
            continue  # it is something else
        try:
            lock = _locked(path)
        except UserError:  # its writer lives
            continue
        if not (path / FILE).exists():
            shutil.rmtree(path, ignore_errors=True)
        lock.release()


def _locked(path: Path) -> FileLock:
    lock = FileLock(path / _LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"another process is writing to {path}; wait until it ends.") from None
    return lock


def _judged(path: Path, planned: Iterable[str]) -> dict[str, CellRow | str]:
    """Per cell with a recorded result, in the order of the plan: the result, or what is wrong with its files."""
    directories = {cell: path / _PARTS / cell for cell in planned}
    return {cell: _end_of(place) for cell, place in directories.items() if (place / _CELL).exists()}


def _ends(planned: Mapping[str, PlannedCell], judged: Mapping[str, CellRow | str]) -> Iterator[CellRow]:
    """The recorded results; a damaged one is lost, with the reason."""
    for cell, end in judged.items():
        if isinstance(end, str):
            what = f"the recorded result is damaged: {_PARTS}/{cell}/{end}"
            end = CellRow(planned[cell], outcome=Outcome.LOST, evidence=what)
        yield end


def _end_of(directory: Path) -> CellRow | str:
    """The recorded result of a cell, or what is wrong with its files."""
    try:
        row = CellRow.from_dict(json.loads((directory / _CELL).read_text(encoding="utf-8")))
        if row.cell != directory.name:
            return f"{_CELL} belongs to another cell, {row.cell}"
    except OSError as error:
        return f"{_CELL} cannot be read ({error.strerror or error})"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{_CELL} is not the result of a cell"
    return _fault_of_tables(directory) or row


def _fault_of_tables(directory: Path) -> str | None:
    """What is wrong with the tables of a cell; None if they are as they were written."""
    try:
        digests = json.loads((directory / _DIGESTS).read_text(encoding="utf-8"))
        expected = {name: str(digests[name]) for name in _TABLES}
    except FileNotFoundError:
        expected = {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return f"{_DIGESTS} is damaged"
    for name in _TABLES:
        try:
            content = (directory / name).read_bytes()
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
        is_whole = len(content) > 2 * len(_MAGIC) and content.startswith(_MAGIC) and content.endswith(_MAGIC)
        if not is_whole or expected.get(name) not in (None, hashlib.sha256(content).hexdigest()):
            return f"{name} is damaged"
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cell_rows(
    planned: Mapping[str, PlannedCell], judged: Mapping[str, CellRow | str]
) -> list[dict[str, Any]]:
    """One row per planned cell, whether or not it has ended."""
    ends = {row.cell: row for row in _ends(planned, judged)}
    return [
        (ends.get(cell) or CellRow(entry, outcome=Outcome.LOST, evidence=_NO_END)).to_dict()
        for cell, entry in planned.items()
    ]


def _part_files(path: Path, name: str, judged: Mapping[str, CellRow | str]) -> list[Path]:
    """The undamaged tables of this name."""
    return [
        path / _PARTS / cell / f"{name}.parquet" for cell, end in judged.items() if isinstance(end, CellRow)
    ]
