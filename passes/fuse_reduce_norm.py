"""Replace a reduction over ranks, and the addition and RMSNorm behind it, by one fused op.

Before    %3: f32[8, 16] {tp: R} = comm.all_reduce(%0) {axis = tp, op = sum}
          %4: f32[8, 16] {tp: R} = aten.add.Tensor(%3, %1)
          %5: f32[8, 16] {tp: R} = aten.rms_norm(%4, [16], %2, 1e-06)
After     %3: (f32[8, 16], f32[8, 16]) = commplan.all_reduce_add_rms_norm(%0, %1, %2, 1e-6, 0, "tp")
          %4: f32[8, 16] {tp: R} = %3[0]    // the norm
          %5: f32[8, 16] {tp: R} = %3[1]    // the sum

and likewise a reduce_scatter, the norm of its rows, and their all_gather, by
reduce_scatter_add_rms_norm_all_gather, which pads and trims rows itself.

Law       the op is its composition (``compiler.ir.decompositions``); whatever a norm is written as,
          it is one function over the reals (``compiler.analysis.norm_regions``).
Exact     but for rounding: the op rounds once where the composition rounds after every step.
Requires  nothing; what is not fused has a remark with the reason.
Ensures   every other value is computed as before. What nothing reads any more is left.
Saves     launches, and reading and writing what stands between the parts.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from compiler.analysis.norm_regions import NormRegion, Recognizer
from compiler.ir import access
from compiler.ir.collectives import Collective, Kind, collective, collectives
from compiler.ir.fused_ops import ALL_REDUCE_NORM, SHARED_NORM
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.remark import PassResult, Remark, RemarkKind
from compiler.ir.row_ops import ALL_SLICE, PAD_ROWS
from compiler.ir.rules.meaning import size_key

aten = torch.ops.aten

WhyUnserved = Callable[[str, Sequence[fx.Node]], str | None]
"""Group name, what its fused ops would reduce -> why its ranks cannot run them, or None."""


@dataclass(frozen=True)
class FuseReduceNorm:
    """Fuses every reduction that a kernel can.

    Attributes:
        why_unserved: asked once for every group with something to fuse.
    """

    name: ClassVar[str] = "fuse-reduce-norm"
    why_unserved: WhyUnserved

    def apply(self, graph: SpmdGraph) -> PassResult:
        """The graph with fused ops, and a remark for every reduction."""
        recognizer = Recognizer(graph)
        matches = {
            (start, reduction): _match(recognizer, reduction)
            for start, reduction in collectives(graph.graph)
            if reduction.kind in (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER)
        }
        operands: dict[str, list[fx.Node]] = {}
        for match in matches.values():
            if isinstance(match, Match):
                operands.setdefault(match.reduction.group, []).append(match.x)
        unserved = {group: self.why_unserved(group, reduced) for group, reduced in operands.items()}
        fused, remarks = list[Match](), list[Remark]()
        for (start, reduction), match in matches.items():
            refusal = match if isinstance(match, str) else unserved[reduction.group]
            kind, why = RemarkKind.MISSED, f"not fused: {refusal}"
            if isinstance(match, Match) and refusal is None:
                fused.append(match)
                kind, why = RemarkKind.PASSED, "fused with add + RMSNorm"
            where = access.layer_path(start)
            remarks.append(Remark(kind, f"%{start.name}", f"{reduction.kind} {why}", where))
        target = _Writer(graph, fused).written() if fused else graph
        return PassResult(target, tuple(remarks), changed=bool(fused))


@dataclass(frozen=True)
class Match:
    """What one fused call replaces.

    Attributes:
        reduction: over ranks.
        region: the addition and the norm.
        gather: the all_gather of the norm; None where all ranks hold all rows.
        padding: adds rows to the reduction's operand, None where none are missing.
        trim: cuts them off the gathered rows.
    """

    reduction: Collective
    region: NormRegion
    gather: Collective | None = None
    padding: fx.Node | None = None
    trim: fx.Node | None = None

    @property
    def x(self) -> fx.Node:
        """What is summed over ranks."""
        return access.operands(self.padding)[0] if self.padding else self.reduction.operand

    @property
    def y(self) -> fx.Node:
        """The value that the call's first result replaces."""
        gathered = self.gather.result if self.gather else None
        return self.trim or gathered or self.region.y


