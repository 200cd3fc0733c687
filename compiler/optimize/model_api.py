"""Optimize a model: capture, plan, rewrite, prove, run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from compiler import switches
from compiler.analysis.layers import LayerMetadata
from compiler.analysis.statistics import Statistics
from compiler.capture.capture import tracers
from compiler.cost import Machine
from compiler.errors import CommPlanError
from compiler.ir.comm_plan import CommPlan
from compiler.ir.declared_inputs import Inputs
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh, check_mesh
from compiler.ir.placement import check_inputs
from compiler.ir.remark import Remark, RemarkKind
from compiler.optimize.prepare import Preparation
from compiler.optimize.result import ModelReport, RangeResult
from compiler.optimize.validation import AUTO, device_of, planner_options
from compiler.plan.token_ranges import LAST_TOKENS, TokenRange, TokenTable
from compiler.runtime.group_exchange import exchange_over, ranks_of
from compiler.runtime.model_calls import ModelCalls
from compiler.runtime.module import OptimizedModule
from compiler.runtime.process_groups import ProcessGroups
from compiler.runtime.view import OptimizedView, view_of


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
        debug: compare every call between ranks before it runs: dtypes, shapes and strides of its
            tensors, its plan, and the values that must be the same, otherwise compared only once.
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
    debug |= switches.checks_calls()
    owner = model.module() if isinstance(model, ExportedProgram) else model
    options = planner_options(
        policy, machine, launch, device=device_of(owner), widen=widen, kernels=kernels
    )
    everyone = ranks_of(group)
    exchange, process_groups = exchange_over(everyone), ProcessGroups(everyone)
    options = replace(options, allow_new_groups=process_groups.may_grow)

    prepare = Preparation(
        model, owner, options, exchange, process_groups,
        mesh=mesh, inputs=inputs, layers=layers, capture=capture, kernels=kernels, verify=verify,
        debug=debug, may_fall_back=machine == AUTO,
    )  # fmt: skip
    if everyone.size() == 1:
        why = "world size 1: no rank owes another a sum; the model runs as it is"
        unchanged = _unchanged(owner, policy, why)
        return view_of(OptimizedModule(owner, prepare, unchanged=unchanged, debug=debug))
    calls = ModelCalls(exchange.roll_call, type(owner).__name__) if exchange else None
    optimized = OptimizedModule(owner, prepare, debug=debug, calls=calls)
    if example_inputs is not None:
        args, kwargs = as_call(example_inputs)
        optimized.prepare_call(*args, **kwargs)
    return view_of(optimized)


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


def _unchanged(model: nn.Module, policy: str, why: str) -> ModelReport:
    """The result for a model of which nothing is captured: that of an empty graph."""
    nothing, graph = Statistics(()), SpmdGraph(model, fx.Graph(), Mesh({"world": 1}), {})
    plan = RangeResult(CommPlan(policy, None), None, (), nothing, graph, (), None)
    table = TokenTable(1, (TokenRange(1, LAST_TOKENS, plan),))
    return ModelReport(table, None, None, nothing, (Remark(RemarkKind.NOTE, "", why),), {})
