# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own scripts/checkpatch.pl, as strict as it gets, on one stage's patch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InfrastructureError
from orchestrator.process import require, run

#: A patch is stored without a sign-off: whoever sends it adds theirs.
_OPTIONS = ("--strict", "--no-signoff", "--no-color", "--show-types")
_TOTAL = re.compile(
    r"^total: (?P<errors>\d+) errors?, (?P<warnings>\d+) warnings?(?:, (?P<checks>\d+) checks?)?",
    re.MULTILINE,
)
_FINDING = re.compile(r"^(?:ERROR|WARNING|CHECK):")


@dataclass(frozen=True)
class Review:
    """What checkpatch says of a patch.

    Args:
        errors, warnings, checks: how many.
        findings: each as it prints it: kind, type and sentence, with the place below.
        text: all it prints.
    """

    errors: int
    warnings: int
    checks: int
    findings: tuple[str, ...]
    text: str

    @property
    def is_clean(self) -> bool:
        """Whether it finds nothing at all."""
        return self.errors == self.warnings == self.checks == 0


def review(patch: Path, source: Path) -> Review:
    """Run checkpatch.

    Args:
        source: the tree with the patch applied, laid out; its own checkpatch is run.

    Raises:
        InfrastructureError: it did not come to its end.
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
        raise InfrastructureError(f"{script} did not come to its end: {last or 'it prints nothing'}")
    errors, warnings, checks = (
        sum(int(total[kind] or 0) for total in totals) for kind in ("errors", "warnings", "checks")
    )
    blocks = re.split(r"\n\s*\n", done.stdout)
    findings = [block.strip() for block in blocks if _FINDING.match(block.strip())]
    return Review(errors, warnings, checks, tuple(findings), done.stdout)
