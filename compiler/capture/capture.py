"""Trace, ask the other ranks, name the groups, place the inputs: the steps of capture."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import fx, nn
from torch.export import ExportedProgram

from compiler.capture import declared_placements, groups, input_placements, rank_traces
from compiler.capture.export import is_spmd, lift_module, trace, trace_program
from compiler.capture.export_errors import ON_DTENSORS
from compiler.capture.functionalize import NotRecordedError
from compiler.capture.rank_traces import Description, Ranks
from compiler.capture.record import Shared, record
from compiler.capture.trace import GraphCall, StateKind, Traced
from compiler.errors import CaptureError, CommPlanError, MeshError
from compiler.garbage import collection_paused
from compiler.ir import collectives
from compiler.ir.dialects import read
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.ir.rank_exchange import Exchange

Model = nn.Module | ExportedProgram | Traced
Progress = Callable[[str], None]

TRACERS = {"auto": ("record", "export"), "record": ("record",), "export": ("export",)}
NOT_COMPARED = (
    "there were no other ranks to compare with: numbers and tensors that the model's code computes "
    "from its rank were taken to be the same on all ranks; capture_ranks() finds them"
)


@dataclass(frozen=True, kw_only=True)
class Capture(GraphCall):
    """A captured model.

    Attributes:
        graph: the SPMD graph; see ``Traced`` for its inputs and outputs.
        state: placeholder -> key of a parameter or buffer in the model.
        constants: placeholder -> tensor that the model's code made, on this rank.
        groups: name on the mesh -> this process's name of the group.
        assumed: what is taken to be the same on all ranks, and why, without having been compared.
        remarks: what a reader should know besides.
        seconds: time spent.
    """

    graph: SpmdGraph
    state: Mapping[str, str]
    constants: Mapping[str, torch.Tensor]
    groups: Mapping[str, str]
    assumed: tuple[str, ...]
    remarks: tuple[str, ...]
    seconds: float


@collection_paused()
def capture(
    model: Model,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
    inputs: input_placements.Given | None = None,
    progress: Progress | None = None,
    capture: str = "auto",
) -> Capture:
    """Capture ``model`` as it runs on this rank, and compare with the other ranks.

    Args:
        model: a tensor-parallel model, already sharded. A GraphModule of functional ops with
            ``meta["val"]`` is taken as it is, and so is what is traced already.
        args: example arguments; sizes of two and more become symbolic where the model allows.
        kwargs: example keyword arguments.
        mesh: the mesh to name groups on; built from the groups the model uses if None.
        exchange: the ranks to compare with; all of them must call. None where there are none, as
            under a fake process group: then nothing is compared.
        inputs: placements that override all others, by argument, placeholder or state_dict key.
        progress: told what is being done.
        capture: "record" runs the model once under a recorder, in seconds; "export" uses
            torch.export. "auto" records where that works on all ranks, and exports elsewhere, with
            a remark that says why. Programs and graphs are taken as they are.

    Raises:
        CaptureError: the model cannot be traced, or the ranks run different programs.
        MeshError: a group that does not resolve, or that the mesh does not have.
        PlacementError: a tensor that has to be the same on all ranks and is not.
    """
    started, tell = time.perf_counter(), progress or (lambda _: None)
    why = stopped = ""
    for method in tracers(capture):
        tell("tracing the model")
        failure: CommPlanError | None = None
        trace, mine, bail = None, None, ""
        try:
            trace = traced(model, args, kwargs or {}, method, mesh=mesh)
            mine = described(trace, mesh)
        except NotRecordedError as error:
            bail = str(error)
        except CommPlanError as error:
            failure = _with_reason(error, stopped)
        if exchange is not None:
            tell("comparing with the other ranks")
            try:
                everyone = rank_traces.gathered(exchange, mine, str(failure or ""), bail)
            except NotRecordedError as error:
                bail = str(error)
            except CaptureError:
                if failure is None:
                    raise
        if failure is not None:
            raise failure
        if not bail:
            break
        why, stopped = by_export(capture, bail), bail
    assert trace is not None, "a failed trace was raised"
    assert mine is not None, "a failed trace was raised"
    where = _alone(mine, mesh) if exchange is None else _asked(exchange, everyone)
    tell("placing the inputs")
    declared = inputs or {}
    result = assembled(
        model,
        trace,
        where,
        mesh,
        declared,
        lambda stated: input_placements.compare(trace, exchange, stated, declared),
    )
    alone = exchange is None and where.size > 1
    notes = [note for note in (why, NOT_COMPARED if alone else "") if note]
    seconds = time.perf_counter() - started
    return replace(result, remarks=(*notes, *result.remarks), seconds=seconds)


def _with_reason(error: CommPlanError, stopped: str) -> CommPlanError:
    """Return an error of torch.export; of a model on DTensors, with what stopped the recorder."""
    if not stopped or error.what != ON_DTENSORS:
        return error
    cause = "; ".join(filter(None, (error.found, f"the recorder stopped before: {stopped}")))
    return type(error)(error.what, where=error.where, found=cause, remedy=error.remedy)


def tracers(tracer: str) -> tuple[str, ...]:
    """Return the methods of ``tracer`` in the order in which they are tried; see ``capture``."""
    if tracer not in TRACERS:
        raise CaptureError(f"capture= must be one of {', '.join(TRACERS)}, got {tracer!r}")
    return TRACERS[tracer]


def by_export(tracer: str, reason: str) -> str:
    """Return the remark that torch.export traces the model instead.

    Raises:
        CaptureError: ``tracer`` does not allow it.
    """
    if tracer == "record":
        raise CaptureError(
            "the model cannot be recorded",
            found=reason,
            remedy='leave out capture="record": torch.export may trace it',
        )
    return f"captured by torch.export: {reason}"


def traced(
    model: Model,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    method: str = "export",
    shared: Shared | None = None,
    mesh: Mesh | None = None,
) -> Traced:
    """Trace a model, a program or a graph; see ``capture`` and ``record``.

    Ops that are declared (``compiler.ir.dialects``) are read as what they do.

    Raises:
        NotRecordedError: it cannot be recorded.
        CaptureError: it cannot be traced.
    """
    one = _as_it_is(model, args, kwargs, method, shared)
    ranks_of, world = groups.sizes(mesh)
    return replace(one, graph=read(one.graph, ranks_of, world))


def _as_it_is(
    model: Model,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    method: str,
    shared: Shared | None,
) -> Traced:
    """Trace a model, a program or a graph."""
    if isinstance(model, Traced):
        return model
    if isinstance(model, ExportedProgram):
        return trace_program(model)
    if isinstance(model, fx.GraphModule) and is_spmd(model):
        return lift_module(model)
    one = record(model, args, kwargs, shared) if method == "record" else trace(model, args, kwargs)
    return replace(one, cut=declared_placements.cut_of(model))


def described(trace: Traced, mesh: Mesh | None) -> Description:
    """Describe this rank's trace; a group name that ``mesh`` knows needs no process group.

    Raises:
        MeshError: a group that neither ``mesh`` nor this process knows.
    """
    graph = trace.graph
    names = [n for n in collectives.all_group_names(graph) if mesh is None or n not in mesh.groups]
    members_of = {name: groups.members(name) for name in names}
    if unknown := [name for name, members in members_of.items() if members is None]:
        raise groups.unresolved(unknown[0])
    members_of |= {name: groups.members(name) for name in declared_placements.groups_of(trace.cut)}
    resolved = {name: members for name, members in members_of.items() if members is not None}
    return rank_traces.describe(graph, resolved, {name: groups.label(name) for name in resolved})


def _asked(exchange: Exchange, everyone: Mapping[int, Description]) -> Ranks:
    """Return all ranks of ``exchange``."""
    here = dist.get_rank() if dist.is_initialized() else exchange.rank
    positions = {who: i for i, who in enumerate(exchange.gather(here))}
    return Ranks(exchange.size, exchange.rank, everyone, positions)


def _alone(mine: Description, mesh: Mesh | None) -> Ranks:
    """Return the ranks as far as one process can tell: of the world, or of the only group."""
    world = dist.get_world_size() if dist.is_initialized() else (mesh.size if mesh else 1)
    here = dist.get_rank() if dist.is_initialized() else 0
    listed: Iterable[int] = range(world)
    spanned = set(mine.groups.values())
    if len(spanned) == 1 and (mesh is None or mesh.size == len(next(iter(spanned)))):
        listed = next(iter(spanned))
    positions = {who: i for i, who in enumerate(listed)}
    rank = positions.get(here, 0)
    return Ranks(len(positions), rank, {rank: mine}, positions)


def assembled(
    model: Model,
    traced: Traced,
    where: Ranks,
    mesh: Mesh | None,
    declared: input_placements.Given,
    compare: Callable[[declared_placements.Declared], input_placements.Digests],
) -> Capture:
    """Return the capture, from what this rank traced and what is known of the others.

    Args:
        model: the model that was traced.
        traced: its trace. Rank constants are marked, and groups renamed, in place.
        where: the ranks.
        mesh: the mesh to name groups on, None to build one.
        declared: the caller's placements.
        compare: digests of the model's tensors on all ranks, given what the model declares.
    """
    if mesh is not None and mesh.size != where.size:
        raise MeshError(
            "the mesh and the process group must have the same size",
            found=f"a mesh of {mesh.size}, a process group of {where.size} ranks",
            remedy="pass the mesh of all ranks that run the model",
        )
    rank_traces.mark(traced.graph, where.rank, where.constants)
    resolved = groups.resolve(where, mesh)
    collectives.rename_groups(traced.graph, resolved.names)

    def axis_of(name: str) -> str | None:
        members = where.groups[where.rank].get(name)
        axes = resolved.mesh.axes
        groups_of = {axis: resolved.mesh.groups[axis].group_of[where.rank] for axis in axes}
        return next((axis for axis in axes if groups_of[axis] == members), None)

    stated, notes = declared_placements.declared_by(model, traced, resolved.mesh, axis_of)
    spmd_graph, assumed = input_placements.place(
        traced, resolved.mesh, declared, stated, compare(stated)
    )
    made_tensors = {n: s for n, s in traced.state.items() if s.kind is StateKind.CONSTANT}
    return Capture(
        graph=spmd_graph,
        state={name: s.key for name, s in traced.state.items() if name not in made_tensors},
        constants={name: s.tensor for name, s in made_tensors.items()},
        groups={on_mesh: own for own, on_mesh in resolved.names.items()},
        assumed=(*resolved.assumed, *assumed),
        remarks=notes,
        seconds=0.0,
        **{field.name: getattr(traced, field.name) for field in fields(GraphCall)},
    )
