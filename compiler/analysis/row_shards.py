"""Row analysis: which values may be held as shares of rows, one per rank, instead of whole.

A value that all ranks of each group hold alike has two forms: whole (W), and this rank's share (S)
of its rows, along its first dimension that is not of size one. Values with a share form are

    an all_reduce of x            S is the reduce_scatter of x
    an all_gather of shares       S is its operand
    an op that treats rows alike  S is the op on shares of the operands that carry the rows

Everything else a share may be cut from: from W, S is free (``all_slice``).

Direction  forward, one look at each value.
Result     node -> RowForm; the graph is not touched.
Refuses    an op that mixes rows, moves them to another dimension, or is told their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from compiler.analysis.cache import cached
from compiler.analysis.replication import replicated_over, replication
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Collective, Kind, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.row_ops import AUTHORED, all_slice, resized, share
from compiler.ir.rules import Meaning
from compiler.ir.rules.meaning import size_key
from compiler.ir.scale_rows import SIZE_ARGUMENTS

SIZE_READ = torch.ops.aten.sym_size.int


@dataclass(frozen=True)
class RowForm:
    """The share form of a value.

    Attributes:
        carrying: operands of which a share is read; all others are read whole.
        communicates: the collective whose result the value is, None for other ops.
    """

    carrying: tuple[fx.Node, ...]
    communicates: Collective | None = None


@dataclass(frozen=True)
class RowAssignment:
    """A placement, Replicate or a shard of the rows, for values that may be held as shards.

    Attributes:
        graph: whose values.
        group: name of the replica groups that share rows.
        shards: values of which each rank holds its rows; the others are Replicate.
        dispatched: partial sums for which ranks send each other rows, instead of gathering all and
            adding up with a reduce_scatter.
    """

    graph: SpmdGraph
    group: str
    shards: frozenset[fx.Node]
    dispatched: frozenset[fx.Node] = frozenset()

    @property
    def groups(self) -> ReplicaGroups:
        """The ranks that share rows."""
        return self.graph.mesh.group(self.group)

    @cached_property
    def forms(self) -> Mapping[fx.Node, RowForm]:
        """The shards, in graph order, with their forms."""
        forms = row_forms(self.graph, self.groups)
        return {node: form for node, form in forms.items() if node in self.shards}

    def misfit(self) -> str:
        """Return why no graph can compute this assignment, empty if one can."""
        if others := sorted(self.shards - self.forms.keys()):
            return f"%{others[0].name} cannot be computed as shards"
        reduced = {form.communicates.operand for form in self.forms.values() if form.communicates}
        if others := sorted(self.dispatched - reduced):
            return f"%{others[0].name} is not the operand of a reduction to shards"
        for node in self.graph.graph.nodes:
            if (node in self.shards) != (access.computed_by(node) in self.shards):
                return f"%{node.name} is not placed as the op that it is a result of"
        return ""


@cached
def row_forms(graph: SpmdGraph, groups: ReplicaGroups) -> Mapping[fx.Node, RowForm]:
    """All values that the ranks of each group may share by rows, in graph order."""
    classes = replication(graph)
    forms: dict[fx.Node, RowForm] = {}
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target in OPS or not access.is_operand(node):
            continue
        if rows_of(node) in (None, 0) or not replicated_over(classes[node], groups):
            continue
        if node.target is WAIT:
            form = _communicated(graph, node, groups)
        else:
            form = _computed(graph, node, groups, forms)
        if form is not None:
            forms[node] = form
    return forms


def over(graph: SpmdGraph, node: fx.Node, groups: ReplicaGroups) -> Collective | None:
    """Return the collective over ``groups`` whose result ``node`` is."""
    what = collective(node) if node.target is WAIT else None
    return what if what is not None and graph.mesh.group(what.group) == groups else None


def row_dim(value: Any) -> int | None:
    """The dimension that counts rows: the first that is not of size one; None if there is none."""
    if not isinstance(value, torch.Tensor):
        return None
    return next((d for d, size in enumerate(value.shape) if size_key(size) != 1), None)


def rows_of(node: fx.Node) -> Any:
    """Number of rows of the value, or of each of its results; None if there is no one number."""
    dims = [(x, row_dim(x)) for x in _parts(node)]
    sizes = {None if d is None else size_key(x.shape[d]) for x, d in dims}
    return sizes.pop() if len(sizes) == 1 else None


def rows_and_dim(node: fx.Node) -> tuple[int | torch.SymInt, int]:
    """Number of rows of a value that has some, and the dimension that counts them."""
    part, *_ = _parts(node)
    dim = row_dim(part)
    assert dim is not None, f"%{node.name} has no rows"
    return part.shape[dim], dim


def share_of(value: Any, ranks: int) -> Any:
    """Empty tensors like ``value``, with the rows that each of ``ranks`` ranks holds of it."""
    if isinstance(value, list | tuple):
        return type(value)(share_of(x, ranks) for x in value)
    dim = row_dim(value)
    return value if dim is None else resized(value, dim, share(value.shape[dim], ranks))


def _parts(node: fx.Node) -> Sequence[Any]:
    value = access.value(node)
    return value if isinstance(value, list | tuple) else (value,)


def _communicated(graph: SpmdGraph, node: fx.Node, groups: ReplicaGroups) -> RowForm | None:
    what = over(graph, node, groups)
    if what is None or what.kind not in (Kind.ALL_REDUCE, Kind.ALL_GATHER):
        return None
    gathers_others = what.kind is Kind.ALL_GATHER and row_dim(access.value(what.operand)) != 0
    return None if gathers_others else RowForm((), communicates=what)


def _computed(
    graph: SpmdGraph, node: fx.Node, groups: ReplicaGroups, forms: Mapping[fx.Node, RowForm]
) -> RowForm | None:
    if access.projection(node) is not None:
        (source,) = access.operands(node)
        return RowForm((source,)) if source in forms else None
    rule = graph.meanings.get(node)
    if rule is None or rule.random or rule.rank_dependent:
        return None
    carrying = row_operands(node, rule, [row_dim(x) for x in _parts(node)])
    if carrying is None or any(d != row_dim(access.value(x)) for x, d in carrying.items()):
        return None
    if any(rows_of(x) != rows_of(node) for x in carrying) or _told_rows(node):
        return None
    classes = replication(graph)
    if not all(replicated_over(classes[x], groups) for x in access.operands(node)):
        return None
    return RowForm(tuple(carrying))


def row_operands(
    node: fx.Node, rule: Meaning, dims: Iterable[int | None]
) -> dict[fx.Node, int] | None:
    """Return the operands whose rows the rows of the results are made of, one by one.

    Args:
        node: a call.
        rule: of its op.
        dims: per result, the dimension that counts its rows; None for one without rows.

    Returns:
        Operand -> the dimension that counts its rows; None where the op mixes rows, makes some, or
        reads one operand in two ways.
    """
    if rule.dims is None:
        return None
    counting = zip(rule.dims.results, dims, strict=False)
    factors = {labels[d] if labels else None for labels, d in counting if d is not None}
    if len(factors) != 1 or None in factors:
        return None
    (factor,) = factors
    read = zip(access.operands(node), rule.dims.operands, strict=True)
    ways = [(x, labels.index(factor) if factor in labels else None) for x, labels in read]
    dim_of = dict(ways)
    carrying = {x: d for x, d in dim_of.items() if d is not None}
    return carrying if carrying and len(dim_of) == len(set(ways)) else None


def _told_rows(node: fx.Node) -> bool:
    """Whether an argument that may depend on the number of rows does not state the result's sizes.

    So do numbers computed in the graph, and lists of sizes under another name.
    """
    written = access.written_arguments(node)
    if any(_leaves_open(node, written.get(name)) for name in SIZE_ARGUMENTS):
        return True
    others = [x for name, x in written.items() if name not in SIZE_ARGUMENTS]
    return any(isinstance(x, fx.Node) and not access.is_operand(x) for x in tree_leaves(others))


def _leaves_open(node: fx.Node, sizes: Any) -> bool:
    """Whether a list of sizes leaves one to the op (-1) that is neither that of rows nor known."""
    if not isinstance(sizes, list | tuple):
        return False
    rows = row_dim(access.value(node))
    pairs = enumerate(zip(sizes, access.shape(node), strict=True))
    return any(s == -1 and d != rows and not isinstance(size, int) for d, (s, size) in pairs)


def reads_share(graph: SpmdGraph, reader: fx.Node, groups: ReplicaGroups) -> bool:
    """Whether ``reader`` is the author's own cut of the rows that the ranks of a group share."""
    cut = all_slice(reader)
    if cut is None or cut.dim != row_dim(access.value(cut.operand)):
        return False
    return graph.mesh.group(cut.group) == groups


