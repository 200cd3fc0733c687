"""Collectives of a graph, read from and written as ``_c10d_functional`` ops.

A collective is two nodes: the op, and the ``wait_tensor`` that directly follows it and stands for
its result. Everything above this file sees one value, the wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import fx

from compiler.errors import GraphError
from compiler.ir import access
from compiler.ir.mesh import Mesh
from compiler.ir.placement import REDUCTIONS

c10d = torch.ops._c10d_functional
WAIT = c10d.wait_tensor.default


class Kind(StrEnum):
    """Kinds of collectives, named as in the printed graph."""

    ALL_REDUCE = "all_reduce"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_GATHER = "all_gather"
    ALL_TO_ALL = "all_to_all"
    BROADCAST = "broadcast"


OPS = {
    c10d.all_reduce.default: Kind.ALL_REDUCE,
    c10d.reduce_scatter_tensor.default: Kind.REDUCE_SCATTER,
    c10d.all_gather_into_tensor.default: Kind.ALL_GATHER,
    c10d.all_to_all_single.default: Kind.ALL_TO_ALL,
    c10d.broadcast.default: Kind.BROADCAST,
}

TARGETS = {kind: op for op, kind in OPS.items()}

GROUP_NAMESPACES = ("_c10d_functional", "c10d", "symm_mem", "commplan")
"""Namespaces of ops that may take a process group."""


@dataclass(frozen=True)
class Collective:
    """One collective call.

    Attributes:
        kind: what it does.
        operand: the value it reads.
        group: the group name as written in the graph.
        op: the reduction (``sum``, ``avg``, ``max``, …), empty for collectives that do not reduce.
        result: the ``wait_tensor`` node, or None where nothing waits for it.
    """

    kind: Kind
    operand: fx.Node
    group: str
    op: str
    result: fx.Node | None


def collective(node: fx.Node) -> Collective | None:
    """Return the collective that ``node`` starts or whose result it is, or None.

    Raises:
        GraphError: a group that is not named by a string, or a reduction there is not.
    """
    if node.target is WAIT:
        started = access.operands(node)[0]
        return collective(started) if started.target in OPS else None
    if node.target not in OPS:
        return None
    arguments = access.arguments(node)
    group = arguments["group_name"]
    if not isinstance(group, str):
        raise GraphError(
            f"collective %{node.name} names its group by {type(group).__name__}",
            where=access.source_line(node),
            remedy="capture with torch.distributed.config.compile_on_one_rank off",
        )
    op = arguments.get("reduce_op", "")
    if "reduce_op" in arguments and op not in REDUCTIONS:
        raise GraphError(
            f"collective %{node.name} reduces by {op!r}",
            where=access.source_line(node),
            remedy=f"one of {', '.join(REDUCTIONS)}",
        )
    waits = [user for user in node.users if user.target is WAIT]
    return Collective(
        kind=OPS[node.target],
        operand=access.operands(node)[0],
        group=group,
        op=op,
        result=waits[0] if waits else None,
    )


def collectives(graph: fx.Graph) -> tuple[tuple[fx.Node, Collective], ...]:
    """Return every collective of the graph with the node that starts it, in program order."""
    calls = ((node, collective(node)) for node in graph.nodes if node.target in OPS)
    return tuple((node, c) for node, c in calls if c is not None)


def group_argument(node: fx.Node) -> str | None:
    """Return the argument, positional or not, that gives a collective of any kind its group."""
    if getattr(node.target, "namespace", "") not in GROUP_NAMESPACES:
        return None
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    args, kwargs = access.call(node)
    stated = {*names[: len(args)], *kwargs}
    return next((x for x in names if x in ("group_name", "group") and x in stated), None)


def group_of(node: fx.Node) -> str | None:
    """Return the group of a collective of any kind, None for other ops."""
    name = group_argument(node)
    return None if name is None else str(access.written_arguments(node)[name])


def all_group_names(graph: fx.Graph) -> tuple[str, ...]:
    """Return the names of the groups of collectives of every kind, in order of first use."""
    return tuple(dict.fromkeys(g for g in map(group_of, graph.nodes) if g is not None))


def rename_groups(graph: fx.Graph, names: Mapping[str, str]) -> None:
    """Replace group names in place, in collectives of every kind; names left out stay."""
    for node in graph.nodes:
        name = group_argument(node)
        group = None if name is None else access.written_arguments(node)[name]
        if name is not None and isinstance(group, str) and group in names:
            access.set_argument(node, name, names[group])


def starts(node: fx.Node) -> bool:
    """Return whether the node starts a collective, of any kind, whose result must be waited for."""
    return getattr(node.target, "namespace", "") == "_c10d_functional" and node.target is not WAIT


def check_waited_for(node: fx.Node) -> None:
    """Raise GraphError if the node starts a collective that is read before it is waited for."""
    for user in _before_wait(node) if starts(node) else ():
        raise GraphError(
            f"%{user.name} uses collective %{node.name} before its wait_tensor",
            where=access.source_line(user),
            remedy="wait for the collective first",
        )


def _before_wait(node: fx.Node) -> Iterator[fx.Node]:
    """Yield what reads a collective, or one of several that it started, without waiting."""
    for user in node.users:
        if access.projection(user) is not None:
            yield from _before_wait(user)
        elif user.target is not WAIT:
            yield user


def check_groups(graph: fx.Graph, mesh: Mesh) -> None:
    """Raise MeshError unless ``mesh`` knows every group the graph uses."""
    for _, call in collectives(graph):
        mesh.group(call.group)


def check_numbers(graph: fx.Graph, mesh: Mesh) -> None:
    """Check the numbers that collectives state against their groups.

    Raises:
        GraphError: a number of ranks, or a rank, that the group does not have; rows that it cannot
            scatter evenly.
    """
    for node, communication in collectives(graph):
        arguments, ranks = access.arguments(node), mesh.group(communication.group).axis_size
        stated, src = arguments.get("group_size", ranks), arguments.get("src", 0)
        rows = (
            access.shape(communication.operand)[0]
            if communication.kind is Kind.REDUCE_SCATTER
            else 0
        )
        why = ""
        if stated != ranks:
            why = f"it states {stated} ranks, its group has {ranks}"
        elif not 0 <= src < ranks:
            why = f"it names rank {src} of a group of {ranks}"
        elif isinstance(rows, int) and rows % ranks:
            why = f"it scatters {rows} rows over {ranks} ranks"
        if why:
            raise GraphError(
                f"collective %{node.name} does not fit its group",
                where=access.place(node),
                found=why,
                remedy="pass the mesh that the graph was made for",
            )


def insert(
    kind: Kind,
    operand: fx.Node,
    group: str,
    *,
    op: str = "",
    ranks: int = 0,
    gives: torch.Tensor | None = None,
) -> fx.Node:
    """Add a collective and its wait at the insertion point of the graph; return the wait.

    Args:
        kind: all_reduce, reduce_scatter or all_gather.
        operand: what it reads.
        group: name of the replica groups.
        op: the reduction, of those that reduce.
        ranks: ranks in each group, of those that change the number of rows.
        gives: a tensor like the result; None: like the operand.
    """
    options = [option for option in (op, ranks) if option]
    node = operand.graph.call_function(TARGETS[kind], (operand, *options, group))
    wait = operand.graph.call_function(WAIT, (node,))
    for inserted in (node, wait):
        inserted.meta = {**operand.meta, "val": access.tensor(operand) if gives is None else gives}
    return wait
