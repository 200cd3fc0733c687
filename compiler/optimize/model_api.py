"""Optimize a model: capture, plan, rewrite, prove, run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from compiler.analysis.layers import LayerMetadata, layer_metadata
from compiler.capture import CallForm, Capture
from compiler.capture.capture import capture as capture_model
from compiler.capture.capture import tracers
from compiler.cost import Machine, MachineError
from compiler.errors import CommPlanError
from compiler.ir.declared_inputs import Inputs
from compiler.ir.mesh import Mesh, check_mesh
from compiler.ir.placement import Replicate, check_inputs
from compiler.ir.rank_exchange import Exchange
from compiler.ir.remark import Remark, RemarkKind
from compiler.optimize.optimizer import optimize
from compiler.optimize.report import ModelReport
from compiler.optimize.result import OptimizationResult
from compiler.optimize.validation import AUTO, device_of, planner_options
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from compiler.plan.token_ranges import TokenTable
from compiler.runtime.guarded_graph import GuardedGraph
from compiler.runtime.lowering import Lowered, lower
from compiler.runtime.module import OptimizedModule
from compiler.runtime.process_groups import ProcessGroups
from compiler.runtime.rank_agreement import compare_inputs, compare_plans, exchange_over, ranks_of
from compiler.runtime.view import OptimizedView, view_of
from compiler.runtime.watch import Reason, compare_reasons


def optimize_allreduce(
    model: nn.Module | ExportedProgram,
    example_inputs: Sequence[Any] | Mapping[str, Any] | torch.Tensor | None = None,
    *,
    mesh: Mesh | None = None,
    inputs: Inputs | None = None,
    layers: Sequence[LayerMetadata | str] | None = None,
    machine: str | Path | Machine | None = "auto",
    launch: str = "graph",
    policy: str = "cost",
    verify: bool = True,
    group: Any = None,
    debug: bool = False,
    widen: bool = False,
    kernels: str = "auto",
    capture: str = "auto",
) -> OptimizedModule | OptimizedView:
    """Place a tensor-parallel model's all_reduces where they cost least, proven equivalent.

    Called on every rank, before serving, with the process group initialized. Each kind of call is
    captured, planned and proven once, at its first call: a kind is the tree of the arguments, the
    types and values of those that are not tensors (each value of a Python number is a kind of its
    own: pass a tensor), the element types, devices and numbers of dimensions of those that are,
    which of their sizes are 0, 1 or more, and autocast. A model that is changed afterwards, in
    attributes, modules, hooks or code that the capture read, is captured anew at its next call.

    Args:
        model: tensor-parallel, already sharded: an ``nn.Module`` (a ``GraphModule`` is one), or
            an ``ExportedProgram``. Not changed.
        example_inputs: positional arguments as a sequence, or keyword arguments as a mapping;
            sizes of two and more become symbolic. None: capture at the first call.
        mesh: names the ranks' axes; default: from the groups that the graph uses.
        inputs: argument name, state_dict key or pattern, in which ``*`` stands for one part ->
            placement, or {axis: placement}; axes left out are Replicate. They override what is
            found by comparing ranks: with data parallelism ``{"x": {"dp": Varying()}}``, with rows
            cut outside the model ``{"x": Shard(0)}``.
        layers: kind of each decoder layer, "dense" or "sparse"; default: from ``model.config``,
            else from the graph.
        machine: what plans are compared on: a name (``commplan machine list``), the path of a
            machine file, or a ``Machine``; with one, there is a plan per range of token counts.
            "auto": the machine that has the model's GPUs, if there is one that knows the groups
            of the model, else none, as None says: plans compare by payload bytes.
        launch: how kernels are launched on it, "eager" or in a CUDA "graph".
        policy: "cost", "merge", "boundary" or "off".
        verify: check every graph before it runs; without it graphs run unproved, and say so.
        group: process group of all ranks that call this; default: all ranks of the job.
        debug: compare inputs taken to be the same on all ranks at every call, not the first only.
        widen: reductions may move below conversions to a wider type, where that pays.
        kernels: "auto" fuses reductions with the addition and RMSNorm behind them, where CUDA,
            Triton and symmetric memory are there; "off" does not. The report says which and why.
        capture: "record" runs the model once under a recorder, in seconds; "export" traces it with
            torch.export. "auto" records what it can, and the report says why where it cannot.

    Returns:
        A view of the model: an instance of a subclass of its class, with the same attributes,
        parameters and methods, that runs proven graphs when it is called. ``.report`` tells what
        was done, ``.graph_module(num_tokens)`` the graph that runs, ``.original`` is the model. Of
        a GraphModule or ExportedProgram, an ``OptimizedModule``.

    Raises:
        CommPlanError: no model, or an option there is not.
        CaptureError: the model cannot be captured, or ranks run different programs.
        MeshError: no process group, no mesh, or a group name that does not resolve, or is of
            other ranks than ``group``.
        MachineError: no such machine, or one that does not know a collective of the model.
        PlacementError: a tensor that must be the same on all ranks differs, or ``inputs`` does not
            fit the model.
        VerificationError: a rewritten graph could not be shown equivalent; nothing runs.
    """
    check_model(model)
    if mesh is not None:
        check_mesh(mesh)
    check_inputs(inputs)
    tracers(capture)
    owner = model.module() if isinstance(model, ExportedProgram) else model
    options = planner_options(
        policy, machine, launch, device=device_of(owner), widen=widen, kernels=kernels
    )
    everyone = ranks_of(group)
    exchange, process_groups = exchange_over(everyone), ProcessGroups(everyone)
    options = replace(options, allow_new_groups=process_groups.may_grow)

    def prepare(args: tuple[Any, ...], kwargs: Mapping[str, Any], reason: Reason) -> GuardedGraph:
        if exchange is not None:
            compare_reasons(exchange, reason)
        captured = capture_model(
            model, args, dict(kwargs), mesh=mesh, exchange=exchange, inputs=inputs, capture=capture
        )
        result, report = optimize_captured(
            captured, options, config=getattr(owner, "config", None), layers=layers, verify=verify,
            may_fall_back=machine == AUTO,
        )  # fmt: skip
        if exchange is not None:
            sizes = _sizes(CallForm.of(owner), args, kwargs)
            agree(exchange, result, options, sizes, kernels=kernels, verify=verify)
        variants = lower_ranges(
            result, captured, process_groups, mutations=captured.mutations, kernels=kernels
        )
        said = (*_notes(captured, reason), *remarks_of(variants))
        return GuardedGraph(
            variants=variants,
            symbol=result.symbol,
            captured=captured,
            report=replace(report, remarks=(*report.remarks, *dict.fromkeys(said))),
            compare_inputs=_comparison(exchange, captured) if exchange else None,
        )

    if everyone.size() == 1:
        why = "world size 1: no rank owes another a sum; the model runs as it is"
        note = Remark(RemarkKind.NOTE, "", why)
        return view_of(
            OptimizedModule(owner, prepare, unchanged=ModelReport(None, (note,)), debug=debug)
        )
    optimized = OptimizedModule(owner, prepare, debug=debug)
    if example_inputs is not None:
        args, kwargs = as_call(example_inputs)
        optimized.prepare_call(*args, **kwargs)
    return view_of(optimized)


def optimize_captured(
    captured: Capture,
    options: PlannerOptions,
    *,
    config: object = None,
    layers: Sequence[LayerMetadata | str] | None = None,
    verify: bool = True,
    may_fall_back: bool = False,
) -> tuple[OptimizationResult, ModelReport]:
    """Plan, rewrite and prove a captured model for all numbers of tokens.

    ``may_fall_back``: compare by bytes where the machine does not know a collective of the model.
    """
    metadata = layer_metadata(captured.graph, config=config, layers=layers)
    notes = list(captured.remarks)

    def optimized(options: PlannerOptions) -> OptimizationResult:
        planner = Planner(captured.graph, options, metadata, captured.ranges)
        return optimize(planner, verify=verify)

    try:
        result = optimized(options)
    except MachineError as error:
        if not may_fall_back:
            raise
        notes.append(f"plans compare by bytes: {error.what}")
        result = optimized(replace(options, machine=None))
    if options.machine is not None and result.symbol is None:
        notes.append("no single size counts tokens: one plan, made for the sizes of this call")
    remarks = (*(Remark(RemarkKind.NOTE, "", why) for why in notes), *result.remarks)
    seconds = {"capture": captured.seconds, **result.seconds}
    return result, ModelReport(result, remarks, metadata, captured.assumed, seconds)


def agree(
    exchange: Exchange,
    result: OptimizationResult,
    options: PlannerOptions,
    sizes: Mapping[str, tuple[int, ...]] | None = None,
    **settings: object,
) -> None:
    """Raise PlanError unless all ranks hold the same plans; before any of them runs one."""
    name = None if options.machine is None else options.machine.name
    named = {
        "policy": options.policy, "launch": str(options.launch),
        "widen": options.allow_dtype_widening, **settings,
    }  # fmt: skip
    compare_plans(exchange, result.digests, name, named, sizes)


def lower_ranges(
    result: OptimizationResult,
    captured: Capture,
    groups: ProcessGroups,
    *,
    mutations: Mapping[int, str],
    kernels: str,
) -> TokenTable[Lowered]:
    """What this process runs for each number of tokens; all ranks call it together.

    The graph that serves for the most tokens is the first: it sizes workspaces.
    """
    graphs = dict.fromkeys(each.spmd for each in result.ranges)
    greatest = {graph: result.greatest(graph, captured.ranges) for graph in graphs}
    tokens = {graph: sizes.get(str(result.symbol), 1 << 62) for graph, sizes in greatest.items()}
    forms = {
        graph: lower(
            graph, groups.names(graph, captured.groups),
            mutations=mutations, kernels=kernels, most=greatest[graph],
        )
        for graph in sorted(graphs, key=lambda graph: -tokens[graph])
    }  # fmt: skip
    return result.table.map(lambda token_range: forms[token_range.plan.spmd])


def remarks_of(variants: TokenTable[Lowered]) -> Iterator[Remark]:
    """What lowering says of the graphs that run."""
    for tokens in variants.ranges():
        yield from tokens.plan.remarks


def check_model(model: object) -> None:
    """Raise CommPlanError unless ``model`` is something to capture."""
    if isinstance(model, OptimizedModule | OptimizedView):
        raise CommPlanError(
            "the model is optimized already",
            found=type(model).__name__,
            remedy="use it as it is, or pass the model it was made of, its attribute .original",
        )
    if not isinstance(model, nn.Module | ExportedProgram):
        raise CommPlanError(
            "not a model",
            found=type(model).__name__,
            remedy="pass an nn.Module, an fx.GraphModule or an ExportedProgram",
        )


def as_call(
    example_inputs: Sequence[Any] | Mapping[str, Any] | torch.Tensor,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call.

    Raises:
        CommPlanError: neither a sequence nor a mapping nor a tensor.
    """
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, list | tuple):
        return tuple(example_inputs), {}
    raise CommPlanError(
        "example_inputs= must be the arguments of a call",
        found=type(example_inputs).__name__,
        remedy="pass a tuple of positional or a dict of keyword arguments",
    )


