# SPDX-License-Identifier: GPL-2.0-only
"""A source with the stages of a series applied."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.cache import Artefact, Cache
from orchestrator.errors import UserError
from orchestrator.events import Events
from orchestrator.kernel.message import read, split
from orchestrator.kernel.reference import reference_sources
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.series import Stage
from orchestrator.kernel.source import SourceTree
from orchestrator.temporary import temporary_directory

_KIND = "tree"


class DoesNotApplyError(UserError):
    """A stage does not apply.

    Args:
        stage: the stage.
        files: files with a conflict, if git names them.
    """

    def __init__(self, message: str, stage: Stage, files: Sequence[str]) -> None:
        super().__init__(message)
        self.stage = stage
        self.files = tuple(files)


@dataclass(frozen=True)
class PatchedTree:
    """A source with stages applied.

    Args:
        repository: git directory with the commit; it borrows the objects of the source.
        commit: commit of the last stage, or of the source if there is no stage.
        tree: tree ID of the commit; equal IDs mean equal sources.
        source, stages: the source, and the stages applied to it.
        variants: stage number -> name of the alternative patch that was applied.
        merged: numbers of the stages that were applied with a three-way merge.
    """

    repository: Path
    commit: str
    tree: str
    source: SourceTree
    stages: tuple[Stage, ...]
    variants: Mapping[int, str] = field(default_factory=dict)
    merged: tuple[int, ...] = ()

    @property
    def remarks(self) -> list[str]:
        """Remarks on stages that needed an alternative patch or a merge."""
        return _remarks(self.stages, self.variants, self.merged)

    def patch_of(self, stage: Stage) -> Path:
        """The file that was applied for a stage: its patch or an alternative."""
        name = self.variants.get(stage.number)
        return next((each.patch for each in stage.variants if each.name == name), stage.patch)


@dataclass(frozen=True)
class _Applied:
    """How stages were applied; see :class:`PatchedTree`."""

    variants: dict[int, str] = field(default_factory=dict)
    merged: list[int] = field(default_factory=list)


def apply_stages(source: SourceTree, stages: Sequence[Stage], cache: Cache, events: Events) -> PatchedTree:
    """Apply stages with git-am(1), or take the result from the cache.

    For each stage, its patch is tried first, then its alternative patches, and then all of them again with a
    three-way merge. A patch that applies cleanly was made for such a source, so it is preferred to a merge.

    Raises:
        DoesNotApplyError: a stage does not apply; the message names it and the files with conflicts.
        UserError: the file of a stage is not a patch.
    """
    if not stages:
        return PatchedTree(source.repository, source.commit, source.tree, source, ())

    def make(directory: Path) -> None:
        with events.step("apply stages") as step:
            repository = Repository.create(directory / "repository.git", borrow_from=source.repository)
            start, todo, how = _start(source, stages, cache, repository)
            work_tree = directory / "work"
            work_tree.mkdir()
            # Check out only the files that the patches touch, not all 85,000.
            _check_out_touched(repository, start, todo, work_tree)
            for done, stage in enumerate(todo, len(stages) - len(todo) + 1):
                _apply(repository, stages[: done - 1], stage, work_tree, source, cache, how)
                for remark in _remarks([stage], how.variants, how.merged):
                    step.note(remark)
                step.progress(done, len(stages), "stages", stage.name)
            commit = repository.git("rev-parse", "HEAD").stdout.strip()
            tree = repository.git("rev-parse", "HEAD^{tree}").stdout.strip()
            shutil.rmtree(work_tree)
            repository.git(
                "repack", "-a", "-d", "-l", "-q"
            )  # a quarter of the size, and a few files instead of 200
            repository.git("config", "--unset", "core.sparseCheckout")  # later checkouts need the whole tree
            (repository.path / "index").unlink(
                missing_ok=True
            )  # larger than everything else, and no longer needed
            facts = {
                "commit": commit,
                "tree": tree,
                "variants": {str(number): name for number, name in how.variants.items()},
                "merged": how.merged,
            }
            (directory / "tree.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")

    def load(directory: Path) -> PatchedTree:
        commit, tree, how = _facts(directory)
        return PatchedTree(
            directory / "repository.git", commit, tree, source, tuple(stages), how.variants, tuple(how.merged)
        )

    return Artefact(cache, _KIND, lambda: tree_key(source, stages), make, load).obtain()


def _facts(directory: Path) -> tuple[str, str, _Applied]:
    facts = json.loads((directory / "tree.json").read_text(encoding="utf-8"))
    variants = {int(number): name for number, name in facts["variants"].items()}
    return facts["commit"], facts["tree"], _Applied(variants, list(facts["merged"]))


def _remarks(stages: Sequence[Stage], variants: Mapping[int, str], merged: Sequence[int]) -> list[str]:
    by_variant: dict[str, list[Stage]] = {}
    for stage in stages:
        if stage.number in variants:
            by_variant.setdefault(variants[stage.number], []).append(stage)
    found = [f"{_named(some)} applied with the patch for {name}" for name, some in by_variant.items()]
    some = [stage for stage in stages if stage.number in merged]
    return [*found, f"{_named(some)} merged three-way"] if some else found


def _named(stages: Sequence[Stage]) -> str:
    """The stages as the subject of a sentence in the past tense."""
    if len(stages) == 1:
        return f"stage {stages[0].number} ({stages[0].name}) was"
    return f"stages {', '.join(str(stage.number) for stage in stages)} were"


def tree_key(source: SourceTree, stages: Sequence[Stage]) -> dict[str, object]:
    """The key of an applied series in the cache."""
    # Entries made with another order of attempts do not record how each stage was applied. The commits in an entry
    # have the changelogs of the patches.
    return {"source": source.commit, "stages": [stage.text_digest for stage in stages], "attempts": 2}


def _start(
    source: SourceTree, stages: Sequence[Stage], cache: Cache, repository: Repository
) -> tuple[str, Sequence[Stage], _Applied]:
    """The commit to start from (its objects are in `repository`), the remaining stages, how earlier ones applied."""
    for length in range(len(stages) - 1, 0, -1):
        key = tree_key(source, stages[:length])
        if cache.has(_KIND, key):
            shorter = cache.path(_KIND, key)
            _copy_objects(shorter / "repository.git", repository)
            commit, _, how = _facts(shorter)
            return commit, stages[length:], how
    return source.commit, stages, _Applied()


def _check_out_touched(repository: Repository, commit: str, stages: Sequence[Stage], work_tree: Path) -> None:
    patches = [(stage, patch) for stage in stages for _, patch in _patches(stage)]
    patterns = sorted({f"/{path}" for stage, patch in patches for path in _touched(repository, stage, patch)})
    repository.git("config", "core.sparseCheckout", "true")
    info = repository.path / "info"
    info.mkdir(exist_ok=True)
    (info / "sparse-checkout").write_text("\n".join(patterns) + "\n", encoding="utf-8")
    repository.git("update-ref", "--no-deref", "HEAD", commit)
    repository.git("read-tree", "-mu", "HEAD", work_tree=work_tree)


def _touched(repository: Repository, stage: Stage, patch: Path) -> list[str]:
    with _change_of(patch) as change:
        stat = repository.git("apply", "--numstat", "-z", str(change), check=False)
    if stat.returncode != 0:
        raise UserError(f"stage {stage.number} ({stage.name}): {patch} is not a patch: {_last(stat.stderr)}.")
    # For a rename git prints an empty path and then both paths.
    return [name for name in (record.split("\t")[-1] for record in stat.stdout.split("\0")) if name]


@contextmanager
def _change_of(patch: Path) -> Iterator[Path]:
    """The diff of a patch as a file. In the mail itself it may be encoded, as base64 or quoted-printable."""
    with temporary_directory("patch") as directory:
        place = Path(directory)
        parts = place / "parts"
        parts.mkdir()
        change = place / "diff"
        change.write_bytes(b"".join(read(part, place).change for part in split(patch, parts)))
        yield change


def _patches(stage: Stage) -> list[tuple[str | None, Path]]:
    """The patches of a stage in the order to try: its own patch, then its alternatives by name."""
    return [(None, stage.patch), *((variant.name, variant.patch) for variant in stage.variants)]


def _apply(
    repository: Repository,
    before: Sequence[Stage],
    stage: Stage,
    work_tree: Path,
    source: SourceTree,
    cache: Cache,
    how: _Applied,
) -> None:
    first: _Refused | None = None
    for three_way in (False, True):
        if three_way:
            _add_reference(repository, before, stage, cache)
        for variant, patch in _patches(stage):
            refused = _am(repository, patch, work_tree, three_way)
            if refused is None:
                if variant is not None:
                    how.variants[stage.number] = variant
                if three_way:
                    how.merged.append(stage.number)
                return
            # Report the conflicts of the three-way merge of the stage's own patch.
            if three_way and first is None:
                first = refused
    assert first is not None
    raise DoesNotApplyError(_does_not_apply(stage, source, first), stage, first.files)


def _add_reference(repository: Repository, before: Sequence[Stage], stage: Stage, cache: Cache) -> None:
    """Add the blobs that the patches of a stage were made on to a repository, if the series has them."""
    if stage.bases.reference is None:
        return
    without = replace(stage.bases, reference=None)
    for source in reference_sources(stage.bases.reference, cache):
        _copy_objects(source.repository, repository)
        # If the stages do not apply even to the files they were made on, the series is being edited.
        with suppress(UserError):
            made = apply_stages(source, [replace(each, bases=without) for each in before], cache, Events())
            _copy_objects(made.repository, repository)


def _copy_objects(source: Path, repository: Repository) -> None:
    """Copy, not borrow: the objects are few, and the cache entry they come from may be removed."""
    ours = repository.path / "objects"
    shutil.copytree(source / "objects", ours, ignore=shutil.ignore_patterns("info"), dirs_exist_ok=True)


@dataclass(frozen=True)
class _Refused:
    """Why a patch was not applied.

    Args:
        files: files with a conflict, if git names them.
        reason: last message of git.
    """

    files: tuple[str, ...]
    reason: str


def _am(repository: Repository, patch: Path, work_tree: Path, three_way: bool) -> _Refused | None:
    """Apply a patch; if it does not apply, leave the repository unchanged."""
    # --committer-date-is-author-date: the commit ID depends on patch and source, not on the time of day.
    done = repository.git(
        "am", "--3way" if three_way else "--no-3way", "--quiet", "--committer-date-is-author-date",
        "--no-gpg-sign", "--keep-non-patch", str(patch.resolve()),
        work_tree=work_tree,
        config=("advice.mergeConflict=false",),
        check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return None
    unmerged = repository.git("diff", "--name-only", "--diff-filter=U", work_tree=work_tree, check=False)
    files = sorted(set(unmerged.stdout.split())) or _rejected(repository, patch)
    repository.git("am", "--abort", work_tree=work_tree, check=False)
    return _Refused(tuple(files), _last(done.stderr))


def _does_not_apply(stage: Stage, source: SourceTree, refused: _Refused) -> str:
    conflict = f"the conflict is in {', '.join(refused.files)}" if refused.files else refused.reason
    head = f"stage {stage.number} ({stage.name}) does not apply to {source.description}: {conflict}; "
    if source.package is not None and source.package.version in stage.bases.versions:
        return f"{head}the series should apply there, so {stage.patch.name} needs to be fixed."
    if not stage.bases.versions:
        return f"{head}name the tree that the patches are for with --source TREE#COMMIT" + (
            f"; they name {stage.bases}." if stage.bases.source or stage.bases.commit else "."
        )
    works = f"{stage.bases.package}={stage.bases.versions[0]}"
    return (
        f"{head}the series applies to {stage.bases}: choose one of these with --source {works}, "
        "or name a git tree, a directory or a tarball of one with --source PATH."
    )


def _rejected(repository: Repository, patch: Path) -> list[str]:
    """Files that a patch does not apply to, if the blobs for a three-way merge are missing."""
    with _change_of(patch) as change:
        said = repository.git("apply", "--check", "--cached", str(change), check=False).stderr
    fits = r"^error: (?:patch failed: (?P<failed>\S+):\d+|(?P<gone>\S+): (?:does not|already) exist)"
    return sorted({match["failed"] or match["gone"] for match in re.finditer(fits, said, re.MULTILINE)})


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip().rstrip(".") if lines else "git printed no reason"
