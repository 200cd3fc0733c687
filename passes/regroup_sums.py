"""Add up first what one reduction gave, where additions mix it with other values.

Before    %3: f32[4, 8] {tp: R} = comm.all_reduce(%0) {axis = tp, op = sum}
          %4: f32[4, 8] {tp: R} = aten.add.Tensor(%2, %3)
          %5: f32[4, 8] {tp: R} = comm.all_reduce(%1) {axis = tp, op = sum}
          %6: f32[4, 8] {tp: R} = aten.add.Tensor(%4, %5)
After     %3: f32[4, 8] {tp: R} = comm.all_reduce(%0) {axis = tp, op = sum}
          %4: f32[4, 8] {tp: R} = comm.all_reduce(%1) {axis = tp, op = sum}
          %5: f32[4, 8] {tp: R} = aten.add.Tensor(%3, %4)
          %6: f32[4, 8] {tp: R} = aten.add.Tensor(%5, %2)

Law       addition is associative and commutative: (r + a) + b = (a + b) + r; scaling
          distributes over it: r - c a - c b = r - c (a + b).
Exact     over the reals; in floating point the order of additions changes.
Requires  a tree of additions that are not linear in a reduction themselves, with two or more leaves
          that are linear in the same one, and each of which has a collective to itself that
          reduces no fewer elements than the tree holds, and could not either; nor may all of these
          together be of fewer bytes, as those of narrower types can.
Ensures   as many additions as before, of the same layout. Every value linear in a reduction is
          still there, so the cheapest plan has no more bytes, collectives or time than before. One
          addition stands last: fused kernels add one value.
Saves     nothing by itself: what meets now can be merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import ClassVar

import torch
from torch import fx

from compiler.analysis.addition_trees import Term, Tree, is_exact, like, may_have_trees, trees
from compiler.analysis.partial_values import (
    PartialValues,
    exclusive_reduced_size,
    partial_values,
)
from compiler.analysis.reductions import LINEAR_KINDS, Reduction, reduction_facts, reductions
from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.remark import PassResult, Remark, RemarkKind

Group = Sequence[fx.Node]


@dataclass(frozen=True)
class RegroupSums:
    """Rewrites every such tree.

    Attributes:
        allow_dtype_widening: as in ``ReductionFacts``: what is linear in a reduction.
        allow_new_groups: likewise.
    """

    name: ClassVar[str] = "regroup-sums"
    allow_dtype_widening: bool = False
    allow_new_groups: bool = True

    def apply(self, graph: SpmdGraph) -> PassResult:
        """The graph with sums of reductions next to each other."""
        if not may_have_trees(graph):
            return PassResult(graph, (), changed=False)
        allowed = self.allow_dtype_widening, self.allow_new_groups
        values = {r: partial_values(reduction_facts(graph, r, *allowed)) for r in reductions(graph)}
        groups: dict[Tree, list[Group]] = {}
        remarks: list[Remark] = []
        for tree in trees(graph, {node for partial in values.values() for node in partial}):
            for reduction, leaves in by_reduction(tree, values):
                why = refusals(tree, leaves, values[reduction])
                remarks += [_missed(x, reason) for x, reason in why.items()]
                if len(group := [x for x in leaves if x not in why]) > 1:
                    groups.setdefault(tree, []).append(group)
                    remarks.append(_passed(tree, group, reduction))
        if not groups:
            return PassResult(graph, tuple(remarks), changed=False)
        # Factors that could not be multiplied may be gone: what is missed, the last look tells.
        last = self.apply(regrouped(graph, groups))
        passed = [remark for remark in remarks if remark.kind is RemarkKind.PASSED]
        return PassResult(last.graph, (*passed, *last.remarks), changed=True)


def by_reduction(
    tree: Tree, values: Mapping[Reduction, PartialValues]
) -> Iterator[tuple[Reduction, list[fx.Node]]]:
    """Reductions that distribute over additions, with the leaves linear in each: two or more."""
    for reduction, partial in values.items():
        leaves = [x for x, _ in tree.terms if x in partial and not partial[x].addend]
        if len(leaves) > 1 and reduction.kind in LINEAR_KINDS:
            yield reduction, leaves


def refusals(tree: Tree, leaves: Sequence[fx.Node], values: PartialValues) -> dict[fx.Node, str]:
    """Why adding a leaf to others of its reduction would save none; those that may be left out."""
    root, why, saved = tree.root, dict[fx.Node, str](), dict[fx.Node, Fraction]()
    for leaf in dict.fromkeys(leaves):
        if not like(leaf, root):
            why[leaf] = f"it is not laid out as %{root.name}"
        elif not (least := exclusive_reduced_size(leaf, values, elements)):
            why[leaf] = f"not only %{root.name} needs its reduction"
        elif least < elements(root):
            why[leaf] = f"its reduction is, or may be, of fewer elements than %{root.name} has"
        else:
            saved[leaf] = exclusive_reduced_size(leaf, values, access.payload_bytes)
    if not saved:
        return why
    terms = [(x, c) for x, c in tree.terms if x in saved]
    first, scale = lead(terms, root)
    for leaf, coefficient in terms:
        ratio, whole = coefficient / scale, not access.dtype(leaf).is_floating_point
        if not is_exact(ratio) or (whole and ratio.denominator > 1):
            why[leaf] = f"no number is the ratio of its factor to that of %{first.name}"
            del saved[leaf]
    taken, most = ceil(sum(saved.values(), Fraction(0))), access.payload_bytes(root)
    if len(saved) > 1 and taken < most:
        said = f"all of them reduce, or may, {taken} bytes, one reduction of %{root.name} {most}"
        why |= dict.fromkeys(saved, said)
    return why


def elements(node: fx.Node) -> int:
    """How many a tensor has."""
    return access.payload_bytes(node) // access.dtype(node).itemsize


def lead(terms: Sequence[Term], root: fx.Node) -> Term:
    """What a sum of them starts with: laid out as the root, the author's sign and scale if any."""
    return min((t for t in terms if like(t[0], root)), key=lambda t: t[1] != 1)


