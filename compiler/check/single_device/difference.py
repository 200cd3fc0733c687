"""The first value of a parallel model that is none of the model on one device."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from compiler.check import algebra
from compiler.check.algebra import Field
from compiler.check.single_device import grid
from compiler.check.single_device.evaluate import Evaluation
from compiler.ir import access


@dataclass(frozen=True)
class Difference:
    """Where two models part.

    Attributes:
        target: the first value of the parallel model that leads to a wrong output.
        source: the value on one device that comes from the same place, if there is one.
        partial: an operand of ``target`` that is a partial sum of a value on one device.
    """

    target: fx.Node
    source: fx.Node | None
    partial: fx.Node | None

    def __str__(self) -> str:
        """Return it as a sentence."""
        text = f"{_described(self.target)} is not a value of the model on one device"
        if self.partial is not None:
            text += f"; it reads %{self.partial.name}, a partial sum that ranks have not added up"
        if self.source is not None:
            text += f"; there {_described(self.source)}"
        return text


def first_difference(source: Evaluation, target: Evaluation, output: fx.Node) -> Difference:
    """Return the first value on the way to a wrong output that nothing on one device equals.

    A value is right if each of its blocks, or of the sum of it over all ranks, is a block of some
    value on one device.
    """
    right = {cell for node in source.spmd.graph.nodes if node in source
             for cell in _cells(source.data(node))}  # fmt: skip
    wrong: dict[fx.Node, bool] = {}
    waiting = [output]
    partial = dict[fx.Node, bool]()
    while waiting:
        node = waiting.pop()
        if node in wrong or node not in target:
            continue
        data = target.data(node)
        if right.issuperset(_cells(data)):
            continue
        total = algebra.summed_over(algebra.of_ranks(data, target.ranks), [range(target.ranks)])
        partial[node] = len(data) > 1 and right.issuperset(_cells(algebra.alike(total)))
        wrong[node] = not partial[node]
        waiting.extend(access.operands(node))
    order = {node: i for i, node in enumerate(target.spmd.graph.nodes)}
    every = [node for node, is_wrong in wrong.items() if is_wrong]
    candidates = [node for node in every if _computes(node)] or every or [output]
    first = min(candidates, key=order.__getitem__)
    summands = [x for x in access.operands(first) if partial.get(x)]
    return Difference(first, _twin(source, first), summands[0] if summands else None)


def _computes(node: fx.Node) -> bool:
    """Whether a node computes numbers that are not indices or masks: those differ on each rank."""
    is_call = node.op == "call_function" and access.is_tensor(node)
    return is_call and access.dtype(node).is_floating_point


def _cells(data: Field) -> set[bytes]:
    return {cell.tobytes() for rank in grid.flat(data) for cell in rank}


def _twin(source: Evaluation, node: fx.Node) -> fx.Node | None:
    """Return the value on one device that comes from the same module and line, the last one."""
    places = access.layer_path(node), access.source_line(node)
    there = [x for x in source.spmd.graph.nodes if x in source and x.op == "call_function"]
    same = [x for x in there if (access.layer_path(x), access.source_line(x)) == places]
    if not any(places):
        same = []
    alike = [x for x in same if x.target == node.target]
    nearest = alike or same
    return nearest[-1] if nearest else None


def _described(node: fx.Node) -> str:
    read = ", ".join(f"%{x.name}" for x in node.all_input_nodes)
    place = ", ".join(x for x in (access.layer_path(node), access.source_line(node)) if x)
    return f"%{node.name} = {node.target}({read})" + (f" [{place}]" if place else "")
