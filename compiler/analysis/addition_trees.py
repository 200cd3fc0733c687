"""Addition trees: what is added up, in however many steps.

A tree is additions of two values, or of a value and a number, and differences of such, whose
results are laid out alike; all but the last, its root, are read by the next one alone. Its leaves
are what they add otherwise, each with a coefficient: the product of signs and alphas on its way.
By associativity and commutativity the root is the sum of coefficient * leaf, in any order and
grouping. Where one leaf is laid out as the root, partial sums that start with it are too, so that
a leaf that broadcasts may come in anywhere after it.

Direction  backward, one look at each value.
Result     ``Tree`` per root; the graph is not touched.
Refuses    additions that cast, of booleans, of a value to itself, with an alpha that is not a
           number or is zero, or neither of whose operands is laid out as the result; coefficients
           that no number of the program can be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.rules.meaning import same_layout

aten = torch.ops.aten
DIFFERENCES = (aten.sub.Tensor, aten.sub.Scalar)
ADDITIONS = (aten.add.Tensor, aten.add.Scalar, *DIFFERENCES)

Term = tuple[Any, Fraction]
"""A value or a number, and its coefficient."""


@dataclass(frozen=True)
class Tree:
    """One tree; ``additions`` in graph order, of which the last is the root."""

    additions: tuple[fx.Node, ...]

    @property
    def root(self) -> fx.Node:
        """The addition that gives the sum."""
        return self.additions[-1]

    @property
    def terms(self) -> Iterator[Term]:
        """What is added up, in the author's order; the first has coefficient 1."""
        additions, queue = set(self.additions), [(self.root, Fraction(1))]
        while queue:
            at, coefficient = queue.pop()
            if at in additions:
                left, right = operands(at)
                queue += [(right, coefficient * factor(at)), (left, coefficient)]
            else:
                yield at, coefficient


def may_have_trees(graph: SpmdGraph) -> bool:
    """Whether any addition reads another: without that there is no tree."""
    return any(
        n.target in ADDITIONS and any(u.target in ADDITIONS for u in n.users)
        for n in graph.graph.nodes
    )


def trees(graph: SpmdGraph, apart: Set[fx.Node] = frozenset()) -> tuple[Tree, ...]:
    """Trees of two additions or more; ``apart`` are values that stay as they are."""
    root_of: dict[fx.Node, fx.Node] = {}
    coefficients: dict[fx.Node, Fraction] = {}
    for node in reversed(graph.graph.nodes):
        if node in apart or not is_addition(graph, node):
            continue
        root, coefficient = node, Fraction(1)
        reader = next(iter(node.users)) if len(node.users) == 1 else node
        if reader in root_of and like(node, reader):
            by = factor(reader) if operands(reader)[1] is node else 1
            if is_exact(product := coefficients[reader] * by, product * factor(node)):
                root, coefficient = root_of[reader], product
        root_of[node], coefficients[node] = root, coefficient
    additions: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(root_of):
        additions.setdefault(root_of[node], []).append(node)
    return tuple(Tree(tuple(every)) for every in additions.values() if len(every) > 1)


def is_addition(graph: SpmdGraph, node: fx.Node) -> bool:
    """Whether ``node`` may be part of a tree."""
    if node.target not in ADDITIONS:
        return False
    if (rule := graph.meanings[node]) is None or rule.terms is None:
        return False
    left, right = operands(node)
    alpha = access.arguments(node)["alpha"]
    scaled = isinstance(alpha, int | float) and math.isfinite(alpha) and alpha != 0
    return scaled and left is not right and (like(left, node) or like(right, node))


def factor(addition: fx.Node) -> Fraction:
    """What the second operand is multiplied by."""
    alpha = Fraction(access.arguments(addition)["alpha"])
    return -alpha if addition.target in DIFFERENCES else alpha


def is_exact(*coefficients: Fraction) -> bool:
    """Whether a program can state each of them as a number."""
    return all(abs(c) < 1 << 53 and float(c) == c for c in coefficients)


def operands(addition: fx.Node) -> tuple[Any, Any]:
    """What is added: two values, or a value and a number."""
    written = access.written_arguments(addition)
    return written["self"], written["other"]


def like(value: Any, node: fx.Node) -> bool:
    """Whether a value is laid out as ``node``: same shape, strides and element type."""
    return isinstance(value, fx.Node) and access.is_tensor(value) and same_layout(value, node)
