# SPDX-License-Identifier: GPL-2.0-only
"""A source with the stages of a series applied."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cache import Cache
from orchestrator.errors import UserError
from orchestrator.events import Events
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.series import Stage
from orchestrator.kernel.source import SourceTree

_KIND = "tree"


@dataclass(frozen=True)
class PatchedTree:
    """A source with stages applied.

    Args:
        repository: git directory that has the commit; it borrows the source's objects.
        commit: the last stage, or the source itself where there is none.
        tree: its tree id: equal ids are equal sources.
        source, stages: what it was made of.
    """

    repository: Path
    commit: str
    tree: str
    source: SourceTree
    stages: tuple[Stage, ...]


def apply_stages(source: SourceTree, stages: Sequence[Stage], cache: Cache, events: Events) -> PatchedTree:
    """Apply stages with ``git am -3``, or find the result in the cache.

    Raises:
        UserError: a stage does not apply; the sentence names it and the conflicting files.
    """
    if not stages:
        return PatchedTree(source.repository, source.commit, source.tree, source, ())

    def make(directory: Path) -> None:
        with events.step("apply stages") as step:
            repository = Repository.create(directory / "repository.git", borrow_from=source.repository)
            start, todo = _start(source, stages, cache, repository)
            work_tree = directory / "work"
            work_tree.mkdir()
            # Only the files that the patches touch are laid out: the tree has 85,000 others.
            _check_out_touched(repository, start, todo, work_tree)
            for done, stage in enumerate(todo, len(stages) - len(todo) + 1):
                _apply(repository, stage, work_tree, source)
                step.progress(done, len(stages), "stages", stage.name)
            commit = repository.git("rev-parse", "HEAD").stdout.strip()
            tree = repository.git("rev-parse", "HEAD^{tree}").stdout.strip()
            shutil.rmtree(work_tree)
            repository.git("config", "--unset", "core.sparseCheckout")  # whoever lays it out wants all of it
            (repository.path / "index").unlink(
                missing_ok=True
            )  # larger than everything else, and not needed any more
            facts = {"commit": commit, "tree": tree}
            (directory / "tree.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")

    directory = cache.obtain(_KIND, tree_key(source, stages), make)
    facts = json.loads((directory / "tree.json").read_text(encoding="utf-8"))
    return PatchedTree(directory / "repository.git", facts["commit"], facts["tree"], source, tuple(stages))


def tree_key(source: SourceTree, stages: Sequence[Stage]) -> dict[str, object]:
    """What an applied series is known by in the cache."""
    return {"source": source.commit, "stages": [stage.digest for stage in stages]}


def _start(
    source: SourceTree, stages: Sequence[Stage], cache: Cache, repository: Repository
) -> tuple[str, Sequence[Stage]]:
    """The commit to start from, with its objects in `repository`, and the stages that are still to be applied.

    The objects of a cached shorter series are copied, not borrowed: they are few, and its cache entry may go.
    """
    for length in range(len(stages) - 1, 0, -1):
        key = tree_key(source, stages[:length])
        if cache.has(_KIND, key):
            shorter = cache.path(_KIND, key)
            ours = repository.path / "objects"
            shutil.copytree(
                shorter / "repository.git" / "objects",
                ours,
                ignore=shutil.ignore_patterns("info"),
                dirs_exist_ok=True,
            )
            facts = json.loads((shorter / "tree.json").read_text(encoding="utf-8"))
            return facts["commit"], stages[length:]
    return source.commit, stages


def _check_out_touched(repository: Repository, commit: str, stages: Sequence[Stage], work_tree: Path) -> None:
    patterns = sorted({f"/{path}" for stage in stages for path in _touched(repository, stage)})
    repository.git("config", "core.sparseCheckout", "true")
    info = repository.path / "info"
    info.mkdir(exist_ok=True)
    (info / "sparse-checkout").write_text("\n".join(patterns) + "\n", encoding="utf-8")
    repository.git("update-ref", "--no-deref", "HEAD", commit)
    repository.git("read-tree", "-mu", "HEAD", work_tree=work_tree)


def _touched(repository: Repository, stage: Stage) -> list[str]:
    stat = repository.git("apply", "--numstat", "-z", str(stage.patch.resolve()), check=False)
    if stat.returncode != 0:
        raise UserError(
            f"stage {stage.number} ({stage.name}): {stage.patch} is no patch: {_last(stat.stderr)}."
        )
    # Of a rename it names both paths, after an empty one.
    return [name for name in (record.split("\t")[-1] for record in stat.stdout.split("\0")) if name]


def _apply(repository: Repository, stage: Stage, work_tree: Path, source: SourceTree) -> None:
    # --committer-date-is-author-date: the id depends on patch and source, not on the time of day.
    done = repository.git(
        "am", "-3", "--quiet", "--committer-date-is-author-date", "--no-gpg-sign", "--keep-non-patch",
        str(stage.patch.resolve()),
        work_tree=work_tree,
        config=("advice.mergeConflict=false",),
        check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return
    unmerged = repository.git("diff", "--name-only", "--diff-filter=U", work_tree=work_tree, check=False)
    files = sorted(set(unmerged.stdout.split())) or _rejected(repository, stage)
    where = f"; the conflict is in {', '.join(files)}" if files else f": {_last(done.stderr)}"
    raise UserError(
        f"stage {stage.number} ({stage.name}) does not apply to {source.description}{where}; "
        f"rebase {stage.patch.name} onto Linux {source.version}."
    )


def _rejected(repository: Repository, stage: Stage) -> list[str]:
    """Files that a patch does not fit, where the blobs for a three-way merge are not known here."""
    said = repository.git("apply", "--check", "--cached", str(stage.patch.resolve()), check=False).stderr
    fits = r"^error: (?:patch failed: (?P<failed>\S+):\d+|(?P<gone>\S+): (?:does not|already) exist)"
    return sorted({match["failed"] or match["gone"] for match in re.finditer(fits, said, re.MULTILINE)})


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip().rstrip(".") if lines else "git gives no reason"
