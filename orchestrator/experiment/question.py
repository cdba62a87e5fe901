# SPDX-License-Identifier: GPL-2.0-only
"""What a bisection looks for: an outcome, or a metric past a limit; and what one boot says of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from orchestrator.analysis.bisection import Mark
from orchestrator.errors import UserError
from orchestrator.spelling import hint
from orchestrator.store.observation import CLOCK, CLOCKS, Metric
from orchestrator.store.outcome import Outcome

#: What `--until` accepts, with the outcomes that are it and, beside ``ok``, those that exclude it. Every other
#: outcome comes to no verdict: a guest that did not boot says nothing of what its workload would have met.
OUTCOMES: Mapping[str, tuple[frozenset[Outcome], frozenset[Outcome]]] = {
    # A bug may end in a panic, before or after it was reported.
    "kernel-bug": (frozenset({Outcome.KERNEL_BUG, Outcome.KERNEL_PANIC}), frozenset()),
    "kernel-panic": (frozenset({Outcome.KERNEL_PANIC}), frozenset({Outcome.KERNEL_BUG})),
    "workload-failed": (frozenset({Outcome.WORKLOAD_FAILED}), frozenset()),
    "timeout": (frozenset({Outcome.TIMEOUT}), frozenset()),
    "boot-failed": (
        frozenset({Outcome.BOOT_FAILED}),
        frozenset({Outcome.WORKLOAD_FAILED, Outcome.TIMEOUT, Outcome.KERNEL_BUG}),
    ),
    "failure": (
        frozenset(
            {
                Outcome.WORKLOAD_FAILED,
                Outcome.KERNEL_BUG,
                Outcome.KERNEL_PANIC,
                Outcome.BOOT_FAILED,
                Outcome.TIMEOUT,
            }
        ),
        frozenset(),
    ),
}
#: `--until` of a comparison with the reference model, which no outcome of a workload says.
DIVERGES = "diverges"

Operator = Literal[">", ">=", "<", "<=", "==", "!="]
Relation = Literal["absolute", "difference", "percent"]
_CONDITION = re.compile(
    r"(?P<metric>[^\s<>=!]+)\s*(?P<operator>>=|<=|==|!=|>|<)\s*"
    r"(?P<sign>[+-]?)(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*(?P<percent>%?)",
    re.ASCII,
)
_EXAMPLE = "write METRIC OPERATOR VALUE, e.g. 'fault_ns.p50 > +2%'"


@dataclass(frozen=True)
class Judgement:
    """What one boot says.

    Args:
        text: why, for a person; one line.
        value: of the metric, where the question is one.
    """

    mark: Mark
    text: str
    value: float | None = None


@dataclass(frozen=True)
class OutcomeQuestion:
    """Whether a cell ends in an outcome.

    Args:
        text: a key of :data:`OUTCOMES`.
        matching: where given, only an end whose evidence has this in it counts; another one of the same outcome
            is something else, and comes to no verdict.
    """

    text: str
    matching: re.Pattern[str] | None = None

    def judge(self, outcome: Outcome, evidence: str) -> Judgement:
        """What a cell's end says."""
        first = evidence.splitlines()[0] if evidence else ""
        text = f"{outcome.value}: {first}" if first else outcome.value
        bad, good = OUTCOMES[self.text]
        if outcome in bad:
            if self.matching is None or self.matching.search(evidence):
                return Judgement(Mark.BAD, text)
            return Judgement(Mark.UNCLEAR, f"{text} (does not match {self.matching.pattern!r})")
        if outcome is Outcome.OK or outcome in good:
            return Judgement(Mark.GOOD, text)
        return Judgement(Mark.UNCLEAR, text)


