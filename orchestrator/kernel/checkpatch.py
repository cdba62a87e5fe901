# SPDX-License-Identifier: GPL-2.0-only
"""Runs the kernel's scripts/checkpatch.pl --strict on the patch of one stage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InfrastructureError
from orchestrator.process import require, run

#: Patches are stored without a sign-off; the sender adds one when the series is exported.
_OPTIONS = ("--strict", "--no-signoff", "--no-color", "--show-types")
_TOTAL = re.compile(
    r"^total: (?P<errors>\d+) errors?, (?P<warnings>\d+) warnings?(?:, (?P<checks>\d+) checks?)?",
    re.MULTILINE,
)
_FINDING = re.compile(r"^(?:ERROR|WARNING|CHECK):")


@dataclass(frozen=True)
class Review:
    """The result of checkpatch for a patch.

    Args:
        errors, warnings, checks: number of each.
        findings: messages as printed: level, type and text, with the location on the next line.
        text: the complete output.
    """

    errors: int
    warnings: int
    checks: int
    findings: tuple[str, ...]
    text: str

    @property
    def is_clean(self) -> bool:
        """Whether there is no finding at all."""
        return self.errors == self.warnings == self.checks == 0


def review(patch: Path, source: Path) -> Review:
    """Run checkpatch.

    Args:
        source: work tree with the patch applied; the checkpatch of this tree is run.

    Raises:
        InfrastructureError: checkpatch did not finish.
    """
    script = source / "scripts" / "checkpatch.pl"
    done = run(
        [require("perl"), str(script), f"--root={source}", *_OPTIONS, str(patch.resolve())],
        cwd=source,
        env={"LC_ALL": "C"},
        check=False,
    )
    totals = list(_TOTAL.finditer(done.stdout))
    if not totals:
        last = next((line for line in reversed((done.stderr + done.stdout).splitlines()) if line.strip()), "")
        raise InfrastructureError(f"{script} did not finish: {last or 'it printed nothing'}")
    errors, warnings, checks = (
        sum(int(total[kind] or 0) for total in totals) for kind in ("errors", "warnings", "checks")
    )
    blocks = re.split(r"\n\s*\n", done.stdout)
    findings = [block.strip() for block in blocks if _FINDING.match(block.strip())]
    return Review(errors, warnings, checks, tuple(findings), done.stdout)
