"""May rows be sent to the ranks that need them? What a computation must be for that, and its proof.

A region (inputs with one row per token, one partial sum of as many rows) may get any subset of the
rows, in any order, if it treats rows alike: output row t is one function of row t of the inputs.
It need not get rows for which it gives zero. Both are shown here, node by node:

    op by its factor labels      row by row, where dimension 0 of all that have rows is one factor
    views                        row by row, where dimension 0 holds whole tokens, in their order
    argsort(e), 1-d              an order of entries
    x[order], x[order // k]      entries, ordered; tokens of entries, ordered
    x[argsort(order)]            entries in their own order again
    searchsorted(e[order], …)    where each expert's entries end, in this order
    grouped product with that    row by row: each row meets the matrices of its own expert
    table[e]                     row by row
    where(owned, x, 0)           zero where a token owns none of its ids; so are products with it

``owned`` must be a function of single ids, and each rank's ids an interval; ids are known to lie
below the size of the dimension that ``topk`` chose them from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fractions import Fraction
from math import comb, prod
from typing import Any

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Kind
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import SIZE_ARGUMENTS
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.row_ops import ALL_SLICE
from compiler.ir.rules import Meaning
from compiler.ir.rules.builders import scalar
from compiler.ir.rules.meaning import BROADCAST, shape_key, size_key

aten = torch.ops.aten
VIEWS = frozenset({
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
    aten.unsqueeze.default, aten.squeeze.dim, aten.alias.default,
})  # fmt: skip
MOVES = VIEWS | {WAIT, ALL_SLICE, aten.slice.Tensor} | {
    op for op, kind in OPS.items() if kind is Kind.ALL_GATHER
}  # fmt: skip
"""Ops whose result has no elements but those of the operand, and zeros."""

WHERE = frozenset({aten.where.self, aten.where.ScalarOther})
ARGSORT = frozenset({aten.argsort.default, aten.argsort.stable})
GROUPED = frozenset(
    getattr(aten, name).default for name in ("_grouped_mm", "grouped_mm") if hasattr(aten, name)
)


@dataclass(frozen=True)
class Owners:
    """Which ids each rank of a group owns, by its position: first[r] <= id < end[r].

    Attributes:
        ids: the input that holds them, [rows, …].
        first: least ids.
        end: one more than the greatest.
        known: ids are less than this.
        per_row: number of ids in a row.
    """

    ids: fx.Node
    first: tuple[int, ...]
    end: tuple[int, ...]
    known: int
    per_row: int

    @property
    def copies(self) -> Fraction:
        """Ranks that a row goes to on average, if each choice of distinct ids is as likely."""
        every = comb(self.known, self.per_row)
        owned = (b - a for a, b in zip(self.first, self.end, strict=True))
        return sum((1 - Fraction(comb(self.known - n, self.per_row), every) for n in owned),
                   Fraction(0))  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """A value with rows.

    Attributes:
        entries: dimension 0 has so many entries per token, those of a token side by side.
        order: the argsort that they are ordered by; None: that of the tokens.
        zero: masks; where none of a token's own is set in any of them, all its entries are zero.
            None: nothing makes them zero.
        mask: the mask that they are a view of, if any.
        role: what the value is, if its elements number entries: "order", "inverse", "ends"; for
            "tokens", they number the tokens of entries.
    """

    entries: int
    order: fx.Node | None = None
    zero: frozenset[fx.Node] | None = None
    mask: fx.Node | None = None
    role: str = ""


class _RefusedError(Exception):
    """A reason why rows cannot be sent."""


def owners(
    graph: SpmdGraph, groups: ReplicaGroups, inputs: Sequence[fx.Node], nodes: Sequence[fx.Node]
) -> Owners | str:
    """Return who needs which rows of a region, or why its rows cannot be sent.

    Args:
        graph: the graph.
        groups: the ranks that would send rows to each other.
        inputs: [rows, …] each; all ranks of a group hold the same.
        nodes: the region, in order, its output last.
    """
    try:
        states = _RowStates(graph, inputs, nodes).states
        result = states[nodes[-1]]
        if result.role or result.order is not None or result.entries != 1:
            raise _RefusedError("its output has not one row per token, in the order of tokens")
        if not result.zero:
            raise _RefusedError("every rank computes all rows")
        return _owned(graph, groups, result.zero, inputs)
    except _RefusedError as refused:
        return str(refused)


class _RowStates:
    """What is known of every value of a region."""

    def __init__(
        self, graph: SpmdGraph, inputs: Sequence[fx.Node], nodes: Sequence[fx.Node]
    ) -> None:
        self.graph = graph
        self.rows = size_key(access.shape(inputs[0])[0])
        if isinstance(self.rows, int):
            raise _RefusedError("its number of rows is fixed: sizes are written as numbers")
        laws: list[tuple[Iterable[object], Callable[..., Rows]]] = [
            (VIEWS, self._view), (ARGSORT, self._argsort), (GROUPED, self._grouped),
            ([aten.index.Tensor], self._index), ([aten.searchsorted.Tensor], self._ends),
            ([aten.repeat_interleave.self_int], self._repeated),
            ([aten.floor_divide.default], self._divided), (WHERE, self._where),
        ]  # fmt: skip
        self.laws = {op: law for ops, law in laws for op in ops}
        self.states: dict[fx.Node, Rows] = {}
        for x in inputs:
            rule = graph.meanings.get(x)
            is_zero = rule is not None and rule.terms == ()  # as sums begin
            self.states[x] = Rows(1, zero=frozenset() if is_zero else None)
        for node in nodes:
            self.states[node] = self._state(node)

    def _state(self, node: fx.Node) -> Rows:
        read = access.operands(node)
        for x in read:
            if x not in self.states and any(map(self._counts_rows, shape_key(x.meta.get("val")))):
                raise _RefusedError(f"%{node.name} reads %{x.name}, which differs between rows")
        law = self.laws.get(node.target, self._by_labels)
        state = law(node, *(self.states.get(x) for x in read))
        is_mask = access.is_tensor(node) and access.dtype(node) is torch.bool
        if is_mask and not state.role and state.mask is None and node.target not in VIEWS:
            state = replace(state, mask=node)
        return state

    def _counts_rows(self, size: Any) -> bool:
        return bool(self.rows.free_symbols & getattr(size_key(size), "free_symbols", set()))

    def _entries(self, node: fx.Node) -> int:
        shape = access.shape(node)
        ratio = size_key(shape[0]) / self.rows if shape else None
        if ratio is None or not ratio.is_Integer:
            raise _RefusedError(f"dimension 0 of %{node.name} does not count rows")
        return int(ratio)

    def _by_labels(self, node: fx.Node, *read: Rows | None) -> Rows:
        rule = self.graph.meanings.get(node)
        if rule is None or rule.dims is None or rule.random or not access.is_tensor(node):
            raise _RefusedError(f"%{node.name} = {node.target} has no rule that keeps rows apart")
        (labels,) = rule.dims.results
        factor = labels[0] if labels else None
        carrying = [x for x in read if x is not None]
        apart = all(
            [d for d, label in enumerate(named) if label == factor] == ([] if x is None else [0])
            for x, named in zip(read, rule.dims.operands, strict=True)
        )
        alike = len({(x.entries, x.order) for x in carrying}) == 1
        if factor is None or factor in labels[1:] or not apart or not alike:
            raise _RefusedError(f"%{node.name} = {node.target} mixes rows")
        stated = {n: x for n, x in access.arguments(node).items() if n not in SIZE_ARGUMENTS}
        if any(map(self._counts_rows, stated.values())):
            raise _RefusedError(f"%{node.name} = {node.target} computes with the number of rows")
        if any(x.role for x in carrying):
            raise _RefusedError(f"%{node.name} = {node.target} computes with positions of rows")
        return Rows(carrying[0].entries, carrying[0].order, _zero(node, rule, read))

    def _view(self, node: fx.Node, x: Rows) -> Rows:
        entries = self._entries(node)
        if x.role or (x.order is not None and entries != x.entries):
            raise _RefusedError(f"%{node.name} = {node.target} regroups ordered rows")
        return replace(x, entries=entries)

    def _argsort(self, node: fx.Node, e: Rows) -> Rows:
        if len(access.shape(node)) != 1:
            raise _RefusedError(f"%{node.name} sorts within more than one dimension")
        if e.role == "order":
            return Rows(e.entries, e.order, role="inverse")
        if e.role or e.order is not None:
            raise _RefusedError(f"%{node.name} sorts what is ordered already")
        return Rows(e.entries, node, role="order")

    def _divided(self, node: fx.Node, x: Rows, *others: Rows | None) -> Rows:
        if x.role != "order":
            return self._by_labels(node, x, *others)
        if others or access.arguments(node)["other"] != x.entries:
            raise _RefusedError(f"%{node.name} does not give the tokens of ordered entries")
        return replace(x, role="tokens")

    def _index(self, node: fx.Node, x: Rows | None, *at: Rows | None) -> Rows:
        if len(access.arguments(node)["indices"]) != 1 or len(at) != 1 or at[0] is None:
            raise _RefusedError(f"%{node.name} is not indexed by one list of rows")
        j: Rows = at[0]
        if x is None and not j.role and len(access.shape(access.operands(node)[1])) == 1:
            return Rows(j.entries, j.order)  # a table's rows, chosen by what is in each row
        if x is None or x.role:
            raise _RefusedError(f"%{node.name} picks rows by position from what has none")
        in_order = x.order is None
        if j.role == "order" and in_order and x.entries == j.entries:
            return replace(x, order=j.order)
        if j.role == "tokens" and in_order and x.entries == 1:
            return replace(x, entries=j.entries, order=j.order)
        if j.role == "inverse" and x.order is j.order and x.entries == j.entries:
            return replace(x, order=None)
        raise _RefusedError(f"%{node.name} picks rows of other tokens")

    def _ends(self, node: fx.Node, entries: Rows | None, *_: Rows | None) -> Rows:
        ordered, numbers = access.operands(node)[:2]
        arguments = access.arguments(node)
        sorts = entries is not None and entries.order is not None and not entries.role
        keys = access.operands(ordered) if ordered.target is aten.index.Tensor else ()
        is_sorted = (
            sorts and len(keys) == 2
            and keys[1] is entries.order and access.operands(keys[1])[0] is keys[0]  # type: ignore[union-attr]
        )  # fmt: skip
        counted = access.arguments(numbers) if numbers.target is aten.arange.default else {}
        right = arguments.get("right") or arguments.get("side") == "right"
        if not is_sorted or not right or "end" not in counted or len(access.operands(node)) != 2:
            raise _RefusedError(f"%{node.name} does not say where each expert's entries end")
        return replace(entries, role="ends", zero=None, mask=None)  # type: ignore[type-var, return-value]

    def _grouped(self, node: fx.Node, x: Rows | None, *others: Rows | None) -> Rows:
        tables, ends = others[:-1], others[-1]
        fits = (
            x is not None and not x.role and ends is not None and ends.role == "ends"
            and ends.order is x.order and ends.entries == x.entries
            and all(t is None for t in tables) and len(tables) == 1
        )  # fmt: skip
        if not fits:
            raise _RefusedError(f"%{node.name} multiplies rows by matrices of other experts")
        assert x is not None, "checked above"
        return Rows(x.entries, x.order, x.zero)

    def _repeated(self, node: fx.Node, x: Rows) -> Rows:
        dim = access.arguments(node)["dim"]
        if x.role or x.order is not None or dim != 0:
            raise _RefusedError(f"%{node.name} repeats ordered rows, or not along dimension 0")
        return replace(x, entries=self._entries(node), mask=None)

    def _where(self, node: fx.Node, mask: Rows | None, *values: Rows | None) -> Rows:
        state = self._by_labels(node, mask, *values)
        other = scalar(access.arguments(node)["other"])
        if mask is not None and mask.mask is not None and other == 0:
            kept = values[0].zero if values[0] is not None else None
            return replace(state, zero=kept or frozenset([mask.mask]))
        return replace(state, zero=None)


def _zero(node: fx.Node, rule: Meaning, read: Sequence[Rows | None]) -> frozenset[fx.Node] | None:
    """Return masks without which every term of a multilinear op has a factor that is zero.

    Zero is zero in any type, so that products and conversions that round keep it too.
    """
    if node.target is aten.mul.Tensor or (rule.casts and len(read) == 1):
        return _any_zero(read)
    if rule.terms is None:
        return None
    every = [_any_zero([read[i] for i in term.operands]) for term in rule.terms]
    given_masks = [masks for masks in every if masks is not None]
    return frozenset().union(*given_masks) if len(given_masks) == len(every) else None


def _any_zero(factors: Sequence[Rows | None]) -> frozenset[fx.Node] | None:
    """Return masks without which one factor is zero, and with it their product."""
    return next((x.zero for x in factors if x is not None and x.zero is not None), None)


def _owned(
    graph: SpmdGraph, groups: ReplicaGroups, masks: Set[fx.Node], inputs: Sequence[fx.Node]
) -> Owners | str:
    """Return the ids for which a mask is set, rank by rank; or why that cannot be said."""
    path, id_nodes = dict[fx.Node, None](), set[fx.Node]()
    for mask in sorted(masks):
        traced = _traced(graph, mask, frozenset(inputs), path)
        if traced is None:
            return f"%{mask.name} is not a function of single ids"
        id_nodes |= traced
    if len(id_nodes) != 1:
        return f"{len(id_nodes)} inputs hold ids"
    (ids,) = id_nodes
    greatest = greatest_id(ids)
    per_row = [size_key(s) for s in access.shape(ids)[1:]]
    if greatest is None or not all(isinstance(s, int) for s in per_row):
        return f"%{ids.name}: nothing says how large ids may be"
    numbers = [c.values for node in path for c in access.rank_constants(node)]
    kinds = list(zip(*numbers, strict=True)) if numbers else [()] * graph.mesh.size
    set_of = {
        kind: _set_for(path, ids, masks, rank, greatest)
        for kind, rank in {kind: rank for rank, kind in enumerate(kinds)}.items()
    }
    id_sets = [set_of[kind] for kind in kinds]
    by_group = {tuple(id_sets[r] for r in group) for group in groups.ranks}
    if len(by_group) != 1:
        return "groups deal out ids differently"
    intervals = by_group.pop()
    if any(x is None for x in intervals):
        return "a rank's ids are not an interval"
    first, end = zip(*(x for x in intervals if x is not None), strict=True)
    return Owners(ids, first, end, greatest, prod(per_row))


def _traced(
    graph: SpmdGraph, node: fx.Node, inputs: frozenset[fx.Node], path: dict[fx.Node, None]
) -> set[fx.Node] | None:
    """Return what ``node`` is computed from element by element; None if not inputs alone."""
    if node in inputs:
        return {node}
    rule = graph.meanings.get(node) if node.op == "call_function" else None
    if rule is None or rule.random or not access.operands(node):
        return None
    if not rule.pointwise and not all(t.map is BROADCAST for t in rule.terms or (None,)):  # type: ignore[union-attr]
        return None
    sizes = {shape_key(x.meta["val"]) for x in (node, *access.operands(node))}
    traced = [_traced(graph, x, inputs, path) for x in access.operands(node)]
    path[node] = None
    sources = {x for each in traced for x in each or ()}
    return sources if len(sizes) == 1 and None not in traced else None


def _set_for(
    path: Mapping[fx.Node, None], ids: fx.Node, masks: Set[fx.Node], rank: int, greatest: int
) -> tuple[int, int] | None:
    """Return the interval of ids below ``greatest`` for which a mask is set on ``rank``."""
    values: dict[fx.Node, Any] = {ids: torch.arange(greatest, dtype=access.dtype(ids))}

    def read(item: Any) -> Any:
        return values[item] if isinstance(item, fx.Node) else access.on_rank(item, rank)

    for node in path:
        args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), read)
        assert callable(node.target), f"%{node.name} is not a call"
        values[node] = node.target(*args, **kwargs)
    owned = torch.stack([values[mask] for mask in masks]).any(0).nonzero().flatten().tolist()
    first, end = (owned[0], owned[-1] + 1) if owned else (0, 0)
    return (first, end) if end - first == len(owned) else None


def greatest_id(node: fx.Node) -> int | None:
    """Return what integers of this value stay below, by the topk they come from; None: unknown."""
    while node.op == "call_function":
        if access.projection(node) == 1 and access.operands(node)[0].target is aten.topk.default:
            (topk,) = access.operands(node)
            size = access.shape(access.operands(topk)[0])[int(access.arguments(topk)["dim"])]
            return size if isinstance(size, int) else None
        if node.target not in MOVES or len(access.operands(node)) != 1:
            return None
        (node,) = access.operands(node)
    return None
