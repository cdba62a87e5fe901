# SPDX-License-Identifier: GPL-2.0-only
"""The kinds of report that a kernel prints on its console, as a table.

Each :class:`ReportKind` says how a report begins and ends, whether it is a defect, which function is at fault, and
what identifies it. :mod:`orchestrator.machine.oops` reads a log by these rules.

The formats are those of Linux 6.12, with those of 6.18 where they differ: ``lib/bug.c``, ``kernel/panic.c``,
``arch/x86/kernel/dumpstack.c``, ``arch/x86/mm/fault.c``, ``mm/kasan/report.c``, ``lib/ubsan.c``,
``kernel/locking/lockdep.c``, ``kernel/hung_task.c``, ``kernel/watchdog.c``, ``kernel/rcu/tree_stall.h``,
``mm/page_alloc.c``, ``mm/memory.c``, ``mm/slub.c``, ``mm/kmemleak.c`` and those that a kind names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from orchestrator.store.outcome import Outcome


class Severity(Enum):
    """Whether a report says that the kernel is broken."""

    DEFECT = "defect"
    #: It tells the user something, or reports what was asked for, as fault injection does.
    ADVICE = "advice"


class Where(Enum):
    """Where a report names the function at fault."""

    #: In the headline, as ``function+0x1/0x2``.
    HEADLINE = "headline"
    #: In the first ``RIP:`` line.
    RIP = "RIP"
    #: In the first call trace.
    TRACE = "trace"
    #: In the line of the lock that is acquired or held: ``(lock){...}, at: function+0x1/0x2``.
    ACQUISITION = "acquisition"
    #: In the group ``function`` of the kind's :attr:`ReportKind.named`.
    NAMED = "named"


class End(Enum):
    """How a report ends."""

    #: With its headline.
    LINE = "line"
    #: With its call traces.
    TRACE = "trace"
    #: With ``---[ end trace``; a few lines of others may be in between.
    OOPS = "oops"
    #: With the call trace that follows any amount of text.
    PROSE = "prose"
    #: With a line of equals signs.
    BOX = "box"
    #: With ``---[ end Kernel panic``, or the log.
    PANIC = "panic"


class Field(Enum):
    """What identifies a report, besides its kind. Lines, commands, PIDs and CPUs never do."""

    FUNCTION = "function"
    REASON = "reason"
    LOCKS = "locks"


@dataclass(frozen=True)
class ReportKind:
    """One kind of report.

    Args:
        name: the first part of a fingerprint.
        headline: matches the line that makes it a report of this kind. Its groups `reason`, `place` and `function` are
            fields of the finding.
        words: texts of which one is in each headline. A log is searched for them first, which is fast.
        title: the finding in words: a format string of the fields.
        severity: whether it is a defect. A warning without a call trace may be advice, see `traced`.
        guilty: where the function at fault is named, the most precise place first.
        end: where it ends.
        identity: the fields of the fingerprint.
        named: a line below the headline that names the reason, place or function; its groups are as in `headline`.
        skip: functions that are not at fault in reports of this kind, besides :data:`Rules.skip`.
        within: headlines of other reports that belong to this one.
        outcome: ``kernel-panic`` if the kernel stops.
        stall: whether it only says that time passed: a host that starves its guest causes that, too.
        traced: whether it is a defect only with a call trace.
        ends_lockdep: whether lockdep checks nothing after it (``debug_locks_off()``, ``add_taint()``).
    """

    name: str
    headline: re.Pattern[str]
    words: tuple[str, ...]
    title: str
    severity: Severity = Severity.DEFECT
    guilty: tuple[Where, ...] = (Where.RIP, Where.TRACE)
    end: End = End.TRACE
    identity: tuple[Field, ...] = (Field.FUNCTION, Field.REASON)
    named: re.Pattern[str] | None = None
    skip: re.Pattern[str] | None = None
    within: re.Pattern[str] | None = None
    outcome: Outcome = Outcome.KERNEL_BUG
    stall: bool = False
    traced: bool = False
    ends_lockdep: bool = False


@dataclass(frozen=True, eq=False)
class Rules:
    """Everything by which a log is read.

    Args:
        kinds: the first that matches a line is its kind.
        skip: starts of the names of functions that are not at fault: those that print reports, check, copy, free, or
            wait for a lock on behalf of their caller.
        continuation: starts of lines that belong to the report above them.
        prelude: starts of lines that belong to the report below them.
        consequence: words in the reason of a panic, each with the names of the kinds of report that cause it; none
            if any kind does.
    """

    kinds: tuple[ReportKind, ...]
    skip: tuple[str, ...]
    continuation: tuple[str, ...]
    prelude: tuple[str, ...]
    consequence: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _re(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


_SYMBOL = r"(?P<function>[\w.]+)\+0x[0-9a-f]+"
#: The headline of an oops (``__die_header()``) inside of a report that began before it.
_DIE = _re(r"(?:Oops: )?[^\[]{0,100}: [0-9a-f]{4,16} \[#\d+\]|traps: PANIC: double fault")
_LOCKED = (Where.ACQUISITION, Where.TRACE)

_LOCKDEP = (
    r"possible (?:circular locking dependency|recursive locking|irq lock inversion dependency) detected"
    r"|inconsistent lock state|bad (?:unlock|contention unlock) balance detected|Nested lock was not taken"
    r"|held lock freed|[\w-]{1,20}-safe -> [\w-]{1,20}-unsafe lock order detected"
    r"|lock held when returning to user space|still has locks held|Invalid wait context"
)

_KINDS = (
    ReportKind(
        "panic",
        _re(r"Kernel panic - not syncing: ?(?P<reason>.*)"),
        ("Kernel panic - not",),
        "Kernel panic: {reason}",
        end=End.PANIC,
        identity=(Field.REASON,),
        outcome=Outcome.KERNEL_PANIC,
    ),
    ReportKind(
        "early-exception",  # arch/x86/mm/extable.c
        _re(r"PANIC: (?P<reason>early exception 0x[0-9a-f]+)"),
        ("PANIC: early",),
        "{reason}",
        outcome=Outcome.KERNEL_PANIC,
        identity=(Field.REASON,),
    ),
    ReportKind(
        "double-fault",
        _re(r"(?:traps: )?PANIC: (?P<reason>double fault)"),
        ("PANIC: double",),
        "{reason}",
        end=End.OOPS,
        within=_DIE,
        outcome=Outcome.KERNEL_PANIC,
    ),
    ReportKind(
        "warning",
        _re(rf"WARNING: CPU: \d+ PID: \d+ at (?P<place>\S+)(?: {_SYMBOL})?"),
        ("WARNING: CPU",),
        "WARNING",
        guilty=(Where.HEADLINE, Where.TRACE),
        end=End.OOPS,
    ),
    ReportKind(
        "warning",  # 6.18 and later
        _re(rf"WARNING: (?P<place>[\w./-]+\.[chS]:\d+) at {_SYMBOL}"),
        (" at ",),
        "WARNING",
        guilty=(Where.HEADLINE, Where.TRACE),
        end=End.OOPS,
    ),
    ReportKind(
        "rcu-usage",
        _re(r"WARNING: suspicious RCU usage"),
        ("WARNING: suspicious",),
        "suspicious RCU usage",
        guilty=(Where.TRACE,),
        end=End.PROSE,
        named=_re(r"(?P<place>\S{1,200}\.[ch]:\d+) (?P<reason>.*)"),
    ),
    ReportKind(
        "lockdep",
        _re(rf"(?:WARNING: |\[ (?:BUG|INFO): )(?:\S.{{0,40}}/\d+ )?(?P<reason>{_LOCKDEP})"),
        ("WARNING: ", "[ BUG: ", "[ INFO: "),
        "lockdep: {reason}",
        guilty=_LOCKED,
        end=End.PROSE,
        identity=(Field.REASON, Field.LOCKS),
        ends_lockdep=True,
    ),
    ReportKind(
        "lock-key",
        _re(r"INFO: trying to register (?P<reason>non-static key)"),
        ("INFO: trying to",),
        "lockdep: {reason}",
        ends_lockdep=True,
    ),
    ReportKind(
        "lockdep-limit",  # look_up_lock_class(), add_lock_to_list()
        _re(r"BUG: (?P<reason>(?:MAX_LOCK\w+|MAX_STACK_TRACE_ENTRIES|looking up invalid subclass).*)"),
        ("BUG: MAX_", "BUG: looking"),
        "lockdep: {reason}",
        ends_lockdep=True,
        identity=(Field.REASON,),
    ),
    ReportKind(
        "kasan",
        _re(r"BUG: KASAN: (?P<reason>[\w-]+)(?: in " + _SYMBOL + ")?"),
        ("BUG: KASAN",),
        "KASAN: {reason}",
        guilty=(Where.HEADLINE, Where.TRACE),
        end=End.BOX,
        named=_re(r"(?P<access>(?:Read|Write) of size \d+)"),
        ends_lockdep=True,
    ),
    ReportKind(
        "kfence",
        _re(r"BUG: KFENCE: (?P<reason>[\w -]+?)(?: in " + _SYMBOL + r"\S*(?: \[\w+\])?)?$"),
        ("BUG: KFENCE",),
        "KFENCE: {reason}",
        guilty=(Where.HEADLINE, Where.TRACE),
        end=End.BOX,
    ),
    ReportKind(
        "kmsan",
        _re(r"BUG: KMSAN: (?P<reason>[\w-]+) in " + _SYMBOL),
        ("BUG: KMSAN",),
        "KMSAN: {reason}",
        guilty=(Where.HEADLINE, Where.TRACE),
        end=End.BOX,
    ),
    ReportKind(
        "kcsan",
        _re(r"BUG: KCSAN: (?P<reason>[\w-]+ in (?P<function>[\w.]+) / [\w.]+|.*)"),
        ("BUG: KCSAN",),
        "KCSAN: {reason}",
        guilty=(Where.HEADLINE, Where.TRACE),
        end=End.BOX,
        identity=(Field.REASON,),
    ),
    ReportKind(
        "ubsan",
        _re(r"UBSAN: (?P<reason>[\w -]+?) in (?P<place>\S+?:\d+)(?::\d+)?$"),
        ("UBSAN: ",),
        "UBSAN: {reason}",
        guilty=(Where.TRACE,),
    ),
    ReportKind(
        "bug-on",
        _re(r"kernel BUG at (?P<place>[^\s!]+)!"),
        ("kernel BUG at",),
        "kernel BUG",
        end=End.OOPS,
        within=_DIE,
    ),
    ReportKind(
        "page-fault",
        _re(
            r"BUG: (?P<reason>unable to handle (?:page fault|kernel paging request|kernel NULL pointer dereference)"
            r"|kernel NULL pointer dereference)"
        ),
        ("BUG: unable", "BUG: kernel NULL"),
        "BUG: {reason}",
        end=End.OOPS,
        within=_DIE,
    ),
    ReportKind(
        "stack-guard",
        _re(r"BUG: [\w#]+ (?P<reason>stack guard page) was hit"),
        ("stack guard page was hit",),
        "BUG: {reason} hit",
        end=End.OOPS,
        within=_DIE,
    ),
    ReportKind(
        "page-table",  # pgtable_bad(), arch/x86/mm/fault.c
        _re(r".{1,16}: (?P<reason>Corrupted page table) at address"),
        ("Corrupted page table",),
        "{reason}",
        end=End.OOPS,
        within=_DIE,
    ),
    ReportKind(
        "soft-lockup",
        _re(r"watchdog: BUG: soft lockup"),
        ("soft lockup",),
        "soft lockup",
        stall=True,
        identity=(Field.FUNCTION,),
    ),
    ReportKind(
        "hard-lockup",
        _re(r"(?:NMI )?watchdog: (?:CPU\d+: )?Watchdog detected hard LOCKUP"),
        ("hard LOCKUP",),
        "hard lockup",
        stall=True,
        identity=(Field.FUNCTION,),
    ),
    ReportKind(
        "rcu-stall",
        _re(
            r"(?:rcu: )?INFO: rcu\w* (?:self-)?detected (?:expedited )?stalls?\b"
            r"|rcu: rcu\w+ kthread (?:starved|timer wakeup)"
        ),
        ("INFO: rcu", "kthread starved", "kthread timer wakeup"),
        "RCU stall",
        within=_re(r"rcu: rcu\w+ kthread"),
        stall=True,
        identity=(Field.FUNCTION,),
    ),
    ReportKind(
        "hung-task",
        _re(r"INFO: task .{1,24}:\d+ (?:<writer> )?blocked (?:on .{1,100} )?for more than"),
        ("INFO: task",),
        "hung task",
        guilty=(Where.TRACE,),
        stall=True,
        identity=(Field.FUNCTION,),
    ),
    ReportKind(
        "workqueue-lockup",
        _re(r"BUG: workqueue lockup"),
        ("BUG: workqueue lockup",),
        "BUG: workqueue lockup",
        guilty=(Where.NAMED,),
        named=_re(r" +(?:in-flight: \d+(?:\([A-Z]+\))?:|pending: )(?P<function>[\w.]+)"),
        stall=True,
        identity=(Field.FUNCTION,),
    ),
    ReportKind(
        "csd-lock",  # kernel/smp.c
        _re(r"smp: csd: Detected non-responsive CSD lock"),
        ("smp: csd: Detected",),
        "CSD lock not released",
        guilty=(Where.HEADLINE, Where.TRACE),
        stall=True,
        identity=(Field.FUNCTION,),
    ),
    ReportKind(
        "netdevice-leak",  # netdev_wait_allrefs_any()
        _re(r"unregister_netdevice: waiting for (?P<reason>\S+) to become free"),
        ("unregister_netdevice: waiting",),
        "network device {reason} is still in use",
        end=End.LINE,
        identity=(Field.REASON,),
    ),
    ReportKind(
        "bad-page",
        _re(r"BUG: Bad page (?P<what>state|cache)"),
        ("BUG: Bad page",),
        "BUG: Bad page state",
        guilty=(Where.TRACE,),
        named=_re(r"page dumped because: (?P<reason>.*)"),
        skip=_re(
            r"(?:__)?free_|(?:__)?folio_put|put_page|release_pages|(?:__)?page_frag_free|get_page_from|rmqueue"
            r"|prep_new_page|(?:__)?alloc_(?:pages|frozen)|post_alloc_hook|check_new_page"
        ),
    ),
    ReportKind(
        "bad-page-map",
        _re(r"BUG: Bad page map"),
        ("BUG: Bad page map",),
        "BUG: Bad page map",
        guilty=(Where.TRACE,),
        skip=_re(r"print_bad_pte|vm_normal_(?:page|folio)"),
        identity=(Field.FUNCTION,),
    ),
    ReportKind(
        "rss-counter",
        _re(r"BUG: Bad rss-counter state .{0,80}?(?P<reason>type:\w+|idx:\d+)"),
        ("BUG: Bad rss",),
        "BUG: Bad rss-counter state {reason}",
        end=End.LINE,
        identity=(Field.REASON,),
    ),
    ReportKind(
        "page-table-bytes",
        _re(r"BUG: (?P<reason>non-zero pgtables_bytes on freeing mm)"),
        ("BUG: non-zero",),
        "BUG: {reason}",
        end=End.LINE,
        identity=(Field.REASON,),
    ),
    ReportKind(
        "bad-entry",  # pte_ERROR() and similar
        _re(r"(?P<place>\S{1,200}\.[ch]:\d+): (?P<reason>bad p(?:te|md|ud|4d|gd)) "),
        (": bad p",),
        "{reason}",
        end=End.LINE,
    ),
    ReportKind(
        "swap-entry",
        _re(r"(?P<function>\w+): (?P<reason>(?:Bad|Unused) swap (?:file|offset) entry)"),
        ("swap file entry", "swap offset entry"),
        "{reason}",
        guilty=(Where.HEADLINE,),
        end=End.LINE,
    ),
    ReportKind(
        "page-poison",  # mm/page_poison.c
        _re(r"pagealloc: (?P<reason>memory corruption|single bit error)"),
        ("pagealloc: ",),
        "pagealloc: {reason}",
        guilty=(Where.TRACE,),
        skip=_re(r"(?:__)?kernel_unpoison|(?:__)?alloc_|get_page_from|rmqueue|prep_new_page|post_alloc_hook"),
    ),
    ReportKind(
        "vmstat",
        _re(r"vmstat_refresh: (?P<reason>\w+) -\d+"),
        ("vmstat_refresh: ",),
        "negative counter {reason}",
        end=End.LINE,
        identity=(Field.REASON,),
    ),
    ReportKind(
        "zone",  # page_outside_zone_boundaries()
        _re(r"page 0x[0-9a-f]+ (?P<reason>outside node \d+ zone \w+)"),
        ("outside node",),
        "page {reason}",
        end=End.LINE,
        identity=(Field.REASON,),
    ),
    ReportKind(
        "vmalloc-tree",  # mm/vmalloc.c
        _re(r"(?P<reason>tree is corrupted)"),
        ("tree is corrupted",),
        "vmalloc: {reason}",
        end=End.LINE,
        identity=(Field.REASON,),
    ),
    ReportKind(
        "sleep-in-atomic",
        _re(r"BUG: (?P<reason>sleeping function called from invalid context) at (?P<place>\S+)"),
        ("BUG: sleeping",),
        "BUG: {reason}",
        guilty=(Where.TRACE,),
    ),
    ReportKind(
        "schedule-in-atomic",
        _re(r"BUG: (?P<reason>scheduling while atomic|scheduling in a non-blocking section)"),
        ("BUG: scheduling",),
        "BUG: {reason}",
        guilty=(Where.TRACE,),
    ),
    ReportKind(
        "workqueue-leak",  # process_one_work()
        _re(r"BUG: workqueue (?P<reason>leaked (?:atomic|lock).*?)(?=: |$)"),
        ("BUG: workqueue leaked",),
        "BUG: workqueue {reason}",
        guilty=(Where.NAMED, Where.TRACE),
        named=_re(r" +(?:preempt=.{1,80} workfn=|last function: )(?P<function>[\w.]+)"),
    ),
    ReportKind(
        "spinlock",  # spin_dump()
        _re(r"BUG: (?P<reason>(?:spinlock|rwlock|rt_mutex) [a-z -]+?) on CPU#"),
        ("BUG: spinlock", "BUG: rwlock", "BUG: rt_mutex"),
        "BUG: {reason}",
        guilty=(Where.TRACE,),
    ),
    ReportKind(
        "slub",
        _re(r"BUG (?P<cache>[\w.:-]{1,64}) \([^)]*\): (?P<reason>\w.*)"),
        ("BUG ",),
        "SLUB {cache}: {reason}",
        guilty=(Where.TRACE,),
        # The kind of damage is in brackets, above or below the headline.
        named=_re(r"\[(?P<reason>\D{1,60}?)\] 0x"),
        within=_re(r"WARNING: .* at mm/slub\.c:|WARNING: mm/slub\.c:"),
        end=End.OOPS,
    ),
    ReportKind(
        "kmemleak",
        _re(r"kmemleak: \d+ new (?P<reason>suspected memory leaks)"),
        ("kmemleak: ",),
        "kmemleak: {reason}",
        end=End.LINE,
        identity=(Field.REASON,),
    ),
    ReportKind(
        "kmemleak-fault",
        _re(
            r"kmemleak: (?P<reason>(?:Freeing|Scanning|Not scanning|Unknown|Cannot insert) .*"
            r"|Kernel memory .* disabled)"
        ),
        ("kmemleak: ",),
        "kmemleak: {reason}",
    ),
    ReportKind(
        "msr",  # ex_handler_msr()
        _re(r"unchecked MSR access error: (?P<reason>RDMSR|WRMSR) .*?\(" + _SYMBOL),
        ("unchecked MSR",),
        "unchecked {reason}",
        guilty=(Where.HEADLINE, Where.TRACE),
    ),
    ReportKind(
        "wx-mapping",  # arch/x86/mm/dump_pagetables.c
        _re(r"x86/mm: (?P<reason>Checked W\+X mappings: FAILED)"),
        ("W+X mappings: FAILED",),
        "{reason}",
        end=End.LINE,
        identity=(Field.REASON,),
    ),
    ReportKind(
        "irq",  # __report_bad_irq()
        _re(r"irq \d+: (?P<reason>nobody cared)"),
        ("nobody cared",),
        "interrupt: {reason}",
        guilty=(Where.TRACE,),
        skip=_re(r"__report_bad_irq|note_interrupt|handle_"),
    ),
    ReportKind(
        "recursive-fault",  # make_task_dead()
        _re(r"(?P<reason>Fixing recursive fault) but reboot is needed"),
        ("Fixing recursive",),
        "{reason}",
        end=End.LINE,
        identity=(Field.REASON,),
    ),
    ReportKind(
        "percpu-ref",  # percpu_ref_switch_to_atomic_rcu()
        _re(r"percpu ref \((?P<function>[\w.]+)\) <= 0 "),
        ("percpu ref (",),
        "percpu reference count below one",
        guilty=(Where.HEADLINE,),
        end=End.LINE,
        identity=(Field.FUNCTION,),
    ),
    ReportKind(
        "busy-inodes",
        _re(r"VFS: (?P<reason>Busy inodes after unmount)"),
        ("VFS: Busy",),
        "VFS: {reason}",
        end=End.LINE,
        identity=(Field.REASON,),
    ),
    ReportKind(
        "buffer",
        _re(r"VFS: brelse: (?P<reason>Trying to free free buffer)"),
        ("VFS: brelse",),
        "VFS: {reason}",
        end=End.LINE,
        identity=(Field.REASON,),
    ),
    ReportKind(
        "oops",
        _re(
            r"(?:Oops: )?(?P<reason>[A-Za-z][^:,\[]{2,60})(?:, [^:\[]{1,60})?(?: 0x[0-9a-f]+)?: [0-9a-f]{4,16} \[#\d+\]"
        ),
        (" [#",),
        "{reason}",
        end=End.OOPS,
    ),
    ReportKind(
        "oops",
        _re(r"(?P<reason>general protection fault)(?:,| |:)"),
        ("general protection fault",),
        "{reason}",
        end=End.OOPS,
    ),
    ReportKind(
        "bug",
        _re(r"(?:[\w-]{1,40}: )?BUG: (?P<reason>.*)"),
        ("BUG: ",),
        "BUG: {reason}",
    ),
    ReportKind(
        "fault-injection",  # lib/fault-inject.c
        _re(r"FAULT_INJECTION: (?P<reason>forcing a failure)"),
        ("FAULT_INJECTION",),
        "fault injection: {reason}",
        severity=Severity.ADVICE,
        guilty=(Where.TRACE,),
        skip=_re(r"should_fail|fail_|__should"),
    ),
    ReportKind(
        "workqueue-hog",  # wq_cpu_intensive_report()
        _re(r"workqueue: (?P<function>[\w.]+) (?P<reason>hogged CPU) for"),
        ("hogged CPU",),
        "workqueue: {reason}",
        severity=Severity.ADVICE,
        guilty=(Where.HEADLINE,),
        end=End.LINE,
    ),
    ReportKind(
        "initcall",  # do_one_initcall()
        _re(r"initcall " + _SYMBOL + r"\S* returned with (?P<reason>.*)"),
        ("returned with",),
        "initcall returned with {reason}",
        severity=Severity.ADVICE,
        guilty=(Where.HEADLINE,),
        end=End.LINE,
    ),
    ReportKind(
        "printed-warning",
        _re(r"WARNING: (?P<reason>.*)"),
        ("WARNING: ",),
        "WARNING: {reason}",
        guilty=(Where.TRACE,),
        traced=True,
    ),
)

#: Functions that report, check, copy, free or wait on behalf of their caller, by what they do.
_SKIP = (
    # They print reports.
    r"dump_stack",
    r"show_stack",
    r"show_regs",
    r"_{0,2}warn",
    r"report_bug",
    r"handle_bug",
    r"exc_",
    r"asm_",
    r"panic",
    r"oops_",
    r"die",
    r"page_fault",
    r"print_",
    r"nmi_",
    r"sched_show_task",
    r"watchdog",
    r"rcu_",
    r"spin_(?:dump|bug)",
    r"bad_page",
    r"dump_page",
    r"usercopy_abort",
    r"fortify_",
    r"trigger_",
    r"csd_lock",
    r"__die",
    r"object_err",
    r"__slab_",
    # They check.
    r"_{0,2}kasan_",
    r"__asan_",
    r"kfence_",
    r"_{0,2}ubsan_",
    r"_{0,2}check_",
    r"lockdep_",
    r"__lock_",
    r"lock_(?:acquire|release)",
    r"assign_lock_key",
    r"register_lock_class",
    r"mark_(?:lock|usage)",
    r"validate_chain",
    r"valid_state",
    r"debug_",
    r"__debug_",
    r"do_raw_",
    r"__might_",
    r"___might_sleep",
    r"refcount_",
    r"__list_(?:add|del)",
    r"should_fail",
    r"__should_fail",
    # They copy.
    r"_?_?mem(?:cpy|set|move|cmp|chr|scan)",
    r"str(?:n|l|s)?(?:cpy|cat|len|cmp|nlen|chr)",
    r"_?copy_(?:to|from)_(?:user|iter)",
    r"rep_(?:movs|stos)",
    r"clear_page",
    r"copy_page",
    # They allocate or free.
    r"k[vz]?free",
    r"kmem_cache_",
    r"(?:__)?k(?:v|z)?malloc",
    r"slab_",
    r"free_to_partial",
    r"free_debug",
    r"alloc_debug",
    r"___slab_alloc",
    # They wait.
    r"__schedule",
    r"schedule",
    r"io_schedule",
    r"context_switch",
    r"do_wait",
    r"wait_for_",
    r"__wait_",
    r"__mutex",
    r"mutex_",
    r"ww_mutex",
    r"down_",
    r"__down",
    r"up_(?:read|write)",
    r"rwsem_",
    r"_raw_",
    r"__raw_",
    r"queued_",
    r"native_queued",
    r"rt_mutex",
    r"folio_wait",
    r"bit_wait",
    r"out_of_line_wait",
    r"do_task_dead",
    r"msleep",
    r"usleep_",
    r"preempt_(?:schedule|count)",
    r"__cond_resched",
)
_CONTINUATION = (
    r"\s",
    r"$",
    r"(?i:call trace)",
    r"CPU: \d",
    r"Hardware name:",
    r"Modules linked in:",
    r"Workqueue:",
    r"R[A-Z0-9]{2}: ",
    r"[CDEFGS]S: ",
    r"CR\d: ",
    r"DR\d: ",
    r"PKRU: ",
    r"Code: ",
    r"#PF: ",
    r"PGD ",
    r"page: ",
    r"head: ",
    r"flags: ",
    r"raw: ",
    r"memcg:",
    r"aops:",
    r"anon ",
    r"file ",
    r"ksm ",
    r"page_type:",
    r"page dumped because",
    r"addr:",
    r"vma ",
    r"stack backtrace:",
    r"task:",
    r"#\d+: ",
    r"\d+ locks? held",
    r"no locks held",
    r"locks held",
    r"Not tainted",
    r"Tainted:",
    r'"echo 0 > ',
    r"NMI backtrace",
    r"Sending NMI",
    r"rcu: ",
    r"-{20}",
    r"={20}",
    r"Showing all locks",
    r"(?:Allocated|Freed) (?:by|in) ",
    r"The buggy address",
    r"Memory state",
    r"irq event stamp:",
    r"hardirqs last",
    r"softirqs last",
    r"in_atomic",
    r"preempt_count",
    r"RCU nest",
    r"Preemption disabled",
    r"INFO: lockdep",
    r"note: ",
    r"Disabl(?:ed|ing) lock",
    r"Kernel Offset:",
    r"caller is",
    r"(?:Read|Write) of ",
    r"invalid access",
    r"backtrace",
    r"comm ",
    r"hex dump",
    r"unreferenced object",
    r"Object +",
    r"Slab 0x",
    r"Redzone +",
    r"Padding +",
    r"FIX ",
    r">",
    r"page_owner ",
    r"page last (?:allocated|free)",
    r"This frame has",
    r"Last potentially",
    r"kernel tried to",
    r"name ",
    r"[0-9a-f]{8}: ",
    r"workqueue ",
    r"pool \d+:",
    r"Showing busy",
    r"Showing backtraces",
    r"preempt=",
    r"index ",
    r"shift exponent",
    r"load of value",
)
_PRELUDE = (
    r"list_\w+ corruption",
    r"\[[A-Z][\w ]+\] 0x",
    r" *page:",
    r"head:",
    r"flags:",
    r"raw:",
    r"memcg:",
    r"aops:",
    r"(?:anon|file|ksm) ",
    r"page_type:",
    r"page dumped because",
    r"page_owner ",
    r"page last ",
    r"vma [0-9a-f]",
    r"mm [0-9a-f]",
    r"usercopy:",
    r"DEBUG_LOCKS_WARN_ON",
    r"kernel tried to execute",
)
_OOPSES = (
    "oops",
    "page-fault",
    "bug-on",
    "stack-guard",
    "page-table",
    "double-fault",
    "soft-lockup",
)

#: The rules for Linux.
RULES = Rules(
    kinds=_KINDS,
    skip=_SKIP,
    continuation=_CONTINUATION,
    prelude=_PRELUDE,
    consequence={
        "Fatal exception": _OOPSES,
        "Attempted to kill": _OOPSES,
        "panic_on_warn": (),
        "hung_task": ("hung-task",),
        "softlockup": ("soft-lockup",),
        "Hard LOCKUP": ("hard-lockup",),
        "RCU Stall": ("rcu-stall",),
    },
)
