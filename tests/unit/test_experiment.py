# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from fake_tree import write_tree

from orchestrator.cache import Cache
from orchestrator.errors import UserError
from orchestrator.events import Events
from orchestrator.execution.bench import Bench
from orchestrator.execution.measure.request import experiment_of_manifest, manifest_of
from orchestrator.experiment.cell import cells_of
from orchestrator.experiment.experiment import Experiment, load_experiment
from orchestrator.experiment.knob import combinations, knob_path, parse_settings, reads_back, with_swap
from orchestrator.experiment.variant import variants_of
from orchestrator.guest.workload import Workload, load_workloads
from orchestrator.kernel.series import Series, load_series
from orchestrator.machine.topology import Topology
from orchestrator.project import Project
from orchestrator.store.manifest import Role, read_manifest
from orchestrator.store.probe import Probe
from orchestrator.store.run import RunWriter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def series() -> Series:
    return load_series(ROOT / "kernel_patches")


@pytest.fixture(scope="module")
def workloads() -> dict[str, Workload]:
    return dict(load_workloads(ROOT / "guest_workloads"))


def names(series: Series, patchsets: list[str], *settings: str, against: str = "baseline") -> list[str]:
    return [v.name for v in variants_of(patchsets, against, parse_settings(settings, series), (), series)]


def test_the_main_job_compares_neutrality_and_benefit(series: Series) -> None:
    variants = variants_of(["core-only"], "baseline", {}, (), series)
    assert [v.name for v in variants] == ["baseline", "baseline-control", "core-only@1", "core-only@256"]
    assert [v.role for v in variants] == [Role.BASELINE, Role.CONTROL, Role.PATCHED, Role.PATCHED]
    assert variants[0].knobs == {} and variants[3].knobs == {"promotion_threshold": "256"}


def test_a_list_of_values_is_a_sweep(series: Series) -> None:
    assert names(series, ["core-only"], "promotion_threshold=2,512")[2:] == ["core-only@2", "core-only@512"]


def test_a_stock_knob_applies_to_the_baseline_too(series: Series) -> None:
    variants = variants_of(["core-only"], "baseline", parse_settings(["enabled=madvise"], series), (), series)
    assert all(variant.knobs["enabled"] == "madvise" for variant in variants)


