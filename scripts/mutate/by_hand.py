"""Right rewrites as people write them: collectives in chunks, in buckets, written by others.

Nothing here asks the checker or the planner: each form computes the same by definition, and the
campaign asks by simulation whether it does, and the checker whether it is proved.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.collectives import TARGETS, Collective, Kind, insert
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import evaluate
from compiler.ir.mesh import Mesh
from compiler.ir.row_ops import resized
from scripts.mutate.draft import Draft, NothingToBreakError
from scripts.mutate.judge import Pair
from tests.support.random_graphs import MESHES, random_graph

aten = torch.ops.aten
THREE_AXES = Mesh({"dp": 2, "tp": 2, "ep": 2}, groups={"outer": [[0, 2, 4, 6], [1, 3, 5, 7]]})
Form = Callable[["Writer", Collective], fx.Node]


class Writer:
    """Writes nodes behind the operand of one collective."""

    def __init__(self, draft: Draft, wait: fx.Node) -> None:
        self.draft, self.wait, self.mesh = draft, wait, draft.spmd.mesh

    def call(self, op: Any, *args: Any) -> fx.Node:
        """A call of an op."""
        with self.wait.graph.inserting_before(self.wait):
            node = self.wait.graph.call_function(op, args)
        evaluate(node)
        return node

    def collective(self, kind: Kind, x: fx.Node, group: str, op: str = "") -> fx.Node:
        """A collective, waited for."""
        ranks, rows = self.mesh.group(group).axis_size, access.shape(x)[0]
        with self.wait.graph.inserting_before(self.wait):
            if kind is Kind.ALL_TO_ALL:
                splits = [int(rows) // ranks] * ranks
                node = self.wait.graph.call_function(TARGETS[kind], (x, splits, splits, group))
                node.meta["val"] = access.tensor(x)
                wait = self.wait.graph.call_function(
                    torch.ops._c10d_functional.wait_tensor.default, (node,)
                )
                wait.meta["val"] = access.tensor(x)
                return wait
            gives = {Kind.ALL_GATHER: rows * ranks, Kind.REDUCE_SCATTER: int(rows) // ranks}
            example = resized(access.tensor(x), 0, gives.get(kind, rows))
            counted = 0 if kind is Kind.ALL_REDUCE else ranks
            return insert(kind, x, group, op=op, ranks=counted, gives=example)

    def slice(self, x: fx.Node, dim: int, start: int, end: int) -> fx.Node:
        """A range of a dimension."""
        return self.call(aten.slice.Tensor, x, dim, start, end)

    def dim(self, x: fx.Node, least: int = 2) -> tuple[int, int]:
        """A dimension of known size, and the size."""
        sizes = enumerate(access.shape(x))
        return self.draft.pick((d, n) for d, n in sizes if type(n) is int and n >= least)


def in_chunks(write: Writer, one: Collective) -> fx.Node:
    """Each part of a dimension is reduced by itself."""
    dim, size = write.dim(one.operand)
    at = write.draft.rng.randint(1, size - 1)
    ranges = ((0, at), (at, size))
    parts = [write.slice(one.operand, dim, *ends) for ends in ranges]
    reduced = [write.collective(Kind.ALL_REDUCE, x, one.group, one.op) for x in parts]
    return write.call(aten.cat.default, reduced, dim)


def in_a_bucket(write: Writer, one: Collective) -> fx.Node:
    """Reduced together with something else, flat."""
    x = one.operand
    other = write.call(aten.neg.default, x)
    flat = [write.call(aten.reshape.default, y, [-1]) for y in (other, x)]
    total = write.collective(Kind.ALL_REDUCE, write.call(aten.cat.default, flat), one.group, one.op)
    count = int(access.tensor(x).numel())
    parts = write.call(aten.split.Tensor, total, count)
    return write.call(
        aten.view.default, write.call(operator.getitem, parts, 1), list(access.shape(x))
    )


def stacked(write: Writer, one: Collective) -> fx.Node:
    """Reduced together with something else, along a dimension of their own."""
    other = write.call(aten.neg.default, one.operand)
    at = write.draft.rng.randint(0, len(access.shape(other)))
    both = write.call(aten.stack.default, [one.operand, other], at)
    total = write.collective(Kind.ALL_REDUCE, both, one.group, one.op)
    return write.call(operator.getitem, write.call(aten.unbind.int, total, at), 0)


def by_gathering(write: Writer, one: Collective) -> fx.Node:
    """All ranks' values gathered, and reduced on each."""
    ranks, shape = write.mesh.group(one.group).axis_size, list(access.shape(one.operand))
    every = write.collective(Kind.ALL_GATHER, one.operand, one.group)
    apart = write.call(aten.view.default, every, [ranks, *shape])
    reduce: Mapping[str, tuple[Any, Sequence[Any]]] = {
        "sum": (aten.sum.dim_IntList, [[0]]), "avg": (aten.mean.dim, [[0]]),
        "max": (aten.amax.default, [[0]]), "min": (aten.amin.default, [[0]]),
        "product": (aten.prod.dim_int, [0]),
    }  # fmt: skip
    op, args = reduce[one.op]
    return write.call(op, apart, *args)