@dataclass(frozen=True)
class MetricQuestion:
    """Whether a metric is past a limit.

    Args:
        text: as it was asked.
        metric: its name.
        value: the limit; for ``percent`` and ``difference`` what is added to the reference, which is the
            median of what the series is applied to.
    """

    text: str
    metric: str
    operator: Operator
    relation: Relation
    value: float

    @property
    def is_relative(self) -> bool:
        """Whether the limit depends on a reference."""
        return self.relation != "absolute"

    def limit(self, reference: float | None) -> float:
        """The limit in the metric's unit.

        Args:
            reference: the median that it is relative to; None where it is absolute.
        """
        if self.relation == "absolute":
            return self.value
        assert reference is not None
        return reference + self.value if self.relation == "difference" else reference * (1 + self.value / 100)

    def judge(
        self, outcome: Outcome, evidence: str, values: Mapping[str, float], reference: float | None
    ) -> Judgement:
        """What a cell's metrics say; one that did not end ok, or did not measure it, comes to no verdict."""
        if outcome is not Outcome.OK:
            return Judgement(Mark.UNCLEAR, OutcomeQuestion("failure").judge(outcome, evidence).text)
        value = values.get(self.metric)
        if value is None:
            return Judgement(Mark.UNCLEAR, f"this kernel has no {self.metric}")
        limit = self.limit(reference)
        holds = {
            ">": value > limit,
            ">=": value >= limit,
            "<": value < limit,
            "<=": value <= limit,
            "==": value == limit,
            "!=": value != limit,
        }[self.operator]
        change = f", {100 * (value / reference - 1):+.2f} %" if reference else ""
        text = f"{self.metric} {value:g}{change}, limit {limit:g}"
        return Judgement(Mark.BAD if holds else Mark.GOOD, text, value)


@dataclass(frozen=True)
class DivergenceQuestion:
    """Whether a kernel's reservations differ from those of the reference model; what asks it is given by the caller."""

    text: str = DIVERGES


Question = OutcomeQuestion | MetricQuestion | DivergenceQuestion


def parse_until(text: str, matching: str | None = None) -> OutcomeQuestion | DivergenceQuestion:
    """Read ``--until`` and ``--matching``.

    Raises:
        UserError: no such outcome, or no regular expression.
    """
    if text == DIVERGES:
        if matching is not None:
            raise UserError("--matching looks into the evidence of an outcome; a divergence has none.")
        return DivergenceQuestion()
    if text not in OUTCOMES:
        known = [*OUTCOMES, DIVERGES]
        why = " a stage that does not build is skipped;" if text == Outcome.BUILD_FAILED else ""
        raise UserError(f"--until {text}:{why} {hint(text, known, 'choose')}")
    try:
        return OutcomeQuestion(text, re.compile(matching) if matching is not None else None)
    except re.error as error:
        raise UserError(f"--matching {matching}: no regular expression ({error}).") from error


def parse_metric(text: str, known: Iterable[Metric]) -> MetricQuestion:
    """Read ``--metric``: ``METRIC OPERATOR VALUE``.

    The value is absolute; with a sign it is added to the reference, with ``%`` it is a share of it.

    Args:
        known: the metrics of the workload, and those derived for every workload.

    Raises:
        UserError: it is no such expression, or no such metric.

    >>> parse_metric("a_kib.max > +2%", [Metric("a_kib.max", "KiB", "lower")]).limit(100.0)
    102.0
    """
    match = _CONDITION.fullmatch(text.strip())
    if match is None:
        if re.search(r"[^<>=!]=[^=]", text):
            raise UserError(f"--metric {text!r}: '=' is no operator; write == or one of > >= < <= !=.")
        raise UserError(f"--metric {text!r}: {_EXAMPLE}; operators are > >= < <= == !=.")
    names = sorted(name for metric in known for name in _names(metric))
    name = match["metric"]
    if name not in names:
        raise UserError(
            f"--metric {text!r}: the workload has no metric {name}; {hint(name, names, 'it has')}"
        )
    value = float(match["number"])
    relation: Relation = "percent" if match["percent"] else "difference" if match["sign"] else "absolute"
    operator: Operator = match["operator"]  # type: ignore[assignment]  # the pattern has no other
    return MetricQuestion(text.strip(), name, operator, relation, -value if match["sign"] == "-" else value)


def check_clock(question: Question, known: Iterable[Metric], clock: str) -> None:
    """Check that a metric is measured by the clock there is.

    Args:
        clock: ``insns`` or ``ns``.

    Raises:
        UserError: it is one of the other clock.
    """
    if not isinstance(question, MetricQuestion):
        return
    for metric in known:
        if metric.clock and question.metric in _names(metric):
            right = metric.name.replace(CLOCK, clock)
            if question.metric != right:
                raise UserError(
                    f"--metric {question.text!r}: the clock of this accelerator is {clock}; write {right}, "
                    "or choose another --accel."
                )


def _names(metric: Metric) -> list[str]:
    return [metric.name.replace(CLOCK, clock) for clock in CLOCKS] if metric.clock else [metric.name]
