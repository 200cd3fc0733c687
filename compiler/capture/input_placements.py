"""What each rank holds of a graph's inputs: declared, compared across ranks, or inferred.

In this order: the caller's ``inputs=``; what the model declares (DTensors, ``tp_plan``); equality
of the tensors on all ranks, by digest, where there are ranks to ask; and where a parameter meets a
whole tensor of its size, that it is one too. Whatever is taken to be the same without having been
compared is listed as assumed. Arguments are compared when the graph is first called; numbers with
a fraction in caches never are: each rank has its own heads, and caches that are all zero would be
equal by chance.

A tensor that the graph writes to counts as the same on all ranks only if what is written is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from compiler.analysis.replication import numbered, replicated_axes, replication
from compiler.capture.declared_placements import Declared
from compiler.capture.digest import digests
from compiler.capture.rank_traces import by_value
from compiler.capture.trace import StateKind, Traced
from compiler.capture.whole_parameters import Axes, met_by_same
from compiler.errors import PlacementError
from compiler.ir import access
from compiler.ir.declared_inputs import Inputs, by_input
from compiler.ir.graph import SpmdGraph, spmd_graph_of
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Placement, Placements, Replicate, Varying, placements_on
from compiler.ir.rank_exchange import Exchange

Given = Inputs
Digests = Mapping[str, Mapping[int, str]]
"""Placeholder -> rank -> digest, for tensors that every rank could digest."""


def place(
    trace: Traced, mesh: Mesh, declared_inputs: Given, declared: Declared, compared: Digests
) -> tuple[SpmdGraph, tuple[str, ...]]:
    """Place every input of a trace.

    Args:
        trace: group names as on ``mesh``.
        mesh: resolves them.
        declared_inputs: the caller's placements, by placeholder or by key in the model.
        declared: the model's placements, by key.
        compared: digests of the model's tensors, empty if no ranks can be asked.

    Returns:
        The graph, and which of its inputs are Replicate without having been compared, and why.

    Raises:
        PlacementError: a name that is not an input, a placement that does not fit, or tensors that
            have to be the same on all ranks and differ.
    """
    stated = _stated(trace, mesh, declared_inputs, declared)
    for name, placements in stated.items():
        axes = _replicated_axes(mesh, placements)
        _check_replicated(trace, mesh, name, axes, compared, "it is declared Replicate")
    same: dict[str, Axes] = {}
    assumed: dict[str, str] = {}
    for node in access.node_of(trace.graph, "placeholder"):
        name = str(node.target)
        state = trace.state.get(name)
        why = ""
        if name in stated:
            same[name] = _replicated_axes(mesh, stated[name])
            why = "declared, not compared" if state is not None and name not in compared else ""
        elif name in compared:
            same[name] = _equal_along(mesh, compared[name])
        elif name in trace.cached and access.dtype(node).is_floating_point:
            same[name] = frozenset()
        elif state is None and not access.state_key(node):
            why = "an argument; compared at the first call where ranks can be asked"
        elif state is not None and state.kind in (StateKind.TRANSIENT, StateKind.CONSTANT):
            why = "computed by the model's code, not compared"
        else:
            same[name] = frozenset()
        same.setdefault(name, frozenset(mesh.axes))
        assumed |= {name: why} if why else {}
    settled, reasons = _settled(trace, mesh, same, stated, compared)
    inputs = {
        name: dict(zip(mesh.axes, stated.get(name, placements), strict=True))
        for name, placements in settled.inputs.items()
    }
    graph = spmd_graph_of(settled.root, trace.graph, mesh, inputs)
    lines = (
        f"{_title(trace, name)}: {why}"
        for name, why in (assumed | reasons).items()
        if Replicate() in settled.inputs[name] and mesh.size > 1
    )
    return replace(graph, copied=settled.meanings), tuple(lines)


def compare(
    trace: Traced, exchange: Exchange | None, declared: Declared, declared_inputs: Given
) -> dict[str, dict[int, str]]:
    """Return digests of the model's tensors on all ranks, but of shards, which differ."""
    if exchange is None:
        return {}
    stated = _declared(trace, declared_inputs)
    wanted = {
        name: state.tensor
        for name, state in trace.state.items()
        if not _is_sharded(stated.get(name, declared.get(state.key)))
    }
    everyone = exchange.gather(digests(wanted))
    shared = set.intersection(*map(set, everyone))
    return {name: {r: d[name] for r, d in enumerate(everyone)} for name in wanted if name in shared}


