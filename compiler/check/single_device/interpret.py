"""A graph in the random model, every dimension that is cut anywhere in blocks.

The laws beside those of ``compiler.check.interpret``:

    block product     (A B)[i, j] = sum over k of A[i, k] B[k, j]; so for every term of every op
                      whose rule says which dimensions are one factor
    rows by factors   an op does to a block what it does to a tensor of the block's size, along
                      every dimension that its rule gives a factor
    moves             views, slices, splits, cats, gathers and scatters at block boundaries
    permutations      compose
    extrema           the maximum of a tensor is that of its blocks' maxima
    cases             ``compiler.check.single_device.cases``

An op that needs a dimension whole gets its blocks joined by a random map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import fx

from compiler.check import algebra
from compiler.check.algebra import Field
from compiler.check.interpret import Interpreter
from compiler.check.selective_reductions import Logarithms
from compiler.check.single_device import grid
from compiler.check.single_device.block_calls import (
    block_sizes,
    on_cell,
    permutation,
    term_on,
    terms_of,
)
from compiler.check.single_device.cuts import is_contiguous, row_major_points
from compiler.check.single_device.extrema import KINDS, Extrema
from compiler.check.single_device.factors import (
    CATS,
    Factors,
    factors_of,
    is_view,
    row_major_groups,
)
from compiler.check.single_device.grid import Blocks, Permutations
from compiler.check.single_device.relations import Dimensions
from compiler.ir import access
from compiler.ir.collectives import Collective, Kind, collective
from compiler.ir.rules import Call, Meaning, Term, meaning_of
from compiler.ir.rules.meaning import Labels

aten = torch.ops.aten
SHIFTS = {aten.add.Tensor: 1, aten.add.Scalar: 1, aten.sub.Tensor: -1, aten.sub.Scalar: -1}

Groups = Sequence[Sequence[int]]
"""The ranks of every group."""


class GridInterpreter(Interpreter):
    """Blocks of one graph's values.

    Args:
        dimensions: of the graph, solved.
        permutations: shared by graphs to compare.
        extrema: likewise.
    """

    def __init__(
        self, dimensions: Dimensions, permutations: Permutations, extrema: Extrema
    ) -> None:
        """Compute nothing: calls are interpreted one at a time."""
        super().__init__(dimensions.graph, {}, None, Logarithms())
        self.dimensions, self.cuts = dimensions, dimensions.cuts
        self.permutations, self.extrema = permutations, extrema

    # -- calls ---------------------------------------------------------------------------------

    def called(self, node: fx.Node, read: Sequence[Field]) -> list[Field]:
        """Return every result of a call, given the blocks of its operands."""
        if is_view(node) and (moved := self._viewed(node, read[0])) is not None:
            return [moved]
        call = self.dimensions.calls.get(node) or Call.of(node)
        if (shifted := self._shifted(call, read)) is not None:
            return [shifted]
        factors = factors_of(call)
        operands = access.operands(node)
        if factors is None:
            return self._of_everything(node, call, read)
        if (order := permutation(factors)) is not None:
            blocks = self.dimensions.blocks(operands[0])
            return [self.permutations.permuted(self.key, read[0], blocks, order)]
        if (parts := self.dimensions.pieces(call)) is not None:
            moved_parts = self._moved_pieces(node, call, read, *parts)
            if moved_parts is not None:
                return moved_parts
        elif call.target is aten.select.int and (one := self._selected(node, call, read[0])):
            return one
        return [
            self._by_factors(node, call, factors, i, read) for i in range(len(call.result_shapes))
        ]

    def communicated(self, node: fx.Node, x: Field) -> Field:
        """Return what a collective gives on every rank, given the blocks that it reads."""
        communication = collective(node)
        assert communication is not None, f"%{node.name} is not a collective"
        groups = self.spmd.mesh.group(communication.group).ranks
        if len(groups[0]) == 1:
            return x
        moves: dict[Kind, Callable[[], Field | None]] = {
            Kind.ALL_REDUCE: lambda: self._summed_over(communication, x, groups),
            Kind.REDUCE_SCATTER: lambda: self._scattered(communication, x, groups),
            Kind.ALL_GATHER: lambda: self._gathered(x, groups),
            Kind.BROADCAST: lambda: self._sent(node, x, groups),
            Kind.ALL_TO_ALL: lambda: self._parts_exchanged(node, x, groups),
        }
        result = moves.get(communication.kind, lambda: None)()
        if result is None or not self._aligned(node, communication, result, len(groups[0])):
            return self._of_everything(node, Call.of(node), [x])[0]
        return algebra.alike(result)

    def _gathered(self, x: Field, groups: Groups) -> Field | None:
        if x.ndim == 3:
            return None
        by_rank, n = algebra.of_ranks(x, self.ranks), len(groups[0])
        whole = np.empty((self.ranks, x.shape[1] * n, *x.shape[2:]), np.uint64)
        for group in groups:
            whole[list(group)] = np.concatenate([by_rank[r] for r in group])
        return whole

    def _scattered(self, reduction: Collective, x: Field, groups: Groups) -> Field | None:
        total = self._summed_over(reduction, x, groups)
        if total is None or x.ndim == 3 or x.shape[1] % len(groups[0]):
            return None
        by_rank, k = algebra.of_ranks(total, self.ranks), x.shape[1] // len(groups[0])
        position = {r: i for group in groups for i, r in enumerate(group)}
        own = [position[r] * k for r in range(self.ranks)]
        return np.stack([by_rank[r, i : i + k] for r, i in enumerate(own)])

    def _sent(self, node: fx.Node, x: Field, groups: Groups) -> Field:
        by_rank, src = algebra.of_ranks(x, self.ranks), int(access.arguments(node)["src"])
        sent = by_rank.copy()
        for group in groups:
            sent[list(group)] = by_rank[group[src]]
        return sent

    def _parts_exchanged(self, node: fx.Node, x: Field, groups: Groups) -> Field | None:
        """Return the i-th part of every rank's operand on the i-th rank; None for other splits."""
        n, arguments = len(groups[0]), access.arguments(node)
        splits = [arguments[name] for name in ("input_split_sizes", "output_split_sizes")]
        if any(len(own) != n or len(set(own)) > 1 for own in splits) or x.ndim == 3:
            return None
        if x.shape[1] % n:
            return None
        by_rank, k = algebra.of_ranks(x, self.ranks), x.shape[1] // n
        got = np.empty_like(by_rank)
        for group in groups:
            for i, rank in enumerate(group):
                got[rank] = np.concatenate([by_rank[r][i * k : (i + 1) * k] for r in group])
        return got

    def _aligned(self, node: fx.Node, communication: Collective, result: Field, n: int) -> bool:
        """Whether blocks of the parts are blocks of the whole, in order."""
        before, after = self.dimensions.blocks(communication.operand), self.dimensions.blocks(node)
        if not grid.fits(result, after) or before[1:] != after[1:]:
            return False
        if communication.kind in (Kind.BROADCAST, Kind.ALL_REDUCE):
            return before == after
        if communication.kind is Kind.ALL_TO_ALL:
            return before == after and before[0] == before[0][: len(before[0]) // n] * n
        gathers = communication.kind is Kind.ALL_GATHER
        whole, part = (after[0], before[0]) if gathers else (before[0], after[0])
        return tuple(whole) == tuple(part) * n

    def _summed_over(self, reduction: Collective, x: Field, groups: Groups) -> Field | None:
        if reduction.op in KINDS:
            return self.extrema.over(reduction.op, x, groups)
        if reduction.op not in ("sum", "avg"):
            return None
        total = algebra.summed_over(x, groups)
        if reduction.op == "sum":
            return total
        if not access.dtype(reduction.operand).is_floating_point:  # divides with a remainder
            return None
        return algebra.scaled(total, Fraction(1, len(groups[0])))

    # -- moves ---------------------------------------------------------------------------------

    def _viewed(self, node: fx.Node, x: Field) -> Field | None:
        source = access.operands(node)[0]
        before, after = self.dimensions.of(source), self.dimensions.of(node)
        groups = row_major_groups(self.dimensions.shape(source), self.dimensions.shape(node))
        for left, right in groups:
            sides = [before[i] for i in left], [after[j] for j in right]
            points = [row_major_points(self.cuts, dims) for dims in sides]
            contiguous = all(is_contiguous(self.cuts, dims) for dims in sides)
            if None in points or points[0] != points[1] or not contiguous:
                return None
        return grid.shaped(x, [len(sizes) for sizes in self.dimensions.blocks(node)])

    def _shifted(self, call: Call, read: Sequence[Field]) -> Field | None:
        """Return a tensor plus or minus a number that each rank has for itself; None otherwise."""
        other = call.arguments.get("other")
        if call.target not in SHIFTS or len(read) != 1 or call.arguments.get("alpha", 1) != 1:
            return None
        if not isinstance(other, access.RankInt) or call.dtypes[0] != call.result_dtypes[0]:
            return None
        sign = SHIFTS[call.target]
        shift = np.stack([algebra.element(Fraction(sign * n)) for n in other.values])
        by_rank = shift.reshape(self.ranks, *(1,) * (read[0].ndim - 3), *shift.shape[1:])
        return algebra.added(algebra.of_ranks(read[0], self.ranks), by_rank)

    def _moved_pieces(
        self, node: fx.Node, call: Call, read: Sequence[Field], dim: int, ranges: Any
    ) -> list[Field] | None:
        if call.target in CATS:
            whole = self.dimensions.blocks(node)
            parts = [self.dimensions.blocks(x) for x in access.operands(node)]
            sizes = tuple(size for part in parts for size in part[dim])
            alike = all(p[:dim] + p[dim + 1 :] == whole[:dim] + whole[dim + 1 :] for p in parts)
            if len(whole[dim]) == 1 or sizes != tuple(whole[dim]) or not alike:
                return None
            ranks = max(map(len, read))
            return [np.concatenate([algebra.of_ranks(x, ranks) for x in read], axis=1 + dim)]
        (x,), (source,) = read, access.operands(node)
        offsets = self.cuts.offsets(self.dimensions.of(source)[dim])
        moved = []
        for piece in ranges:
            taken = []
            ranks = max(len(x), len(piece.starts))
            for r, own in enumerate(algebra.of_ranks(x, ranks)):
                start = piece.starts[r % len(piece.starts)]
                ends = start, start + piece.length
                if any(end not in offsets for end in ends) or piece.length == 0:
                    return None
                first, last = map(offsets.index, ends)
                taken.append(np.take(own, range(first, last), axis=dim))
            part = algebra.alike(np.stack(taken)) if len({t.shape for t in taken}) == 1 else None
            if part is None or not grid.fits(part, self.dimensions.blocks(node, piece.index)):
                return None
            moved.append(part)
        return moved

    def _selected(self, node: fx.Node, call: Call, x: Field) -> list[Field] | None:
        """Return one index of a dimension that is cut into single rows; None for others."""
        dim, index, size = call.dim(), call.arguments["index"], call.shapes[0][call.dim()]
        if x.shape[1 + dim] != size or size == 1 or call.rank_dependent:
            return None
        return [np.take(x, int(index) % size, axis=1 + dim)]

    # -- blocks --------------------------------------------------------------------------------

    def _of_everything(self, node: fx.Node, call: Call, read: Sequence[Field]) -> list[Field]:
        """Return a function of all that all ranks hold, the same for no two ranks."""
        operands = zip(access.operands(node), read, strict=True)
        whole = [self.one(x, data) for x, data in operands]
        rule = meaning_of(call)
        if rule is not None and rule.random:
            data = self._computed(call, rule, whole)
        else:
            data = self._unknown(call, whole)
        several, results = len(call.result_shapes) > 1, []
        for i in range(len(call.result_shapes)):
            one = self._moved(("result", i), data) if several else data
            results.append(self._spread_result(node, i, one))
        return results

    def one(self, node: fx.Node, data: Field, result: int = 0) -> Field:
        """Return a value as one vector, [ranks, 1, LANES, WIDTH]."""
        blocks = self.dimensions.blocks(node, result)
        return grid.flat(grid.joined(self.key, data, blocks, range(len(blocks))))

    def _spread_result(self, node: fx.Node, result: int, data: Field) -> Field:
        blocks = self.dimensions.blocks(node, result)
        return grid.spread(self.key, grid.shaped(data, (1,) * len(blocks)), blocks)

    def _by_factors(
        self, node: fx.Node, call: Call, factors: Factors, result: int, read: Sequence[Field]
    ) -> Field:
        """Return one result of a call, block by block along every factor that is cut."""
        operands = access.operands(node)
        blocks = [self.dimensions.blocks(x) for x in operands]
        own_blocks, own_labels = self.dimensions.blocks(node, result), factors.results[result]
        tensors = zip(factors.operands, map(self.dimensions.of, operands), strict=True)
        own_dims = self.dimensions.of(node, result)
        sizes = block_sizes(self.cuts, [*tensors, (own_labels, own_dims)])
        rule = factors.rule
        terms, extremum = terms_of(rule, call, result), _extremum(rule)
        total: Field | None = None
        for number, term in enumerate(terms if terms is not None else (None,)):
            reads = range(len(read)) if term is None else term.reads
            own = [x for x in own_labels if x in sizes]
            inside = [] if term is None and not extremum else [
                x for x in dict.fromkeys(y for i in reads for y in factors.operands[i])
                if x in sizes and x not in own_labels
            ]  # fmt: skip
            carried = [*own, *inside]
            data = {
                i: self._arranged(read[i], factors.operands[i], blocks[i], carried, sizes)
                for i in reads
            }
            cells = self._cells(call, factors, result, number, term, data, carried, sizes)
            by_label = cells.reshape(len(cells), *(len(sizes[x]) for x in carried), *grid.CELL)
            if inside and term is None:
                spread = by_label.reshape(*by_label.shape[: 1 + len(own)], -1, *grid.CELL)
                by_label = self.extrema.of(extremum, np.moveaxis(spread, 1 + len(own), 0))
            elif inside:
                axes = tuple(range(1 + len(own), 1 + len(carried)))
                by_label = by_label.sum(axis=axes, dtype=np.uint64) % algebra.P
            total = by_label if total is None else algebra.added(total, by_label)
        counts = [len(b) if x in sizes else 1 for x, b in zip(own_labels, own_blocks, strict=True)]
        if total is None:
            total = np.zeros((1, *(n for n in counts if n > 1), *grid.CELL), np.uint64)
        whole = total.reshape(len(total), *counts, *grid.CELL)
        return algebra.alike(grid.spread(self.key, whole, own_blocks))

    def _arranged(
        self,
        x: Field,
        labels: Labels,
        blocks: Blocks,
        carried: Sequence[Any],
        sizes: Mapping[Any, tuple[Any, ...]],
    ) -> Field:
        """Return an operand's blocks, one for every block of the labels carried; others joined."""
        needed = [d for d, label in enumerate(labels) if label not in carried]
        x = grid.joined(self.key, x, blocks, needed)
        axes = [labels.index(label) for label in carried if label in labels]
        rest = [d for d in range(len(labels)) if d not in axes]
        x = np.transpose(x, [0, *(1 + d for d in (*axes, *rest)), x.ndim - 2, x.ndim - 1])
        if not axes:
            return grid.flat(x)
        shape = [len(sizes[label]) if label in labels else 1 for label in carried]
        full = [len(sizes[label]) for label in carried]
        x = np.broadcast_to(grid.shaped(x, shape), (len(x), *full, *grid.CELL))
        return grid.flat(x)

    def _cells(
        self,
        call: Call,
        factors: Factors,
        result: int,
        number: int,
        term: Term | None,
        data: Mapping[int, Field],
        carried: Sequence[Any],
        sizes: Mapping[Any, tuple[Any, ...]],
    ) -> Field:
        """Return one term of a call for every block of the labels carried, in row-major order."""
        groups = grid.by_size([sizes[label] for label in carried])
        results = []
        for own_sizes, numbers in groups.items():
            block_call = on_cell(call, factors, tuple(carried), own_sizes)
            read = [
                data[i][:, numbers] if i in data and data[i].shape[1] > 1 and len(groups) > 1
                else data.get(i, _NOTHING)
                for i in range(len(call.shapes))
            ]  # fmt: skip
            cell = self._cell(block_call, factors.rule, result, number, term, read)
            results.append(np.broadcast_to(cell, (len(cell), len(numbers), *grid.CELL)))
        if len(groups) == 1:
            return results[0]
        ranks = max(map(len, results))
        every = np.empty((ranks, sum(map(len, groups.values())), *grid.CELL), np.uint64)
        for numbers, one in zip(groups.values(), results, strict=True):
            every[:, numbers] = algebra.of_ranks(one, ranks)
        return every

    def _cell(
        self,
        block_call: Call,
        rule: Meaning,
        result: int,
        number: int,
        term: Term | None,
        read: Sequence[Field],
    ) -> Field:
        """Return one term of a call on a block, by the map that its rule gives on such a block."""
        if term is None:
            whole = self._uninterpreted(block_call, rule, read)
            several = len(block_call.result_shapes) > 1
            return self._moved(("result", result), whole) if several else whole
        return self._term(term_on(block_call, rule, result, number), block_call, read)


def _extremum(rule: Meaning) -> str:
    """Return "max" or "min" for an op that gives that of all it reads along dimensions."""
    kind = "" if rule.selection is None or rule.terms is not None else rule.selection.combine
    return kind if kind in KINDS else ""


_NOTHING = np.zeros((1, 1, *grid.CELL), np.uint64)
"""Stands for an operand that a term does not read."""
