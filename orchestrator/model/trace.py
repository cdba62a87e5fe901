# SPDX-License-Identifier: GPL-2.0-only
"""Traces: operations on anonymous memory, as text.

One operation per line, by one thread of one process, in an arena of 2 MiB ranges
(`block` in the format) that has the same address in every process and is empty at
the start::

    # what the trace is for
    trace 1
    seed 7
    patchset core-only
    blocks 16
    set promotion_threshold 256
    p0 map 0:0 512 huge
    p0.t1 write 0:5 3 42
    p0 fork p1
    khugepaged

Pages are written as ``BLOCK:PAGE`` (page 0 to 511 of the block) or as a page number
in the arena. ``set`` lines before the first operation belong to the header. Steps
are numbered from 0, not counting the header.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, get_args

VERSION: Final = 1
PAGES_PER_BLOCK: Final = 512
DEFAULT_BLOCKS: Final = 16
MAX_BLOCKS: Final = 1024
MAX_PROCESSES: Final = 16
MAX_THREADS: Final = 4
MAX_SEED: Final = 2**64 - 1

Hint = Literal["huge", "nohuge"]
Protection = Literal["none", "r", "rw"]
Advice = Literal["dontneed", "free", "huge", "nohuge", "collapse", "cold"]

HINTS: Final[tuple[Hint, ...]] = get_args(Hint)
PROTECTIONS: Final[tuple[Protection, ...]] = get_args(Protection)
ADVICE: Final[tuple[Advice, ...]] = get_args(Advice)

ENABLED: Final = ("always", "madvise", "never")
DEFRAG: Final = ("always", "defer", "defer+madvise", "madvise", "never")
SIZE_ENABLED: Final = ("always", "inherit", "madvise", "never")
#: Knob of a size of multi-size THP -> its number of pages.
SIZES: Final[Mapping[str, int]] = MappingProxyType(
    {f"hugepages-{4 * pages}kB": pages for pages in (4, 8, 16, 32, 64, 128, 256)}
)

#: Values that `set` accepts: a list of words, or bounds of a number.
KNOBS: Final[Mapping[str, tuple[str, ...] | range]] = MappingProxyType(
    {
        "promotion_threshold": range(1, PAGES_PER_BLOCK + 1),
        "enabled": ENABLED,
        "use_zero_page": range(2),
        "max_ptes_none": range(PAGES_PER_BLOCK),
        "max_ptes_shared": range(PAGES_PER_BLOCK),
        "max_ptes_swap": range(PAGES_PER_BLOCK),
        "defrag": DEFRAG,
        **dict.fromkeys(SIZES, SIZE_ENABLED),
    }
)


#: Digits of the largest number in a trace. Python refuses to convert thousands of them.
_DIGITS = 20


class TraceError(ValueError):
    """A trace that cannot be parsed, or has an impossible operation; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Map:
    """mmap(MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE), then madvise() with `hint`."""

    process: str
    start: int
    count: int
    hint: Hint | None = None
    thread: int = 0


@dataclass(frozen=True, slots=True)
class Unmap:
    """munmap."""

    process: str
    start: int
    count: int
    thread: int = 0


@dataclass(frozen=True, slots=True)
class Write:
    """Fill each page with a word that is derived from `seed` and the page number."""

    process: str
    start: int
    count: int
    seed: int
    thread: int = 0


@dataclass(frozen=True, slots=True)
class Read:
    """Touch one byte of each page."""

    process: str
    start: int
    count: int
    thread: int = 0


@dataclass(frozen=True, slots=True)
class Protect:
    """mprotect."""

    process: str
    start: int
    count: int
    protection: Protection
    thread: int = 0


@dataclass(frozen=True, slots=True)
class Advise:
    """madvise: MADV_DONTNEED, _FREE, _HUGEPAGE, _NOHUGEPAGE, _COLLAPSE or _COLD."""

    process: str
    start: int
    count: int
    advice: Advice
    thread: int = 0


@dataclass(frozen=True, slots=True)
class Remap:
    """mremap: MREMAP_MAYMOVE | MREMAP_FIXED, or without flags if the start stays the same."""

    process: str
    start: int
    count: int
    new_start: int
    new_count: int
    thread: int = 0


@dataclass(frozen=True, slots=True)
class Bind:
    """mbind(MPOL_BIND) to one node, without moving pages."""

    process: str
    start: int
    count: int
    node: int
    thread: int = 0