def _missed(leaf: fx.Node, why: str) -> Remark:
    said = f"not regrouped with others of its reduction: {why}"
    return Remark(RemarkKind.MISSED, f"%{leaf.name}", said, access.layer_path(leaf))


def _passed(tree: Tree, group: Group, reduction: Reduction) -> Remark:
    names = " and ".join(f"%{x.name}" for x in group)
    what = f"{reduction.collective} {reduction.kind} over {reduction.group}"
    said = f"{names}, which come from {what}, are added up first"
    return Remark(RemarkKind.PASSED, f"%{tree.root.name}", said, access.layer_path(tree.root))


def regrouped(graph: SpmdGraph, groups: Mapping[Tree, Sequence[Group]]) -> SpmdGraph:
    """The graph with the groups of every tree added up by themselves."""
    copy, tree_of = GraphCopy(), {node: tree for tree in groups for node in tree.additions}
    for node in graph.graph.nodes:
        if (tree := tree_of.get(node)) is None:
            copy.add(node)
        elif node is tree.root:
            copy.values[node] = _sum(copy, tree, groups[tree])
    return graph.with_graph(copy.target, copy.origins)


def _sum(copy: GraphCopy, tree: Tree, groups: Sequence[Group]) -> fx.Node:
    """The sum; each addition has the type, layer and source of one that it replaces."""
    replaced, root = iter(tree.additions), tree.root

    def added(first: Term, terms: Iterable[Term]) -> Term:
        total, scale = first
        for value, coefficient in terms:
            ratio = coefficient / scale
            size = int(abs(ratio)) if ratio.denominator == 1 else float(abs(ratio))
            op = torch.ops.aten.add.Tensor if ratio > 0 else torch.ops.aten.sub.Tensor
            total = copy.target.call_function(
                op, (total, value), {} if size == 1 else {"alpha": size}
            )
            total.meta = dict((before := next(replaced)).meta)
            total._rename(before.name)  # what later passes do to it, they say by this name
        return total, scale

    def started(terms: Sequence[Term]) -> Term:
        first = lead(terms, root)
        at = terms.index(first)
        copied = [(copy.values.get(x, x), c) for x, c in (first, *terms[:at], *terms[at + 1 :])]
        return added(copied[0], copied[1:])

    grouped = {x for group in groups for x in group}
    sums = [started([(x, c) for x, c in tree.terms if x in group]) for group in groups]
    rest = [(x, c) for x, c in tree.terms if x not in grouped]
    # The rest apart, started by what has the type of the sum: fused kernels add one value.
    rest.sort(key=lambda term: not like(term[0], root))
    if rest and like(rest[0][0], root) and lead(rest, root)[1] == 1:
        others = [started(rest)]
    else:
        others = [(copy.values.get(x, x), c) for x, c in rest]
    terms = [*sums, *others]
    # What starts the sum as it is comes first, laid out as the sum if any such is.
    at = min(range(len(terms)), key=lambda i: (terms[i][1] != 1, not like(terms[i][0], root)))
    total, _ = added(terms[at], terms[:at] + terms[at + 1 :])
    assert isinstance(total, fx.Node), "a tree adds something"
    return total
