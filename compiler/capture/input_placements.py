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
from dataclasses import dataclass

from torch import fx, nn

from compiler.analysis.replication import numbered, replicated_axes, replication
from compiler.capture.declared_placements import Declared
from compiler.capture.digest import digests
from compiler.capture.lift_state import LiftedGraph, StateKind
from compiler.capture.rank_traces import by_value
from compiler.capture.whole_parameters import Axes, met_by_same
from compiler.errors import PlacementError
from compiler.ir import access
from compiler.ir.declared_inputs import Inputs, by_input
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Placement, Placements, Replicate, Varying, placements_on
from compiler.ir.rank_exchange import Exchange
from compiler.ir.rules import Meaning

Given = Inputs
Digests = Mapping[str, Mapping[int, str]]
"""Placeholder -> rank -> digest, for tensors that every rank could digest."""


@dataclass(frozen=True)
class Placed:
    """Placements of all inputs, which Replicate among them were not compared and why, meanings."""

    inputs: Mapping[str, Placements]
    assumed: tuple[str, ...]
    meanings: Mapping[fx.Node, Meaning | None]


def place(
    lifted: LiftedGraph, mesh: Mesh, declared_inputs: Given, declared: Declared, compared: Digests
) -> Placed:
    """The placement of every placeholder.

    Args:
        lifted: the graph, group names as on ``mesh``.
        mesh: resolves them.
        declared_inputs: the caller's placements, by placeholder or by key in the model.
        declared: the model's placements, by key.
        compared: digests of the model's tensors, empty if no ranks can be asked.

    Raises:
        PlacementError: a name that is not an input, a placement that does not fit, or tensors that
            have to be the same on all ranks and differ.
    """
    stated = _stated(lifted, mesh, declared_inputs, declared)
    for name, placements in stated.items():
        _check_replicated(lifted, mesh, name, placements, compared, "it is declared Replicate")
    everywhere = frozenset(mesh.axes)
    same: dict[str, Axes] = {}
    assumed: dict[str, str] = {}
    for node in access.node_of(lifted.graph, "placeholder"):
        name = str(node.target)
        state = lifted.state.get(name)
        if name in stated:
            same[name] = _replicated_axes(mesh, stated[name])
            if same[name] and state is not None and name not in compared:
                assumed[name] = "declared, not compared"
        elif name in compared:
            same[name] = _equal_along(mesh, compared[name])
        elif name in lifted.cached and access.dtype(node).is_floating_point:
            same[name] = frozenset()
        elif state is None and not access.state_key(node):
            same[name] = everywhere
            assumed[name] = "an argument; compared at the first call where ranks can be asked"
        elif state is not None and state.kind in (StateKind.TRANSIENT, StateKind.CONSTANT):
            same[name] = everywhere
            assumed[name] = "computed by the model's code, not compared"
        else:
            same[name] = frozenset()
    blank = SpmdGraph(nn.Module(), lifted.graph, mesh, {})
    same, reasons = _settle(lifted, blank, same, stated, compared)
    assumed |= reasons
    inputs = {
        name: stated.get(name) or _replicated_along(mesh, axes) for name, axes in same.items()
    }
    lines = (
        f"{_title(lifted, name)}: {why}"
        for name, why in assumed.items()
        if same[name] and mesh.size > 1
    )
    return Placed(inputs, tuple(lines), blank.meanings)


def compare(
    lifted: LiftedGraph, exchange: Exchange | None, declared: Declared, declared_inputs: Given
) -> dict[str, dict[int, str]]:
    """Digests of the model's tensors on every rank; shards, declared to differ, are left out."""
    if exchange is None:
        return {}
    stated = declared_by(lifted, declared_inputs)
    wanted = {
        name: state.tensor
        for name, state in lifted.state.items()
        if not _is_sharded(stated.get(name, declared.get(state.key)))
    }
    everyone = exchange.gather(digests(wanted))
    shared = set.intersection(*map(set, everyone))
    return {name: {r: d[name] for r, d in enumerate(everyone)} for name in wanted if name in shared}


def declared_by(
    lifted: LiftedGraph, declared_inputs: Given
) -> dict[str, Placement | Mapping[str, Placement]]:
    """Placeholder -> what the caller declares of it, by its name or its key in the model.

    Raises:
        PlacementError: a name that is not an input, or two that differ about one.
    """
    nodes = {str(n.target): n for n in access.node_of(lifted.graph, "placeholder")}
    state = {name: tensor.key for name, tensor in lifted.state.items()}
    keys = {state.get(name) or access.state_key(node): name for name, node in nodes.items()}
    keys.pop("", None)
    return by_input(declared_inputs, {name: name for name in nodes} | keys, "model")


