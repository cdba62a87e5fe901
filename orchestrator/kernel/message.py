# SPDX-License-Identifier: GPL-2.0-only
"""Patches as git-am(1) reads them: git-mailsplit(1) separates messages, git-mailinfo(1) decodes one."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InfrastructureError
from orchestrator.kernel.repository import ISOLATED, git_command
from orchestrator.process import run, spawn

#: What may begin a message (git's builtin/mailsplit.c, is_from_line()): a quick test, git has the last word.
_FROM = re.compile(rb"^From .*:\d\d.*\d{2,}$", re.MULTILINE)
#: ``n/m`` in the bracket of a subject.
_NUMBERED = re.compile(
    r"^\s*(?:[Rr][Ee]:\s*)?(?:\[[^\]]*\]\s*)*?\[[^\]]*?\b0*(\d{1,4})/0*(\d{1,4})\b[^\]]*\]"
)


@dataclass(frozen=True)
class Message:
    """A decoded message.

    Args:
        subject: without ``[PATCH]``.
        author: ``Name <mail>``; empty if there is none.
        date: as in its header; empty if there is none.
        number, total: its ``n/m`` in the series; None if the subject has no such numbers.
        body: the changelog, in UTF-8.
        change: everything below the changelog, the diff included, byte by byte; empty if there is no diff.
    """

    subject: str
    author: str
    date: str
    number: int | None
    total: int | None
    body: bytes
    change: bytes

    @property
    def is_patch(self) -> bool:
        """Whether it changes a file."""
        return bool(self.change.strip())

    def as_patch(self) -> bytes:
        """The message as git-format-patch(1) would write it: UTF-8, without transfer encoding."""
        head = [
            "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001",
            f"From: {self.author or 'unknown <unknown@localhost>'}",
            f"Date: {self.date or 'Sat, 1 Jan 2000 00:00:00 +0000'}",
            f"Subject: [PATCH] {self.subject}",
            "MIME-Version: 1.0",
            "Content-Type: text/plain; charset=UTF-8",
            "Content-Transfer-Encoding: 8bit",
        ]
        separator = b"" if self.change.startswith(b"---\n") else b"---\n"
        body = self.body.rstrip(b"\n")
        text = "\n".join(head).encode() + b"\n\n" + (body + b"\n" if body else b"")
        return text + separator + self.change


def may_be_several(content: bytes) -> bool:
    """Whether a file may have several messages, without asking git."""
    return len(_FROM.findall(content)) > 1


def split(mailbox: Path, directory: Path) -> list[Path]:
    """Separate the messages of an mbox, a Maildir or a file with one message.

    Args:
        directory: an existing, empty directory for the messages.

    Returns:
        One file per message, in order.

    Raises:
        InfrastructureError: git cannot read it.
    """
    # -b: a file without "From " at its start is one message.
    run(git_command("mailsplit", "-b", f"-o{directory}", "--", str(mailbox.resolve())), env=ISOLATED)
    return sorted(directory.iterdir())


def read(message: Path, scratch: Path) -> Message:
    """Decode one message.

    Args:
        scratch: an existing directory for temporary files.

    Raises:
        InfrastructureError: git cannot read it.
    """
    facts, body, change = _mailinfo(message, scratch)
    # The second answer keeps the brackets, which have the numbers.
    whole, _, _ = _mailinfo(message, scratch, "-k")
    numbered = _NUMBERED.match(whole.get("Subject", ""))
    name, mail = facts.get("Author", ""), facts.get("Email", "")
    return Message(
        facts.get("Subject", ""),
        f"{name or mail} <{mail}>" if mail else "",
        facts.get("Date", ""),
        int(numbered[1]) if numbered else None,
        int(numbered[2]) if numbered else None,
        body,
        change,
    )


def _mailinfo(message: Path, scratch: Path, *options: str) -> tuple[dict[str, str], bytes, bytes]:
    body, change = scratch / "message", scratch / "change"
    with message.open("rb") as mail:
        process = spawn(
            git_command("mailinfo", "--encoding=UTF-8", *options, str(body), str(change)),
            env=ISOLATED,
            stdin=mail,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        said, failed = process.communicate()
    if process.returncode != 0:
        reason = failed.decode(errors="replace").strip() or f"status {process.returncode}"
        raise InfrastructureError(f"git mailinfo cannot read {message.name}: {reason}.")
    facts: dict[str, str] = {}
    for line in said.decode(errors="replace").splitlines():
        key, colon, value = line.partition(": ")
        if colon:
            facts.setdefault(key, value)
    return facts, body.read_bytes(), change.read_bytes()
