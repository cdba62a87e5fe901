# SPDX-License-Identifier: GPL-2.0-only
"""The base of a bench: what a plan and run.json say of it, and that a run is finished on it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from fake_debian import PACKAGE, Debian
from fake_tree import SERIES, write_series, write_tree
from records import manifest

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Event, Events
from orchestrator.execution.bench import Bench
from orchestrator.execution.driver import check_same_source
from orchestrator.execution.provenance import base_of, requested_source, source_record
from orchestrator.project import Project
from orchestrator.store.manifest import SourceRecord
from orchestrator.store.run import RunWriter

ROOT = Path(__file__).resolve().parents[2]
#: What a series says that is checked on two versions.
TWO = SERIES.replace('version = "6.12.117-1"', 'version = "6.12.118-1"\n\n[[base]]\nversion = "6.12.117-1"')


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Debian:
    return Debian(tmp_path / "bin", monkeypatch)


class Benches:
    """Benches as they are made by one process after another."""

    def __init__(self, root: Path) -> None:
        self.cache = Cache(root / "cache")
        self.series = write_series(root / "patches", TWO)
        self.notes: list[str] = []

    def new(self, source: str | None = None) -> Bench:
        def listen(event: Event) -> None:
            if event.kind == "note":
                self.notes.append(event.text)

        return Bench(Project(ROOT), self.cache, Events(listen), source, series_directory=self.series)


@pytest.fixture
def benches(tmp_path: Path) -> Benches:
    return Benches(tmp_path)


def test_run_json_has_the_exact_version(debian: Debian, benches: Benches) -> None:
    debian.offers("6.12.119-1", "6.12.117-1")
    source = source_record(benches.new())
    assert source.requested == PACKAGE
    assert (source.package_version, source.version, source.checked) == ("6.12.117-1", "6.12.117", True)


def test_a_run_is_finished_on_the_base_it_began_with(
    tmp_path: Path, debian: Debian, benches: Benches
) -> None:
    debian.publish("6.12.117-1", write_tree(tmp_path / "linux"))
    debian.offers("6.12.117-1")
    begun = manifest(source=source_record(benches.new()))
    debian.offers("6.12.118-1", "6.12.117-1")
    later = benches.new()
    assert later.origin.package is not None and later.origin.package.version == "6.12.118-1"
    resumed = benches.new(requested_source(begun, later.series))
    assert resumed.source_tree.description == f"{PACKAGE} 6.12.117-1"
    again = manifest(source=source_record(resumed))
    assert requested_source(again, resumed.series) == requested_source(begun, resumed.series)


def test_a_run_of_an_earlier_version_of_this_tool_is_finished_on_its_base(
    debian: Debian, benches: Benches
) -> None:
    bench = benches.new()

    def requested(name: str, description: str) -> str | None:
        source = SourceRecord(requested=name, description=description)
        return requested_source(manifest(source=source), bench.series)

    assert requested(PACKAGE, f"{PACKAGE} 6.12.117-1") == f"{PACKAGE}=6.12.117-1"
    assert requested(PACKAGE, PACKAGE) is None
    assert requested("/a/tree", "a tree") == "/a/tree"


def test_an_unchecked_base_is_reported(tmp_path: Path, debian: Debian, benches: Benches) -> None:
    debian.publish("6.12.119-1", write_tree(tmp_path / "linux"))
    debian.offers("6.12.119-1")
    said = f"the series is not checked on {PACKAGE} 6.12.119-1, but on {PACKAGE} 6.12.118-1 and 6.12.117-1"
    bench = benches.new()
    assert base_of(bench).remarks == [said] and not base_of(bench).imported
    bench.tree("full")
    assert benches.notes[0] == said
    assert base_of(bench).sentence == f"{PACKAGE} 6.12.119-1, imported"
    assert source_record(bench).checked is False


def test_a_plan_asks_apt_once(tmp_path: Path, debian: Debian, benches: Benches) -> None:
    debian.publish("6.12.117-1", write_tree(tmp_path / "linux"))
    debian.offers("6.12.117-1")
    benches.new().tree("full")
    debian.asked()
    bench = benches.new()
    for patchset in ("baseline", "core-only", "full"):
        bench.tree(patchset)
    assert base_of(bench).imported
    source_record(bench)
    assert debian.asked() == [f"apt-cache madison {PACKAGE}"]


def test_nothing_is_asked_for_another_source(tmp_path: Path, debian: Debian, benches: Benches) -> None:
    benches.new(str(write_tree(tmp_path / "linux"))).tree("full")
    assert debian.asked() == []


def test_a_host_without_apt_has_no_base_and_says_what_to_do(
    tmp_path: Path, benches: Benches, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    base = base_of(benches.new())
    assert base.sentence == "none" and "--source" in base.remarks[0] and "6.12.118-1" in base.remarks[0]
    assert not benches.new().has_kernel("full")
    with pytest.raises(InfrastructureError, match="--source"):
        source_record(benches.new())


def test_a_run_is_not_finished_on_a_source_that_has_changed(tmp_path: Path, benches: Benches) -> None:
    tree = write_tree(tmp_path / "linux")
    begun = benches.new(str(tree)).source_tree
    begun_on = manifest(source=SourceRecord(description=begun.description, commit=begun.commit))
    writer = cast("RunWriter", SimpleNamespace(manifest=begun_on, path=Path("the-run")))
    check_same_source(writer, benches.new(str(tree)))
    (tree / "mm" / "memory.c").write_text("int changed;\n")
    with pytest.raises(UserError, match=r"not the source that the-run began with .*start a new run"):
        check_same_source(writer, benches.new(str(tree)))
