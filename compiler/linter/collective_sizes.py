"""Sizes at collectives: rows that the ranks do not divide, and sizes that differ between ranks."""

from __future__ import annotations

from collections.abc import Iterator

import sympy
import torch
import torch.utils._pytree as pytree
from torch import fx

from compiler.analysis.replication import replicated_over
from compiler.ir import access
from compiler.ir.collectives import Collective, Kind
from compiler.ir.row_ops import divides
from compiler.linter.facts import Known, concrete_shape
from compiler.linter.finding import Finding

SAME_SIZE = (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER, Kind.ALL_GATHER, Kind.BROADCAST)
"""Collectives that all ranks must enter with one size."""


def sizes(known: Known) -> Iterator[Finding]:
    """What is wrong with the sizes of the collectives' operands."""
    per_rank = _per_rank(known)
    read_from = _symbols(known)
    for node in known.graph.graph.nodes:
        what = known.collective(node)
        if what is None or known.graph.mesh.group(what.group).axis_size == 1:
            continue
        if what.kind is Kind.REDUCE_SCATTER:
            yield from _uneven(known, node, what)
        if what.kind in SAME_SIZE:
            yield from _unequal(known, node, what, per_rank.get(what.operand))
            yield from _counted_out(known, node, what, read_from)


def _uneven(known: Known, node: fx.Node, what: Collective) -> Iterator[Finding]:
    """Rows that no padding made a multiple of the ranks."""
    rows, ranks = access.shape(what.operand)[0], known.graph.mesh.group(what.group).axis_size
    if divides(ranks, rows):
        return
    count = f"{rows} rows" if isinstance(rows, int) else f"{_text(rows)} rows, for any count,"
    yield known.finding(
        "uneven-rows",
        node,
        f"reduce_scatter deals {count} of {known.name(what.operand)} out to {ranks} ranks, which "
        "do not divide them: the last rows are lost",
        f"pad {known.name(what.operand)} to a multiple of {ranks} rows, and trim after the gather",
    )


def _text(size: torch.SymInt) -> str:
    return str(sympy.sympify(size.node.expr))


def _unequal(
    known: Known, node: fx.Node, what: Collective, shapes: dict[int, tuple[int, ...]] | None
) -> Iterator[Finding]:
    """Ranks that computed a size from their rank."""
    groups = known.graph.mesh.group(what.group).ranks
    for group in groups if shapes is not None else ():
        assert shapes is not None, "checked above"
        if len({shapes[rank] for rank in group}) > 1:
            held = "; ".join(f"rank {rank}: {list(shapes[rank])}" for rank in group)
            yield _differs(known, node, what, f"sizes that differ between ranks: {held}")
            return


def _counted_out(
    known: Known, node: fx.Node, what: Collective, read_from: dict[str, fx.Node]
) -> Iterator[Finding]:
    """Ranks that read a size out of data that differs between them."""
    groups = known.graph.mesh.group(what.group)
    for size in access.shape(what.operand):
        symbols = access.unbacked(size)
        for symbol, origin in read_from.items():
            if symbol in symbols and not replicated_over(known.classes[origin], groups):
                held = f"a size that {known.name(origin)} = {known.op(origin)} reads out of data "
                yield _differs(known, node, what, held + "that differs between ranks")
                return


def _differs(known: Known, node: fx.Node, what: Collective, how: str) -> Finding:
    return known.finding(
        "rank-dependent-size",
        node,
        f"ranks enter this {what.kind} with {how}: they hang, or add what does not belong together",
        f"the same size of {known.name(what.operand)} on every rank: pad to the largest",
    )


def _symbols(known: Known) -> dict[str, fx.Node]:
    """Symbol of a size that stands for data -> the value it first appears in, in program order."""
    found: dict[str, fx.Node] = {}
    for node in known.graph.graph.nodes:
        if node not in known.classes or "val" not in node.meta:
            continue
        value = node.meta["val"]
        for held in value if isinstance(value, list | tuple) else (value,):
            listed = held.shape if isinstance(held, torch.Tensor) else (held,)
            for size in listed:
                for symbol in sorted(access.unbacked(size)):
                    found.setdefault(symbol, node)
    return found


def _per_rank(known: Known) -> dict[fx.Node, dict[int, tuple[int, ...]]]:
    """Values whose shapes differ between ranks because of numbers computed from the rank.

    Such ops, and what is computed from them, run per rank on the meta device; symbolic sizes count
    as their hints.
    """
    found: dict[fx.Node, dict[int, tuple[int, ...]]] = {}
    for node in known.graph.graph.nodes:
        if node not in known.meanings or not access.is_tensor(node):
            continue
        if not access.rank_constants(node) and not any(x in found for x in node.all_input_nodes):
            continue
        ranks = range(known.graph.mesh.size)
        shapes = {rank: _shape_on(node, rank, found) for rank in ranks}
        known_shapes = {rank: shape for rank, shape in shapes.items() if shape is not None}
        if len(known_shapes) == len(ranks) and len(set(known_shapes.values())) > 1:
            found[node] = known_shapes
    return found


def _shape_on(
    node: fx.Node, rank: int, found: dict[fx.Node, dict[int, tuple[int, ...]]]
) -> tuple[int, ...] | None:
    """Shape of ``node`` on one rank, None where the op does not run on such shapes."""

    def on_meta(x: fx.Node) -> object:
        value = x.meta.get("val")
        if isinstance(value, torch.Tensor):
            shape = found[x][rank] if x in found else concrete_shape(x)
            return torch.empty(shape, dtype=value.dtype, device="meta")
        return access.concrete(value) if isinstance(value, torch.SymInt) else value

    def own(item: object) -> object:
        return access.on_rank(item, rank)

    args, kwargs = access.call(node)
    args, kwargs = pytree.tree_map(own, pytree.tree_map_only(fx.Node, on_meta, (args, kwargs)))
    kwargs = {k: torch.device("meta") if k == "device" else x for k, x in kwargs.items()}
    try:
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, IndexError, ValueError, TypeError):
        return None
    return tuple(result.shape) if isinstance(result, torch.Tensor) else None
