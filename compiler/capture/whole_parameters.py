"""Parameters that cannot be shards, because a whole tensor of their size meets them.

A parameter, or an elementwise function of the model's tensors alone, that meets a value which is
the same on all ranks in an elementwise op, or as the weight of its norm, has the size of the whole.
What is the same, ``analysis.replication`` says; but ``zeros_like(x)``, of which only the size
matters, is as small as a shard if ``x`` is one: nothing follows for a parameter that meets it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import fx

from compiler.analysis.replication import replicated_axes, replication
from compiler.ir import access, collectives
from compiler.ir.graph import SpmdGraph
from compiler.ir.rules import BROADCAST, RESHAPE, Meaning

Axes = frozenset[str]

NORMS = frozenset({"rms_norm", "layer_norm", "native_layer_norm", "_fused_rms_norm"})
"""Names of ops that multiply by a weight of the size of the normalized dimensions."""


def met_by_same(graph: SpmdGraph, state: Mapping[str, bool]) -> dict[str, tuple[Axes, str]]:
    """Find the parameters that a whole tensor of their size meets.

    Args:
        graph: Replicate among its inputs are those that are the same.
        state: placeholder of a tensor of the model -> whether to ask about it.

    Returns:
        Placeholder -> axes along which it has to be the same, and the op that shows it.
    """
    whole = _whole(graph)
    made_of: dict[fx.Node, frozenset[fx.Node]] = {}
    required: dict[str, tuple[Axes, str]] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            if (asked := state.get(str(node.target))) is not None:
                made_of[node] = frozenset({node} if asked else ())
            continue
        meaning = graph.meanings.get(node)
        if meaning is None or not access.is_tensor(node):
            continue
        operands = access.operands(node)
        for block, other in _meetings(node, meaning, operands):
            for parameter in made_of.get(block, ()) if other not in made_of else ():
                if missing := whole[other] - whole[parameter]:
                    where = f"{node.target} at {access.source_line(node) or node.name}"
                    required.setdefault(str(parameter.target), (missing, where))
        if all(x in made_of for x in operands) and _is_elementwise(meaning):
            made_of[node] = frozenset().union(*(made_of[x] for x in operands))
    return required


def _whole(graph: SpmdGraph) -> dict[fx.Node, Axes]:
    """Return value -> axes along which it is the same, and not because only sizes went into it."""
    classes, everywhere = replication(graph), frozenset(graph.mesh.axes)
    sized: dict[fx.Node, Axes] = {}
    whole: dict[fx.Node, Axes] = {}
    for node in classes:
        meaning = graph.meanings.get(node)
        sizes = whole if meaning is not None and meaning.reads == frozenset() else sized
        sized[node] = everywhere.intersection(*(sizes[x] for x in node.all_input_nodes))
        if (group := collectives.group_of(node)) is not None:
            sized[node] |= frozenset(graph.mesh.axes_of(group) or ())
        whole[node] = sized[node] & replicated_axes(graph.mesh, classes[node])
    return whole


def _meetings(
    node: fx.Node, meaning: Meaning, operands: Sequence[fx.Node]
) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield pairs of operands of which the first is as large as the whole of the second."""
    if getattr(getattr(node.target, "overloadpacket", None), "__name__", "") in NORMS:
        yield from ((weight, operands[0]) for weight in operands[1:])
    elif _is_elementwise(meaning):
        yield from ((a, b) for a in operands for b in operands if _has_size_of(a, b, node))


def _is_elementwise(meaning: Meaning) -> bool:
    if meaning.random:
        return False
    terms = meaning.terms or ()
    return meaning.pointwise or (bool(terms) and all(t.map in (BROADCAST, RESHAPE) for t in terms))


def _has_size_of(value: fx.Node, other: fx.Node, node: fx.Node) -> bool:
    """Return whether every dimension of ``value`` meets one of the same size in ``other``."""
    if not (access.is_tensor(value) and access.is_tensor(other)):
        return False
    rank = len(access.shape(node))
    mine, theirs = (
        (1,) * (rank - len(shape)) + shape for shape in map(access.shape, (value, other))
    )
    met = [
        isinstance(a, int) and isinstance(b, int) and a == b
        for a, b in zip(mine, theirs, strict=False)
        if not (isinstance(a, int) and a == 1)
    ]
    return bool(met) and all(met)
