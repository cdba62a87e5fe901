# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import pytest

from orchestrator.store.schema import CELLS, METRICS, SAMPLES, TABLES, unit_of
from orchestrator.store.version import SCHEMA_VERSION


def test_the_tables_have_the_documented_columns() -> None:
    assert CELLS.names == [
        "cell",
        "variant",
        "role",
        "workload",
        "repetition",
        "seed",
        "outcome",
        "evidence",
        "boot_s",
        "run_s",
        "total_s",
        "started_utc",
    ]
    assert METRICS.names == ["cell", "variant", "workload", "repetition", "metric", "unit", "value"]
    assert SAMPLES.names == ["cell", "guest_s", "host_s", "phase", "source", "node", "counter", "value"]


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_table_says_its_schema_version_and_the_unit_of_every_number(name: str) -> None:
    schema = TABLES[name]
    assert schema.metadata[b"orchestrate.schema"] == str(SCHEMA_VERSION).encode()
    for column in schema.names:
        if column.endswith("_s") or column in ("value", "started_utc"):
            assert unit_of(schema, column)


def test_a_column_without_a_unit_has_an_empty_one() -> None:
    assert unit_of(CELLS, "variant") == ""
