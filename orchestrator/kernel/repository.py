# SPDX-License-Identifier: GPL-2.0-only
"""A git repository in the cache, isolated from the user's git configuration."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from orchestrator.errors import InfrastructureError
from orchestrator.process import Completed, run, spawn

#: Commits depend on their content only, so that equal stages have the same commit ID on every host.
IDENTITY: Mapping[str, str] = {
    "GIT_AUTHOR_NAME": "orchestrate",
    "GIT_AUTHOR_EMAIL": "orchestrate@localhost",
    "GIT_AUTHOR_DATE": "2000-01-01T00:00:00Z",
    "GIT_COMMITTER_NAME": "orchestrate",
    "GIT_COMMITTER_EMAIL": "orchestrate@localhost",
    "GIT_COMMITTER_DATE": "2000-01-01T00:00:00Z",
}
#: Disables the user's gitattributes, hooks and settings, and all prompts.
ISOLATED: Mapping[str, str] = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "0",
    "GIT_CONFIG_PARAMETERS": "",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}
#: No background work after a command has ended. No fsync: the cache writes a complete artefact to the disk.
_SETTINGS = (
    "core.bare=false",
    "core.fsync=none",
    "core.hooksPath=/dev/null",
    "gc.auto=0",
    "maintenance.auto=false",
)


#: Variables with which an enclosing git command (a hook, `rebase --exec`, `bisect run`) passes on *its* repository.
_PLACES = (
    "GIT_DIR",
    "GIT_COMMON_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
)


#: Options for reading a repository that may belong to another user: git then runs none of its programs.
SAFE = ("-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")

#: What git prints if the host fails, not the repository (strerror(3); die_errno() in git's usage.c; wrapper.c).
_OF_HOST = (
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "Input/output error",
    "Too many open files",
    "Cannot allocate memory",
    "Resource temporarily unavailable",
    "fatal: Out of memory",
)


def git_command(*words: str) -> list[str]:
    """The command line of a git command that ignores the repository of an enclosing git command."""
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
        """Create an empty repository.

        Args:
            borrow_from: a repository whose objects are used without copying them (gitrepository-layout(5),
                objects/info/alternates).
        """
        # No template: the user's template may contain hooks.
        run(git_command("init", "--quiet", "--bare", "--template=", str(path)), env=ISOLATED)
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
            work_tree, index: work tree and index file of this command.
            config: ``key=value`` settings of this command.
            env: environment variables of this command, e.g. for another author.
            input_text: its standard input.
            check: raise an error if its exit status is not 0.

        Raises:
            InfrastructureError: the command failed, with `check`; or the host failed, e.g. its disk is full.
        """
        place_of_index = {"GIT_INDEX_FILE": str(index)} if index is not None else {}
        place = [f"--work-tree={work_tree}"] if work_tree is not None else []
        done = run(
            git_command(f"--git-dir={self.path}", *place, *_options(config), *arguments),
            env={**ISOLATED, **IDENTITY, **place_of_index, **(env or {})},
            cwd=work_tree or self.path,
            input_text=input_text,
            check=check,
        )
        if done.returncode != 0:  # or a full disk would be a patch that does not apply
            for line in done.stderr.splitlines():
                if any(said in line for said in _OF_HOST):
                    raise InfrastructureError(f"git failed because of this host: {line.strip().rstrip('.')}.")
            if done.returncode < 0:
                raise InfrastructureError(f"git was ended by signal {-done.returncode}.")
        return done

    def spawn(
        self, *arguments: str, config: Sequence[str] = (), stderr: IO[bytes] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a git command in the background, with a pipe as standard input."""
        return spawn(
            git_command(f"--git-dir={self.path}", *_options(config), *arguments),
            env={**ISOLATED, **IDENTITY},
            stdin=subprocess.PIPE,
            stderr=stderr,
        )

    def commit(self, tree: str, message: str) -> str:
        """Commit a tree without parents; equal trees and messages get the same commit ID."""
        return self.git("commit-tree", tree, "-m", message).stdout.strip()


def _options(config: Sequence[str]) -> list[str]:
    return [word for setting in (*_SETTINGS, *config) for word in ("-c", setting)]
