"""Interprets an SPMD graph in the random model of ``compiler.check.algebra``.

What is trusted is the op rules: how ops depend on their operands. Collectives are interpreted here,
by their definition. An op without a rule may communicate in secret: it is a random function of what
*all* ranks hold, and of the rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import fx

from compiler.check import algebra
from compiler.check.algebra import Field
from compiler.errors import GraphError
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Collective, Kind, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.placement import Replicate
from compiler.ir.rules import BROADCAST, RESHAPE, Call, Meaning, Term, meaning_of


def symbols(graph: SpmdGraph) -> dict[str, str]:
    """Size symbols -> names by order of appearance in the inputs, the same in any graph."""
    found: dict[str, str] = {}
    for node in access.node_of(graph.graph, "placeholder"):
        held = node.meta.get("val")
        sizes = held.shape if isinstance(held, torch.Tensor) else [held]
        for size in sizes:
            if isinstance(size, torch.SymInt):
                for symbol in sorted(map(str, size.node.expr.free_symbols)):
                    found.setdefault(symbol, f"size{len(found)}")
    return found


class Interpreter:
    """Values of one graph's nodes in the random model.

    Args:
        graph: a well-formed graph.
        attributes: attribute target -> name of the tensor behind it; equal names, equal tensors.
    """

    def __init__(self, graph: SpmdGraph, attributes: Mapping[str, str]) -> None:
        """Nothing is interpreted before ``run``."""
        self.spmd, self.attributes = graph, attributes
        self.ranks = graph.mesh.size
        self.values: dict[fx.Node, Field] = {}
        self.random_calls = 0
        self._keys_made: dict[tuple[object, ...], bytes] = {}
        names = symbols(graph)
        self._renaming = {} if all(a == b for a, b in names.items()) else names
        self._pattern = re.compile("|".join(rf"\b{re.escape(n)}\b" for n in names) or r"(?!)")
        self._position = {n: i for i, n in enumerate(access.node_of(graph.graph, "placeholder"))}

    def run(self) -> dict[fx.Node, Field]:
        """The value of every node that holds data, shape [ranks, LANES, WIDTH]."""
        for node in self.spmd.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                self.values[node] = self._leaf(node)
            elif node.op == "output":
                continue
            elif node.target is WAIT or node.target in OPS:
                self.values[node] = self._collective(node)
            elif node.op == "call_function" and access.is_operand(node):
                self.values[node] = self._call(node)
            elif node.op != "call_function":
                raise GraphError(
                    f"%{node.name} is a {node.op} node",
                    remedy="capture to ATen ops, for example with torch.export",
                )
        return self.values

    def key(self, *parts: object) -> bytes:
        """``parts`` as the key of a random map, sizes renamed as in ``symbols``."""
        if parts not in self._keys_made:
            text = repr(parts)
            if self._renaming:
                text = self._pattern.sub(lambda m: self._renaming[m.group()], text)
            self._keys_made[parts] = text.encode()
        return self._keys_made[parts]

    def _leaf(self, node: fx.Node) -> Field:
        """A random vector for each tensor that ranks may hold: one for all where replicated."""
        name: object = self._position.get(node, self.attributes.get(str(node.target)))
        placements = self.spmd.inputs[str(node.target)]
        varying = [not isinstance(p, Replicate) for p in placements]
        where = np.indices(tuple(self.spmd.mesh.axes.values())).reshape(len(varying), -1).T
        return algebra.random_vectors(
            [self.key("leaf", name, tuple(at[varying].tolist())) for at in where]
        )

    def _call(self, node: fx.Node) -> Field:
        call = Call.of(node)
        found = meaning_of(call)
        operands = [self.values[x] for x in access.operands(node)]
        if found is None:
            return self._unknown(call, operands)
        if found.random:
            self.random_calls += 1
            where = [self.key("random", call.key, self.random_calls, r) for r in range(self.ranks)]
            return algebra.random_vectors(where)
        if found.terms is None:
            return self._uninterpreted(call, found, operands)
        total = algebra.constant(Fraction(0), self.ranks)
        for term in found.terms:
            total = algebra.added(total, self._term(term, call, operands))
        return total

    def _unknown(self, call: Call, operands: Sequence[Field]) -> Field:
        everything = [b"".join(algebra.rows(x)) for x in operands]
        static = self.key("unknown", call.key, call.shapes)
        return algebra.random_vectors(
            [
                b"|".join((static, *everything, bytes([r % 256, r // 256])))
                for r in range(self.ranks)
            ]
        )

    def _uninterpreted(self, call: Call, found: Meaning, operands: Sequence[Field]) -> Field:
        if found.pointwise:
            operands = [
                self._broadcast(x, s, call.result)
                for x, s in zip(operands, call.shapes, strict=True)
            ]
            static = self.key("pointwise", call.key)
        else:
            static = self.key("function", call.key, call.shapes)
        return algebra.random_vectors(self._keys(call, static, operands))

    def _keys(self, call: Call, static: bytes, fixed: Sequence[Field]) -> list[bytes]:
        """One key per rank: the static part, what the rank holds of ``fixed``, its constants."""
        held = [algebra.rows(x) for x in fixed]
        own = [b"%d" % r if call.rank_dependent else b"" for r in range(self.ranks)]
        return [b"|".join((static, own[r], *(x[r] for x in held))) for r in range(self.ranks)]

    def _broadcast(self, x: Field, shape: Sequence[object], result: Sequence[object]) -> Field:
        padded = (1,) * (len(result) - len(shape)) + tuple(shape)
        if padded == tuple(result):
            return x
        return algebra.stretched(self.key(BROADCAST, padded, result), x)

    def _term(self, term: Term, call: Call, operands: Sequence[Field]) -> Field:
        if not term.operands:
            return algebra.constant(term.coefficient, self.ranks)
        factors = [operands[i] for i in term.operands]
        if term.map == RESHAPE:
            (value,) = factors
        elif term.map == BROADCAST:
            shapes = tuple(call.shapes[i] for i in term.operands)
            spread = [
                self._broadcast(x, s, call.result) for x, s in zip(factors, shapes, strict=True)
            ]
            value = spread[0]
            for other in spread[1:]:
                value = algebra.product(value, other)
        else:
            shapes = tuple(call.shapes[i] for i in term.operands)
            held = tuple(call.shapes[i] for i in term.fixed)
            static = self.key("map", term.map, shapes, held, call.result_shapes)
            keys = self._keys(call, static, [operands[i] for i in term.fixed])
            value = algebra.multilinear(keys, factors)
        return algebra.scaled(value, term.coefficient)

    def _collective(self, node: fx.Node) -> Field:
        found = collective(node)
        if node.target is WAIT:
            return self.values[access.operands(node)[0]]
        assert found is not None, f"%{node.name} is no collective"
        operand = self.values[found.operand]
        groups = self.spmd.mesh.group(found.group).ranks
        match found.kind:
            case Kind.ALL_REDUCE:
                return self._reduced(found, operand, groups)
            case Kind.REDUCE_SCATTER:
                total = self._reduced(found, operand, groups)
                keys = self._by_position("block", Call.of(node).shapes, groups)
                return algebra.multilinear(keys, [total])
            case Kind.ALL_GATHER | Kind.ALL_TO_ALL | Kind.BROADCAST:
                return self._exchanged(node, operand, groups)

    def _reduced(self, found: Collective, x: Field, groups: Sequence[Sequence[int]]) -> Field:
        """The reduction on every rank: sums in the field, others symmetric functions.

        That of one tensor, of whatever kind, is the tensor.
        """
        if len(groups[0]) == 1:
            return x
        if found.op in ("sum", "avg"):
            total = algebra.summed_over(x, groups)
            return algebra.scaled(total, Fraction(1, len(groups[0]) if found.op == "avg" else 1))
        held = algebra.rows(x)
        of_rank = {r: group for group in groups for r in group}
        return algebra.random_vectors(
            [
                b"|".join((self.key("reduce", found.op), *sorted(held[s] for s in of_rank[r])))
                for r in range(self.ranks)
            ]
        )

    def _by_position(
        self, kind: str, static: object, groups: Sequence[Sequence[int]]
    ) -> list[bytes]:
        """One key per rank: its position in its group."""
        position = {r: i for g in groups for i, r in enumerate(g)}
        return [self.key(kind, static, len(groups[0]), position[r]) for r in range(self.ranks)]

    def _exchanged(self, node: fx.Node, x: Field, groups: Sequence[Sequence[int]]) -> Field:
        """Data of all ranks of the group laid out by position: linear in every rank's tensor."""
        call = Call.of(node)
        static = (tuple(kv for kv in call.key[1] if kv[0] != "group_name"), call.shapes)
        members = np.asarray(groups)
        positions = {r: i for g in groups for i, r in enumerate(g)}
        total = algebra.constant(Fraction(0), self.ranks)
        for i in range(members.shape[1]):
            sent = np.empty_like(x)
            sent[members] = x[members[:, i]][:, None]
            mine = node.target is torch.ops._c10d_functional.all_to_all_single.default
            keys = [
                self.key(str(node.target), static, members.shape[1], i, positions[r] if mine else 0)
                for r in range(self.ranks)
            ]
            total = algebra.added(total, algebra.multilinear(keys, [sent]))
        return total
