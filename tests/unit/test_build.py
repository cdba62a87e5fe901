# SPDX-License-Identifier: GPL-2.0-only
"""The build, with a make of its own that has everything of the kernel's but its size."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from fake_tree import write_patch
from workbench import Workbench

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Events
from orchestrator.kernel.build import BuildFailed, kernel_artefact
from orchestrator.kernel.elf import build_id
from orchestrator.kernel.series import load_series
from orchestrator.kernel.source import import_source
from orchestrator.kernel.tree import apply_stages


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def test_a_kernel_has_its_artefacts(bench: Workbench) -> None:
    kernel = bench.build()
    assert kernel.bzimage.is_file() and "CONFIG_NUMA=y" in kernel.config.read_text()
    assert "CC      mm/memory.o" in kernel.log.read_text()
    assert kernel.release == "6.12.117" and kernel.build_id == build_id(kernel.vmlinux)
    assert not kernel.cached and kernel.warnings == ()


def test_a_kernel_is_built_once(bench: Workbench) -> None:
    assert not kernel_artefact(bench.tree("baseline"), bench.configuration, bench.cache, Events()).is_made
    first = bench.build()
    bench.seen.clear()
    again = bench.build()
    assert again.cached and again.directory == first.directory and bench.compiled() == []


def test_the_next_stage_compiles_what_it_touches(bench: Workbench) -> None:
    first = bench.build()
    bench.seen.clear()
    second = bench.build("stage-1")
    assert bench.compiled() == ["mm/memory.o"]
    assert second.build_id != first.build_id


def test_the_same_tree_gives_the_same_binary_elsewhere(bench: Workbench, tmp_path: Path) -> None:
    bench.fragment("measure", "CONFIG_DEBUG_INFO_DWARF5=y\n")
    bench.build("full")
    first = bench.build("stage-1")
    other = Cache(tmp_path / "elsewhere")
    source = import_source(str(tmp_path / "linux"), "linux-source-6.12", other, Events())
    tree = apply_stages(source, load_series(bench.patches).select("stage-1"), other, Events())
    again = kernel_artefact(tree, bench.configuration, other, Events()).obtain()
    assert again.digest == first.digest and not again.cached
    assert again.bzimage.read_bytes() == first.bzimage.read_bytes()


def test_an_option_that_vanishes_is_an_error_each_time(bench: Workbench) -> None:
    bench.fragment("measure", "CONFIG_UNMET=y\n")
    for _ in range(2):
        with pytest.raises(UserError, match=r"CONFIG_UNMET \(requested y, got nothing\)"):
            bench.build()
    assert not list(bench.cache.root.glob("kernel/*"))


def test_a_tree_that_does_not_compile_shows_the_compilers_error(bench: Workbench) -> None:
    write_patch(bench.patches / "6.12" / "0001.patch", "\treturn address;", "\treturn adress;")
    with pytest.raises(BuildFailed) as caught:
        bench.build("stage-1")
    assert "memory.c" in str(caught.value) and "adress" in str(caught.value)
    assert caught.value.log is not None and caught.value.log.read_text()
    assert not list(bench.cache.root.glob("kernel/*"))
    assert bench.build().bzimage.is_file(), "a failed build spoilt the next one"


def test_warnings_are_kept(bench: Workbench) -> None:
    write_patch(bench.patches / "6.12" / "0001.patch", "\treturn address;", "\tint unused; return address;")
    (warning,) = bench.build("stage-1").warnings
    assert "unused variable" in warning and warning.startswith("mm/memory.c:")


def test_a_missing_tool_names_its_package(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree, wanted = bench.tree("baseline"), bench.configuration
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("git", "gcc", "ld", "setpriv", "make"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(InfrastructureError, match="Debian package flex"):
        kernel_artefact(tree, wanted, bench.cache, Events()).obtain()


def test_a_host_without_libelf_is_told_its_package(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree, wanted = bench.tree("baseline"), bench.configuration
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "gelf.h").write_text('#error "as if it were not there"\n')
    monkeypatch.setenv("CPATH", str(tmp_path / "include"))
    with pytest.raises(InfrastructureError, match="libelf-dev"):
        kernel_artefact(tree, wanted, bench.cache, Events()).obtain()


def test_the_log_of_each_tree_that_does_not_compile_is_kept(bench: Workbench) -> None:
    logs = []
    for wrong in ("\treturn adress;", "\treturn adres;"):
        write_patch(bench.patches / "6.12" / "0001.patch", "\treturn address;", wrong)
        with pytest.raises(BuildFailed, match="core-only:1 does not compile as measure") as caught:
            bench.build("stage-1")
        assert caught.value.log is not None
        logs.append(caught.value.log)
    assert "adress" in logs[0].read_text() and "adress" not in logs[1].read_text()
    assert caught.value.exit_status == 3, "a finding about the patch, not a failure of the host"


def test_a_failed_build_survives_the_way_between_processes() -> None:
    failure = pickle.loads(pickle.dumps(BuildFailed("core-only:1 does not compile", Path("build.log"))))
    assert (str(failure), failure.log) == ("core-only:1 does not compile", Path("build.log"))