def turned(write: Writer, one: Collective) -> fx.Node:
    """Reduced with dimensions in another order."""
    rank = len(access.shape(one.operand))
    order = write.draft.rng.sample(range(rank), rank)
    x = write.call(aten.permute.default, one.operand, order)
    x = write.collective(Kind.ALL_REDUCE, write.call(aten.clone.default, x), one.group, one.op)
    return write.call(aten.permute.default, x, [order.index(d) for d in range(rank)])


def scattered_and_gathered(write: Writer, one: Collective) -> fx.Node:
    """Each rank reduces some rows, and all gather them."""
    _divides(write, one, access.shape(one.operand)[0])
    own = write.collective(Kind.REDUCE_SCATTER, one.operand, one.group, one.op)
    return write.collective(Kind.ALL_GATHER, own, one.group)


def by_exchanging(write: Writer, one: Collective) -> fx.Node:
    """Every rank is sent its rows by all others, and reduces them."""
    ranks, (rows, *rest) = write.mesh.group(one.group).axis_size, access.shape(one.operand)
    _divides(write, one, rows)
    sent = write.collective(Kind.ALL_TO_ALL, one.operand, one.group)
    apart = write.call(aten.view.default, sent, [ranks, int(rows) // ranks, *rest])
    total = write.call(aten.sum.dim_IntList, apart, [0])
    return total if one.op == "sum" else write.call(aten.div.Tensor, total, ranks)


def in_halves(write: Writer, one: Collective) -> fx.Node:
    """Columns gathered apart."""
    dims = enumerate(access.shape(one.operand))
    dim, size = write.draft.pick((d, n) for d, n in dims if d and type(n) is int and n > 1)
    parts = [write.slice(one.operand, dim, *ends) for ends in ((0, 1), (1, size))]
    gathered = [write.collective(Kind.ALL_GATHER, x, one.group) for x in parts]
    return write.call(aten.cat.default, gathered, dim)


def with_padding(write: Writer, one: Collective) -> fx.Node:
    """Rows gathered with padding behind each rank's, which is cut off."""
    x, ranks = one.operand, write.mesh.group(one.group).axis_size
    rows, *rest = access.shape(x)
    padded = write.call(aten.constant_pad_nd.default, x, [0, 0] * len(rest) + [0, 2])
    every = write.collective(Kind.ALL_GATHER, padded, one.group)
    apart = write.call(aten.view.default, every, [ranks, rows + 2, *rest])
    return write.call(aten.reshape.default, write.slice(apart, 1, 0, rows), [ranks * rows, *rest])


def _divides(write: Writer, one: Collective, rows: Any) -> None:
    if type(rows) is not int or rows % write.mesh.group(one.group).axis_size:
        raise NothingToBreakError


REDUCES = (in_chunks, in_a_bucket, stacked, by_gathering, turned, scattered_and_gathered)
FORMS: Mapping[Kind, Sequence[Form]] = {
    Kind.ALL_REDUCE: REDUCES,
    Kind.REDUCE_SCATTER: (by_exchanging,),
    Kind.ALL_GATHER: (in_halves, with_padding),
}
"""Kind of collective -> other ways to write it."""


def rewritten(graph: SpmdGraph, rng: random.Random) -> tuple[SpmdGraph, str]:
    """One collective of a graph in another form: the graph, and the form's name.

    Raises:
        NothingToBreakError: the graph has no collective that the form fits.
    """
    draft = Draft.of(graph, rng)
    wait, one = draft.pick(draft.waits(*FORMS))
    form = rng.choice(FORMS[one.kind])
    fits = one.operand.meta["val"].dim() > 0 and (
        one.op in ("sum", "avg") or form is not by_exchanging
    )
    if not fits or access.dtype(one.operand) is not torch.float64:
        raise NothingToBreakError
    (started,) = wait.all_input_nodes
    wait.replace_all_uses_with(form(Writer(draft, wait), one))
    for node in (wait, started):
        wait.graph.erase_node(node)
    return SpmdGraph(graph.root, wait.graph, graph.mesh, graph.inputs), form.__name__


def by_hand(seed: int) -> Pair:
    """A random graph over a mesh of up to three axes, one of its collectives in another form."""
    rng = random.Random(seed)
    while True:
        mesh = rng.choice((*MESHES, THREE_AXES))
        source = random_graph(rng.choice, rng.randint(4, 12), mesh=mesh)
        try:
            target, form = rewritten(source, rng)
        except NothingToBreakError:
            continue
        return Pair(f"{form} in random graph {seed}", source, target, bound=4)
