# SPDX-License-Identifier: GPL-2.0-only
"""An equation that a kernel's counters must satisfy on an idle system, from ``series.toml``.

For example ``512 * thp_res_alloc == nr_thp_reserved + thp_res_mapped``. Names are counters of /proc/vmstat; the
operators are ``+``, ``-`` and ``*``, between whole numbers.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_OPERATORS: Final[Mapping[type[ast.operator], Callable[[int, int], int]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


@dataclass(frozen=True)
class Identity:
    """The two sides of an equation; see :func:`parse_identity`."""

    left: ast.expr
    right: ast.expr

    @property
    def counters(self) -> frozenset[str]:
        """Names of the counters in it."""
        return frozenset(
            node.id
            for side in (self.left, self.right)
            for node in ast.walk(side)
            if isinstance(node, ast.Name)
        )

    def broken(self, counters: Mapping[str, int]) -> str | None:
        """Both sides with their values as a clause, if they differ; a missing counter counts as 0."""
        left, right = _value(self.left, counters), _value(self.right, counters)
        if left == right:
            return None
        return f"{_shown(self.left, counters)} = {left}, but {_shown(self.right, counters)} = {right}"


@lru_cache
def parse_identity(text: str) -> Identity:
    """Parse an equation.

    Raises:
        ValueError: it is not one; the message is a clause.
    """
    try:
        parsed = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{text!r} is not an equation such as 2 * a == b + c") from error
    if not isinstance(parsed, ast.Compare) or len(parsed.ops) != 1 or not isinstance(parsed.ops[0], ast.Eq):
        raise ValueError(f"{text!r} is not an equation such as 2 * a == b + c")
    for side in (parsed.left, parsed.comparators[0]):
        for node in ast.walk(side):
            is_number = isinstance(node, ast.Constant) and type(node.value) is int
            is_operation = isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS
            if not (
                is_number or is_operation or isinstance(node, ast.Name | ast.operator | ast.expr_context)
            ):
                raise ValueError(f"{text!r} may only have counters, whole numbers and + - *")
    identity = Identity(parsed.left, parsed.comparators[0])
    if not identity.counters:
        raise ValueError(f"{text!r} has no counter")
    return identity


def _value(node: ast.expr, counters: Mapping[str, int]) -> int:
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, counters), _value(node.right, counters))
    if isinstance(node, ast.Name):
        return counters.get(node.id, 0)
    assert isinstance(node, ast.Constant) and isinstance(node.value, int)
    return node.value


def _shown(node: ast.expr, counters: Mapping[str, int]) -> str:
    """The expression with the value of each counter after its name."""

    class Figures(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.Name:
            return ast.Name(f"{name.id} ({counters.get(name.id, 0)})", name.ctx)

    # A copy: the transformer changes the tree.
    return ast.unparse(Figures().visit(ast.parse(ast.unparse(node), mode="eval")))