def _is_sharded(placement: Placement | Mapping[str, Placement] | None) -> bool:
    if isinstance(placement, Mapping):
        return bool(placement) and not any(isinstance(p, Replicate) for p in placement.values())
    return placement is not None and not isinstance(placement, Replicate)


def _stated(
    lifted: LiftedGraph, mesh: Mesh, declared_inputs: Given, declared: Declared
) -> dict[str, Placements]:
    keys = {state.key: name for name, state in lifted.state.items()}
    written = set(lifted.mutations.values())
    placements = {
        keys[key]: placements_on(mesh, placement, key)
        for key, placement in declared.items()
        if key in keys and (placement or keys[key] not in written)
    }
    stated = {n: placements_on(mesh, p, n) for n, p in declared_by(lifted, declared_inputs).items()}
    return placements | stated


def _replicated_axes(mesh: Mesh, placements: Placements) -> Axes:
    pairs = zip(mesh.axes, placements, strict=True)
    return frozenset(axis for axis, placement in pairs if isinstance(placement, Replicate))


def _replicated_along(mesh: Mesh, axes: Axes) -> Placements:
    return tuple(Replicate() if axis in axes else Varying() for axis in mesh.axes)


def _equal_along(mesh: Mesh, values: Mapping[int, str]) -> Axes:
    return replicated_axes(mesh, numbered(values[rank] for rank in range(mesh.size)))


def _settle(
    lifted: LiftedGraph,
    blank: SpmdGraph,
    start: Mapping[str, Axes],
    stated: Mapping[str, Placements],
    compared: Digests,
) -> tuple[dict[str, Axes], dict[str, str]]:
    """Sameness of inputs to a fixed point: written tensors lose it, whole parameters gain it."""
    mesh = blank.mesh
    written = {n: i for i, n in lifted.mutations.items() if n not in stated}
    asked = {
        name: state.kind in (StateKind.PARAMETER, StateKind.BUFFER)
        and name not in stated
        and name not in written
        for name, state in lifted.state.items()
    }
    gained = dict(start)
    reasons: dict[str, str] = {}
    while True:
        same, graph = _kept_by_writes(blank, gained, written)
        required = met_by_same(graph, asked)
        if not required:
            return same, reasons
        for name, (axes, why) in required.items():
            reason = f"it meets a value that is the same on all ranks in {why}"
            if name in compared:
                placements = _replicated_along(mesh, axes)
                _check_replicated(lifted, mesh, name, placements, compared, reason)
            gained[name] |= axes
            reasons[name] = reason


def _kept_by_writes(
    blank: SpmdGraph, inputs: Mapping[str, Axes], written: Mapping[str, int]
) -> tuple[dict[str, Axes], SpmdGraph]:
    """``inputs`` without the axes along which what is written to them may differ, and their graph.

    Args:
        blank: the graph, without placements.
        inputs: placeholder -> axes along which it is the same.
        written: placeholder -> index of the result that is written to it.
    """
    mesh, kept, results = blank.mesh, dict(inputs), access.results(access.output(blank.graph))
    while True:
        placements = {name: _replicated_along(mesh, axes) for name, axes in kept.items()}
        graph = SpmdGraph(blank.root, blank.graph, mesh, placements, blank.meanings)
        classes = replication(graph)
        after = {
            n: kept[n] & replicated_axes(mesh, classes[results[i]]) for n, i in written.items()
        }
        if all(after[name] == kept[name] for name in written):
            return kept, graph
        kept |= after


def _check_replicated(
    lifted: LiftedGraph,
    mesh: Mesh,
    name: str,
    placements: Placements,
    compared: Digests,
    reason: str,
) -> None:
    """Raise PlacementError if a tensor that has to be Replicate differs between ranks."""
    if name not in compared:
        return
    wrong = _replicated_axes(mesh, placements) - _equal_along(mesh, compared[name])
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
            f"{_title(lifted, name)} has to be the same on all ranks of axis {axis!r} and is not",
            where=reason,
            found=by_value(short),
            remedy="load the same values on every rank, or, if they are meant to differ, pass "
            f"inputs={{{_key(lifted, name)!r}: Varying()}}",
        )


def _key(lifted: LiftedGraph, name: str) -> str:
    return lifted.state[name].key if name in lifted.state else name


def _title(lifted: LiftedGraph, name: str) -> str:
    kind = str(lifted.state[name].kind) if name in lifted.state else "argument"
    return f"{kind} {_key(lifted, name)!r}"
