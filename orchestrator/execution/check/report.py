# SPDX-License-Identifier: GPL-2.0-only
"""The report of a check: the amount of comparisons, then the divergences."""

from __future__ import annotations

from orchestrator.analysis.layout import first_lines
from orchestrator.execution.check.summary import CheckSummary

#: File in the run directory.
TEXT = "check.txt"
#: Number of lines of a report of the kernel or QEMU to print; the run directory has all of them.
_SHOWN_LINES = 20


def as_text(patchset: str, summary: CheckSummary) -> str:
    """The amount of comparisons, then the divergences; lines may be long."""
    compared, uncompared = sum(summary.compared.values()), sum(summary.uncompared.values())
    speed = summary.steps / summary.run_s if summary.run_s else 0
    lines = [
        f"{patchset}: {summary.traces} traces, {summary.steps} operations compared ({speed:.0f} per second)",
        f"{compared} fields compared, {summary.moved_share:.0%} of them of kinds that change in the prediction",
    ]
    constant = sorted(set(summary.compared) - summary.moved)
    if constant:
        lines.append(f"never changed ({len(constant)} kinds): {', '.join(constant)}")
    if uncompared:
        names = ", ".join(sorted(summary.uncompared))
        lines.append(f"{uncompared} fields not compared, as the model does not have them: {names}")
    for found in summary.found:
        lines.append(f"{found.name}: diverges at {found.divergence}")
        more = len(found.divergence.differences) - 1
        for each in found.divergence.differences[1:6]:
            lines.append(f"    {each.field} is {each.observed}, expected {each.expected}")
        if more > 5:
            lines.append(f"    and {more - 5} more fields")
        lines += first_lines(found.report, _SHOWN_LINES, "    ")
        lines.append(f"    {len(found.minimal.operations)} operations: {found.file}")
        if found.first_stage:
            lines.append(f"    from {found.first_stage} on")
        elif found.stages:
            lines.append(
                f"    not with the last stage ({', '.join(s for s, d in found.stages.items() if d)})"
            )
    for name, ending in summary.incomparable.items():
        first, _, rest = ending.evidence.partition("\n")
        lines += [f"{name}: {ending.outcome.value}: {first}", *first_lines(rest, _SHOWN_LINES, "    ")]
    if not summary.found:
        compared = summary.traces - len(summary.incomparable)
        lines.append("no divergence" if not summary.incomparable else f"no divergence in {compared} traces")
    return "\n".join(lines)
