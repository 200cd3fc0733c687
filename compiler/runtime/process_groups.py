"""Lowering: from the names of the mesh to those of this process, and to this rank's own rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import fx

from compiler.capture.groups import process_group
from compiler.errors import MeshError
from compiler.ir import access
from compiler.ir.collectives import all_group_names, rename_groups
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.row_ops import PAD_ROWS, all_slice, own_share, padded_rows


class ProcessGroups:
    """This process's groups for replica groups of one mesh that a rewrite brought in.

    Args:
        everyone: process group of all ranks of the mesh, rank r of it being rank r of the mesh.
    """

    def __init__(self, everyone: dist.ProcessGroup) -> None:
        self.everyone = everyone
        self._made: dict[ReplicaGroups, dist.ProcessGroup] = {}

    @property
    def may_grow(self) -> bool:
        """Whether groups can be made: only by all ranks of the job together.

        Fewer could with ``use_local_synchronization``, but wait forever for each other if one is in
        more groups than another: torch puts their number into the name they meet under.
        """
        return self.everyone.size() == dist.get_world_size()

    def of(self, groups: ReplicaGroups) -> dist.ProcessGroup:
        """The group that this rank is in.

        Created at the first call for these groups, which all ranks must make together; all ranks
        in one group are the one that there is.
        """
        members = groups.group_of[self.everyone.rank()]
        if sorted(members) == list(range(self.everyone.size())):
            return self.everyone
        if groups not in self._made:
            ranks = dist.get_process_group_ranks(self.everyone)
            every = {group: dist.new_group([ranks[r] for r in group]) for group in groups.ranks}
            self._made[groups] = every[members]
        return self._made[groups]

    def names(self, graph: SpmdGraph, existing: Mapping[str, str]) -> dict[str, str]:
        """Name of each group in ``graph`` -> name of the process group here.

        Args:
            graph: the SPMD graph, the same on all ranks.
            existing: those that need not be created.
        """
        used = (
            n for n in all_group_names(graph.graph) if n not in existing and not process_group(n)
        )
        created = {n: self.of(graph.mesh.groups[n]) for n in used if n in graph.mesh.groups}
        return {**existing, **{name: str(group.group_name) for name, group in created.items()}}


def group_named(name: str) -> dist.ProcessGroup:
    """This process's group of that name.

    Raises:
        MeshError: there is none.
    """
    if (group := process_group(name)) is not None:
        return group
    raise MeshError(
        "no process group has the name that a collective gives",
        found=repr(name),
        remedy="create the groups of the model before it is optimized, on every rank of them; what "
        "optimize_graph returns runs in other groups after bind()",
    )


@torch.library.impl("commplan::all_slice", ("cpu", "cuda"))
def _all_slice(x: torch.Tensor, dim: int, group_size: int, group_name: str) -> torch.Tensor:
    """The kernel of ``all_slice`` in a graph that was not lowered."""
    group = group_named(group_name)
    if group.size() != group_size:
        raise MeshError(
            f"all_slice is over {group_size} ranks, the process group {group_name!r} has others",
            found=f"{group.size()} ranks",
            remedy="bind() what optimize_graph returned to groups of its mesh",
        )
    share = own_share(x, dim, group_size, group.rank())
    return share.clone(memory_format=torch.contiguous_format)  # ops of this kind return no views


def bound(
    graph: SpmdGraph, groups: Mapping[str, dist.ProcessGroup], everyone: dist.ProcessGroup
) -> fx.GraphModule:
    """``graph`` as a module that runs in this process, in groups that were checked.

    Args:
        graph: the SPMD graph, the same on all ranks.
        groups: a name that the mesh knows -> this process's group of those ranks. Others are those
            of their name, or are made, by all ranks of the job together.
        everyone: process group of all ranks of the mesh, rank r of it being rank r of the mesh.

    Raises:
        MeshError: a name that does not resolve, or a process group of other ranks than the mesh
            says.
    """
    mesh, process_groups, local = graph.mesh, ProcessGroups(everyone), dict[str, str]()
    _check_ranks("group=", everyone, tuple(range(mesh.size)), everyone)
    group_of = {mesh.group(name): group for name, group in groups.items()}
    for name in all_group_names(graph.graph):
        wanted = mesh.group(name)
        members = wanted.group_of[everyone.rank()]
        group = group_of.get(wanted) or process_group(name)
        if group is None and len(members) < mesh.size and not process_groups.may_grow:
            raise MeshError(
                f"group {name!r} has no process group here",
                found=f"it is ranks {list(members)} of the mesh, and only all ranks of the job "
                "together can make a group",
                remedy=f"pass it: bind({{{name!r}: …}})",
            )
        group = group or process_groups.of(wanted)
        _check_ranks(f"{name!r}", group, members, everyone)
        local[name] = str(group.group_name)
    module = lowered(graph, local)
    for node in module.graph.nodes:
        node.args, node.kwargs = fx.node.map_aggregate(
            (node.args, node.kwargs), lambda x: access.on_rank(x, everyone.rank())
        )
    return module


def _check_ranks(
    name: str, group: dist.ProcessGroup, members: Sequence[int], everyone: dist.ProcessGroup
) -> None:
    """Raise MeshError unless ``group`` is these ranks of the mesh, in their order."""
    is_group = isinstance(group, dist.ProcessGroup)
    ranks = dist.get_process_group_ranks(group) if is_group else []
    wanted = [dist.get_global_rank(everyone, r) for r in members if r < everyone.size()]
    if ranks != wanted or len(wanted) != len(members):
        raise MeshError(
            f"the process group of {name} does not have the ranks that the mesh says",
            found=f"ranks {ranks} of the job" if is_group else repr(group),
            remedy=f"pass the process group of ranks {list(members)} of the mesh, which are ranks "
            f"{wanted} of the job",
        )


def lowered(graph: SpmdGraph, local_groups: Mapping[str, str]) -> fx.GraphModule:
    """``graph`` as a module that runs in this process.

    Args:
        graph: the SPMD graph, the same on all ranks.
        local_groups: group name in the graph -> name of the process group here.
    """
    copy = graph.own_copy()
    for node in copy.graph.nodes:
        if (cut := all_slice(node)) is not None:
            position = group_named(local_groups.get(cut.group, cut.group)).rank()
            node.target = own_share
            node.args, node.kwargs = (cut.operand, cut.dim, cut.group_size, position), {}
        elif node.target is PAD_ROWS:
            node.target = padded_rows
    rename_groups(copy.graph, local_groups)
    return copy.module
