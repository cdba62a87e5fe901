# SPDX-License-Identifier: GPL-2.0-only
"""What identifies a report: its kind, the function at fault, and the reason or the locks; nothing that moves."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.machine.console import ConsoleLog
from orchestrator.machine.oops import Finding, parse_console, parse_console_file
from orchestrator.machine.report_kind import RULES, Rules, Severity
from orchestrator.store.outcome import Outcome

CONSOLE = Path(__file__).parent / "data" / "console"
HEADLINES = json.loads((CONSOLE / "headlines.json").read_text(encoding="utf-8"))
LOGS = {path.stem: path.read_text(encoding="utf-8") for path in sorted(CONSOLE.glob("*.log"))}


def stamped(text: str, caller: str = "", at: float = 1.0) -> str:
    """`text` as the kernel's messages, one per line."""
    who = f"[{caller:>6}]" if caller else ""
    return "".join(f"[{at:12.6f}]{who} {line}\n" for line in text.strip("\n").splitlines())


def trace(*functions: str) -> str:
    return "\n".join(["Call Trace:", " <TASK>", *(f" {name}+0x12/0x34" for name in functions), " </TASK>"])


def warning(function: str, place: str, *callers: str, said: str = "") -> str:
    return "\n".join(
        [
            "------------[ cut here ]------------",
            *([said] if said else []),
            f"WARNING: CPU: 1 PID: 77 at {place} {function}+0x10/0x20",
            "CPU: 1 UID: 0 PID: 77 Comm: sh Not tainted 6.12.117 #1",
            f"RIP: 0010:{function}+0x10/0x20",
            trace(function, *callers),
            "---[ end trace 0000000000000000 ]---",
        ]
    )


def lock_cycle(acquired: str, held: str, function: str = "thp_resv_take") -> str:
    return f"""
======================================================
WARNING: possible circular locking dependency detected
6.12.117 #1 Not tainted
------------------------------------------------------
khugepaged/38 is trying to acquire lock:
ffff888003a2b0d8 ({acquired}){{+.+.}}-{{3:3}}, at: {function}+0x2b/0xa0

but task is already holding lock:
ffff888003a2b118 ({held}){{++++}}-{{4:4}}, at: khugepaged+0x123/0x456

which lock already depends on the new lock.
stack backtrace:
{trace("dump_stack_lvl", "check_noncircular", "lock_acquire", "down_read", function)}
"""


def bad_page(reason: str, *functions: str) -> str:
    return "\n".join(
        [
            "BUG: Bad page state in process sh  pfn:021a3",
            "page: refcount:0 mapcount:0 mapping:0000000000001000 index:0x0 pfn:0x21a3",
            "flags: 0x100000000000000(node=0|zone=1)",
            f"page dumped because: {reason}",
            "page_owner tracks the page as allocated",
            "page last allocated via order 0, migratetype Unmovable, gfp_mask 0xcc0(GFP_KERNEL), pid 1, tgid 1 (a b)",
            " set_page_owner+0x1/0x2",
            " who_allocated+0x1/0x2",
            "page_owner free stack trace missing",
            "Modules linked in:",
            "CPU: 0 UID: 0 PID: 1 Comm: sh Not tainted 6.12.117 #1",
            trace("dump_stack_lvl", "bad_page", "free_unref_page", *functions),
            "Disabling lock debugging due to kernel taint",
        ]
    )


def only(text: str) -> Finding:
    (finding,) = parse_console(text)
    return finding


def fingerprints(text: str) -> list[str]:
    return [finding.fingerprint for finding in parse_console(text)]


# --- what an old defect must not hide --------------------------------------------------------------------------------

