"""Random well-formed SPMD graphs, and mutants of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from tests.graphs import Builder

aten, c10d = torch.ops.aten, torch.ops._c10d_functional
T = TypeVar("T")
Choose = Callable[[Sequence[T]], T]

MESH = Mesh({"dp": 2, "tp": 2}, groups={"both": [[0, 1, 2, 3]]})


def rank_int(*values: int) -> access.RankInt:
    return access.RankInt(values[0], values)


@dataclass
class Grower:
    """Adds random ops to a graph; ``pool`` are its float values so far."""

    build: Builder
    choose: Choose[Any]
    groups: tuple[str, ...] = ("tp", "tp", "dp")
    ops: tuple[str, ...] = ("sum", "sum", "sum", "avg", "max")
    pool: list[fx.Node] = field(default_factory=list)

    def pick(self, *shape: int) -> fx.Node:
        """A recent value, of a shape if one is asked for."""
        found = [n for n in self.pool if not shape or tuple(access.shape(n)) == shape]
        return self.choose(found[-4:] + found)  # type: ignore[no-any-return]

    def pair(self) -> tuple[fx.Node, fx.Node]:
        left = self.pick()
        return left, self.pick(*map(int, access.shape(left)))

    def square(self) -> fx.Node:
        """A value of shape [4, 4]: there always is one."""
        return self.pick(4, 4)

    def grow(self, kind: str) -> fx.Node | None:
        """One random op of a kind; None where no value suits it."""
        return MAKERS[kind](self)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.build.call(target, *args, **kwargs)

    def group(self) -> str:
        return self.choose(self.groups)  # type: ignore[no-any-return]

    def wide(self) -> fx.Node:
        """A value of 16 elements, whatever its shape."""
        return self.choose([n for n in self.pool if access.tensor(n).numel() == 16])  # type: ignore[no-any-return]

    def suited(self, *shapes: tuple[int, ...]) -> fx.Node | None:
        """A value of one of the shapes, if there is one."""
        found = [n for n in self.pool if tuple(access.shape(n)) in shapes]
        return self.choose(found) if found else None

    def stretched(self) -> fx.Node | None:
        low = self.suited((1, 4), (4, 1))
        return low and self.call(aten.expand.default, low, [4, 4])

    def gathered(self) -> fx.Node | None:
        half = self.suited((2, 4))
        return half and self.build.all_gather(half, self.group())

    def rank_sliced(self) -> fx.Node:
        start = rank_int(*self.choose(((0, 1, 0, 1), (0, 0, 1, 1), (1, 1, 1, 1))))
        return self.call(aten.narrow.default, self.square(), 1, start, 3)

    def added_by_index(self) -> fx.Node:
        into = self.choose((self.named("zeros"), self.square()))
        return self.call(aten.index_add.default, into, 0, self.named("index"), self.square())

    def masked(self) -> fx.Node:
        other = self.choose((self.named("zeros"), self.square()))
        return self.call(aten.where.self, self.named("mask"), self.square(), other)

    def named(self, name: str) -> fx.Node:
        (found,) = (n for n in self.build.graph.nodes if n.name == name)
        return found  # type: ignore[no-any-return]


MAKERS: dict[str, Callable[[Grower], fx.Node | None]] = {
    "add": lambda g: g.call(aten.add.Tensor, *g.pair()),
    "scaled add": lambda g: g.call(aten.add.Tensor, *g.pair(), alpha=g.choose((2, -1, 0.5))),
    "sub": lambda g: g.call(aten.sub.Tensor, *g.pair()),
    "mul": lambda g: g.call(aten.mul.Tensor, *g.pair()),
    "weigh": lambda g: g.call(aten.mul.Tensor, g.square(), g.named("row")),
    "scale": lambda g: g.call(aten.mul.Tensor, g.pick(), g.choose((2, 0.5, -1, 3))),
    "neg": lambda g: g.call(aten.neg.default, g.pick()),
    "silu": lambda g: g.call(aten.silu.default, g.pick()),
    "mm": lambda g: g.call(aten.mm.default, g.square(), g.named("w")),
    "view": lambda g: g.call(aten.reshape.default, g.square(), g.choose(([2, 8], [4, 2, 2]))),
    "unview": lambda g: g.call(aten.reshape.default, g.wide(), [4, 4]),
    "permute": lambda g: g.call(aten.permute.default, g.square(), [1, 0]),
    "slice": lambda g: g.call(aten.slice.Tensor, g.square(), 0, g.choose((0, 1, 2)), None),
    "rank slice": Grower.rank_sliced,
    "cat": lambda g: g.call(aten.cat.default, [g.square(), g.square()], g.choose((0, 1))),
    "sum": lambda g: g.call(aten.sum.dim_IntList, g.square(), [g.choose((0, 1))], True),
    "index_add": Grower.added_by_index,
    "expand": Grower.stretched,
    "where": Grower.masked,
    "all_reduce": lambda g: g.build.all_reduce(g.pick(), g.group(), g.choose(g.ops)),
    "scatter": lambda g: g.build.reduce_scatter(g.square(), g.group(), g.choose(("sum", "avg"))),
    "gather": Grower.gathered,
}

KINDS = (*MAKERS, "add", *("all_reduce",) * 4)

LINEAR = (
    *("add", "add", "add", "sub", "weigh", "scale", "neg", "mm", "unview", "permute", "slice"),
    *("cat", "sum", "index_add", "expand", "where"),
    *("all_reduce",) * 4,
)


def random_graph(
    choose: Choose[Any], count: int = 10, kinds: Sequence[str] = KINDS, *, plain: bool = False
) -> SpmdGraph:
    """A graph of random ops over 2 × 2 ranks, with a few outputs.

    Args:
        choose: picks one of several.
        count: how many ops.
        kinds: of which kinds.
        plain: reductions are sums over one axis, what else ops read is replicated.
    """
    build = Builder(MESH)
    grower = Grower(build, choose)
    if plain:
        grower.groups, grower.ops = ("tp",), ("sum",)
    inputs = (
        build.input("x", 4, 4, varies=("tp",)),
        build.input("y", 4, 4, varies=("dp", "tp")),
        build.input("z", 4, 4),
    )
    build.input("w", 4, 4, varies=() if plain else choose(((), (), ("tp",))))
    build.input("row", 4, varies=() if plain else choose(((), (), ("dp",))))
    build.input("index", 4, dtype=torch.int64)
    build.input("mask", 4, 4, dtype=torch.bool, varies=() if plain else choose(((), (), ("tp",))))
    where = torch.device("meta")
    zeros = build.call(aten.full.default, [4, 4], 0.0, dtype=torch.float64, device=where)
    zeros._rename("zeros")
    grower.pool += inputs[:2] if plain else inputs
    while count:
        made = grower.grow(choose(kinds))
        if made is not None:
            grower.pool.append(made)
            count -= 1
    unread = [node for node in grower.pool if not node.users]
    return build.finish(*unread[-3:], *(grower.pick() for _ in range(choose((0, 0, 1)))))


def seeded(
    seed: int, count: int = 10, kinds: Sequence[str] = KINDS, *, plain: bool = False
) -> SpmdGraph:
    """The random graph of a seed."""
    return random_graph(random.Random(seed).choice, count, kinds, plain=plain)


def mutable_copy(graph: SpmdGraph) -> SpmdGraph:
    """A copy whose nodes may be changed: no meaning is carried over."""
    copy = graph.own_copy()
    return SpmdGraph(graph.root, copy.graph, graph.mesh, graph.inputs)


def reduced(graph: SpmdGraph) -> list[fx.Node]:
    """Every all_reduce, waited for."""
    return [
        n
        for n in graph.graph.nodes
        if n.target is WAIT and n.args[0].target is c10d.all_reduce.default
    ]


def alike(node: fx.Node, earlier: Sequence[fx.Node]) -> list[fx.Node]:
    """Other values before ``node`` that fit in its place."""
    held = node.meta.get("val")
    return [
        n
        for n in earlier
        if n is not node
        and n.target not in OPS
        and isinstance(held, torch.Tensor)
        and isinstance(n.meta.get("val"), torch.Tensor)
        and (n.meta["val"].shape, n.meta["val"].dtype) == (held.shape, held.dtype)
    ]


def drop(graph: SpmdGraph, choose: Choose[Any]) -> None:
    """A missing all_reduce."""
    wait = choose(reduced(graph))
    wait.replace_all_uses_with(wait.args[0].args[0])


def _with_collective(graph: SpmdGraph, node: fx.Node, op: str, group: str) -> None:
    with graph.graph.inserting_after(node):
        started = graph.graph.call_function(c10d.all_reduce.default, (node, op, group))
    with graph.graph.inserting_after(started):
        waited = graph.graph.call_function(WAIT, (started,))
    for made in (started, waited):
        made.meta = dict(node.meta)
    node.replace_all_uses_with(waited, delete_user_cb=lambda user: user is not started)


def duplicate(graph: SpmdGraph, choose: Choose[Any]) -> None:
    """A second all_reduce of what is reduced."""
    wait = choose(reduced(graph))
    _with_collective(graph, wait, *wait.args[0].args[1:])


def misplace(graph: SpmdGraph, choose: Choose[Any]) -> None:
    """An all_reduce one op later than it stood: past a nonlinear op, where one follows."""
    moves = [
        (wait, user)
        for wait in reduced(graph)
        for user in wait.users
        if user.op == "call_function" and user.target not in OPS and len(wait.users) == 1
    ]
    if not moves:
        return
    wait, user = choose(moves)
    op, group = wait.args[0].args[1:]
    wait.replace_all_uses_with(wait.args[0].args[0])
    _with_collective(graph, user, op, group)


def wrong_group(graph: SpmdGraph, choose: Choose[Any]) -> None:
    """An all_reduce over other ranks."""
    started = choose(reduced(graph)).args[0]
    operand, op, group = started.args
    started.args = (operand, op, choose([g for g in ("dp", "tp", "both") if g != group]))


def wrong_kind(graph: SpmdGraph, choose: Choose[Any]) -> None:
    """An all_reduce of another kind."""
    started = choose(reduced(graph)).args[0]
    operand, op, group = started.args
    started.args = (operand, choose([k for k in ("sum", "avg", "max") if k != op]), group)


def wrong_dim(graph: SpmdGraph, choose: Choose[Any]) -> None:
    """An op that works along another dimension: in a square, shapes do not tell."""
    summed, added = aten.sum.dim_IntList, aten.index_add.default
    nodes = [n for n in graph.graph.nodes if n.target in (summed, added)]
    found = [n for n in nodes if access.shape(n.args[0 if n.target is summed else 3]) == (4, 4)]
    if not found:
        return
    node = choose(found)
    if node.target is added:
        node.args = (node.args[0], 1, *node.args[2:])
        return
    with graph.graph.inserting_before(node):
        turned = graph.graph.call_function(aten.permute.default, (node.args[0], [1, 0]))
        turned.meta = dict(node.args[0].meta)
    node.args = (turned, *node.args[1:])


def other_operand(graph: SpmdGraph, choose: Choose[Any]) -> None:
    """One op reads an earlier value of the same type instead."""
    nodes = list(graph.graph.nodes)
    spots = [
        (node, x, other)
        for i, node in enumerate(nodes)
        if node.op != "placeholder" and node.target is not WAIT
        for x in access.operands(node)
        for other in alike(x, nodes[:i])
    ]
    node, x, other = choose(spots)
    node.replace_input_with(x, other)


def scale(graph: SpmdGraph, choose: Choose[Any]) -> None:
    """A value that is read is doubled first."""
    node = choose([n for n in graph.graph.nodes if n.target is WAIT or n in outputs(graph)])
    with graph.graph.inserting_after(node):
        made = graph.graph.call_function(aten.mul.Tensor, (node, 2))
        made.meta = dict(node.meta)
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


def stale(graph: SpmdGraph, choose: Choose[Any]) -> None:
    """An op is skipped: its readers see what it read."""
    nodes = [n for n in graph.graph.nodes if n.op == "call_function" and n.target not in OPS]
    spots = [(n, x) for n in nodes for x in alike(n, access.operands(n))]
    if spots:
        node, x = choose(spots)
        node.replace_all_uses_with(x)


def outputs(graph: SpmdGraph) -> tuple[fx.Node, ...]:
    return access.results(access.output(graph.graph))


MUTATIONS = (
    *(drop, duplicate, misplace, wrong_group, wrong_kind),
    *(wrong_dim, other_operand, scale, stale),
)


def mutant(graph: SpmdGraph, mutation: Any, choose: Choose[Any]) -> SpmdGraph:
    """A copy with one mistake."""
    copy = mutable_copy(graph)
    mutation(copy, choose)
    copy.graph.lint()
    return copy
