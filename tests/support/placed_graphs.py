"""Random SPMD graphs whose reductions are all placed right, with what each value means globally.

A global program over 8 × 8 matrices grows op by op, and with it what every rank computes of it.
An op that does not suit the placements of its operands gets the collectives first that make it
suit. So every value has a placement and a global tensor, and the graph is right by construction.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Partial, Placement, Replicate, Shard
from tests.support.graphs import Builder, aten

SIZE = 8
MESH = Mesh({"tp": 2, "ep": 2}, groups={"both": [[0, 1, 2, 3]]})
R, ROWS, COLUMNS, P = Replicate(), Shard(0), Shard(1), Partial("sum")


@dataclass(frozen=True)
class Value:
    """What the ranks hold of a global tensor."""

    node: fx.Node
    held: dict[str, Placement]
    whole: Tensor

    def on(self, axis: str, placement: Placement, node: fx.Node) -> Value:
        return Value(node, self.held | {axis: placement}, self.whole)


@dataclass
class Placed:
    """Grows one graph; ``pool`` are its values so far, ``given`` the inputs of all ranks."""

    seed: int
    build: Builder = field(default_factory=lambda: Builder(MESH))
    pool: list[Value] = field(default_factory=list)
    given: dict[str, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.generator = torch.Generator().manual_seed(self.seed)

    def draw(self) -> Tensor:
        return torch.randn(SIZE, SIZE, dtype=torch.float64, generator=self.generator) / 3

    def input(self) -> Value:
        """A global tensor as an input of random placement."""
        name, whole = f"x{len(self.given)}", self.draw()
        held = {axis: self.random.choice((R, ROWS, COLUMNS, P)) for axis in MESH.axes}
        parts = [whole]
        for axis, count in MESH.axes.items():
            parts = [part for x in parts for part in self.parts(x, held[axis], count)]
        self.given[name] = parts
        node = self.build.input(name, *parts[0].shape)
        self.build.inputs[name] = held
        return Value(node, held, whole)

    def parts(self, whole: Tensor, placement: Placement, count: int) -> list[Tensor]:
        match placement:
            case Replicate():
                return [whole] * count
            case Shard(dim):
                return [part.contiguous() for part in whole.chunk(count, dim)]
        addends = [torch.randn(whole.shape, dtype=whole.dtype, generator=self.generator)
                   for _ in range(count - 1)]  # fmt: skip
        return [*addends, whole - sum(addends)]

    def call(self, target: Any, *args: Any) -> fx.Node:
        return self.build.call(target, *args)

    def whole(self, x: Value) -> Value:
        """The same on every rank: the inner axis first, as blocks are nested."""
        for axis in reversed(MESH.axes):
            if x.held[axis] == COLUMNS:
                x = self.transposed(self.whole_along(self.transposed(x), axis))
            x = self.whole_along(x, axis)
        return x

    def whole_along(self, x: Value, axis: str) -> Value:
        if x.held[axis] == P:
            return x.on(axis, R, self.build.all_reduce(x.node, axis))
        if x.held[axis] == ROWS:
            return x.on(axis, R, self.build.all_gather(x.node, axis))
        return x

    def reduced(self, x: Value) -> Value:
        """No partial sum: all-reduced, over both axes at once or in turn, or reduce-scattered."""
        owed = [axis for axis in MESH.axes if x.held[axis] == P]
        if len(owed) == 2 and self.random.random() < 0.5:
            node = self.build.all_reduce(x.node, "both")
            return Value(node, dict.fromkeys(MESH.axes, R), x.whole)
        for axis in owed:
            others = [x.held[other] for other in MESH.axes if other != axis]
            if ROWS not in others and self.random.random() < 0.5:
                x = x.on(axis, ROWS, self.build.reduce_scatter(x.node, axis))
            else:
                x = x.on(axis, R, self.build.all_reduce(x.node, axis))
        return x

    def transposed(self, x: Value) -> Value:
        turn = {ROWS: COLUMNS, COLUMNS: ROWS}
        held = {axis: turn.get(p, p) for axis, p in x.held.items()}  # type: ignore[call-overload]
        return Value(self.call(aten.t.default, x.node), held, x.whole.t())

    def scaled(self, x: Value) -> Value:
        by = self.random.choice((2, -1, 0.75))
        return Value(self.call(aten.mul.Tensor, x.node, by), x.held, x.whole * by)

    def silu(self, x: Value) -> Value:
        x = self.reduced(x)
        found = torch.nn.functional.silu(x.whole)
        return Value(self.call(aten.silu.default, x.node), x.held, found)

    def softmax(self, x: Value) -> Value:
        x = self.reduced(x)
        if COLUMNS in x.held.values():
            x = self.whole(x)
        node = self.call(aten._softmax.default, x.node, 1, False)
        return Value(node, x.held, x.whole.softmax(1))

    def sum(self, x: Value, y: Value) -> Value:
        """Equal placements; whole beside partial is scaled down, or waits for the sum."""
        if x.held != y.held:
            pairs = [(x.held[axis], y.held[axis]) for axis in MESH.axes]
            if all(a == b or {a, b} == {R, P} for a, b in pairs) and self.random.random() < 0.5:
                x, y = self.shared_out(x, y), self.shared_out(y, x)
            else:
                x, y = self.whole(x), self.whole(y)
        return Value(self.call(aten.add.Tensor, x.node, y.node), x.held, x.whole + y.whole)

    def shared_out(self, x: Value, like: Value) -> Value:
        for axis in MESH.axes:
            if (x.held[axis], like.held[axis]) == (R, P):
                x = x.on(axis, P, self.call(aten.div.Tensor, x.node, 2))
        return x

    def product(self, x: Value, y: Value) -> Value:
        allowed = {(R, R): R, (ROWS, ROWS): ROWS, (COLUMNS, COLUMNS): COLUMNS, (P, R): P, (R, P): P}
        return self.combined(aten.mul.Tensor, x, y, allowed, x.whole * y.whole)

    def matmul(self, x: Value, y: Value) -> Value:
        allowed = {(R, R): R, (ROWS, R): ROWS, (R, COLUMNS): COLUMNS, (COLUMNS, ROWS): P,
                   (P, R): P, (R, P): P}  # fmt: skip
        found = x.whole @ y.whole
        return self.combined(aten.mm.default, x, y, allowed, found / 4, scale=0.25)

    def combined(
        self, op: Any, x: Value, y: Value, allowed: Any, whole: Tensor, scale: float = 1.0
    ) -> Value:
        if any((x.held[axis], y.held[axis]) not in allowed for axis in MESH.axes):
            x, y = self.whole(x), self.whole(y)
        held = {axis: allowed[x.held[axis], y.held[axis]] for axis in MESH.axes}
        node = self.call(op, x.node, y.node)
        if scale != 1:
            node = self.call(aten.mul.Tensor, node, scale)
        return Value(node, held, whole)

    def grow(self) -> None:
        one = (self.transposed, self.scaled, self.silu, self.softmax, self.reduced, self.whole)
        two = (self.sum, self.sum, self.product, self.matmul, self.matmul)
        make = self.random.choice((*one, *two))
        recent = self.pool[-3:] + self.pool
        read = [self.random.choice(recent) for _ in range(1 if make in one else 2)]
        found = make(*read)
        if found not in self.pool:
            self.pool.append(found)


def placed_graph(seed: int, count: int = 8) -> tuple[Placed, SpmdGraph]:
    """A random graph that is right, whose last values are its outputs, and how it came about."""
    placed = Placed(seed)
    placed.pool += [placed.input() for _ in range(3)]
    for _ in range(count):
        placed.grow()
    unread = [x for x in placed.pool[3:] if not x.node.users] or placed.pool[-1:]
    leaving = [placed.reduced(x) for x in unread[-3:]]
    placed.pool += leaving
    return placed, placed.build.finish(*(x.node for x in leaving))