@dataclass(frozen=True, slots=True)
class Lock:
    """mlock."""

    process: str
    start: int
    count: int
    thread: int = 0


@dataclass(frozen=True, slots=True)
class Unlock:
    """munlock."""

    process: str
    start: int
    count: int
    thread: int = 0


@dataclass(frozen=True, slots=True)
class Fork:
    """fork: `child` is the name of the new process."""

    process: str
    child: str
    thread: int = 0


@dataclass(frozen=True, slots=True)
class Exit:
    """The process ends and is waited for."""

    process: str
    thread: int = 0


@dataclass(frozen=True, slots=True)
class Khugepaged:
    """Two full scans of khugepaged."""


@dataclass(frozen=True, slots=True)
class Dump:
    """Memory pressure until every reservation has been given up, and nothing else."""


@dataclass(frozen=True, slots=True)
class Set:
    """A setting of transparent huge pages: see `KNOBS`."""

    knob: str
    value: str


Ranged = Map | Unmap | Write | Read | Protect | Advise | Remap | Bind | Lock | Unlock
Operation = Ranged | Fork | Exit | Khugepaged | Dump | Set


@dataclass(frozen=True)
class Trace:
    """Operations, and the settings that they start from.

    Attributes:
        operations: in order; an operation's index is its step.
        seed: seed of the generator, for the record; it has no effect on a replay.
        patchset: the stages that the trace was made for, in the syntax of `--patchset`.
        blocks: size of the arena in 2 MiB ranges.
        settings: knobs set before the first operation.
        comments: lines at the start of the file.
    """

    operations: tuple[Operation, ...]
    seed: int | None = None
    patchset: str | None = None
    blocks: int = DEFAULT_BLOCKS
    settings: Mapping[str, str] = field(default_factory=dict)
    comments: tuple[str, ...] = ()


_PROCESS: Final = re.compile(r"p(?:0|[1-9][0-9]?)")
_ACTOR: Final = re.compile(r"(p(?:0|[1-9][0-9]?))(?:\.t([0-3]))?")
_PATCHSET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._+-]*")


class _TraceLine:
    """The words of a line that are not parsed yet; errors name the line."""

    def __init__(self, source: str, number: int, words: list[str], blocks: int) -> None:
        self._where = f"{source}:{number}"
        self._words = words
        self._next = 0
        self._pages = blocks * PAGES_PER_BLOCK

    def error(self, message: str) -> TraceError:
        return TraceError(f"{self._where}: {message}")

    def more(self) -> bool:
        return self._next < len(self._words)

    def word(self, what: str) -> str:
        if not self.more():
            raise self.error(f"{what} is missing at the end of `{' '.join(self._words)}`.")
        self._next += 1
        return self._words[self._next - 1]

    def end(self) -> None:
        if self.more():
            raise self.error(
                f"`{self._words[self._next]}` is one word too many after `{' '.join(self._words[: self._next])}`."
            )

    def one_of(self, what: str, choices: Iterable[str]) -> str:
        word = self.word(what)
        if word not in choices:
            raise self.error(f"{what} is `{word}`, but must be one of {', '.join(choices)}.")
        return word

    def number(self, what: str, minimum: int, maximum: int) -> int:
        word = self.word(what)
        if not (word.isascii() and word.isdecimal()):
            raise self.error(f"{what} is `{word}`, but must be a number.")
        if len(word) > _DIGITS or not minimum <= int(word) <= maximum:
            raise self.error(f"{what} is {word[:_DIGITS]}, but must be from {minimum} to {maximum}.")
        return int(word)

    def page(self, what: str) -> int:
        word = self.word(what)
        block, colon, page = word.partition(":")
        digits = [block, page] if colon else [block]
        if not all(part.isascii() and part.isdecimal() and len(part) <= _DIGITS for part in digits):
            raise self.error(f"{what} is `{word}`, but must be BLOCK:PAGE or a page number.")
        number = int(block)
        if colon:
            if int(page) >= PAGES_PER_BLOCK:
                raise self.error(f"{what} is `{word}`, but a block has pages 0 to {PAGES_PER_BLOCK - 1}.")
            number = number * PAGES_PER_BLOCK + int(page)
        if number >= self._pages:
            raise self.error(
                f"{what} is `{word}`, outside of the {self._pages // PAGES_PER_BLOCK} blocks of the arena."
            )
        return number

    def range(self, name: str = "") -> tuple[int, int]:
        start = self.page(f"the {name}start")
        count = self.number(f"the {name}count", 1, self._pages)
        if start + count > self._pages:
            raise self.error(
                f"{count} pages from {format_page(start)} go beyond the {self._pages // PAGES_PER_BLOCK} "
                "blocks of the arena."
            )
        return start, count


