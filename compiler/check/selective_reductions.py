"""Max, min and product over ranks in the random model: sums, by way of a logarithm.

For each of these reductions the model has a function log, with an inverse exp, such that

    reduction over ranks of x            = exp(sum over ranks of log x)
    op(x, …) that selects and combines   = exp(sum over terms of map[fixed](log x))

Both hold of every commutative and associative operation that works element by element, and nothing
else is used: not that max is idempotent, not that a product is linear in its factors. The log of a
vector is random unless it was made by such an op, then it is what the op makes of the operands'
logs. Equal vectors have equal logs, so a vector's first log is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import add

import torch

from compiler.check import algebra
from compiler.check.algebra import Field
from compiler.check.representatives import Sums
from compiler.ir.collectives import collectives
from compiler.ir.graph import SpmdGraph
from compiler.ir.rules import Selection

KINDS = ("max", "min", "product")


def _most(left: Sums, right: Sums) -> Sums:
    return tuple(map(max, left, right)) if left and right else left or right


class Logarithms:
    """Logs of vectors met so far.

    Args:
        kinds: the reductions that the graphs to be compared have; nothing is kept for others.

    Attributes:
        most: the sums over ranks in any log, as in ``compiler.check.representatives``.
    """

    def __init__(self, kinds: Iterable[str] = ()) -> None:
        self.kinds = tuple(kinds)
        self.most: Sums = ()
        self._logs: dict[tuple[str, bytes], tuple[Field, Sums]] = {}
        self._exps: set[tuple[str, bytes]] = set()

    @staticmethod
    def of(graphs: Iterable[SpmdGraph]) -> Logarithms:
        """Return those that ``graphs`` need."""
        used = {reduction.op for graph in graphs for _, reduction in collectives(graph.graph)}
        return Logarithms(k for k in KINDS if k in used)

    def log(self, kind: str, x: Field) -> tuple[Field, Sums]:
        """Return the log of every vector of ``x``, and the sums in them; () for none."""
        deepest: Sums = ()

        def one(row: bytes) -> Field:
            nonlocal deepest
            drawn = algebra.random_vectors([[b"|".join((b"log", kind.encode(), row))]])[0, 0]
            log, sums = self._logs.setdefault((kind, row), (drawn, ()))
            deepest = _most(deepest, sums)
            return log

        return algebra.per_key(algebra.vectors(x), one), deepest

    def exp(self, kind: str, logs: Field, sums: Sums) -> Field:
        """Return the vectors that have these logs, in which there are so many sums."""
        exponents = algebra.vectors(logs)
        data = algebra.random_vectors(
            [[b"|".join((b"exp", kind.encode(), row)) for row in rank] for rank in exponents]
        )
        self.keep(kind, data, logs, sums)
        self._exps.update((kind, row) for rank in algebra.vectors(data) for row in rank)
        return data

    def keep(self, kind: str, x: Field, logs: Field, sums: Sums) -> None:
        """Record the logs of vectors that have none yet."""
        self.most = _most(self.most, sums)
        ranks = max(len(x), len(logs))
        both = (algebra.of_ranks(y, ranks) for y in (x, logs))
        for rank, own in zip(*both, strict=True):
            for vector, log in zip(rank, own, strict=True):
                self._logs.setdefault((kind, vector.tobytes()), (log, sums))

    def selected(
        self,
        selection: Selection,
        dtype: torch.dtype | None,
        operands: Sequence[Field],
        data: Field,
        mapped: Callable[[Sequence[Field]], Field],
        more: Sums | None = None,
    ) -> Field:
        """Return the result ``data`` of an op that selects, and keep its logs.

        It is made of them where all it selects from is reduced.

        Args:
            selection: of the op.
            dtype: element type of the result.
            operands: of the op.
            data: what the op gives, its other laws considered.
            mapped: the sum over the selection's terms, of operands or of their logs.
            more: the sums that this is, over ranks that stand for others.
        """
        read = sorted({i for term in selection.terms for i in term.operands})
        for kind in self.kinds:
            if not selection.distributes(kind, dtype):
                continue
            every = {i: self.log(kind, operands[i]) for i in read}
            none: Sums = ()
            sums = reduce(_most, (deep for _, deep in every.values()), none)
            if more is not None:
                sums = tuple(map(add, sums or (0,) * len(more), more))
            logs = mapped([every[i][0] if i in every else x for i, x in enumerate(operands)])
            if self.reduced(kind, [operands[i] for i in read]):
                data = self.exp(kind, logs, sums)
            else:
                self.keep(kind, data, logs, sums)
        return data

    def reduced(self, kind: str, operands: Sequence[Field]) -> bool:
        """Return whether all vectors are results of this reduction, or made of such."""
        every = (row for x in operands for rank in algebra.vectors(x) for row in rank)
        return bool(operands) and all((kind, row) in self._exps for row in every)