DIFFERENT = {
    "bad page state with another reason": (
        bad_page("non-NULL mapping", "old"),
        bad_page("nonzero _refcount", "old"),
    ),
    "bad page state in another function": (
        bad_page("non-NULL mapping", "old"),
        bad_page("non-NULL mapping", "new"),
    ),
    "cycle at mmap_lock with another lock": (
        lock_cycle("&a->lock", "&mm->mmap_lock"),
        lock_cycle("&resv->lock", "&mm->mmap_lock"),
    ),
    "refcount warning of another caller": (
        warning("refcount_warn_saturate", "lib/refcount.c:28", "old", said="refcount_t: underflow."),
        warning("refcount_warn_saturate", "lib/refcount.c:28", "new", said="refcount_t: underflow."),
    ),
    "list warning of another caller": (
        warning("__list_del_entry_valid_or_report", "lib/list_debug.c:59", "old"),
        warning("__list_del_entry_valid_or_report", "lib/list_debug.c:59", "new"),
    ),
    "UBSAN elsewhere in the file": (
        f"UBSAN: shift-out-of-bounds in mm/a.c:123:5\n{trace('__ubsan_handle_shift_out_of_bounds', 'old')}",
        f"UBSAN: shift-out-of-bounds in mm/a.c:456:5\n{trace('__ubsan_handle_shift_out_of_bounds', 'new')}",
    ),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_an_old_defect_hides_no_new_one(what: str) -> None:
    old, new = DIFFERENT[what]
    found = parse_console(stamped(f"{old}\n{new}"))
    assert len(found) == 2
    assert found[0].fingerprint != found[1].fingerprint


SAME = {
    "a WARNING that moved by 40 lines": (
        warning("thp_resv_fill", "mm/huge_memory.c:100"),
        warning("thp_resv_fill", "mm/huge_memory.c:140"),
    ),
    "another command and PID": (
        f"INFO: task sh:12 blocked for more than 122 seconds.\n{trace('__schedule', 'schedule', 'wait_here')}",
        f"INFO: task a b:4567 blocked for more than 245 seconds.\n{trace('__schedule', 'schedule', 'wait_here')}",
    ),
    "another CPU": (
        "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [chunk:161]\nRIP: 0010:spin_here+0x1/0x2",
        "watchdog: BUG: soft lockup - CPU#0 stuck for 52s! [a b:7]\nRIP: 0010:spin_here+0x1/0x2",
    ),
    "a compiler that clones the function": (
        "Oops: Oops: 0002 [#1] PREEMPT SMP\nRIP: 0010:walk.isra.0+0x1/0x2",
        "Oops: Oops: 0002 [#4] PREEMPT SMP\nRIP: 0010:walk.constprop.3+0x1/0x2",
    ),
    "lock classes that were used in another order": (
        lock_cycle("&a->lock#2", "&mm->mmap_lock"),
        lock_cycle("&a->lock#5", "&mm->mmap_lock"),
    ),
    "a cycle that is reported from its other side": (
        lock_cycle("&a->lock", "&mm->mmap_lock"),
        lock_cycle("&mm->mmap_lock", "&a->lock"),
    ),
    "locks that a task still has": (
        "WARNING: init/1 still has locks held!",
        "WARNING: some task/4711 still has locks held!",
    ),
}


@pytest.mark.parametrize("what", SAME)
def test_the_same_defect_has_the_same_fingerprint(what: str) -> None:
    one, other = (only(stamped(text)) for text in SAME[what])
    assert one.fingerprint == other.fingerprint
    for said in ("sh", "a b", "init", "4567", "4711", "CPU", ":100", ":140"):
        assert not re.search(rf"\b{said}\b", one.fingerprint)


@pytest.mark.parametrize("name", sorted(LOGS))
def test_shifted_line_numbers_change_no_fingerprint(name: str) -> None:
    shifted = re.sub(r"(\.[chS]:)(\d+)", lambda match: f"{match[1]}{int(match[2]) + 41}", LOGS[name])
    assert fingerprints(shifted) == fingerprints(LOGS[name])


@pytest.mark.parametrize("name", sorted(LOGS))
def test_comm_and_pid_are_in_no_title(name: str) -> None:
    for finding in parse_console(LOGS[name]):
        assert not re.search(r"\bsh\b|\b16\d\b|\b17\d\b", finding.title)


# --- where a report ends ---------------------------------------------------------------------------------------------

OOPS = f"""
BUG: kernel NULL pointer dereference, address: 0000000000000008
#PF: supervisor write access in kernel mode
Oops: Oops: 0002 [#1] PREEMPT SMP
CPU: 0 UID: 0 PID: 9 Comm: a b Not tainted 6.12.117 #1
RIP: 0010:at_fault+0x1/0x2
{trace("calls_it")}
---[ end trace 0000000000000000 ]---
RIP: 0010:at_fault+0x1/0x2
"""
KASAN = f"""
==================================================================
BUG: KASAN: slab-use-after-free in memcpy+0x1/0x2
Read of size 8 at addr ffff888103d4f0c0 by task chunk/161
CPU: 1 UID: 0 PID: 161 Comm: chunk Not tainted 6.12.117 #1
{trace("dump_stack_lvl", "kasan_report", "kasan_check_range", "__asan_memcpy", "copies_it")}
Allocated by task 161:
 kasan_save_stack+0x24/0x50
 who_allocated+0x24/0x50
"""


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (OOPS, "Fatal exception"),
        (OOPS, "Fatal exception in interrupt"),
        (OOPS, "Attempted to kill init! exitcode=0x00000009"),
        (warning("warns", "mm/a.c:7"), "kernel: panic_on_warn set ..."),
        (KASAN + "=" * 66, "KASAN: panic_on_warn set ..."),
        (
            f"INFO: task a b:12 blocked for more than 122 seconds.\n{trace('schedule', 'waits')}",
            "hung_task: blocked tasks",
        ),
        (
            "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [a b:1]\nRIP: 0010:spins+0x1/0x2",
            "softlockup: hung tasks",
        ),
    ],
)
@pytest.mark.parametrize("between", ["", "eth0: link up", "a\nb\nc\nd\ne"])
def test_a_panic_stays_with_its_cause(cause: str, reason: str, between: str) -> None:
    panic = f"Kernel panic - not syncing: {reason}\nCPU: 0 PID: 9\n---[ end Kernel panic - not syncing: {reason} ]---"
    finding = only(stamped(f"{cause}\n{between}\n{panic}"))
    assert finding.outcome is Outcome.KERNEL_PANIC
    assert finding.fingerprint == only(stamped(cause)).fingerprint
    assert "; then kernel panic: " in finding.title
    first = next(line for line in cause.splitlines() if line)
    assert first in finding.text and "---[ end Kernel panic" in finding.text


