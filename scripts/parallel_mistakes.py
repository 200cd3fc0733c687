"""Mistakes of tensor-parallel models, seeded one at a time into a graph that is right.

Also what may be written otherwise and stays right: a checker must tell the two apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from compiler.check.single_device.layouts import Layout
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Kind
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Replicate

aten = torch.ops.aten


Segments = tuple[tuple[tuple[int, int], ...], ...]
"""Per rank, the ranges of a dimension that it holds."""

Edit = Callable[[SpmdGraph, fx.Node], bool]
"""Makes a mistake at a node; whether it could."""


@dataclass(frozen=True)
class Mistake:
    """A wrong model.

    Attributes:
        kind: what is wrong.
        where: the value or input that it is about.
        right: the graph that is right.
        layouts: inputs of which ranks hold other shards than they should.
        edit: what is done to the graph, if anything.
    """

    kind: str
    where: str
    right: SpmdGraph
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    edit: Edit | None = None

    def graph(self) -> SpmdGraph | None:
        """The wrong graph; None where the mistake cannot be made there."""
        if self.edit is None:
            return self.right
        copy = self.right.own_copy()
        if self.edit is over_half:
            copy = replace(copy, mesh=with_halves(copy.mesh))
        index = [n.name for n in self.right.graph.nodes].index(self.where)
        return copy if self.edit(copy, list(copy.graph.nodes)[index]) else None


def _wait(start: fx.Node) -> fx.Node:
    (wait,) = (user for user in start.users if user.target is WAIT)
    return wait


def missing(graph: SpmdGraph, start: fx.Node) -> bool:
    """Leave a reduction out."""
    _wait(start).replace_all_uses_with(access.operands(start)[0])
    return True


def _reduce(graph: SpmdGraph, start: fx.Node, x: fx.Node) -> None:
    """Make readers of ``x`` read its sum, reduced as ``start`` does."""
    with graph.graph.inserting_after(x):
        again = graph.graph.call_function(start.target, (x, *start.args[1:]))  # type: ignore[arg-type]
    with graph.graph.inserting_after(again):
        total = graph.graph.call_function(WAIT, (again,))
    for node in (again, total):
        node.meta = dict(x.meta)
    x.replace_all_uses_with(total, lambda reader: reader is not again)


def double(graph: SpmdGraph, start: fx.Node) -> bool:
    """Reduce once more."""
    _reduce(graph, start, _wait(start))
    return True


def averaged(graph: SpmdGraph, start: fx.Node) -> bool:
    """Average instead of adding up."""
    access.set_argument(start, "reduce_op", "avg")
    return True


def late(graph: SpmdGraph, start: fx.Node) -> bool:
    """Reduce below an addition, or below a function that is not linear."""
    total = _wait(start)
    while len(total.users) == 1 and next(iter(total.users)).target is aten.copy.default:
        total = next(iter(total.users))
    users = list(total.users)
    user = users[0] if len(users) == 1 else None
    if user is None or not access.is_tensor(user) or access.operands(user).count(total) != 1:
        return False
    rule = graph.meanings.get(user)
    adds = user.target is aten.add.Tensor and len(access.operands(user)) == 2
    curved = rule is not None and rule.pointwise and rule.terms is None and not rule.casts
    if access.shape(user) != access.shape(total) or not (adds or curved):
        return False
    user.replace_input_with(total, access.operands(start)[0])
    _reduce(graph, start, user)
    return True


def scaled(graph: SpmdGraph, start: fx.Node) -> bool:
    """Scale what is reduced by the number of ranks, as where a sum is taken for a mean."""
    operand, ranks = access.operands(start)[0], graph.mesh.size
    with graph.graph.inserting_before(start):
        divided = graph.graph.call_function(aten.div.Tensor, (operand, ranks))
    divided.meta = dict(operand.meta)
    start.replace_input_with(operand, divided)
    return True


def _with_term(graph: SpmdGraph, start: fx.Node, term: fx.Node, ranks: int) -> bool:
    """Add a part of a replicated term before a reduction, and take the term away behind it."""
    operand, total = access.operands(start)[0], _wait(start)
    before, after = graph.graph.inserting_before, graph.graph.inserting_after
    with before(start):
        part = graph.graph.call_function(aten.div.Tensor, (term, ranks))
        added = graph.graph.call_function(aten.add.Tensor, (operand, part))
    with after(total):
        less = graph.graph.call_function(aten.sub.Tensor, (total, term))
    part.meta = dict(term.meta)
    added.meta = less.meta = dict(operand.meta)
    start.replace_input_with(operand, added)
    total.replace_all_uses_with(less, lambda reader: reader is not less)
    return True


def _earlier(graph: SpmdGraph, start: fx.Node) -> fx.Node | None:
    """Return the last value before a reduction that all ranks hold alike, and has its shape."""
    like, last = access.tensor(access.operands(start)[0]), None
    for node in graph.graph.nodes:
        if node is start:
            break
        if node.target is WAIT and access.is_tensor(node):
            same = access.shape(node) == tuple(like.shape) and access.dtype(node) == like.dtype
            last = node if same else last
    return last


def replicated_term_summed(graph: SpmdGraph, start: fx.Node) -> bool:
    """Sum up what every rank holds alike, as the output of a replicated expert."""
    term = _earlier(graph, start)
    return term is not None and _with_term(graph, start, term, 1)


def replicated_term_shared(graph: SpmdGraph, start: fx.Node) -> bool:
    """Sum up a share of what every rank holds alike: which is right."""
    term = _earlier(graph, start)
    return term is not None and _with_term(graph, start, term, graph.mesh.size)


def bias_on_every_rank(graph: SpmdGraph, start: fx.Node) -> bool:
    """Sum up a vector that every rank holds alike, as the bias of a row-parallel layer."""
    like = access.tensor(access.operands(start)[0])
    for node in graph.graph.nodes:
        vector = node.op == "placeholder" and access.is_tensor(node)
        if vector and access.shape(node) == tuple(like.shape[-1:]):
            alike = all(isinstance(p, Replicate) for p in graph.inputs[str(node.target)])
            if alike and access.dtype(node) == like.dtype:
                return _with_term(graph, start, node, 1)
    return False


def mean_of_multiples(graph: SpmdGraph, start: fx.Node) -> bool:
    """Average what is scaled by the number of ranks: which is right."""
    operand = access.operands(start)[0]
    with graph.graph.inserting_before(start):
        multiple = graph.graph.call_function(aten.mul.Tensor, (operand, graph.mesh.size))
    multiple.meta = dict(operand.meta)
    start.replace_input_with(operand, multiple)
    return averaged(graph, start)


def over_half(graph: SpmdGraph, start: fx.Node) -> bool:
    """Reduce over half of the ranks."""
    access.set_argument(start, "group_name", HALF)
    return True


def numbers_of_next_rank(graph: SpmdGraph, node: fx.Node) -> bool:
    """Use the next rank's numbers, as offsets of experts or words."""

    def turned(x: Any) -> Any:
        if isinstance(x, access.RankInt):
            values = (*x.values[1:], x.values[0])
            return access.RankInt(values[0], values)
        return x

    node.args = fx.node.map_aggregate(node.args, turned)  # type: ignore[assignment]
    return True


