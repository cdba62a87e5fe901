# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that were built elsewhere: ``--kernel`` and ``--vmlinux``."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from guest_data import ROOT

from orchestrator.cache import Cache
from orchestrator.cli.application import status_of
from orchestrator.errors import UserError
from orchestrator.events import Events
from orchestrator.execution import driver
from orchestrator.execution.bench import Bench
from orchestrator.execution.measure.plan import plan_of
from orchestrator.execution.measure.request import experiment_of_manifest, manifest_of
from orchestrator.execution.provenance import requested_source
from orchestrator.experiment.experiment import Experiment, load_experiment
from orchestrator.experiment.variant import of_kernels, others_of
from orchestrator.guest.workload import load_workloads
from orchestrator.kernel.prebuilt import others_of_options, prebuilt_artefact, release_of
from orchestrator.kernel.series import load_series
from orchestrator.machine.topology import Topology
from orchestrator.project import Project
from orchestrator.store.manifest import Role, read_manifest
from orchestrator.store.run import RunWriter

WORKLOADS = load_workloads(ROOT / "guest_workloads")
SERIES = load_series(ROOT / "kernel_patches")


def write_bzimage(path: Path, release: str) -> Path:
    """A file with the header of a bzImage: the magic, and the offset of the version."""
    content = bytearray(0x400)
    content[0x202:0x206] = b"HdrS"
    content[0x20E:0x210] = (0x300 - 0x200).to_bytes(2, "little")
    path.write_bytes(bytes(content[:0x300]) + f"{release} (me@here) #1 SMP".encode() + bytes(64))
    return path


def write_vmlinux(path: Path, release: str) -> Path:
    """An ELF file with the kernel's banner and a build ID."""
    banner = f"Linux version {release} (me@here) (gcc 99.1, GNU ld 2.0) #1 SMP"
    source = path.with_suffix(".c")
    source.write_text(f'const char linux_banner[] = "{banner}";\n')
    subprocess.run(["gcc", "-shared", "-nostdlib", "-Wl,--build-id=sha1", "-o", path, source], check=True)
    return path


def bench_of(asked: Experiment, tmp_path: Path) -> Bench:
    place = Cache(tmp_path / "cache")
    return Bench(Project(ROOT), place, Events(), None, "icount", others=others_of(asked.variants))


def two(tmp_path: Path) -> Experiment:
    files = [str(write_bzimage(tmp_path / name, name)) for name in ("7.1.0-old", "7.2.0-new")]
    variants = of_kernels(others_of_options(files, ()), {}, (), SERIES, with_baseline=True)
    return Experiment("two", variants, {"touch": {}}, Topology.parse("1x512M"), repeat=1)


def test_the_release_is_read_from_the_header(tmp_path: Path) -> None:
    assert release_of(write_bzimage(tmp_path / "bzImage", "6.12.1+")) == "6.12.1+"


@pytest.mark.parametrize("content", [b"", b"\x7fELF" + bytes(4096), b"x" * 0x210])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a bzImage"):
        release_of(path)


def test_a_vmlinux_gives_build_id_and_compiler(tmp_path: Path) -> None:
    image = write_bzimage(tmp_path / "bzImage", "6.12.1")
    elf = write_vmlinux(tmp_path / "vmlinux", "6.12.1")
    cache = Cache(tmp_path / "cache")
    kernel = prebuilt_artefact(image, elf, cache).obtain()
    image.unlink()
    assert kernel.bzimage.is_file() and kernel.vmlinux.read_bytes() == elf.read_bytes()
    assert (kernel.release, len(kernel.build_id)) == ("6.12.1", 40)
    assert kernel.compiler == "gcc 99.1, GNU ld 2.0"


def test_files_of_two_builds_are_refused(tmp_path: Path) -> None:
    image = write_bzimage(tmp_path / "bzImage", "6.12.1")
    elf = write_vmlinux(tmp_path / "vmlinux", "6.12.2")
    with pytest.raises(UserError, match=r"is of 6\.12\.2 and --kernel of 6\.12\.1"):
        others_of_options([str(image)], [str(elf)])
    with pytest.raises(UserError, match="--vmlinux goes with --kernel"):
        others_of_options([], [str(elf)])
    with pytest.raises(UserError, match="not the vmlinux of a kernel"):
        others_of_options([str(image)], [str(image)])


def test_the_first_of_several_is_the_baseline(tmp_path: Path) -> None:
    variants = two(tmp_path).variants
    assert [(each.name, each.role) for each in variants] == [
        ("kernel-7_1_0-old", Role.BASELINE),
        ("kernel-7_1_0-old-control", Role.CONTROL),
        ("kernel-7_2_0-new", Role.PATCHED),
    ]


