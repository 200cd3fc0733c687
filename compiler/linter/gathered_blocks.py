"""Blocks that were gathered: where their elements end up before they are combined with others.

all_gather puts the blocks of all ranks one below the other along dimension 0. If they were cut
along another dimension, or over two axes of which the outer one is gathered first, their elements
are in order again only after the right view, permutation or cat. Which elements stand where is
found by running these ops on numbers: element i of the tensor that was cut is i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from math import prod
from typing import Any

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.collectives import WAIT, Collective, Kind, collective
from compiler.ir.placement import Shard
from compiler.ir.rules import BROADCAST, Meaning
from compiler.linter.facts import LintFacts

JOINS = (torch.ops.aten.cat.default, torch.ops.aten.stack.default)
MOST_ELEMENTS = 1 << 22
"""Elements on all ranks of what is followed; larger tensors are not."""

Numbers = tuple[torch.Tensor, ...]
"""Per rank, the numbers of the elements that it holds."""


@dataclass(frozen=True)
class Blocks:
    """A tensor that is cut over axes of the mesh.

    Attributes:
        sizes: of all of it.
        counts: axis -> dimension, number of its blocks with those of axes before, of this axis.
    """

    sizes: tuple[int, ...]
    counts: dict[str, tuple[int, int, int]]

    def block(self, numbers: torch.Tensor, axis: str) -> torch.Tensor:
        """Return which rank of an axis holds each element."""
        dim, blocks, own = self.counts[axis]
        index = numbers // prod(self.sizes[dim + 1 :]) % self.sizes[dim]
        return index // (self.sizes[dim] // blocks) % own


def misread(facts: LintFacts, node: fx.Node, gather: Collective) -> fx.Node | None:
    """Return the first op that combines gathered elements which are not in order; None if none.

    Args:
        facts: facts about the graph.
        node: starts an all_gather of shards.
        gather: the all_gather.
    """
    blocks = _blocks(facts, gather)
    if blocks is None or prod(blocks.sizes) * facts.graph.mesh.size > MOST_ELEMENTS:
        return None
    numbers: dict[fx.Node, Any] = {node: _gathered(facts, gather, _cut(facts, blocks))}
    axes = set(facts.spanned(gather))
    for user in facts.nodes[facts.nodes.index(node) + 1 :]:
        what, rule = collective(user), facts.rule(user)
        read = [x for x in _read(user, rule) if x in numbers]
        if not read or user.op == "output":
            continue
        if user.target is WAIT:
            numbers[user] = numbers[read[0]]
        elif what is not None:
            if what.kind is Kind.ALL_GATHER and blocks.counts.keys() >= {*facts.spanned(what)}:
                axes |= set(facts.spanned(what))
                numbers[user] = _gathered(facts, what, numbers[what.operand])
        elif (moved := _moved(facts, user, rule, numbers)) is not None:
            if not _is_settled(blocks, moved[0], axes):
                numbers[user] = moved
        elif (
            rule is not None
            and not _is_linear(rule)
            and any(_is_wrong(blocks, numbers[x][0], axes) for x in read)
        ):
            return user
    return None


def _blocks(facts: LintFacts, gather: Collective) -> Blocks | None:
    """Return how the operand of a gather is cut, the outermost axis first; None if it is not."""
    sizes = list(access.concrete_shape(gather.operand))
    counts: dict[str, tuple[int, int, int]] = {}
    for axis in facts.axes:
        placement = facts.placement(gather.operand, axis)
        if isinstance(placement, Shard):
            own = facts.ranks((axis,))
            sizes[placement.dim] *= own
            before = prod(n for dim, _, n in counts.values() if dim == placement.dim)
            counts[axis] = placement.dim, before * own, own
    cut = [axis in counts for axis in facts.spanned(gather)]
    return Blocks(tuple(sizes), counts) if cut and all(cut) else None


def _cut(facts: LintFacts, blocks: Blocks) -> Numbers:
    """Return what every rank holds."""
    mesh, names = facts.graph.mesh, list(facts.graph.mesh.axes)
    own = []
    for place in mesh.coordinates:
        x = torch.arange(prod(blocks.sizes), dtype=torch.int32).reshape(blocks.sizes)
        for axis, (dim, _, count) in blocks.counts.items():
            x = x.chunk(count, dim)[place[names.index(axis)]]
        own.append(x)
    return tuple(own)


def _gathered(facts: LintFacts, gather: Collective, numbers: Numbers) -> Numbers:
    group_of = facts.graph.mesh.group(gather.group).group_of
    return tuple(torch.cat([numbers[r] for r in group_of[rank]]) for rank in range(len(numbers)))


def _moved(
    facts: LintFacts, node: fx.Node, rule: Meaning | None, numbers: dict[fx.Node, Any]
) -> Any:
    """Return what an op that rearranges elements, or changes each by itself, gives; else None."""
    read = _read(node, rule)
    if any(x not in numbers for x in read):
        return None
    if rule is not None and rule.pointwise and len(read) == 1:
        return numbers[read[0]]
    is_move = rule is not None and moves(rule)
    if not is_move and access.projection(node) is None and node.target not in JOINS:
        return None

    def on(rank: int) -> Callable[[Any], Any]:
        return lambda x: numbers[x][rank] if x in numbers else access.concrete(access.value(x))

    try:
        results = []
        for rank in range(facts.graph.mesh.size):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), on(rank))
            args = fx.node.map_aggregate(args, partial(_number, rank=rank))
            results.append(node.target(*args, **kwargs))  # type: ignore[operator]
    except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError):
        return None
    return tuple(results)


def _number(argument: Any, rank: int) -> Any:
    argument = access.on_rank(argument, rank)
    return access.concrete(argument) if isinstance(argument, torch.SymInt) else argument


def moves(rule: Meaning) -> bool:
    """Return whether an op rearranges, cuts or picks elements of one tensor."""
    terms = rule.terms or ()
    single = bool(rule.parts) or (len(terms) == 1 and len(terms[0].operands) == 1)
    return single and rule.selection is not None and (not terms or terms[0].map is not BROADCAST)


def _read(node: fx.Node, rule: Meaning | None) -> list[fx.Node]:
    """Return the operands whose elements a call depends on."""
    operands = access.operands(node)
    reads = None if rule is None else rule.reads
    return [x for i, x in enumerate(operands) if reads is None or i in reads]


def _is_linear(rule: Meaning) -> bool:
    """Return whether an op is a sum over dimensions or the like, to which order need not matter."""
    terms = rule.terms or ()
    return len(terms) == 1 and len(terms[0].reads) == 1 and terms[0].map is not BROADCAST


def _is_settled(blocks: Blocks, numbers: Any, axes: set[str]) -> bool:
    """Return whether all elements are in order: what becomes of them then is meant so."""
    every = isinstance(numbers, torch.Tensor) and tuple(numbers.shape) == blocks.sizes
    return every and not _is_wrong(blocks, numbers, axes)


def _is_wrong(blocks: Blocks, numbers: Any, axes: set[str]) -> bool:
    """Return whether blocks are not in order, for no order of the dimensions, cut or as they are.

    Heads, into which the dimension that was cut is split, may stand before the tokens. Blocks that
    have a dimension of their own are in no order yet, unless sizes are those of all.
    """
    if not isinstance(numbers, torch.Tensor) or not numbers.numel():
        return False
    as_all = tuple(numbers.shape) == blocks.sizes
    if not as_all and any(_apart(blocks.block(numbers, axis)) for axis in axes):
        return False
    for order in permutations(range(numbers.dim())):
        if bool((numbers.permute(order).flatten().diff() > 0).all()):
            return False
    flat = numbers.flatten().to(torch.int64)
    index = torch.unravel_index(flat, blocks.sizes)
    for order in permutations(range(len(blocks.sizes))):
        place = torch.zeros_like(flat)
        for d in order:
            place = place * blocks.sizes[d] + index[d]
        if bool((place.diff() > 0).all()):
            return False
    return True


def _apart(rank_of: torch.Tensor) -> bool:
    """Return whether a dimension counts ranks, and nothing else."""
    for d in range(rank_of.dim()):
        line = rank_of
        for e in range(rank_of.dim()):
            line = line.narrow(e, 0, 1) if e != d else line
        if line.numel() > 1 and bool((line.diff(dim=d) != 0).all() & (rank_of == line).all()):
            return True
    return False
