"""Lockstep simulation: all ranks of an SPMD graph in one process, one op at a time.

The reference for numeric tests, and the judge of counterexamples. Collectives are done directly, in
rank order. With ``exact`` every floating-point tensor is float64, whatever the graph says, so that
what is compared is the function over the reals.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import compress
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import fx

from compiler.check.expand import expanded
from compiler.check.representatives import Representatives
from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.ir.collectives import WAIT, Collective, Kind, collective
from compiler.ir.dispatch import COMBINE_ROWS, DISPATCH_ROWS, added, needed
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.placement import Replicate
from compiler.ir.row_ops import all_slice, own_share
from compiler.ir.rules import RULES, opaque

OWN = ("aten", "prims", "prim", "commplan")
"""Namespaces of ops that are functions of their operands on any machine, in any type."""

PerRank = list[Any]
"""One value per rank."""

COMBINE: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "sum": torch.add, "avg": torch.add, "product": torch.mul, "max": torch.maximum,
    "min": torch.minimum,
}  # fmt: skip


def simulate(
    graph: SpmdGraph,
    inputs: Mapping[str, Sequence[Any]],
    *,
    exact: bool = False,
    alike: Representatives | None = None,
) -> list[PerRank]:
    """Run every rank and return, per output (nested outputs flattened), what each rank holds.

    Ranks that hold the same are run once: ``alike`` says which, and inputs are theirs.

    Args:
        graph: a well-formed graph.
        inputs: placeholder or attribute name -> the value each rank holds. Attributes left out
            are read from the graph's module.
        exact: compute in float64 throughout.
        alike: the ranks to run; None: all.
    """
    ranks = Representatives.all_of(graph.mesh) if alike is None else alike
    graph, _ = expanded(graph)
    values: dict[fx.Node, PerRank] = {}
    last_use = {x: node for node in graph.graph.nodes for x in node.all_input_nodes}
    for node in graph.graph.nodes:
        if node.op == "output":
            return [values[x] for x in access.results(node)]
        if node.op in ("placeholder", "get_attr"):
            per_rank = inputs.get(str(node.target))
            if per_rank is None and node.op == "get_attr":
                per_rank = [attrgetter(str(node.target))(graph.root)] * len(ranks)
            assert per_rank is not None, f"no value for input {node.target}"
            values[node] = [_widened(x, exact=exact) for x in per_rank]
        elif access.has_result(node):
            values[node] = _called(graph, ranks, node, values, exact=exact)
        for x in node.all_input_nodes:
            if last_use[x] is node:
                del values[x]
    raise AssertionError("a graph has an output")


def _called(
    graph: SpmdGraph,
    ranks: Representatives,
    node: fx.Node,
    values: Mapping[fx.Node, PerRank],
    *,
    exact: bool,
) -> PerRank:
    """Return what a call gives on every rank."""
    if node.target is WAIT:
        return values[access.operands(node)[0]]
    if (communication := collective(node)) is not None:
        groups = graph.mesh.group(communication.group)
        return _communicate(groups, ranks, communication, node, values[communication.operand])
    if (cut := all_slice(node)) is not None:
        groups, whole = graph.mesh.group(cut.group), values[cut.operand]
        n, position = groups.axis_size, groups.position
        both = zip(ranks.numbers, whole, strict=True)
        return [own_share(x, cut.dim, n, position[r]) for r, x in both]
    read = [_read(node, values, i, r, exact=exact) for i, r in enumerate(ranks.numbers)]
    if node.target in (DISPATCH_ROWS, COMBINE_ROWS):
        exchanged = _dispatched if node.target is DISPATCH_ROWS else _combined
        return exchanged(graph, [args for args, _ in read])
    assert callable(node.target), f"%{node.name} is not a call"
    op = opaque.op_called(node.target, next(iter(node.args), None))
    if op is not None and op.namespace not in OWN and node.target not in RULES:
        raise CommPlanError(f"Not simulated: {op} runs where its engine does")
    return [node.target(*args, **kwargs) for args, kwargs in read]


def _widened(value: Any, *, exact: bool) -> Any:
    if exact and isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.double()
    if exact and isinstance(value, torch.dtype) and value.is_floating_point:
        return torch.float64
    return value


def _read(
    node: fx.Node, values: Mapping[fx.Node, PerRank], place: int, rank: int, *, exact: bool
) -> tuple[Any, Any]:
    """Return the arguments of a call on one rank, at its place among those run."""

    def read(item: Any) -> Any:
        if isinstance(item, fx.Node):
            return values[item][place]
        if isinstance(item, torch.device):
            return torch.device("cpu")
        return _widened(access.on_rank(item, rank), exact=exact)

    args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), read)
    return args, kwargs


def _communicate(
    groups: ReplicaGroups,
    ranks: Representatives,
    communication: Collective,
    node: fx.Node,
    operand: Sequence[torch.Tensor],
) -> PerRank:
    """Return what each rank of each group gets from the collective."""
    got: dict[int, torch.Tensor] = {}
    arguments, stand_in = access.arguments(node), ranks.stand_in
    for group in dict.fromkeys(groups.group_of[r] for r in ranks.numbers):
        sent = [operand[stand_in[r]] for r in group]
        if communication.kind in (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER):
            total = _reduced(communication.op, sent)
            split = communication.kind is Kind.REDUCE_SCATTER
            blocks = total.chunk(len(group)) if split else [total] * len(group)
        elif communication.kind is Kind.ALL_GATHER:
            blocks = [torch.cat(sent)] * len(group)
        elif communication.kind is Kind.BROADCAST:
            blocks = [sent[int(arguments["src"])]] * len(group)
        else:
            splits = [int(n) for n in arguments["input_split_sizes"]]
            parts = [torch.split(x, splits) for x in sent]
            blocks = [torch.cat([p[i] for p in parts]) for i in range(len(group))]
        got.update(zip(group, blocks, strict=True))
    return [got[r].clone() for r in ranks.numbers]


def _dispatched(graph: SpmdGraph, read: Sequence[Any]) -> PerRank:
    """Return what ``dispatch_rows`` gives on every rank, from its arguments on every rank."""
    got: dict[int, Any] = {}
    for group in graph.mesh.group(read[0][5]).ranks:
        wanted = {r: needed(read[r][1], read[r][2], read[r][3]) for r in group}
        for place, r in enumerate(group):
            rows = [
                torch.cat([read[s][0][i][wanted[s][place]] for s in group])
                for i in range(len(read[r][0]))
            ]
            sent, received = wanted[r].sum(1), torch.stack([wanted[s][place].sum() for s in group])
            places = wanted[r].flatten().nonzero().squeeze(1)
            got[r] = [*rows, places, torch.stack([sent, received])]
    return [got[r] for r in range(graph.mesh.size)]


def _combined(graph: SpmdGraph, read: Sequence[Any]) -> PerRank:
    """Return what ``combine_rows`` gives on every rank, from its arguments on every rank."""
    got: dict[int, Any] = {}
    for group in graph.mesh.group(read[0][4]).ranks:
        back = {r: torch.split(read[r][0], read[r][2][1].tolist()) for r in group}
        for place, r in enumerate(group):
            _, places, _, rows, _ = read[r]
            got[r] = added(torch.cat([back[s][place] for s in group]), places, len(group), rows)
    return [got[r] for r in range(graph.mesh.size)]


def _reduced(op: str, sent: Sequence[torch.Tensor]) -> torch.Tensor:
    """Reduce in rank order."""
    if op not in COMBINE:
        raise NotImplementedError(f"simulation of reduction {op!r}")
    total = reduce(COMBINE[op], sent)
    return total / len(sent) if op == "avg" else total


def draw_inputs(
    graph: SpmdGraph,
    seed: int,
    tokens: int | None = None,
    *,
    alike: Representatives | None = None,
) -> dict[str, PerRank]:
    """Draw inputs that obey the graph's placements; symbolic sizes become ``tokens``.

    Floating-point inputs are small multiples of 1/8, so that sums are exact; integers are 0 or 1.
    One draw per set of ranks that must hold the same; a real attribute keeps its own value where
    that is all ranks. Of ``alike``: the ranks that are run.
    """
    ranks = Representatives.all_of(graph.mesh) if alike is None else alike
    coordinates = np.stack(np.unravel_index(ranks.numbers, tuple(graph.mesh.axes.values())), 1)
    drawn: dict[str, PerRank] = {}
    for node in graph.graph.nodes:
        name = str(node.target)
        if node.op not in ("placeholder", "get_attr") or name in drawn:
            continue
        value = access.value(node)
        varying = [not isinstance(p, Replicate) for p in graph.inputs[name]]
        own = attrgetter(name)(graph.root) if node.op == "get_attr" else None
        if own is not None and not any(varying) and not is_fake(own):
            drawn[name] = [own] * len(ranks)
            continue
        places = [[*compress(at, varying)][::-1] for at in coordinates.tolist()]
        seeds = [f"{seed} {name} {place}" for place in places]
        once = {s: _draw(value, s, tokens) for s in dict.fromkeys(seeds)}
        drawn[name] = [once[s] for s in seeds]
    return drawn


def is_fake(value: Any) -> bool:
    """Return whether it is a tensor without data."""
    return isinstance(value, torch.Tensor) and (
        value.is_meta or isinstance(value, torch._subclasses.FakeTensor)
    )


def _draw(value: Any, seed: str, tokens: int | None) -> Any:
    if not isinstance(value, torch.Tensor):
        return access.concrete(value, tokens) if isinstance(value, torch.SymInt) else value
    generator = torch.Generator().manual_seed(random.Random(seed).getrandbits(63))
    sizes = [access.concrete(s, tokens) for s in value.shape]
    if value.dtype.is_floating_point:
        return torch.randint(-16, 17, sizes, generator=generator).to(value.dtype) / 8
    return torch.randint(0, 2, sizes, generator=generator).to(value.dtype)