def test_an_unrelated_panic_is_a_report_of_its_own() -> None:
    panic = "Kernel panic - not syncing: Out of memory: compulsory panic_on_oom is enabled"
    found = parse_console(stamped(f"{warning('warns', 'mm/a.c:7')}\nsomething else\n{panic}"))
    assert [each.outcome for each in found] == [Outcome.KERNEL_BUG, Outcome.KERNEL_PANIC]


def test_a_kasan_box_without_its_end_swallows_nothing() -> None:
    noise = "\n".join(f"systemd: unit {number}" for number in range(400))
    text = stamped(f"{KASAN}\n{noise}\nKernel panic - not syncing: no more")
    found = parse_console(text)
    assert [each.fingerprint for each in found] == [
        "kasan: copies_it: slab-use-after-free",
        "panic: no more",
    ]
    assert "systemd" not in found[0].text


def test_one_foreign_line_does_not_cut_a_report() -> None:
    lines = stamped(OOPS).splitlines()
    for at in range(4, len(lines) - 1):
        mixed = [*lines[:at], "[    1.000000] eth0: link up", *lines[at:]]
        finding = only("\n".join(mixed))
        assert finding.function == "at_fault" and "---[ end trace" in finding.text


def test_page_owner_does_not_cut_a_report() -> None:
    finding = only(stamped(bad_page("non-NULL mapping", "frees_it")))
    assert finding.function == "frees_it"
    assert finding.text.endswith("Disabling lock debugging due to kernel taint")


# --- who is at fault -------------------------------------------------------------------------------------------------

GUILTY = {
    "copies_it": KASAN,
    "spins_here": (
        "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [chunk:161]\n"
        f"RIP: 0010:native_queued_spin_lock_slowpath+0x1/0x2\n{trace('_raw_spin_lock', 'spins_here')}"
    ),
    "removes_it": warning("__list_del_entry_valid", "lib/list_debug.c:59", "removes_it"),
    "inits_lock": (
        "INFO: trying to register non-static key.\nThe code is fine but needs lockdep annotation, or maybe\n"
        + trace("dump_stack_lvl", "assign_lock_key", "register_lock_class", "__lock_acquire", "inits_lock")
    ),
    "gets_page": (
        "kernel BUG at include/linux/mm.h:1100!\nOops: invalid opcode: 0000 [#1] PREEMPT SMP\n"
        "RIP: 0010:gets_page+0x1/0x2"
    ),
    "waits_here": f"INFO: task a b c:12 blocked for more than 122 seconds.\n{trace('schedule', 'waits_here')}",
    "thp_resv_take": lock_cycle("&resv->lock", "&mm->mmap_lock"),
    "work_fn": "BUG: workqueue leaked atomic, lock or RCU: kworker/0:1[12]\n"
    "     preempt=0x0 lock=0->0 RCU=0->1 workfn=work_fn",
    "stuck_fn": (
        "BUG: workqueue lockup - pool cpus=1 node=0 flags=0x0 nice=0 stuck for 31s!\n"
        "Showing busy workqueues and worker pools:\nworkqueue events: flags=0x0\n"
        "  pwq 6: cpus=1 node=0 flags=0x0 nice=0 active=1 refcnt=2\n    in-flight: 35:stuck_fn"
    ),
    "jumped": f"BUG: kernel NULL pointer dereference, address: 0\nRIP: 0010:0x0\n{trace('jumped')}",
}


@pytest.mark.parametrize("function", GUILTY)
def test_the_function_at_fault(function: str) -> None:
    finding = only(stamped(GUILTY[function]))
    assert finding.function == function
    assert function in finding.title and finding.fingerprint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "BUG: unable to handle kernel paging request at ffffc90000",
            "unable to handle kernel paging request",
        ),
        (
            "BUG: unable to handle kernel NULL pointer dereference at 8",
            "unable to handle kernel NULL pointer dereference",
        ),
    ],
)
def test_the_whole_reason(text: str, expected: str) -> None:
    assert only(stamped(text)).reason == expected


