"""Interprets one call of an op in the random model of ``compiler.check.algebra``, by its rule."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
from torch import fx

from compiler.check import algebra
from compiler.check.algebra import Field, Keys
from compiler.check.blocks import Blockwise, Value, blockwise
from compiler.check.rank_axes import Layout
from compiler.check.representatives import Representatives, Sums
from compiler.check.seal import Seal
from compiler.check.selective_reductions import Logarithms
from compiler.check.sizes import RowSizes, renamed, symbols
from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.rules import BROADCAST, RANGE, RESHAPE, Call, Meaning, Selection, Term

PICKED = Selection((Term((0,)),))


class CallInterpreter:
    """Calls of one graph in the random model; ``values`` are those of its nodes so far.

    Args:
        graph: a well-formed graph.
        attributes: attribute target -> name of the tensor behind it; equal names, equal tensors.
        sizes: which rows are shared between ranks, in this graph or one to compare it with.
        logarithms: of max, min and product, the same for graphs to compare.
        kept: the ranks that are computed with, the same for both; None: all.
        seal: a function, the same for both, that values are put through; see ``Seal``.
    """

    def __init__(
        self,
        graph: SpmdGraph,
        attributes: Mapping[str, str],
        sizes: RowSizes | None = None,
        logarithms: Logarithms | None = None,
        kept: Representatives | None = None,
        seal: Seal | None = None,
    ) -> None:
        """Interpret nothing."""
        self.spmd, self.attributes, self.seal = graph, attributes, seal
        self.kept = Representatives.all_of(graph.mesh) if kept is None else kept
        self.ranks = len(self.kept)
        self.logarithms = Logarithms.of([graph]) if logarithms is None else logarithms
        self.sizes = RowSizes() if sizes is None else sizes
        self.values: dict[fx.Node, Value] = {}
        self.random_calls = 0
        self._keys_made: dict[tuple[object, ...], bytes] = {}
        self._cuts: dict[tuple[Any, ...], tuple[int | None, Layout]] = {}
        names = self._names = symbols(graph)
        self._renaming = {} if all(a == b for a, b in names.items()) else names
        self._pattern = re.compile("|".join(rf"\b{re.escape(n)}\b" for n in names) or r"(?!)")
        self._position = {n: i for i, n in enumerate(access.node_of(graph.graph, "placeholder"))}

    def key(self, *parts: object) -> bytes:
        """Return ``parts`` as the key of a random map, sizes renamed as in ``symbols``."""
        if parts not in self._keys_made:
            text = repr(parts)
            if self._renaming:
                text = self._pattern.sub(lambda m: self._renaming[m.group()], text)
            self._keys_made[parts] = text.encode()
        return self._keys_made[parts]

    def _cut(self, shape: tuple[Any, ...]) -> tuple[int | None, Layout]:
        """Return the dimension of a tensor that is cut, and into which blocks."""
        if shape not in self._cuts:
            dim, layout = self.sizes.cut([renamed(s, self._names) for s in shape])
            self._cuts[shape] = dim, self.kept.blocks(self.kept.layout(layout))
        return self._cuts[shape]

    def _rows(self, size: Any) -> Any:
        """Return a number of rows as what may be divided."""
        return self.sizes.in_steps(renamed(size, self._names))

    def _on_blocks(self, call: Call, act: Blockwise, read: Sequence[Value]) -> Value:
        """Evaluate the call on every block."""
        both = list(zip(read, act.operands, strict=True))
        operands = [x.data if cut else self._joined(x) for x, cut in both]
        sums = self._sums(act.rule, [x.sums if cut else self._sums_joined(x) for x, cut in both])
        layout = act.like.layout
        if act.rule.parts:
            parts = act.rule.parts
            return replace(act.like, data=operands[0], cut=act.cut, sums=sums, parts=parts)
        data = self._evaluated(act.call, act.rule, operands)
        if act.cut[0] is None:
            sums = self.kept.noted(sums, layout)
            return self._spread(algebra.summed_blocks(data, self.kept.weights(layout)), call, sums)
        return replace(act.like, data=data, cut=act.cut, sums=sums, parts=())

    def _whole(self, call: Call, rule: Meaning | None, read: Sequence[Value]) -> Value:
        """Evaluate the call on operands in one piece each."""
        whole = [self._joined(x) for x in read]
        sums = self._sums(rule, [self._sums_joined(x) for x in read])
        if rule is not None and rule.parts:
            cut = (None,) * len(call.result_shapes)
            return Value(whole[0], cut, (), sums, parts=rule.parts)
        return self._spread(self._evaluated(call, rule, whole), call, sums)

    def _sums(self, rule: Meaning | None, read: Sequence[Sums]) -> Sums:
        """Return how many sums are multiplied in a result; a function is drawn anew."""
        if not self.kept.fewer or rule is None or rule.random:
            return self.kept.none
        if rule.parts:
            return read[0]
        every = [[read[i] for i in term.operands] for term in rule.terms or ()]
        products = [tuple(map(sum, zip(*term, strict=True))) for term in every if term]
        return self.kept.noted(tuple(map(max, zip(self.kept.none, *products, strict=True))))

    def _sums_joined(self, x: Value) -> Sums:
        """Return the sums in a value as one vector: of its blocks, and of the map that joins."""
        return self.kept.noted(x.sums, x.layout, 2)

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
        key, weights = self.key("join", x.layout), self.kept.weights(x.layout)
        return self._picked(x.data, lambda blocks: algebra.joined(key, blocks, weights))

    def _spread(self, data: Field, call: Call, sums: Sums) -> Value:
        """Return one vector as the value of a call, in blocks where sizes say so."""
        cuts = [self._cut(shape) for shape in call.result_shapes]
        layouts = {layout for dim, layout in cuts if dim is not None}
        if len(layouts) != 1:
            return Value(data, (None,) * len(cuts), (), sums)
        (layout,) = layouts
        keys = [self.key("spread", i, layout) for i in range(self.kept.count(layout))]
        blocks = self._picked(data, lambda whole: algebra.spread(keys, whole))
        return Value(blocks, tuple(dim for dim, _ in cuts), layout, sums)

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
        whole = all(self._cut(shape)[1] == x.layout for shape, x, is_cut in per_operand if is_cut)
        wanted = zip(act.cut, map(self._cut, call.result_shapes), strict=True)
        is_shared = any(cut == dim and layout for cut, (dim, layout) in wanted)
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
        if dim is not None:
            return replace(x, data=picked, cut=(dim,), parts=())
        sums = self._sums_joined(x)
        if x.parts:
            return self._spread(picked, call, sums)
        return replace(x, data=picked, cut=(dim,), layout=(), sums=sums, parts=())

    def _moved(self, part: object, x: Field) -> Field:
        """Return the elements of a tensor that a map names alone."""
        return x if part == RESHAPE else algebra.multilinear([[self.key(part)]], [x])

    def _fresh(self, node: fx.Node) -> Value:
        """Return a value that equals no other: it depends on padding, which may be anything."""
        data = self._hashed(self.key("padding", id(self), node.name), (), by_rank=True)
        return Value(data, sums=self.kept.none)

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