def test_two_builds_of_one_release_have_two_names(tmp_path: Path) -> None:
    files = [str(write_bzimage(tmp_path / name, "7.1.0")) for name in "ab"]
    variants = of_kernels(others_of_options(files, ()), {}, (), SERIES, with_baseline=True)
    assert [each.name for each in variants] == ["kernel-7_1_0-1", "kernel-7_1_0-1-control", "kernel-7_1_0-2"]


def test_a_knob_of_the_series_needs_its_path(tmp_path: Path) -> None:
    other = others_of_options([str(write_bzimage(tmp_path / "bzImage", "7.1.0"))], ())
    settings = {"promotion_threshold": ("256",)}
    with pytest.raises(UserError, match=r"/sys/kernel/mm/.*promotion_threshold=256"):
        of_kernels(other, settings, (), SERIES, with_baseline=True)
    swept = of_kernels(other, {"enabled": ("always", "never")}, (), SERIES, with_baseline=False)
    assert [each.name for each in swept] == ["kernel-7_1_0@enabled=always", "kernel-7_1_0@enabled=never"]


def test_a_run_of_such_kernels_needs_no_source_and_can_be_resumed(tmp_path: Path) -> None:
    asked = two(tmp_path)
    bench = bench_of(asked, tmp_path)
    assert all(bench.has_kernel(each.patchset) for each in asked.variants)
    lines = plan_of(asked, bench, "local", 1).lines
    assert sum("built elsewhere" in line for line in lines) == 3, lines
    writer = RunWriter.create(tmp_path / "results", "two", manifest_of(asked, bench, ["orchestrate"]))
    for patchset in dict.fromkeys(each.patchset for each in asked.variants):
        assert driver.build(writer, bench, patchset) is not None
    manifest = read_manifest(writer.path)
    assert manifest.variants[0].kernel is not None and manifest.variants[0].kernel.release == "7.1.0-old"
    assert requested_source(manifest, SERIES) is None
    assert experiment_of_manifest(manifest).variants == asked.variants
    driver.check_same_series(writer, bench)
    write_bzimage(tmp_path / "7.2.0-new", "7.2.0-newer")
    with pytest.raises(UserError, match="kernel-7_2_0-new has changed"):
        driver.check_same_series(writer, bench_of(asked, tmp_path))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ('kernel = "bzImage"', None),
        ('kernel = "bzImage"\npatchset = "core-only"', "has nothing to build"),
        ('vmlinux = "vmlinux"', "goes with the key kernel"),
        ('kernel = "absent"', "absent: No such file"),
    ],
)
def test_an_experiment_file_names_kernels(tmp_path: Path, keys: str, sentence: str | None) -> None:
    write_bzimage(tmp_path / "bzImage", "7.1.0")
    path = tmp_path / "mine.toml"
    path.write_text(
        f'[[variant]]\nname = "b"\npatchset = "baseline"\n[[variant]]\nname = "mine"\n{keys}\n[workload.touch]\n'
    )
    if sentence is not None:
        with pytest.raises(UserError, match=sentence):
            load_experiment(path, SERIES, WORKLOADS)
        return
    other = load_experiment(path, SERIES, WORKLOADS).variant("mine").other
    assert other is not None and other.kernel == str(tmp_path / "bzImage")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["exec", "--", "true"], "give a patchset"),
        (["exec", "-p", "baseline", "--kernel", "bzImage", "--", "true"], "omit --patchset or --kernel"),
        (["exec", "-p", "baseline", "--vmlinux", "v", "--", "true"], "--vmlinux goes with --kernel"),
        (["debug", "--kernel", "bzImage"], "gdb needs the vmlinux"),
        (["run", "--kernel", "bzImage", "--vmlinux", "a", "--vmlinux", "b"], "--vmlinux goes with --kernel"),
        (["run", "--kernel", "absent"], "absent: No such file"),
        (["run", "--compare", "a", "b", "--kernel", "bzImage"], "--compare takes two whole sources"),
        (["exec", "-p", "baseline", "--qemu", "/bin/true", "--", "true"], "no machine q35"),
        (["exec", "-p", "baseline", "--qemu", "absent", "--", "true"], "there is no such program"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: Sequence[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(tmp_path / "cache"))
    write_bzimage(tmp_path / "bzImage", "7.1.0")
    assert status_of(list(words)) == 2
    assert sentence in capsys.readouterr().err
