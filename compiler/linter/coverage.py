"""Coverage: how much of a graph lint could look at. No finding says nothing of the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import fx

from compiler.analysis.placements import VARYING
from compiler.ir import access
from compiler.ir.placement import Shard
from compiler.ir.rules import contraction
from compiler.linter.facts import LintFacts


@dataclass(frozen=True)
class Coverage:
    """The inputs and the matrix products of a graph; partial sums come from products.

    Attributes:
        inputs: number of tensors that the graph reads.
        unknown_inputs: names of those that vary between ranks in an unknown way.
        products: number of matrix products.
        unknown_products: where the results of those come from that vary in an unknown way: missing
            reductions of them are not found.
        own_parts: calls that need a dimension whole, as a softmax does, of which each rank has a
            block: right where the block is meant, as in a norm of groups.
    """

    inputs: int
    unknown_inputs: tuple[str, ...]
    products: int
    unknown_products: tuple[str, ...]
    own_parts: tuple[str, ...] = ()

    @property
    def percent(self) -> int:
        """The part of inputs and products whose placements are known, rounded down."""
        total = self.inputs + self.products
        unknown = len(self.unknown_inputs) + len(self.unknown_products)
        return 100 * (total - unknown) // total if total else 100


def coverage(facts: LintFacts, keys: Mapping[str, str] = MappingProxyType({})) -> Coverage:
    """Return what of a graph has known placements along every axis of several ranks.

    Args:
        facts: of the graph.
        keys: input -> the name to declare it by, where that is another.
    """

    def unknown(nodes: Iterable[fx.Node]) -> list[fx.Node]:
        return [n for n in nodes if any(facts.placement(n, a) == VARYING for a in facts.axes)]

    inputs = [n for n in facts.nodes if n.op in ("placeholder", "get_attr") and access.is_tensor(n)]
    products = [n for n in facts.nodes if n.target in contraction.RULES and n in facts.live]
    return Coverage(
        len(inputs),
        tuple(keys.get(str(n.target), str(n.target)) for n in unknown(inputs)),
        len(products),
        tuple(access.layer_path(n) or facts.name(n) for n in unknown(products)),
        tuple(
            f"{facts.op(n)} in {access.layer_path(n) or facts.name(n)}"
            for n in facts.nodes
            if n in facts.live and any(_reads_own_part(facts, n, axis) for axis in facts.axes)
        ),
    )


def _reads_own_part(facts: LintFacts, node: fx.Node, axis: str) -> bool:
    """Return whether a call computes from a whole dimension, and a rank has a block of that."""
    rule = facts.rule(node)
    if (
        rule is None
        or rule.terms is not None
        or rule.dims is None
        or facts.placement(node, axis) != VARYING
    ):
        return False
    for x, labels in zip(access.operands(node), rule.dims.operands, strict=True):
        placement = facts.placement(x, axis)
        if isinstance(placement, Shard) and labels[placement.dim] is None:
            return True
    return False
