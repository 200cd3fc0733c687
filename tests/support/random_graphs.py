"""Random well-formed SPMD graphs: a table of op families, and a grower that finds operands."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.ir.rules.meaning import shape_key
from compiler.ir.text import parse_graph
from tests.support.graphs import Builder

aten = torch.ops.aten
T = TypeVar("T")
Choose = Callable[[Sequence[T]], T]

MESH = Mesh({"dp": 2, "tp": 2}, groups={"both": [[0, 1, 2, 3]]})

MESHES = (
    MESH,
    Mesh({"dp": 2, "tp": 2, "one": 1}, groups={"both": [[0, 1, 2, 3]], "cross": [[0, 3], [1, 2]]}),
    Mesh({"one": 1, "tp": 2}),
    Mesh({"tp": 4}, groups={"pairs": [[0, 1], [2, 3]]}),
)

LARGEST = 512
"""Elements of a value that an op may still enlarge."""

UNARY = (aten.silu.default, aten.tanh.default, aten.sigmoid.default, aten.relu.default)


class UnsuitedError(Exception):
    """No value so far fits an op."""


def rank_int(*values: int) -> access.RankInt:
    return access.RankInt(values[0], values)


@dataclass
class Grower:
    """Adds random ops to a graph; ``pool`` are its floating-point values so far."""

    build: Builder
    choose: Choose[Any]
    groups: tuple[str, ...] = ("tp", "tp", "dp")
    ops: tuple[str, ...] = ("sum", "sum", "sum", "avg", "max", "min", "product")
    pool: list[fx.Node] = field(default_factory=list)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.build.call(target, *args, **kwargs)

    def named(self, name: str) -> fx.Node:
        return next(n for n in self.build.graph.nodes if n.name == name)  # type: ignore[no-any-return]

    def pick(
        self, fits: Callable[[tuple[Any, ...]], bool] = lambda _: True, *, cast: bool = False
    ) -> fx.Node:
        """A value, recent ones first, whose sizes fit; of another type than f64 only if cast."""
        found = [
            n for n in self.pool
            if (cast or access.dtype(n) is torch.float64) and fits(shape_key(access.tensor(n)))
        ]  # fmt: skip
        if not found:
            raise UnsuitedError
        return self.choose(found[-4:] + found)  # type: ignore[no-any-return]

    def like(self, node: fx.Node) -> fx.Node:
        """A value of the same type."""
        held = access.tensor(node)
        return self.choose(
            [n for n in self.pool if access.dtype(n) is held.dtype
             and shape_key(access.tensor(n)) == shape_key(held)]
        )  # type: ignore[no-any-return]  # fmt: skip

    def pair(self) -> tuple[fx.Node, fx.Node]:
        left = self.pick(cast=True)
        return left, self.like(left)

    def shaped(self, *sizes: int | None) -> fx.Node:
        """A value of these sizes; None fits any size."""
        return self.pick(
            lambda s: (
                len(s) == len(sizes)
                and all(b is None or a == b for a, b in zip(s, sizes, strict=True))
            )
        )

    def square(self) -> fx.Node:
        return self.shaped(4, 4)

    def small(self, fits: Callable[[tuple[Any, ...]], bool] = lambda s: len(s) > 0) -> fx.Node:
        """A value that may grow, of one dimension or more."""
        found = self.pick(fits)
        if access.payload_bytes(found) > 8 * LARGEST:
            raise UnsuitedError
        return found

    def stripe(self) -> tuple[fx.Node, int]:
        """A value, and one of its dimensions, of known size of two or more."""
        x = self.pick(lambda s: any(isinstance(n, int) and n > 1 for n in s))
        sizes = shape_key(access.tensor(x))
        return x, self.choose([d for d, n in enumerate(sizes) if isinstance(n, int) and n > 1])

    def group(self) -> str:
        return self.choose(self.groups)  # type: ignore[no-any-return]

    def even(self, group: str) -> fx.Node:
        """A value whose rows the group can share."""
        count = self.build.mesh.group(group).axis_size
        return self.pick(lambda s: len(s) > 0 and isinstance(s[0], int) and s[0] % count == 0)

    def per_rank(self, values: Sequence[int]) -> access.RankInt:
        """A number for every rank, drawn from ``values``."""
        return rank_int(*(self.choose(values) for _ in range(self.build.mesh.size)))

    def own_block(self) -> fx.Node:
        """This rank's block of a group's rows: what reduce_scatter leaves of an all_reduce."""
        group = self.group()
        x, groups = self.even(group), self.build.mesh.group(group)
        rows = int(access.shape(x)[0]) // groups.axis_size
        members = [groups.group_of[r] for r in range(self.build.mesh.size)]
        start = rank_int(*(rows * m.index(r) for r, m in enumerate(members)))
        return self.call(aten.narrow.default, x, 0, start, rows)

    def reshaped(self) -> fx.Node:
        x = self.pick(lambda s: len(s) > 0)
        forms = [[-1], [-1, 4], [-1, 2, 2], [1, -1, 4], [-1, 1, 2], [2, -1]]
        sizes, count = shape_key(access.tensor(x)), 1
        for n in sizes:
            count = count * n
        fits = [f for f in forms if count % (4 if 4 in f or f[1:] == [2, 2] else len(f)) == 0]
        return self.call(aten.reshape.default, x, self.choose(fits or [[-1]]))

    def sliced(self) -> fx.Node:
        x, dim = self.stripe()
        first, last = self.choose(((0, 1), (1, 2), (0, 2), (1, None), (0, -1)))
        return self.call(aten.slice.Tensor, x, dim, first, last)

    def normed(self) -> fx.Node:
        x = self.pick(lambda s: len(s) > 0)
        square = self.call(aten.pow.Tensor_Scalar, x, 2)
        mean = self.call(aten.mean.dim, square, [-1], True)
        scale = self.call(aten.rsqrt.default, self.call(aten.add.Tensor, mean, 1e-5))
        return self.call(aten.mul.Tensor, x, scale)

    def summed(self, op: Any) -> fx.Node:
        x = self.pick(lambda s: len(s) > 0)
        dim = self.choose(range(len(access.shape(x))))
        return self.call(op, x, [dim], self.choose((True, False)))

    def stretched(self) -> fx.Node:
        x = self.small(lambda s: 1 in s)
        sizes = shape_key(access.tensor(x))
        return self.call(aten.expand.default, x, [4 if n == 1 else -1 for n in sizes])

    def tree(self) -> fx.Node:
        a, b = self.pair()
        left, right = (self.call(aten.add.Tensor, x, self.like(a)) for x in (a, b))
        return self.call(aten.add.Tensor, left, right)

    def into(self) -> fx.Node:
        """What is accumulated into: zeros more often than not."""
        return self.choose((self.named("zeros"), self.named("zeros"), self.square()))  # type: ignore[no-any-return]

    def cast(self) -> fx.Node:
        x = self.pick(cast=True)
        wide = access.dtype(x) is torch.float64
        return self.call(aten._to_copy.default, x, dtype=torch.float32 if wide else torch.float64)


MAKERS: dict[str, Callable[[Grower], fx.Node]] = {
    # sums and scales
    "add": lambda g: g.call(aten.add.Tensor, *g.pair()),
    "scaled add": lambda g: g.call(aten.add.Tensor, *g.pair(), alpha=g.choose((2, -1, 0.5))),
    "sub": lambda g: g.call(aten.sub.Tensor, *g.pair()),
    "tree": Grower.tree,
    "shift": lambda g: g.call(aten.add.Tensor, g.pick(), g.choose((1, -0.5))),
    "neg": lambda g: g.call(aten.neg.default, g.pick(cast=True)),
    "scale": lambda g: g.call(aten.mul.Tensor, g.pick(cast=True), g.choose((2, 0.5, -1, 3))),
    "rank scale": lambda g: g.call(
        aten.mul.Tensor, g.pick(), access.RankFloat(float(v := g.per_rank((1, 2, 0))), v.values)
    ),
    "mul": lambda g: g.call(aten.mul.Tensor, *g.pair()),
    "addcmul": lambda g: g.call(aten.addcmul.default, g.square(), g.square(), g.named("w")),
    "weigh": lambda g: g.call(aten.mul.Tensor, g.pick(lambda s: s[-1:] == (4,)), g.named("row")),
    "weigh rows": lambda g: g.call(aten.mul.Tensor, g.square(), g.named("column")),
    "weigh all": lambda g: g.call(aten.mul.Tensor, g.pick(), g.named("scalar")),
    "divide": lambda g: g.call(
        aten.div.Tensor, g.pick(lambda s: s[-1:] == (4,)), g.choose((2, g.named("divisor")))
    ),
    # nonlinear
    "unary": lambda g: g.call(g.choose(UNARY), g.pick()),
    "gate": lambda g: g.call(
        aten.mul.Tensor, x := g.pick(), g.call(aten.sigmoid.default, g.like(x))
    ),
    "softmax": lambda g: g.call(aten._softmax.default, g.pick(lambda s: len(s) > 1), -1, False),
    "norm": Grower.normed,
    "maximum": lambda g: g.call(aten.maximum.default, *g.pair()),
    "amax": lambda g: g.summed(aten.amax.default),
    # views, transposes, slices
    "view": Grower.reshaped,
    "unview": lambda g: g.call(
        aten.reshape.default, g.pick(lambda s: s[-1:] == (4,) and len(s) != 2), [-1, 4]
    ),
    "permute": lambda g: g.call(aten.permute.default, g.shaped(None, None), [1, 0]),
    "turn": lambda g: g.call(aten.transpose.int, g.pick(lambda s: len(s) > 1), 0, -1),
    "unsqueeze": lambda g: g.call(aten.unsqueeze.default, g.small(), g.choose((0, -1))),
    "squeeze": lambda g: g.call(aten.squeeze.dim, g.pick(lambda s: 1 in s[:1]), 0),
    "slice": Grower.sliced,
    "select": lambda g: g.call(aten.select.int, *g.stripe(), g.choose((0, 1))),
    "split": lambda g: g.call(
        operator.getitem, g.call(aten.split.Tensor, (s := g.stripe())[0], 1, s[1]), g.choose((0, 1))
    ),
    "rank slice": lambda g: g.call(aten.narrow.default, g.square(), 1, g.per_rank((0, 1)), 3),
    "own block": Grower.own_block,
    "flip": lambda g: g.call(aten.flip.default, g.pick(lambda s: len(s) > 0), [0]),
    "pad": lambda g: g.call(
        aten.constant_pad_nd.default, g.small(), g.choose(([0, 1], [1, 0])), g.choose((0.0, 0.0, 1))
    ),
    "cat": lambda g: g.call(aten.cat.default, [x := g.small(), g.like(x)], g.choose((0, -1))),
    "cat zeros": lambda g: g.call(
        aten.cat.default, [g.square(), g.named("zeros")], g.choose((0, 1))
    ),
    "stack": lambda g: g.call(aten.stack.default, [x := g.small(), g.like(x)], g.choose((0, -1))),
    "expand": Grower.stretched,
    # sums over dimensions, products
    "sum": lambda g: g.summed(aten.sum.dim_IntList),
    "mean": lambda g: g.summed(aten.mean.dim),
    "cumsum": lambda g: g.call(aten.cumsum.default, g.pick(lambda s: len(s) > 0), 0),
    "mm": lambda g: g.call(aten.mm.default, g.shaped(None, 4), g.named("w")),
    "mm left": lambda g: g.call(aten.mm.default, g.named("w"), g.shaped(4, None)),
    "product": lambda g: g.call(aten.mm.default, g.shaped(None, 4), g.square()),
    "linear": lambda g: g.call(
        aten.linear.default, g.shaped(None, 4), g.named("w"), g.choose((None, g.named("row")))
    ),
    "einsum": lambda g: g.call(
        aten.einsum.default, g.choose(("tk,kn->tn", "tk,nk->nt")), [g.shaped(None, 4), g.named("w")]
    ),
    # indices
    "index_add": lambda g: g.call(
        aten.index_add.default, g.into(), g.choose((0, 1)), g.named("index"), g.square()
    ),
    "scatter_add": lambda g: g.call(
        aten.scatter_add.default, g.into(), g.choose((0, 1)), g.named("places"), g.square()
    ),
    "index_put": lambda g: g.call(
        aten.index_put.default, g.into(), [g.named("index")], g.square(), True
    ),
    "index_select": lambda g: g.call(
        aten.index_select.default, g.shaped(4, None), 0, g.named("index")
    ),
    "embedding": lambda g: g.call(aten.embedding.default, g.shaped(4, None), g.named("index")),
    "gather": lambda g: g.call(aten.gather.default, g.square(), 1, g.named("places")),
    "where": lambda g: g.call(aten.where.self, g.named("mask"), g.square(), g.into()),
    "masked_fill": lambda g: g.call(
        aten.masked_fill.Scalar, g.square(), g.named("mask"), g.choose((0.0, 0.0, -1.0))
    ),
    # casts and copies
    "cast": Grower.cast,
    "copy": lambda g: g.call(aten.copy.default, *g.pair()),
    "alias": lambda g: g.call(g.choose((aten.alias.default, aten.clone.default)), g.pick()),
    # collectives
    "all_reduce": lambda g: g.build.all_reduce(g.pick(cast=True), g.group(), g.choose(g.ops)),
    "scatter": lambda g: g.build.reduce_scatter(
        g.even(group := g.group()), group, g.choose(("sum", "sum", "avg", "max"))
    ),
    "gather blocks": lambda g: g.build.all_gather(g.small(), g.group()),
    "exchange": lambda g: g.build.all_to_all(g.even(group := g.group()), group),
    "broadcast": lambda g: g.build.broadcast(g.pick(), 0, g.group()),
}

KINDS = (*MAKERS, *("add", "sub", "mm", "weigh", "unview") * 2, *("all_reduce",) * 9)

LINEAR = (
    *("add", "add", "add", "sub", "tree", "weigh", "weigh rows", "scale", "neg", "divide", "mm"),
    *("mm left", "linear", "view", "unview", "permute", "slice", "pad", "cat", "stack", "expand"),
    *("sum", "index_add", "scatter_add", "index_select", "where", "alias", "select"),
    *("all_reduce",) * 8,
)


def symbolic_tokens() -> tuple[Callable[[], AbstractContextManager[None]], torch.SymInt]:
    """A number of tokens of at least four that is left open, and the context of ops on it."""
    graph = parse_graph(
        'mesh <tp = 2>\nsym s0 in [4, 8]\nfunc @main(%0 "x": f64[s0, 4]) {\n  return %0\n}\n'
    )
    held: Any = access.tensor(access.node_of(graph.graph, "placeholder")[0])

    @contextmanager
    def mode() -> Iterator[None]:
        # The Python dispatcher keeps sizes symbolic in ops that are composed of others.
        with held.fake_mode, held.fake_mode.shape_env.suppress_guards(), enable_python_dispatcher():
            yield

    return mode, held.shape[0]


def random_graph(
    choose: Choose[Any],
    count: int = 10,
    kinds: Sequence[str] = KINDS,
    *,
    mesh: Mesh = MESH,
    plain: bool = False,
    symbolic: bool = False,
    rows: int = 4,
) -> SpmdGraph:
    """A graph of random ops over a few ranks, with a few outputs.

    Integer inputs index four rows; they must lie in 0 … 3.

    Args:
        choose: picks one of several.
        count: how many ops.
        kinds: of which kinds.
        mesh: the ranks; it has an axis ``tp``.
        plain: reductions are sums over one axis, what else ops read is replicated.
        symbolic: the number of tokens is open.
        rows: otherwise this is it.
    """
    mode, tokens = symbolic_tokens() if symbolic else (nullcontext, rows)
    build = Builder(mesh, mode=mode)
    grower = Grower(build, choose, groups=("tp", "tp", *mesh.groups))
    if plain:
        grower.groups, grower.ops = ("tp",), ("sum",)

    def varying(*options: tuple[str, ...]) -> tuple[str, ...]:
        return () if plain else tuple(a for a in choose(((), (), *options)) if a in mesh.axes)

    everywhere = tuple(a for a in ("dp", "tp") if a in mesh.axes)
    inputs = (
        build.input("x", tokens, 4, varies=("tp",)),
        build.input("y", tokens, 4, varies=everywhere),
        build.input("p", 4, 4, varies=("tp",)),
        build.input("z", tokens, 4),
    )
    build.input("w", 4, 4, varies=varying(("tp",)))
    build.input("row", 4, varies=varying(("dp",)))
    build.input("column", 4, 1)
    build.input("scalar")
    build.input("index", 4, dtype=torch.int64)
    build.input("places", 4, 4, dtype=torch.int64)
    build.input("mask", 4, 4, dtype=torch.bool, varies=varying(("tp",)))
    where = torch.device("meta")
    zeros = build.call(aten.full.default, [4, 4], 0.0, dtype=torch.float64, device=where)
    zeros._rename("zeros")
    row = build.graph.find_nodes(op="placeholder", target="row")[0]
    divisor = build.call(aten.add.Tensor, build.call(aten.mul.Tensor, row, row), 1)
    divisor._rename("divisor")
    grower.pool += inputs[:3] if plain else inputs
    attempts = 20 * count
    while count and attempts:
        attempts -= 1
        try:
            grower.pool.append(MAKERS[choose(kinds)](grower))
            count -= 1
        except UnsuitedError:
            continue
    unread = [node for node in grower.pool if not node.users]
    return build.finish(*unread[-3:], *(grower.pick() for _ in range(choose((0, 0, 1)))))


def seeded(seed: int, count: int = 10, kinds: Sequence[str] = KINDS, **options: Any) -> SpmdGraph:
    """The random graph of a seed; further arguments as in ``random_graph``."""
    return random_graph(random.Random(seed).choice, count, kinds, **options)


def anyhow(seed: int) -> SpmdGraph:
    """The random graph of a seed, over any mesh, in a quarter of the cases for any tokens."""
    rng = random.Random(seed)
    linear, symbolic = rng.random() < 0.4, rng.random() < 0.25
    return random_graph(
        rng.choice,
        rng.randint(4, 16),
        LINEAR if linear else KINDS,
        mesh=rng.choice(MESHES),
        plain=rng.random() < 0.2,
        symbolic=symbolic,
    )
