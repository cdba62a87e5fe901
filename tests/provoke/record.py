#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Records the reports of a kernel that is made to fail: the logs in tests/unit/data/console/recorded.

Needs the source of a kernel (an own copy: provoke.c is added to it), and QEMU. A boot with several steps gives one log
per step, cut at the marks that init.c prints.

    tests/provoke/record.py --source COPY_OF_LINUX --work DIR [--only NAME]...
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
OUTPUT = HERE.parent / "unit" / "data" / "console" / "recorded"
FRAGMENTS = HERE.parents[1] / "vm_images" / "kernel"


@dataclass(frozen=True)
class RecordedBoot:
    """One guest.

    Args:
        steps: what init.c does, see there.
        cmdline: more kernel parameters.
        name: of the log, if there is one for all steps; empty for one log per step.
        seconds: host seconds until it is ended.
    """

    steps: tuple[str, ...]
    cmdline: str = ""
    name: str = ""
    seconds: float = 240.0


SYSCTL = "/proc/sys/kernel"
BOOTS = (
    RecordedBoot(
        (
            "warn", "warn_text", "warn_moved", "warn_page", "refcount_zero", "refcount_below",
            "ubsan_bounds", "ubsan_shift", "ubsan_bool", "sleep_in_atomic", "schedule_in_atomic", "work_leaks",
            "object_freed_active", "bad_pmd", "bad_rss", "bad_page_mapping", "bad_page_refcount", "rcu_suspicious",
        )
    ),
    RecordedBoot(
        (
            "kasan_write", "kasan_memcpy", "kasan_freed", "kasan_double_free", "kasan_stack", "kasan_global",
            "kasan_user", "kasan_page", "kasan_three",
        ),
        "kasan_multi_shot",
    ),
    RecordedBoot(
        (
            "fault_null", "fault_page", "fault_gpf", "fault_divide", "fault_opcode", "fault_jump", "fault_memset",
            "bug", "bug_header", "list_added_twice", "list_deleted_twice", "usercopy",
            "lkdtm:BUG", "lkdtm:WARNING", "lkdtm:WARNING_MESSAGE", "lkdtm:EXCEPTION", "lkdtm:ARRAY_BOUNDS",
            "lkdtm:WRITE_RO", "lkdtm:EXEC_DATA", "lkdtm:ACCESS_NULL", "lkdtm:CORRUPT_LIST_ADD",
            "lkdtm:CORRUPT_LIST_DEL", "lkdtm:REFCOUNT_ADD_OVERFLOW", "lkdtm:READ_AFTER_FREE",
            "lkdtm:USERCOPY_SLAB_SIZE_TO", "lkdtm:SLAB_FREE_CROSS", "lkdtm:UNALIGNED_LOAD_STORE_WRITE",
        ),
        "kasan_multi_shot",
    ),
    RecordedBoot(("slub_right", "slub_poison", "slub_remaining"), "slab_debug=FZPU kasan_multi_shot"),
    RecordedBoot(("page_poison",), "page_poison=1"),
    RecordedBoot(("vmstat_negative", "/proc/sys/vm/stat_refresh=1"), name="vmstat_negative"),
    RecordedBoot(
        ("leak", "sleep:8", "/sys/kernel/debug/kmemleak=scan", "sleep:2", "/sys/kernel/debug/kmemleak=scan"),
        name="leak",
    ),
    *(
        RecordedBoot((name,))
        for name in (
            "lock_cycle", "lock_cycle_mmap", "lock_twice", "lock_softirq", "lock_unsafe_order", "lock_wait_context",
            "lock_unbalanced", "lock_freed", "lock_kept", "lock_no_key", "recurse", "fault_interrupt", "just_panic",
            "stack_end", "two_cpus",
        )
    ),
    RecordedBoot((f"{SYSCTL}/panic_on_warn=1", "warn_text"), name="panic_on_warn"),
    RecordedBoot((f"{SYSCTL}/panic_on_oops=1", "fault_null"), name="panic_on_oops"),
    RecordedBoot((f"{SYSCTL}/panic_on_warn=1", "kasan_freed"), name="panic_on_kasan"),
    RecordedBoot((f"{SYSCTL}/hung_task_timeout_secs=10", "hang"), name="hang"),
    RecordedBoot(
        (f"{SYSCTL}/hung_task_timeout_secs=10", f"{SYSCTL}/hung_task_panic=1", "hang"),
        name="panic_on_hang",
    ),
    RecordedBoot(("spin_long",)),
    RecordedBoot(("spin_in_rcu",), "rcupdate.rcu_cpu_stall_timeout=10 nosoftlockup"),
    RecordedBoot(("work_stuck",), "workqueue.watchdog_thresh=10 nosoftlockup rcupdate.rcu_cpu_stall_suppress=1"),
    RecordedBoot(("spin_magic",)),
)  # fmt: skip