def test_every_field() -> None:
    finding = only(stamped(KASAN, "T161"))
    assert (finding.kind, finding.function, finding.access, finding.reason, finding.caller) == (
        "kasan",
        "copies_it",
        "Read of size 8",
        "slab-use-after-free",
        "T161",
    )
    assert finding.frames == (
        "dump_stack_lvl",
        "kasan_report",
        "kasan_check_range",
        "__asan_memcpy",
        "copies_it",
    )
    finding = only(stamped(lock_cycle("&resv->lock", "&mm->mmap_lock")))
    assert finding.locks == ("&resv->lock", "&mm->mmap_lock")
    assert only(stamped(warning("f", "mm/a.c:7"))).place == "mm/a.c:7"


# --- headlines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", HEADLINES, ids=lambda case: case["text"].splitlines()[0][:50])
def test_a_headline_is_heard_or_judged_advice(case: dict[str, object]) -> None:
    text = stamped(str(case["text"]))
    found = parse_console(text)
    assert len(found) == (1 if case["report"] else 0)
    assert all(each.kind and each.fingerprint for each in found)


@pytest.mark.parametrize(
    "text",
    [
        "WARNING: x is deprecated, use y instead",
        "workqueue: my_work hogged CPU for >10000us 4 times, consider switching to WQ_UNBOUND",
        f"FAULT_INJECTION: forcing a failure.\nname failslab, interval 1\n{trace('should_fail', 'mine')}",
        "initcall my_init+0x0/0x1 returned with disabled interrupts",
    ],
)
def test_advice_is_no_defect_but_can_be_seen(text: str) -> None:
    assert parse_console(stamped(text)) == []
    assert len(parse_console(stamped(text), advice=True)) == 1


def test_a_printed_warning_with_a_trace_is_a_defect() -> None:
    finding = only(stamped(f"WARNING: something is off\n{trace('dump_stack_lvl', 'mine')}"))
    assert finding.fingerprint == "printed-warning: mine: something is off"


# --- several callers -------------------------------------------------------------------------------------------------


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_reports_of_two_cpus_are_cut_apart_by_their_callers(data: st.DataObject) -> None:
    reports = (
        OOPS,
        KASAN + "=" * 66,
        warning("warns", "mm/a.c:7"),
        bad_page("non-NULL mapping", "frees"),
        lock_cycle("a", "b"),
    )
    left, right = (data.draw(st.sampled_from(reports)) for _ in range(2))
    one, two = stamped(left, "T9").splitlines(), stamped(right, "T10").splitlines()
    mixed: list[str] = []
    while one or two:
        source = one if one and (not two or data.draw(st.booleans())) else two
        mixed.append(source.pop(0))
    found = parse_console("\n".join(mixed))
    expected = {only(stamped(left)).fingerprint, only(stamped(right)).fingerprint}
    assert {each.fingerprint for each in found} == expected
    assert all("T9]" not in each.text or "T10]" not in each.text for each in found)


# --- what must not be believed ---------------------------------------------------------------------------------------


def test_a_program_that_prints_the_words_of_a_panic_does_not_end_the_machine(tmp_path: Path) -> None:
    console = ConsoleLog(tmp_path / "console.log")
    console.path.write_text("[    1.000000] Linux\nKernel panic - not syncing: joke\n---[ end Kernel panic\n")
    console.poll()
    assert not console.panicked and not console.panic_over and not console.findings()
    console.path.write_text("[    1.000000][    T1] Kernel panic - not syncing: earnest\n")
    again = ConsoleLog(console.path)
    again.poll()
    assert again.panicked


def test_an_early_exception_has_no_timestamp_yet(tmp_path: Path) -> None:
    said = "PANIC: early exception 0x0e IP 10:ffffffff81e6fc3a error 0 cr2 0xffff88800009f000\n"
    console = ConsoleLog(tmp_path / "console.log")
    console.path.write_text(f"[    0.000000] Linux\n{said}")
    console.poll()
    assert console.panicked
    assert [each.outcome for each in console.findings()] == [Outcome.KERNEL_PANIC]


# --- stored runs -----------------------------------------------------------------------------------------------------


def test_a_finding_survives_its_file() -> None:
    finding = only(stamped(KASAN, "T161"))
    assert Finding.of_json(json.loads(json.dumps(finding.to_json(), default=list))) == finding


def test_a_finding_of_an_old_run_gets_its_fingerprint_from_its_text() -> None:
    finding = only(stamped(KASAN))
    old = {name: finding.to_json()[name] for name in ("outcome", "title", "text", "line", "count")}
    read = Finding.of_json({**old, "title": "KASAN: slab-use-after-free in memcpy"})
    assert read.fingerprint == finding.fingerprint
    assert read.title == "KASAN: slab-use-after-free in memcpy"
    assert Finding.of_json({**old, "text": "cut off"}).fingerprint == finding.title


# --- size and time ---------------------------------------------------------------------------------------------------

#: Generous, for a busy host: a benchmark holds the real figure. Today's values are below a second.
_SECONDS_PER_MB = 8.0


