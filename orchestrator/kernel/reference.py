# SPDX-License-Identifier: GPL-2.0-only
"""What the patches were made against: the blobs that a three-way merge needs, on hosts without that source.

A series keeps the files it touches, as they are in the point releases its patches were made on, in an archive: one
directory a release. The patches' ``index`` lines name these files, and what earlier stages made of them; both exist
when stages are applied to the archive's files.
"""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.cache import Cache, file_digest
from orchestrator.events import Events
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.source import SourceTree, read_archive

_KIND = "reference"


def reference_sources(archive: Path, cache: Cache) -> list[SourceTree]:
    """The files of each point release in the archive, as sources that stages can be applied to.

    Raises:
        UserError: it is no archive.
    """

    def make(directory: Path) -> None:
        repository = Repository.create(directory / "repository.git")
        with Events().step("reference") as step:
            whole = read_archive(archive, repository, step)
        facts = []
        for line in repository.git("ls-tree", whole).stdout.splitlines():
            _, _, tree, version = line.split()
            facts.append([version, repository.commit(tree, f"Linux {version}"), tree])
        (directory / "reference.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")

    directory = cache.obtain(_KIND, {"archive": file_digest(archive)}, make)
    facts = json.loads((directory / "reference.json").read_text(encoding="utf-8"))
    return [
        SourceTree(directory / "repository.git", commit, tree, version, f"the reference {version}")
        for version, commit, tree in facts
    ]
