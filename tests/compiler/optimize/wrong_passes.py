"""A graph of three layers, and a pass that is wrong in one of them."""

import dataclasses

import pytest
import torch

import compiler.plan.planner
from compiler.ir import access
from compiler.ir.collectives import WAIT, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.text import parse_graph
from passes import EliminateDeadCode, PlaceReductions

MUL = torch.ops.aten.mul.Tensor

LAYER = """
  %{a}: f32[4, 8] = comm.all_reduce(%{y}) {{axis = tp, op = sum}}
  %{b}: f32[4, 8] = {op}(%{y}{more})
  %{c}: f32[4, 8] = comm.all_reduce(%{b}) {{axis = tp, op = sum}}
  %{d}: f32[4, 8] = aten.add.Tensor(%{a}, %{c})
  %{e}: f32[4, 8] = aten.silu(%{d})
  %{f}: f32[4, 8] = aten.add.Tensor(%{x}, %{e})"""


def three_layers() -> str:
    """The second layer multiplies a partial sum by two, the others negate it."""
    text, x = "", 0
    for layer, start in enumerate((4, 10, 16)):
        names = dict(zip("abcdef", range(start, start + 6), strict=True))
        op, more = ("aten.mul.Tensor", ", 2.0") if layer == 1 else ("aten.neg", "")
        text += LAYER.format(x=x, y=layer + 1, op=op, more=more, **names)
        x = start + 5
    inputs = ", ".join(f'%{i} "y{i}": f32[4, 8] {{tp: V}}' for i in (1, 2, 3))
    return f"""
mesh <tp = 4>
func @main(%0 "x": f32[4, 8] {{tp: R}}, {inputs}) {{{text}
  return (%{x},)
}}
"""


def graph() -> SpmdGraph:
    return parse_graph(three_layers())


@dataclasses.dataclass(frozen=True)
class Wrong(PlaceReductions):
    """Leaves out the reduction of a sum of which a term is a product by a number."""

    def apply(self, graph: SpmdGraph) -> object:  # type: ignore[override]
        result = super().apply(graph)
        for node in list(result.graph.graph.nodes):
            found = collective(node) if node.target is WAIT else None
            if found and MUL in [x.target for x in access.operands(found.operand)]:
                node.replace_all_uses_with(found.operand)
        return result


@dataclasses.dataclass(frozen=True)
class Raising(PlaceReductions):
    """Meets a product by a number, and gives up."""

    def apply(self, graph: SpmdGraph) -> object:  # type: ignore[override]
        assert MUL not in [n.target for n in graph.graph.nodes], "a product"
        return super().apply(graph)


def use(wrong: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.plan.planner, "PLACING", (wrong, EliminateDeadCode))
