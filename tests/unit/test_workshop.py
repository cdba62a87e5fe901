# SPDX-License-Identifier: GPL-2.0-only
"""What a workshop makes of interruptions, damage, and what it built before."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from fake_tree import write_new_file, write_patch
from workbench import Workbench

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError
from orchestrator.events import Events
from orchestrator.kernel.build import BuildFailed, kernel_artefact


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def interrupted(workshop: Path) -> None:
    """Leave a workshop as a build does that was killed."""
    state = json.loads((workshop / "state.json").read_text())
    (workshop / "state.json").write_text(json.dumps({**state, "whole": False}))


def elsewhere(bench: Workbench, tmp_path: Path, patchset: str) -> bytes:
    """The image of a patchset that was built from nothing."""
    kernel = kernel_artefact(
        bench.tree(patchset), bench.configuration, Cache(tmp_path / f"cold-{patchset}"), Events()
    ).obtain()
    return kernel.bzimage.read_bytes()


def test_the_whole_source_is_laid_out(bench: Workbench) -> None:
    bench.build("stage-1")
    assert (bench.workshop / "source/include/linux/mm.h").is_file()
    assert (bench.workshop / "source/link").is_symlink()


def test_a_half_written_object_is_compiled_again(bench: Workbench, tmp_path: Path) -> None:
    bench.build()
    written = bench.workshop / "objects/mm/memory.o"
    written.write_bytes(written.read_bytes()[:100])  # newer than its .cmd, as after SIGKILL
    interrupted(bench.workshop)
    bench.seen.clear()
    main = write_new_file(bench.patches / "6.12/0001.patch", "mm/other.h", "/* */")  # touches no object
    assert main.exists()
    kernel = bench.build("stage-1")
    assert "mm/memory.o" in bench.compiled()
    assert kernel.bzimage.read_bytes() == elsewhere(bench, tmp_path, "stage-1")


def test_only_what_was_cut_short_is_compiled_again(bench: Workbench) -> None:
    bench.build()
    time.sleep(2.2)  # the last two seconds before an interruption are not trusted
    for name in ("mm/memory.o", "mm/.memory.o.cmd"):
        (bench.workshop / "objects" / name).touch()
    interrupted(bench.workshop)
    bench.seen.clear()
    bench.build("stage-1")
    assert bench.compiled() == ["mm/memory.o"]
    assert any("interrupted" in note for note in bench.notes())


def test_a_file_that_an_interrupted_checkout_left_goes(bench: Workbench) -> None:
    bench.build()
    (bench.workshop / "source/include/linux/stray.h").write_text("")
    interrupted(bench.workshop)
    bench.build("stage-1")
    assert not (bench.workshop / "source/include/linux/stray.h").exists()


def test_damaged_objects_are_built_from_scratch(bench: Workbench, tmp_path: Path) -> None:
    bench.build()
    (bench.workshop / "objects/init/main.o").write_bytes(b"no object")
    kernel = bench.build("stage-1")
    assert any("damaged" in note for note in bench.notes())
    assert kernel.bzimage.read_bytes() == elsewhere(bench, tmp_path, "stage-1")


@pytest.mark.parametrize(
    "damage", ["index gone", "index broken", "source gone", "objects gone", "state broken"]
)
def test_a_damaged_workshop_is_laid_out_again(bench: Workbench, tmp_path: Path, damage: str) -> None:
    bench.build()
    part, _, what = damage.partition(" ")
    path = bench.workshop / ("state.json" if part == "state" else part)
    if what == "broken":
        path.write_bytes(b"DIRC broken")
    elif path.is_dir():
        path.rename(tmp_path / "gone")
    else:
        path.unlink()
    assert bench.build("stage-1").bzimage.read_bytes() == elsewhere(bench, tmp_path, "stage-1")


def test_what_was_edited_by_hand_is_mended(bench: Workbench, tmp_path: Path) -> None:
    bench.build()
    (bench.workshop / "source/init/main.c").write_text("int main(void) { return 42; }\n")
    (bench.workshop / "objects/.config").write_text("CONFIG_NUMA=y\nCONFIG_ADDED=y\n")
    kernel = bench.build("stage-1")
    assert kernel.bzimage.read_bytes() == elsewhere(bench, tmp_path, "stage-1")
    assert "CONFIG_ADDED" not in kernel.config.read_text()


def test_an_option_of_another_stage_does_not_linger(bench: Workbench) -> None:
    write_new_file(bench.patches / "6.12/0001.patch", "mm/Kconfig", "CONFIG_NOTHING y")
    patch = bench.patches / "6.12/0001.patch"
    patch.write_text(
        patch.read_text()
        .replace("new file mode 100644\n", "")
        .replace("--- /dev/null", "--- a/Kconfig")
        .replace("mm/Kconfig", "Kconfig")
        .replace("CONFIG_NOTHING", "CONFIG_STAGE")
    )
    assert "CONFIG_STAGE=y" in bench.build("stage-1").config.read_text()
    assert "CONFIG_STAGE" not in bench.build().config.read_text()


def test_another_configuration_of_the_flavour_uses_the_same_workshop(bench: Workbench) -> None:
    bench.build()
    bench.seen.clear()
    bench.fragment("measure", "CONFIG_KSM=y\n")
    assert "CONFIG_KSM=y" in bench.build().config.read_text()
    assert bench.compiled() == [] and bench.workshop.is_dir()


def test_warnings_do_not_depend_on_what_was_built_before(bench: Workbench, tmp_path: Path) -> None:
    write_patch(bench.patches / "6.12/0001.patch", "\treturn address;", "\tint unused; return address;")
    write_new_file(bench.patches / "6.12/0002.patch", "mm/other.h", "/* */")
    first = bench.build("stage-1").warnings
    assert len(first) == 1
    bench.seen.clear()
    assert bench.build("core-only").warnings == first and bench.compiled() == []
    assert bench.build().warnings == ()


def test_the_second_cold_build_knows_how_many_files_there_are(bench: Workbench, tmp_path: Path) -> None:
    bench.build()
    (bench.workshop / "objects").rename(tmp_path / "gone")
    bench.seen.clear()
    bench.build("stage-1")
    assert {event.total for event in bench.seen if event.kind == "progress" and event.unit == "files"} == {2}


def test_the_persons_environment_does_not_leak_in(bench: Workbench, tmp_path: Path) -> None:
    plain = bench.build().bzimage.read_bytes()
    variables = {"KCFLAGS": "-DHERE", "MAKEFLAGS": "n", "LLVM": "1", "GIT_DIR": "/nonexistent"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        assert elsewhere(bench, tmp_path, "baseline") == plain


def test_two_builds_of_a_flavour_take_turns(bench: Workbench) -> None:
    tree = bench.tree("stage-1")
    bench.build()
    lock = bench.cache.lock(bench.workshop.name)
    with lock:
        kernel = kernel_artefact(tree, bench.configuration, bench.cache, Events(bench.seen.append))
        other = threading.Thread(target=kernel.obtain)
        other.start()
        deadline = time.monotonic() + 20
        while not any("waiting" in note for note in bench.notes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert any("waiting" in note for note in bench.notes()) and other.is_alive()
    other.join(60)
    assert bench.build("stage-1").cached


def test_a_build_dies_with_its_orchestrate_and_leaves_a_usable_workshop(
    bench: Workbench, tmp_path: Path
) -> None:
    bench.build()
    write_new_file(bench.patches / "6.12/0001.patch", "slow", "each file takes five seconds")
    write_patch(bench.patches / "6.12/0002.patch", "\treturn address;", "\treturn address + 2;")
    tree, wanted = bench.tree("core-only"), bench.configuration
    code = (
        "import pickle, sys; from orchestrator.kernel.build import kernel_artefact;"
        "from orchestrator.events import Events;"
        "kernel_artefact(*pickle.load(sys.stdin.buffer), Events()).obtain()"
    )
    builder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert builder.stdin is not None
    builder.stdin.write(pickle.dumps((tree, wanted, bench.cache)))
    builder.stdin.close()
    deadline = time.monotonic() + 60
    while "sleep" not in _below(builder.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    below = psutil.Process(builder.pid).children(recursive=True)
    assert "sleep" in _below(builder.pid)
    makes = [each for each in below if each.name() == "make"]
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    assert makes and not psutil.wait_procs(makes, timeout=20)[1], "make outlived the build that started it"
    write_patch(bench.patches / "6.12/0001.patch", "\treturn address;", "\treturn address + 1;")
    assert bench.build("stage-1").bzimage.read_bytes() == elsewhere(bench, tmp_path, "stage-1")


def _below(pid: int) -> list[str]:
    try:
        return [each.name() for each in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def test_a_full_disk_is_not_the_patchs_fault(bench: Workbench) -> None:
    text = "#error No space left on device"
    write_patch(bench.patches / "6.12/0001.patch", "\treturn address;", f"\treturn address;\n+{text}")
    patch = bench.patches / "6.12/0001.patch"
    patch.write_text(patch.read_text().replace("-4,5 +4,5", "-4,5 +4,6"))
    with pytest.raises(InfrastructureError, match="disk is full") as caught:
        bench.build("stage-1")
    assert not isinstance(caught.value, BuildFailed) and caught.value.log is not None
    assert bench.build().bzimage.is_file()
