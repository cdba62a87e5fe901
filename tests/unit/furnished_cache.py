# SPDX-License-Identifier: GPL-2.0-only
"""A cache that has everything that a plan asks for, without an hour of builds; and a count of the processes started."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from fake_tree import write_series, write_tree

from orchestrator import process
from orchestrator.cache import Cache
from orchestrator.cli.application import status_of
from orchestrator.guest.keys import keys_artefact

#: What is never looked into when a run is planned, so that an empty directory can stand for it.
_OPAQUE = ("kernel", "image")


def dry_run(place: Path) -> list[str]:
    """The command line of a dry run of a toy kernel and series below `place`, with everything in the cache.

    ``$ORCHESTRATE_CACHE`` must be set.
    """
    source, series = write_tree(place / "linux"), write_series(place / "patches")
    arguments = ["run", "-p", "core-only", "--dry-run", "--source", str(source), "--series", str(series)]
    keys_artefact(Cache.default()).obtain()
    has = Cache.has

    def furnish(self: Cache, kind: str, key: Mapping[str, Any]) -> bool:
        if kind in _OPAQUE and not has(self, kind, key):
            path = self.path(kind, key)
            path.mkdir(parents=True)
            (path / "key.json").write_text(json.dumps(key))
        return has(self, kind, key)

    from orchestrator.events import Events
    from orchestrator.kernel.source import import_source

    import_source(str(source), "linux-source-6.12", Cache.default(), Events())
    with mock.patch.object(Cache, "has", furnish):
        assert status_of(["--quiet", *arguments, "--json"]) == 0
    return arguments


@contextmanager
def counted() -> Iterator[list[Sequence[str]]]:
    """The command lines of the processes that the block starts."""
    started: list[Sequence[str]] = []
    spawn = process.spawn

    def counting(argv: Sequence[str], **options: Any) -> Any:
        started.append(argv)
        return spawn(argv, **options)

    with mock.patch.object(process, "spawn", counting):
        yield started
