"""Lowering: from the names of the mesh to those of this process, and to this rank's own rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
from torch import fx

from compiler.capture.groups import process_group
from compiler.errors import MeshError
from compiler.ir.collectives import all_group_names, rename_groups
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.rows import PAD_ROWS, all_slice, own_share, padded_rows


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

    def names(self, graph: SpmdGraph, known: Mapping[str, str]) -> dict[str, str]:
        """Name of each group in ``graph`` -> name of the process group here.

        Args:
            graph: the SPMD graph, the same on all ranks.
            known: those that need not be created.
        """
        used = (n for n in all_group_names(graph.graph) if n not in known and not process_group(n))
        made = {n: self.of(graph.mesh.groups[n]) for n in used if n in graph.mesh.groups}
        return {**known, **{name: str(group.group_name) for name, group in made.items()}}


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
        remedy="create the groups of the model before it is optimized, on every rank of them",
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
            position = group_named(local_groups[cut.group]).rank()
            node.target = own_share
            node.args, node.kwargs = (cut.operand, cut.dim, cut.group_size, position), {}
        elif node.target is PAD_ROWS:
            node.target = padded_rows
    rename_groups(copy.graph, local_groups)
    return copy.module
