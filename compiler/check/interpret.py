"""Interprets an SPMD graph in the random model of ``compiler.check.algebra``.

What is trusted is the op rules: how ops depend on their operands. Collectives are interpreted here,
by their definition. An op without a rule may communicate in secret: it is a random function of what
*all* ranks hold, and of the rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import reduce
from itertools import compress
from typing import Any

import numpy as np
import torch
from torch import fx

from compiler.check import algebra, block_slices
from compiler.check.algebra import Field, Keys
from compiler.check.blocks import Blockwise, Value, aligned, blockwise
from compiler.check.selective_reductions import Logarithms
from compiler.check.sizes import RowSizes, divisible, renamed, symbols
from compiler.ir import access
from compiler.ir.collectives import WAIT, Collective, Kind, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.placement import Replicate
from compiler.ir.row_ops import PAD_ROWS, AllSlice, all_slice
from compiler.ir.rules import BROADCAST, RANGE, RESHAPE, Call, Meaning, Selection, Term, meaning_of
from compiler.ir.rules.meaning import shape_key

PICKED = Selection((Term((0,)),))
SLICES = (torch.ops.aten.slice.Tensor, torch.ops.aten.narrow.default)


class Interpreter:
    """Values of one graph's nodes in the random model.

    Args:
        graph: a well-formed graph.
        attributes: attribute target -> name of the tensor behind it; equal names, equal tensors.
        sizes: which rows are shared between ranks, in this graph or one to compare it with.
        logarithms: of max, min and product, the same for graphs to compare.
    """

    def __init__(
        self,
        graph: SpmdGraph,
        attributes: Mapping[str, str],
        sizes: RowSizes | None = None,
        logarithms: Logarithms | None = None,
    ) -> None:
        """Nothing is interpreted before ``run``."""
        self.spmd, self.attributes = graph, attributes
        self.logarithms = Logarithms.of([graph]) if logarithms is None else logarithms
        self.sizes = RowSizes() if sizes is None else sizes
        self.ranks = graph.mesh.size
        self.values: dict[fx.Node, Value] = {}
        self.random_calls = 0
        self._keys_made: dict[tuple[object, ...], bytes] = {}
        self._cuts: dict[tuple[Any, ...], tuple[int | None, int]] = {}
        names = self._names = symbols(graph)
        self._renaming = {} if all(a == b for a, b in names.items()) else names
        self._pattern = re.compile("|".join(rf"\b{re.escape(n)}\b" for n in names) or r"(?!)")
        self._position = {n: i for i, n in enumerate(access.node_of(graph.graph, "placeholder"))}

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
        return self.values

    def key(self, *parts: object) -> bytes:
        """Return ``parts`` as the key of a random map, sizes renamed as in ``symbols``."""
        if parts not in self._keys_made:
            text = repr(parts)
            if self._renaming:
                text = self._pattern.sub(lambda m: self._renaming[m.group()], text)
            self._keys_made[parts] = text.encode()
        return self._keys_made[parts]

    def _cut(self, shape: tuple[Any, ...]) -> tuple[int | None, int]:
        """Return the dimension of a tensor that is cut, and into how many blocks."""
        if shape not in self._cuts:
            self._cuts[shape] = self.sizes.cut([renamed(s, self._names) for s in shape])
        return self._cuts[shape]

    def _rows(self, size: Any) -> Any:
        """Return a number of rows as what may be divided."""
        return self.sizes.in_steps(renamed(size, self._names))

    def _leaf(self, node: fx.Node) -> Value:
        """Draw vectors for each tensor that ranks may hold: the same for all where replicated."""
        name: object = self._position.get(node, self.attributes.get(str(node.target)))
        placements = self.spmd.inputs[str(node.target)]
        varying = [not isinstance(p, Replicate) for p in placements]
        places = [tuple(compress(at, varying)) for at in self.spmd.mesh.coordinates]
        dim, count = self._cut(shape_key(node.meta.get("val")))
        keys = [
            [self.key("leaf", name, place, i) for i in range(count)]
            for place in (places if any(varying) else places[:1])
        ]
        data = algebra.random_vectors(keys)
        return Value(data, (dim,))

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
            if (rows := block_slices.sliced(call, read[0], self.ranks, self._cut)) is not None:
                return rows
            if (groups := block_slices.sharing_groups(call, self.spmd.mesh)) is not None:
                return self._shares(node, read[0], call.dim(), call.shapes[0][call.dim()], groups)
        act = self._blockwise(call, rule, read)
        if act is not None:
            return self._on_blocks(call, act, read)
        return self._fresh(node) if any(x.padded for x in read) else self._whole(call, rule, read)

    def _on_blocks(self, call: Call, act: Blockwise, read: Sequence[Value]) -> Value:
        """Evaluate the call on every block."""
        both = zip(read, act.operands, strict=True)
        operands = [x.data if cut else self._joined(x) for x, cut in both]
        if act.rule.parts:
            return replace(act.like, data=operands[0], cut=act.cut, parts=act.rule.parts)
        data = self._evaluated(act.call, act.rule, operands)
        if act.cut[0] is None:
            return self._spread(algebra.summed_blocks(data), call)
        return replace(act.like, data=data, cut=act.cut, parts=())

    def _whole(self, call: Call, rule: Meaning | None, read: Sequence[Value]) -> Value:
        """Evaluate the call on operands in one piece each."""
        whole = [self._joined(x) for x in read]
        if rule is not None and rule.parts:
            return Value(whole[0], (None,) * len(call.result_shapes), parts=rule.parts)
        return self._spread(self._evaluated(call, rule, whole), call)

    def _evaluated(self, call: Call, rule: Meaning | None, operands: Sequence[Field]) -> Field:
        """Evaluate the call on vectors, block by block where operands have several."""
        if rule is None:
            return self._unknown(call, operands)
        data, chosen = self._computed(call, rule, operands), rule.selection
        if chosen is None or not self.logarithms.kinds:
            return data

        def mapped(logs: Sequence[Field]) -> Field:
            return self._summed(chosen.terms, call, logs)

        return self.logarithms.selected(chosen, call.result_dtypes[0], operands, data, mapped)

    def _computed(self, call: Call, rule: Meaning, operands: Sequence[Field]) -> Field:
        if rule.random:  # a function drawn anew at every call, on every rank
            self.random_calls += 1
            static = self.key("random", call.key, call.shapes, self.random_calls)
            return self._hashed(static, () if rule.fresh else operands, by_rank=True)
        if rule.terms is None:
            return self._uninterpreted(call, rule, operands)
        return self._summed(rule.terms, call, operands)

    def _summed(self, terms: Sequence[Term], call: Call, operands: Sequence[Field]) -> Field:
        blocks = max((x.shape[1] for x in operands), default=1)
        total = np.zeros((1, blocks, algebra.LANES, algebra.WIDTH), np.uint64)
        for term in terms:
            total = algebra.added(total, self._term(term, call, operands))
        return total

    def _joined(self, x: Value) -> Field:
        """Return a value as one vector."""
        if set(x.cut) == {None}:
            return x.data
        key = self.key("join", x.count)
        return self._picked(x.data, lambda blocks: algebra.joined(key, blocks))

    def _spread(self, data: Field, call: Call) -> Value:
        """Return one vector as the value of a call, in blocks where sizes say so."""
        cuts = [self._cut(shape) for shape in call.result_shapes]
        counts = {count for dim, count in cuts if dim is not None}
        if len(counts) != 1:
            return Value(data, (None,) * len(cuts))
        (count,) = counts
        keys = [self.key("spread", i, count) for i in range(count)]
        blocks = self._picked(data, lambda whole: algebra.spread(keys, whole))
        return Value(blocks, tuple(dim for dim, _ in cuts))

    def _blockwise(
        self, call: Call, rule: Meaning | None, read: Sequence[Value]
    ) -> Blockwise | None:
        """Return ``blockwise``; None too where rows of the result alone are shared."""
        if not self.sizes.sizes:
            return None
        act = blockwise(call, rule, read)
        if act is None or act.like.count > 1:
            return act
        per_operand = zip(call.shapes, read, act.operands, strict=True)
        whole = all(self._cut(shape)[1] == x.count for shape, x, is_cut in per_operand if is_cut)
        wanted = zip(act.cut, map(self._cut, call.result_shapes), strict=True)
        is_shared = any(cut == dim and n > 1 for cut, (dim, n) in wanted)
        return None if whole and is_shared else act

    def _picked(self, data: Field, pick: Callable[[Field], Field]) -> Field:
        """Apply ``pick``, which is linear, to a value and to its logarithms."""
        return self.logarithms.selected(
            PICKED, None, [data], pick(data), lambda picked: pick(picked[0])
        )

    def _projected(self, call: Call, x: Value, index: int) -> Value:
        """Return one result of an op of several."""
        dim = x.cut[index] if index < len(x.cut) else None
        data = x.data if dim is not None else self._joined(x)
        part = x.parts[index] if x.parts else ("result", index)
        picked = self._picked(data, lambda results: self._moved(part, results))
        if x.parts and dim is None:
            return self._spread(picked, call)
        return replace(x, data=picked, cut=(dim,), parts=())

    def _moved(self, part: object, x: Field) -> Field:
        """Return the elements of a tensor that a map names alone."""
        return x if part == RESHAPE else algebra.multilinear([[self.key(part)]], [x])

    def _fresh(self, node: fx.Node) -> Value:
        """Return a value that equals no other: it depends on padding, which may be anything."""
        return Value(self._hashed(self.key("padding", id(self), node.name), (), by_rank=True))

    def _unknown(self, call: Call, operands: Sequence[Field]) -> Field:
        everything = [row for x in operands for rank in algebra.vectors(x) for row in rank]
        static = b"|".join((self.key("unknown", call.key, call.shapes), *everything))
        return self._hashed(static, (), by_rank=True)

    def _uninterpreted(self, call: Call, rule: Meaning, operands: Sequence[Field]) -> Field:
        if rule.pointwise:
            operands = [
                self._broadcast(x, s, call.result)
                for x, s in zip(operands, call.shapes, strict=True)
            ]
            # over the reals; what an op does to the bits of an integer depends on its type
            whole = [d for d in call.dtypes if d is not None and not d.is_floating_point]
            static = self.key("pointwise", call.key, tuple(map(str, whole)))
        else:
            static = self.key("function", call.key, call.shapes)
        return self._hashed(static, operands, by_rank=call.rank_dependent)

    def _hashed(self, static: bytes, fixed: Sequence[Field], *, by_rank: bool) -> Field:
        """Apply a random function to ``fixed``."""
        return algebra.random_vectors(self._keys(static, fixed, by_rank=by_rank))

    def _keys(self, static: bytes, fixed: Sequence[Field], *, by_rank: bool) -> Keys:
        """Return, per rank and block, ``static``, ``fixed`` there, and the rank if it matters."""
        fixed_vectors = [algebra.vectors(x) for x in fixed]
        ranks = self.ranks if by_rank else max(map(len, fixed_vectors), default=1)
        blocks = max((len(x[0]) for x in fixed_vectors), default=1)
        own = [b"%d" % r if by_rank else b"" for r in range(ranks)]
        return [
            [b"|".join((static, own[r], *(x[r % len(x)][b % len(x[0])] for x in fixed_vectors)))
             for b in range(blocks)]
            for r in range(ranks)
        ]  # fmt: skip

    def _broadcast(self, x: Field, shape: Sequence[object], result: Sequence[object]) -> Field:
        padded = (1,) * (len(result) - len(shape)) + tuple(shape)
        if padded == tuple(result):
            return x
        pairs = [pair for pair in zip(padded, result, strict=True) if pair[1] != 1]
        return algebra.stretched(self.key(BROADCAST, *zip(*pairs, strict=True)), x)

    def _term(self, term: Term, call: Call, operands: Sequence[Field]) -> Field:
        if not term.operands:
            return algebra.constant(term.coefficient)
        factors = [operands[i] for i in term.operands]
        shapes = tuple(call.shapes[i] for i in term.operands)
        if term.map == RESHAPE or (isinstance(term.map, tuple) and term.map[0] == RANGE):
            value = self._moved(term.map, factors[0])
        elif term.map == BROADCAST:
            both = zip(factors, shapes, strict=True)
            value = reduce(algebra.product, [self._broadcast(*x, call.result) for x in both])
        elif isinstance(term.map, tuple) and term.map[0] == "sum":  # one element adds nothing
            many = [d for d, size in enumerate(shapes[0]) if size != 1]
            along = tuple(i for i, d in enumerate(many) if d in term.map[1])
            key = self.key("sum", along, tuple(shapes[0][d] for d in many))
            value = algebra.multilinear([[key]], factors)
        else:
            fixed_shapes = tuple(call.shapes[i] for i in term.fixed)
            static = self.key("map", term.map, shapes, fixed_shapes, call.result_shapes)
            fixed = [operands[i] for i in term.fixed]
            keys = self._keys(static, fixed, by_rank=call.rank_dependent)
            value = algebra.multilinear(keys, factors)
        return algebra.scaled(value, term.coefficient)

    def _collective(self, node: fx.Node, communication: Collective) -> Value:
        x = self.values[communication.operand]
        groups = self.spmd.mesh.group(communication.group)
        rows = (shape_key(access.value(communication.operand)) or (1,))[0]
        n, size = groups.axis_size, self._rows(rows)
        if n == 1:
            return x
        match communication.kind:
            case Kind.ALL_REDUCE:
                return replace(x, data=self._reduced(communication, x.data, groups))
            case Kind.REDUCE_SCATTER:
                total = replace(x, data=self._reduced(communication, x.data, groups))
                return self._shares(node, total, 0, size, groups)
            case Kind.ALL_GATHER if x.cut == (0,) and (x.count == 1 or aligned(x, size)):
                by_rank = algebra.of_ranks(x.data, self.ranks)
                whole = np.empty((self.ranks, n * x.count, *by_rank.shape[2:]), np.uint64)
                for group in groups.ranks:
                    whole[list(group)] = np.concatenate([by_rank[r] for r in group])
                return replace(x, data=algebra.alike(whole))
            case _ if x.padded:
                return self._fresh(node)
            case Kind.ALL_GATHER | Kind.ALL_TO_ALL | Kind.BROADCAST:
                return self._spread(self._exchanged(node, self._joined(x), groups), Call.of(node))

    def _reduced(self, reduction: Collective, x: Field, groups: ReplicaGroups) -> Field:
        """Reduce on every rank: sums in the field, others by sums of logarithms."""
        if reduction.op in ("sum", "avg"):
            total, n = algebra.summed_over(x, groups.ranks), groups.axis_size
            if reduction.op == "sum":
                return total
            if not access.dtype(reduction.operand).is_floating_point:  # divides with a remainder
                return self._hashed(self.key("avg", n), [total], by_rank=False)
            return algebra.scaled(total, Fraction(1, n))
        return self.logarithms.reduced_over(reduction.op, x, groups)

    def _shares(self, node: fx.Node, x: Value, dim: int, size: Any, groups: ReplicaGroups) -> Value:
        """Return each rank's share of the rows of a value, by its position in its group."""
        n, position = groups.axis_size, groups.position
        if x.cut != (dim,) or x.count % n or not aligned(x, size):
            if x.padded:
                return self._fresh(node)
            call = Call.of(node)
            keys = [self.key("share", dim, call.shapes, n, position[r]) for r in range(self.ranks)]
            return self._spread(algebra.multilinear([[k] for k in keys], [self._joined(x)]), call)
        by_rank, k = algebra.of_ranks(x.data, self.ranks), x.count // n
        own = [by_rank[r, position[r] * k : (position[r] + 1) * k] for r in range(self.ranks)]
        return replace(x, data=np.stack(own))

    def _sliced_between_ranks(self, node: fx.Node, own_slice: AllSlice, x: Value) -> Value:
        """Return each rank's share; rows are padded where ranks cannot share them evenly."""
        groups = self.spmd.mesh.group(own_slice.group)
        size = self._rows(shape_key(access.tensor(own_slice.operand))[own_slice.dim])
        if x.cut == (own_slice.dim,) and x.count == groups.axis_size and x.unit == 1:
            x = replace(x, padded=x.padded or not divisible(size, x.count))
        return self._shares(node, x, own_slice.dim, size, groups)

    def _exchanged(self, node: fx.Node, x: Field, groups: ReplicaGroups) -> Field:
        """Lay out data of all ranks of the group by position: linear in every rank's tensor."""
        call = Call.of(node)
        static = (tuple(kv for kv in call.key[1] if kv[0] != "group_name"), call.shapes)
        x, members = algebra.of_ranks(x, self.ranks), np.asarray(groups.ranks)
        total = algebra.constant(Fraction(0))
        for i in range(members.shape[1]):
            sent = np.empty_like(x)
            sent[members] = x[members[:, i]][:, None]
            mine = node.target is torch.ops._c10d_functional.all_to_all_single.default
            keys = [
                [self.key(str(node.target), static, members.shape[1], i, groups.position[r] * mine)]
                for r in range(self.ranks)
            ]
            total = algebra.added(total, algebra.multilinear(keys, [sent]))
        return algebra.alike(total)
