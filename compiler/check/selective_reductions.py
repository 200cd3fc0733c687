"""Max, min and product over ranks in the random model: sums, by way of a logarithm.

For each of these reductions the model has a function log, with an inverse exp, such that

    reduction over ranks of x            = exp(sum over ranks of log x)
    op(x, …) that selects and combines   = exp(sum over terms of map[fixed](log x))

Both hold of every commutative and associative operation that works element by element. Max and min
are idempotent too: of ranks that hold the same, one counts, and what all of them hold is the
maximum itself. That a product is linear in its factors is not used. The log of a
vector is random unless it was made by such an op, then it is what the op makes of the operands'
logs. Equal vectors have equal logs and the reverse, so a vector's first log is kept, and a log's
first vector: a slice of a reduction, which also is a linear map of it, stands for the reduction of
the slice too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from compiler.check import algebra
from compiler.check.algebra import Field
from compiler.ir.collectives import collectives
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.rules import Selection

KINDS = ("max", "min", "product")


class Logarithms:
    """Logs of vectors met so far.

    Args:
        kinds: the reductions that the graphs to be compared have; nothing is kept for others.
    """

    def __init__(self, kinds: Iterable[str] = ()) -> None:
        self.kinds = tuple(kinds)
        self._logs: dict[tuple[str, bytes], Field] = {}
        self._exps: dict[tuple[str, bytes], Field] = {}
        self._reduced: set[tuple[str, bytes]] = set()
        self._linear: dict[tuple[object, ...], Callable[[Callable[[Field], Field]], Field]] = {}

    @staticmethod
    def of(graphs: Iterable[SpmdGraph]) -> Logarithms:
        """Return those that ``graphs`` need."""
        used = {reduction.op for graph in graphs for _, reduction in collectives(graph.graph)}
        return Logarithms(k for k in KINDS if k in used)

    def log(self, kind: str, x: Field) -> Field:
        """Return the log of every vector of ``x``."""

        def one(row: bytes) -> Field:
            drawn = algebra.random_vectors([[b"|".join((b"log", kind.encode(), row))]])[0, 0]
            return self._logs.setdefault((kind, row), drawn)

        return algebra.per_key(algebra.vectors(x), one)

    def exp(self, kind: str, logs: Field, data: Field | None = None) -> Field:
        """Return the vectors that have these logs: those met first, otherwise ``data`` or drawn."""
        if data is None:
            keys = [[b"|".join((b"exp", kind.encode(), row)) for row in rank]
                    for rank in algebra.vectors(logs)]  # fmt: skip
            data = algebra.random_vectors(keys)
        ranks = max(len(data), len(logs))
        both = (algebra.of_ranks(x, ranks) for x in (logs, data))
        per_rank = (zip(*rank, strict=True) for rank in zip(*both, strict=True))
        result = np.stack([
            np.stack([self._exps.setdefault((kind, log.tobytes()), x) for log, x in rank])
            for rank in per_rank
        ])  # fmt: skip
        self.keep(kind, result, logs)
        self._reduced.update((kind, row) for rank in algebra.vectors(result) for row in rank)
        return algebra.alike(result)

    def reduced_over(self, kind: str, x: Field, groups: ReplicaGroups) -> Field:
        """Return, on every rank, the reduction of x over its group: of slices, slices of it."""
        key, data = (kind, x.shape, x.tobytes()), None
        if of := self._linear.pop(key, None):  # away meanwhile: x may be its own slice
            data = of(lambda part: self.reduced_over(kind, part, groups))
            self._linear[key] = of
        members = np.asarray(groups.ranks)
        by_group = algebra.of_ranks(x, members.size)[members]
        if data is not None:
            data = algebra.of_ranks(data, members.size)[members[:, 0]]
        total = np.empty((members.size, *x.shape[1:]), np.uint64)
        total[members] = self.combined(kind, np.moveaxis(by_group, 1, 2), data)[:, None]
        return algebra.alike(total)

    def combined(self, kind: str, x: Field, data: Field | None = None) -> Field:
        """Return the reduction over the third dimension of x, [ranks, blocks, n, LANES, WIDTH].

        Args:
            kind: max, min or product.
            x: what is reduced.
            data: the result by another law, to be kept as the one of these logs.
        """
        if not x.any():
            return x[:, :, 0]  # the log of zeros, which are slices too, is not a map of another log
        every = self.log(kind, x.reshape(len(x), -1, *x.shape[3:]))
        logs = algebra.of_ranks(every, len(x)).reshape(x.shape)
        if kind == "product":
            return self.exp(kind, logs.sum(axis=2, dtype=np.uint64) % algebra.P, data)
        first = _first_of_equals(x)[..., None, None]
        total = self.exp(kind, np.where(first, logs, np.uint64(0)).sum(axis=2) % algebra.P, data)
        alone = first.sum(axis=2) == 1
        return cast(Field, np.where(alone, x[:, :, 0], algebra.of_ranks(total, len(x))))

    def keep(self, kind: str, x: Field, logs: Field) -> None:
        """Record the logs of vectors that have none yet."""
        ranks = max(len(x), len(logs))
        both = (algebra.of_ranks(y, ranks) for y in (x, logs))
        for rank, own in zip(*both, strict=True):
            for vector, log in zip(rank, own, strict=True):
                self._logs.setdefault((kind, vector.tobytes()), log)

    def selected(
        self,
        selection: Selection,
        dtype: torch.dtype | None,
        operands: Sequence[Field],
        data: Field,
        mapped: Callable[[Sequence[Field]], Field],
    ) -> Field:
        """Return the result ``data`` of an op that selects, and keep its logs.

        It is made of them where all it selects from is reduced.

        Args:
            selection: of the op.
            dtype: element type of the result.
            operands: of the op.
            data: what the op gives, its other laws considered.
            mapped: the sum over the selection's terms, of operands or of their logs.
        """
        read = sorted({i for term in selection.terms for i in term.operands})

        def of(act: Callable[[Field], Field]) -> Field:
            return mapped([act(x) if i in read else x for i, x in enumerate(operands)])

        for kind in self.kinds:
            if not selection.distributes(kind, dtype):
                continue
            logs = of(partial(self.log, kind))
            if self._all_reduced(kind, [operands[i] for i in read]):
                data = self.exp(kind, logs, data)
            else:
                self.keep(kind, data, logs)
                if np.array_equal(data, of(lambda x: x)):
                    self._linear[kind, data.shape, data.tobytes()] = of
        return data

    def _all_reduced(self, kind: str, operands: Sequence[Field]) -> bool:
        """Return whether all vectors are results of this reduction, or made of such."""
        every = (row for x in operands for rank in algebra.vectors(x) for row in rank)
        return bool(operands) and all((kind, row) in self._reduced for row in every)


def _first_of_equals(x: Field) -> npt.NDArray[np.bool_]:
    """Return where a vector equals none before it along the third dimension, [ranks, blocks, n]."""
    first = np.ones(x.shape[:3], bool)
    for rank, block in np.ndindex(*x.shape[:2]):
        vectors = [vector.tobytes() for vector in x[rank, block]]
        first[rank, block] = [vector not in vectors[:i] for i, vector in enumerate(vectors)]
    return first
