# SPDX-License-Identifier: GPL-2.0-only
"""Parser for the kernel's own reports on the console: panics, oopses, warnings, sanitizer and lock reports.

:func:`parse_console` is as strict as kunit's parser: a report that has begun counts, even if its end was never
printed. Messages that do not mean a kernel bug are ignored: OOM kills, failed page allocations, segfaults, advice.

What a report looks like is said in :mod:`orchestrator.machine.report_kind`; here is how a log is read by it. Lines of
tasks and CPUs that print at the same time are told apart by their caller (CONFIG_PRINTK_CALLER), if the log has it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

from orchestrator.machine.report_kind import RULES, End, Field, ReportKind, Rules, Severity, Where
from orchestrator.printable import printable
from orchestrator.store.outcome import Outcome

#: What marks the start of a test in the kernel's log; the name of the test follows.
TEST_MARK = "orchestrate: test "
#: Most lines of one report: enough for a lockdep report, but limited in case a stall repeats endlessly.
MAXIMUM_LINES = 400
#: Characters of a line that are read. The kernel's own lines are shorter (LOG_LINE_MAX of kernel/printk/printk.c).
_LINE_LIMIT = 2048
#: Bytes of a log that are read at once.
_CHUNK = 1 << 20
#: Lines before a headline that may belong to its report.
_BEFORE = 60
#: Lines of others within an oops, and within a call trace.
_FOREIGN = 3
#: Lines between a headline and its call trace.
_UNTRACED = 4
#: Lines between a report and the panic that it causes.
_UNTIL_PANIC = 60


@dataclass(frozen=True)
class Finding:
    """One report of the kernel.

    Args:
        outcome: ``kernel-panic`` if the kernel stopped, else ``kernel-bug``.
        title: the report in one line, for people.
        text: the whole report, with the timestamps of the console.
        line: line number in the console log where it begins, from 1.
        count: number of reports with this fingerprint; `text` and `line` are those of the first one.
        kind: name of its :class:`~orchestrator.machine.report_kind.ReportKind`.
        function: the function at fault; empty if it is not known.
        place: source file and line, as the kernel printed it.
        access: the wrong access, e.g. ``Write of size 8``.
        reason: what is wrong, without addresses and numbers.
        locks: the locks of a lock report: the one acquired, and the one held.
        frames: functions of the call trace, innermost first.
        test: the test that ran, if the log is marked with :data:`TEST_MARK`.
        caller: who printed it: ``T`` and a PID, or ``C`` and a CPU; empty without CONFIG_PRINTK_CALLER.
        fingerprint: what identifies the defect: kind, function and reason or locks. It has no line, command, PID or
            CPU, so that it is the same in another boot and in another version of the kernel.
    """

    outcome: Outcome
    title: str
    text: str
    line: int
    count: int = 1
    kind: str = ""
    function: str = ""
    place: str = ""
    access: str = ""
    reason: str = ""
    locks: tuple[str, ...] = ()
    frames: tuple[str, ...] = ()
    caller: str = ""
    fingerprint: str = ""
    test: str = ""

    def __post_init__(self) -> None:
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", self.title)

    @property
    def is_stall(self) -> bool:
        """Whether it only says that time passed: a host that starves its guest causes that, too."""
        return self.kind in _STALLS

    @property
    def ends_lockdep(self) -> bool:
        """Whether the locks of what ran after it were not checked."""
        return self.kind in _END_LOCKDEP

    @property
    def evidence(self) -> str:
        """Title, fingerprint and text, as they are stored for a cell."""
        named = "" if self.fingerprint == self.title else f"fingerprint: {self.fingerprint}\n"
        return f"{self.title}\n{named}{self.text}"

    def to_json(self) -> dict[str, Any]:
        """For a result file; :meth:`of_json` reads it."""
        return asdict(self)

    @classmethod
    def of_json(cls, facts: Mapping[str, Any]) -> Self:
        """Read a stored finding. One that was stored without its fingerprint gets it from its text."""
        known = {**facts, "outcome": Outcome(facts["outcome"])}
        if "fingerprint" not in known:
            parsed = parse_console(known["text"])
            if parsed:
                return cls(**{**vars(parsed[0]), **known})
            return cls(**known)
        return cls(**{**known, "locks": tuple(known["locks"]), "frames": tuple(known["frames"])})


_END_LOCKDEP = frozenset(kind.name for kind in RULES.kinds if kind.ends_lockdep)
_STALLS = frozenset(kind.name for kind in RULES.kinds if kind.stall)


@dataclass(frozen=True, slots=True)
class _ConsoleLine:
    number: int
    raw: str
    #: The message without timestamp, caller and log level.
    body: str
    caller: str = ""


#: The timestamp of a message of the kernel (CONFIG_PRINTK_TIME, CONFIG_PRINTK_CALLER).
STAMP = r"\[ {0,12}\d{1,10}\.\d{6}\](?:\[ {0,8}(?P<caller>[TC]\d{1,8})\])?"
#: early_fixup_exception(), arch/x86/mm/extable.c, prints before there are timestamps.
EARLY = r"PANIC: early exception 0x[0-9a-f]{1,4} IP [0-9a-f]+:"
_PREFIX = re.compile(r"(?:<\d{1,4}>)?" + STAMP + " ?")
_EARLY = re.compile(EARLY)
_RIP = re.compile(r" {0,2}RIP: [0-9a-f]{4}:(?P<function>[\w.]+)\+0x")
_FRAME = re.compile(r" +(?:\[<[0-9a-f]+>\] )?(?P<function>[\w.]+)\+0x[0-9a-f]+/0x[0-9a-f]+")
_SYMBOL = re.compile(r"\b(?P<function>[A-Za-z_][\w.]{0,200})\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?(?: \[\w{1,60}\])?")
_LOCK = re.compile(r"(?:[# ]{0,3}\d*:? *)?[0-9a-f]{8,16} \((?P<lock>.{1,160}?)\)\{[^}]{0,16}\}")
_RELEASED = re.compile(r".{1,40} is trying to (?:release|contend) lock \((?P<lock>.{1,160}?)\) at:$")
# What a task holds besides is no part of the defect: each write() holds the lock of its file system.
_BESIDES = re.compile(r"other info that might help|stack backtrace:|\d+ locks? held by")
_ACQUIRED = re.compile(r", at: (?:\[<[0-9a-f]+>\] )?(?P<function>[\w.]+)\+0x")
_TRACE_BEGINS = re.compile(r"\s*(?i:call trace:)")
_TRACE_OVER = re.compile(r"(?: </TASK>|Allocated by|Freed by|Last potentially|---\[ end trace)")
_END_OF_TRACE = re.compile(r"---\[ end trace [0-9a-f]+ \]---")
_END_OF_PANIC = re.compile(r"---\[ end Kernel panic")
_CUT_HERE = re.compile(r"-+\[ cut here \]-+")
_RULE = re.compile(r"[=-]{20,}$")
#: What is printed above ``cut here``, and is the reason.
_SAID = re.compile(r"list_\w+ corruption|usercopy:|DEBUG_LOCKS_WARN_ON|ODEBUG:|refcount_t:")
_BECAUSE = re.compile(r"page dumped because: (?P<reason>.*)")
#: What the compiler adds to the name of a function that it splits or clones.
_CLONE = re.compile(r"\.(?:isra|constprop|part|cold|llvm)\b.*")


class _Reader:
    """The rules, compiled."""

    def __init__(self, rules: Rules) -> None:
        self.kinds = rules.kinds
        self.words = tuple(dict.fromkeys(word for kind in rules.kinds for word in kind.words))
        self._with_word: dict[str, list[int]] = {word: [] for word in self.words}
        for index, kind in enumerate(rules.kinds):
            for word in kind.words:
                self._with_word[word].append(index)
        self.skip = re.compile("|".join(rules.skip))
        self.continues = re.compile("|".join(rules.continuation)).match
        self.precedes = re.compile("|".join(rules.prelude)).match
        self.consequence = rules.consequence

    def begins(self, body: str) -> tuple[ReportKind, re.Match[str]] | None:
        """The kind of the report of which `body` is the headline."""
        indices: list[int] = []
        for word in self.words:
            if word in body:
                indices += self._with_word[word]
        for index in sorted(indices):
            match = self.kinds[index].headline.match(body)
            if match is not None:
                return self.kinds[index], match
        return None


@lru_cache(maxsize=2)
def _reader(rules: Rules) -> _Reader:
    return _Reader(rules)


def parse_console(text: str, *, advice: bool = False, rules: Rules = RULES) -> list[Finding]:
    """All reports of the kernel, in the order of the log.

    A panic caused by an earlier report (``panic_on_oops``, an oops in an interrupt, ``panic_on_warn``) is merged with
    it into one finding: the title names the cause, and the outcome is ``kernel-panic``.

    Args:
        text: a console log; it may be truncated anywhere, and user space may have written between the lines.
        advice: also reports that are no defects.
        rules: what reports look like.

    Returns:
        One finding per fingerprint, in the order of first occurrence.
    """
    parser = _Parser(_reader(rules), advice, trusted=_PREFIX.search(text) is not None)
    parser.read(text)
    return parser.finish()


def parse_console_file(path: Path, *, advice: bool = False) -> list[Finding]:
    """:func:`parse_console` of a file of any size; only a part of it is in memory at a time.

    Raises:
        OSError: the file cannot be read.
    """
    trusted = any(_PREFIX.search(chunk) for chunk in _chunks(path))
    parser = _Parser(_reader(RULES), advice, trusted=trusted)
    for chunk in _chunks(path):
        parser.read(chunk)
    return parser.finish()


def _chunks(path: Path) -> Iterator[str]:
    """The text of a file in pieces that end with a line, if a line is not longer than a piece."""
    with path.open("rb") as stream:
        rest = b""
        while data := stream.read(_CHUNK):
            whole, newline, rest_of = (rest + data).rpartition(b"\n")
            if not newline and len(rest_of) < 2 * _CHUNK:
                rest = rest_of
                continue
            piece, rest = (whole + newline, rest_of) if newline else (rest_of, b"")
            yield printable(piece.decode(errors="replace"))
        if rest:
            yield printable(rest.decode(errors="replace"))


@dataclass
class _Report:
    """A report that is being read."""

    kind: ReportKind
    match: re.Match[str]
    lines: list[_ConsoleLine]
    #: Index of the headline in `lines`.
    head: int
    traced: bool = False
    in_trace: bool = False
    #: Whether a ``cut here`` line came: what follows is another report, unless the kind has it within.
    cut: bool = False
    #: The test that ran when it began.
    test: str = ""
    #: Number of lines that certainly belong to it.
    certain: int = field(init=False)

    def __post_init__(self) -> None:
        self.certain = len(self.lines)

    def take(self, line: _ConsoleLine, continues: bool) -> bool:
        """Take the next line; return whether the report goes on after it."""
        kind, body = self.kind, line.body
        self.lines.append(line)
        if len(self.lines) - self.head > MAXIMUM_LINES:
            return False
        if kind.end is End.PANIC:
            self.certain = len(self.lines)
            return _END_OF_PANIC.match(body) is None
        if self.cut:
            return len(self.lines) - self.certain <= 12
        if kind.end is End.BOX and body.startswith("=" * 20):
            self.certain = len(self.lines)
            return False
        if _END_OF_TRACE.match(body):
            self.certain = len(self.lines)
            return False
        if _TRACE_BEGINS.match(body):
            self.traced = self.in_trace = True
        elif body.startswith(" </TASK>"):
            self.in_trace = False
        if continues or (kind.end is End.PROSE and not self.traced):
            self.certain = len(self.lines)
            return True
        foreign = len(self.lines) - self.certain
        if not self.traced:
            return foreign < _UNTRACED
        return (self.in_trace or kind.end in (End.OOPS, End.BOX)) and foreign <= _FOREIGN

    def surplus(self) -> list[_ConsoleLine]:
        """Remove the lines at the end that do not belong to it, and return them."""
        rest = self.lines[self.certain :]
        del self.lines[self.certain :]
        return rest


@dataclass
class _Stream:
    """The lines of one caller, or of all if the log does not tell them apart."""

    recent: deque[_ConsoleLine] = field(default_factory=lambda: deque(maxlen=_BEFORE))
    report: _Report | None = None


@dataclass
class _Recent:
    """A finding that a panic may follow."""

    finding: Finding
    ends: int
    #: Lines of others after it.
    foreign: int = 0


class _Parser:
    def __init__(self, reader: _Reader, advice: bool, *, trusted: bool) -> None:
        self._reader = reader
        self._advice = advice
        # If the log has timestamps, lines without one are from user space, where "BUG:" means nothing.
        self._trusted = trusted
        self._streams: dict[str, _Stream] = {}
        self._open = 0
        self._folded: dict[tuple[Outcome, str], Finding] = {}
        self._last: deque[_Recent] = deque(maxlen=16)
        self._number = 0
        self._tail = ""
        self._test = ""

    def read(self, text: str) -> None:
        """Read the next part of the log."""
        # What cannot belong to a report is passed over: a log of 50 MB has few reports.
        text = self._tail + text
        self._tail = ""
        at = 0
        for begin in (*self._headlines(text), len(text)):
            if begin < at:
                continue
            while self._open and at < begin:
                at = self._line(text, at)
            if begin <= at:
                if at < len(text) and begin == at:
                    at = self._line(text, at)
                continue
            start = _lines_before(text, begin, _BEFORE, at)
            self._skip(text, at, start)
            at = start
            if begin == len(text):
                break
            while at <= begin:
                at = self._line(text, at)
        while self._open and at < len(text):
            at = self._line(text, at)
        self._tail = text[at:] if at < len(text) else ""

    def finish(self) -> list[Finding]:
        """The findings, after the whole log was read."""
        for stream in self._streams.values():
            self._close(stream)
        return sorted(self._folded.values(), key=lambda finding: finding.line)

    def _headlines(self, text: str) -> list[int]:
        """Where lines begin that may be headlines."""
        found: set[int] = set()
        for word in (*self._reader.words, TEST_MARK):
            at = text.find(word)
            while at >= 0:
                found.add(text.rfind("\n", 0, at) + 1)
                end = text.find("\n", at)
                at = text.find(word, end) if end >= 0 else -1
        return sorted(found)

    def _skip(self, text: str, begin: int, end: int) -> None:
        passed = text.count("\n", begin, end)
        if not passed:
            return
        self._number += passed
        for stream in self._streams.values():
            stream.recent.clear()
        for each in self._last:
            each.foreign += passed

    def _line(self, text: str, at: int) -> int:
        """Read the line at `at`; return where the next one begins."""
        end = text.find("\n", at)
        over = len(text) + 1 if end < 0 else end + 1
        raw = text[at : min(over - 1, at + _LINE_LIMIT)].rstrip("\r")
        self._number += 1
        prefix = _PREFIX.search(raw)
        if prefix is not None:
            caller = prefix["caller"] or ""
            self._feed(_ConsoleLine(self._number, raw[prefix.start() :], raw[prefix.end() :], caller))
        elif not self._trusted or _EARLY.match(raw):
            self._feed(_ConsoleLine(self._number, raw, raw))
        return min(over, len(text))

    def _feed(self, line: _ConsoleLine) -> None:
        stream = self._streams.get(line.caller)
        if stream is None:
            if len(self._streams) > 128:
                self._streams = {name: each for name, each in self._streams.items() if each.report}
            stream = self._streams[line.caller] = _Stream()
        if line.body.startswith(TEST_MARK):
            self._test = line.body.removeprefix(TEST_MARK).strip()
        begun = self._reader.begins(line.body)
        report = stream.report
        if report is None and begun is None and line.caller.startswith("C") and self._open:
            report = next(
                (s.report for s in self._streams.values() if s.report and s.report.kind.stall), None
            )
            # The backtrace of a CPU that stands still is printed by that CPU.
            if report is not None and self._reader.continues(line.body):
                report.take(line, True)
                return
            report = None
        if report is not None:
            if self._belongs(report, line, begun):
                if report.take(line, self._reader.continues(line.body) is not None):
                    return
                self._close(stream)
                return
            self._close(stream, before=begun is not None)
        if begun is None:
            stream.recent.append(line)
            if not self._reader.continues(line.body):
                for each in self._last:
                    each.foreign += 1
            return
        self._begin(stream, line, *begun)

    def _belongs(
        self, report: _Report, line: _ConsoleLine, begun: tuple[ReportKind, re.Match[str]] | None
    ) -> bool:
        """Whether a line may be a part of the report above it."""
        kind = report.kind
        if kind.end is End.PANIC:
            return True
        if _CUT_HERE.match(line.body):
            if kind.within is None:
                return False
            report.cut = True
            return True
        if begun is None:
            return True
        if kind.within is not None and kind.within.match(line.body):
            report.cut = False
            report.certain = len(report.lines)
            return True
        return False

    def _begin(self, stream: _Stream, line: _ConsoleLine, kind: ReportKind, match: re.Match[str]) -> None:
        before = self._before(stream.recent)
        stream.recent.clear()
        stream.report = _Report(kind, match, [*before, line], len(before), test=self._test)
        self._open += 1
        if kind.end is End.LINE:
            self._close(stream)

    def _before(self, recent: Sequence[_ConsoleLine]) -> list[_ConsoleLine]:
        """The lines above a headline that belong to it: a ruler, a ``cut here`` line, a dump of a page."""
        lines = list(recent)
        first = len(lines)
        for index in range(len(lines) - 1, max(len(lines) - 13, -1), -1):
            if _CUT_HERE.match(lines[index].body):
                first = index
                break
        while first > 0 and (
            self._reader.precedes(lines[first - 1].body) or _RULE.match(lines[first - 1].body)
        ):
            first -= 1
        return lines[first:]

    def _close(self, stream: _Stream, *, before: bool = False) -> None:
        """End the report of a stream.

        Args:
            before: a headline follows, to which the last lines may belong.
        """
        report = stream.report
        if report is None:
            return
        stream.report = None
        self._open -= 1
        rest = report.surplus()
        if before:
            while len(report.lines) > report.head + 1 and (
                _RULE.match(report.lines[-1].body) or self._reader.precedes(report.lines[-1].body)
            ):
                rest.insert(0, report.lines.pop())
        stream.recent.clear()
        stream.recent.extend(rest)
        read = _Reading(report, self._reader)
        if read.severity is Severity.ADVICE and not self._advice:
            return
        finding = read.finding()
        if report.kind.end is End.PANIC:
            finding = self._caused(finding, report.lines[0])
        self._last.append(_Recent(finding, report.lines[-1].number, sum(map(self._is_foreign, rest))))
        key = finding.outcome, finding.fingerprint
        known = self._folded.get(key)
        self._folded[key] = replace(known, count=known.count + 1) if known else finding

    def _is_foreign(self, line: _ConsoleLine) -> bool:
        return not self._reader.continues(line.body)

    def _caused(self, panic: Finding, line: _ConsoleLine) -> Finding:
        """The panic together with the report that caused it, if there is one."""
        for stream in self._streams.values():
            self._close(stream)
        kinds = next((k for words, k in self._reader.consequence.items() if words in panic.reason), None)
        for recent in reversed(self._last):
            cause = recent.finding
            if cause.outcome is Outcome.KERNEL_PANIC and cause.kind == "panic":
                break
            follows = recent.foreign == 0 and line.number - recent.ends <= _UNTIL_PANIC
            if follows or (kinds is not None and (not kinds or cause.kind in kinds)):
                key = cause.outcome, cause.fingerprint
                known = self._folded.pop(key, None)
                if known is not None and known.count > 1:
                    self._folded[key] = replace(known, count=known.count - 1)
                return replace(
                    cause,
                    outcome=Outcome.KERNEL_PANIC,
                    title=f"{cause.title}; then kernel panic: {panic.title.removeprefix('Kernel panic: ')}",
                    text=f"{cause.text}\n{panic.text}",
                    count=1,
                )
        return panic


def _lines_before(text: str, at: int, lines: int, least: int) -> int:
    """Where the line begins that is so many lines before `at`, which begins one."""
    for _ in range(lines):
        if at <= least:
            return least
        at = text.rfind("\n", least, at - 1) + 1 if at - 1 > least else least
        if at == 0:
            return least
    return max(at, least)


class _Reading:
    """The fields of a report."""

    def __init__(self, report: _Report, reader: _Reader) -> None:
        self._report = report
        self._kind = report.kind
        self._skip = reader.skip
        self._bodies = [line.body for line in report.lines]
        self._groups = {name: text for name, text in report.match.groupdict().items() if text}

    @property
    def severity(self) -> Severity:
        if self._kind.traced and not self.frames:
            return Severity.ADVICE
        return self._kind.severity

    @cached_property
    def _named(self) -> Mapping[str, str]:
        """The groups of the line that the kind names."""
        if self._kind.named is None:
            return {}
        for body in self._bodies:
            match = self._kind.named.match(body)
            if match is not None:
                return {name: text for name, text in match.groupdict().items() if text}
        return {}

    @cached_property
    def frames(self) -> tuple[str, ...]:
        """The functions of the first call trace, without those that the unwinder is not sure of."""
        begins = next((i for i, body in enumerate(self._bodies) if _TRACE_BEGINS.match(body)), None)
        if begins is None:
            begins = self._report.head
        frames: list[str] = []
        for body in self._bodies[begins + 1 :]:
            if _TRACE_OVER.match(body) and frames:
                break
            if found := _FRAME.match(body):
                frames.append(_CLONE.sub("", found["function"]))
        return tuple(frames)

    @cached_property
    def locks(self) -> tuple[str, ...]:
        if Field.LOCKS not in self._kind.identity:
            return ()
        found = [
            match["lock"]
            for body in self._said_of_locks
            if (match := _LOCK.match(body) or _RELEASED.match(body))
        ]
        return tuple(dict.fromkeys(found))[:2]

    @cached_property
    def _said_of_locks(self) -> Sequence[str]:
        """The lines up to the locks that the task holds besides; all if no lock is named before."""
        ends = next((at for at, body in enumerate(self._bodies) if _BESIDES.match(body)), len(self._bodies))
        before = self._bodies[:ends]
        return before if any(_LOCK.match(body) or _RELEASED.match(body) for body in before) else self._bodies

    @cached_property
    def reason(self) -> str:
        text = self._named.get("reason") or self._groups.get("reason") or self._said
        return _normalise(text)

    @property
    def _said(self) -> str:
        """The text of a WARN() or BUG(): above the headline, or why a page was dumped."""
        above = self._bodies[: self._report.head]
        for body in above:
            if because := _BECAUSE.match(body):
                return because["reason"]
        cut = next((index for index, body in enumerate(above) if _CUT_HERE.match(body)), len(above))
        said = [body for body in above[cut + 1 :] if body.strip()]
        return next((body for body in (*said, *above[:cut]) if body in said or _SAID.match(body)), "")

    def _candidates(self, where: Where) -> Iterator[str]:
        match where:
            case Where.HEADLINE:
                if name := self._groups.get("function"):
                    yield name
                elif found := _SYMBOL.search(self._report.match.string):
                    yield found["function"]
            case Where.NAMED:
                if name := self._named.get("function"):
                    yield name
            case Where.RIP:
                for body in self._bodies:
                    if rip := _RIP.match(body):
                        yield rip["function"]
                        return
            case Where.TRACE:
                yield from self.frames
            case Where.ACQUISITION:
                for body in self._said_of_locks:
                    if acquired := _ACQUIRED.search(body):
                        yield acquired["function"]
                        return

    @cached_property
    def function(self) -> str:
        """The function at fault; if all are helpers, the first of them."""
        helper = ""
        for where in self._kind.guilty:
            for name in self._candidates(where):
                name = _CLONE.sub("", name)
                skipped = self._kind.skip is not None and self._kind.skip.match(name)
                if not skipped and not self._skip.match(name):
                    return name
                helper = helper or name
        return helper

    def finding(self) -> Finding:
        report, kind = self._report, self._kind
        place = self._groups.get("place") or self._named.get("place", "")
        title = kind.title.format(**{**self._groups, "reason": self.reason})
        if self.function and kind.end is not End.PANIC:
            title += f" in {self.function}"
        if place:
            title += f" at {place}"
        if self.locks:
            title += f" ({', '.join(self.locks)})"
        elif self.reason and "{reason}" not in kind.title:
            title += f" ({self.reason})"
        return Finding(
            kind.outcome,
            title,
            "\n".join(line.raw for line in report.lines).rstrip(),
            report.lines[0].number,
            kind=kind.name,
            function=self.function,
            place=place,
            access=self._named.get("access", ""),
            reason=self.reason,
            locks=self.locks,
            frames=self.frames,
            caller=report.lines[report.head].caller,
            fingerprint=self._fingerprint(place),
            test=report.test,
        )

    def _fingerprint(self, place: str) -> str:
        parts = [self._kind.name]
        for each in self._kind.identity:
            match each:
                case Field.FUNCTION:
                    # The file names it at least roughly; the line would change with every patch above it.
                    parts.append(self.function or place.partition(":")[0])
                case Field.REASON:
                    parts.append(self.reason)
                case Field.LOCKS:
                    # "#2" counts classes of the same name in the order of their first use (print_lock_name()).
                    parts.append(", ".join(sorted(re.sub(r"#\d+", "", lock) for lock in self.locks)))
        return ": ".join(part for part in parts if part)


def _normalise(text: str) -> str:
    """Remove everything that differs between two occurrences of a bug."""
    text = _SYMBOL.sub(lambda match: match["function"], text)
    text = re.sub(r"\b0x[0-9a-fA-F]{3,}\b|\b[0-9a-f]{8,16}\b", "X", text)
    text = re.sub(r"\b\d+\b", "N", text)
    return " ".join(text.split()).rstrip(" :.!")