def test_an_early_stage_without_the_knob_has_one_variant(series: Series) -> None:
    assert names(series, ["core-only:1"]) == ["baseline", "baseline-control", "core-only:1"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["promotion_treshold=3"], "did you mean promotion_threshold"),
        (["promotion_threshold=0"], "from 1 to 512"),
        (["promotion_threshold=513"], "from 1 to 512"),
        (["promotion_threshold=2.5"], "whole number"),
        (["promotion_threshold=-1"], "whole number"),
        (["promotion_threshold"], "KEY=VALUE"),
        (["enabled=sometimes"], "one of always, madvise, never"),
        (["promotion_threshold=4,4"], "occurs twice"),
        (["promotion_threshold=4", "promotion_threshold=5"], "given twice"),
        (["swappiness=10"], "named like vm.swappiness"),
        (["swap=many"], "a size such as 512M"),
        (["swap=0M"], "a size such as 512M"),
        (["/etc/passwd=1"], "only files below /sys and /proc/sys"),
        (["/sys/../etc/passwd=1"], "only files below /sys and /proc/sys"),
        (["vm.swappiness=1", "/proc/sys/vm/swappiness=2"], "are the same file, /proc/sys/vm/swappiness"),
        (["enabled=never", "/sys/kernel/mm/transparent_hugepage/enabled=never"], "are the same file"),
        (["vm.swappiness= "], "one line of text"),
    ],
)
def test_a_bad_setting_is_one_clear_sentence(series: Series, settings: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_settings(settings, series)


def test_any_sysctl_and_any_file_below_sys_is_a_setting(series: Series) -> None:
    settings = parse_settings(
        ["vm.swappiness=10,60", "/sys/kernel/mm/ksm/run=1", "net.ipv4.conf.eth0/1.tag=a"], series
    )
    assert settings["vm.swappiness"] == ("10", "60")
    assert [knob_path(key, series) for key in settings] == [
        "/proc/sys/vm/swappiness",
        "/sys/kernel/mm/ksm/run",
        "/proc/sys/net/ipv4/conf/eth0.1/tag",
    ]
    assert names(series, ["core-only:1"], "vm.swappiness=10,60", "/sys/kernel/mm/ksm/run=1") == [
        *("baseline", "baseline-control", "core-only:1@vm_swappiness=10", "core-only:1@vm_swappiness=60"),
    ]


@pytest.mark.parametrize(
    ("value", "text", "holds"),
    [
        ("10", "10\n", True),
        ("never", "always madvise [never]\n", True),
        ("always", "always madvise [never]\n", False),
        ("1", "Y\n", True),
        ("N", "N\n", True),
        ("0", "Y\n", False),
        ("256 32 0", "256\t32\t0\n", True),
        ("32", "256\t32\t0\n", False),
        ("0x20", "32\n", True),
        ("10", "100\n", False),
        ("10", "", False),
    ],
)
def test_a_setting_is_checked_by_reading_it_back(value: str, text: str, *, holds: bool) -> None:
    assert reads_back(value, text) is holds


def test_swap_is_a_setting_of_every_variant(series: Series) -> None:
    settings = parse_settings(with_swap(["vm.swappiness=10"], "512M"), series)
    assert settings == {"vm.swappiness": ("10",), "swap": ("512M",)}
    assert with_swap(None, None) == []
    with pytest.raises(UserError, match="swap is given twice"):
        parse_settings(with_swap(["swap=1G"], "512M"), series)


def test_a_knob_that_no_variant_has_is_refused(series: Series) -> None:
    with pytest.raises(UserError, match="introduces it"):
        names(series, ["core-only:1"], "promotion_threshold=4")


def test_an_unknown_patchset_is_refused(series: Series) -> None:
    with pytest.raises(UserError, match="core-only"):
        names(series, ["core-onyl"])


def test_comparing_a_patchset_with_itself_is_refused(series: Series) -> None:
    with pytest.raises(UserError, match="itself"):
        names(series, ["baseline"])


def test_combinations_keep_the_order_given() -> None:
    assert combinations({}) == [{}]
    assert combinations({"a": ("1", "2"), "b": ("x", "y")})[1] == {"a": "1", "b": "y"}


def test_every_variant_gets_the_same_seeds_in_interleaved_order() -> None:
    cells = cells_of(["a", "b", "c"], ["chunk"], 4, seed=7)
    assert cells == cells_of(["a", "b", "c"], ["chunk"], 4, seed=7)
    by_repetition = [cells[i : i + 3] for i in range(0, 12, 3)]
    assert all({cell.variant for cell in group} == {"a", "b", "c"} for group in by_repetition)
    assert all(len({cell.seed for cell in group}) == 1 for group in by_repetition)
    assert len({group[0].seed for group in by_repetition}) == 4
    assert len({tuple(cell.variant for cell in group) for group in by_repetition}) > 1


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    return path


GOOD = """\
name = "tradeoff"
topology = "2x512M"
repeat = 4
accel = "icount"

[[variant]]
name = "stock"
patchset = "baseline"
role = "baseline"

[[variant]]
name = "never"
patchset = "baseline"
set = { enabled = "never" }

[[variant]]
name = "reserve"
patchset = "core-only"
set = { promotion_threshold = 64 }

[workload.chunk]
"""


TRADEOFF = """[tradeoff]
memory = "chunk/survivors.total"
cost = "chunk/touch_{clock}.mean"
more = "chunk/survivors_oom.total"
"""


def test_a_file_may_weigh_metrics(tmp_path: Path, series: Series, workloads: dict[str, Workload]) -> None:
    assert load_experiment(write(tmp_path, GOOD), series, workloads).tradeoff == {}
    experiment = load_experiment(write(tmp_path, GOOD + TRADEOFF), series, workloads)
    assert list(experiment.tradeoff) == ["memory", "cost", "more"]


def test_a_file_says_it_all(tmp_path: Path, series: Series, workloads: dict[str, Workload]) -> None:
    experiment = load_experiment(write(tmp_path, GOOD), series, workloads)
    assert [v.name for v in experiment.variants] == ["stock", "stock-control", "never", "reserve"]
    assert experiment.variant("reserve").knobs == {"promotion_threshold": "64"}
    assert len(experiment.cells) == 4 * 4 and experiment.accelerator == "icount"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "repeat = 4",
            "repeat = four",
            r"experiment.toml: cannot read this experiment file: not valid TOML.*line 3",
        ),
        ("repeat = 4", 'repeat = "4"', r"experiment.toml:3: repeat: must be a whole number, not '4'"),
        ("repeat = 4", "repaet = 4", r"experiment.toml:3: repaet: unknown key; did you mean repeat\?"),
        ('accel = "icount"', 'accel = "xen"', r"unknown accelerator 'xen'"),
        ('topology = "2x512M"', 'topology = "2x"', r"experiment.toml:2: "),
        ("promotion_threshold = 64", "promotion_threshold = 600", r"experiment.toml:16: .*from 1 to 512"),
        ('patchset = "core-only"', 'patchset = "corely"', r"experiment.toml:16: "),
        ("[workload.chunk]", "[workload.chunks]", r"experiment.toml:21: .*chunk"),
        ("[workload.chunk]", "[workload.chunk]\nseeds = 4", r"experiment.toml:21: .*seeds"),
        ('name = "never"', 'name = "stock"', r"two variants are named stock"),
        ('name = "never"', 'name = "../up"', r"use only letters"),
        (
            "[workload.chunk]",
            "[workload.chunk]\n[tradeoff]\nmemory = 'chunk/survivors.total'",
            r":22: .*weighs 3 metrics",
        ),
        (
            "[workload.chunk]",
            f"[workload.chunk]\n{TRADEOFF.replace('chunk/', 'sparse/', 1)}",
            r":23: .*of this experiment",
        ),
        (
            "[workload.chunk]",
            f"[workload.chunk]\n{TRADEOFF.replace('survivors_oom.total', 'rss_kib.max')}",
            r":25: .*better direction",
        ),
    ],
)
def test_a_broken_file_is_named_with_its_line(
    tmp_path: Path, series: Series, workloads: dict[str, Workload], old: str, new: str, sentence: str
) -> None:
    assert old in GOOD
    with pytest.raises(UserError, match=sentence):
        load_experiment(write(tmp_path, GOOD.replace(old, new)), series, workloads)


