"""From a proven graph to the module that this process runs.

The passes of ``passes.LOWERING`` run first, each proved before its result is used: rows go to the
ranks that need them where the plan says so, but for compilers, which need sizes that do not depend
on data; reductions with add + RMSNorm become fused ops where the group has a workspace; collectives
start early and are waited for late. Then the graph leaves the compiler: mesh names become this
process's; gloo gathers CUDA tensors in host memory; inputs that the model updates are written in
place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import fx

from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.ir.collectives import collectives
from compiler.ir.dispatch import DISPATCH_ROWS
from compiler.ir.fused_ops import SLOT_BYTES
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import Remark, RemarkKind
from compiler.pipeline import Observer, Pass, Pipeline, Step
from compiler.runtime.host_memory import gather_in_host_memory
from compiler.runtime.in_place import reduce_in_place, update_inputs
from compiler.runtime.kernels.select import workspace_for
from compiler.runtime.kernels.workspace import SLOTS
from compiler.runtime.process_groups import group_named, lowered
from passes import LOWERING, DispatchRows, FuseReduceNorm
from passes.fuse_reduce_norm import WhyUnserved

KERNELS = ("auto", "off")
"""auto: fused kernels where CUDA, Triton and symmetric memory are there; off: none."""


@dataclass(frozen=True)
class Lowered:
    """What runs.

    Attributes:
        module: the graph with this process's group names, for compilers to read.
        eager: the same, its all_reduces in place where they may be.
        in_place: outputs that were written into the input they are the new value of.
        remarks: what was and was not fused, and why.
    """

    module: fx.GraphModule
    eager: fx.GraphModule
    in_place: frozenset[int]
    remarks: tuple[Remark, ...]


def lower(
    graph: SpmdGraph,
    local_groups: Mapping[str, str],
    *,
    mutations: Mapping[int, str],
    kernels: str = "auto",
    most: Mapping[str, int] | None = None,
    observers: Sequence[Observer] = (),
) -> Lowered:
    """The module of a proven graph. All ranks call it together, since workspaces may be made.

    Args:
        graph: the SPMD graph, the same on all ranks.
        local_groups: group name in the graph -> name of the process group here.
        mutations: graph output -> placeholder whose tensor it is written back to.
        kernels: one of ``KERNELS``.
        most: size symbol -> its greatest value, by which workspaces are sized; any for others.
        observers: called after every pass.
    """
    workspaces = _Workspaces(local_groups, most or {})
    fuse, remarks = _fuses(graph, kernels)

    def form(source: SpmdGraph) -> tuple[fx.GraphModule, frozenset[int], tuple[Remark, ...]]:
        """One form of the graph, outputs that it writes in place, and what was and was not done."""
        pipeline = Pipeline(observers, check_each=True, drop_unproved=True)
        module = lowered(run_passes(source, pipeline, workspaces if fuse else None), local_groups)
        count = gather_in_host_memory(module.graph)
        why = f"{count} all_gathers go through host memory: gloo cannot gather CUDA tensors"
        notes = [why] * (count > 0) + list(dict.fromkeys(workspaces.notes))
        in_place = update_inputs(module.graph, mutations)
        module.recompile()
        return module, in_place, (*pipeline.remarks, *_noted(notes))

    module, in_place, done = form(replace(graph, dispatched=frozenset()))
    eager = module
    if graph.dispatched:
        eager, in_place, done = form(graph)
    if eager.graph.find_nodes(op="call_function", target=DISPATCH_ROWS):
        remarks += _noted(["rows are gathered under torch.compile, not sent"])
    eager = fx.GraphModule(eager, _copied(eager.graph))
    reduce_in_place(eager.graph)
    eager.recompile()
    return Lowered(module, eager, in_place, (*remarks, *done))


def _noted(notes: Sequence[str]) -> list[Remark]:
    return [Remark(RemarkKind.NOTE, "", why) for why in notes]


def run_passes(graph: SpmdGraph, pipeline: Pipeline, why_unserved: WhyUnserved | None) -> SpmdGraph:
    """The graph after ``passes.LOWERING``.

    Args:
        graph: a planned graph.
        pipeline: runs the passes.
        why_unserved: see ``FuseReduceNorm``; None: nothing is fused.
    """
    options: dict[Step, tuple[object, ...]] = {
        DispatchRows: (graph.dispatched,), FuseReduceNorm: (why_unserved,),
    }  # fmt: skip

    def passes_of(step: Step, _: SpmdGraph) -> Iterator[Pass]:
        if step is not FuseReduceNorm or why_unserved is not None:
            yield step(*options.get(step, ()))

    return pipeline.run_all(LOWERING, graph, passes_of)


def _copied(graph: fx.Graph) -> fx.Graph:
    target, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    target.output(target.graph_copy(graph, copies))
    return target


def _fuses(graph: SpmdGraph, kernels: str) -> tuple[bool, list[Remark]]:
    """Whether to fuse, and what to say of it: nothing on other devices than CUDA."""
    payloads = [access.tensor(c.operand) for _, c in collectives(graph.graph)]
    if not any(x.device.type == "cuda" for x in payloads):
        return False, []
    if kernels == "off":
        return False, _noted(["kernels 'off': no reduction was fused"])
    return True, []


class _Workspaces:
    """Makes the workspace of each group for what its fused ops reduce.

    Attributes:
        notes: what the workspaces serve.
    """

    def __init__(self, local_groups: Mapping[str, str], most: Mapping[str, int]) -> None:
        self._local, self._most = local_groups, most
        self.notes: list[str] = []

    def __call__(self, group_name: str, operands: Sequence[fx.Node]) -> str | None:
        """See ``passes.fuse_reduce_norm.WhyUnserved``."""
        group = group_named(self._local.get(group_name, group_name))
        if dist.get_backend(group) == "fake":
            return "a fake process group has no other ranks"
        needed = [largest_bytes(node, self._most) for node in operands]
        largest = max((n for n in needed if n is not None), default=0)
        slot_bytes = SLOT_BYTES if None in needed else min(largest, SLOT_BYTES)
        workspace = workspace_for(group, slot_bytes)
        if isinstance(workspace, str):
            return workspace
        note = f"fused ops of group {group_name!r} have a workspace of {SLOTS} x "
        note += f"{workspace.slot_bytes} "
        if None in needed or largest > workspace.slot_bytes:
            up_to = "any number of tokens" if None in needed else f"{largest} bytes"
            note += (
                f"bytes, and payloads of {up_to}: those that do not fit run as the group's own "
                "collectives, then a norm"
            )
        else:
            note += f"bytes; no payload has more than {largest}"
        self.notes.append(note)
        return None


def largest_bytes(node: fx.Node, most: Mapping[str, int]) -> int | None:
    """Bytes of a tensor where size symbols have their greatest values; None if one has none."""
    count = access.tensor(node).element_size()
    for size in access.shape(node):
        if isinstance(size, torch.SymInt):
            expression = size.node.expr
            if any(str(symbol) not in most for symbol in expression.free_symbols):
                return None
            size = int(expression.subs({s: most[str(s)] for s in expression.free_symbols}))
        count *= size
    return count


def check_kernels(kernels: str) -> None:
    """Raise CommPlanError for a choice that there is not."""
    if kernels not in KERNELS:
        raise CommPlanError(
            "unknown kernels", found=repr(kernels), remedy=f"one of {', '.join(KERNELS)}"
        )
