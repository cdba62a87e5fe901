# SPDX-License-Identifier: GPL-2.0-only
"""The three tables of a run directory as Parquet files; all code that needs pyarrow."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.errors import UserError
from orchestrator.store.schema import CELLS, METRICS, SAMPLES, TABLES

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.store.observation import Observation, Sample
    from orchestrator.store.run import CellRow


def write(table: pa.Table, path: Path) -> None:
    """Write a table atomically."""
    temporary = path.with_name(f".{path.name}.new")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)


def cells_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """One row per cell; columns as :data:`schema.CELLS`."""
    return pa.Table.from_pylist(list(rows), schema=CELLS)


def metrics_table(row: CellRow, observations: Iterable[Observation]) -> pa.Table:
    """The observations of one cell; columns as :data:`schema.METRICS`."""
    rows = [
        {
            "cell": row.cell,
            "variant": row.planned.variant,
            "workload": row.planned.workload,
            "repetition": row.planned.repetition,
            "metric": each.metric,
            "unit": each.unit,
            "value": float(each.value),
        }
        for each in observations
    ]
    return pa.Table.from_pylist(rows, schema=METRICS)


def samples_table(cell: str, samples: Iterable[Sample]) -> pa.Table:
    """The samples of one cell; columns as :data:`schema.SAMPLES`."""
    # By column: a cell has hundreds of thousands of samples, and one dict per sample would take seconds.
    kept = list(samples)
    columns: dict[str, list[Any]] = {"cell": [cell] * len(kept)}
    for name in SAMPLES.names[1:]:
        columns[name] = [getattr(each, name) for each in kept]
    # The kernel prints a counter below zero as an unsigned number.
    columns["value"] = [value - 2**64 if value >= 2**63 else value for value in columns["value"]]
    return pa.table(columns, schema=SAMPLES)


def concatenate(files: Iterable[Path], name: str, final: Path) -> None:
    """Concatenate many files to one table, one file at a time, since the samples of a run may not fit in memory.

    Args:
        name: name of the table, a key of :data:`schema.TABLES`.
    """
    temporary = final.with_name(f".{final.name}.new")
    with pq.ParquetWriter(temporary, TABLES[name], compression="zstd") as writer:
        for file in files:
            # Not pq.read_table(), which takes three times as long for a small file.
            writer.write_table(pq.ParquetFile(file).read().cast(TABLES[name]))
    temporary.replace(final)


def read(
    files: Sequence[Path], name: str, selected: Mapping[str, Collection[str] | None] | None = None
) -> pd.DataFrame:
    """Read a table from several files, in the order of the files.

    Args:
        name: name of the table, a key of :data:`schema.TABLES`.
        selected: column -> values to select; None stands for all.

    Raises:
        UserError: one of the files is damaged.
    """
    import pyarrow.dataset as ds  # imported here, since it imports pandas

    schema = TABLES[name]
    if not files:
        nothing: pd.DataFrame = schema.empty_table().to_pandas()
        return nothing
    condition: ds.Expression | None = None
    for column, wanted in (selected or {}).items():
        if wanted is not None:
            # The explicit type is for an empty collection, which selects nothing.
            one = ds.field(column).isin(pa.array(sorted(wanted), pa.string()))
            condition = one if condition is None else condition & one
    # A list of files keeps the order of the plan, so results computed from the rows are reproducible.
    try:
        dataset = ds.dataset([str(path) for path in files], schema=schema, format="parquet")
        found: pd.DataFrame = dataset.to_table(filter=condition).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(files, error) from error
    return found


def _damaged(files: Sequence[Path], error: Exception) -> UserError:
    """The error for the first of `files` that cannot be read."""
    for file in files:
        try:
            pq.ParquetFile(file).read()
        except (pa.ArrowException, OSError) as its_own:
            return UserError(f"{file} is damaged: {_first_line(its_own)}.")
    return UserError(f"{files[0]} is damaged: {_first_line(error)}.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def read_column(file: Path, column: str) -> list[Any]:
    """The values of one column of a file.

    Raises:
        UserError: the file is damaged.
    """
    # Not pq.read_table(), which imports pandas.
    try:
        values: list[Any] = pq.ParquetFile(file).read(columns=[column]).column(column).to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _damaged([file], error) from error
    return values