def _notes(captured: Capture, reason: Reason) -> Iterator[Remark]:
    """Why a graph was captured, and what it may depend on that nobody looks at."""
    if reason:
        yield Remark(RemarkKind.NOTE, "", f"captured anew: {reason.text}")
    unwatched = captured.reads.unwatched if captured.reads else {}
    if unwatched:
        listed = "; ".join(f"{name} ({why})" for name, why in [*unwatched.items()][:5])
        more = f" and {len(unwatched) - 5} more" if len(unwatched) > 5 else ""
        yield Remark(RemarkKind.NOTE, "", f"changes are not noticed of: {listed}{more}")


def _comparison(
    exchange: Exchange, captured: Capture
) -> Callable[[Mapping[str, torch.Tensor]], None]:
    """Compares arguments along the axes along which they are taken to be the same."""
    mesh = captured.graph.mesh
    along = {
        name: [axis for axis, p in zip(mesh.axes, placed, strict=True) if p == Replicate()]
        for name, placed in captured.graph.inputs.items()
    }
    return partial(compare_inputs, exchange, mesh=mesh, along=along)


def _sizes(
    form: CallForm, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    arguments = form.flatten(args, kwargs)
    named = zip(form.names(arguments), arguments.leaves, strict=True)
    return {name: tuple(x.shape) for name, x in named if isinstance(x, torch.Tensor)}
