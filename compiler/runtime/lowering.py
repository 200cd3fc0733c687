"""From a proven graph to the module that this process runs.

In this order: rows go to the ranks that need them where the plan says so, but for compilers, which
need sizes that do not depend on data; reductions with add + RMSNorm become fused ops where the
group has a workspace;
collectives start early and are waited for late; inputs that the model updates are written in place;
mesh names become this process's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.distributed as dist
from torch import fx
from torch.distributed import distributed_c10d

from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.ir.collectives import collectives
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import Remark, RemarkKind
from compiler.runtime import dispatch as _dispatch  # noqa: F401 (registers kernels)
from compiler.runtime.dispatching import send_rows
from compiler.runtime.fusing import fuse
from compiler.runtime.groups import lowered
from compiler.runtime.in_place import reduce_in_place, update_inputs
from compiler.runtime.kernels.select import SLOT_BYTES, workspace_for
from compiler.runtime.schedule import scheduled

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
) -> Lowered:
    """The module of a proven graph. All ranks call it together, since workspaces may be made.

    Args:
        graph: the SPMD graph, the same on all ranks.
        local_groups: group name in the graph -> name of the process group here.
        mutations: graph output -> placeholder whose tensor it is written back to.
        kernels: one of ``KERNELS``.
    """
    available = _Availability(local_groups)
    sent, remarks = send_rows(graph)
    if sent is not graph:
        said = "rows are sent to the ranks that need them; under torch.compile they are gathered"
        remarks.append(Remark(RemarkKind.NOTE, "", said))
    module, in_place, fused = _module(graph, local_groups, mutations, kernels, available)
    eager = module
    if sent is not graph:
        eager, in_place, fused = _module(sent, local_groups, mutations, kernels, available)
    eager = fx.GraphModule(eager, _copied(eager.graph))
    reduce_in_place(eager.graph)
    eager.recompile()
    return Lowered(module, eager, in_place, (*remarks, *fused))


def _module(
    graph: SpmdGraph,
    local_groups: Mapping[str, str],
    mutations: Mapping[int, str],
    kernels: str,
    available: Callable[[str], str | None],
) -> tuple[fx.GraphModule, frozenset[int], list[Remark]]:
    """One form of the graph, outputs that it writes in place, and what was and was not fused."""
    fused, remarks = _fused(graph, kernels, available)
    module = lowered(fused.with_graph(scheduled(fused.graph), {}), local_groups)
    in_place = update_inputs(module.graph, mutations)
    module.recompile()
    return module, in_place, remarks


def _copied(graph: fx.Graph) -> fx.Graph:
    made, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    made.output(made.graph_copy(graph, copies))
    return made


def _fused(
    graph: SpmdGraph, kernels: str, available: Callable[[str], str | None]
) -> tuple[SpmdGraph, list[Remark]]:
    """The graph with fused ops, and remarks; on other devices than CUDA there is nothing to say."""
    payloads = [access.tensor(c.operand) for _, c in collectives(graph.graph)]
    if not any(x.device.type == "cuda" for x in payloads):
        return graph, []
    if kernels == "off":
        return graph, [Remark(RemarkKind.NOTE, "", "kernels 'off': no reduction was fused")]
    fused, remarks = fuse(graph, available)
    limit = f"payloads over {SLOT_BYTES} bytes run as the group's own collectives, then a norm"
    if fused is not graph:
        remarks.append(Remark(RemarkKind.NOTE, "", f"fused ops: {limit}"))
    return fused, remarks


class _Availability:
    """Group name -> why its ranks have no workspace, asked once; None if they have one."""

    def __init__(self, local_groups: Mapping[str, str]) -> None:
        self._local, self._known = local_groups, dict[str, str | None]()

    def __call__(self, group: str) -> str | None:
        if group not in self._known:
            self._known[group] = self._asked(self._local.get(group, group))
        return self._known[group]

    @staticmethod
    def _asked(name: str) -> str | None:
        group = distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined, arg-type]
        if dist.get_backend(group) == "fake":
            return "a fake process group has no other ranks"
        found = workspace_for(group)
        return found if isinstance(found, str) else None


def check_kernels(kernels: str) -> None:
    """Raise CommPlanError for a choice that there is not."""
    if kernels not in KERNELS:
        raise CommPlanError(
            "unknown kernels", found=repr(kernels), remedy=f"one of {', '.join(KERNELS)}"
        )
