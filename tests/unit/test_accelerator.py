# SPDX-License-Identifier: GPL-2.0-only
"""Which accelerator is chosen, and what is said of it; the probe's QEMU is a script."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import process
from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Event, Events
from orchestrator.execution.cluster import _same_accelerator
from orchestrator.machine import accelerator
from orchestrator.machine.accelerator import QEMU, choose_accelerator, probe, probe_kernel
from orchestrator.store.manifest import AcceleratorRecord

SOURCE = Path(accelerator.__file__).with_name("probe.S")

Fake = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def fake_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Put a QEMU on the path that does what the given shell words say; return the file that counts its boots."""
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accelerator, "KVM_DEVICE", device)

    def put(does: str, version: str = "7.2.22", flags: str = "erms fsrm fzrmx") -> Path:
        boots = tmp_path / "boots"
        program = tmp_path / "bin" / accelerator.QEMU
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo "QEMU emulator version {version} (Debian 1:1.2-3)" && exit\n'
            f'[ "$*" = "-cpu help" ] && echo "Recognized CPUID flags:\n  avx {flags} xtpr" && exit\n'
            f'echo "$@" >> {boots}\n{does}\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=":")
        return boots

    return put


def test_the_probes_kernel_is_its_source_assembled(tmp_path: Path) -> None:
    if not (shutil.which("as") and shutil.which("ld")):
        pytest.skip("binutils are not installed")
    linked, assembled = tmp_path / "probe.bin", tmp_path / "probe.o"
    subprocess.run(["as", "--32", SOURCE, "-o", assembled], check=True)
    subprocess.run(
        ["ld", "-m", "elf_i386", "-Ttext", "0", "--oformat", "binary", assembled, "-o", linked], check=True
    )
    assert linked.read_bytes() == probe_kernel()
    # Each assembler has its own no-ops to fill a gap with, unless it is told what to use.
    for line in SOURCE.read_text(encoding="utf-8").splitlines():
        if ".balign" in line:
            assert re.search(r"\.balign\t\d+, 0\b", line), line


def test_the_probes_kernel_has_a_boot_header() -> None:
    kernel = probe_kernel()
    assert kernel[0x1FE:0x200] == b"\x55\xaa"
    assert kernel[0x202:0x206] == b"HdrS"
    assert kernel[0x211] & 1, "its protected-mode part is to be loaded at 1 MiB"


@pytest.mark.parametrize(("name", "clock"), [("icount", "insns"), ("tcg", "ns")])
def test_what_is_asked_for_is_taken_without_a_probe(
    name: str, clock: str, cache: Cache, fake_qemu: Fake
) -> None:
    boots = fake_qemu("exit 1")
    chosen = choose_accelerator(name, cache, Events())
    assert (chosen.name, chosen.clock, chosen.reason) == (name, clock, f"{name}, as requested")
    assert not boots.exists()


@pytest.mark.parametrize("name", ["icount", "tcg"])
@pytest.mark.parametrize(
    ("flags", "model"),
    [
        ("erms fsrm", "max,-erms,-fsrm,family=15,model=107,stepping=1"),
        ("fsrc erms fsrs fzrm fsrm", "max,-erms,-fsrm,-fsrs,-fzrm,-fsrc,family=15,model=107,stepping=1"),
    ],
)
def test_an_emulated_cpu_has_none_of_the_fast_string_instructions_that_qemu_knows(
    name: str, flags: str, model: str, cache: Cache, fake_qemu: Fake
) -> None:
    fake_qemu("exit 1", flags=flags)
    chosen = choose_accelerator(name, cache, Events())
    assert chosen.cpu == model
    assert chosen.qemu_arguments[-2:] == ("-cpu", model)


def test_what_a_run_records_of_it(cache: Cache, fake_qemu: Fake) -> None:
    fake_qemu("exit 1", version="10.0.13")
    record = choose_accelerator("icount", cache, Events()).record
    binary = Path(process.require(QEMU)).read_bytes()
    assert record == AcceleratorRecord(
        name="icount",
        clock="insns",
        reason="icount, as requested",
        cpu="max,-erms,-fsrm,family=15,model=107,stepping=1",
        qemu="10.0.13",
        qemu_digest=hashlib.sha256(binary).hexdigest(),
    )


def test_a_qemu_that_was_replaced_has_another_digest(cache: Cache, fake_qemu: Fake) -> None:
    fake_qemu("exit 1", version="10.0.13")
    before = choose_accelerator("icount", cache, Events()).record
    fake_qemu("exit 2", version="10.0.13")
    after = choose_accelerator("icount", cache, Events()).record
    assert before.qemu == after.qemu and before.qemu_digest != after.qemu_digest


