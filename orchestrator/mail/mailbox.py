# SPDX-License-Identifier: GPL-2.0-only
"""Exports a series as mail, as git-format-patch(1) does: a cover letter and one message per patch, threaded."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from email.header import Header
from email.utils import parseaddr
from pathlib import Path

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.kernel.repository import IDENTITY, Repository, git_command
from orchestrator.kernel.tree import PatchedTree
from orchestrator.process import run
from orchestrator.temporary import temporary_directory

#: Patches are stored with a placeholder author at this host, which the export replaces with the sender.
_NOWHERE = "@" + IDENTITY["GIT_AUTHOR_EMAIL"].partition("@")[2]
#: Placeholders that git-format-patch(1) leaves in a cover letter.
_SUBJECT, _BLURB = "*** SUBJECT HERE ***", "*** BLURB HERE ***"
_MIME = "MIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n"
#: Digits of an abbreviated object name; with fewer, names of objects in Linux are ambiguous.
_ABBREVIATED = "--abbrev=12"
_ADDRESS = re.compile(r"[^@\s<>]+@[^@\s<>]+")


@dataclass(frozen=True)
class Person:
    """The person who sends a series and signs it off."""

    name: str
    mail: str

    @classmethod
    def parse(cls, text: str) -> Person:
        """Parse ``Name <mail>``.

        Raises:
            UserError: the text has another form.
        """
        name, mail = parseaddr(text)
        if not name or not _ADDRESS.fullmatch(mail) or any(char in name for char in "<>\n"):
            raise UserError(f"--from {text!r}: write it as 'Name <mail@example.org>'.")
        return cls(name, mail)

    @classmethod
    def configured(cls) -> Person:
        """The user, from user.name and user.email of git-config(1).

        Raises:
            UserError: one of the two is not set. There is no default: a sign-off is a statement of a person.
        """
        name, mail = (
            run(git_command("config", "--get", key), check=False).stdout.strip()
            for key in ("user.name", "user.email")
        )
        if not name or not _ADDRESS.fullmatch(mail):
            raise UserError(
                "cannot sign off the patches without a name: give --from 'Name <mail@example.org>', "
                "or set user.name and user.email with git config."
            )
        return cls(name, mail)

    def __str__(self) -> str:
        return f"{self.name} <{self.mail}>"


@dataclass(frozen=True)
class Letter:
    """The text of a cover letter.

    Args:
        subject: subject without the [PATCH] tag.
        text: the text between the subject and the list of patches.
        base: commit ID for the ``base-commit`` line; None if the source has no public commit.
    """

    subject: str
    text: str
    base: str | None = None


def write_mailbox(
    tree: PatchedTree, letter: Letter, sender: Person, version: int, directory: Path
) -> list[Path]:
    """Write a series as files for git-send-email(1): the cover letter, then one file per patch.

    Args:
        tree: a tree with at least one stage.
        version: version of the series: 1 for ``[PATCH n/m]``, 2 for ``[PATCH v2 n/m]``.
        directory: an existing, empty directory.

    Raises:
        InfrastructureError: the output of git is not as expected.
    """
    with temporary_directory("export") as place:
        repository = Repository.create(Path(place) / "repository.git", borrow_from=tree.repository)
        # The tree's repository in turn borrows the objects of the source; git follows both links.
        last = _signed(repository, tree, sender)
        options = (
            *(
                "--quiet",
                "--cover-letter",
                "--thread=shallow",
                "--numbered",
                "--zero-commit",
                "--no-signature",
            ),
            *(
                "--no-notes",
                "--no-attach",
                _ABBREVIATED,
                f"--from={sender}",
                f"--output-directory={directory}",
            ),
            *([f"--reroll-count={version}"] if version > 1 else []),
        )
        repository.git(
            "format-patch",
            *options,
            f"{tree.source.commit}..{last}",
            env=_as_committer(sender, f"@{int(time.time())} +0000"),
            config=("format.coverFromDescription=none",),
        )
    files = sorted(directory.glob("*.patch"))
    if len(files) != len(tree.stages) + 1:
        raise InfrastructureError(
            f"git format-patch wrote {len(files)} files for {len(tree.stages)} patches."
        )
    _fill_in(files[0], letter)
    return files


def authors_without_sign_off(tree: PatchedTree, sender: Person) -> list[str]:
    """Authors other than the sender whose patches lack the author's Signed-off-by, with the stage."""
    found = []
    for stage in tree.stages:
        text = tree.patch_of(stage).read_text(encoding="utf-8", errors="replace")
        match = re.search(r"^From: (.*)$", text, re.MULTILINE)
        mail = parseaddr(match[1])[1] if match else ""
        if mail.endswith(_NOWHERE) or mail == sender.mail:
            continue
        if not re.search(rf"^Signed-off-by: .*<{re.escape(mail)}>$", text, re.MULTILINE):
            found.append(f"stage {stage.number} is by {mail}, who has not signed it off")
    return found


def _as_committer(sender: Person, date: str) -> dict[str, str]:
    return {
        "GIT_COMMITTER_NAME": sender.name,
        "GIT_COMMITTER_EMAIL": sender.mail,
        "GIT_COMMITTER_DATE": date,
    }


def _signed(repository: Repository, tree: PatchedTree, sender: Person) -> str:
    """Rewrite the series with sign-offs, and with the sender as the author of patches without one.

    Only authors and sign-offs change; the trees are the same.
    """
    commits = repository.git("rev-list", "--reverse", f"{tree.source.commit}..{tree.commit}").stdout.split()
    parent = tree.source.commit
    for commit in commits:
        facts = repository.git(
            "show", "--no-patch", "--format=%T%x00%an%x00%ae%x00%ad%x00%B", "--date=raw", commit
        )
        its_tree, name, mail, date, message = facts.stdout.split("\0", 4)
        if mail.endswith(_NOWHERE):
            name, mail = sender.name, sender.mail
        line = f"Signed-off-by: {sender}"
        message = repository.git(
            "interpret-trailers",
            "--if-exists=addIfDifferent",
            "--trailer",
            line,
            input_text=message.rstrip("\n") + "\n",
        ).stdout
        author = {"GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": mail, "GIT_AUTHOR_DATE": date}
        parent = repository.git(
            "commit-tree", its_tree, "-p", parent, "-F", "-",
            env={**author, **_as_committer(sender, date)},
            input_text=message,
        ).stdout.strip()  # fmt: skip
    return parent


def _fill_in(cover: Path, letter: Letter) -> None:
    text = cover.read_text(encoding="utf-8")
    if text.count(_SUBJECT) != 1 or text.count(_BLURB) != 1:
        raise InfrastructureError(f"git format-patch wrote a cover letter without {_SUBJECT} and {_BLURB}.")
    head, _, rest = text.partition("\n\n")
    subject = letter.subject if letter.subject.isascii() else Header(letter.subject, "utf-8").encode()
    head = head.replace(_SUBJECT, subject)
    if not letter.text.isascii() and "Content-Transfer-Encoding" not in head:
        head += "\n" + _MIME.rstrip("\n")
    body = rest.replace(_BLURB, letter.text.rstrip("\n")).rstrip("\n")
    trailer = f"\n\nbase-commit: {letter.base}" if letter.base else ""
    cover.write_text(f"{head}\n\n{body}{trailer}\n", encoding="utf-8")
