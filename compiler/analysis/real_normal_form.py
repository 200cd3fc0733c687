"""Values over the reals, in one form: the identities of squares, roots and quotients.

To the checker every function that is not made of sums and products is itself alone. Before it
compares, calls are therefore written as products and powers:

    square(x)     = x ** 2          reciprocal(x) = x ** -1         x ** 2 = x * x
    sqrt(x)       = x ** (1/2)      x / y         = x * y ** -1     x ** 1 = x * 1 = x
    rsqrt(x)      = x ** (-1/2)     norm(x)       = sum(x * x) ** (1/2)
    (x ** a) ** b = x ** (a * b)    where x >= 0

and rms_norm as its definition; conversions between floating-point types are left out. That
``mean`` is ``sum / n`` the checker knows. All but one hold for every real number for which their
left side is defined. The exception is the last: (x ** 2) ** (1/2) is |x|. It is used of values
that show they are not negative (``is_nonnegative``), as mean(x * x) + eps does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from compiler.ir import access
from compiler.ir.rules.builders import scalar

aten = torch.ops.aten
Emit = Callable[..., fx.Node]

MUL, POW = aten.mul.Tensor, aten.pow.Tensor_Scalar
EXPONENTS: Mapping[object, Fraction] = {
    aten.square.default: Fraction(2),
    aten.sqrt.default: Fraction(1, 2),
    aten.rsqrt.default: Fraction(-1, 2),
    aten.reciprocal.default: Fraction(-1),
}
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


def norm(emit: Emit, h: fx.Node, weight: fx.Node | None, eps: float, offset: float) -> fx.Node:
    """The definition: h * (mean(h * h) + eps) ** (-1/2) * (weight + offset), over the last dim."""
    mean = emit(aten.mean.dim, emit(MUL, h, h), [-1], True)
    scaled = emit(MUL, h, power(emit, emit(aten.add.Tensor, mean, eps), Fraction(-1, 2)))
    if weight is None:
        return scaled
    factor = emit(aten.add.Tensor, weight, offset) if offset else weight
    return emit(MUL, scaled, factor)


def real(emit: Emit, node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
    """What ``node`` computes, added to the graph of ``emit``.

    Args:
        emit: adds a call to a graph of real numbers.
        node: a call.
        known: what its operands are in that graph.

    Raises:
        ValueError: it is a norm of several dimensions at once.
    """
    args, kwargs = access.map_operands(node, known.__getitem__)
    if node.target is operator.getitem:
        return args[0] if args[1] == 0 else None
    if not isinstance(node.target, OpOverload):
        return emit(node.target, *args, **kwargs)
    names = [argument.name for argument in node.target._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    x, other = (given.get(name) for name in ("self", "other"))
    if node.target in RMS_NORMS:
        return _rms_norm(emit, access.dtype(access.operands(node)[0]), given)
    if node.target in CONVERSIONS and access.dtype(node).is_floating_point:
        return x
    if node.target in EXPONENTS:
        return power(emit, x, EXPONENTS[node.target])
    if node.target is POW and (exponent := scalar(given["exponent"])) is not None:
        return power(emit, x, exponent)
    if node.target in QUOTIENTS and isinstance(other, fx.Node):
        return emit(MUL, x, power(emit, other, Fraction(-1)))
    if node.target is MUL and not isinstance(other, fx.Node) and other == 1:
        return x
    if node.target in NORMS and given.get(NORMS[node.target], 2) in (2, None):
        dims, keepdim = given.get("dim"), given.get("keepdim", False)
        total = emit(aten.sum.dim_IntList, emit(MUL, x, x), dims, keepdim)
        return power(emit, total, Fraction(1, 2))
    return emit(node.target, *args, **{k: v for k, v in kwargs.items() if k != "dtype"})


def _rms_norm(emit: Emit, dtype: torch.dtype, given: Mapping[str, Any]) -> fx.Node:
    normalized, eps = given["normalized_shape"], given.get("eps")
    if len(normalized) != 1:
        raise ValueError(f"a norm over {len(normalized)} dimensions")
    eps = torch.finfo(dtype).eps if eps is None else eps
    return norm(emit, given["input"], given.get("weight"), eps, 0.0)


def power(emit: Emit, x: fx.Node, exponent: Fraction) -> fx.Node:
    """``x ** exponent``, of the innermost base that it is known to be a power of."""
    inner = scalar(x.args[1]) if x.target is POW else None
    if inner is not None and is_nonnegative(x.args[0]):
        both = inner * exponent
        if both == Fraction(float(both)):  # rounded, it would be the exponent of another function
            x, exponent = x.args[0], both  # type: ignore[assignment]
    if exponent == 1:
        return x
    return emit(MUL, x, x) if exponent == 2 else emit(POW, x, float(exponent))


def is_nonnegative(x: Any) -> bool:
    """Whether ``x`` is made of squares and numbers that are not negative so that it is neither."""
    if isinstance(x, int | float):
        return x >= 0
    if not isinstance(x, fx.Node) or not x.args:
        return False
    if x.target is MUL and x.args[0] is x.args[1]:
        return True
    if x.target in (MUL, *QUOTIENTS) or (x.target is aten.add.Tensor and not x.kwargs):
        return all(map(is_nonnegative, x.args))
    return x.target in (*SUMS, POW) and is_nonnegative(x.args[0])
