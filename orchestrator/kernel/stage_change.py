# SPDX-License-Identifier: GPL-2.0-only
"""What a stage changes: the files it touches, and the other files that depend on the change."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.kernel.repository import Repository
from orchestrator.kernel.tree import PatchedTree

#: What a line declares or defines: a macro, a type with its members, a function by its first parenthesis.
_DECLARED = (
    re.compile(r"#\s*define\s+(\w+)"),
    re.compile(r"(?:struct|enum|union)\s+(\w+)\s*\{"),
    re.compile(r"[^#(]*?(\w+)\s*\("),
)
#: An enumerator. Bodies of inline functions are indented as well, but contain no such line.
_ENUMERATOR = re.compile(r"\s+([A-Z][A-Z0-9_]*)\s*[,=]")
#: Words that look like a function call but are not.
_KEYWORDS = frozenset(
    {"if", "while", "for", "switch", "return", "sizeof", "defined", "DECLARE_EVENT_CLASS", "DEFINE_EVENT"}
)


@dataclass(frozen=True)
class StageChange:
    """The change of the last stage of a tree.

    Args:
        files: changed and new files that exist after it; sorted.
        names: names declared by lines that it adds to or removes from headers, and names used by removed lines. For
            a file that contains none of them the headers are effectively unchanged.
    """

    files: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """The C files among `files`."""
        return tuple(path for path in self.files if path.endswith(".c"))

    @property
    def headers(self) -> tuple[str, ...]:
        """The headers among `files`."""
        return tuple(path for path in self.files if path.endswith(".h"))


def last_change(tree: PatchedTree) -> StageChange:
    """The change of the last stage of `tree`; empty if it has no stage."""
    if not tree.stages:
        return StageChange((), ())
    repository = Repository(tree.repository)
    parent = f"{tree.commit}^"
    files = repository.git(
        "diff-tree", "-r", "-z", "--no-renames", "--name-only", "--diff-filter=d", parent, tree.commit
    ).stdout
    diff = repository.git("diff-tree", "-p", "-U0", parent, tree.commit, "--", "*.h").stdout
    names: set[str] = set()
    for line in diff.splitlines():
        if line.startswith("-") and not line.startswith("---"):
            names.update(_names_of(line[1:]))
        # Added declarations start at the first column; indented lines are bodies, which use other names.
        elif line.startswith("+") and not line.startswith("+++"):
            enumerator = _ENUMERATOR.match(line[1:])
            names.update(
                _names_of(line[1:]) if line[1:2].strip() else {enumerator[1]} if enumerator else set()
            )
    return StageChange(tuple(sorted(filter(None, files.split("\0")))), tuple(sorted(names)))


def _names_of(line: str) -> set[str]:
    return {match[1] for each in _DECLARED if (match := each.match(line.strip()))} - _KEYWORDS


def touched_sources(tree: PatchedTree) -> tuple[str, ...]:
    """The C files that any stage of `tree` touches and that exist after the last one; sorted."""
    return _sources_between(tree, tree.source.commit, tree.commit)


def added_words(tree: PatchedTree) -> frozenset[str]:
    """All identifiers in lines that a stage of `tree` adds."""
    diff = Repository(tree.repository).git("diff", "-U0", tree.source.commit, tree.commit).stdout
    return frozenset(
        word
        for line in diff.splitlines()
        if line.startswith("+") and not line.startswith("+++")
        for word in re.findall(r"[A-Za-z_]\w*", line)
    )


def sources_with(tree: PatchedTree, names: Sequence[str]) -> tuple[str, ...]:
    """The C files of `tree` that contain one of these names."""
    if not names:
        return ()
    options = [option for name in names for option in ("-e", name)]
    # Exit status 1: no match.
    found = Repository(tree.repository).git("grep", "-lzwF", *options, tree.commit, "--", "*.c", check=False)
    return tuple(sorted(path.partition(":")[2] for path in found.stdout.split("\0") if path))


def _sources_between(tree: PatchedTree, old: str, new: str) -> tuple[str, ...]:
    files = (
        Repository(tree.repository)
        .git("diff", "-z", "--no-renames", "--name-only", "--diff-filter=d", old, new, "--", "*.c")
        .stdout
    )
    return tuple(sorted(filter(None, files.split("\0"))))