def _match(recognizer: Recognizer, reduction: Collective) -> Match | str:
    """What is fused with a reduction, or why nothing is."""
    region = recognizer.fusable(reduction)
    if isinstance(region, str):
        return region
    if reduction.kind is Kind.ALL_REDUCE:
        return Match(reduction, region)
    started = [collective(user) for user in region.y.users]
    gathers = [
        c for c in started
        if c and c.result and (c.kind, c.group) == (Kind.ALL_GATHER, reduction.group)
    ]  # fmt: skip
    if len(gathers) != 1:
        return f"the norm of its rows is gathered {len(gathers)} times"
    if len(access.shape(reduction.operand)) != 2:
        return f"its operand has {len(access.shape(reduction.operand))} dimensions"
    match = Match(reduction, region, gathers[0])
    if reduction.operand.target is not PAD_ROWS:
        return match
    match = replace(match, padding=reduction.operand)
    trims = list(match.y.users)
    if len(trims) != 1 or not _trims(trims[0], match.x):
        return "the norm of its padding is read"
    return replace(match, trim=trims[0])


def _trims(node: fx.Node, x: fx.Node) -> bool:
    """Whether ``node`` keeps as many rows as ``x`` has, from the first on."""
    if node.target is not aten.slice.Tensor:
        return False
    sliced = access.arguments(node)
    first = (sliced["dim"], sliced["start"] or 0, sliced["step"]) == (0, 0, 1)
    kept, rows = (size_key(access.shape(n)[0]) for n in (node, x))
    return first and bool(kept == rows)


class _Writer:
    """Writes a graph with one call for every match."""

    def __init__(self, graph: SpmdGraph, matches: Sequence[Match]) -> None:
        self.graph, self.copy = graph, GraphCopy()
        self.values, self.target = self.copy.values, self.copy.target
        self.at = {match.region.addition: match for match in matches}
        self.shares = {m.region.y: m for m in matches if m.gather and len(m.region.y.users) > 1}

    def written(self) -> SpmdGraph:
        """The target."""
        for node in self.graph.graph.nodes:
            if node in self.values:
                continue
            if node in self.shares:
                self._share(node, self.shares[node])
            elif node in self.at:
                self._call(self.at[node])
            else:
                self._copied(node)
        return self.graph.with_graph(self.target, self.copy.origins)

    def _copied(self, node: fx.Node) -> fx.Node:
        return self.values.get(node) or self.copy.add(node)

    def _call(self, match: Match) -> None:
        """Writes the call and its results: the norm, then the sum."""
        region, group = match.region, match.reduction.group
        operands = match.x, region.residual, region.weight
        read: list[fx.Node | float] = [*map(self._copied, operands)]
        read += [region.eps, region.offset]
        if match.gather is not None:
            read.append(self.graph.mesh.group(group).axis_size)
        op = SHARED_NORM if match.gather else ALL_REDUCE_NORM
        call = self.target.call_function(op, (*read, group))
        results = match.y, region.addition
        call.meta = {**region.addition.meta, "val": tuple(map(access.tensor, results))}
        for index, node in enumerate(results):
            self.values[node] = self.target.call_function(operator.getitem, (call, index))
            self.values[node].meta = dict(node.meta)

    def _share(self, node: fx.Node, match: Match) -> None:
        """This rank's rows of the gathered norm, for those that read no others."""
        group = match.reduction.group
        read = self.values[match.y], 0, self.graph.mesh.group(group).axis_size, group
        self.values[node] = self.target.call_function(ALL_SLICE, read)
        self.values[node].meta = dict(node.meta)
