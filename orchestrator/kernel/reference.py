# SPDX-License-Identifier: GPL-2.0-only
"""The reference files: the blobs that a three-way merge needs, for hosts without the original source.

The archive of a series has every file that the series touches, as it is in each point release that the patches were
made on: one directory per release. The ``index`` lines of the patches name these blobs, and those that earlier stages
create from them; all exist once the stages are applied to the files of the archive.
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
    """The files of each point release in the archive, as source trees that stages can be applied to.

    Raises:
        UserError: the file is not an archive.
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
