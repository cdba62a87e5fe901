# SPDX-License-Identifier: GPL-2.0-only
"""The output directory of an export. It is replaced as a whole, but never files that the user added or edited."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cache import file_digest
from orchestrator.errors import UserError

#: List of the exported files with their digests: files that may be replaced without --force.
_RECORD = ".orchestrate-export.json"


@dataclass(frozen=True)
class Outbox:
    """The output directory of an export.

    Args:
        directory: may not exist yet, but its parent must.
    """

    directory: Path

    def check(self, force: bool) -> None:
        """Check that an export may be written, before any slow work.

        Args:
            force: replace an earlier export even if it was edited; leave other files alone.

        Raises:
            UserError: it is not a directory, or contains files that would be lost.
        """
        place = self.directory
        if place.exists() and not place.is_dir():
            raise UserError(f"{place} is not a directory; name a directory for the patches.")
        if not place.resolve().parent.is_dir():
            raise UserError(f"there is no directory {place.resolve().parent}; create it first.")
        if not place.exists():
            return
        if Path.cwd().is_relative_to(place.resolve()):
            # The directory is replaced, and a shell in it would be left in a deleted directory.
            raise UserError(f"{place} is or contains the working directory; name a directory below it.")
        if force:
            return
        recorded = self._recorded()
        for path in sorted(place.iterdir()):
            if path.name == _RECORD:
                continue
            if path.name not in recorded:
                raise UserError(
                    f"{place} is not empty, and {path.name} is not from an export; name another directory, "
                    "or add --force, which leaves such files alone."
                )
            if not path.is_file() or file_digest(path) != recorded[path.name]:
                raise UserError(
                    f"{path} was edited after it was exported; keep it elsewhere, or add --force to replace it."
                )

    def fill(self, write: Callable[[Path], list[Path]]) -> list[Path]:
        """Replace an earlier export with a new one; if `write` raises, nothing is changed.

        Args:
            write: writes the files into the empty directory that it is passed, and returns them in order.

        Returns:
            The files in their final place, in the same order.
        """
        final = self.directory.resolve()
        working = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
        try:
            files = write(working)
            record = {path.name: file_digest(path) for path in files}
            (working / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            working.chmod(0o755)
            if final.exists():
                self._replace(final, working, record)
            else:
                working.rename(final)
        except BaseException:
            shutil.rmtree(working, ignore_errors=True)
            raise
        return [self.directory / path.name for path in files]

    def _replace(self, final: Path, working: Path, record: dict[str, str]) -> None:
        exported = self._recorded()
        for path in final.iterdir():
            if path.name not in exported and path.name not in record and path.name != _RECORD:
                if path.is_dir() and not path.is_symlink():
                    shutil.copytree(path, working / path.name, symlinks=True)
                else:
                    shutil.copy2(path, working / path.name, follow_symlinks=False)
        working.chmod(final.stat().st_mode & 0o7777)
        old = Path(tempfile.mkdtemp(prefix=f".{final.name}-old-", dir=final.parent))
        final.rename(old)  # over an empty directory: rename(2)
        working.rename(final)
        shutil.rmtree(old)

    def _recorded(self) -> dict[str, str]:
        try:
            record = json.loads((self.directory / _RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(name): str(value) for name, value in record.items()} if isinstance(record, dict) else {}
