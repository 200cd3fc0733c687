"""Lowering: from the names of the mesh to those of this process, and to this rank's own rows."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx
from torch.distributed import distributed_c10d

from compiler.ir.collectives import rename_groups
from compiler.ir.graph import SpmdGraph
from compiler.ir.rows import PAD_ROWS, all_slice, own_share, padded_rows


def lowered(graph: SpmdGraph, local_groups: Mapping[str, str]) -> fx.GraphModule:
    """``graph`` as a module that runs in this process.

    Args:
        graph: the SPMD graph, the same on all ranks.
        local_groups: group name in the graph -> name of the process group here.
    """
    copy = graph.own_copy()
    for node in copy.graph.nodes:
        if (cut := all_slice(node)) is not None:
            process_group = distributed_c10d._resolve_process_group(local_groups[cut.group])  # type: ignore[attr-defined, arg-type]
            position = process_group.rank()
            node.target = own_share
            node.args, node.kwargs = (cut.operand, cut.dim, cut.group_size, position), {}
        elif node.target is PAD_ROWS:
            node.target = padded_rows
    rename_groups(copy.graph, local_groups)
    return copy.module