def _declared(
    trace: Traced, declared_inputs: Given
) -> dict[str, Placement | Mapping[str, Placement]]:
    """Return what the caller declares of placeholders, by their names or keys in the model.

    Raises:
        PlacementError: a name that is not an input, or two that differ about one.
    """
    nodes = {str(n.target): n for n in access.node_of(trace.graph, "placeholder")}
    state = {name: tensor.key for name, tensor in trace.state.items()}
    keys = {state.get(name) or access.state_key(node): name for name, node in nodes.items()}
    keys.pop("", None)
    return by_input(declared_inputs, {name: name for name in nodes} | keys, "model")


def _is_sharded(placement: Placement | Mapping[str, Placement] | None) -> bool:
    per_axis = placement.values() if isinstance(placement, Mapping) else (placement,)
    return any(per_axis) and not any(isinstance(p, Replicate) for p in per_axis)


def _stated(
    trace: Traced, mesh: Mesh, declared_inputs: Given, declared: Declared
) -> dict[str, Placements]:
    keys = {state.key: name for name, state in trace.state.items()}
    written = set(trace.mutations.values())
    placements = {
        keys[key]: placements_on(mesh, placement, key)
        for key, placement in declared.items()
        if key in keys and (placement or keys[key] not in written)
    }
    stated = {n: placements_on(mesh, p, n) for n, p in _declared(trace, declared_inputs).items()}
    return placements | stated


def _replicated_axes(mesh: Mesh, placements: Placements) -> Axes:
    pairs = zip(mesh.axes, placements, strict=True)
    return frozenset(axis for axis, placement in pairs if isinstance(placement, Replicate))


def _equal_along(mesh: Mesh, values: Mapping[int, str]) -> Axes:
    return replicated_axes(mesh, numbered(values[rank] for rank in range(mesh.size)))


def _settled(
    trace: Traced,
    mesh: Mesh,
    start: Mapping[str, Axes],
    stated: Mapping[str, Placements],
    compared: Digests,
) -> tuple[SpmdGraph, dict[str, str]]:
    """Settle what is the same: written tensors lose axes, parameters that meet whole ones gain.

    Each input starts with the axes along which it is the same by itself; those that are ``stated``
    stay. Returns the graph with a placement for every input, and why parameters gained axes.
    """
    blank = SpmdGraph(nn.Module(), trace.graph, mesh, {})
    results = access.results(access.output(trace.graph))
    written = {n: results[i] for i, n in trace.mutations.items() if n not in stated}
    asked = {
        name: state.kind in (StateKind.PARAMETER, StateKind.BUFFER)
        and name not in stated
        and name not in written
        for name, state in trace.state.items()
    }
    gained, same, reasons = dict(start), dict(start), dict[str, str]()
    while True:
        placements = {
            name: tuple(Replicate() if axis in axes else Varying() for axis in mesh.axes)
            for name, axes in same.items()
        }
        graph = SpmdGraph(blank.root, trace.graph, mesh, placements, blank.meanings)
        classes = replication(graph)
        after = {n: same[n] & replicated_axes(mesh, classes[x]) for n, x in written.items()}
        if any(after[name] != same[name] for name in written):
            same |= after
            continue
        required = met_by_same(graph, asked)
        if not required:
            return graph, reasons
        for name, (axes, why) in required.items():
            reasons[name] = f"it meets a value that is the same on all ranks in {why}"
            _check_replicated(trace, mesh, name, axes, compared, reasons[name])
            gained[name] |= axes
        same = dict(gained)


def _check_replicated(
    trace: Traced,
    mesh: Mesh,
    name: str,
    axes: Axes,
    compared: Digests,
    reason: str,
) -> None:
    """Refuse a tensor that has to be the same along ``axes`` and differs between ranks."""
    if name not in compared:
        return
    wrong = axes - _equal_along(mesh, compared[name])
    for axis in mesh.axes:
        if axis not in wrong:
            continue
        conflict = next(
            {rank: compared[name][rank] for rank in group}
            for group in mesh.groups[axis].ranks
            if len({compared[name][rank] for rank in group}) > 1
        )
        short = {rank: f"digest {text[:8]}" for rank, text in conflict.items()}
        raise PlacementError(
            f"{_title(trace, name)} has to be the same on all ranks of axis {axis!r} and is not",
            where=reason,
            found=by_value(short),
            remedy="load the same values on every rank, or, if they are meant to differ, pass "
            f"inputs={{{_key(trace, name)!r}: Varying()}}",
        )


def _key(trace: Traced, name: str) -> str:
    return trace.state[name].key if name in trace.state else name


def _title(trace: Traced, name: str) -> str:
    kind = str(trace.state[name].kind) if name in trace.state else "argument"
    return f"{kind} {_key(trace, name)!r}"