def test_kvm_is_taken_where_the_probe_reaches_a_kernel(cache: Cache, fake_qemu: Fake) -> None:
    boots = fake_qemu("echo 'orchestrate: probe reached'; exit 1")
    for request in ("auto", "kvm"):
        chosen = choose_accelerator(request, cache, Events())
        assert (chosen.name, chosen.clock) == ("kvm", "ns")
        assert chosen.qemu_arguments == ("-accel", "kvm", "-cpu", "host")
    assert "-accel kvm" in boots.read_text() and "-kernel" in boots.read_text()


def test_the_probes_answer_is_kept(cache: Cache, fake_qemu: Fake) -> None:
    seen: list[Event] = []
    boots = fake_qemu("echo nothing")
    for _ in range(3):
        assert choose_accelerator("auto", cache, Events(seen.append)).name == "icount"
    assert len(boots.read_text().splitlines()) == 1
    assert [event.step for event in seen if event.kind == "start"] == [("probe KVM",)]


def test_another_qemu_is_probed_anew(cache: Cache, fake_qemu: Fake) -> None:
    fake_qemu("echo nothing")
    assert choose_accelerator("auto", cache, Events()).name == "icount"
    fake_qemu("echo 'orchestrate: probe reached'", version="9.0")
    assert choose_accelerator("auto", cache, Events()).name == "kvm"


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("echo 'KVM internal error. Suberror: 1' >&2; sleep 60", "KVM failed to emulate an instruction"),
        ("echo 'KVM internal error. Suberror: 3' >&2; sleep 60", "KVM internal error. Suberror: 3"),
        ("echo 'ioctl(KVM_CREATE_VM) failed: 16' >&2; exit 1", "ioctl(KVM_CREATE_VM) failed: 16"),
        ("exit 0", "QEMU printed nothing"),
    ],
)
def test_one_line_says_why_kvm_is_not_used(does: str, reason: str, cache: Cache, fake_qemu: Fake) -> None:
    fake_qemu(does)
    chosen = choose_accelerator("auto", cache, Events())
    assert chosen.name == "icount"
    assert chosen.reason == f"icount; KVM not used: a probe kernel did not run ({reason})"
    with pytest.raises(InfrastructureError, match="KVM does not work on this host"):
        choose_accelerator("kvm", cache, Events())


def test_a_silent_probe_is_given_up_in_time(fake_qemu: Fake) -> None:
    fake_qemu("sleep 60")
    answer = probe("kvm", timeout_s=0.5)
    assert not answer.reached
    assert answer.reason == "a probe kernel did not run (no kernel had started after 0.5 s)"
    assert answer.seconds < 5


def test_without_the_device_nothing_is_booted(
    cache: Cache, fake_qemu: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boots = fake_qemu("echo 'orchestrate: probe reached'")
    monkeypatch.setattr(accelerator, "KVM_DEVICE", tmp_path / "none")
    chosen = choose_accelerator("auto", cache, Events())
    assert chosen.name == "icount" and "there is no" in chosen.reason
    assert not boots.exists()


def test_unknown_names_and_a_missing_qemu(
    cache: Cache, fake_qemu: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_qemu("")
    with pytest.raises(UserError, match="unknown accelerator 'xen'; choose auto, icount, tcg or kvm"):
        choose_accelerator("xen", cache, Events())
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(InfrastructureError, match="qemu-system-x86"):
        choose_accelerator("auto", cache, Events())


def test_a_worker_with_another_qemu_is_refused(cache: Cache, fake_qemu: Fake) -> None:
    fake_qemu("", version="7.2.22")
    here = choose_accelerator("icount", cache, Events())
    assert _same_accelerator(here) == here
    fake_qemu("", version="10.0.13", flags="erms fsrm fsrs")
    with pytest.raises(InfrastructureError, match=r"a worker has QEMU 10.0.13 .* and the run QEMU 7.2.22"):
        _same_accelerator(here)


def test_another_qemu_is_started_asked_and_recorded(cache: Cache, fake_qemu: Fake, tmp_path: Path) -> None:
    fake_qemu("echo 'q35  Standard PC'; exit 0", version="11.0.1", flags="fsrm")
    (tmp_path / "bin" / QEMU).rename(tmp_path / "mine")
    fake_qemu("exit 1", version="7.2.22")
    program = accelerator.qemu_at(tmp_path / "mine")
    chosen = choose_accelerator("icount", cache, Events(), program)
    assert (chosen.qemu, chosen.program) == ("11.0.1", str(tmp_path / "mine"))
    assert chosen.cpu == "max,-fsrm,family=15,model=107,stepping=1"
    assert chosen.record.program == str(tmp_path / "mine")
    assert choose_accelerator("icount", cache, Events()).record.program is None


def test_a_program_that_is_no_qemu_for_x86_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no machine q35"):
        accelerator.qemu_at(Path("/bin/true"))
    with pytest.raises(UserError, match="no such program"):
        accelerator.qemu_at(tmp_path / "absent")
