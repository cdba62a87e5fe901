# SPDX-License-Identifier: GPL-2.0-only
"""Parser for the kernel's own reports on the console: panics, oopses, warnings, sanitizer and lock reports.

:func:`parse_console` is as strict as kunit's parser: a report that has begun counts, even if its end was never
printed. Messages that do not mean a kernel bug are ignored: OOM kills, failed page allocations, segfaults.

The report formats are those of ``lib/bug.c``, ``kernel/panic.c``, ``arch/x86/kernel/dumpstack.c``,
``mm/kasan/report.c``, ``lib/ubsan.c``, ``kernel/locking/lockdep.c``, ``kernel/hung_task.c``, ``kernel/watchdog.c``,
``kernel/rcu/tree_stall.h``, ``mm/page_alloc.c``, ``mm/memory.c``, ``mm/slub.c`` and ``mm/kmemleak.c``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.store.outcome import Outcome

#: Most lines of one report: enough for a lockdep report, but limited in case a stall repeats endlessly.
MAXIMUM_LINES = 400

#: Titles of the watchdogs' reports begin so.
_STALLS = ("RCU stall", "soft lockup", "hard lockup", "hung task", "BUG: workqueue lockup")


@dataclass(frozen=True)
class Finding:
    """One report of the kernel.

    Args:
        outcome: ``kernel-panic`` if the kernel stopped, else ``kernel-bug``.
        title: normalised title without addresses, PIDs or CPU numbers, so that reports of one bug share a title.
        text: the whole report, with the timestamps of the console.
        line: line number in the console log where it begins, from 1.
        count: number of reports with this title; `text` and `line` are those of the first one.
    """

    outcome: Outcome
    title: str
    text: str
    line: int
    count: int = 1

    @property
    def is_stall(self) -> bool:
        """Whether it only says that time passed: a host that starves its guest causes that, too."""
        return self.title.startswith(_STALLS)


@dataclass(frozen=True)
class _ConsoleLine:
    number: int
    raw: str
    #: The message without timestamp, caller and log level.
    body: str


@dataclass(frozen=True)
class _Kind:
    """A pattern for the first line of a report, and how to make its title from that line and the whole report."""

    pattern: re.Pattern[str]
    title: Callable[[re.Match[str], Sequence[str]], str]
    outcome: Outcome = Outcome.KERNEL_BUG
    #: "trace": a few lines, then call traces. "prose": much text first (lockdep). "line": only this line.
    #: "box": it ends with a line of equals signs. "panic": it ends with "---[ end Kernel panic", or with the log.
    #: "slub": a trace, followed by the warning that SLUB in newer kernels raises for its own reports.
    shape: str = "trace"


_PREFIX = re.compile(r"(?:<\d+>)?\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? ?")
_RIP = re.compile(r"RIP: [0-9a-f]{4}:(?P<function>[\w.]+)\+0x")
_FRAME = re.compile(r"^ (?:\[<[0-9a-f]+>\] )?(?P<function>[\w.]+)\+0x[0-9a-f]+/0x[0-9a-f]+")
_SYMBOL = re.compile(r"(?P<function>[\w.]+)\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?")

# Functions above the faulty one in a trace: those that print the report.
_REPORTERS = re.compile(
    r"^(?:dump_stack|show_stack|show_regs|__?warn|report_bug|handle_bug|exc_|asm_|panic|oops_|die|page_fault|"
    r"bad_page|dump_page|__might_|print_|kasan_|__kasan|__asan|check_|lockdep_|__lock_acquire|lock_acquire|"
    r"sched_show_task|__ubsan|ubsan_|nmi_|watchdog|rcu_|free_page_is_bad|should_fail|"
    # Not the function in which a task sleeps, but its caller identifies the fault.
    r"__schedule|schedule|io_schedule|context_switch|do_wait|wait_for_|__wait_|__mutex|mutex_|ww_mutex|down_|__down|"
    r"rwsem_|_raw_|__raw_|queued_spin|native_queued|rt_mutex|folio_wait|bit_wait|out_of_line_wait|do_task_dead)"
)

_CONTINUATION = re.compile(
    r"""\s | $ | Call\ Trace: | call\ trace | CPU:\ \d | Hardware\ name: | Modules\ linked\ in: | Workqueue:
    | RIP: | RSP: | R[A-Z0-9]{2}: | [CDEFGS]S: | CR\d: | DR\d: | PKRU: | Code: | \#PF: | PGD\  | Oops: | Comm:
    | page: | head: | flags: | raw: | memcg: | aops: | anon\  | file\  | ksm\  | page_type: | page\ dumped\ because
    | addr: | vma\  | stack\ backtrace: | task: | \#\d+: | \d+\ locks?\ held | no\ locks\ held | locks\ held
    | Not\ tainted | Tainted: | "echo\ 0\ > | NMI\ backtrace | Sending\ NMI | rcu: | ---\[\ end\ trace | -{20} | ={20}
    | Showing\ all\ locks | (?:Allocated|Freed)\ (?:by|in) | The\ buggy\ address | Memory\ state | irq\ event\ stamp:
    | hardirqs\ last | softirqs\ last | in_atomic | preempt_count | RCU\ nest | Preemption\ disabled | INFO:\ lockdep
    | note: | Disabl(?:ed|ing)\ | Tracing | Dumping | Kernel\ Offset: | caller\ is | Read\ of | Write\ of
    | invalid\ access
    | backtrace | comm\  | hex\ dump | unreferenced\ object | Object\  | Slab\ 0x | Redzone\  | Padding\  | FIX\  | >
    """,
    re.VERBOSE,
)
_TRACE_BEGINS = re.compile(r"(?i:call trace:)")
_END_OF_TRACE = re.compile(r"---\[ end trace [0-9a-f]+ \]---")
_END_OF_PANIC = re.compile(r"---\[ end Kernel panic")
_CUT_HERE = re.compile(r"-+\[ cut here \]-+")
_RULE = re.compile(r"[=-]{20,}$")
# Lines that dump_page() of VM_BUG_ON_PAGE() (mm/debug.c) and SLUB print before their headline.
_PRELUDE = re.compile(
    r"list_\w+ corruption|\[[A-Z][\w ]+\] 0x|"
    r"page: ?\S*:| *page:|head:|flags:|raw:|memcg:|aops:|(?:anon|file|ksm) flags|page_type:|"
    r"page dumped because"
)
_BECAUSE = re.compile(r"page dumped because: (?P<reason>.*)")


def _plain(text: str) -> Callable[[re.Match[str], Sequence[str]], str]:
    return lambda match, report: text


def _matched(match: re.Match[str], report: Sequence[str]) -> str:
    return _normalise(match[0])


def _at_fault(text: str) -> Callable[[re.Match[str], Sequence[str]], str]:
    def title(match: re.Match[str], report: Sequence[str]) -> str:
        function = _function_at_fault(report)
        return f"{text} in {function}" if function else text

    return title


def _warning_title(match: re.Match[str], report: Sequence[str]) -> str:
    function, place = match["function"], match["place"]
    return f"WARNING in {function} at {place}" if function else f"WARNING at {place}"


def _bug_on_title(match: re.Match[str], report: Sequence[str]) -> str:
    because = next((found["reason"] for line in report if (found := _BECAUSE.match(line))), None)
    title = f"kernel BUG at {match['place']}"
    return f"{title} ({because})" if because else title


def _oops_title(match: re.Match[str], report: Sequence[str]) -> str:
    return _at_fault(match["what"].strip())(match, report)


def _sanitizer_title(match: re.Match[str], report: Sequence[str]) -> str:
    return f"{match['tool']}: {_normalise(match['what'])}"


def _suspicious_rcu_title(match: re.Match[str], report: Sequence[str]) -> str:
    place = next((found[1] for line in report if (found := re.match(r"(\S+\.[ch]:\d+) ", line))), None)
    return f"suspicious RCU usage at {place}" if place else "suspicious RCU usage"


def _lockdep_title(match: re.Match[str], report: Sequence[str]) -> str:
    held = next((found[1] for line in report if (found := re.search(r"\(([^()\s]+)\)\{", line))), None)
    what = _normalise(match["what"])
    return f"lockdep: {what} ({held})" if held else f"lockdep: {what}"


def _slub_title(match: re.Match[str], report: Sequence[str]) -> str:
    # The kind of damage is in brackets, above or below the headline.
    damage = next((found[1] for line in report if (found := re.match(r"\[(\D+?)\] 0x", line))), match["what"])
    return f"SLUB: {_normalise(damage)} in {match['cache']}"


def _hung_title(match: re.Match[str], report: Sequence[str]) -> str:
    return _at_fault(f"hung task {_normalise(match['task'])}")(match, report)


_LOCKDEP = (
    r"possible (?:circular locking dependency|recursive locking|irq lock inversion dependency) detected"
    r"|inconsistent lock state|bad (?:unlock|contention unlock) balance detected!?|Nested lock was not taken"
    r"|held lock freed!?|(?:HARDIRQ|SOFTIRQ|\S+)-safe -> \S+-unsafe lock order detected"
    r"|lock held when returning to user space!?|.* still has locks held!?|Invalid wait context"
)

#: Ordered: the first that matches a line determines the kind of the report.
_KINDS = (
    _Kind(
        re.compile(r"Kernel panic - not syncing: ?(?P<what>.*)"),
        lambda match, report: f"Kernel panic: {_normalise(match['what'])}",
        Outcome.KERNEL_PANIC,
        "panic",
    ),
    _Kind(
        re.compile(r"PANIC: (?P<what>early exception 0x[0-9a-f]+|double fault)"),
        _oops_title,
        Outcome.KERNEL_PANIC,
    ),
    _Kind(
        re.compile(r"WARNING: CPU: \d+ PID: \d+ at (?P<place>\S+)(?: (?P<function>[\w.]+)\+0x)?"),
        _warning_title,
    ),
    _Kind(
        # 6.18 and later: "WARNING: mm/foo.c:12 at function+0x1/0x2, CPU#0: comm/1"
        re.compile(r"WARNING: (?P<place>[\w./-]+\.[chS]:\d+) at (?P<function>[\w.]+)\+0x"),
        _warning_title,
    ),
    _Kind(re.compile(r"WARNING: suspicious RCU usage"), _suspicious_rcu_title, shape="prose"),
    _Kind(re.compile(rf"WARNING: (?P<what>{_LOCKDEP})"), _lockdep_title, shape="prose"),
    _Kind(re.compile(rf"\[ (?:BUG|INFO): (?P<what>{_LOCKDEP}|.*) \]"), _lockdep_title, shape="prose"),
    _Kind(re.compile(r"INFO: trying to register non-static key"), _at_fault("lockdep: non-static key")),
    _Kind(
        re.compile(r"BUG: (?P<tool>KASAN|KMSAN|KCSAN|KFENCE): (?P<what>.*)"), _sanitizer_title, shape="box"
    ),
    _Kind(re.compile(r"(?P<tool>UBSAN): (?P<what>.*)"), _sanitizer_title),
    _Kind(re.compile(r"kernel BUG at (?P<place>\S+?)!"), _bug_on_title),
    _Kind(
        re.compile(
            r"BUG: (?P<what>unable to handle (?:page fault|kernel [\w ]+?)|kernel NULL pointer dereference)"
        ),
        lambda match, report: _at_fault(f"BUG: {match['what']}")(match, report),
    ),
    _Kind(
        re.compile(
            r"(?:NMI )?watchdog: (?:BUG: (?P<soft>soft lockup)|Watchdog detected (?P<hard>hard LOCKUP))"
        ),
        lambda match, report: _at_fault(match["soft"] or "hard lockup")(match, report),
    ),
    _Kind(
        re.compile(r"(?:rcu: )?INFO: rcu\w* (?:self-)?detected (?:expedited )?stalls? on"),
        _at_fault("RCU stall"),
    ),
    _Kind(re.compile(r"rcu: rcu\w+ kthread (?:starved|timer wakeup)"), _plain("RCU stall: kthread starved")),
    _Kind(re.compile(r"INFO: task (?P<task>\S+?):\d+ blocked for more than"), _hung_title),
    _Kind(
        re.compile(r"BUG: \w+ (?P<what>stack guard page) was hit"),
        lambda match, report: _at_fault(f"BUG: {match['what']} hit")(match, report),
    ),
    _Kind(re.compile(r"BUG: Bad page (?P<what>state|map|cache)"), _matched),
    _Kind(
        re.compile(r"BUG: Bad rss-counter state .*?(?P<type>type:\w+|idx:\d+)"),
        lambda match, report: f"BUG: Bad rss-counter state {match['type']}",
        shape="line",
    ),
    _Kind(re.compile(r"BUG: non-zero pgtables_bytes on freeing mm"), _matched, shape="line"),
    _Kind(re.compile(r"\S+\.[ch]:\d+: (?P<what>bad p(?:te|md|ud|4d|gd)) "), _matched, shape="line"),
    _Kind(re.compile(r"\w+: (?:Bad|Unused) swap (?:file|offset) entry"), _matched, shape="line"),
    _Kind(
        re.compile(r"BUG: (?P<what>sleeping function called from invalid context) at (?P<place>\S+)"),
        lambda match, report: f"BUG: {match['what']} at {match['place']}",
    ),
    _Kind(re.compile(r"BUG: (?P<what>scheduling while atomic)"), _at_fault("BUG: scheduling while atomic")),
    _Kind(re.compile(r"BUG (?P<cache>[\w.:-]+) \(.*?\): (?P<what>.*)"), _slub_title, shape="slub"),
    _Kind(
        re.compile(r"kmemleak: \d+ new suspected memory leaks"),
        _plain("kmemleak: suspected memory leaks"),
        shape="line",
    ),
    _Kind(
        re.compile(r"(?:Oops: )?(?P<what>[A-Za-z][\w ,:./-]*?)(?:, .*?)?: [0-9a-f]{4,} \[#\d+\]"), _oops_title
    ),
    _Kind(re.compile(r"Oops: [0-9a-f]{4,} \[#\d+\]"), _at_fault("Oops")),
    _Kind(re.compile(r"general protection fault(?:,| |:)"), _at_fault("general protection fault")),
    _Kind(
        re.compile(r"(?:[\w-]+: )?BUG: (?P<what>.*)"),
        lambda match, report: f"BUG: {_normalise(match['what'])}",
    ),
    _Kind(
        re.compile(r"WARNING: (?P<what>.*)"), lambda match, report: f"WARNING: {_normalise(match['what'])}"
    ),
)

# Lines that only occur within a report.
_INNER_OOPS = re.compile(r"(?:Oops: |.*: )[0-9a-f]{4,} \[#\d+\]|Oops: ")


def parse_console(text: str) -> list[Finding]:
    """All reports of the kernel, in the order of the log.

    A panic caused by an earlier report (``panic_on_oops``, an oops in an interrupt, ``panic_on_warn``) is merged with
    it into one finding: the title names the cause, and the outcome is ``kernel-panic``.

    Args:
        text: a console log; it may be truncated anywhere, and user space may have written between the lines.

    Returns:
        One finding per title, in the order of first occurrence.
    """
    lines = _kernel_lines(text)
    findings: list[Finding] = []
    position = 0
    ends_at = -1  # index after the last report
    while position < len(lines):
        begun = _begins(lines[position].body)
        if begun is None:
            position += 1
            continue
        kind, match = begun
        first = _first_line(lines, position, ends_at)
        end = _end(lines, position, kind)
        finding = _finding(lines, kind, match, first, end)
        if kind.shape == "panic" and findings and _follows(lines, ends_at, position):
            finding = _caused(findings.pop(), finding)
        findings.append(finding)
        position = ends_at = end
    return _folded(findings)


def _folded(findings: Sequence[Finding]) -> list[Finding]:
    """One finding per title: a bug that is hit a thousand times is one bug."""
    folded: dict[tuple[Outcome, str], Finding] = {}
    for finding in findings:
        key = finding.outcome, finding.title
        folded[key] = replace(folded[key], count=folded[key].count + 1) if key in folded else finding
    return list(folded.values())


def _kernel_lines(text: str) -> list[_ConsoleLine]:
    # Lines end with CR LF on a serial port; a lone CR is a progress bar of user space.
    raw = [line.rstrip("\r") for line in text.split("\n")]
    stamped = [_PREFIX.search(line) for line in raw]
    # If the log has timestamps, lines without one are from user space, where "BUG:" means nothing.
    trusted = any(stamped)
    lines = []
    for number, (line, prefix) in enumerate(zip(raw, stamped, strict=True), start=1):
        if prefix is not None:
            lines.append(_ConsoleLine(number, line[prefix.start() :], line[prefix.end() :]))
        elif not trusted:
            lines.append(_ConsoleLine(number, line, line))
    return lines


def _begins(body: str) -> tuple[_Kind, re.Match[str]] | None:
    if body.startswith("traps: ") and "PANIC" not in body:
        return None  # a fault of a user process (show_signal() in arch/x86/kernel/traps.c)
    for kind in _KINDS:
        match = kind.pattern.match(body.removeprefix("traps: "))
        if match is not None:
            return kind, match
    return None


def _first_line(lines: Sequence[_ConsoleLine], position: int, floor: int) -> int:
    """The real start of a report: its ruler, its ``cut here`` line, or the page dump before it."""
    first = position
    lowest = max(floor, 0)
    back = position - 1
    while back >= lowest and position - back <= 12:
        body = lines[back].body
        if _CUT_HERE.match(body):
            first = back
            back -= 1
            # The page dump comes before that line.
            while back >= lowest and _PRELUDE.match(lines[back].body):
                first = back
                back -= 1
            return first
        back -= 1
    back = position - 1
    while back >= lowest and (_PRELUDE.match(lines[back].body) or _RULE.match(lines[back].body)):
        first = back
        back -= 1
    return first


def _end(lines: Sequence[_ConsoleLine], position: int, kind: _Kind) -> int:
    """The index after the last line of the report."""
    if kind.shape == "line":
        return position + 1
    limit = min(len(lines), position + MAXIMUM_LINES)
    traced = False
    certain = position + 1  # after the last line that certainly belongs to this report
    for index in range(position + 1, limit):
        body = lines[index].body
        if kind.shape == "panic":
            if _END_OF_PANIC.match(body):
                return index + 1
            certain = index + 1
            continue
        if kind.shape == "box":
            certain = index + 1
            if body.startswith("=" * 20):
                break
            continue
        if _END_OF_TRACE.search(body):
            return index + 1
        if kind.shape == "slub" and (_CUT_HERE.match(body) or " at mm/slub.c:" in body):
            continue
        if _another(body, kind):
            return index if traced else certain
        traced = traced or _TRACE_BEGINS.match(body.strip()) is not None
        if _CONTINUATION.match(body) or (kind.shape == "prose" and not traced):
            certain = index + 1
        elif traced or index - position >= 4:
            break
    return certain


def _another(body: str, kind: _Kind) -> bool:
    if _CUT_HERE.match(body):
        return True
    begun = _begins(body)
    if begun is None:
        return False
    # "BUG: unable to handle page fault", "kernel BUG at" and similar are followed by their own "Oops:" line.
    return not _INNER_OOPS.match(body) and begun[0] is not kind


def _finding(
    lines: Sequence[_ConsoleLine], kind: _Kind, match: re.Match[str], first: int, end: int
) -> Finding:
    bodies = [line.body for line in lines[first:end]]
    text = "\n".join(line.raw for line in lines[first:end]).rstrip()
    return Finding(kind.outcome, kind.title(match, bodies), text, lines[first].number)


def _follows(lines: Sequence[_ConsoleLine], ends_at: int, position: int) -> bool:
    """Whether the panic at `position` was caused by the previous report: nothing else is between them."""
    between = lines[ends_at:position]
    return len(between) <= 60 and all(_CONTINUATION.match(line.body) for line in between)


def _caused(cause: Finding, panic: Finding) -> Finding:
    reason = panic.title.removeprefix("Kernel panic: ")
    return replace(
        panic,
        title=f"{cause.title}; then kernel panic: {reason}",
        text=f"{cause.text}\n{panic.text}",
        line=cause.line,
    )


def _function_at_fault(report: Sequence[str]) -> str | None:
    """The function in the first ``RIP:`` line, else the first one in the trace outside of the reporting code."""
    for line in report:
        if found := _RIP.search(line):
            return found["function"]
    return next((name for name in _frames(report) if not _REPORTERS.match(name)), None)


def _frames(report: Sequence[str]) -> Iterator[str]:
    for line in report:
        if found := _FRAME.match(line):
            yield found["function"]


def _normalise(text: str) -> str:
    """Remove everything that differs between two occurrences of a bug."""
    text = _SYMBOL.sub(lambda match: match["function"], text)
    text = re.sub(r"\b0x[0-9a-f]+\b|\b[0-9a-f]{8,16}\b", "X", text)
    text = re.sub(r"\bCPU ?#?\d+", "CPU", text)
    text = re.sub(r"\b(?:PID: ?)?\d{3,}\b", "N", text)
    return " ".join(text.split()).rstrip(" :.")
