"""From a call of a model to the graph that runs it: captured, planned, proved, lowered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from compiler import switches
from compiler.analysis.layers import LayerMetadata, layer_metadata
from compiler.capture import CallForm, Capture
from compiler.capture.capture import capture as capture_model
from compiler.cost import Machine, MachineError
from compiler.ir.declared_inputs import Inputs
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Replicate
from compiler.ir.rank_exchange import Exchange
from compiler.ir.remark import Remark, RemarkKind
from compiler.optimize.dump import GraphDump
from compiler.optimize.optimizer import optimize
from compiler.optimize.result import ModelReport, OptimizationResult
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from compiler.plan.token_ranges import TokenTable
from compiler.runtime.group_exchange import GroupExchange, process_name
from compiler.runtime.guarded_graph import GuardedGraph, text_of_call
from compiler.runtime.lowering import Lowered, lower
from compiler.runtime.process_groups import ProcessGroups
from compiler.runtime.rank_agreement import (
    compare_calls,
    compare_inputs,
    compare_plans,
    connected_ranks,
)
from compiler.runtime.watch import Reason, compare_reasons

LOG = logging.getLogger("compiler.optimize")
"""``COMMPLAN_LOGS=info`` prints the report of every graph that is prepared."""


@dataclass(frozen=True)
class Preparation:
    """Captures, plans and proves the graph for a call; all ranks together.

    Attributes:
        model: what is captured.
        owner: the module that has its tensors.
        options: of the planner.
        exchange: the ranks; None if there is nobody to ask.
        groups: this process's groups.
        mesh: as in ``optimize_allreduce``, and so are the others, but for
        may_fall_back: compare by bytes where the machine does not know a collective of the model.
    """

    model: nn.Module | ExportedProgram
    owner: nn.Module
    options: PlannerOptions
    exchange: GroupExchange | None
    groups: ProcessGroups
    _: KW_ONLY
    mesh: Mesh | None
    inputs: Inputs | None
    layers: Sequence[LayerMetadata | str] | None
    capture: str
    kernels: str
    verify: bool
    debug: bool
    may_fall_back: bool

    def __call__(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], reason: Reason
    ) -> GuardedGraph:
        """Return the graph for a call, given what has changed since one was made for such calls."""
        form = CallForm.of(self.owner)
        arguments = form.flatten(args, kwargs)
        names = form.names(arguments)
        together = nullcontext() if self.exchange is None else self.exchange.together(
            f"a first call with {text_of_call(names, arguments)}"
        )  # fmt: skip
        tensors = (x for x in zip(names, arguments.leaves, strict=True) if hasattr(x[1], "shape"))
        sizes = {name: tuple(x.shape) for name, x in tensors}
        with together as ranks:
            return self._prepared(args, kwargs, reason, sizes, ranks)

    def _prepared(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        reason: Reason,
        sizes: Mapping[str, tuple[int, ...]],
        ranks: GroupExchange | None,
    ) -> GuardedGraph:
        say = (lambda _: None) if ranks is None else ranks.say
        if ranks is not None:
            compare_reasons(ranks, reason)
        say("capturing")
        captured = capture_model(
            self.model, args, dict(kwargs),
            mesh=self.mesh, exchange=ranks, inputs=self.inputs, capture=self.capture,
        )  # fmt: skip
        say("planning and proving")
        result = optimize_captured(
            captured, self.options, config=getattr(self.owner, "config", None), layers=self.layers,
            verify=self.verify, may_fall_back=self.may_fall_back,
        )  # fmt: skip
        if ranks is not None:
            settings = {"kernels": self.kernels, "verify": self.verify, "debug": self.debug}
            agree(ranks, result, self.options, sizes, **settings)
        say("lowering")
        variants = lower_ranges(
            result, captured, self.groups,
            mutations=captured.mutations, kernels=self.kernels, machine=self.options.machine,
        )  # fmt: skip
        said = (*_notes(captured, reason), *remarks_of(variants))
        report = replace(result, remarks=(*result.remarks, *dict.fromkeys(said)))
        switches.switch_logs_on()
        LOG.info("%s", report)
        if ranks is None:
            return GuardedGraph(variants, result.symbol, captured, report, None)
        connected = connected_ranks(captured.graph)
        return GuardedGraph(
            variants, result.symbol, captured, report,
            compare_inputs=comparison(ranks, captured),
            compare_calls=partial(compare_calls, ranks, connected, result.digests),
            in_step=frozenset(next(part for part in connected if ranks.rank in part)),
        )  # fmt: skip


def optimize_captured(
    captured: Capture,
    options: PlannerOptions,
    *,
    config: object = None,
    layers: Sequence[LayerMetadata | str] | None = None,
    verify: bool = True,
    may_fall_back: bool = False,
) -> ModelReport:
    """Plan, rewrite and prove a captured model for all numbers of tokens.

    ``may_fall_back``: compare by bytes where the machine does not know a collective of the model.
    """
    folder = switches.dump_folder()
    dump = GraphDump(folder, process_name()) if folder else None
    if dump is not None:
        dump.captured(captured.graph)
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
    report = ModelReport(
        result.table, result.symbol, result.tokens, result.before, remarks, seconds, metadata,
        captured.assumed,
    )  # fmt: skip
    if dump is not None:
        dump.planned(report)
    return report


def agree(
    exchange: Exchange,
    result: OptimizationResult,
    options: PlannerOptions,
    sizes: Mapping[str, tuple[int, ...]] | None = None,
    **settings: object,
) -> None:
    """Raise PlanError unless all ranks hold the same plans; before any of them runs one."""
    machine = options.machine
    name, tables = (None, "") if machine is None else (machine.name, machine.digest)
    named = {
        "policy": options.policy, "launch": str(options.launch),
        "widen": options.allow_dtype_widening, **settings,
    }  # fmt: skip
    compare_plans(exchange, f"{result.digests} {tables}", name, named, sizes)


def lower_ranges(
    result: OptimizationResult,
    captured: Capture,
    groups: ProcessGroups,
    *,
    mutations: Mapping[int, str],
    kernels: str,
    machine: Machine | None,
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
            mutations=mutations, kernels=kernels, machine=machine, most=greatest[graph],
        )
        for graph in sorted(graphs, key=lambda graph: -tokens[graph])
    }  # fmt: skip
    return result.table.map(lambda token_range: forms[token_range.plan.spmd])


def remarks_of(variants: TokenTable[Lowered]) -> Iterator[Remark]:
    """What lowering says of the graphs that run."""
    for tokens in variants.ranges():
        yield from tokens.plan.remarks


def _notes(captured: Capture, reason: Reason) -> Iterator[Remark]:
    """Why a graph was captured, and what it may depend on that nobody looks at."""
    if reason:
        yield Remark(RemarkKind.NOTE, "", f"captured anew: {reason.text}")
    unwatched = captured.reads.unwatched if captured.reads else {}
    if unwatched:
        listed = "; ".join(f"{name} ({why})" for name, why in [*unwatched.items()][:5])
        more = f" and {len(unwatched) - 5} more" if len(unwatched) > 5 else ""
        yield Remark(RemarkKind.NOTE, "", f"changes are not noticed of: {listed}{more}")


def comparison(
    exchange: Exchange, captured: Capture
) -> Callable[[Mapping[str, torch.Tensor]], None]:
    """Compares arguments along the axes along which they are taken to be the same."""
    mesh = captured.graph.mesh
    along = {
        name: [axis for axis, p in zip(mesh.axes, placed, strict=True) if p == Replicate()]
        for name, placed in captured.graph.inputs.items()
    }
    return partial(compare_inputs, exchange, mesh=mesh, along=along)
