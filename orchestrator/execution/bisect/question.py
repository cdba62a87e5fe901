# SPDX-License-Identifier: GPL-2.0-only
"""What a bisection searches for (an outcome, or a metric past a limit), and how one boot is judged."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from orchestrator.errors import UserError
from orchestrator.execution.bisect.bisection import Mark
from orchestrator.spelling import hint
from orchestrator.store.observation import CLOCK, CLOCKS, Metric
from orchestrator.store.outcome import Outcome

#: Values of `--until`, each with the outcomes that make a boot bad and those that, besides ``ok``, make it good. All
#: other outcomes leave it unclear: a guest that did not boot does not tell what its workload would have done.
OUTCOMES: Mapping[str, tuple[frozenset[Outcome], frozenset[Outcome]]] = {
    # A kernel bug may also cause a panic, before or after its report is printed.
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
#: Value of `--until` for a comparison with the reference model; it is not an outcome of a workload.
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
class BootJudgement:
    """Whether one boot is good, bad or unclear.

    Args:
        text: the reason, one line for display.
        value: value of the metric, if the bisection is by a metric.
    """

    mark: Mark
    text: str
    value: float | None = None


@dataclass(frozen=True)
class OutcomeQuestion:
    """Does a cell end with a given outcome?

    Args:
        text: a key of :data:`OUTCOMES`.
        matching: if given, a boot is bad only if the evidence of its outcome matches; the same outcome with other
            evidence is a different fault and makes the boot unclear.
    """

    text: str
    matching: re.Pattern[str] | None = None

    def judge(self, outcome: Outcome, evidence: str) -> BootJudgement:
        """Judge a boot by its outcome."""
        first = evidence.splitlines()[0] if evidence else ""
        text = f"{outcome.value}: {first}" if first else outcome.value
        bad, good = OUTCOMES[self.text]
        if outcome in bad:
            if self.matching is None or self.matching.search(evidence):
                return BootJudgement(Mark.BAD, text)
            return BootJudgement(Mark.UNCLEAR, f"{text} (does not match {self.matching.pattern!r})")
        if outcome is Outcome.OK or outcome in good:
            return BootJudgement(Mark.GOOD, text)
        return BootJudgement(Mark.UNCLEAR, text)


@dataclass(frozen=True)
class MetricQuestion:
    """Is a metric past a limit?

    Args:
        text: the condition as the user wrote it.
        metric: name of the metric.
        value: the limit; for ``percent`` and ``difference`` what is added to the reference, which is the
            median of the kernel that the search starts from.
    """

    text: str
    metric: str
    operator: Operator
    relation: Relation
    value: float

    @property
    def is_relative(self) -> bool:
        """Whether the limit is relative to a reference value."""
        return self.relation != "absolute"

    def limit(self, reference: float | None) -> float:
        """The limit, in the metric's unit.

        Args:
            reference: the median that the limit is relative to; None for an absolute limit.
        """
        if self.relation == "absolute":
            return self.value
        assert reference is not None
        return reference + self.value if self.relation == "difference" else reference * (1 + self.value / 100)

    def judge(
        self, outcome: Outcome, evidence: str, values: Mapping[str, float], reference: float | None
    ) -> BootJudgement:
        """Judge a boot by its metrics; it is unclear if it did not end ok or lacks the metric."""
        if outcome is not Outcome.OK:
            return BootJudgement(Mark.UNCLEAR, OutcomeQuestion("failure").judge(outcome, evidence).text)
        value = values.get(self.metric)
        if value is None:
            return BootJudgement(Mark.UNCLEAR, f"this kernel has no {self.metric}")
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
        return BootJudgement(Mark.BAD if holds else Mark.GOOD, text, value)


@dataclass(frozen=True)
class DivergenceQuestion:
    """Does the kernel differ from the reference model? The caller provides the check."""

    text: str = DIVERGES


Question = OutcomeQuestion | MetricQuestion | DivergenceQuestion


def parse_until(text: str, matching: str | None = None) -> OutcomeQuestion | DivergenceQuestion:
    """Parse ``--until`` and ``--matching``.

    Raises:
        UserError: unknown outcome, or an invalid regular expression.
    """
    if text == DIVERGES:
        if matching is not None:
            raise UserError(
                "--matching applies to the evidence of an outcome; omit it with --until diverges."
            )
        return DivergenceQuestion()
    if text not in OUTCOMES:
        known = [*OUTCOMES, DIVERGES]
        why = " a stage that does not build is skipped;" if text == Outcome.BUILD_FAILED else ""
        raise UserError(f"--until {text}:{why} {hint(text, known, 'choose')}")
    try:
        return OutcomeQuestion(text, re.compile(matching) if matching is not None else None)
    except re.error as error:
        raise UserError(f"--matching {matching}: not a valid regular expression ({error}).") from error


def parse_metric(text: str, known: Iterable[Metric]) -> MetricQuestion:
    """Parse ``--metric``: ``METRIC OPERATOR VALUE``.

    Without a sign the value is absolute. With a sign it is added to the reference; ``%`` makes it a share of it.

    Args:
        known: the metrics of the workload, and those derived for every workload.

    Raises:
        UserError: not such an expression, or an unknown metric.

    >>> parse_metric("a_kib.max > +2%", [Metric("a_kib.max", "KiB", "lower")]).limit(100.0)
    102.0
    """
    match = _CONDITION.fullmatch(text.strip())
    if match is None:
        if re.search(r"[^<>=!]=[^=]", text):
            raise UserError(f"--metric {text!r}: '=' is not an operator; write == or one of > >= < <= !=.")
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
    """Check that a metric is measured with the clock of the run.

    Args:
        clock: clock of the run, ``insns`` or ``ns``.

    Raises:
        UserError: the metric is measured with the other clock.
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
