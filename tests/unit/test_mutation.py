# SPDX-License-Identifier: GPL-2.0-only
"""The random mutants of the reference model: what is changed, and whether recorded guests notice it."""

from __future__ import annotations

import ast
from collections import Counter

import pytest
from mutants import ROOT
from mutation import COUNT, SEED, SOURCE, Mutation, corpus, killer, model_with, mutations, sample

from orchestrator.model.memory import Model

TREE = ast.parse(SOURCE.read_text(encoding="utf-8"))
SMALL = ast.parse(
    '''
def within(self, first: int = 0) -> bool:
    """What is not changed."""
    assert first < 7
    if self.open and not first % 8:
        first += 2
    if self.shut:
        pass
    return first <= 3
'''
)


def changed(tree: ast.Module, mutation: Mutation) -> str:
    return ast.unparse(mutation.applied(tree))


def test_every_kind_of_change_is_made_once_each() -> None:
    made = {(each.kind, each.before, each.after) for each in mutations(SMALL)}
    assert made == {
        ("boolean", "self.open and (not first % 8)", "self.open or not first % 8"),
        ("boolean", "self.open and (not first % 8)", "not first % 8"),
        ("boolean", "self.open and (not first % 8)", "self.open"),
        ("boolean", "not first % 8", "first % 8"),
        ("boolean", "self.shut", "not self.shut"),
        ("arithmetic", "first % 8", "first // 8"),
        ("arithmetic", "first += 2", "first -= 2"),
        ("constant", "8", "9"),
        ("constant", "8", "7"),
        ("constant", "2", "3"),
        ("constant", "2", "1"),
        ("constant", "3", "4"),
        ("constant", "3", "2"),
        ("comparison", "first <= 3", "first < 3"),
        ("comparison", "first <= 3", "first > 3"),
        ("dropped", "first += 2", ""),
        ("dropped", "return first <= 3", ""),
    }
    texts = [changed(SMALL, each) for each in mutations(SMALL)]
    assert ast.unparse(SMALL) not in texts and len(set(texts)) == len(texts)


def test_a_seed_gives_the_same_mutants_and_another_seed_others() -> None:
    assert list(map(str, sample(TREE, 5, 80))) == list(map(str, sample(TREE, 5, 80)))
    assert list(map(str, sample(TREE, 5, 80))) != list(map(str, sample(TREE, 6, 80)))
    assert set(Counter(each.kind for each in sample(TREE, 5, 80))) == {
        "comparison", "arithmetic", "constant", "boolean", "dropped",
    }  # fmt: skip


def test_the_file_without_a_change_agrees_with_every_recorded_trace() -> None:
    class Unchanged(Mutation):
        def applied(self, tree: ast.Module) -> ast.Module:
            return tree

    unchanged = Unchanged("", "", 0, "", "", 0, lambda node: node)
    assert model_with(unchanged, TREE) is not Model
    assert killer(unchanged, TREE, corpus()) is None


def test_a_mutant_that_raises_is_killed() -> None:
    wrong = next(each for each in mutations(TREE) if each.function == "_write" and each.kind == "dropped")
    assert "Error" in (killer(wrong, TREE, corpus()) or "")


def _listed() -> list[str]:
    """The survivors that docs/differential.md judges, as it names them."""
    text = (ROOT / "docs" / "differential.md").read_text(encoding="utf-8")
    table = text.partition("| surviving change |")[2].partition("\n\n")[0]
    return [row.split(" | ")[0].removeprefix("| ") for row in table.splitlines()[2:]]


@pytest.mark.parametrize("part", range(4))
def test_what_survives_is_judged_in_the_documentation(part: int) -> None:
    recorded = corpus()
    listed = _listed()
    for mutation in sample(TREE, SEED, COUNT)[part::4]:
        shown = f"{mutation.function}: `{mutation.before}` -> `{mutation.after or 'nothing'}`"
        assert (killer(mutation, TREE, recorded) is None) == (shown in listed), shown


def test_at_most_a_tenth_survives() -> None:
    assert len(_listed()) <= COUNT // 10
