# SPDX-License-Identifier: GPL-2.0-only
"""The series on sources that its patches were not made on: variants, three-way merges, conflicts."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from fake_tree import git, write_patch, write_series, write_tree

from orchestrator.cache import Cache
from orchestrator.errors import UserError
from orchestrator.events import Event, Events
from orchestrator.kernel.package import PackageVersion
from orchestrator.kernel.reference import reference_sources
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.series import load_series
from orchestrator.kernel.source import SourceTree, import_source
from orchestrator.kernel.tree import PatchedTree, apply_stages

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


class Releases:
    """A series whose patches were made on one release, and sources of other ones."""

    def __init__(self, root: Path, cache: Cache) -> None:
        self.root = root
        self.cache = cache
        self.made_on = write_tree(root / "6.12.117")
        self.patches = write_series(root / "patches")
        self.notes: list[str] = []
        self._count = 0
        self._make_patches()

    def _make_patches(self) -> None:
        """Write the patches as git-format-patch(1) does: with the blobs that they were made against."""
        git(self.made_on, "init", "-q")
        git(self.made_on, "add", "-Af", ".")
        git(self.made_on, "commit", "-qm", "Linux")
        memory = self.made_on / "mm" / "memory.c"
        for number in (1, 2, 3):
            memory.write_text(
                memory.read_text().replace(
                    "return address;" if number == 1 else f"return address + {number - 1};",
                    f"return address + {number};",
                )
            )
            git(self.made_on, "commit", "-qam", f"mm: change {number}")
            written = git(self.made_on, "format-patch", "-1", "--stdout", "--abbrev=9")
            (self.patches / "6.12" / f"000{number}.patch").write_text(written + "\n")
        git(self.made_on, "checkout", "-q", "HEAD~3")

    def keep_reference(self) -> None:
        """Keep the files that the patches were made on beside them."""
        archive = self.patches / "6.12" / "reference.tar.xz"
        files = ("6.12.117/mm/memory.c", "6.12.117/init/main.c")
        subprocess.run(["tar", "-C", str(self.root), "-cJf", str(archive), *files], check=True)
        toml = self.patches / "series.toml"
        toml.write_text(
            toml.read_text().replace("\n[[base]]", 'reference = "reference.tar.xz"\n\n[[base]]', 1)
        )

    def release(self, old: str, new: str, package: str | None = None) -> SourceTree:
        """A source in which a line of mm/memory.c is another one."""
        self._count += 1
        tree = write_tree(self.root / f"release-{self._count}")
        memory = tree / "mm" / "memory.c"
        assert old in memory.read_text()
        memory.write_text(memory.read_text().replace(old, new))
        source = import_source(str(tree), "linux-source-6.12", self.cache, Events())
        return replace(source, package=PackageVersion("linux-source-6.12", package) if package else None)

    def apply(self, source: SourceTree, patchset: str = "full") -> PatchedTree:
        def listen(event: Event) -> None:
            if event.kind == "note":
                self.notes.append(event.text)

        return apply_stages(source, load_series(self.patches).select(patchset), self.cache, Events(listen))

    def add_variant(self, stage: int, name: str, old: str, new: str) -> None:
        path = self.patches / "6.12" / name / f"000{stage}.patch"
        write_patch(path, old, new, subject=f"mm: change {stage}")
        toml = self.patches / "series.toml"
        patch = f'patch = "000{stage}.patch"\n'
        toml.write_text(toml.read_text().replace(patch, f'{patch}variants = ["{name}"]\n'))


@pytest.fixture
def releases(tmp_path: Path, cache: Cache) -> Releases:
    return Releases(tmp_path, cache)


def memory_of(tree: PatchedTree) -> str:
    return Repository(tree.repository).git("show", f"{tree.commit}:mm/memory.c").stdout


def test_a_variant_is_used_where_the_patch_does_not_apply(releases: Releases) -> None:
    plain = releases.release("two", "two")
    releases.add_variant(1, "6.12.118", "\treturn (address);", "\treturn address + 1;")
    tree = releases.apply(plain)
    assert (dict(tree.variants), tree.merged, releases.notes) == ({}, (), [])
    newer = releases.release("return address;", "return (address);")
    tree = releases.apply(newer)
    assert "address + 3" in memory_of(tree)
    assert (dict(tree.variants), tree.merged) == ({1: "6.12.118"}, ())
    assert releases.notes == ["stage 1 (first) was applied with the patch for 6.12.118"]
    assert tree.patch_of(tree.stages[0]).parent.name == "6.12.118"
    assert tree.patch_of(tree.stages[1]).parent.name == "6.12"


def test_what_was_used_is_known_of_a_cached_tree_and_of_a_longer_series(releases: Releases) -> None:
    releases.add_variant(1, "6.12.118", "\treturn (address);", "\treturn address + 1;")
    newer = releases.release("return address;", "return (address);")
    assert dict(releases.apply(newer, "stage-1").variants) == {1: "6.12.118"}
    assert dict(releases.apply(newer, "stage-1").variants) == {1: "6.12.118"}
    assert dict(releases.apply(newer).variants) == {1: "6.12.118"}


def test_the_digests_cover_the_variants(releases: Releases) -> None:
    plain = load_series(releases.patches).stages[0]
    releases.add_variant(1, "6.12.118", "\treturn (address);", "\treturn address + 1;")
    first = load_series(releases.patches).stages[0]
    patch = releases.patches / "6.12" / "6.12.118" / "0001.patch"
    patch.write_text(patch.read_text().replace("Because.", "Why not."))
    reworded = load_series(releases.patches).stages[0]
    patch.write_text(patch.read_text().replace("address + 1;", "address + 2;"))
    changed = load_series(releases.patches).stages[0]
    assert len({plain.digest, first.digest, changed.digest}) == 3
    assert reworded.digest == first.digest
    assert len({each.text_digest for each in (plain, first, reworded, changed)}) == 4


def test_a_variant_without_its_patch_is_refused(releases: Releases) -> None:
    releases.add_variant(1, "6.12.118", "\treturn (address);", "\treturn address + 1;")
    (releases.patches / "6.12" / "6.12.118" / "0001.patch").unlink()
    with pytest.raises(
        UserError, match=r"stage 1: variants: variant 6\.12\.118: the patch .* does not exist"
    ):
        load_series(releases.patches)


def test_a_stage_is_merged_three_way_with_the_reference(releases: Releases) -> None:
    # The context of the change is another one, three lines above: git-am(1) refuses, a merge does not.
    newer = releases.release("\n */\nint", "\n * four\n */\n\nint")
    with pytest.raises(UserError, match=r"stage 1 \(first\) does not apply"):
        releases.apply(newer)
    releases.keep_reference()
    tree = releases.apply(newer)
    assert "four" in memory_of(tree) and "address + 3" in memory_of(tree)
    assert tree.merged == (1, 2, 3)
    assert releases.notes[0] == "stage 1 (first) was merged three-way"
    assert tree.remarks == ["stages 1, 2, 3 were merged three-way"]
    # Nothing of it is borrowed from entries that may go.
    for kind in ("reference", "tree"):
        for entry in (releases.cache.root / kind).iterdir():
            if entry.name != tree.repository.parent.name:
                shutil.rmtree(entry)
    Repository(tree.repository).git("fsck", "--connectivity-only")


def test_a_conflict_tells_a_newcomer_what_works(releases: Releases) -> None:
    releases.keep_reference()
    newer = releases.release("return address;", "return -address;", package="6.12.119-1")
    with pytest.raises(UserError) as caught:
        releases.apply(newer)
    said = str(caught.value)
    assert "stage 1 (first) does not apply" in said and "conflict is in mm/memory.c" in said
    assert "the series applies to linux-source-6.12 6.12.117-1" in said
    assert "--source linux-source-6.12=6.12.117-1" in said and "rebase" not in said
    assert not list(releases.cache.root.glob("tree/.*")), "something half-applied was left behind"


def test_a_conflict_on_a_checked_version_is_the_patchs_fault(releases: Releases) -> None:
    newer = releases.release("return address;", "return -address;", package="6.12.117-1")
    with pytest.raises(UserError, match=r"0001\.patch needs to be fixed"):
        releases.apply(newer)


# The project's own series


def test_the_reference_has_every_blob_that_the_patches_were_made_against(cache: Cache) -> None:
    series = load_series(ROOT / "kernel_patches")
    assert series.bases.reference is not None
    sources = reference_sources(series.bases.reference, cache)
    releases = {PackageVersion(series.bases.package, each).linux for each in series.bases.versions}
    assert {source.version for source in sources} == releases
    without = replace(series.bases, reference=None)
    blobs: set[str] = set()
    variants: set[str] = set()
    for source in sources:
        tree = apply_stages(
            source, [replace(stage, bases=without) for stage in series.stages], cache, Events()
        )
        assert tree.merged == (), f"{source.description}: a stage does not apply as it is"
        variants |= set(tree.variants.values())
        listed = Repository(tree.repository).git("rev-list", "--objects", "--no-object-names", tree.commit)
        blobs |= set(listed.stdout.split())
    named = {name for stage in series.stages for name in (each.name for each in stage.variants)}
    assert variants == named, "a variant is used by no reference"
    files = [
        path for stage in series.stages for path in (stage.patch, *(each.patch for each in stage.variants))
    ]
    for path in files:
        for old in re.findall(r"^index ([0-9a-f]+)\.\.", path.read_text(), re.MULTILINE):
            known = not old.strip("0") or any(blob.startswith(old) for blob in blobs)
            assert known, f"{path.name}: the reference lacks blob {old}"


def test_every_patch_that_lies_there_belongs_to_a_stage() -> None:
    series = load_series(ROOT / "kernel_patches")
    used = {
        path for stage in series.stages for path in (stage.patch, *(each.patch for each in stage.variants))
    }
    assert set((ROOT / "kernel_patches" / "6.12").rglob("*.patch")) == used