def columns_for_rows(graph: SpmdGraph, start: fx.Node) -> bool:
    """Take gathered rows for gathered columns: leave out the transposition behind a gather."""
    for user in _following(start):
        if user.target is aten.transpose.int and len(access.shape(user)) == 3:
            view = access.operands(user)[0]
            like = access.tensor(user)
            with graph.graph.inserting_after(user):
                plain = graph.graph.call_function(aten.view.default, (view, list(user_shape(user))))
            plain.meta = {**user.meta, "val": like}
            user.replace_all_uses_with(plain)
            return True
        if user.target is aten.cat.default:
            parts = list(user.args[0])  # type: ignore[arg-type]
            user.args = (parts[1:] + parts[:1], *user.args[1:])
            return True
    return False


def user_shape(node: fx.Node) -> Iterator[Any]:
    """The sizes of a node as a graph can write them."""
    for size in access.shape(node):
        yield size if isinstance(size, int) else -1


def _following(node: fx.Node) -> Iterator[fx.Node]:
    """What a value becomes, as long as one node alone reads it."""
    waiting = [node]
    seen = set[fx.Node]()
    while waiting and len(seen) < 12:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting.extend(node.users)


HALF = "half"

EDITS: Mapping[str, tuple[Edit, Kind | None]] = {
    "missing": (missing, Kind.ALL_REDUCE),
    "double": (double, Kind.ALL_REDUCE),
    "averaged": (averaged, Kind.ALL_REDUCE),
    "late": (late, Kind.ALL_REDUCE),
    "scaled": (scaled, Kind.ALL_REDUCE),
    "replicated term summed": (replicated_term_summed, Kind.ALL_REDUCE),
    "bias on every rank": (bias_on_every_rank, Kind.ALL_REDUCE),
    "wrong group": (over_half, Kind.ALL_REDUCE),
    "wrong dimension": (columns_for_rows, Kind.ALL_GATHER),
    "numbers of another rank": (numbers_of_next_rank, None),
}


