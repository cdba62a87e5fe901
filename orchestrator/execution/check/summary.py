# SPDX-License-Identifier: GPL-2.0-only
"""The result of a check: the amount of comparisons, and the divergences with their shrunk traces."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.execution.check.differential import Divergence, TraceComparison
from orchestrator.execution.ending import Ending
from orchestrator.model.trace import Trace


@dataclass
class FoundDivergence:
    """A divergence and its shrunk trace.

    Args:
        minimal: the shortest trace found; the whole trace if it was not shrunk.
        file: file of that trace, for ``--trace``.
        report: the report of the kernel, if there is one.
        stages: with ``every_stage``, the divergence per stage; None for stages that agree with the model.
    """

    name: str
    divergence: Divergence
    minimal: Trace
    file: Path
    shrunk: bool = False
    report: str = ""
    stages: dict[str, Divergence | None] = field(default_factory=dict)

    @property
    def first_stage(self) -> str | None:
        """The first of the stages that diverge without exception up to the last one; None if the last one agrees."""
        first = None
        for stage, divergence in reversed(self.stages.items()):
            if divergence is None:
                break
            first = stage
        return first


@dataclass
class CheckSummary:
    """The result of a check.

    Args:
        compared, uncompared: number of comparisons per kind of field.
        moved: kinds of fields whose predicted value differs from their first value at some step.
        run_s: host seconds from the first trace on, without shrinking.
        found: the traces that diverge.
        incomparable: name -> why that trace was not compared to its end.
    """

    traces: int = 0
    steps: int = 0
    run_s: float = 0.0
    compared: Counter[str] = field(default_factory=Counter)
    uncompared: Counter[str] = field(default_factory=Counter)
    moved: set[str] = field(default_factory=set)
    found: list[FoundDivergence] = field(default_factory=list)
    incomparable: dict[str, Ending] = field(default_factory=dict)

    def count(self, comparison: TraceComparison) -> None:
        """Add the comparison of one trace."""
        self.traces += 1
        self.steps += comparison.steps
        self.compared.update(comparison.compared)
        self.uncompared.update(comparison.uncompared)
        self.moved |= comparison.moved

    @property
    def exit_status(self) -> int:
        """0 if all traces were compared and agree, 3 for a divergence or a guest that failed, 1 for a lost guest."""
        statuses = [3 for _ in self.found] + [ending.exit_status for ending in self.incomparable.values()]
        return max(statuses, default=0)

    @property
    def moved_share(self) -> float:
        """Share of comparisons whose kind of field changes; 0 if nothing was compared."""
        total = sum(self.compared.values())
        return sum(self.compared[kind] for kind in self.moved) / total if total else 0.0

    def to_json(self) -> dict[str, object]:
        """For ``--json`` and ``check.json``."""
        return {
            "traces": self.traces,
            "steps": self.steps,
            "run_s": round(self.run_s, 3),
            "compared": dict(sorted(self.compared.items())),
            "uncompared": dict(sorted(self.uncompared.items())),
            "moved": sorted(self.moved),
            "moved_share": round(self.moved_share, 4),
            "incomparable": {
                name: {"outcome": ending.outcome.value, "evidence": ending.evidence}
                for name, ending in self.incomparable.items()
            },
            "divergences": [
                {
                    "name": each.name,
                    **each.divergence.to_json(),
                    "trace": str(each.file),
                    "operations": len(each.minimal.operations),
                    "shrunk": each.shrunk,
                    **(
                        {
                            "first_stage": each.first_stage,
                            "stages": {
                                stage: None if divergence is None else divergence.to_json()
                                for stage, divergence in each.stages.items()
                            },
                        }
                        if each.stages
                        else {}
                    ),
                }
                for each in self.found
            ],
        }