@pytest.mark.parametrize(
    "line",
    [
        "a, " * 350,
        "BUG: " * 200,
        "[" * 1000,
        "[ BUG: " + "x" * 1000,
        "WARNING: " + "-" * 1000,
        "Oops: " + ": 0000 [#" * 100,
        " [#1] " * 160,
        "UBSAN: " + "a in " * 200,
        "<1" * 500,
        "(" * 500 + "){" * 200 + ", at: ",
        "INFO: task " + "a:1 blocked " * 80,
    ],
    ids=range(11),
)
def test_no_line_takes_long(line: str) -> None:
    text = f"[    1.000000] {line}\n" * (100_000 // len(line))
    began = time.process_time()
    parse_console(text)
    assert time.process_time() - began < _SECONDS_PER_MB / 10


def test_a_line_without_end_takes_no_longer() -> None:
    began = time.process_time()
    parse_console("[    1.000000] BUG: " + "a, " * 300_000)
    assert time.process_time() - began < _SECONDS_PER_MB


@pytest.mark.parametrize("chunk", [1 << 8, 1 << 12, 1 << 20])
@pytest.mark.parametrize("name", ["several", "warning", "slub-redzone"])
def test_a_file_is_read_in_pieces(
    name: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.machine.oops._CHUNK", chunk)
    log = tmp_path / "console.log"
    log.write_text("[    0.100000] nothing here\n" * 300 + LOGS[name] + "[    9.000000] nor here\n" * 300)
    expected = [replace(each, line=each.line + 300) for each in parse_console(LOGS[name])]
    assert parse_console_file(log) == expected


# --- the table -------------------------------------------------------------------------------------------------------


def test_control_characters_of_a_file_are_made_visible(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(
        b"[    9.000000] Kernel panic - not syncing: made up\r\n[    9.000001] CPU: 0 PID: 1 Comm: x\x1b]0;y\x07\r\n"
    )
    (found,) = parse_console_file(log)
    assert "Comm: x\\x1b]0;y\\x07" in found.text and not {"\x1b", "\x07", "\r"} & set(found.text)


def test_kinds_are_defects_unless_they_say_so() -> None:
    assert {kind.name for kind in RULES.kinds if kind.severity is Severity.ADVICE} == {
        "fault-injection",
        "workqueue-hog",
        "initcall",
    }


#: Functions of Linux that are not at fault where they appear above their caller in a trace.
HELPERS = [
    "dump_stack_lvl",
    "show_stack",
    "show_regs",
    "__warn",
    "__warn_printk",
    "report_bug",
    "handle_bug",
    "exc_invalid_op",
    "asm_exc_invalid_op",
    "panic",
    "oops_end",
    "die_addr",
    "page_fault_oops",
    "print_report",
    "nmi_cpu_backtrace",
    "sched_show_task",
    "watchdog_timer_fn",
    "rcu_sched_clock_irq",
    "spin_dump",
    "spin_bug",
    "bad_page",
    "dump_page",
    "usercopy_abort",
    "fortify_panic",
    "trigger_all_cpu_backtrace",
    "csd_lock_wait_toolong",
    "object_err",
    "slab_err",
    "__slab_free",
    "kasan_report",
    "__kasan_check_write",
    "__asan_load8",
    "kfence_report_error",
    "ubsan_epilogue",
    "__ubsan_handle_out_of_bounds",
    "check_bytes_and_report",
    "__check_object_size",
    "lockdep_rcu_suspicious",
    "__lock_acquire",
    "lock_acquire",
    "lock_release",
    "assign_lock_key",
    "register_lock_class",
    "mark_lock_irq",
    "validate_chain",
    "debug_print_object",
    "__debug_check_no_obj_freed",
    "do_raw_spin_lock",
    "__might_resched",
    "refcount_warn_saturate",
    "__list_add_valid_or_report",
    "__list_del_entry_valid",
    "should_fail_ex",
    "__should_failslab",
    "memcpy",
    "__memset",
    "memmove",
    "strscpy",
    "strncpy",
    "_copy_to_user",
    "copy_from_user",
    "rep_movs_alternative",
    "clear_page_erms",
    "copy_page",
    "kfree",
    "kvfree",
    "kmem_cache_free",
    "__kmalloc_noprof",
    "slab_free_after_rcu_debug",
    "free_to_partial_list",
    "free_debug_processing",
    "alloc_debug_processing",
    "___slab_alloc",
    "__schedule",
    "schedule",
    "io_schedule_timeout",
    "context_switch",
    "do_wait",
    "wait_for_completion",
    "__wait_on_bit",
    "__mutex_lock",
    "mutex_lock_nested",
    "ww_mutex_lock",
    "down_read",
    "__down_write",
    "up_write",
    "rwsem_down_read_slowpath",
    "_raw_spin_lock",
    "__raw_spin_lock_irqsave",
    "queued_spin_lock_slowpath",
    "native_queued_spin_lock_slowpath",
    "rt_mutex_schedule",
    "folio_wait_bit_common",
    "bit_wait_io",
    "out_of_line_wait_on_bit",
    "msleep",
    "usleep_range_state",
    "___might_sleep",
    "do_task_dead",
    "valid_state",
    "__die_body",
    "preempt_schedule_irq",
    "__cond_resched",
]

#: Lines that follow a call trace in reports of Linux, or stand above a headline in it.
CONTINUED = """
 [unloaded]: x
Call trace:
CPU: 0 UID: 0 PID: 9 Comm: sh Not tainted 6.12.117 #1
Hardware name: QEMU Standard PC (i440FX + PIIX, 1996)
Modules linked in:
Workqueue: events f
RIP: 0033:0x7f0000000000
RSP: 002b:00007ffd00000000 EFLAGS: 00000246
RAX: ffffffffffffffda
CS:  0010 DS: 0000 ES: 0000 CR0: 0000000080050033
CR2: 0000000000000008
DR0: 0000000000000000
PKRU: 55555554
Code: 90 90
#PF: supervisor write access in kernel mode
PGD 0 P4D 0
page: refcount:0 mapcount:0 mapping:0000000000000000 index:0x0 pfn:0x1
head: 0100000000000000
flags: 0x100000000000000(node=0|zone=1)
raw: 0100000000000000
memcg:ffff888100000000
aops:shmem_aops ino:1
anon flags: 0x1
file f
ksm flags: 0x1
page_type: f0(buddy)
page dumped because: nonzero mapcount
addr:00007f0000000000 vm_flags:08100073
vma ffff888100000000 start 0 end 1
stack backtrace:
task:khugepaged state:D stack:0 pid:38
#0: ffff888003a2b118 (&mm->mmap_lock){++++}-{4:4}, at: f+0x1/0x2
1 lock held by sh/9:
no locks held by sh/9.
locks held by sh/9:
Not tainted 6.12.117 #1
Tainted: [W]=WARN
"echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.
NMI backtrace for cpu 1
Sending NMI from CPU 0 to CPUs 1:
rcu: 	1-...!: (1 GPs behind)
--------------------
====================
Showing all locks held in the system:
Allocated by task 9:
The buggy address belongs to the object at ffff888103d4f0c0
Memory state around the buggy address:
irq event stamp: 1
hardirqs last  enabled at (1): f+0x1/0x2
softirqs last  enabled at (1): f+0x1/0x2
in_atomic(): 1, irqs_disabled(): 0, non_block: 0, pid: 9, name: sh
preempt_count: 1, expected: 0
RCU nest depth: 0, expected: 0
Preemption disabled at:
INFO: lockdep is turned off.
note: sh[9] exited with irqs disabled
Disabling lock debugging due to kernel taint
Kernel Offset: disabled
caller is f+0x1/0x2
Read of size 8 at addr ffff888103d4f0c0 by task chunk/161
invalid access to 0 of size 1
backtrace (crc 0):
comm "sh", pid 9, jiffies 4294667296
hex dump (first 32 bytes):
unreferenced object 0xffff888103d4f0c0 (size 96):
Object   0000000000000000: 6b 6b
Slab 0xffffea00040f53c0 objects=32 used=1
Redzone  0000000000000000: cc cc
Padding  0000000000000000: 5a 5a
FIX kmalloc-64: Restoring Right Redzone
>ffff888103d4f080: 00 00 00 00
page_owner tracks the page as allocated
page last allocated via order 0
This frame has 1 object:
Last potentially related work creation:
kernel tried to execute NX-protected page - exploit attempt? (uid: 0)
name failslab, interval 1, probability 100
00000000: 11 22 33 44
workqueue events: flags=0x0
pool 2: cpus=0 node=0 flags=0x0 nice=0 hung=0s workers=3
Showing busy workqueues and worker pools:
Showing backtraces of running workers in stalled CPU-bound worker pools:
preempt=0x0 lock=0->0 RCU=0->1 workfn=f
index 8 is out of range for type 'int [4]'
shift exponent 70 is too large for 64-bit type 'long int'
load of value 7 is not a valid value for type '_Bool'
""".strip("\n").splitlines()

ABOVE = """
list_add corruption. next->prev should be prev (1), but was 2.
[Right Redzone overwritten] 0xffff888103d4f0c0-0xffff888103d4f0c7 @offset=192
page: refcount:0 mapcount:0 mapping:0000000000000000 index:0x0 pfn:0x1
head: 0100000000000000
flags: 0x100000000000000(node=0|zone=1)
raw: 0100000000000000
memcg:ffff888100000000
aops:shmem_aops ino:1
anon flags: 0x1
page_type: f0(buddy)
page dumped because: VM_WARN_ON_PAGE(1)
page_owner tracks the page as allocated
page last free pid 1 tgid 1 stack trace:
vma ffff888100000000 start 0 end 1
mm ffff888100000000 task_size 1
usercopy: Kernel memory exposure attempt detected from SLUB object 'a' (offset 1, size 2)!
DEBUG_LOCKS_WARN_ON(1)
kernel tried to execute NX-protected page - exploit attempt? (uid: 0)
""".strip("\n").splitlines()

_SYNTHETIC = [
    *(f"BUG: scheduling while atomic: sh/9/0x2\n{trace(name, 'mine')}" for name in HELPERS),
    *(f"BUG: scheduling while atomic: sh/9/0x2\n{trace('mine')}\n{line}" for line in CONTINUED),
    *(f"{line}\n{warning('mine', 'mm/a.c:7')}" for line in ABOVE),
    f"BUG: scheduling while atomic: sh/9/0x2\n{trace('mine')}\n\n more",
]


@pytest.mark.parametrize("name", HELPERS)
def test_a_helper_is_not_at_fault(name: str) -> None:
    assert only(stamped(f"BUG: scheduling while atomic: sh/9/0x2\n{trace(name, 'mine')}")).function == "mine"


@pytest.mark.parametrize("line", CONTINUED)
def test_a_report_goes_on_with(line: str) -> None:
    text = stamped(f"BUG: scheduling while atomic: sh/9/0x2\n{trace('mine')}\n{line}\nunrelated")
    assert only(text).text.endswith(line.rstrip())


@pytest.mark.parametrize("line", ABOVE)
def test_a_report_begins_with(line: str) -> None:
    assert only(stamped(f"unrelated\n{line}\n{warning('mine', 'mm/a.c:7')}")).text.startswith(
        stamped(line).rstrip()
    )


def _corpus() -> list[str]:
    """Everything that tests hold the rules to."""
    texts = [*GUILTY.values(), *_SYNTHETIC, *OTHER, KASAN, OOPS]
    texts += [text for pair in (*DIFFERENT.values(), *SAME.values()) for text in pair]
    texts += [str(case["text"]) for case in HEADLINES]
    texts += [
        f"{cause}\neth0: link up\nKernel panic - not syncing: {reason}\n" for reason, cause in PANICS.items()
    ]
    return [*map(stamped, texts), *LOGS.values(), *RECORDED.values()]


#: Reports whose kind no other text here has.
OTHER = [
    "BUG: KMSAN: uninit-value in reads_it+0x1/0x2\n" + trace("reads_it") + "\n" + "=" * 40,
    "BUG: KCSAN: data-race in reads_it / writes_it\n" + "=" * 40,
    "NMI watchdog: Watchdog detected hard LOCKUP on cpu 1\nRIP: 0010:spins+0x1/0x2",
    "general protection fault, maybe for address 0x1\nRIP: 0010:f+0x1/0x2",
    "Oops: 0002 [#1] PREEMPT SMP\nRIP: 0010:f+0x1/0x2",
    "PANIC: early exception 0x0e IP 10:ffffffff81e6fc3a error 0 cr2 0xffff88800009f000",
    "WARNING: mm/huge_memory.c:123 at thp_resv_fill+0x1c/0x31, CPU#0: chunk/161",
    "------------[ cut here ]------------\nsaid\nWARNING: mm/a.c:1 at f+0x1c/0x31, CPU#0: chunk/161",
    (
        "WARNING: suspicious RCU usage\n6.12.117 #1 Not tainted\n-----\nmm/khugepaged.c:77 suspicious"
        f" rcu_dereference_check() usage!\nother info\n{trace('dump_stack_lvl', 'lockdep_rcu_suspicious', 'derefs_it')}"
    ),
    "BUG: Bad page map in process a  pte:0001 pmd:0002\n"
    + trace("dump_stack_lvl", "print_bad_pte", "vm_normal_page", "maps_it"),
    "BUG: non-zero pgtables_bytes on freeing mm: 4096",
    "BUG: sleeping function called from invalid context at mm/a.c:7\n" + trace("__might_resched", "sleeps"),
    "BUG: spinlock bad magic on CPU#0, chunk/12\n" + trace("spin_bug", "takes_it"),
    "irq 9: nobody cared\n" + trace("__report_bad_irq", "note_interrupt", "handle_irq_event", "its_driver"),
    "kmemleak: Cannot insert 0x1234 into the object search tree (overlaps existing)\n" + trace("inserts_it"),
    "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:\nrcu: rcu_sched kthread starved for 9 jiffies!\n"
    + trace("spins"),
    "FAULT_INJECTION: forcing a failure.\nname failslab\n" + trace("should_fail_ex", "fail_usercopy", "mine"),
    "BUG: something new\n" + trace("mine"),
    f"WARNING: something is off\n{trace('dump_stack_lvl', 'mine')}",
]
#: Reason of a panic -> what causes it.
PANICS = {
    "Fatal exception": OOPS,
    "Attempted to kill init! exitcode=0x00000009": OOPS,
    "kernel: panic_on_warn set ...": warning("warns", "mm/a.c:7"),
    "hung_task: blocked tasks": f"INFO: task a b:12 blocked for more than 9 seconds.\n{trace('schedule', 'waits')}",
    "softlockup: hung tasks": "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [a b:1]\nRIP: 0010:spins+0x1/0x2",
    "Hard LOCKUP": "NMI watchdog: Watchdog detected hard LOCKUP on cpu 1\nRIP: 0010:spins+0x1/0x2",
    "RCU Stall": f"rcu: INFO: rcu_sched self-detected stall on CPU\n{trace('spins')}",
}
RECORDED = {
    path.stem: path.read_text(encoding="utf-8") for path in sorted((CONSOLE / "recorded").glob("*.log"))
}


def _without(items: tuple[str, ...], item: str) -> tuple[str, ...]:
    return tuple(each for each in items if each != item)


def _mutants() -> dict[str, tuple[Rules, str]]:
    """The rules, each time with one thing less, and what a text must have to notice it."""
    found: dict[str, tuple[Rules, str]] = {}
    for list_name in ("skip", "continuation", "prelude"):
        items = getattr(RULES, list_name)
        for item in items:
            change: dict[str, Any] = {list_name: _without(items, item)}
            found[f"{list_name} {item}"] = replace(RULES, **change), item
    for reason in RULES.consequence:
        rest = {words: kinds for words, kinds in RULES.consequence.items() if words != reason}
        found[f"consequence {reason}"] = replace(RULES, consequence=rest), reason
    for at, kind in enumerate(RULES.kinds):
        before, after = RULES.kinds[:at], RULES.kinds[at + 1 :]
        word = "|".join(map(re.escape, kind.words))
        found[f"kind {at} {kind.name}"] = replace(RULES, kinds=(*before, *after)), word
        less: dict[str, dict[str, Any]] = {
            name: {name: None} for name in ("named", "skip", "within") if getattr(kind, name) is not None
        }
        less |= {"traced": {"traced": False}} if kind.traced else {}
        less |= {
            f"identity {each.value}": {"identity": tuple(e for e in kind.identity if e is not each)}
            for each in kind.identity
        }
        if kind.severity is Severity.ADVICE:
            less["severity"] = {"severity": Severity.DEFECT}
        for name, change in less.items():
            changed = replace(RULES, kinds=(*before, replace(kind, **change), *after))
            found[f"{name} of {at} {kind.name}"] = changed, word
    return found


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[list[Finding], list[Finding]]]:
    return {text: _both(text, RULES) for text in sorted(_corpus(), key=len)}


def _both(text: str, rules: Rules) -> tuple[list[Finding], list[Finding]]:
    return parse_console(text, rules=rules), parse_console(text, advice=True, rules=rules)


MUTANTS = _mutants()


@pytest.mark.parametrize("mutant", MUTANTS)
def test_no_rule_can_be_deleted_unnoticed(
    mutant: str, expected: dict[str, tuple[list[Finding], list[Finding]]]
) -> None:
    rules, word = MUTANTS[mutant]
    assert any(_both(text, rules) != found for text, found in expected.items() if re.search(word, text))


def test_a_report_belongs_to_the_test_that_ran() -> None:
    marks = [stamped(f"orchestrate: test {name}", "T7") for name in ("first", "second", "third")]
    noise = "".join(stamped(f"line {number}", "T1") for number in range(300))
    text = "".join((marks[0], noise, marks[1], noise, stamped(KASAN, "T9"), noise, marks[2], noise))
    assert [(each.function, each.test) for each in parse_console(text)] == [("copies_it", "second")]


def test_after_which_reports_lockdep_is_off() -> None:
    texts = {"kasan": KASAN, "cycle": lock_cycle("a", "b"), "warning": warning("f", "mm/a.c:7")}
    assert {name for name, text in texts.items() if only(stamped(text)).ends_lockdep} == {"kasan", "cycle"}


def test_locks_that_a_task_holds_besides_identify_nothing() -> None:
    held = (
        "other info that might help us debug this:\n1 lock held by sh/9:\n"
        " #0: ffff8880055a43f0 (sb_writers#3){.+.+}-{0:0}, at: ksys_write+0xcb/0x170\nstack backtrace:"
    )
    wait = "sh/9 is trying to lock:\nffffffff826917b8 (spin_b){....}-{3:3}, at: takes_it+0x18/0x30"
    finding = only(stamped(f"[ BUG: Invalid wait context ]\n{wait}\n{held}\n{trace('takes_it')}"))
    assert (finding.locks, finding.function) == (("spin_b",), "takes_it")
    unlock = "sh/9 is trying to release lock (lock_b) at:\n[<ffffffff817aa6b1>] releases_it+0x151/0x1e0"
    text = f"WARNING: bad unlock balance detected!\n{unlock}\n{held}\n{trace('lock_release', 'releases_it')}"
    finding = only(stamped(text))
    assert (finding.locks, finding.function) == (("lock_b",), "releases_it")
