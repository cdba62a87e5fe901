# SPDX-License-Identifier: GPL-2.0-only
"""The report of a bisection: one row per stage, and the result with its probability as a sentence."""

from __future__ import annotations

from dataclasses import asdict

from orchestrator.analysis.layout import WIDTH, listing, text_of, wrapped
from orchestrator.execution.bisect.bisection import Conclusion
from orchestrator.execution.bisect.verdict import BisectionResult, sentence, titled
from orchestrator.store.manifest import Manifest

#: File in the run directory.
TEXT = "bisection.txt"


def exit_status(verdict: BisectionResult) -> int:
    """Exit status: 3 if a stage or the baseline is bad, 0 if none is, 1 if undecided."""
    return {
        Conclusion.FOUND: 3,
        Conclusion.ALREADY: 3,
        Conclusion.NONE: 0,
        Conclusion.UNDECIDED: 1,
    }[verdict.answer.conclusion]


def as_json(verdict: BisectionResult, manifest: Manifest) -> dict[str, object]:
    """For ``--json``."""
    assert manifest.bisection is not None
    # Only one of `metric` and `until` is set; omit the other.
    asked = {
        key: value
        for key, value in asdict(manifest.bisection).items()
        if value is not None or key not in ("metric", "until")
    }
    return {
        **asked,
        "boots": [
            {
                "stage": boot.stage,
                "cell": boot.cell,
                "why": boot.why,
                "mark": boot.judgement.mark.value,
                "text": boot.judgement.text,
                "value": boot.judgement.value,
            }
            for boot in verdict.boots
        ],
    }


def as_text(verdict: BisectionResult, width: int = WIDTH) -> str:
    """One row per stage, and the result as a sentence.

    Args:
        width: columns.
    """
    search = verdict.search
    rows = []
    for position in range(len(search.experiment.variants)):
        good, bad = verdict.counts(position)
        first = position in verdict.answer.candidates and verdict.answer.conclusion is Conclusion.FOUND
        seen = _seen(verdict, position)
        label = titled(search, position)
        rows.append((f"{'→' if first else ' '} {label}", str(good or ""), str(bad or ""), seen))
    titles = ("  stage", "good", "bad", "observed")
    table = text_of(listing(rows, width, titles, right=(1, 2)))
    return "\n".join([table, "", *wrapped(sentence(verdict), width)])


def _seen(verdict: BisectionResult, stage: int) -> str:
    if stage in verdict.unbuilt:
        return f"does not build: {verdict.unbuilt[stage].splitlines()[0]}"
    if stage in verdict.equal:
        return f"the same kernel as {verdict.search.experiment.variants[verdict.equal[stage]].name}"
    texts = [boot.judgement.text for boot in verdict.boots if boot.stage == stage]
    if stage in verdict.skipped:
        return f"skipped: {texts[-1]}" if texts else "skipped"
    return texts[-1] if texts else ""
