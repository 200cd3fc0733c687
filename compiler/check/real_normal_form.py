"""Graphs over the reals, in one form: the identities of squares, roots and quotients.

To the random model every function that is not made of sums and products is itself alone. Where a
composition stands for a fused op, calls are therefore written as products and powers first:

    square(x)     = x ** 2          reciprocal(x) = x ** -1         x ** 3 = x * x * x
    sqrt(x)       = x ** (1/2)      x / y         = x * y ** -1     x ** 1 = x * 1 = x
    rsqrt(x)      = x ** (-1/2)     norm(x)       = sum(x * x) ** (1/2)
    (x ** a) ** b = x ** (a * b)    where x >= 0
    silu(x)       = x * sigmoid(x)

and rms_norm as its definition; conversions between floating-point types are left out. That
``mean`` is ``sum / n`` the model knows. All but one hold for every real number for which their
left side is defined. The exception is the last: (x ** 2) ** (1/2) is |x|. It is used of values
that show they are not negative (``is_nonnegative``), as mean(x * x) + eps does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from fractions import Fraction
from functools import reduce
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.row_ops import resized
from compiler.ir.rules.builders import scalar
from compiler.ir.rules.meaning import shape_key

aten = torch.ops.aten

MUL, POW, ADD = aten.mul.Tensor, aten.pow.Tensor_Scalar, aten.add.Tensor
EXPONENTS: Mapping[object, Fraction] = {
    aten.square.default: Fraction(2),
    aten.sqrt.default: Fraction(1, 2),
    aten.rsqrt.default: Fraction(-1, 2),
    aten.reciprocal.default: Fraction(-1),
}
MOST_FACTORS = 9
"""Powers by whole numbers below this are products."""
QUOTIENTS = (aten.div.Tensor, aten.divide.Tensor, aten.true_divide.Tensor)
NORMS: Mapping[object, str] = {
    aten.linalg_vector_norm.default: "ord",
    aten.norm.ScalarOpt_dim: "p",
    aten.norm.ScalarOpt_dim_dtype: "p",
}
"""Norms along dimensions, and which of their arguments says which norm."""
RMS_NORMS = (aten.rms_norm.default, aten._fused_rms_norm.default)
CONVERSIONS = (aten._to_copy.default, aten.to.dtype)
SUMS = (aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim)


def real_normal_form(graph: SpmdGraph, *, rounds: bool = False) -> SpmdGraph:
    """Return the same function over the reals, floating-point values in one form.

    Args:
        graph: the graph.
        rounds: conversions stay, and types with them; otherwise all that is real is float64.
    """
    form = _RealForm(fx.Graph(), rounds=rounds)
    for node in graph.graph.nodes:
        written = form.written(node) if _is_real(node) else None
        if written is None:
            written = form.graph.node_copy(node, form.values.__getitem__)
            written.meta = form.typed(node)
        form.values[node] = written
    return SpmdGraph(graph.root, form.graph, graph.mesh, graph.inputs)


def narrowings(graph: SpmdGraph) -> Counter[tuple[torch.dtype, torch.dtype, Hashable]]:
    """Return how often a graph rounds: wider type, narrower type and width of a row -> conversions.

    Those that no output reads do not count. Rows that ranks share, or are sent, are as wide as all
    were.
    """
    counts = Counter[tuple[torch.dtype, torch.dtype, Hashable]]()
    read = {access.output(graph.graph)}
    for node in reversed(graph.graph.nodes):
        if read.isdisjoint(node.users) and node not in read:
            continue
        read.add(node)
        if node.target in CONVERSIONS and _is_real(node):
            wide, narrow = access.dtype(access.operands(node)[0]), access.dtype(node)
            if torch.promote_types(wide, narrow) is not narrow:
                counts[wide, narrow, shape_key(access.tensor(node))[-1:]] += 1
    return counts


def _is_real(node: fx.Node) -> bool:
    """Return whether the node computes floating-point numbers from such alone, alike on all ranks.

    A factor that is one on this rank is not one on others.
    """
    if node.op != "call_function" or not access.is_tensor(node):
        return False
    if access.rank_constants(access.computed_by(node)):
        return False
    values = [x.meta.get("val") for x in (node, *access.operands(node))]
    tensors = [x for v in values for x in (v if isinstance(v, list | tuple) else [v])]
    return all(isinstance(x, torch.Tensor) and x.dtype.is_floating_point for x in tensors)


class _RealForm:
    """Writes calls in the form.

    Attributes:
        graph: where they are written.
        rounds: conversions and types stay.
        values: node of the source -> what it is there.
    """

    def __init__(self, graph: fx.Graph, *, rounds: bool) -> None:
        self.graph, self.rounds = graph, rounds
        self.values: dict[fx.Node, fx.Node] = {}
        self._tensors: dict[object, torch.Tensor] = {}

    def typed(self, node: fx.Node) -> dict[str, Any]:
        """Return the node's ``meta`` with one type for all real numbers, where rules say most."""

        def as_real(x: Any) -> Any:
            if isinstance(x, list | tuple):
                return type(x)(map(as_real, x))
            if not isinstance(x, torch.Tensor) or not x.dtype.is_floating_point:
                return x
            if (sizes := shape_key(x)) not in self._tensors:
                tensor = x.new_empty(x.shape, dtype=torch.float64, device="meta")
                self._tensors[sizes] = tensor
            return self._tensors[sizes]

        value = node.meta.get("val")
        return {**node.meta, "val": value if self.rounds else as_real(value)}

    def written(self, node: fx.Node) -> fx.Node | None:
        """Return what ``node`` computes, in the form; None where no identity speaks of it."""
        call = access.operands(node)[0] if access.projection(node) == 0 else node
        if call.target in RMS_NORMS:
            return self._rms_norm(call)
        if node.target is aten.silu.default:
            x = self.values[access.operands(node)[0]]
            return self._call(x, MUL, x, self._call(x, aten.sigmoid.default, x))
        return self._power_or_product(node)

    def _power_or_product(self, node: fx.Node) -> fx.Node | None:
        """Write roots, quotients, norms and conversions; None for other calls."""
        if not isinstance(node.target, OpOverload):
            return None
        written = access.written_arguments(node)
        args = {k: self.values[x] if isinstance(x, fx.Node) else x for k, x in written.items()}
        x, other = args.get("self"), args.get("other")
        if x is None:
            return None
        if node.target in CONVERSIONS:
            return None if self.rounds else x
        if node.target in EXPONENTS:
            return self._power(x, EXPONENTS[node.target])
        if node.target is POW and (exponent := scalar(args["exponent"])) is not None:
            return self._power(x, exponent)
        if node.target in QUOTIENTS and isinstance(other, fx.Node) and access.is_tensor(other):
            return self._call(node, MUL, x, self._power(other, Fraction(-1)))
        if node.target is MUL and other == 1:
            return x
        if node.target in NORMS and args[NORMS[node.target]] in (2, None):
            dims = args["dim"], args["keepdim"]
            total = self._call(node, aten.sum.dim_IntList, self._call(x, MUL, x, x), *dims)
            return self._power(total, Fraction(1, 2))
        return None

    def _rms_norm(self, call: fx.Node) -> fx.Node | None:
        """Write h * (mean(h * h) + eps) ** (-1/2) * weight, over the last dimension."""
        args = access.written_arguments(call)
        source, eps = args["input"], args["eps"]
        if len(args["normalized_shape"]) != 1:
            return None
        if eps is None:
            eps = torch.finfo(access.dtype(source)).eps
        h = self.values[source]
        mean = self._call(h, aten.mean.dim, self._call(h, MUL, h, h), [-1], True)
        mean.meta["val"] = resized(access.tensor(h), -1, 1)
        root = self._power(self._call(mean, ADD, mean, eps), Fraction(-1, 2))
        scaled, weight = self._call(h, MUL, h, root), args["weight"]
        return scaled if weight is None else self._call(h, MUL, scaled, self.values[weight])

    def _power(self, x: fx.Node, exponent: Fraction) -> fx.Node:
        """Write ``x ** exponent``, of the innermost base that it is known to be a power of."""
        inner = scalar(x.args[1]) if x.target is POW else None
        if inner is not None and is_nonnegative(x.args[0]):
            both = inner * exponent
            if both == Fraction(float(both)):  # rounded, it would be that of another function
                x, exponent = x.args[0], both  # type: ignore[assignment]
        if exponent == 1:
            return x
        if exponent in range(2, MOST_FACTORS):
            return reduce(lambda y, _: self._call(x, MUL, y, x), range(int(exponent) - 1), x)
        return self._call(x, POW, x, float(exponent))

    def _call(self, like: fx.Node, op: Any, *arguments: Any) -> fx.Node:
        """Write a call whose result has the shape of ``like``."""
        node = self.graph.call_function(op, arguments)
        node.meta = self.typed(like)
        return node


def is_nonnegative(x: Any) -> bool:
    """Return whether ``x`` shows that it is not negative: made of squares and such numbers."""
    if isinstance(x, int | float):
        return x >= 0
    if not isinstance(x, fx.Node) or not x.args:
        return False
    if x.target is MUL and x.args[0] is x.args[1]:
        return True
    if x.target in (MUL, *QUOTIENTS) or (x.target is ADD and not x.kwargs):
        return all(map(is_nonnegative, x.args))
    return x.target in (*SUMS, POW) and is_nonnegative(x.args[0])
