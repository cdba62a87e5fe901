# SPDX-License-Identifier: GPL-2.0-only
"""A git repository in the cache, used so that nothing of the person's own git configuration leaks in."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from orchestrator.process import Completed, run, spawn

#: Commits depend on their content only, so that equal stages have equal ids on every host.
IDENTITY: Mapping[str, str] = {
    "GIT_AUTHOR_NAME": "orchestrate",
    "GIT_AUTHOR_EMAIL": "orchestrate@localhost",
    "GIT_AUTHOR_DATE": "2000-01-01T00:00:00Z",
    "GIT_COMMITTER_NAME": "orchestrate",
    "GIT_COMMITTER_EMAIL": "orchestrate@localhost",
    "GIT_COMMITTER_DATE": "2000-01-01T00:00:00Z",
}
#: gitattributes, hooks and settings of the person, and prompts, stay out.
_ISOLATED: Mapping[str, str] = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "0",
    "GIT_CONFIG_PARAMETERS": "",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}
#: Nothing goes on in the background once a command has ended, and the cache survives without fsync: an artefact is
#: renamed into place when it is complete.
_SETTINGS = (
    "core.bare=false",
    "core.fsync=none",
    "core.hooksPath=/dev/null",
    "gc.auto=0",
    "maintenance.auto=false",
)


#: Variables by which a git command around us (a hook, `rebase --exec`, `bisect run`) says where *its* repository is.
_PLACES = (
    "GIT_DIR",
    "GIT_COMMON_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
)


def git_command(*words: str) -> list[str]:
    """The command line of a git command that does not take our surroundings for its repository."""
    leaked = [word for name in _PLACES if name in os.environ for word in ("-u", name)]
    return ["env", *leaked, "git", *words] if leaked else ["git", *words]


@dataclass(frozen=True)
class Repository:
    """A bare repository.

    Args:
        path: the git directory.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, borrow_from: Path | None = None) -> Repository:
        """Make an empty repository.

        Args:
            borrow_from: a repository whose objects it may use without copying them (gitrepository-layout(5),
                objects/info/alternates).
        """
        # No template: the person's may bring hooks.
        run(git_command("init", "--quiet", "--bare", "--template=", str(path)), env=_ISOLATED)
        if borrow_from is not None:
            alternates = path / "objects" / "info" / "alternates"
            alternates.parent.mkdir(exist_ok=True)
            alternates.write_text(f"{borrow_from / 'objects'}\n", encoding="utf-8")
        return cls(path)

    def git(
        self,
        *arguments: str,
        work_tree: Path | None = None,
        index: Path | None = None,
        config: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        input_text: str | None = None,
        check: bool = True,
    ) -> Completed:
        """Run one git command on this repository.

        Args:
            work_tree, index: where the files and the index of this command are.
            config: ``key=value`` settings for it.
            env: variables for it, e.g. of another author.
            input_text: what it reads from standard input.
            check: raise where its exit status is not 0.

        Raises:
            InfrastructureError: it failed, with `check`.
        """
        place_of_index = {"GIT_INDEX_FILE": str(index)} if index is not None else {}
        place = [f"--work-tree={work_tree}"] if work_tree is not None else []
        return run(
            git_command(f"--git-dir={self.path}", *place, *_options(config), *arguments),
            env={**_ISOLATED, **IDENTITY, **place_of_index, **(env or {})},
            cwd=work_tree or self.path,
            input_text=input_text,
            check=check,
        )

    def spawn(
        self, *arguments: str, config: Sequence[str] = (), stderr: IO[bytes] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start one git command that reads what is written to its standard input."""
        return spawn(
            git_command(f"--git-dir={self.path}", *_options(config), *arguments),
            env={**_ISOLATED, **IDENTITY},
            stdin=subprocess.PIPE,
            stderr=stderr,
        )

    def commit(self, tree: str, message: str) -> str:
        """Record a tree as a commit without parents; equal trees and messages get equal ids."""
        return self.git("commit-tree", tree, "-m", message).stdout.strip()


def _options(config: Sequence[str]) -> list[str]:
    return [word for setting in (*_SETTINGS, *config) for word in ("-c", setting)]
