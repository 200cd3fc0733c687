"""Interprets an SPMD graph in the random model of ``compiler.check.algebra``.

What is trusted is the op rules: how ops depend on their operands. Collectives are interpreted here,
by their definition. An op without a rule may communicate in secret: it is a random function of what
*all* ranks hold, and of the rank.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import fx

from compiler.check import algebra, block_slices
from compiler.check.algebra import Field
from compiler.check.blocks import Value, aligned
from compiler.check.interpret_calls import CallInterpreter
from compiler.check.rank_axes import merged
from compiler.check.representatives import Members
from compiler.check.sizes import divisible
from compiler.ir import access
from compiler.ir.collectives import WAIT, Collective, Kind, collective
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.placement import Replicate
from compiler.ir.row_ops import PAD_ROWS, AllSlice, all_slice
from compiler.ir.rules import Call, meaning_of
from compiler.ir.rules.meaning import shape_key

SLICES = (torch.ops.aten.slice.Tensor, torch.ops.aten.narrow.default)


class Interpreter(CallInterpreter):
    """Values of one graph's nodes in the random model."""

    def run(self) -> dict[fx.Node, Value]:
        """Return the value of every node that holds data."""
        for node in self.spmd.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                self.values[node] = self._leaf(node)
            elif node.op == "output":
                continue
            elif node.target is WAIT:
                self.values[node] = self.values[access.operands(node)[0]]
            elif (communication := collective(node)) is not None:
                self.values[node] = self._collective(node, communication)
            elif node.op == "call_function" and access.is_operand(node):
                self.values[node] = self._call(node)
            if self.seal is not None and node in self.seal.nodes:
                value = self.values[node]
                self.values[node] = replace(value, data=self.seal(value.data), sums=self.kept.none)
        return self.values

    def _leaf(self, node: fx.Node) -> Value:
        """Draw vectors for each tensor that ranks may hold: the same for all where replicated."""
        name: object = self._position.get(node, self.attributes.get(str(node.target)))
        placements = self.spmd.inputs[str(node.target)]
        varying = [not isinstance(p, Replicate) for p in placements]
        places = self.kept.places(placements)
        dim, layout = self._cut(shape_key(node.meta.get("val")))
        keys = [
            [self.key("leaf", name, place, i) for i in range(self.kept.count(layout))]
            for place in (places if any(varying) else places[:1])
        ]
        data = algebra.random_vectors(keys)
        return Value(data, (dim,), layout, self.kept.none)

    def _call(self, node: fx.Node) -> Value:
        call = Call.of(node)
        read = [self.values[x] for x in access.operands(node)]
        if (own_slice := all_slice(node)) is not None:
            return self._sliced_between_ranks(node, own_slice, read[0])
        if node.target is PAD_ROWS and (padded := block_slices.padded(call, read[0])) is not None:
            return padded
        if (index := access.projection(node)) is not None:
            return self._projected(call, read[0], index)
        rule = meaning_of(call)
        if rule is not None and rule.rank_dependent:
            call = replace(call, rank_dependent=True)
        if call.target in SLICES:
            groups = block_slices.sharing_groups(call, self.spmd.mesh)
            if groups is not None and self.kept.fewer:
                return self._shares(node, read[0], call.dim(), call.shapes[0][call.dim()], groups)
            if (rows := block_slices.sliced(call, read[0], self.kept, self._cut)) is not None:
                return rows
            if groups is not None:
                return self._shares(node, read[0], call.dim(), call.shapes[0][call.dim()], groups)
        act = self._blockwise(call, rule, read)
        if act is not None:
            return self._on_blocks(call, act, read)
        return self._fresh(node) if any(x.padded for x in read) else self._whole(call, rule, read)

    def _collective(self, node: fx.Node, communication: Collective) -> Value:
        x = self.values[communication.operand]
        groups = self.spmd.mesh.group(communication.group)
        rows = (shape_key(access.value(communication.operand)) or (1,))[0]
        n, size = groups.axis_size, self._rows(rows)
        if n == 1:
            return x
        match communication.kind:
            case Kind.ALL_REDUCE:
                return self._reduced(communication, x, groups)
            case Kind.REDUCE_SCATTER:
                total = self._reduced(communication, x, groups)
                return self._shares(node, total, 0, size, groups)
            case Kind.ALL_GATHER if x.cut == (0,) and (x.count == 1 or aligned(x, size)):
                by_rank, members = algebra.of_ranks(x.data, self.ranks), self.kept.members(groups)
                blocks = members.ranks.shape[1] * x.data.shape[1]
                whole = np.empty((self.ranks, blocks, *by_rank.shape[2:]), np.uint64)
                for group in members.ranks:
                    whole[group] = np.concatenate([by_rank[r] for r in group])
                layout = self.kept.blocks(merged((*members.layout, *x.layout)))
                return replace(x, data=algebra.alike(whole), layout=layout)
            case _ if x.padded:
                return self._fresh(node)
            case Kind.ALL_GATHER | Kind.ALL_TO_ALL | Kind.BROADCAST:
                data, members = self._joined(x), self.kept.members(groups)
                sums = self.kept.noted(self._sums_joined(x), members.named)
                return self._spread(self._exchanged(node, data, members), Call.of(node), sums)

    def _reduced(self, reduction: Collective, x: Value, groups: ReplicaGroups) -> Value:
        """Reduce on every rank: sums in the field, others by sums of logarithms."""
        members, n = self.kept.members(groups), groups.axis_size
        if reduction.op in ("sum", "avg"):
            total = algebra.summed_over(x.data, members.ranks, members.weights)
            sums = self.kept.noted(x.sums, members.named)
            if reduction.op == "sum":
                return replace(x, data=total, sums=sums)
            if not access.dtype(reduction.operand).is_floating_point:  # divides with a remainder
                quotient = self._hashed(self.key("avg", n), [total], by_rank=False)
                return replace(x, data=quotient, sums=self.kept.none)
            return replace(x, data=algebra.scaled(total, Fraction(1, n)), sums=sums)
        data = self.logarithms.reduced_over(reduction.op, x.data, groups)
        return replace(x, data=data, sums=self.kept.none)

    def _shares(self, node: fx.Node, x: Value, dim: int, size: Any, groups: ReplicaGroups) -> Value:
        """Return each rank's share of the rows of a value, by its position in its group."""
        n, members = groups.axis_size, self.kept.members(groups)
        if x.cut != (dim,) or x.count % n or not aligned(x, size):
            if x.padded:
                return self._fresh(node)
            call, named = Call.of(node), members.named
            keys = [
                [self.key("share", dim, call.shapes, n, named, position)]
                for position in members.position
            ]
            data = algebra.multilinear(keys, [self._joined(x)])
            return self._spread(data, call, self._sums_joined(x))
        layout = self.kept.rest(x.layout, members.layout)
        by_rank, k = algebra.of_ranks(x.data, self.ranks), self.kept.count(layout)
        own = [rows[i * k : (i + 1) * k] for rows, i in zip(by_rank, members.position, strict=True)]
        return replace(x, data=np.stack(own), layout=layout)

    def _sliced_between_ranks(self, node: fx.Node, own_slice: AllSlice, x: Value) -> Value:
        """Return each rank's share; rows are padded where ranks cannot share them evenly."""
        groups = self.spmd.mesh.group(own_slice.group)
        size = self._rows(shape_key(access.tensor(own_slice.operand))[own_slice.dim])
        if x.cut == (own_slice.dim,) and x.count == groups.axis_size and x.unit == 1:
            x = replace(x, padded=x.padded or not divisible(size, x.count))
        return self._shares(node, x, own_slice.dim, size, groups)

    def _exchanged(self, node: fx.Node, x: Field, members: Members) -> Field:
        """Lay out data of all ranks of the group by position: linear in every rank's tensor."""
        call, n, ranks = Call.of(node), members.size, members.ranks
        static = (tuple(kv for kv in call.key[1] if kv[0] != "group_name"), call.shapes)
        weights = np.ones(n, np.uint64) if members.weights is None else members.weights
        mine = node.target is torch.ops._c10d_functional.all_to_all_single.default
        x, total = algebra.of_ranks(x, self.ranks), algebra.constant(Fraction(0))
        for i in range(ranks.shape[1]):
            sent = np.empty_like(x)
            sent[ranks] = (x[ranks[:, i]] * weights[i] % algebra.P)[:, None]
            keys = [
                [self.key(str(node.target), static, n, members.named, i, position * mine)]
                for position in members.position
            ]
            total = algebra.added(total, algebra.multilinear(keys, [sent]))
        return algebra.alike(total)
