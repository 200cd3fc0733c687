"""Addition trees: what is added up, in however many steps.

A tree is additions of two values, or of a value and a number, whose results are laid out alike;
all but the last, its root, are read by the next one alone. Its leaves are what they add otherwise.
By associativity and commutativity the root is the sum of the leaves, in any order and grouping.
Where one leaf is laid out as the root, partial sums that start with it are too, so that a leaf
that broadcasts may come in anywhere after it.

Direction  backward, one look at each value.
Result     ``Tree`` per root; the graph is not touched.
Refuses    additions that cast, of booleans, of a value to itself, scaled (alpha), or neither of
           whose operands is laid out as the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.rules.meaning import layout_key

aten = torch.ops.aten
ADD = (aten.add.Tensor, aten.add.Scalar)


@dataclass(frozen=True)
class Tree:
    """One tree; ``additions`` in graph order, of which the last is the root."""

    additions: tuple[fx.Node, ...]

    @property
    def root(self) -> fx.Node:
        """The addition that gives the sum."""
        return self.additions[-1]

    @property
    def leaves(self) -> Iterator[Any]:
        """Values and numbers that are added up, in the author's order."""
        additions, queue = set(self.additions), [self.root]
        while queue:
            at = queue.pop()
            if at in additions:
                queue += reversed(operands(at))
            else:
                yield at


def may_have_trees(graph: SpmdGraph) -> bool:
    """Whether any addition reads another: without that there is no tree."""
    return any(n.target in ADD and any(u.target in ADD for u in n.users) for n in graph.graph.nodes)


def trees(graph: SpmdGraph, apart: Set[fx.Node] = frozenset()) -> tuple[Tree, ...]:
    """Trees of two additions or more; ``apart`` are values that stay as they are."""
    root_of: dict[fx.Node, fx.Node] = {}
    for node in reversed(graph.graph.nodes):
        if node in apart or not is_addition(graph, node):
            continue
        reader = next(iter(node.users)) if len(node.users) == 1 else node
        inner = reader in root_of and like(node, reader)
        root_of[node] = root_of[reader] if inner else node
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(root_of):
        found.setdefault(root_of[node], []).append(node)
    return tuple(Tree(tuple(held)) for held in found.values() if len(held) > 1)


def is_addition(graph: SpmdGraph, node: fx.Node) -> bool:
    """Whether ``node`` may be part of a tree."""
    if node.target not in ADD or (rule := graph.meanings[node]) is None or rule.terms is None:
        return False
    left, right = operands(node)
    return (
        access.arguments(node)["alpha"] == 1
        and left is not right
        and (like(left, node) or like(right, node))
    )


def operands(addition: fx.Node) -> tuple[Any, Any]:
    """What is added: two values, or a value and a number."""
    written = access.written_arguments(addition)
    return written["self"], written["other"]


def like(value: Any, node: fx.Node) -> bool:
    """Whether a value is laid out as ``node``: same shape, strides and element type."""
    if not isinstance(value, fx.Node) or not access.is_tensor(value):
        return False
    return layout_key(access.tensor(value)) == layout_key(access.tensor(node))
