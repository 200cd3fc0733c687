"""Every value of a graph, as blocks and, where a table that is cut is read, by cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import fx

from compiler.check import algebra
from compiler.check.algebra import Field
from compiler.check.single_device import grid
from compiler.check.single_device.cases import (
    DECISIONS,
    LOOKUPS,
    MASKS,
    Cases,
    Index,
    Indices,
    Interval,
    decided,
    decision,
    span,
)
from compiler.check.single_device.extrema import Extrema
from compiler.check.single_device.factors import factors_of, is_view, leading
from compiler.check.single_device.grid import Permutations
from compiler.check.single_device.interpret import GridInterpreter
from compiler.check.single_device.relations import Dimensions
from compiler.check.verdict import UnprovedError
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Kind, collective
from compiler.ir.rules import Call

Leaf = Callable[[fx.Node], Field]
"""The blocks of a placeholder or attribute."""


@dataclass
class Shared:
    """What graphs to compare have in common.

    Attributes:
        permutations: blocks that are permutations of others.
        extrema: blocks that are maxima or minima of others.
        indices: indices by which tables are read.
        chosen: indices that ``topk`` gives, each with the one interval that it lies in.
        premises: what is taken for granted of them.
    """

    permutations: Permutations = field(default_factory=Permutations)
    extrema: Extrema = field(default_factory=Extrema)
    indices: Indices = field(default_factory=Indices)
    chosen: Indices = field(default_factory=Indices)
    premises: list[str] = field(default_factory=list)


class Evaluation(GridInterpreter):
    """The values of one graph.

    Args:
        dimensions: of the graph, solved.
        leaf: what ranks hold of the inputs.
        shared: the same for graphs to compare.
        defines: lookups of this graph say which indices there are: those of the first one do.
    """

    def __init__(
        self, dimensions: Dimensions, leaf: Leaf, shared: Shared, *, defines: bool
    ) -> None:
        """Compute every value, in program order."""
        super().__init__(dimensions, shared.permutations, shared.extrema)
        self.shared, self.defines = shared, defines
        self._data: dict[tuple[fx.Node, int], Field] = {}
        self._cases: dict[tuple[fx.Node, int], Cases] = {}
        for node in self.spmd.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                if access.is_operand(node):
                    self._keep(node, 0, leaf(node))
            elif node.op == "call_function" and access.is_operand(node):
                self._compute(node)

    def data(self, node: fx.Node, result: int = 0) -> Field:
        """Return the blocks of a result on every rank."""
        if (node, result) not in self._data:
            self._data[node, result] = self._added_up(node, result, self._cases[node, result])
        return self._data[node, result]

    def __contains__(self, node: fx.Node) -> bool:
        return (node, 0) in self._data or (node, 0) in self._cases

    def _compute(self, node: fx.Node) -> None:
        read, index = access.operands(node), access.projection(node)
        if node.target is WAIT or index is not None:
            source = read[0], index or 0
            values: dict[tuple[fx.Node, int], Any] = (
                self._cases if source in self._cases else self._data
            )
            values[node, 0] = values[source]
            if index == 1 and read[0].target is torch.ops.aten.topk.default:
                self._choose(node, self._call_of(read[0]))
            return
        if (decided_value := self._in_range(node)) is not None:
            self._keep(node, 0, decided_value)
            return
        cases = self._by_cases(node)
        if cases is not None:
            for i, one in enumerate(cases):
                if one.settled:
                    self._data[node, i] = self._added_up(node, i, one)
                else:
                    self._cases[node, i] = one
        else:
            for i, data in enumerate(self._called(node, [self.data(x) for x in read])):
                self._keep(node, i, data)

    def _keep(self, node: fx.Node, result: int, data: Field) -> None:
        """Keep a value, which must have the blocks that its dimensions have."""
        if not grid.fits(data, self.dimensions.blocks(node, result)):
            raise UnprovedError(f"%{node.name} is not cut as what it is computed from")
        self._data[node, result] = data

    def _called(self, node: fx.Node, read: Sequence[Field]) -> list[Field]:
        return [self.communicated(node, read[0])] if node.target in OPS else self.called(node, read)

    def _by_cases(self, node: fx.Node) -> list[Cases] | None:
        """Return a call's results by the cases of an index; None where there is none."""
        read, call = access.operands(node), self._call_of(node)
        if node.target in LOOKUPS and (lookup := self._looked_up(node, call)) is not None:
            return [lookup]
        own = {i: self._cases[x, 0] for i, x in enumerate(read) if (x, 0) in self._cases}
        if not own and node.target not in DECISIONS:
            return None
        indices = [cases.index for cases in own.values()]
        if node.target in DECISIONS:
            near = {i: self._near(x) for i, x in enumerate(read) if i not in own}
            indices += [x for x in near.values() if x is not None]
        if not indices:
            return None
        index = max(indices, key=lambda x: x.number)
        cased = {i: cases for i, cases in own.items() if cases.index is index}
        rows_of = {i: cases.rows for i, cases in cased.items()}
        if node.target in DECISIONS:
            rows_of |= {i: self._entries(read[i]) for i, x in near.items() if x is index}
        rows = self._rows_kept(node, call, rows_of)
        if rows is None:
            return None
        results, simple = [], bool(cased)
        for number, interval in enumerate(index.intervals):
            data = [
                cased[i].data[number] if i in cased else self.data(x) for i, x in enumerate(read)
            ]
            one = self._in_case(node, call, data, index, interval)
            simple |= one is not None
            results.append(self._called(node, data) if one is None else [one])
        if not simple:
            return None
        masked = any(cases.masked for cases in cased.values())
        settled = masked and node.target in MASKS and len(rows_of) > 1
        return [
            Cases(index, rows, tuple(one[i] for one in results), masked, settled)
            for i in range(len(results[0]))
        ]

    def _call_of(self, node: fx.Node) -> Call:
        calls = self.dimensions.calls
        if node not in calls:
            calls[node] = Call.of(node)
        return calls[node]

    def _choose(self, node: fx.Node, topk: Call) -> None:
        """Note that the positions that ``topk`` gives lie below the size of its dimension."""
        data, size = grid.flat(self.data(node)), topk.shapes[0][topk.dim()]
        if data.shape[:2] == (1, 1) and isinstance(size, int):
            self.shared.chosen.add(data[0, 0], ((0, size),))

    def _in_range(self, node: fx.Node) -> Field | None:
        """Return what a call gives where the range of an index decides it; None for others."""
        read = access.operands(node)
        if node.target not in DECISIONS or any((x, 0) in self._cases for x in read):
            return None
        ranges = [x for x in (self._near(x, self.shared.chosen) for x in read) if x is not None]
        some = ranges[0] if ranges else self.shared.chosen.first  # constants need none
        if some is None:
            return None
        data = [self.data(x) for x in read]
        return self._in_case(node, self._call_of(node), data, some, some.intervals[0], all)

    def _near(self, node: fx.Node, indices: Indices | None = None) -> Index | None:
        """Return the index that a value in one block differs from by a number on each rank."""
        if not access.is_tensor(node) or access.dtype(node).is_floating_point:
            return None
        data = grid.flat(self.data(node))
        return (indices or self.shared.indices).of(data) if data.shape[1] == 1 else None

    def _in_case(
        self,
        node: fx.Node,
        call: Call,
        data: Sequence[Field],
        index: Index,
        interval: Interval,
        enough: Callable[[Iterable[object]], bool] = any,
    ) -> Field | None:
        """Return what a call gives in a case that decides it, for any rank or all; else None."""
        if node.target not in DECISIONS:
            return None
        spans = [[span(x, index, interval) for x in self._vectors(one)] for one in data]
        ranks = max(self.ranks if call.rank_dependent else 1, *map(len, spans))
        by_rank = [decision(call, [own[r % len(own)] for own in spans], r) for r in range(ranks)]
        if not enough(by_rank):
            return None
        sizes = tuple(len(sizes) for sizes in self.dimensions.blocks(node))
        return decided(by_rank, data, sizes, lambda: self._called(node, data)[0])

    def _vectors(self, data: Field) -> list[Field]:
        """Return every rank's vector if all blocks are alike; one that is nothing otherwise."""
        blocks = grid.flat(data)
        alike = (blocks == blocks[:, :1]).all()
        return list(blocks[:, 0]) if alike else [_UNKNOWN]

    def _rows_kept(self, node: fx.Node, call: Call, rows_of: dict[int, int]) -> int | None:
        """Return how many leading dimensions of the results number the index's entries.

        None where the call does not treat them one by one, in their order.
        """
        read = access.operands(node)
        if len(set(rows_of.values())) != 1:
            return None
        (rows,) = set(rows_of.values())
        shapes = [self.dimensions.shape(read[i]) for i in rows_of]
        cut = [self.dimensions.blocks(read[i])[:rows] for i in rows_of]
        if any(len(sizes) > 1 for dims in cut for sizes in dims):
            return None
        if node.target in OPS:
            communication = collective(node)
            reduces = communication is not None and communication.kind is Kind.ALL_REDUCE
            return rows if reduces and communication.op in ("sum", "avg") else None  # type: ignore[union-attr]
        if is_view(node):
            after = self.dimensions.shape(node)
            now = leading(rows, shapes[0], after)
            blocks = self.dimensions.blocks(node)[:now]
            return None if any(len(sizes) > 1 for sizes in blocks) else now
        factors = factors_of(call)
        if factors is None or any(len(shape) < rows for shape in shapes):
            return None
        labels = {factors.operands[i][:rows] for i in rows_of}
        labels |= {own[:rows] for own in factors.results}
        sizes = {shape[:rows] for shape in shapes}
        sizes |= {
            self.dimensions.shape(node, i)[:rows] for i in range(len(self.dimensions.results(node)))
        }
        return rows if len(labels) == len(sizes) == 1 and None not in labels.pop() else None

    # -- lookups -------------------------------------------------------------------------------

    def _looked_up(self, node: fx.Node, call: Call) -> Cases | None:
        """Return rows of a table by the blocks that the index lies in; None for other lookups."""
        operands = access.operands(node)
        table_name, index_name = LOOKUPS[call.target]
        i, read = call.index(table_name), call.every(index_name)
        listed = call.arguments[index_name]
        alone = len(operands) == 2 and (not isinstance(listed, tuple) or len(listed) == 1)
        if i is None or not alone or len(read) != 1 or call.arguments.get("dim", 0) != 0:
            return None
        table, ids = operands[i], operands[read[0]]
        if access.dtype(ids).is_floating_point or "bool" in str(access.dtype(ids)):
            return None
        own = self._cases.get((ids, 0))
        index = own.index if own is not None else self._near(ids)
        offsets = self.cuts.offsets(self.dimensions.of(table)[0])
        if index is None and self.defines and len(offsets) > 2:
            index = self._defined(node, ids, offsets)
        if index is None or (own is not None and own.rows != self._entries(ids)):
            return None
        data, exact, spanned = [], 0, 0
        for number, interval in enumerate(index.intervals):
            entries = self.data(ids) if own is None else own.data[number]
            one, inside, outside = self._rows_of(node, table, entries, index, interval, offsets)
            data.append(one)
            exact, spanned = exact + inside, spanned + inside + outside
        if not spanned and own is None:
            return None
        is_embedding = table_name == "weight"
        settled = is_embedding and exact == self.ranks * len(index.intervals)
        return Cases(index, self._entries(ids), tuple(data), is_embedding, settled)

    def _entries(self, ids: fx.Node) -> int:
        """Return how many leading dimensions number the entries of an index."""
        shape = self.dimensions.shape(ids)
        count = leading(len(shape), shape, shape)
        assert count is not None, "all dimensions number all entries"
        return count

    def _defined(self, node: fx.Node, ids: fx.Node, offsets: Sequence[Any]) -> Index | None:
        data = grid.flat(self.data(ids))
        if data.shape[:2] != (1, 1) or not all(isinstance(n, int) for n in offsets):
            return None
        choice = self.shared.chosen.of(data)
        if (
            choice is None
            or choice.intervals != ((0, offsets[-1]),)
            or span(data[0, 0], choice, choice.intervals[0]) != (0, offsets[-1])
        ):
            premise = f"0 <= %{ids.name} < {offsets[-1]}, which %{node.name} looks up"
            self.shared.premises.append(premise)
        intervals = tuple(pairwise(offsets))
        return self.shared.indices.add(data[0, 0], intervals)

    def _rows_of(
        self,
        node: fx.Node,
        table: fx.Node,
        entries: Field,
        index: Index,
        interval: Interval,
        offsets: Sequence[Any],
    ) -> tuple[Field, int, int]:
        """Return the rows in one case; on how many ranks they are a block's, on how many none's."""
        cells, vectors = self.data(table), self._vectors(entries)
        blocks = self.dimensions.blocks(table)[1:]
        ranks = max(len(cells), len(vectors))
        exact: dict[int, Field] = {}
        outside: dict[int, Field] = {}
        for r in range(ranks):
            ends = span(vectors[r % len(vectors)], index, interval)
            if ends is not None and (ends[1] <= 0 or ends[0] >= offsets[-1]):
                name = self.key("undefined", id(self), node.name, r)
                outside[r] = algebra.random_vectors([[name]])
            if ends is None or ends[1] - ends[0] != interval[1] - interval[0]:
                continue
            if any(end not in offsets for end in ends):
                continue
            first = offsets.index(ends[0])
            if offsets[first + 1] == ends[1]:
                exact[r] = algebra.of_ranks(cells, ranks)[r, first]

        def looked_up(sizes: tuple[Any, ...], own: Field) -> Field:
            name = self.key("lookup", interval, sizes) + index.key
            return algebra.multilinear([[name]], [own])

        sizes = [len(own) for own in self.dimensions.blocks(node)]
        rows = {r: grid.mapped(x[None], blocks, looked_up) for r, x in exact.items()}
        every = {r: grid.shaped(x, sizes)[0] for r, x in rows.items()}
        every |= {r: np.broadcast_to(x, (1, *sizes, *grid.CELL))[0] for r, x in outside.items()}
        if len(every) < ranks:
            reads = [cells if x is table else entries for x in access.operands(node)]
            general = algebra.of_ranks(self.called(node, reads)[0], ranks)
            every = {r: every.get(r, general[r]) for r in range(ranks)}
        whole = np.stack([every[r] for r in range(ranks)])
        times = self.ranks // ranks
        return algebra.alike(whole), len(rows) * times, len(outside) * times

    def _added_up(self, node: fx.Node, result: int, cases: Cases) -> Field:
        """Return the sum over the cases of what a value is in each, where that is the case."""
        blocks = self.dimensions.blocks(node, result)
        total: Field | None = None
        for interval, data in zip(cases.index.intervals, cases.data, strict=True):
            name = self.key("case", interval) + cases.index.key
            mask = algebra.random_vectors([[name]])

            def masked(sizes: tuple[Any, ...], x: Field, mask: Field = mask) -> Field:
                shape = (*sizes[: cases.rows], *(1,) * (len(sizes) - cases.rows))
                return algebra.product(self._broadcast(mask, shape, sizes), x)

            one = grid.mapped(data, blocks, masked)
            total = one if total is None else algebra.added(total, one)
        assert total is not None, "an index has intervals"
        return algebra.alike(total)


_UNKNOWN = np.arange(algebra.LANES * algebra.WIDTH, dtype=np.uint64).reshape(grid.CELL)
"""A vector that is neither a constant nor an index."""
