"""Slices and factors by rank, and what they leave out: rows, addends, scales of other ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

import torch
from torch import fx

from compiler.analysis.own_rows import differs_along, own_rows
from compiler.analysis.placements import REPLICATE
from compiler.ir import access
from compiler.ir.collectives import WAIT, Collective, Kind, collective, collectives
from compiler.ir.placement import Partial, Shard
from compiler.linter.facts import LintFacts
from compiler.linter.finding import Finding
from compiler.linter.gathered_blocks import moves

aten = torch.ops.aten
MUL, DIV = aten.mul.Tensor, aten.div.Tensor


def misused_by_rank(facts: LintFacts) -> Iterator[Finding]:
    """Yield findings about what ranks slice or scale by their rank, at the collective after it."""
    for node, what in collectives(facts.graph.graph):
        for axis in facts.spanned(what) if node in facts.live else ():
            if axis not in facts.axes:
                continue
            if what.kind is Kind.ALL_REDUCE and what.op in ("sum", "avg"):
                yield from _of_addends(facts, node, what, axis)
            if what.kind is Kind.ALL_GATHER:
                yield from _of_rows(facts, node, what, axis)
                yield from _unscaled(facts, node, axis)


def _steps(facts: LintFacts, node: fx.Node) -> Iterable[fx.Node]:
    """Return the calls that ``node`` is linear in, itself first, and those where that ends."""
    past = facts.linear_past(node)
    read = [access.operands(step)[i] for step, term, _ in past for i in term.operands]
    return [x for x in dict.fromkeys((node, *read)) if x.op == "call_function"]


def _made_of(facts: LintFacts, node: fx.Node) -> Iterable[fx.Node]:
    """Return the calls that ``node`` is made of row by row: linear ops and elementwise ones."""
    stack, calls = [node], dict[fx.Node, None]()
    while stack:
        step = stack.pop()
        rule, read = facts.rule(step), access.operands(step)
        if step in calls or step.op != "call_function":
            continue
        calls[step] = None
        if rule is not None and rule.pointwise:
            stack += read
        elif rule is not None and rule.terms and len(rule.terms) == 1:
            stack += [read[i] for i in rule.terms[0].operands]
    return calls


def _of_addends(facts: LintFacts, node: fx.Node, what: Collective, axis: str) -> Iterator[Finding]:
    """Yield findings about partial sums of which ranks reduce other rows each, or none."""
    mesh = facts.graph.mesh
    for step in _steps(facts, what.operand):
        if not differs_along(step, mesh, axis):
            continue
        source = access.operands(step)[0]
        if not isinstance(facts.placement(source, axis), Partial):
            continue
        name, reduced = facts.name(source), f"{facts.name(node)} = all_reduce over {axis}"
        if own_rows(step, mesh) is not None:
            yield facts.finding(
                "sums-shards",
                step,
                f"each rank takes other rows of {name}, a partial sum over {axis}, and {reduced} "
                "adds them up: it adds elements that do not belong together",
                f"all_reduce({name}) over {axis} first, or a reduce_scatter of it",
            )
        elif step.target in (MUL, aten.mul.Scalar):
            (factor,) = access.rank_constants(step)
            left_out = [
                rank for group in mesh.groups[axis].ranks for rank in group
                if factor.values[rank] == 0 and any(factor.values[r] for r in group)
            ]  # fmt: skip
            if left_out:
                yield facts.finding(
                    "dropped-addends",
                    step,
                    f"{name}, a partial sum over {axis}, is multiplied by 0 on rank "
                    f"{', '.join(map(str, left_out))}, before {reduced} adds it up: the addends "
                    "of these ranks are lost",
                    f"{name} itself; a factor by rank is right for terms that all ranks hold",
                )


def _of_rows(facts: LintFacts, node: fx.Node, what: Collective, axis: str) -> Iterator[Finding]:
    """Yield findings about slices by rank that, gathered, are not all rows in order."""
    mesh = facts.graph.mesh
    for step in _made_of(facts, what.operand):
        own = own_rows(step, mesh)
        if own is None or not differs_along(step, mesh, axis):
            continue
        source = access.operands(step)[0]
        name, placement = facts.name(source), facts.placement(source, axis)
        size = access.concrete_shape(source)[own.dim]
        begins = [[own.starts[rank] for rank in group] for group in mesh.groups[axis].ranks]
        in_order = all(
            starts == [i * own.length for i in range(len(starts))]
            and len(starts) * own.length == size
            for starts in begins
        )
        why = ""
        if isinstance(placement, Shard) and placement.dim == own.dim:
            why = f"which is this rank's block already ({placement} over {axis})"
        elif placement == REPLICATE and not in_order:
            why = f"which begin at {begins[0]} and are not all {size} rows in order"
        if why:
            yield facts.finding(
                "lost-rows",
                step,
                f"each rank takes {own.length} rows of {name}, {why}; "
                f"{facts.name(node)} = all_gather over {axis} of them lacks the others",
                f"{name} itself" if isinstance(placement, Shard)
                else f"as many consecutive rows on every rank, {size} in all",
            )  # fmt: skip


def _unscaled(facts: LintFacts, node: fx.Node, axis: str) -> Iterator[Finding]:
    """Yield the finding that gathered rows are all unscaled by this rank's scale."""
    scales = _divisors(facts, node)
    stack, seen = [node], {node}
    while stack and scales:
        step = stack.pop()
        for user in step.users:
            read, rule = access.operands(user), facts.rule(user)
            if user.target is MUL and len(read) == 2:
                scale = read[1] if read[0] is step else read[0]
                if _base(scale) in scales and not facts.equal(_base(scale), (axis,)):
                    yield facts.finding(
                        "own-scale",
                        user,
                        f"{facts.op(user)} multiplies the rows of all ranks of {axis} by "
                        f"{facts.name(scale)}, by which this rank alone divided its own before "
                        f"{facts.name(node)} = all_gather",
                        f"an all_gather of {facts.name(_base(scale))} too, so that each rank's "
                        f"rows get their own scale, or its maximum over {axis} on all",
                    )
            alone = rule is not None and set(read) == {step} and (rule.pointwise or moves(rule))
            whole = access.is_tensor(user) and prod(access.concrete_shape(user)) == prod(
                access.concrete_shape(node)
            )
            if user not in seen and (user.target is WAIT or (alone and whole)):
                seen.add(user)
                stack.append(user)


def _divisors(facts: LintFacts, node: fx.Node) -> set[fx.Node]:
    """Return the tensors that what is gathered was divided by, as a whole, on its way."""
    what = collective(node)
    step: fx.Node | None = what.operand if what is not None else None
    while step is not None:
        read, rule = access.operands(step), facts.rule(step)
        if step.target is DIV and len(read) == 2:
            return {_base(read[1])}
        alone = rule is not None and len(read) == 1 and (rule.pointwise or moves(rule))
        step = read[0] if alone else None
    return set()


VIEWS = frozenset({
    aten.view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.squeeze.default, aten.expand.default, aten.alias.default, aten.clone.default,
})  # fmt: skip


def _base(node: fx.Node) -> fx.Node:
    """Return the tensor that a view, or a copy of another shape, shows."""
    while node.target in VIEWS:
        node = access.operands(node)[0]
    return node
