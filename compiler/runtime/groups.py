"""Lowering of group names: from the names of the mesh to those of this process."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from compiler.ir.collectives import rename_groups
from compiler.ir.graph import SpmdGraph


def lowered(graph: SpmdGraph, local_groups: Mapping[str, str]) -> fx.GraphModule:
    """``graph`` as a module that runs in this process.

    Args:
        graph: the SPMD graph, the same on all ranks.
        local_groups: group name in the graph -> name of the process group here.
    """
    copy = graph.own_copy()
    rename_groups(copy.graph, local_groups)
    return copy.module
