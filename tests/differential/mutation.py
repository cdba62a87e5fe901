# SPDX-License-Identifier: GPL-2.0-only
"""Random mutants of the reference model, against what real guests answered.

    .venv/bin/python tests/differential/mutation.py --seed 1 --count 80

Each mutant is `orchestrator/model/memory.py` with one change. It is killed by the first recorded trace (`recorded/`)
that it disagrees with, or in which it fails or does not end. Those that survive are printed: either the change makes
no difference, or the recorded traces do not reach it. No guest is needed.

The libraries for this, mutmut and cosmic-ray, start the tests anew for each mutant, and have neither a sample by seed
nor dropped statements. Of the 3,713 mutants that cosmic-ray makes of this file, more than half replace one arithmetic
operator by another nine, such as `+` by `<<`; nearly all of these crash, which would flatter the recorded traces.
"""

from __future__ import annotations

import argparse
import ast
import copy
import multiprocessing
import random
import resource
import signal
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit"))  # if it is run as a program

from mutants import PATCHSETS, Recording, compared, recordings  # noqa: E402

from orchestrator.model import memory  # noqa: E402

SOURCE: Final = Path(memory.__file__)
SEED: Final = 1
COUNT: Final = 80
#: CPU seconds for one mutant and one recorded trace: a hundred times what the model takes.
_TIMEOUT_S: Final = 5
_MEMORY_BYTES: Final = 2 << 30
#: What the comparison never calls: the model's check of itself, and accessors for tests.
_NOT_COMPARED: Final = frozenset({"violations", "processes", "run", "counter"})

_COMPARISONS: Final[dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}
_DROPPED: Final = (ast.Expr, ast.Assign, ast.AugAssign, ast.Return, ast.Continue, ast.Break, ast.Delete)


@dataclass(frozen=True)
class Mutation:
    """One change.

    Args:
        kind: "comparison", "arithmetic", "constant", "boolean" or "dropped".
        function: that it is in.
        line: of the file.
        before, after: the expression or statement; the latter is empty if it was dropped.
        node: its position in a walk over the tree.
        change: makes the change to that node.
    """

    kind: str
    function: str
    line: int
    before: str
    after: str
    node: int
    change: Callable[[Any], ast.AST]

    def __str__(self) -> str:
        return f"{self.function}, line {self.line}: `{self.before}` -> `{self.after or 'nothing'}`"

    def applied(self, tree: ast.Module) -> ast.Module:
        """A copy of the file's tree with the change."""
        changed = copy.deepcopy(tree)
        old = list(ast.walk(changed))[self.node]
        new = ast.copy_location(self.change(old), old)
        for parent in ast.walk(changed):
            for field, value in ast.iter_fields(parent):
                if value is old:
                    setattr(parent, field, new)
                elif isinstance(value, list) and any(each is old for each in value):
                    value[:] = [new if each is old else each for each in value]
        return ast.fix_missing_locations(changed)


def mutations(tree: ast.Module) -> list[Mutation]:
    """Every change of a file that can be made, in the order of its lines."""
    position = {id(node): number for number, node in enumerate(ast.walk(tree))}
    found: list[Mutation] = []

    def add(node: Any, function: str, kind: str, change: Callable[[Any], ast.AST]) -> None:
        after = change(copy.deepcopy(node))
        shown = "" if isinstance(after, ast.Pass) else _text(after)
        found.append(Mutation(kind, function, node.lineno, _text(node), shown, position[id(node)], change))

    def visit(node: ast.AST, function: str) -> None:
        for kind, change in _changes(node):
            add(node, function, kind, change)
        if isinstance(node, ast.If | ast.IfExp | ast.While) and isinstance(
            node.test, ast.Name | ast.Attribute | ast.Call | ast.BinOp | ast.NamedExpr
        ):
            add(node.test, function, "boolean", lambda old: ast.UnaryOp(ast.Not(), old))
        for child in _children(node):
            visit(child, child.name if isinstance(child, ast.FunctionDef) else function)

    for top in tree.body:
        if isinstance(top, ast.FunctionDef):
            visit(top, top.name)
        elif isinstance(top, ast.ClassDef):
            for method in top.body:
                if isinstance(method, ast.FunctionDef) and method.name not in _NOT_COMPARED:
                    visit(method, method.name)
    return sorted(found, key=lambda each: (each.line, each.node))


