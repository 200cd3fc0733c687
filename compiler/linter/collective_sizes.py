"""Sizes at collectives: rows that the ranks do not divide, and sizes that differ between ranks."""

from __future__ import annotations

from collections.abc import Iterator

import sympy
import torch
import torch.utils._pytree as pytree
from torch import fx

from compiler.ir import access
from compiler.ir.collectives import Collective, Kind, collectives
from compiler.ir.row_ops import divides
from compiler.linter.facts import LintFacts
from compiler.linter.finding import Finding

Shapes = dict[fx.Node, list[tuple[int, ...]]]
"""Value -> its shape on every rank."""


def collective_sizes(facts: LintFacts) -> Iterator[Finding]:
    """Yield findings about the sizes of the collectives' operands."""
    shapes, origins = _rank_dependent_shapes(facts), _origins(facts)
    for node, what in collectives(facts.graph.graph):
        ranks = facts.graph.mesh.group(what.group).axis_size
        if what.kind is Kind.REDUCE_SCATTER:
            yield from _uneven_rows(facts, node, what, ranks)
        if what.kind is not Kind.ALL_TO_ALL and ranks > 1:
            yield from _different_sizes(facts, node, what, shapes, origins)


def _uneven_rows(
    facts: LintFacts, node: fx.Node, what: Collective, ranks: int
) -> Iterator[Finding]:
    """Rows that no padding made a multiple of the ranks."""
    rows, name = access.shape(what.operand)[0], facts.name(what.operand)
    if divides(ranks, rows):
        return
    if isinstance(rows, int):
        count = f"{rows} rows"
    else:
        count = f"{sympy.sympify(rows.node.expr)} rows, for any count,"
    yield facts.finding(
        "uneven-rows",
        node,
        f"reduce_scatter deals {count} of {name} out to {ranks} ranks, which do not divide them: "
        "the last rows are lost",
        f"pad {name} to a multiple of {ranks} rows, and trim after the gather",
    )


def _different_sizes(
    facts: LintFacts, node: fx.Node, what: Collective, shapes: Shapes, origins: dict[str, fx.Node]
) -> Iterator[Finding]:
    """Sizes that ranks compute from their rank, and sizes read out of data that differs."""
    reasons: list[str] = []
    if (per_rank := shapes.get(what.operand)) is not None:
        for group in facts.graph.mesh.group(what.group).ranks:
            if len({per_rank[rank] for rank in group}) > 1:
                listed = "; ".join(f"rank {rank}: {list(per_rank[rank])}" for rank in group)
                reasons.append(f"sizes that differ between ranks: {listed}")
                break
    symbols = frozenset().union(*map(access.unbacked, access.shape(what.operand)))
    for symbol, origin in origins.items():
        if symbol in symbols and not facts.equal(origin, (what.group,)):
            read = f"{facts.name(origin)} = {facts.op(origin)}"
            reasons.append(f"a size that {read} reads out of data that differs between ranks")
            break
    for reason in reasons:
        yield facts.finding(
            "rank-dependent-size",
            node,
            f"ranks enter this {what.kind} with {reason}: they hang, or add what does not belong "
            "together",
            f"the same size of {facts.name(what.operand)} on every rank: pad to the largest",
        )


def _origins(facts: LintFacts) -> dict[str, fx.Node]:
    """Return the first value, in program order, in which each size read out of data appears."""
    origins: dict[str, fx.Node] = {}
    for node in facts.nodes:
        value = node.meta.get("val") if node.op != "output" else None
        for part in value if isinstance(value, list | tuple) else (value,):
            for size in part.shape if isinstance(part, torch.Tensor) else (part,):
                for symbol in sorted(access.unbacked(size)):
                    origins.setdefault(symbol, node)
    return origins


def _rank_dependent_shapes(facts: LintFacts) -> Shapes:
    """Return the shapes that differ between ranks because of numbers computed from the rank.

    Such ops, and what is computed from them, run on the meta device, once for ranks whose shapes
    and numbers are the same; symbolic sizes count as their hints.
    """
    different: Shapes = {}
    ranks = range(facts.graph.mesh.size)
    for node in facts.graph.meanings:
        read = [x for x in node.all_input_nodes if x in different]
        broadcasts = torch.Tag.pointwise in getattr(node.target, "tags", ())
        numbers = () if broadcasts else access.rank_constants(node)
        if (read or numbers) and access.is_tensor(node):
            seen: dict[tuple[object, ...], tuple[int, ...] | None] = {}
            shapes = []
            for rank in ranks:
                kind = (*(n.values[rank] for n in numbers), *(different[x][rank] for x in read))
                if kind not in seen:
                    seen[kind] = _shape_on(node, rank, different)
                shapes.append(seen[kind])
            if None not in shapes and len(set(shapes)) > 1:
                different[node] = [shape for shape in shapes if shape is not None]
    return different


def _shape_on(node: fx.Node, rank: int, shapes: Shapes) -> tuple[int, ...] | None:
    """Return the shape of ``node`` on one rank, None where the op does not run on such shapes."""

    def on_meta(item: object) -> object:
        if not isinstance(item, fx.Node):
            return access.on_rank(item, rank)
        value = item.meta.get("val")
        if isinstance(value, torch.Tensor):
            shape = shapes[item][rank] if item in shapes else access.concrete_shape(item)
            return torch.empty(shape, dtype=value.dtype, device="meta")
        return access.concrete(value) if isinstance(value, torch.SymInt) else value

    args, kwargs = pytree.tree_map(on_meta, access.call(node))
    kwargs = {k: torch.device("meta") if k == "device" else x for k, x in kwargs.items()}
    try:
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, IndexError, ValueError, TypeError):
        return None
    return tuple(map(access.concrete, result.shape)) if isinstance(result, torch.Tensor) else None
