# SPDX-License-Identifier: GPL-2.0-only
"""The columns of the three tables of a run, with units in the metadata of the fields.

The files are Parquet. Units of metrics differ per row, so they are a column. The unit of a counter depends on its
source: pages for ``nr_*`` in vmstat, events for the rest of vmstat, KiB for meminfo.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from orchestrator.store.version import SCHEMA_VERSION

_VERSION_KEY = b"orchestrate.schema"


def _field(name: str, kind: pa.DataType, unit: str = "", *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={b"unit": unit.encode()} if unit else None)


def _schema(*fields: pa.Field) -> pa.Schema:
    return pa.schema(list(fields), metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()})


#: One row per planned cell. A cell that has not ended has the outcome ``lost`` and no durations.
CELLS: Final = _schema(
    _field("cell", pa.string()),
    _field("variant", pa.string()),
    _field("role", pa.string()),
    _field("workload", pa.string()),
    _field("repetition", pa.int32()),
    _field("seed", pa.int64()),
    _field("outcome", pa.string()),
    _field("evidence", pa.string()),
    _field("boot_s", pa.float64(), "host seconds", nullable=True),
    _field("run_s", pa.float64(), "host seconds", nullable=True),
    _field("total_s", pa.float64(), "host seconds", nullable=True),
    _field("started_utc", pa.string(), "ISO 8601, UTC", nullable=True),
)

#: One row per observation.
METRICS: Final = _schema(
    _field("cell", pa.string()),
    _field("variant", pa.string()),
    _field("workload", pa.string()),
    _field("repetition", pa.int32()),
    _field("metric", pa.string()),
    _field("unit", pa.string()),
    _field("value", pa.float64(), "see the column unit"),
)

#: One row per sample of a counter; ``node`` is null for the whole machine.
SAMPLES: Final = _schema(
    _field("cell", pa.string()),
    _field("guest_s", pa.float64(), "guest seconds since boot"),
    _field("host_s", pa.float64(), "host seconds since the epoch"),
    _field("phase", pa.string()),
    _field("source", pa.string()),
    _field("node", pa.int32(), nullable=True),
    _field("counter", pa.string()),
    _field("value", pa.int64(), "unit of the source"),
)

#: File name without suffix -> schema.
TABLES: Final = {"cells": CELLS, "metrics": METRICS, "samples": SAMPLES}


def unit_of(schema: pa.Schema, column: str) -> str:
    """The unit of a column; empty if it has none.

    >>> unit_of(CELLS, "boot_s")
    'host seconds'
    """
    metadata: dict[bytes, bytes] = schema.field(column).metadata or {}
    return metadata.get(b"unit", b"").decode()