def test_a_missing_file_is_a_user_error(
    tmp_path: Path, series: Series, workloads: dict[str, Workload]
) -> None:
    with pytest.raises(UserError, match="cannot read"):
        load_experiment(tmp_path / "none.toml", series, workloads)


def test_an_experiment_needs_one_baseline(series: Series) -> None:
    variants = variants_of(["core-only"], "baseline", {}, (), series)[1:]
    with pytest.raises(UserError, match="exactly one baseline"):
        Experiment("x", variants, {"chunk": {}}, Topology.parse("1x512M"))


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda path: path.stem)
def test_the_projects_experiments_are_sound(
    path: Path, series: Series, workloads: dict[str, Workload]
) -> None:
    assert load_experiment(path, series, workloads).cells


def test_a_part_has_the_cells_of_the_whole(series: Series, workloads: dict[str, Workload]) -> None:
    whole = load_experiment(ROOT / "experiments" / "stages.toml", series, workloads)
    part = whole.part(["9-in-place"], ["pressure", "fault_latency"])
    assert [v.name for v in part.variants] == ["baseline", "baseline-control", "9-in-place"]
    assert set(part.workloads) == {"pressure", "fault_latency"}
    assert set(part.cells) < set(whole.cells)
    assert len(part.cells) == 3 * 2 * whole.repeat


def test_a_part_weighs_only_what_it_measures(series: Series, workloads: dict[str, Workload]) -> None:
    whole = load_experiment(ROOT / "experiments" / "tradeoff.toml", series, workloads)
    assert whole.part(["never"], []).tradeoff == whole.tradeoff
    assert whole.part([], ["chunk"]).tradeoff == {}


def test_a_part_that_is_not_there_is_refused(series: Series, workloads: dict[str, Workload]) -> None:
    whole = load_experiment(ROOT / "experiments" / "tradeoff.toml", series, workloads)
    with pytest.raises(UserError, match="tradeoff has no workload sparse; it has fault_latency, chunk"):
        whole.part([], ["sparse"])
    with pytest.raises(UserError, match="tradeoff has no variant nevre"):
        whole.part(["nevre"], [])


def test_a_run_directory_knows_all_of_its_experiment(tmp_path: Path) -> None:
    source = str(write_tree(tmp_path / "linux"))
    bench = Bench(Project(ROOT), Cache(tmp_path / "cache"), Events(), source, "icount", "debug-vm")
    experiment = Experiment(
        name="all",
        variants=variants_of(
            ["core-only"], "baseline", {"promotion_threshold": ("1", "64")}, ["quiet"], bench.series
        ),
        workloads={
            name: {key: str(parameter.default) for key, parameter in bench.workloads[name].parameters.items()}
            for name in ("touch", "chunk")
        },
        topology=Topology.parse("2x1G/2+1x0/1"),
        accelerator="icount",
        repeat=2,
        max_repeat=8,
        seed=7,
        flavour="debug-vm",
        margin=0.01,
        timeout_s=12.5,
        tradeoff={"x": "chunk/survivors.total"},
        sample=("slabinfo", "/proc/stat"),
        profile=True,
        probes=(Probe("do_exit", ("capture",), 2, ("code",), "code > 0", 5),),
    )
    assert {f.name for f in fields(Experiment) if getattr(experiment, f.name) == f.default} == set()
    begun = manifest_of(experiment, bench, ["orchestrate", "run"])
    writer = RunWriter.create(tmp_path, experiment.name, begun)
    assert experiment_of_manifest(read_manifest(writer.path)) == experiment
