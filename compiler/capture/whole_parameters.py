"""Sameness: along which axes do all ranks compute the same, for every value?

Direction  forward, one sweep in graph order.
Domain     sets of mesh axes: along these, every rank holds the same tensor. A deterministic op of
           what is the same gives the same; an all_reduce, all_gather or broadcast makes its
           result the same along the axes of its group.
Result     node -> axes; the graph is not touched.
Refuses    nothing: an op without a rule may read its rank in secret, so its result is the same
           along no axis.

``analysis.replication`` is finer, and needs the placement of every input. This runs before there
are any, to find them: of an input it is only known along which axes it was found, or has to be,
the same. What is the same here is so there, a test asserts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx

from compiler.ir import access, collectives, rules
from compiler.ir.collectives import Kind
from compiler.ir.mesh import Mesh
from compiler.ir.rules import BROADCAST, RESHAPE

Axes = frozenset[str]

EQUALIZING = (Kind.ALL_REDUCE, Kind.ALL_GATHER, Kind.BROADCAST)
NORMS = tuple(
    op
    for name in ("rms_norm", "layer_norm", "native_layer_norm", "_fused_rms_norm")
    for op in rules.RULES
    if getattr(getattr(op, "overloadpacket", None), "__name__", "") == name
)


def same_values(graph: fx.Graph, mesh: Mesh, inputs: Mapping[str, Axes]) -> dict[fx.Node, Axes]:
    """Node -> axes along which its value is the same on every rank.

    Args:
        graph: group names as on ``mesh``.
        mesh: resolves them.
        inputs: placeholder -> axes along which it is the same.
    """
    everywhere = frozenset(mesh.axes)
    found: dict[fx.Node, Axes] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            found[node] = inputs[str(node.target)]
            continue
        same = everywhere.intersection(*(found[x] for x in _read(node)))
        for constant in access.rank_constants(node):
            same &= equal_along(mesh, dict(enumerate(constant.values)))
        name = collectives.given_group(node)
        if name is not None:
            found[node] = _after_collective(node, mesh, name, same)
        else:
            found[node] = frozenset() if _may_differ(node) else same
    return found


def _after_collective(node: fx.Node, mesh: Mesh, name: str, same: Axes) -> Axes:
    axes = frozenset((mesh.axes_of(name) or ()) if name in mesh.groups else ())
    if not axes:
        return frozenset()
    found = collectives.collective(node)
    return same | axes if found and found.kind in EQUALIZING else same - axes


def _read(node: fx.Node) -> Sequence[fx.Node]:
    """The nodes whose values matter; ``copy(self, src)`` reads only the shape of ``self``.

    Of what reads no elements, ``zeros_like(x)``, all matter: it has the size of a shard if ``x`` is
    one, and a parameter that meets it need not be whole.
    """
    meaning = rules.meaning(node) if access.is_tensor(node) else None
    if meaning is None or not meaning.reads:
        return node.all_input_nodes
    operands = access.operands(node)
    numbers = (x for x in node.all_input_nodes if x not in operands)
    return [*(operands[i] for i in sorted(meaning.reads)), *numbers]


def _may_differ(node: fx.Node) -> bool:
    """Whether ranks may compute different things from the same operands."""
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return True
    if node.op != "call_function" or not access.is_operand(node) or node.target is collectives.WAIT:
        return False
    meaning = rules.meaning(node)
    return meaning is None or meaning.random


def equal_along(mesh: Mesh, held: Mapping[int, object]) -> Axes:
    """Axes along which all ranks hold equal things; ``held`` maps every rank to its own."""
    return frozenset(
        axis
        for axis in mesh.axes
        if all(len({repr(held[rank]) for rank in g}) == 1 for g in mesh.groups[axis].ranks)
    )


def met_by_same(
    graph: fx.Graph, mesh: Mesh, inputs: Mapping[str, Axes], state: Mapping[str, bool]
) -> dict[str, tuple[Axes, str]]:
    """Parameters that cannot be shards: a whole tensor of their size meets them.

    A parameter, or an elementwise function of the model's tensors alone, that meets a value which
    is the same on all ranks in an elementwise op, or as the weight of its norm, has the size of the
    whole, and so is no block of a larger tensor.

    Args:
        graph: group names as on ``mesh``.
        mesh: resolves them.
        inputs: placeholder -> axes along which it is the same.
        state: placeholder of a tensor of the model -> whether to ask about it.

    Returns:
        Placeholder -> axes along which it has to be the same, and the op that shows it.
    """
    same = same_values(graph, mesh, inputs)
    made_of: dict[fx.Node, frozenset[str]] = {}
    required: dict[str, tuple[Axes, str]] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            name = str(node.target)
            if name in state:
                made_of[node] = frozenset({name} if state[name] else ())
            continue
        operands = access.operands(node)
        for held, other in _meetings(node, operands):
            for name in made_of.get(held, ()) if other not in made_of else ():
                if missing := same[other] - inputs[name]:
                    line = access.source_line(node)
                    required.setdefault(name, (missing, f"{node.target} at {line or node.name}"))
        if all(x in made_of for x in operands) and _is_elementwise(node):
            made_of[node] = frozenset().union(*(made_of[x] for x in operands))
    return required


def _meetings(node: fx.Node, operands: Sequence[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Pairs of operands of which the first is as large as the whole of the second's dimensions."""
    if node.target in NORMS:
        yield from ((weight, operands[0]) for weight in operands[1:])
    elif _is_elementwise(node):
        yield from ((a, b) for a in operands for b in operands if _has_size_of(a, b, node))


def _is_elementwise(node: fx.Node) -> bool:
    if node.op != "call_function" or not access.is_tensor(node):
        return False
    meaning = rules.meaning(node)
    if meaning is None or meaning.random:
        return False
    terms = meaning.terms or ()
    return meaning.pointwise or (bool(terms) and all(t.map in (BROADCAST, RESHAPE) for t in terms))


def _has_size_of(held: fx.Node, other: fx.Node, node: fx.Node) -> bool:
    """Whether every dimension of ``held`` meets one of the same size in ``other``."""
    if not (access.is_tensor(held) and access.is_tensor(other)):
        return False
    rank = len(access.shape(node))
    mine, theirs = (
        (1,) * (rank - len(shape)) + shape for shape in map(access.shape, (held, other))
    )
    met = [
        isinstance(a, int) and isinstance(b, int) and a == b
        for a, b in zip(mine, theirs, strict=False)
        if not (isinstance(a, int) and a == 1)
    ]
    return bool(met) and all(met)