REWRITES: Mapping[str, Edit] = {
    "replicated term shared": replicated_term_shared,
    "mean of multiples": mean_of_multiples,
}
"""Edits that leave the function as it is."""


def with_halves(mesh: Mesh) -> Mesh:
    """The mesh with a group of the first half of its ranks, and one of the second."""
    half = mesh.size // 2
    return Mesh(mesh.axes, {HALF: [range(half), range(half, mesh.size)]})


def mistakes(graph: SpmdGraph, layouts: Mapping[str, Layout]) -> list[Mistake]:
    """Every mistake that may be seeded into ``graph``, whose inputs are held as ``layouts`` say."""
    every = []
    for kind, (edit, wanted) in EDITS.items():
        if edit is over_half and graph.mesh.size <= 2:
            continue
        for node in _places(graph, wanted):
            every.append(Mistake(kind, node.name, graph, edit=edit))
    for name, own in layouts.items():
        if own.dim is None or len(set(own.segments)) < 2:
            continue
        for order in _other_orders(own.segments):
            turned = replace(own, segments=order)
            every.append(Mistake("shards in another order", name, graph, {name: turned}))
        if len(own.segments[0]) > 1:
            length = sum(n for _, n in own.segments[0])
            plain = tuple(((r * length, length),) for r in range(len(own.segments)))
            as_one = {name: replace(own, segments=plain)}
            every.append(Mistake("parts sharded as one", name, graph, as_one))
    return every


def rewrites(graph: SpmdGraph) -> list[Mistake]:
    """Return what may be written otherwise in ``graph``, and stays right."""
    places = _places(graph, Kind.ALL_REDUCE)
    return [
        Mistake(kind, node.name, graph, edit=e) for kind, e in REWRITES.items() for node in places
    ]


def _other_orders(segments: Segments) -> list[Segments]:
    """Shards turned by one rank, reversed, and with the first two exchanged, where they differ."""
    orders = (*segments[1:], segments[0]), segments[::-1], (segments[1], segments[0], *segments[2:])
    return [order for order in dict.fromkeys(orders) if order != segments]


def _places(graph: SpmdGraph, kind: Kind | None) -> list[fx.Node]:
    """Collectives of one kind; where there is none, calls with numbers of ranks."""
    if kind is not None:
        return [n for n in graph.graph.nodes if n.target in OPS and OPS[n.target] is kind]
    calls = [n for n in graph.graph.nodes if n.op == "call_function"]
    return [
        n for n in calls if any(isinstance(x, access.RankInt) for x in access.rank_constants(n))
    ]


def drawn(every: list[Mistake], seed: int) -> list[Mistake]:
    """All mistakes in random order, kinds in turn, so that the first few have all kinds."""
    generator = random.Random(seed)
    by_kind: dict[str, list[Mistake]] = {}
    for one in every:
        by_kind.setdefault(one.kind, []).append(one)
    for listed in by_kind.values():
        generator.shuffle(listed)
    rounds = max(map(len, by_kind.values()), default=0)
    return [own[i] for i in range(rounds) for own in by_kind.values() if i < len(own)]
