# SPDX-License-Identifier: GPL-2.0-only
"""The result of a bisection: all boots, and the conclusion with its probability as a sentence."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.execution.bisect.bisection import Conclusion, Mark, SearchState
from orchestrator.execution.bisect.question import BootJudgement
from orchestrator.execution.bisect.request import StagedSearch


@dataclass(frozen=True)
class Boot:
    """One boot of the search.

    Args:
        stage: position; 0 for the baseline.
        why: ``reference``, ``search`` or ``verify``.
    """

    stage: int
    cell: str
    why: str
    judgement: BootJudgement


@dataclass
class BisectionResult:
    """The result of the search.

    Args:
        answer: result of the search.
        boots: all boots, in order.
        unbuilt: position -> why its kernel does not build.
        equal: position -> an earlier position with an identical kernel.
    """

    search: StagedSearch
    answer: SearchState
    boots: list[Boot] = field(default_factory=list)
    unbuilt: dict[int, str] = field(default_factory=dict)
    equal: dict[int, int] = field(default_factory=dict)
    skipped: frozenset[int] = frozenset()
    reference: float | None = None

    def counts(self, stage: int) -> tuple[int, int]:
        """Numbers of good and bad boots of a stage, without reference boots."""
        marks = [
            boot.judgement.mark for boot in self.boots if boot.stage == stage and boot.why != "reference"
        ]
        return marks.count(Mark.GOOD), marks.count(Mark.BAD)


def variant_name(search: StagedSearch, stage: int) -> str:
    """Name of the variant at a position."""
    return search.experiment.variants[stage].name


def titled(search: StagedSearch, stage: int) -> str:
    """A position for display: the variant, and the name of the stage."""
    name = variant_name(search, stage)
    return f"{name} {search.stages[stage - 1].name}" if stage else name


def sentence(verdict: BisectionResult) -> str:
    """The result of the search and its probability, as one sentence."""
    search, answer = verdict.search, verdict.answer
    count = len(verdict.boots)
    boots = f"{count} boot{'s' if count != 1 else ''}"
    sure = f"{100 * _floored(answer.sure):.1f}% sure {answer.condition}".rstrip()
    observed = f"seen in {_share(answer.seen, 'bad')} and in {_share(answer.alarms, 'good')}"
    asked = search.question.text
    first, last = search.experiment.variants[0].name, search.experiment.variants[-1].name
    if answer.conclusion is Conclusion.FOUND:
        stages = [search.stages[number - 1] for number in answer.candidates]
        named = " or ".join(f"stage {stage.number} ({stage.name}: {stage.title})" for stage in stages)
        which = "the first bad stage is" if len(stages) == 1 else "the first bad stage is one of"
        return f"{which} {named}; {sure}; {observed}; {boots}, verified on it and its parent."
    if answer.conclusion is Conclusion.NONE:
        return f"no stage up to {last} shows '{asked}'; {sure}; seen in {_share(answer.alarms)}."
    if answer.conclusion is Conclusion.ALREADY:
        return (
            f"{first}, which the stages are applied to, already shows '{asked}'; {sure}; "
            f"seen in {_share(answer.seen)}."
        )
    likely = ", ".join(variant_name(search, stage) for stage in answer.candidates) or "none of them"
    if answer.contradicted and answer.verified:
        return (
            f"undecided after {boots}: most likely {likely}, but the boots contradict the assumptions "
            f"({answer.condition}): {observed}; choose a lower --rate, or another limit."
        )
    return f"undecided after {boots}: most likely {likely}, {sure}; allow more with --max-boots, or --resume."


def _share(share: tuple[int, int], of: str = "") -> str:
    """The number of boots that showed it, and the total."""
    bad, all_of_them = share
    kind = f" of {of} stages" if of else ""
    per_cent = f" ({bad / all_of_them:.0%})" if all_of_them else ""
    return f"{bad} of {all_of_them} boots{kind}{per_cent}"


def _floored(share: float) -> float:
    """Round down to a thousandth: 0.9999 is not certainty."""
    return min(int(share * 1000) / 1000, 0.999)
