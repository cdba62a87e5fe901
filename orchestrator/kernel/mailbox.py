# SPDX-License-Identifier: GPL-2.0-only
"""A series as mail: a cover letter and a patch a message, threaded, as git-format-patch(1) writes them."""

from __future__ import annotations

import re
import tempfile
import time
from dataclasses import dataclass
from email.header import Header
from email.utils import parseaddr
from pathlib import Path

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.kernel.repository import IDENTITY, Repository, git_command
from orchestrator.kernel.tree import PatchedTree
from orchestrator.process import run

#: Patches are stored without their sender: an author at this host stands for whoever sends them.
_NOWHERE = "@" + IDENTITY["GIT_AUTHOR_EMAIL"].partition("@")[2]
#: What git-format-patch(1) leaves for a person to fill in.
_SUBJECT, _BLURB = "*** SUBJECT HERE ***", "*** BLURB HERE ***"
_MIME = "MIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n"
#: Digits of a blob's name; Linux has so many objects that fewer are ambiguous.
_ABBREVIATED = "--abbrev=12"
_ADDRESS = re.compile(r"[^@\s<>]+@[^@\s<>]+")


@dataclass(frozen=True)
class Person:
    """Who sends a series, and signs it off."""

    name: str
    mail: str

    @classmethod
    def parse(cls, text: str) -> Person:
        """Read ``Name <mail>``.

        Raises:
            UserError: it is something else.
        """
        name, mail = parseaddr(text)
        if not name or not _ADDRESS.fullmatch(mail) or any(char in name for char in "<>\n"):
            raise UserError(f"--from {text!r}: write it as 'Name <mail@example.org>'.")
        return cls(name, mail)

    @classmethod
    def configured(cls) -> Person:
        """The person who calls, as user.name and user.email of git-config(1) say.

        Raises:
            UserError: one of them is not set. Nothing is guessed: a sign-off is a statement of a person.
        """
        name, mail = (
            run(git_command("config", "--get", key), check=False).stdout.strip()
            for key in ("user.name", "user.email")
        )
        if not name or not _ADDRESS.fullmatch(mail):
            raise UserError(
                "who signs the patches off is not known: give --from 'Name <mail@example.org>', "
                "or set user.name and user.email with git config."
            )
        return cls(name, mail)

    def __str__(self) -> str:
        return f"{self.name} <{self.mail}>"


@dataclass(frozen=True)
class Letter:
    """What a cover letter says.

    Args:
        subject: without its tag.
        text: between the subject and the list of patches.
        base: commit id for the ``base-commit`` line; None where the source has none that others know.
    """

    subject: str
    text: str
    base: str | None = None


def write_mailbox(
    tree: PatchedTree, letter: Letter, sender: Person, version: int, directory: Path
) -> list[Path]:
    """Write a series as files for git-send-email(1): the cover letter first, then one file per patch.

    Args:
        tree: at least one stage.
        version: 1 is written as ``[PATCH n/m]``, 2 as ``[PATCH v2 n/m]``.
        directory: exists, and is empty.

    Raises:
        InfrastructureError: git does not write what it is known to write.
    """
    with tempfile.TemporaryDirectory(prefix="orchestrate-export-") as place:
        repository = Repository.create(Path(place) / "repository.git", borrow_from=tree.repository)
        # The source's objects are borrowed by the tree's repository in turn; git follows both.
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
    """Authors other than the sender whose patches lack their own Signed-off-by, each with its stage."""
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
    """The series once more, signed off, and from the sender where it was from nobody.

    The trees are those of the stored patches; only who, and the sign-off, differ.
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
