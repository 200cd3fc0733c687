"""Add up first what one reduction gave, where additions mix it with other values.

Before    %3: f32[4, 8] {tp: R} = comm.all_reduce(%0) {axis = tp, op = sum}
          %4: f32[4, 8] {tp: R} = aten.add.Tensor(%2, %3)
          %5: f32[4, 8] {tp: R} = comm.all_reduce(%1) {axis = tp, op = sum}
          %6: f32[4, 8] {tp: R} = aten.add.Tensor(%4, %5)
After     %3: f32[4, 8] {tp: R} = comm.all_reduce(%0) {axis = tp, op = sum}
          %4: f32[4, 8] {tp: R} = comm.all_reduce(%1) {axis = tp, op = sum}
          %5: f32[4, 8] {tp: R} = aten.add.Tensor(%3, %4)
          %6: f32[4, 8] {tp: R} = aten.add.Tensor(%5, %2)

Law       addition is associative and commutative: (r + a) + b = (a + b) + r.
Exact     over the reals; in floating point the order of additions changes.
Requires  a tree of additions that are not linear in a reduction themselves, with two or more leaves
          that are linear in the same one, and each of which has a collective to itself that
          reduces no less than the tree holds, and could not either.
Ensures   as many additions as before, of the same layout. No plan of reductions is lost: every
          value linear in one is still there, and the sum of leaves, computed reduced, demands of
          them what the removed additions did. So neither bytes nor number of collectives rise in
          the cheapest plan; and computed unreduced, it needs one for those of all leaves. Sharing
          rows costs no more either: slices of whole leaves are free, so if a leaf is a share, all
          of the tree may be, and its root is gathered once. Fused kernels behind the sum still find
          one addition: the other leaves are added up by themselves.
Saves     nothing by itself: what meets now can be merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import fx

from compiler.analysis.addition_trees import Tree, like, may_have_trees, trees
from compiler.analysis.carriers import Carrier, carriers
from compiler.analysis.reductions import LINEAR_KINDS, Reduction, facts, reads_shape, reductions
from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import PassResult, Remark, RemarkKind

Found = Mapping[fx.Node, Carrier]
Group = Sequence[fx.Node]


@dataclass(frozen=True)
class RegroupSums:
    """Rewrites every such tree.

    Attributes:
        widen: as in ``Facts``: what is linear in a reduction.
        join: likewise.
    """

    name: ClassVar[str] = "regroup-sums"
    widen: bool = False
    join: bool = True

    def apply(self, graph: SpmdGraph) -> PassResult:
        """The graph with sums of reductions next to each other."""
        if not may_have_trees(graph):
            return PassResult(graph, (), changed=False)
        # The first last: it is what the planner asks for next, and few are remembered.
        known = [facts(graph, r, widen=self.widen, join=self.join) for r in reductions(graph)]
        found = {each.reduction: carriers(graph, each) for each in reversed(known)}
        groups: dict[Tree, list[Group]] = {}
        remarks: list[Remark] = []
        for tree in trees(graph, {node for every in found.values() for node in every}):
            for reduction, leaves in by_reduction(tree, found):
                why = {x: refusal(x, tree.root, found[reduction]) for x in leaves}
                remarks += [_missed(x, reason) for x, reason in why.items() if reason]
                if len(group := [x for x in leaves if not why[x]]) > 1:
                    groups.setdefault(tree, []).append(group)
                    remarks.append(_passed(tree, group, reduction))
        if not groups:
            return PassResult(graph, tuple(remarks), changed=False)
        return PassResult(regrouped(graph, groups), tuple(remarks), changed=True)


def by_reduction(
    tree: Tree, found: dict[Reduction, Found]
) -> Iterator[tuple[Reduction, list[fx.Node]]]:
    """Reductions that distribute over additions, with the leaves linear in each: two or more."""
    for reduction, every in reversed(found.items()):
        leaves = [x for x in tree.leaves if x in every and not every[x].addend]
        if len(leaves) > 1 and reduction.kind in LINEAR_KINDS:
            yield reduction, leaves


def refusal(leaf: fx.Node, root: fx.Node, found: Found) -> str | None:
    """Why adding ``leaf`` to others of its reduction would save none; None if it may."""
    if not like(leaf, root):
        return f"it is not laid out as %{root.name}"
    own = list(own_reductions(leaf, found))
    if not own:
        return f"not only %{root.name} needs its reduction"
    if all(least_bytes(x, found) < access.payload_bytes(root) for x in own):
        return f"its reduction is, or may be, of less than %{root.name} holds"
    return None


def own_reductions(leaf: fx.Node, found: Found) -> Iterator[fx.Node]:
    """Results of reductions that are read for ``leaf`` alone."""
    queue = [leaf]
    while queue:
        at = queue.pop()
        if sum(not reads_shape(user) for user in at.users) > 1:
            continue
        if found[at].reduces:
            yield at
        else:
            queue += found[at].operands


def least_bytes(result: fx.Node, found: Found) -> int:
    """Payload of a reduction, or of what it may be of instead: all that its addend is linear in."""
    seen: dict[fx.Node, int] = {}
    queue = [result]
    while queue:
        if (at := queue.pop()) not in seen and access.is_tensor(at):
            seen[at] = access.payload_bytes(at)
            queue += found[at].operands
    return min(seen.values())


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
    target, copies, origins = fx.Graph(), dict[fx.Node, fx.Node](), dict[fx.Node, fx.Node]()
    tree_of = {node: tree for tree in groups for node in tree.additions}
    for node in graph.graph.nodes:
        if (tree := tree_of.get(node)) is None:
            copies[node] = target.node_copy(node, copies.__getitem__)
            origins[copies[node]] = node
        elif node is tree.root:
            copies[node] = _sum(target, tree, groups[tree], copies)
    return graph.with_graph(target, origins)


def _sum(
    target: fx.Graph, tree: Tree, groups: Sequence[Group], copies: Mapping[fx.Node, fx.Node]
) -> fx.Node:
    """The sum; each addition has the type, layer and source of one that it replaces."""
    replaced = iter(tree.additions)

    def added(left: Any, right: Any) -> fx.Node:
        made = target.call_function(torch.ops.aten.add.Tensor, (left, right))
        made.meta = dict(next(replaced).meta)
        return made

    first = {x for group in groups for x in group}
    sums = [reduce(added, (copies[x] for x in group)) for group in groups]
    # The rest apart, started by what has the type of the sum: fused kernels add one value.
    rest = sorted((x for x in tree.leaves if x not in first), key=lambda x: not like(x, tree.root))
    others = [copies.get(x, x) for x in rest]
    if rest and like(rest[0], tree.root):
        others = [reduce(added, others)]
    total: fx.Node = reduce(added, (*sums, *others))
    return total
