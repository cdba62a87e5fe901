# SPDX-License-Identifier: GPL-2.0-only
"""Would the differential check notice? Recorded answers of real kernels, against the model and against its mutants."""

from __future__ import annotations

import pytest
from mutants import MUTANTS, PATCHSETS, ROOT, Recording, caught, compared, recordings, row

from orchestrator.model.generator import PROFILES
from orchestrator.model.memory import Model


@pytest.mark.parametrize("recording", recordings(), ids=lambda each: f"{each.patchset}-{each.name}")
def test_the_model_is_as_the_kernel_was(recording: Recording) -> None:
    comparison = compared(recording)
    assert comparison.divergence is None
    assert comparison.steps == len(recording.trace.operations)


@pytest.mark.parametrize("patchset", PATCHSETS)
def test_what_is_recorded(patchset: str) -> None:
    made = [each for each in recordings() if each.patchset == patchset]
    names = {each.name for each in made}
    # What was recorded before nodes were reported had two seeds, and none of the traces that came later.
    old = all(each.lacks for each in made)
    assert {f"{profile}-{seed}" for profile in PROFILES for seed in ((1, 2) if old else range(1, 6))} <= names
    if not old:
        assert {path.stem for path in (ROOT / "tests" / "differential").glob("*.trace")} <= names


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mistake_is_noticed_and_documented(mutant: type[Model]) -> None:
    assert caught(mutant) is not None
    assert row(mutant) in (ROOT / "docs" / "differential.md").read_text(encoding="utf-8")