def _setting(line: _TraceLine) -> tuple[str, str]:
    knob = line.one_of("the knob", KNOBS)
    values = KNOBS[knob]
    if isinstance(values, range):
        value = str(line.number(f"`{knob}`", values[0], values[-1]))
    else:
        value = line.one_of(f"`{knob}`", values)
    line.end()
    return knob, value


def _map(line: _TraceLine, process: str, thread: int) -> Operation:
    start, count = line.range()
    hint = line.one_of("the hint", HINTS) if line.more() else None
    return Map(process, start, count, hint, thread)  # type: ignore[arg-type]


def _write(line: _TraceLine, process: str, thread: int) -> Operation:
    return Write(process, *line.range(), line.number("the seed", 0, MAX_SEED), thread)


def _protect(line: _TraceLine, process: str, thread: int) -> Operation:
    start, count = line.range()
    return Protect(process, start, count, line.one_of("the protection", PROTECTIONS), thread)  # type: ignore[arg-type]


def _advise(line: _TraceLine, process: str, thread: int) -> Operation:
    start, count = line.range()
    return Advise(process, start, count, line.one_of("the advice", ADVICE), thread)  # type: ignore[arg-type]


def _remap(line: _TraceLine, process: str, thread: int) -> Operation:
    return Remap(process, *line.range(), *line.range("new "), thread)


def _bind(line: _TraceLine, process: str, thread: int) -> Operation:
    return Bind(process, *line.range(), line.number("the node", 0, 63), thread)


def _fork(line: _TraceLine, process: str, thread: int) -> Operation:
    child = line.word("the child")
    if not _PROCESS.fullmatch(child) or int(child[1:]) >= MAX_PROCESSES:
        raise line.error(f"the child is `{child}`, but processes are p0 to p{MAX_PROCESSES - 1}.")
    return Fork(process, child, thread)


_VERBS: Final[Mapping[str, Callable[[_TraceLine, str, int], Operation]]] = {
    "map": _map,
    "unmap": lambda line, process, thread: Unmap(process, *line.range(), thread),
    "write": _write,
    "read": lambda line, process, thread: Read(process, *line.range(), thread),
    "protect": _protect,
    "advise": _advise,
    "remap": _remap,
    "bind": _bind,
    "lock": lambda line, process, thread: Lock(process, *line.range(), thread),
    "unlock": lambda line, process, thread: Unlock(process, *line.range(), thread),
    "fork": _fork,
    "exit": lambda line, process, thread: Exit(process, thread),
}

_HEADER: Final = ("trace", "seed", "patchset", "blocks")


def _operation(line: _TraceLine) -> Operation:
    subject = line.word("the process")
    if subject == "khugepaged":
        return Khugepaged()
    if subject == "dump":
        return Dump()
    if subject == "set":
        return Set(*_setting(line))
    actor = _ACTOR.fullmatch(subject)
    if not actor or int(actor[1][1:]) >= MAX_PROCESSES:
        raise line.error(
            f"`{subject}` is neither a process (p0 to p{MAX_PROCESSES - 1}, with .t0 to "
            f".t{MAX_THREADS - 1}) nor khugepaged, dump or set."
        )
    verb = line.one_of("the operation", _VERBS)
    return _VERBS[verb](line, actor[1], int(actor[2] or 0))


class _Census:
    """Keeps track of existing processes: only these can do operations."""

    def __init__(self) -> None:
        self._alive = {"p0"}
        self._used = {"p0"}

    def check(self, operation: Operation) -> str | None:
        """Process one operation; return what is wrong with it, or None."""
        if isinstance(operation, Khugepaged | Dump | Set):
            return None
        if operation.process not in self._alive:
            state = "has ended" if operation.process in self._used else "does not exist yet"
            return f"{operation.process} {state}."
        if isinstance(operation, Fork):
            if operation.child in self._used:
                return f"{operation.child} is taken: a name can be used for one process only."
            self._alive.add(operation.child)
            self._used.add(operation.child)
        elif isinstance(operation, Exit):
            self._alive.remove(operation.process)
        return None


