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
from compiler.analysis.statistics import Statistics, statistics
from compiler.capture import CallForm, Capture
from compiler.capture.capture import capture as capture_model
from compiler.capture.capture import tracers
from compiler.cost import Machine, MachineError
from compiler.errors import CommPlanError
from compiler.ir.comm_plan import CommPlan
from compiler.ir.declared_inputs import Inputs
from compiler.ir.mesh import Mesh, check_mesh
from compiler.ir.placement import Replicate, check_inputs
from compiler.ir.rank_exchange import Exchange
from compiler.ir.remark import Remark, RemarkKind
from compiler.optimize.graph_api import OptimizationResult, check_policy, optimize_spmd
from compiler.optimize.ranged import Ranged, optimize_ranges
from compiler.optimize.report import ModelReport
from compiler.optimize.validation import AUTO, device_of, launch_of, machine_of
from compiler.pipeline import Pipeline
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from compiler.runtime.guarded_graph import GuardedGraph
from compiler.runtime.lowering import Lowered, check_kernels, lower
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
    check_policy(policy)
    check_kernels(kernels)
    tracers(capture)
    everyone = ranks_of(group)
    exchange, process_groups = exchange_over(everyone), ProcessGroups(everyone)
    owner = model.module() if isinstance(model, ExportedProgram) else model

    search = PlannerOptions(
        policy, machine_of(machine, device_of(owner)), launch_of(launch), widen,
        process_groups.may_grow, fuse=kernels != "off",
    )  # fmt: skip

    options = {
        "policy": policy, "launch": launch, "widen": widen, "kernels": kernels, "verify": verify,
    }  # fmt: skip

    def prepare(args: tuple[Any, ...], kwargs: Mapping[str, Any], reason: Reason) -> GuardedGraph:
        if exchange is not None:
            compare_reasons(exchange, reason)
        captured = capture_model(
            model, args, dict(kwargs), mesh=mesh, exchange=exchange, inputs=inputs, capture=capture
        )
        config = getattr(owner, "config", None)
        ranged, report = optimize_captured_ranges(
            captured, search, config=config, layers=layers, verify=verify,
            may_fall_back=machine == AUTO,
        )  # fmt: skip
        if exchange is not None:
            sizes = _sizes(CallForm.of(owner), args, kwargs)
            _agree(exchange, ranged, search, options, sizes)
        most = [ranged.most(at, captured.ranges) for at in range(len(ranged.results))]
        forms = dict[int, Lowered]()
        tokens = [bounds.get(str(ranged.symbol), 1 << 62) for bounds in most]
        for at in sorted(range(len(most)), key=lambda at: -tokens[at]):
            graph = ranged.results[at].spmd  # that with the most tokens first: it sizes workspaces
            forms[at] = lower(
                graph, process_groups.names(graph, captured.groups),
                mutations=captured.mutations, kernels=kernels, machine=search.machine,
                most=most[at],
            )  # fmt: skip
        said = dict.fromkeys(_notes(captured, reason))
        said |= dict.fromkeys(remark for at in sorted(forms) for remark in forms[at].remarks)
        return GuardedGraph(
            variants=ranged.table.map(forms.__getitem__),
            symbol=ranged.symbol,
            captured=captured,
            report=replace(report, remarks=(*report.remarks, *said)),
            compare_inputs=_comparison(exchange, captured) if exchange else None,
        )

    if everyone.size() == 1:
        why = "world size 1: no rank owes another a sum; the model runs as it is"
        return view_of(
            OptimizedModule(owner, prepare, unchanged=_nothing(policy, why), debug=debug)
        )
    optimized = OptimizedModule(owner, prepare, debug=debug)
    if example_inputs is not None:
        args, kwargs = as_call(example_inputs)
        optimized.prepare_call(*args, **kwargs)
    return view_of(optimized)


def optimize_capture(
    captured: Capture,
    *,
    config: object = None,
    policy: str = "cost",
) -> tuple[OptimizationResult, ModelReport]:
    """Plan, rewrite and prove a captured model, compared by bytes, for the sizes of its call."""
    metadata = layer_metadata(captured.graph, config=config)
    result = optimize_spmd(
        captured.graph, policy=policy, verify=True, layers=metadata, tokens=None,
        pipeline=Pipeline(),
    )  # fmt: skip
    return result, _report(captured, metadata, result, result.seconds)


def optimize_captured_ranges(
    captured: Capture,
    search: PlannerOptions,
    *,
    config: object = None,
    layers: Sequence[LayerMetadata | str] | None = None,
    verify: bool = True,
    may_fall_back: bool = False,
) -> tuple[Ranged, ModelReport]:
    """Plan, rewrite and prove a captured model for all numbers of tokens.

    ``may_fall_back``: compare by bytes where the machine does not know a collective of the model.
    """
    metadata = layer_metadata(captured.graph, config=config, layers=layers)
    notes = list[str]()
    planner = Planner(captured.graph, search, metadata, Pipeline())
    try:
        ranged = optimize_ranges(planner, captured.ranges, verify=verify)
    except MachineError as error:
        if not may_fall_back:
            raise
        notes.append(f"plans compare by bytes: {error.what}")
        planner = Planner(captured.graph, replace(search, machine=None), metadata, Pipeline())
        ranged = optimize_ranges(planner, captured.ranges, verify=verify)
    if search.machine is not None and ranged.symbol is None:
        notes.append("no single size counts tokens: one plan, made for the sizes of this call")
    tokens = planner.canonical.work.hints.get(ranged.symbol, 1) if ranged.symbol else 1
    result = ranged.results[ranged.table.plan(tokens)]
    report = _report(captured, metadata, result, planner.clock.seconds, notes)
    if ranged.symbol is not None:  # results count at the first of their range
        report = replace(
            report,
            before=statistics(captured.graph.graph, tokens),
            after=statistics(result.spmd.graph, tokens),
            tokens=tokens,
        )
    return ranged, replace(report, ranged=ranged if ranged.totals else None)


def _report(
    captured: Capture,
    layers: tuple[LayerMetadata, ...],
    result: OptimizationResult,
    seconds: Mapping[str, float],
    notes: Sequence[str] = (),
) -> ModelReport:
    """What was done to a captured model; ``notes`` follow those of its capture."""
    said = (Remark(RemarkKind.NOTE, "", why) for why in (*captured.remarks, *notes))
    return ModelReport(
        plan=result.plan,
        check=result.report,
        remarks=(*said, *result.remarks),
        before=result.before,
        after=result.after,
        layers=layers,
        assumed=captured.assumed,
        seconds={"capture": captured.seconds, **seconds},
    )


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
        "example_inputs is no call",
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


def _agree(
    exchange: Exchange,
    ranged: Ranged,
    search: PlannerOptions,
    options: Mapping[str, object],
    sizes: Mapping[str, tuple[int, ...]],
) -> None:
    """All ranks must hold the same plans before any of them runs one."""
    plans = [result.plan.digest for result in ranged.results]
    name, tables = (search.machine.name, search.machine.digest) if search.machine else (None, "")
    compare_plans(exchange, f"{ranged.table} {plans} {tables}", name, options, sizes)


def _nothing(policy: str, why: str) -> ModelReport:
    nothing = Statistics(())
    remark = Remark(RemarkKind.NOTE, "", why)
    return ModelReport(CommPlan(policy, None), None, (remark,), nothing, nothing)
