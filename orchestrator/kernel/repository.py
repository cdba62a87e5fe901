# SPDX-License-Identifier: GPL-2.0-only
"""A git repository in the cache, used so that nothing of the person's own git configuration leaks in."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
#: gitattributes and hooks of the person, and prompts, stay out. What a surrounding git command set does too.
_ISOLATED: Mapping[str, str] = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}


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
        run(["git", "init", "--quiet", "--bare", str(path)], env=_ISOLATED)
        if borrow_from is not None:
            alternates = path / "objects" / "info" / "alternates"
            alternates.write_text(f"{borrow_from / 'objects'}\n", encoding="utf-8")
        return cls(path)

    def git(
        self,
        *arguments: str,
        work_tree: Path | None = None,
        index: Path | None = None,
        config: Sequence[str] = (),
        check: bool = True,
        input_text: str | None = None,
    ) -> Completed:
        """Run one git command on this repository.

        Args:
            work_tree, index: where the files and the index of this command are.
            config: ``key=value`` settings for it.
        """
        options = [word for setting in config for word in ("-c", setting)]
        if work_tree is not None:
            options += [f"--work-tree={work_tree}"]
        env = {**_ISOLATED, **IDENTITY}
        if index is not None:
            env["GIT_INDEX_FILE"] = str(index)
        return run(
            ["git", "-c", "core.bare=false", f"--git-dir={self.path}", *options, *arguments],
            env=env,
            cwd=work_tree,
            check=check,
            input_text=input_text,
        )

    def spawn(self, *arguments: str, config: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start one git command that reads what is written to its standard input."""
        options = [word for setting in config for word in ("-c", setting)]
        argv = ["git", f"--git-dir={self.path}", *options, *arguments]
        return spawn(argv, env={**_ISOLATED, **IDENTITY}, stdin=subprocess.PIPE)

    def commit(self, tree: str, message: str) -> str:
        """Record a tree as a commit without parents; equal trees and messages get equal ids."""
        return self.git("commit-tree", tree, "-m", message).stdout.strip()
