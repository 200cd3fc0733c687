"""What becomes of gathered rows: summed by hand, rearranged, used in part, or taken as they are."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Collective, Kind
from compiler.ir.placement import Partial, Shard
from compiler.ir.rules import BROADCAST, Meaning, contraction
from compiler.linter.facts import Known, concrete_shape, listed
from compiler.linter.finding import Finding

aten = torch.ops.aten
PIECES = frozenset(
    {aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int}
)
"""Ops of several results, consecutive ranges of their operand."""
PICKS = frozenset({aten.slice.Tensor, aten.narrow.default})
"""Ops that keep a range of their operand."""
SUMS = frozenset(
    {aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default, aten.einsum.default}
)


def gathered(
    known: Known, node: fx.Node, what: Collective, axes: tuple[str, ...]
) -> Iterator[Finding]:
    """What is wrong with an all_gather or a broadcast, by what becomes of its result."""
    held, name = known.states[what.operand], known.name(what.operand)
    partial = [a for a in axes if isinstance(held[a], Partial)]
    if partial:
        if what.kind is Kind.BROADCAST or not _sums_by_hand(known, node):
            yield known.finding(
                "gathers-partial",
                node,
                f"{what.kind} over {listed(axes)} of {name}, a partial sum over {listed(partial)}: "
                "its addends are handed out and never summed",
                f"all_reduce({name}) over {listed(partial)}",
            )
        return
    cut = [p.dim for a in axes if isinstance(p := held[a], Shard)]
    if what.kind is not Kind.ALL_GATHER or not cut:
        return
    if cut[0] != 0 and (reader := _taken_as_rows(known, node)) is not None:
        yield known.finding(
            "wrong-gather-dim",
            node,
            f"all_gather puts the blocks of {name} one below the other along dimension 0, but they "
            f"are cut along dimension {cut[0]}; {known.name(reader)} reads the rows as they are",
            f"transpose {name} first, or split what is gathered into {known.ranks(axes)} blocks "
            f"and join them along dimension {cut[0]}",
        )
    elif cut[0] == 0 and (used := _used_blocks(known, node, known.ranks(axes))) is not None:
        yield known.finding(
            "unused-chunks",
            node,
            f"all_gather over {listed(axes)} of {name}, of whose {known.ranks(axes)} blocks only "
            f"block {', '.join(map(str, used))} is used: the rows of the other ranks are lost",
            f"use all of {known.name(node)}, or all blocks joined along dimension 0",
        )


def is_compressed(known: Known, node: fx.Node) -> bool:
    """Whether a partial sum is quantized in order to be exchanged and summed by hand.

    That is: from it, by calls that are no products, come elements of one byte that a gather or an
    all_to_all hands to the other ranks.
    """
    for reached in _descendants(known, node):
        if reached.target in OPS and OPS[reached.target] in (Kind.ALL_GATHER, Kind.ALL_TO_ALL):
            found = access.tensor(access.operands(reached)[0])
            if found.element_size() == 1 and found.dtype is not torch.bool:
                return True
    return False


def _descendants(known: Known, start: fx.Node) -> Iterator[fx.Node]:
    """What is computed from ``start``, up to collectives, matrix products and opaque ops."""
    stack, seen = list(start.users), set(start.users)
    while stack:
        node = stack.pop()
        yield node
        if known.meanings.get(node) is None or node.target in contraction.RULES:
            continue
        stack += [user for user in node.users if user not in seen]
        seen |= set(node.users)


def _waited(node: fx.Node) -> list[fx.Node]:
    """The results of the collective that ``node`` starts."""
    return [user for user in node.users if user.target is WAIT]


def _sums_by_hand(known: Known, node: fx.Node) -> bool:
    """Whether ranks' parts are summed after the gather: over a dimension, or piece by piece."""
    stack = _waited(node)
    parts = set(stack)
    while stack:
        for user in stack.pop().users:
            rule = known.meanings.get(user)
            terms = () if rule is None or rule.terms is None else rule.terms
            pieces = {x for x in access.operands(user) if x in parts}
            if user.target in SUMS or (len(terms) > 1 and len(pieces) > 1):
                return True
            if len(terms) == 1 and user not in parts and user.target not in contraction.RULES:
                parts.add(user)
                stack.append(user)
    return False


def _taken_as_rows(known: Known, node: fx.Node) -> fx.Node | None:
    """The first op that combines the gathered rows with others as they are."""
    stack = _waited(node)
    while stack:
        for user in stack.pop().users:
            rule = known.meanings.get(user)
            if rule is None or _moves(rule):
                continue
            if rule.pointwise and _reads_one(rule, user):
                stack.append(user)
            else:
                return user
    return None


def _reads_one(rule: Meaning, node: fx.Node) -> bool:
    """Whether an op reads the elements of one tensor."""
    reads = rule.reads
    return len(access.operands(node) if reads is None else reads) == 1


def _moves(rule: Meaning) -> bool:
    """Whether an op rearranges, cuts or picks elements of one tensor."""
    terms = rule.terms or ()
    return len(terms) == 1 and len(terms[0].operands) == 1 and terms[0].map is not BROADCAST


def _used_blocks(known: Known, node: fx.Node, count: int) -> tuple[int, ...] | None:
    """Which of ``count`` blocks are read; None where all are, or may be."""
    found: set[int] = set()
    rows, *rest = concrete_shape(node)
    for reader in (user for wait in _waited(node) for user in wait.users):
        shape = concrete_shape(reader) if access.is_tensor(reader) else ()
        if shape == (count, rows // count, *rest):
            readers = list(reader.users)
            if any(x.target is not aten.select.int or x in known.unsure for x in readers):
                return None
            found |= {int(access.arguments(x)["index"]) % count for x in readers}
        elif reader in known.unsure:
            return None
        elif (used := _picked(reader, node, count)) is not None:
            found |= used
        else:
            return None
    return tuple(sorted(found)) if 0 < len(found) < count else None


def _picked(reader: fx.Node, node: fx.Node, count: int) -> set[int] | None:
    """Blocks that an op picks along dimension 0, None if it does something else."""
    given = access.arguments(reader)
    if reader.target not in PIECES | PICKS or given.get("dim") != 0:
        return None
    rows = concrete_shape(node)[0] // count
    if reader.target in PIECES:
        pieces = access.value(reader)
        if [access.concrete(piece.shape[0]) for piece in pieces] != [rows] * count:
            return None
        return {i for x in reader.users if (i := access.projection(x)) is not None and x.users}
    start = given.get("start") or 0
    if concrete_shape(reader)[0] != rows or isinstance(start, access.RankInt):
        return None
    at = access.concrete(start)
    return {at // rows} if at % rows == 0 else None
