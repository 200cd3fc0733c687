"""Conditions on sizes, compiled."""

from __future__ import annotations

import sympy
from torch.utils._sympy.functions import FloorDiv, Max, Mod

from compiler.runtime.guarded_graph import compiled

A, B = sympy.symbols("a b", integer=True, positive=True)


def test_all_conditions_must_hold() -> None:
    holds = compiled([sympy.Ge(A, 2), sympy.Ne(A * 8, 24), sympy.Eq(Max(A, B), FloorDiv(B, 2) + 3)])
    assert holds({"a": 4, "b": 2})
    assert not holds({"a": 1, "b": 2})
    assert not holds({"a": 3, "b": 0})
    assert not holds({"a": 5, "b": 2})


def test_no_condition_always_holds() -> None:
    assert compiled([])({"a": 1})


def test_functions_that_torch_cannot_print_are_sympys() -> None:
    class Square(sympy.Function):
        @classmethod
        def eval(cls, x: sympy.Expr) -> sympy.Expr | None:
            return x * x if x.is_number else None

    holds = compiled([sympy.Eq(Square(A), 9), sympy.Eq(Mod(A, 2), 1)])
    assert holds({"a": 3})
    assert not holds({"a": 2})