def _text(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """What is below a node and does something when the model runs."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "args") and not isinstance(node, ast.Call):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Assert) or _is_docstring(child) or not isinstance(child, ast.AST):
                continue
            # What an error says is not compared.
            if not isinstance(child, ast.Raise | ast.JoinedStr):
                yield child


def _is_docstring(node: object) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[Any], ast.AST]]]:
    """The changes of one node, each as a function that makes it."""
    if isinstance(node, ast.Compare):
        for number, each in enumerate(node.ops):
            for other in _COMPARISONS[type(each)]:
                yield "comparison", partial(_with_operator, number=number, operator=other)
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _ARITHMETIC:
        yield "arithmetic", lambda old: _replaced(old, op=_ARITHMETIC[type(old.op)]())
    elif isinstance(node, ast.BoolOp):
        other_op = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield "boolean", lambda old: _replaced(old, op=other_op())
        for number in range(len(node.values)):
            yield "boolean", partial(_without, number=number)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "boolean", lambda old: old.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "boolean", lambda old: ast.Constant(not old.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        for step in (1, -1):
            yield "constant", partial(_plus, step=step)
    if isinstance(node, _DROPPED):
        if isinstance(node, ast.Return) and (node.value is None or ast.unparse(node.value) == "None"):
            return  # most of these are the last statement, where it makes no difference
        yield "dropped", lambda old: ast.Pass()


def _replaced(node: Any, **fields: ast.AST) -> ast.AST:
    for name, value in fields.items():
        setattr(node, name, value)
    return node  # type: ignore[no-any-return]


def _with_operator(node: ast.Compare, number: int, operator: type[ast.cmpop]) -> ast.AST:
    node.ops[number] = operator()
    return node


def _plus(node: ast.Constant, step: int) -> ast.AST:
    assert isinstance(node.value, int)
    return ast.Constant(node.value + step)


def _without(node: ast.BoolOp, number: int) -> ast.AST:
    del node.values[number]
    return node.values[0] if len(node.values) == 1 else node


def sample(tree: ast.Module, seed: int, count: int) -> list[Mutation]:
    """Random mutations of a file, each as likely as any other; the same for the same seed and file."""
    every = mutations(tree)
    return random.Random(seed).sample(every, min(count, len(every)))


def model_with(mutation: Mutation, tree: ast.Module) -> type[memory.Model]:
    """The model of the changed file."""
    module = types.ModuleType("mutated")
    module.__dict__["__file__"] = str(SOURCE)
    sys.modules["mutated"] = module  # dataclasses look their module up
    exec(compile(mutation.applied(tree), str(SOURCE), "exec"), module.__dict__)
    return module.Model  # type: ignore[no-any-return]


class _TimeLimitError(Exception):
    """A mutant does not end."""


def killer(mutation: Mutation, tree: ast.Module, corpus: Sequence[Recording]) -> str | None:
    """What tells a mutant from the model: the first recorded trace and field; None if it survives."""

    def on_timeout(_number: int, _frame: object) -> None:
        raise _TimeLimitError

    signal.signal(signal.SIGVTALRM, on_timeout)
    recording = None
    try:
        kind = model_with(mutation, tree)
        for recording in corpus:
            signal.setitimer(signal.ITIMER_VIRTUAL, _TIMEOUT_S)
            divergence = compared(recording, kind).divergence
            if divergence is not None:
                return (
                    f"{recording.patchset} {recording.name}, step {divergence.step}: {divergence.first.field}"
                )
    except _TimeLimitError:
        return "it does not end"
    except Exception as error:  # whatever a wrong model raises, it shows
        where = f"{recording.patchset} {recording.name}" if recording is not None else "the start"
        return f"{where}: {type(error).__name__}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return None


def corpus() -> list[Recording]:
    """What was recorded, the kernels with most of the series first."""
    return sorted(recordings(), key=lambda each: PATCHSETS.index(each.patchset), reverse=True)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def _judge(number: int) -> tuple[int, str | None]:
    tree, chosen, recorded = _judge.work  # type: ignore[attr-defined]
    return number, killer(chosen[number], tree, recorded)


def survivors(
    seed: int, count: int, jobs: int, on_judged: Callable[[Mutation, str | None], None] = lambda *_: None
) -> list[Mutation]:
    """Those of a sample that no recorded trace notices, in the order of the file.

    Args:
        jobs: processes at a time.
        on_judged: called for each mutation with what killed it.
    """
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    chosen = sample(tree, seed, count)
    _judge.work = tree, chosen, corpus()  # type: ignore[attr-defined]
    alive: list[Mutation] = []
    with multiprocessing.get_context("fork").Pool(jobs, _limit_memory, maxtasksperchild=8) as pool:
        for number, killed_by in pool.imap(_judge, range(len(chosen))):
            on_judged(chosen[number], killed_by)
            if killed_by is None:
                alive.append(chosen[number])
    return sorted(alive, key=lambda each: (each.line, each.node))


def main() -> int:
    """Print what survives; 1 if that is more than a tenth."""
    parser = argparse.ArgumentParser(
        description="Random mutants of the reference model against recorded guests."
    )
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="print what kills each mutant")
    asked = parser.parse_args()

    def on_judged(mutation: Mutation, killed_by: str | None) -> None:
        if asked.verbose:
            print(f"{mutation.kind:10} {mutation}: {killed_by or 'SURVIVES'}", flush=True)

    alive = survivors(asked.seed, asked.count, asked.jobs, on_judged)
    for mutation in alive:
        print(f"survives: {mutation}")
    print(f"seed {asked.seed}: {len(alive)} of {asked.count} mutants survive")
    return 1 if len(alive) > asked.count // 10 else 0


if __name__ == "__main__":
    sys.exit(main())
