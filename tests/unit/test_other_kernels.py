# SPDX-License-Identifier: GPL-2.0-only
"""Variants with a source or a series of their own: two trees, or the same patches on two versions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_tree import git, write_patch, write_series, write_tree
from guest_data import ROOT

from orchestrator.cache import Cache
from orchestrator.cli.application import status_of
from orchestrator.errors import UserError
from orchestrator.events import Events
from orchestrator.execution import driver
from orchestrator.execution.bench import Bench
from orchestrator.execution.measure.request import (
    described_experiment,
    experiment_of_manifest,
    manifest_of,
)
from orchestrator.experiment.experiment import Experiment, load_experiment
from orchestrator.experiment.variant import compared, others_of
from orchestrator.guest.workload import load_workloads
from orchestrator.kernel.series import load_series
from orchestrator.machine.topology import Topology
from orchestrator.project import Project
from orchestrator.store.manifest import Role, read_manifest
from orchestrator.store.run import RunWriter

WORKLOADS = load_workloads(ROOT / "guest_workloads")


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(tmp_path / "cache"))
    place = write_tree(tmp_path / "linux")
    git(place, "init", "-q", "-b", "main")
    git(place, "add", "-A", "-f")
    git(place, "commit", "-qm", "base")
    git(place, "switch", "-qc", "topic")
    memory = place / "mm" / "memory.c"
    memory.write_text(memory.read_text().replace("return address;", "return 7;"))
    git(place, "commit", "-qam", "mm: seven")
    return place


def bench_of(asked: Experiment, source: str, tmp_path: Path) -> Bench:
    return Bench(
        Project(ROOT),
        Cache(tmp_path / "cache"),
        Events(),
        source,
        "icount",
        series_directory=write_series(tmp_path / "patches"),
        others=others_of(asked.variants),
    )


def test_two_trees_are_compared_with_a_control(tmp_path: Path, linux: Path) -> None:
    trees = (f"{linux}#main", f"{linux}#topic")
    variants = compared(trees, {"enabled": ("never",)}, ("quiet",))
    assert [(each.name, each.role) for each in variants] == [
        ("main", Role.BASELINE),
        ("main-control", Role.CONTROL),
        ("topic", Role.PATCHED),
    ]
    assert all(each.knobs == {"enabled": "never"} and each.cmdline == ("quiet",) for each in variants)
    asked = Experiment("two", variants, {"touch": {}}, repeat=1, topology=_topology())
    bench = bench_of(asked, trees[0], tmp_path)
    for variant, commit in zip(variants, ("main", "main", "topic"), strict=True):
        assert bench.tree(variant.patchset).tree == git(linux, "rev-parse", f"{commit}^{{tree}}")
    writer = RunWriter.create(tmp_path / "results", "two", manifest_of(asked, bench, ["orchestrate"]))
    again = experiment_of_manifest(read_manifest(writer.path))
    assert again.variants == asked.variants


def test_a_branch_that_has_moved_does_not_resume(tmp_path: Path, linux: Path) -> None:
    trees = (f"{linux}#main", f"{linux}#topic")
    asked = Experiment("two", compared(trees, {}, ()), {"touch": {}}, repeat=1, topology=_topology())
    bench = bench_of(asked, trees[0], tmp_path)
    writer = RunWriter.create(tmp_path / "results", "two", manifest_of(asked, bench, ["orchestrate"]))
    records = writer.manifest.variants
    writer.update_manifest(
        variants=tuple(replace(each, tree=bench.tree(each.patchset).tree) for each in records)
    )
    driver.check_same_series(writer, bench)
    git(linux, "commit", "-q", "--allow-empty", "-m", "nothing")
    driver.check_same_series(writer, bench_of(asked, trees[0], tmp_path))
    git(linux, "reset", "-q", "--hard", "main")
    with pytest.raises(UserError, match="of tree-topic have changed"):
        driver.check_same_series(writer, bench_of(asked, trees[0], tmp_path))


def test_variants_of_a_file_have_sources_and_series(tmp_path: Path, linux: Path) -> None:
    write_patch(tmp_path / "mine" / "0001.patch", "\treturn address;", "\treturn 9;", "mm: nine")
    series = load_series(write_series(tmp_path / "patches"))
    file = tmp_path / "three.toml"
    text = f"""
[workload.touch]
[[variant]]
name = "before"
patchset = "baseline"
[[variant]]
name = "topic"
source = "{linux}#topic"
[[variant]]
name = "mine"
series = "mine"
"""
    file.write_text(text)
    asked = load_experiment(file, series, WORKLOADS)
    bench = bench_of(asked, f"{linux}#main", tmp_path)
    assert bench.series.select(asked.variant("mine").patchset)[0].title == "mm: nine"
    kernels = {
        name: git(linux, "show", f"{bench.tree(asked.variant(name).patchset).tree}:mm/memory.c")
        for name in ("before", "topic")
    }
    assert "return address;" in kernels["before"] and "return 7;" in kernels["topic"]
    assert described_experiment(manifest_of(asked, bench, ["orchestrate"])).variants == asked.variants
    for old, new, sentence in (
        ('series = "mine"', 'series = "none"', "three.toml:.*variant 3: --series .*none: there is no"),
        ('patchset = "baseline"', "", "variant 1: patchset: this key is missing"),
        ('series = "mine"', 'series = "mine"\npatchset = "stage-2"', "there is no stage 2"),
    ):
        file.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=sentence):
            load_experiment(file, series, WORKLOADS)


def test_options_that_contradict_two_trees_are_refused(
    linux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--compare", f"{linux}#main", f"{linux}#topic", "-w", "touch"]
    assert status_of([*words, "-p", "full"]) == 2
    assert "--compare takes two whole sources; omit --patchset" in capsys.readouterr().err
    assert status_of([*words, "--set", "enabled=never,always"]) == 2
    assert "--compare takes one value" in capsys.readouterr().err


def test_a_range_is_bisected_and_anything_else_refused(
    linux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bisect", "-w", "touch", "--until", "kernel-bug"]
    assert status_of([*words, str(linux)]) == 2
    assert "is not a range of commits; write it as TREE#GOOD..BAD" in capsys.readouterr().err
    assert status_of([*words, f"{linux}#main..topic", "-p", "full"]) == 2
    assert "the range names the commits to search; omit --patchset" in capsys.readouterr().err
    assert status_of([*words, f"{linux}#topic..main"]) == 2
    assert "main adds no commit to topic" in capsys.readouterr().err


def _topology() -> Topology:
    return Topology.parse("2x512M")