MARK = re.compile(r"\] provoke: (?P<step>\S+)")


def build(source: Path, work: Path) -> Path:
    """Build the kernel; return the directory of its objects."""
    objects = work / "obj"
    objects.mkdir(parents=True, exist_ok=True)
    (source / "drivers/misc/provoke.c").write_bytes((HERE / "provoke.c").read_bytes())
    makefile = source / "drivers/misc/Makefile"
    if "provoke.o" not in makefile.read_text():
        makefile.write_text(makefile.read_text() + "obj-y += provoke.o\n")
    fragments = [
        *(FRAGMENTS / f"{name}.config" for name in ("base", "debug-locks", "dwarf")),
        HERE / "provoke.config",
    ]
    (work / "all.config").write_text("".join(each.read_text() for each in fragments))
    make = ["make", "-s", f"O={objects}", f"-j{os.cpu_count()}"]
    maps = f"KCFLAGS=-ffile-prefix-map={source}/= -ffile-prefix-map={objects}=."
    subprocess.run([*make, f"KCONFIG_ALLCONFIG={work / 'all.config'}", "allnoconfig"], cwd=source, check=True)
    pinned = {
        "KBUILD_BUILD_USER": "orchestrate",
        "KBUILD_BUILD_HOST": "localhost",
        "KBUILD_BUILD_VERSION": "1",
    }
    subprocess.run([*make, maps, "bzImage"], cwd=source, check=True, env={**os.environ, **pinned})
    return objects


def initramfs(work: Path) -> Path:
    """Build the file system of the guest: init.c, linked statically."""
    with tempfile.TemporaryDirectory() as root:
        for name in ("proc", "sys", "dev"):
            Path(root, name).mkdir()
        subprocess.run(["gcc", "-static", "-O2", "-o", f"{root}/init", HERE / "init.c"], check=True)
        archive = work / "init.cpio"
        with archive.open("wb") as stream:
            subprocess.run(
                ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"],
                input=b"proc\nsys\ndev\ninit\n", stdout=stream, cwd=root, check=True,
            )  # fmt: skip
    return archive


def record(boot: RecordedBoot, kernel: Path, archive: Path) -> str:
    """Boot, and return the console log."""
    cmdline = (
        f"console=ttyS0 loglevel=7 panic=-1 comm=provoke_it {boot.cmdline} provoke={','.join(boot.steps)}"
    )
    argv: list[str | Path] = [
        "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "512M", "-nographic", "-nodefaults",
        "-serial", "stdio", "-no-reboot", "-kernel", kernel, "-initrd", archive, "-append", cmdline,
    ]  # fmt: skip
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=boot.seconds, check=False
        )
        said = done.stdout
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
    return said.decode(errors="replace").replace("\r", "")


def cut(boot: RecordedBoot, log: str) -> dict[str, str]:
    """The logs of the steps, each with the banner of the kernel."""
    lines = [line for line in log.splitlines() if line.startswith("[")]
    banner = [line for line in lines if "] Linux version " in line][:1]
    at = [(index, match["step"]) for index, line in enumerate(lines) if (match := MARK.search(line))]
    if not at:
        return {}
    if boot.name:
        return {boot.name: "\n".join([*banner, *lines[at[0][0] :]]) + "\n"}
    ends = [*(index for index, _ in at[1:]), len(lines)]
    return {
        step.replace(":", "-"): "\n".join([*banner, *lines[begin:end]]) + "\n"
        for (begin, step), end in zip(at, ends, strict=True)
        if step in boot.steps
    }


def main() -> int:
    """Build, boot, and write the logs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", action="append", help="record boots with this step or name only")
    parser.add_argument("--built", action="store_true", help="the kernel in WORK is up to date")
    asked = parser.parse_args()
    objects = asked.work / "obj" if asked.built else build(asked.source.resolve(), asked.work.resolve())
    archive = initramfs(asked.work)
    OUTPUT.mkdir(exist_ok=True)
    for boot in BOOTS:
        if asked.only and not {*boot.steps, boot.name} & set(asked.only):
            continue
        log = record(boot, objects / "arch/x86/boot/bzImage", archive).replace(
            f"{asked.source.resolve()}/", ""
        )
        (asked.work / f"last-{boot.name or boot.steps[0].replace('/', '_')}.log").write_text(log)
        logs = cut(boot, log)
        for name, text in logs.items():
            (OUTPUT / f"{name}.log").write_text(text)
        missing = "" if boot.name else ", ".join(s for s in boot.steps if s.replace(":", "-") not in logs)
        lost = f"; not reached: {missing}" if missing else ""
        sys.stdout.write(f"{boot.name or boot.steps[0]}: {len(logs)} logs{lost}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