def at_hand(
    graph: SpmdGraph, groups: ReplicaGroups, forms: Mapping[fx.Node, RowForm]
) -> frozenset[fx.Node]:
    """Values whose shares cost no more than the whole, on any machine.

    Those of which nobody reads all rows, and those computed from nothing but gathered shares, as
    long as ranks share their rows evenly: padding costs.
    """
    gathered: set[fx.Node] = set()
    for node, form in forms.items():
        if form.communicates is None:
            is_gathered = bool(form.carrying) and gathered.issuperset(form.carrying)
        else:
            is_gathered = form.communicates.kind is Kind.ALL_GATHER
        if is_gathered and rows_of(node) % groups.axis_size == 0:
            gathered.add(node)
    return frozenset(gathered) | only_own_rows_read(graph, groups, by_author=True)


@cached
def only_own_rows_read(
    graph: SpmdGraph, groups: ReplicaGroups, *, by_author: bool = False
) -> frozenset[fx.Node]:
    """Values of which every rank reads its own rows alone, as many as the others.

    Args:
        graph: the SPMD graph.
        groups: ranks that share rows.
        by_author: what the author computed on shares counts as reading them.
    """

    def reads_own(user: fx.Node) -> bool:
        return reads_share(graph, user, groups) or (
            by_author and groups in user.meta.get(AUTHORED, ())
        )

    if not any(map(reads_own, graph.graph.nodes)):
        return frozenset()
    forms, own_rows = row_forms(graph, groups), set[fx.Node]()
    for node in reversed(list(forms)):
        readers = [u for u in node.users if u.target is not SIZE_READ]
        if (
            rows_of(node) % groups.axis_size == 0
            and readers
            and all(
                reads_share(graph, u, groups)
                or ((u in own_rows or reads_own(u)) and u in forms and node in forms[u].carrying)
                for u in readers
            )
        ):
            own_rows.add(node)
    return frozenset(own_rows)
