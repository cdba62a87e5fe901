# SPDX-License-Identifier: GPL-2.0-only
"""A series without ``series.toml``: a directory of patches, an mbox, or a range of commits.

It is written once to the cache as a series of the project's own form: one patch per stage, in UTF-8, and a
``series.toml``. So all commands read one form, and a run can be resumed after the mail or the branch has changed.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.kernel.message import Message, read, split
from orchestrator.kernel.repository import ISOLATED, SAFE, git_command
from orchestrator.process import run, spawn
from orchestrator.temporary import temporary_directory

SERIES_FILE = "series.toml"
_KIND = "series"
#: Increase it when the form of what is written changes.
_FORM = 1
#: Endings of files that have a message each, or several, in a directory.
_ENDINGS = (".patch", ".mbox", ".mbx", ".eml", ".diff")
_RANGE = re.compile(r"(?P<tree>.*)#(?P<base>.+?)\.\.(?P<tip>[^.].*)?")
#: Most commits of a range: each becomes a stage.
_MOST = 1000
#: Characters of a stage's name.
_LENGTH = 52
_BASE_COMMIT = re.compile(rb"^base-commit: ([0-9a-f]{7,64})\s*$", re.MULTILINE)
#: Separates commits in the output of git log; no changelog and no diff has a NUL.
_COMMIT = re.compile(rb"\x00commit ([0-9a-f]{40,64})\x00")


@dataclass(frozen=True)
class _Posting:
    """A series before it is written.

    Args:
        title: of the series.
        patches: subject and text of each patch.
        source: the ``--source`` that the patches are for, if it is known.
        base_commit: the commit that they are for, if it is known.
    """

    title: str
    patches: tuple[tuple[str, bytes], ...]
    source: str | None = None
    base_commit: str | None = None


def series_directory(given: Path, cache: Cache) -> Path:
    """The directory with the ``series.toml`` of a series.

    Args:
        given: the argument of ``--series``: a directory with a ``series.toml``, a directory of patches, a Maildir, an
            mbox, or a range of commits as ``TREE#BASE..TIP``.

    Raises:
        UserError: it does not exist, or is not a series.
    """
    if (given / SERIES_FILE).is_file():
        return given
    posting = _posting(given)
    key = {
        "form": _FORM,
        "title": posting.title,
        "source": posting.source or "",
        "base": posting.base_commit or "",
        "patches": [hashlib.sha256(text).hexdigest() for _, text in posting.patches],
    }
    return cache.obtain(_KIND, key, lambda directory: _write(posting, directory))


def is_range(given: Path) -> bool:
    """Whether the argument of ``--series`` is a range of commits."""
    return _RANGE.fullmatch(str(given)) is not None and not given.exists()


def write_series(given: Path, directory: Path) -> Path:
    """Write a series as a directory to refine, with a ``series.toml`` and one file per patch.

    Args:
        given: as for :func:`series_directory`; it may be `directory` itself, whose patches then stay as they are if
            they are one message each in UTF-8.

    Returns:
        The ``series.toml``.

    Raises:
        UserError: it is none, or the directory has a ``series.toml`` or other files already.
    """
    if (directory / SERIES_FILE).exists():
        raise UserError(f"{directory / SERIES_FILE} exists; edit it, or name another directory.")
    in_place = directory.exists() and given.exists() and given.resolve() == directory.resolve()
    if directory.exists() and not in_place and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty; name a new directory for the series.")
    posting = _posting(given)
    directory.mkdir(parents=True, exist_ok=True)
    _write(posting, directory, below="patches" if in_place else ".", hints=True)
    return directory / SERIES_FILE


def _posting(given: Path) -> _Posting:
    text = str(given)
    range_ = _RANGE.fullmatch(text)
    if range_ and not given.exists():
        return _commits(
            Path(range_["tree"] or ".").expanduser(), range_["base"], range_["tip"] or "HEAD", text
        )
    given = given.expanduser()
    if not given.exists():
        raise UserError(
            f"--series {text}: there is no {given}; name a directory with a series.toml or with patches, an mbox, "
            "or a range of commits as TREE#BASE..TIP."
        )
    if given.is_dir() and not (given / "cur").is_dir():
        files = sorted(path for path in given.iterdir() if path.suffix in _ENDINGS and path.is_file())
        if not files:
            raise UserError(
                f"--series {text}: this directory has neither a series.toml nor a file *.patch or *.mbox."
            )
    else:
        files = [given]
    return _messages(given, files)


# Mail


def _messages(given: Path, files: Sequence[Path]) -> _Posting:
    found: list[tuple[Path, Message]] = []
    base: str | None = None
    with temporary_directory("series") as place:
        for number, path in enumerate(files):
            parts = Path(place) / str(number)
            parts.mkdir()
            try:
                messages = [(path, read(part, Path(place))) for part in split(path, parts)]
            except OSError as error:
                raise UserError(f"--series {given}: cannot read {path} ({error.strerror}).") from error
            found += messages
    for path, message in found:
        named = _BASE_COMMIT.search(message.body + b"\n" + message.change)
        base = base or (named[1].decode() if named else None)
        if message.is_patch and not message.subject:
            raise UserError(
                f"--series {given}: a patch in {path.name} has no subject, so git am cannot apply it; write it with "
                "git format-patch."
            )
    patches = [message for _, message in found if message.is_patch]
    if not patches:
        raise UserError(f"--series {given}: {given.name} has no patch that git am could apply.")
    patches = _in_order(patches, given)
    cover = next((message for _, message in found if not message.is_patch and message.number == 0), None)
    title = cover.subject if cover and "SUBJECT HERE" not in cover.subject else given.resolve().name
    return _Posting(
        title if len(patches) > 1 else patches[0].subject,
        tuple((message.subject, message.as_patch()) for message in patches),
        base_commit=base,
    )


def _in_order(patches: list[Message], given: Path) -> list[Message]:
    """The patches by their numbers ``n/m``; as they are if one has none."""
    numbers = [message.number for message in patches]
    totals = {message.total for message in patches}
    if None in numbers or len(totals) != 1:
        return patches
    (total,) = totals
    assert total is not None
    there = {number for number in numbers if number is not None}
    # One patch, or the first few, may be taken from a series on purpose; what has a gap was not.
    missing = sorted(set(range(1, max(there))) - there) if len(patches) > 1 else []
    if missing:
        raise UserError(
            f"--series {given}: patch {missing[0]} of {total} is missing; add it, or number the patches anew with git "
            "format-patch."
        )
    twice = sorted({number for number in numbers if number is not None and numbers.count(number) > 1})
    if twice:
        raise UserError(
            f"--series {given}: patch {twice[0]} of {total} is there twice; keep one version of it."
        )
    return sorted(patches, key=lambda message: message.number or 0)


# Commits


def _commits(tree: Path, base: str, tip: str, given: str) -> _Posting:
    if not tree.is_dir():
        raise UserError(f"--series {given}: there is no git tree {tree}.")

    def git(*words: str) -> str:
        done = run(git_command(*SAFE, "-C", str(tree), *words), env=ISOLATED, check=False)
        if done.returncode != 0:
            reason = done.stderr.strip().removeprefix("fatal: ").splitlines()
            raise UserError(
                f"--series {given}: git {words[0]} failed: {reason[0] if reason else 'it gave no reason'}."
            )
        return done.stdout.strip()

    def commit_of(name: str) -> str:
        done = run(
            git_command(
                *(*SAFE, "-C", str(tree), "rev-parse", "--verify", "--quiet"),
                *("--end-of-options", f"{name}^{{commit}}"),
            ),
            env=ISOLATED,
            check=False,
        )
        if done.returncode != 0:
            raise UserError(f"--series {given}: {tree} has no commit {name}.")
        return done.stdout.strip()

    first, last = commit_of(base), commit_of(tip)
    top = Path(git("rev-parse", "--absolute-git-dir"))
    # The first parents: a merge is one step, as in git bisect --first-parent.
    steps = git("rev-list", "--first-parent", "--reverse", f"{first}..{last}").splitlines()
    if not steps:
        raise UserError(f"--series {given}: {tip} adds no commit to {base}; write TREE#OLDER..NEWER.")
    if len(steps) > _MOST:
        raise UserError(
            f"--series {given}: {len(steps)} commits are too many, as each is a stage; choose a range of at most "
            f"{_MOST}, e.g. between two release candidates."
        )
    # Where the branch left `base`: its patches are for that commit, as in base-commit of git format-patch.
    start = git("rev-parse", f"{steps[0]}^")
    patches = [
        (subject, text)
        for subject, text in _logged(tree, start, last)
        if b"\ndiff --git " in text  # a commit without a change cannot change a kernel
    ]
    if not patches:
        raise UserError(f"--series {given}: no commit of this range changes a file.")
    place = top.parent if top.name == ".git" else top
    return _Posting(f"{base}..{tip}", tuple(patches), source=f"{place}#{start}", base_commit=start)


def _logged(tree: Path, first: str, last: str) -> list[tuple[str, bytes]]:
    """Subject and patch of each commit, oldest first; of a merge, its change to the first parent."""
    layout = "%x00commit %H%x00%an <%ae>%x00%aD%x00%s%x00%b%x00"
    words = (
        *("log", "--first-parent", "-m", "-p", "--reverse", "--binary", "--full-index", "--no-renames"),
        *("--no-color", "--no-ext-diff", "--no-textconv", "--no-show-signature", "--encoding=UTF-8"),
        *("--src-prefix=a/", "--dst-prefix=b/", "--ignore-submodules"),
        f"--format=format:{layout}",
    )
    with tempfile.TemporaryFile() as said:
        process = spawn(
            git_command(*SAFE, "-C", str(tree), *words, f"{first}..{last}"),
            env=ISOLATED,
            stdout=said,
            stderr=subprocess.DEVNULL,
        )
        if process.wait() != 0:
            raise InfrastructureError(f"git log of {tree} ended with status {process.returncode}.")
        said.seek(0)
        parts = _COMMIT.split(said.read())
    found = []
    for content in parts[2::2]:
        author, date, subject, body, change = content.split(b"\0", 4)
        message = Message(
            subject.decode(errors="replace"),
            author.decode(errors="replace"),
            date.decode(),
            None,
            None,
            _unbroken(body),
            b"---\n" + change.lstrip(b"\n"),
        )
        found.append((message.subject, message.as_patch()))
    return found


def _unbroken(body: bytes) -> bytes:
    """A changelog without the lines at which git-mailinfo(1) would take it to end."""
    return re.sub(rb"^(?=---(?: |$)|diff -|Index: )", b" ", body, flags=re.MULTILINE)


# series.toml


def _write(posting: _Posting, directory: Path, below: str = ".", hints: bool = False) -> None:
    place = directory / below
    place.mkdir(exist_ok=True)
    names = stage_names([subject for subject, _ in posting.patches])
    lines = [
        "# SPDX-License-Identifier: GPL-2.0-only",
        "schema = 2",
        f"name = {_toml(_slug(posting.title) or 'series')}",
        f"title = {_toml(posting.title)}",
        f"directory = {_toml(below)}",
    ]
    if posting.source:
        lines.append(f"source = {_toml(posting.source)}")
    if posting.base_commit:
        lines.append(f"base_commit = {_toml(posting.base_commit)}")
    if hints:
        lines += _HINTS
    for number, ((subject, text), name) in enumerate(zip(posting.patches, names, strict=True), 1):
        file = f"{number:04}-{name}.patch"
        (place / file).write_bytes(text)
        lines += ["", "[[stage]]", f"number = {number}", f"name = {_toml(name)}"]
        lines += [f"patch = {_toml(file)}", f"title = {_toml(subject)}"]
        if hints:
            lines += ['# group = "core"', "knobs = []", "counters = []"]
    (directory / SERIES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


_HINTS = """
# What may be added, all of it optional (docs/own-series.md explains it):
#
# Groups of stages, in order; then each [[stage]] has its group.
# groups = ["core", "tuning"]
#
# Debian's source package that the series is for, and the versions it is checked on.
# package = "linux-source-6.12"
# [[base]]
# version = "6.12.117-1~deb12u1"
#
# A sysfs file that a stage adds; that stage then lists it in its knobs.
# [[knob]]
# name = "limit"
# path = "/sys/kernel/mm/limit"
# kind = "integer"
# minimum = 0
# maximum = 100
# default = 0
# help = "Limit in percent."
#
# What the counters of its stages must satisfy after a workload, and metrics made from them.
# [[identity]]
# expression = "thing_alloc - thing_free == nr_things"
# [[metric]]
# name = "things.total"
# unit = "things"
# growth = ["thing_alloc"]
# help = "things that were made"
""".rstrip("\n").split("\n")


def stage_names(subjects: Sequence[str]) -> list[str]:
    """A unique name per stage, made from the subject of its patch.

    >>> stage_names(["mm: mmap: say hello", "mm: mmap: Say hello!"])
    ['mm-mmap-say-hello', 'mm-mmap-say-hello-2']
    """
    found: list[str] = []
    for subject in subjects:
        name = _slug(subject) or "patch"
        if re.fullmatch(r"stage-[0-9]+|baseline|full", name):
            name = f"the-{name}"
        again = 1
        unique = name
        while unique in found:
            again += 1
            unique = f"{name[: _LENGTH - 5]}-{again}"
        found.append(unique)
    return found


def _slug(text: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:_LENGTH].rstrip("-")


def _toml(text: str) -> str:
    # A JSON string is a basic string of TOML, except that TOML wants DEL escaped as well.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
