# SPDX-License-Identifier: GPL-2.0-only
"""What is read out of console logs: recorded ones, and forms that are well known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.machine.oops import parse_console
from orchestrator.store.outcome import Outcome

CONSOLE = Path(__file__).parent / "data" / "console"
BUG, PANIC = Outcome.KERNEL_BUG, Outcome.KERNEL_PANIC

#: Log -> its findings: outcome, title, words of the first and of the last line of the report.
RECORDED: dict[str, list[tuple[Outcome, str, str, str]]] = {
    "bad-page-state": [
        (
            BUG,
            "BUG: Bad page state in provoke_write (non-NULL mapping)",
            "BUG: Bad page state in process sh",
            "Disabling lock debugging",
        )
    ],
    "bug-on": [
        (BUG, "kernel BUG in provoke_bug at drivers/misc/provoke.c:18", "[ cut here ]", "---[ end trace")
    ],
    "double-fault": [
        (
            PANIC,
            "double fault in provoke_double; then kernel panic: Fatal exception in interrupt",
            "PANIC: double fault",
            "Kernel Offset",
        )
    ],
    "hung-task": [(BUG, "hung task in provoke_hung", "INFO: task sh:167 blocked", "</TASK>")],
    "kfence-use-after-free": [(BUG, "KFENCE: use-after-free read in provoke_uaf", "====", "====")],
    "list-corruption": [
        (
            BUG,
            (
                "kernel BUG in provoke_list at lib/list_debug.c:62"
                " (list_del corruption. prev->next should be X, but was X. (prev=X))"
            ),
            "list_del corruption",
            "---[ end trace",
        ),
    ],
    "oom-kill": [],
    "oops-divide": [(BUG, "divide error in provoke_divide", "Oops: divide error", "---[ end trace")],
    "oops-gpf": [
        (BUG, "general protection fault in provoke_gpf", "Oops: general protection", "---[ end trace")
    ],
    "oops-null": [
        (
            BUG,
            "BUG: kernel NULL pointer dereference in provoke_null",
            "BUG: kernel NULL pointer dereference, address:",
            "---[ end trace",
        )
    ],
    "oops-page-fault": [
        (
            BUG,
            "BUG: unable to handle page fault in provoke_fault",
            "BUG: unable to handle page fault for address",
            "---[ end trace",
        )
    ],
    "panic-init-exit": [
        (
            PANIC,
            "Kernel panic: Attempted to kill init! exitcode=X",
            "Kernel panic - not syncing",
            "Kernel Offset",
        )
    ],
    "panic-no-init": [
        (
            PANIC,
            "Kernel panic: VFS: Unable to mount root fs on unknown-block(N,N)",
            "Kernel panic - not syncing: VFS",
            "Kernel Offset",
        )
    ],
    "panic-on-oops": [
        (
            PANIC,
            "BUG: kernel NULL pointer dereference in provoke_null; then kernel panic: Fatal exception",
            "BUG: kernel NULL pointer dereference",
            "Kernel Offset",
        )
    ],
    "panic-on-warn": [
        (
            PANIC,
            "WARNING in provoke_warn at drivers/misc/provoke.c:19; then kernel panic: kernel: panic_on_warn set",
            "[ cut here ]",
            "Kernel Offset",
        )
    ],
    "panic-sysrq": [
        (PANIC, "Kernel panic: sysrq triggered crash", "Kernel panic - not syncing: sysrq", "Kernel Offset")
    ],
    "rcu-stall": [
        (BUG, "RCU stall in provoke_soft", "rcu: INFO: rcu_preempt self-detected stall", "</TASK>")
    ],
    "refcount": [
        (
            BUG,
            "WARNING in provoke_refcount at lib/refcount.c:31 (refcount_t: decrement hit N; leaking memory)",
            "[ cut here ]",
            "---[ end trace",
        )
    ],
    "scheduling-while-atomic": [
        (
            BUG,
            "BUG: scheduling while atomic in provoke_atomic",
            "BUG: scheduling while atomic: sh",
            "</TASK>",
        ),
        (BUG, "BUG: scheduling while atomic in do_exit", "BUG: scheduling while atomic: sh", "</TASK>"),
    ],
    "segfault": [],
    "several": [
        (BUG, "WARNING in provoke_warn at drivers/misc/provoke.c:19", "[ cut here ]", "---[ end trace"),
        (
            BUG,
            "WARNING in provoke_warn_text at drivers/misc/provoke.c:20 (provoked: N pages too many)",
            "[ cut here ]",
            "---[ end trace",
        ),
        (BUG, "BUG: kernel NULL pointer dereference in provoke_null", "BUG: kernel NULL", "---[ end trace"),
        (
            BUG,
            "SLUB kmalloc-64: Right Redzone overwritten in provoke_write",
            "[Right Redzone overwritten]",
            "---[ end trace",
        ),
        (
            BUG,
            "BUG: Bad rss-counter state type:MM_ANONPAGES",
            "BUG: Bad rss-counter state mm:",
            "type:MM_ANONPAGES val:5",
        ),
    ],
    "slub-redzone": [
        (
            BUG,
            "SLUB kmalloc-64: Right Redzone overwritten in provoke_write",
            "[Right Redzone overwritten]",
            "---[ end trace",
        )
    ],
    "soft-lockup": [(BUG, "soft lockup in provoke_soft", "watchdog: BUG: soft lockup - CPU#", "</TASK>")],
    "stack-overflow": [
        (
            PANIC,
            "BUG: stack guard page hit in provoke_recurse; then kernel panic: Fatal exception in interrupt",
            "BUG: TASK stack guard page was hit",
            "Kernel Offset",
        )
    ],
    "warning": [
        (BUG, "WARNING in provoke_warn at drivers/misc/provoke.c:19", "[ cut here ]", "---[ end trace"),
    ],
    "warning-text": [
        (
            BUG,
            "WARNING in provoke_warn_text at drivers/misc/provoke.c:20 (provoked: N pages too many)",
            "[ cut here ]",
            "---[ end trace",
        ),
    ],
}


def log(name: str) -> str:
    return (CONSOLE / f"{name}.log").read_text(encoding="utf-8")


def titles(text: str) -> list[str]:
    return [finding.title for finding in parse_console(text)]


def test_every_recorded_log_is_expected_to_be_something() -> None:
    assert {path.stem for path in CONSOLE.glob("*.log")} == set(RECORDED)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_recorded_log(name: str) -> None:
    found = parse_console(log(name))
    assert [(finding.outcome, finding.title) for finding in found] == [(e[0], e[1]) for e in RECORDED[name]]
    for finding, (_, _, first, last) in zip(found, RECORDED[name], strict=True):
        assert first in finding.text.splitlines()[0]
        assert last in finding.text.splitlines()[-1]
        assert log(name).splitlines()[finding.line - 1] == finding.text.splitlines()[0]


def test_repeats_of_one_defect_are_one_finding() -> None:
    assert [(finding.title, finding.count) for finding in parse_console(log("hung-task"))] == [
        ("hung task in provoke_hung", 3)
    ]


@pytest.mark.parametrize("name", sorted(name for name, expected in RECORDED.items() if expected))
def test_a_report_that_is_cut_off_still_counts(name: str) -> None:
    lines = log(name).splitlines()
    first = RECORDED[name][0]
    begins = parse_console(log(name))[0].line - 1
    # Its headline is at most four lines below its ruler.
    for end in range(begins + 5, len(lines)):
        found = parse_console("\n".join(lines[:end]))
        assert found, f"nothing found in the first {end} lines"
        assert found[0].outcome in (BUG, first[0])


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_carriage_returns_and_other_prefixes_change_nothing(name: str) -> None:
    text = log(name)
    assert titles(text.replace("\n", "\r\n")) == titles(text)
    with_caller = re.sub(r"^(\[ *\d+\.\d{6}\]) ", r"\1[  T167] ", text, flags=re.MULTILINE)
    assert titles(with_caller) == titles(text)
    with_level = re.sub(r"^(\[ *\d+\.\d{6}\]) ", r"<4>\1 ", text, flags=re.MULTILINE)
    assert titles(with_level) == titles(text)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_log_without_timestamps_reads_the_same(name: str) -> None:
    bare = re.sub(r"^.*?\[ *\d+\.\d{6}\] ", "", log(name), flags=re.MULTILINE)
    assert [title.split(";")[0] for title in titles(bare)] == [e[1].split(";")[0] for e in RECORDED[name]]


@pytest.mark.parametrize("name", ["oops-null", "warning", "several", "panic-on-oops", "slub-redzone"])
@settings(deadline=None)  # a busy host is no failure
@given(data=st.data())
def test_what_user_space_writes_in_between_changes_nothing(name: str, data: st.DataObject) -> None:
    lines = log(name).splitlines()
    said = st.sampled_from(
        ["{}", "BUG: mine", "WARNING: disk full", "Kernel panic - not syncing: joke", "---"]
    )
    for position in sorted(data.draw(st.sets(st.integers(5, len(lines)), max_size=12)), reverse=True):
        lines.insert(position, data.draw(said))
    assert titles("\n".join(lines)) == titles(log(name))


def test_a_kernel_line_behind_an_unfinished_line_of_user_space() -> None:
    text = log("panic-sysrq").replace("[    ", "progress 17 %[    ")
    assert titles(text) == ["Kernel panic: sysrq triggered crash"]


@settings(deadline=None)  # a busy host is no failure
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=2000))
def test_any_text_can_be_read(text: str) -> None:
    parse_console(text)


@settings(deadline=None)  # a busy host is no failure
@given(
    st.lists(
        st.sampled_from(sorted({line for name in RECORDED for line in log(name).splitlines()})), max_size=60
    )
)
def test_any_mixture_of_lines_can_be_read(lines: list[str]) -> None:
    for finding in parse_console("\n".join(lines)):
        assert finding.text
        assert (
            lines[finding.line - 1] == finding.text.splitlines()[0]
            or not finding.text.splitlines()[0].strip()
        )


# --- forms that are well known, written down from the kernel's sources, not recorded --------------------------------

KASAN = """
[   12.1] other
[   12.345678] ==================================================================
[   12.345678] BUG: KASAN: slab-out-of-bounds in thp_resv_fill+0x1c4/0x310
[   12.345678] Write of size 8 at addr ffff888103d4f0c0 by task chunk/161
[   12.345678]
[   12.345678] CPU: 1 UID: 0 PID: 161 Comm: chunk Not tainted 6.12.117 #1
[   12.345678] Call Trace:
[   12.345678]  <TASK>
[   12.345678]  dump_stack_lvl+0x5e/0x90
[   12.345678]  kasan_report+0xd9/0x110
[   12.345678]  thp_resv_fill+0x1c4/0x310
[   12.345678]  </TASK>
[   12.345678]
[   12.345678] Allocated by task 161:
[   12.345678]  kasan_save_stack+0x24/0x50
[   12.345678]
[   12.345678] Memory state around the buggy address:
[   12.345678] >ffff888103d4f080: 00 00 00 00 00 00 00 00 fc fc fc fc fc fc fc fc
[   12.345678]                                            ^
[   12.345678] ==================================================================
[   12.345678] Disabling lock debugging due to kernel taint
[   13.000000] unrelated
"""

LOCKDEP = """
[    5.000001] ======================================================
[    5.000001] WARNING: possible circular locking dependency detected
[    5.000001] 6.12.117 #1 Not tainted
[    5.000001] ------------------------------------------------------
[    5.000001] khugepaged/38 is trying to acquire lock:
[    5.000001] ffff888003a2b0d8 (&resv->lock){+.+.}-{3:3}, at: thp_resv_release+0x2b/0xa0
[    5.000001]
[    5.000001] but task is already holding lock:
[    5.000001] ffff888003a2b118 (&mm->mmap_lock){++++}-{4:4}, at: khugepaged+0x123/0x456
[    5.000001]
[    5.000001] which lock already depends on the new lock.
[    5.000001]
[    5.000001] the existing dependency chain (in reverse order) is:
[    5.000001]
[    5.000001] -> #1 (&mm->mmap_lock){++++}-{4:4}:
[    5.000001]        down_write+0x3a/0xa0
[    5.000001]
[    5.000001] Possible unsafe locking scenario:
[    5.000001]
[    5.000001]  *** DEADLOCK ***
[    5.000001]
[    5.000001] 1 lock held by khugepaged/38:
[    5.000001]  #0: ffff888003a2b118 (&mm->mmap_lock){++++}-{4:4}, at: khugepaged+0x123/0x456
[    5.000001]
[    5.000001] stack backtrace:
[    5.000001] CPU: 0 UID: 0 PID: 38 Comm: khugepaged Not tainted 6.12.117 #1
[    5.000001] Call Trace:
[    5.000001]  <TASK>
[    5.000001]  dump_stack_lvl+0x5e/0x90
[    5.000001]  check_noncircular+0x1a0/0x1c0
[    5.000001]  </TASK>
[    6.000000] unrelated
"""

FORMS = [
    (KASAN, "KASAN: slab-out-of-bounds in thp_resv_fill"),
    (
        LOCKDEP,
        (
            "lockdep: possible circular locking dependency detected in thp_resv_release"
            " (&resv->lock, &mm->mmap_lock)"
        ),
    ),
    (
        "[    1.000000] WARNING: mm/huge_memory.c:123 at thp_resv_fill+0x1c/0x31, CPU#0: chunk/161",
        "WARNING in thp_resv_fill at mm/huge_memory.c:123",
    ),
    (
        "[    1.000000] PANIC: early exception 0x0e IP 10:ffffffff81e6fc3a error 0 cr2 0xffff88800009f000",
        "early exception 0x0e",
    ),
    (
        (
            "[    1.000000] page: refcount:1 mapcount:0 mapping:0000000000000000 index:0x0 pfn:0x1234\n"
            "[    1.000000] flags: 0x100000000000000(node=0|zone=1)\n"
            "[    1.000000] page dumped because: VM_BUG_ON_PAGE(PageTail(page))\n"
            "[    1.000000] ------------[ cut here ]------------\n"
            "[    1.000000] kernel BUG at include/linux/mm.h:1100!"
        ),
        "kernel BUG at include/linux/mm.h:1100 (VM_BUG_ON_PAGE(PageTail(page)))",
    ),
    ("[    1.000000] mm/pgtable-generic.c:54: bad pmd 00000000c0ffee00(8000000012345867)", "bad pmd"),
    ("[    1.000000] kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)", "kmemleak"),
    (
        (
            "[    1.000000] UBSAN: array-index-out-of-bounds in mm/huge_memory.c:99:12\n"
            "[    1.000000] index 512 is out of range for type 'u64 [8]'"
        ),
        "UBSAN: array-index-out-of-bounds at mm/huge_memory.c:99",
    ),
    ("[    1.000000] INFO: task khugepaged:38 blocked for more than 122 seconds.", "hung task"),
    ("[    1.000000] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [chunk:161]", "soft lockup"),
    ("[    1.000000] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "RCU stall"),
    (
        (
            "[    1.000000] =============================\n"
            "[    1.000000] WARNING: suspicious RCU usage\n"
            "[    1.000000] 6.12.117 #1 Not tainted\n"
            "[    1.000000] -----------------------------\n"
            "[    1.000000] mm/khugepaged.c:77 suspicious rcu_dereference_check() usage!"
        ),
        "suspicious RCU usage at mm/khugepaged.c:77",
    ),
    ("[    1.000000] BUG: Bad page map in process chunk  pte:0f0f pmd:12345067", "BUG: Bad page map"),
    (
        "[    1.000000] BUG: non-zero pgtables_bytes on freeing mm: 4096",
        "BUG: non-zero pgtables_bytes on freeing mm",
    ),
    (
        "[    1.000000] BUG: sleeping function called from invalid context at kernel/locking/mutex.c:585",
        "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:585",
    ),
]


@pytest.mark.parametrize(("text", "title"), FORMS, ids=[title for _, title in FORMS])
def test_known_form(text: str, title: str) -> None:
    found = parse_console(text)
    assert len(found) == 1
    assert found[0].title.startswith(title) or found[0].title.endswith(title)
    assert "unrelated" not in found[0].text


def test_a_kasan_report_reaches_from_ruler_to_ruler() -> None:
    (finding,) = parse_console(KASAN)
    lines = finding.text.splitlines()
    assert lines[0].endswith("=====") and lines[-1].endswith("=====")
    assert len(lines) == 19


@pytest.mark.parametrize(
    "text",
    [
        "[    1.000000] chunk[161]: segfault at 0 ip 0000000000401136 sp 00007ffd error 6 in chunk[401000+1000]",
        "[    1.000000] traps: chunk[161] general protection fault ip:401136 sp:7ffd error:0 in chunk[401000+1000]",
        "[    1.000000] traps: chunk[161] trap divide error ip:401136 sp:7ffd error:0 in chunk[401000+1000]",
        "[    1.000000] Out of memory: Killed process 161 (chunk) total-vm:1048576kB, anon-rss:524288kB",
        "[    1.000000] chunk invoked oom-killer: gfp_mask=0x140dca(GFP_HIGHUSER_MOVABLE), order=0",
        "[    1.000000] chunk: page allocation failure: order:9, mode:0x4cc0(GFP_KERNEL), nodemask=(null)",
        "[    1.000000] Spectre V2 : WARNING: Unprivileged eBPF is enabled, data leaks possible!",
        "[    1.000000] Command line: console=ttyS0 panic=-1 oops=panic",
        "[    1.000000] calibrate_delay_direct() failed to get a good estimate for loops_per_jiffy.",
        "[    1.000000] PCI: Using host bridge windows from ACPI; if necessary, use pci=nocrs and report a bug",
        "[    1.000000] INFO: lockdep is turned off.",
        "",
    ],
)
def test_reports_that_are_not_a_defect(text: str) -> None:
    assert parse_console(text) == []


@pytest.mark.parametrize("name", ["hung-task", "rcu-stall", "soft-lockup"])
def test_a_report_that_only_says_that_time_passed_is_a_stall(name: str) -> None:
    findings = parse_console(log(name))
    assert findings and all(finding.is_stall for finding in findings)


def test_a_workqueue_that_waits_is_a_stall() -> None:
    line = "[   99.000000] BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 44s!\n"
    (finding,) = parse_console(line)
    assert finding.is_stall


def test_a_report_of_a_fault_is_not_a_stall() -> None:
    assert not any(finding.is_stall for finding in parse_console(_FAULT))


_FAULT = "[    9.000000] WARNING: CPU: 0 PID: 1 at mm/made_up.c:7 made_up+0x1/0x2\n"
