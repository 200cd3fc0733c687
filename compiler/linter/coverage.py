"""Coverage: how much of a graph lint could look at. No finding says nothing of the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import fx

from compiler.analysis.placements import VARYING
from compiler.ir import access
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
    """

    inputs: int
    unknown_inputs: tuple[str, ...]
    products: int
    unknown_products: tuple[str, ...]

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
    )