def parse(text: str, source: str = "trace") -> Trace:
    """Parse a trace.

    Args:
        text: content of the file.
        source: its name in error messages, e.g. the file name.

    Raises:
        TraceError: the trace is invalid; the message has the line number and what is wrong.
    """
    comments: list[str] = []
    header: dict[str, str] = {}
    settings: dict[str, str] = {}
    operations: list[Operation] = []
    census = _Census()
    blocks = DEFAULT_BLOCKS

    for number, raw in enumerate(text.splitlines(), start=1):
        words = raw.partition("#")[0].split()
        line = _TraceLine(source, number, words, blocks)
        if not words:
            if not header and raw.lstrip().startswith("#"):
                comments.append(raw.lstrip()[1:].strip())
            continue
        if not header:
            if words[0] != "trace":
                raise line.error(f"a trace must begin with the line `trace {VERSION}`.")
            line.word("trace")
            line.number("the version", VERSION, VERSION)
            line.end()
            header["trace"] = ""
            continue
        if words[0] in _HEADER:
            keyword = line.word("the keyword")
            if operations:
                raise line.error(f"`{keyword}` belongs to the header, before the first operation.")
            if keyword in header:
                raise line.error(f"`{keyword}` is given twice.")
            if keyword == "seed":
                header[keyword] = str(line.number("the seed", 0, MAX_SEED))
            elif keyword == "blocks":
                blocks = line.number("the number of blocks", 1, MAX_BLOCKS)
                header[keyword] = str(blocks)
            else:
                header[keyword] = line.word("the patch set")
                if not _PATCHSET.fullmatch(header[keyword]):
                    raise line.error(f"`{header[keyword]}` is not the name of a patch set.")
            line.end()
            continue
        if words[0] == "set" and not operations:
            line.word("set")
            knob, value = _setting(line)
            if knob in settings:
                raise line.error(f"`{knob}` is set twice before the first operation.")
            settings[knob] = value
            continue
        operation = _operation(line)
        line.end()
        wrong = census.check(operation)
        if wrong:
            raise line.error(wrong)
        operations.append(operation)

    if not header:
        raise TraceError(f"{source}: it is empty; a trace must begin with the line `trace {VERSION}`.")
    return Trace(
        operations=tuple(operations),
        seed=int(header["seed"]) if "seed" in header else None,
        patchset=header.get("patchset"),
        blocks=blocks,
        settings=settings,
        comments=tuple(comments),
    )


def format_page(page: int) -> str:
    """A page number of the arena as ``BLOCK:PAGE``."""
    return f"{page // PAGES_PER_BLOCK}:{page % PAGES_PER_BLOCK}"


def format_operation(operation: Operation) -> str:
    """An operation as a line of a trace, without a newline."""
    match operation:
        case Khugepaged():
            return "khugepaged"
        case Dump():
            return "dump"
        case Set(knob, value):
            return f"set {knob} {value}"
    actor = f"{operation.process}.t{operation.thread}" if operation.thread else operation.process
    words = [actor, type(operation).__name__.lower()]
    if not isinstance(operation, Fork | Exit):
        words += [format_page(operation.start), str(operation.count)]
    match operation:
        case Map(hint=hint) if hint:
            words.append(hint)
        case Write(seed=seed):
            words.append(str(seed))
        case Protect(protection=protection):
            words.append(protection)
        case Advise(advice=advice):
            words.append(advice)
        case Remap(new_start=new_start, new_count=new_count):
            words += [format_page(new_start), str(new_count)]
        case Bind(node=node):
            words.append(str(node))
        case Fork(child=child):
            words.append(child)
    return " ".join(words)


def format_trace(trace: Trace) -> str:
    """A trace as text; `parse()` is the inverse."""
    lines = [f"# {comment}".rstrip() for comment in trace.comments]
    lines.append(f"trace {VERSION}")
    if trace.seed is not None:
        lines.append(f"seed {trace.seed}")
    if trace.patchset is not None:
        lines.append(f"patchset {trace.patchset}")
    lines.append(f"blocks {trace.blocks}")
    lines += [f"set {knob} {value}" for knob, value in trace.settings.items()]
    lines += [format_operation(operation) for operation in trace.operations]
    return "\n".join(lines) + "\n"
